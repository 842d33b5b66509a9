"""Where a network looked: Grad-CAM heat maps, and tiles coloured by them.

Source: Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError, UsageError

Tiles = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]
Network = Callable[[Any], Any]  # a Keras model, or a function of the backend's tensors

BATCH = 32  # tiles at once by default: their maps, gradients and activations are in memory together
RAMP_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis: even to colour-blind eyes
MOST_COVER = 0.65  # of a tile's pixel, at the heat 1


def heat_maps(
    maps: Network, rest: Network, tiles: Tiles, target: npt.NDArray[np.int64], batch: int = BATCH
) -> npt.NDArray[np.float32]:
    """How much each place of `tiles` uint8[n, S, S, 3] speaks for the class `target` int64[n]: float32[n, S, S], 0..1.

    `maps` takes float32 tiles [n, S, S, 3] to feature maps [n, h, w, D], `rest` takes those to scores [n, C]; both as
    in inference, without dropout. The paper takes the scores before the softmax: the gradient of a probability near 1
    is near 0, and what is left of it is rounding. Each map is scaled to its own highest value, and is 0 where nothing
    speaks for the class: heat does not compare between tiles.

    Raises UsageError for shapes that do not fit, and ConfigError on another Keras backend than TensorFlow or JAX.
    """
    _check(tiles, target, batch)
    gradient = _gradients()
    found = np.zeros(tiles.shape[:3], np.float32)
    for start in range(0, len(tiles), batch):
        part = slice(start, start + batch)
        values, slopes = _at_maps(gradient, maps, rest, tiles[part], target[part])
        found[part] = _upsampled(_cam(values, slopes), tiles.shape[1:3])
    return found


def overlay(tile: Tiles, heat: npt.NDArray[np.float32]) -> Tiles:
    """The tile uint8[S, S, 3] under its heat float32[S, S] in 0..1, as uint8[S, S, 3]: clear at 0, yellow at 1.

    Raises UsageError where the two are not of one size.
    """
    if tile.shape != (*heat.shape, 3):
        raise UsageError(f"overlay: the heat map is {heat.shape}, the tile {tile.shape}; give two of one size")
    levels = np.clip(heat, 0, 1).astype(np.float32)
    colour = np.stack([np.interp(levels, RAMP_AT, channel) for channel in np.array(RAMP).T], axis=-1)  # [S, S, 3]
    cover = MOST_COVER * levels[..., None]  # [S, S, 1]
    return np.asarray(np.rint(tile * (1 - cover) + colour * cover), dtype=np.uint8)


def _cam(values: npt.NDArray[np.float32], slopes: npt.NDArray[np.float32]) -> Heat:
    """Maps and their gradients [n, h, w, D] -> [n, h, w]: the sum of the maps by mean gradient, where above 0."""
    weights = slopes.mean(axis=(1, 2), keepdims=True)  # [n, 1, 1, D], the paper's alpha
    return np.asarray(np.maximum((weights * values).sum(axis=-1), 0), dtype=np.float32)


def _upsampled(heat: Heat, size: tuple[int, ...]) -> Heat:
    """[n, h, w] -> [n, *size] bilinearly, each scaled to a highest value of 1; one that is 0 everywhere stays so."""
    from keras import ops

    large = ops.image.resize(heat[..., None], size, interpolation="bilinear", data_format="channels_last")
    levels = np.asarray(ops.convert_to_numpy(large), dtype=np.float32)[..., 0]  # [n, S, S]
    highest = levels.max(axis=(1, 2), keepdims=True)
    scaled = np.divide(levels, highest, out=np.zeros_like(levels), where=highest > 0)
    return np.asarray(np.clip(scaled, 0, 1), dtype=np.float32)


def _at_maps(
    gradient: Callable[[Network, Any], Any], maps: Network, rest: Network, tiles: Tiles, target: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The feature maps of some tiles, and the gradient of their target's score there: both float32[n, h, w, D]."""
    from keras import ops

    values = maps(ops.convert_to_tensor(tiles.astype(np.float32)))  # [n, h, w, D]
    _check_maps(tuple(values.shape), len(tiles))

    def score(features: Any) -> Any:
        scores = rest(features)  # [n, C]
        _check_scores(tuple(scores.shape), target)
        return ops.sum(ops.cast(scores, "float32") * ops.one_hot(target, scores.shape[1], dtype="float32"))

    return _plain(values), _plain(gradient(score, values))


def _plain(tensor: Any) -> Heat:
    from keras import ops

    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")), dtype=np.float32)


def _gradients() -> Callable[[Network, Any], Any]:
    """What gives the gradient of a function of one tensor there, on Keras's backend."""
    import keras

    known = {"tensorflow": _tensorflow_gradient, "jax": _jax_gradient}
    name = keras.backend.backend()
    if name not in known:
        raise ConfigError(f"heat maps: Keras's backend is {name}; supported: {', '.join(known)}; set KERAS_BACKEND")
    return known[name]


def _tensorflow_gradient(function: Network, at: Any) -> Any:
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(at)
        value = function(at)
    return tape.gradient(value, at, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _jax_gradient(function: Network, at: Any) -> Any:
    return import_module("jax").grad(function)(at)  # not in the requirements: only who chose this backend has it


def _check(tiles: Tiles, target: npt.NDArray[np.int64], batch: int) -> None:
    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
        raise UsageError(f"heat maps: tiles are {tiles.dtype}{list(tiles.shape)}; allowed: uint8[n, S, S, 3]")
    if target.shape != tiles.shape[:1]:
        raise UsageError(f"heat maps: {len(tiles)} tiles and targets {target.shape}; give one class index a tile")
    if batch < 1:
        raise UsageError(f"heat maps: batch is {batch}; allowed: 1 and more tiles")


def _check_maps(shape: tuple[int, ...], rows: int) -> None:
    if len(shape) != 4 or shape[0] != rows:
        raise UsageError(f"heat maps: the maps are {shape} for {rows} tiles; give a layer with maps [n, h, w, D]")


def _check_scores(shape: tuple[int, ...], target: npt.NDArray[np.int64]) -> None:
    if len(shape) != 2 or shape[0] != len(target):
        raise UsageError(f"heat maps: the scores are {shape} for {len(target)} tiles; give [n, C]")
    if target.min() < 0 or target.max() >= shape[1]:
        seen = f"{target.min()} to {target.max()}"
        raise UsageError(f"heat maps: targets go from {seen}; allowed: 0 to {shape[1] - 1}, class indices")
