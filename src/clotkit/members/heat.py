"""Compute heat maps, which show what in a tile speaks for a class, and draw them over tiles.

Sources: Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2; for a network without gradients occlusion, Zeiler and
Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.2.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError, UsageError

TileArray = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]
Network = Callable[[Any], Any]  # a Keras model, or a function of the backend's tensors

CELLS = 7  # of a side, when squares of a tile are covered
BATCH = 32  # default number of tiles whose maps, gradients and activations are in memory together
RAMP_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
RAMP = (
    (68, 1, 84),
    (59, 82, 139),
    (33, 145, 140),
    (94, 201, 98),
    (253, 231, 37),
)  # viridis, which colour-blind people can read
MAX_OPACITY = 0.65  # of the colour over a tile, at heat 1


def heat_maps(
    maps: Network, rest: Network, tiles: TileArray, target: npt.NDArray[np.int64], batch: int = BATCH
) -> npt.NDArray[np.float32]:
    """Return how strongly each pixel of a tile speaks for a class, float32[n, S, S] in 0..1.

    Each map is scaled to its own highest value and is 0 where nothing speaks for the class, so heat cannot be compared
    between tiles.

    Args:
        maps: float32 tiles [n, S, S, 3] -> feature maps [n, h, w, D], as in inference, without dropout.
        rest: feature maps -> scores [n, C], likewise. The paper takes the scores before the softmax: the gradient of a
            probability near 1 is near 0, and mostly rounding error.
        tiles: uint8[n, S, S, 3].
        target: class index of each tile, int64[n].
        batch: tiles at a time.

    Raises:
        UsageError: shapes do not fit together.
        ConfigError: the Keras backend is neither TensorFlow nor JAX.
    """
    _check_arguments(tiles, target, batch)
    gradient = _gradient_function()
    heat = np.zeros(tiles.shape[:3], np.float32)  # [n, S, S]
    for start in range(0, len(tiles), batch):
        part = slice(start, start + batch)
        values, gradients = _maps_and_gradients(gradient, maps, rest, tiles[part], target[part])
        heat[part] = _upsampled(_cam(values, gradients), tiles.shape[1:3])
    return heat


def occlusion_map(predict: Callable[[TileArray], npt.NDArray[Any]], tile: TileArray, target: int) -> Heat:
    """Return how much the logit of a class falls when a part of a tile is covered, float32[S, S].

    Each of CELLS x CELLS squares is covered by the tile's mean colour in turn. The map is scaled to 0..1, and is 0
    where covering lowers nothing.

    Args:
        predict: uint8[n, S, S, 3] -> probabilities [n, C].
        tile: uint8[S, S, 3].
        target: index of the class.
    """
    side = tile.shape[0]
    edges = np.linspace(0, side, CELLS + 1).round().astype(int)
    covered = np.repeat(tile[None], CELLS * CELLS + 1, axis=0)  # the last one is whole
    for number in range(CELLS * CELLS):
        row, column = divmod(number, CELLS)
        covered[number, edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = tile.mean(axis=(0, 1))
    p = np.clip(np.asarray(predict(covered), np.float64)[:, target], 1e-6, 1 - 1e-6)
    logits = np.log(p / (1 - p))
    falls = np.maximum(logits[-1] - logits[:-1], 0).reshape(CELLS, CELLS)
    at = (np.arange(side) + 0.5) / side * CELLS - 0.5  # of each pixel among the centres of the squares
    rows = np.array([np.interp(at, np.arange(CELLS), row) for row in falls])  # [CELLS, S]
    heat = np.array([np.interp(at, np.arange(CELLS), column) for column in rows.T]).T  # [S, S]
    return np.asarray(heat / (heat.max() or 1.0), np.float32)


def class_scores(outputs: Any, output: str, rows: bool) -> Any:
    """Return what to differentiate for each class, [n, C], from a head's outputs.

    With softmax these are the logits of the classes; of probabilities log(p / (1 - p)). Classes in order share one
    score, the logit of the expected class: it speaks for every class but the lowest, and against that one. So a heat
    map shows what raises the class, and for the lowest what lowers it. As each map is scaled to its maximum, any
    increasing function of the score gives the same map.

    Args:
        outputs: probabilities [n, C], or rows [n, C + 1] of values and an attention logit.
        output: the network's, see members.heads.
        rows: whether they are rows.
    """
    from keras import ops

    if output == "softmax":
        return outputs[:, :-1] if rows else _logits(outputs)
    classes = outputs.shape[1] - rows
    if rows:
        score = outputs[:, :1]
    else:
        score = _logits(ops.sum(outputs * ops.arange(classes, dtype="float32"), axis=1, keepdims=True) / (classes - 1))
    return ops.concatenate([-score] + [score] * (classes - 1), axis=1)


def _logits(probabilities: Any) -> Any:
    """Return log(p / (1 - p)): a probability near 1 has no gradient, its logit has one."""
    from keras import ops

    clipped = ops.clip(probabilities, 1e-6, 1 - 1e-6)
    return ops.log(clipped) - ops.log(1 - clipped)


def overlay(tile: TileArray, heat: npt.NDArray[np.float32]) -> TileArray:
    """Return the tile uint8[S, S, 3] with its heat float32[S, S] in 0..1 drawn over it, uint8[S, S, 3].

    The colour is transparent at 0 and yellow at 1. Raises UsageError when the two differ in size.
    """
    if tile.shape != (*heat.shape, 3):
        raise UsageError(f"overlay: the heat map is {heat.shape}, the tile {tile.shape}; they have to be of one size")
    levels = np.clip(heat, 0, 1).astype(np.float32)
    colour = np.stack([np.interp(levels, RAMP_AT, channel) for channel in np.array(RAMP).T], axis=-1)  # [S, S, 3]
    opacity = MAX_OPACITY * levels[..., None]  # [S, S, 1]
    return np.asarray(np.rint(tile * (1 - opacity) + colour * opacity), dtype=np.uint8)


def _cam(values: npt.NDArray[np.float32], gradients: npt.NDArray[np.float32]) -> Heat:
    """Return the sum of the maps by mean gradient, cut off at 0: twice [n, h, w, D] -> [n, h, w]."""
    weights = gradients.mean(axis=(1, 2), keepdims=True)  # [n, 1, 1, D], the paper's alpha
    return np.asarray(np.maximum((weights * values).sum(axis=-1), 0), dtype=np.float32)


def _upsampled(heat: Heat, size: tuple[int, ...]) -> Heat:
    """Resize maps [n, h, w] to [n, *size] bilinearly, and scale each to a maximum of 1 unless it is all 0."""
    from keras import ops

    large = ops.image.resize(heat[..., None], size, interpolation="bilinear", data_format="channels_last")
    levels = np.asarray(ops.convert_to_numpy(large), dtype=np.float32)[..., 0]  # [n, S, S]
    highest = levels.max(axis=(1, 2), keepdims=True)  # [n, 1, 1]
    scaled = np.divide(levels, highest, out=np.zeros_like(levels), where=highest > 0)
    return np.asarray(np.clip(scaled, 0, 1), dtype=np.float32)


def _maps_and_gradients(
    gradient: Callable[[Network, Any], Any],
    maps: Network,
    rest: Network,
    tiles: TileArray,
    target: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the maps of tiles and the gradients of their target scores, both float32[n, h, w, D]."""
    from keras import ops

    values = maps(ops.convert_to_tensor(tiles.astype(np.float32)))  # [n, h, w, D]
    _check_maps(tuple(values.shape), len(tiles))

    def score(features: Any) -> Any:
        scores = rest(features)  # [n, C]
        _check_scores(tuple(scores.shape), target)
        return ops.sum(ops.cast(scores, "float32") * ops.one_hot(target, scores.shape[1], dtype="float32"))

    return _to_numpy(values), _to_numpy(gradient(score, values))


def _to_numpy(tensor: Any) -> Heat:
    from keras import ops

    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")), dtype=np.float32)


def _gradient_function() -> Callable[[Network, Any], Any]:
    """Return the function (f, tensor) -> gradient of f at the tensor, for Keras's backend.

    Raises ConfigError when the backend is neither TensorFlow nor JAX.
    """
    import keras

    known = {"tensorflow": _tensorflow_gradient, "jax": _jax_gradient}
    name = keras.backend.backend()
    if name not in known:
        raise ConfigError(f"heat maps: Keras's backend is {name}; supported: {', '.join(known)}; set CLOTKIT_BACKEND")
    return known[name]


def _tensorflow_gradient(function: Network, at: Any) -> Any:
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(at)
        value = function(at)
    return tape.gradient(value, at, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _jax_gradient(function: Network, at: Any) -> Any:
    return import_module("jax").grad(function)(
        at
    )  # not in the requirements: installed only by those who chose this backend


def _check_arguments(tiles: TileArray, target: npt.NDArray[np.int64], batch: int) -> None:
    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
        raise UsageError(f"heat maps: tiles are {tiles.dtype}{list(tiles.shape)}; allowed: uint8[n, S, S, 3]")
    if target.shape != tiles.shape[:1]:
        raise UsageError(f"heat maps: {len(tiles)} tiles and targets {target.shape}; give one class index per tile")
    if batch < 1:
        raise UsageError(f"heat maps: batch is {batch}; at least 1 tile is needed")


def _check_maps(shape: tuple[int, ...], rows: int) -> None:
    if len(shape) != 4 or shape[0] != rows:
        raise UsageError(f"heat maps: the maps are {shape} for {rows} tiles; give a layer with maps [n, h, w, D]")


def _check_scores(shape: tuple[int, ...], target: npt.NDArray[np.int64]) -> None:
    if len(shape) != 2 or shape[0] != len(target):
        raise UsageError(f"heat maps: the scores are {shape} for {len(target)} tiles; give [n, C]")
    if target.min() < 0 or target.max() >= shape[1]:
        raise UsageError(
            f"heat maps: targets are {target.min()} to {target.max()}; allowed: class indices 0 to {shape[1] - 1}"
        )
