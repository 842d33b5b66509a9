"""Augment training tiles: flips, rotations, affine changes, colours, stains, blur, cutout, mixing.

Augmentation is redrawn for every epoch and happens outside the networks, because Keras applies random layers inside a
network whenever it is called or exported. Random numbers are numpy's and resampling is Keras's, so a seed gives the
same tiles on every backend.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import AugmentConfig

Floats = npt.NDArray[np.float32]
TrainingBatch = tuple[npt.NDArray[Any], Floats, Floats]  # inputs [b, …], one-hot classes [b, C], weights [b]
TileFloats = npt.NDArray[np.float32]  # [n, S, S, 3], RGB, about 0..255 until `augment` clips them

# Optical densities of haematoxylin, eosin and DAB, one row per stain (Ruifrok & Johnston 2001, "Quantification of
# histochemical staining by color deconvolution").
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
UNSTAINED = np.linalg.inv(STAINS).astype(np.float32)
BLUR_PX = (0.3, 1.5)  # range of the standard deviation
MIXING = 1_000_000  # sets the seeds of mix_batch apart from those of the tiles themselves, see feed.ShardFeed


def augment(tiles: npt.NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> TileFloats:
    """Return an augmented copy of each tile: uint8[n, S, S, 3] -> float32[n, S, S, 3] in 0..255.

    The same state of `rng` gives the same copies.
    """
    changed = _flipped(tiles, config, rng).astype(np.float32)
    changed = _transformed(changed, config, rng)
    changed = _recoloured(changed, config, rng)
    if config.stain:
        changed = _restained(changed, config.stain, rng)
    if config.blur:
        changed = _blurred(changed, config.blur, rng)
    if config.cutout:
        changed = _cut_out(changed, config.cutout, rng)
    return np.asarray(np.clip(changed, 0, 255), np.float32)


def _flipped(tiles: npt.NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Rotate tiles by multiples of 90 degrees and mirror them at random, or only mirror them."""
    if config.rotate_flip:
        return np.stack([np.rot90(tile, int(rng.integers(4)))[:, :: int(rng.choice((-1, 1)))] for tile in tiles])
    if config.mirror:
        return np.stack([tile[:, :: int(rng.choice((-1, 1)))] for tile in tiles])
    return tiles


def _transformed(tiles: TileFloats, config: AugmentConfig, rng: np.random.Generator) -> TileFloats:
    """Rotate, scale, shear and shift tiles in one resampling; pixels outside are mirrored at the edge."""
    if not (config.rotate_deg or config.scale or config.shear_deg or config.shift):
        return tiles
    import keras

    transforms = _affine(len(tiles), tiles.shape[1], config, rng)
    resampled = keras.ops.image.affine_transform(tiles, transforms, interpolation="bilinear", fill_mode="reflect")
    return np.asarray(keras.ops.convert_to_numpy(resampled), np.float32)


def _affine(tiles: int, side_px: int, config: AugmentConfig, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw one affine transform per tile, [n, 8], as Keras takes it: a0, a1, a2, b0, b1, b2, 0, 0.

    The pixel at (x, y) comes from x' = a0 x + a1 y + a2, y' = b0 x + b1 y + b2.
    """
    angle = np.radians(rng.uniform(-config.rotate_deg, config.rotate_deg, tiles))  # [n]
    shear = np.tan(np.radians(rng.uniform(-config.shear_deg, config.shear_deg, tiles)))
    scale = np.exp(rng.uniform(-1, 1, (2, tiles)) * math.log1p(config.scale))  # [2, n]
    shift = rng.uniform(-config.shift, config.shift, (2, tiles)) * side_px  # [2, n]
    cos, sin, centre = np.cos(angle), np.sin(angle), (side_px - 1) / 2
    a0, a1 = cos * scale[0], (shear * cos - sin) * scale[0]
    b0, b1 = sin * scale[1], (shear * sin + cos) * scale[1]
    a2 = centre - (a0 + a1) * centre + shift[0]
    b2 = centre - (b0 + b1) * centre + shift[1]
    zero = np.zeros(tiles)
    return np.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1).astype(np.float32)


def _recoloured(tiles: TileFloats, config: AugmentConfig, rng: np.random.Generator) -> TileFloats:
    """Multiply each channel by a gain, change the contrast around the tile's mean, and add a brightness."""
    n = len(tiles)
    if config.channel_gain:
        tiles = tiles * rng.uniform(1 - config.channel_gain, 1 + config.channel_gain, (n, 1, 1, 3)).astype(np.float32)
    if config.contrast:
        mean = tiles.mean(axis=(1, 2, 3), keepdims=True)  # [n, 1, 1, 1]
        factor = rng.uniform(1 - config.contrast, 1 + config.contrast, (n, 1, 1, 1)).astype(np.float32)
        tiles = mean + (tiles - mean) * factor
    if config.brightness:
        tiles = tiles + rng.uniform(-config.brightness, config.brightness, (n, 1, 1, 1)).astype(np.float32) * 255
    return tiles


def _restained(tiles: TileFloats, strength: float, rng: np.random.Generator) -> TileFloats:
    """Scale and shift the density of each stain, by at most `strength` and a tenth of it.

    Source: Tellez et al. 2018, "Whole-slide mitosis detection in H&E breast histology".
    """
    densities = -np.log((np.clip(tiles, 0, 255) + 1) / 256) @ UNSTAINED  # [n, S, S, 3], one channel per stain
    densities *= rng.uniform(1 - strength, 1 + strength, (len(tiles), 1, 1, 3)).astype(np.float32)
    densities += rng.uniform(-strength, strength, (len(tiles), 1, 1, 3)).astype(np.float32) * 0.1
    return np.asarray(256 * np.exp(-densities @ STAINS) - 1, np.float32)


def _blurred(tiles: TileFloats, share: float, rng: np.random.Generator) -> TileFloats:
    """Blur a random share of the tiles."""
    from scipy.ndimage import gaussian_filter

    blurred = tiles.copy()
    for index in np.flatnonzero(rng.random(len(tiles)) < share):
        sigma = rng.uniform(*BLUR_PX)
        blurred[index] = gaussian_filter(tiles[index], (sigma, sigma, 0))
    return blurred


def _cut_out(tiles: TileFloats, max_share: float, rng: np.random.Generator) -> TileFloats:
    """Fill a square, of a side up to `max_share` of the tile's, with the tile's mean colour.

    Source: DeVries & Taylor 2017, "Improved regularization of convolutional neural networks with cutout".
    """
    changed, side = tiles.copy(), tiles.shape[1]
    for tile in changed:
        size = int(rng.uniform(0, max_share) * side)
        y, x = rng.integers(0, side - size + 1, 2)
        tile[y : y + size, x : x + size] = tile.mean(axis=(0, 1))
    return changed


def mix_batch(
    batch: TrainingBatch, config: AugmentConfig, seed: int, *, epoch: int, step: int, group: int = 0
) -> TrainingBatch:
    """Mix the items of a batch in pairs, by mixup or CutMix; return it as it is if the recipe has neither.

    Sources: Zhang et al. 2018, "mixup: beyond empirical risk minimization"; Yun et al. 2019, "CutMix: regularization
    strategy to train strong classifiers with localizable features".

    Args:
        batch: inputs float32[b, …], with CutMix tiles float32[b, S, S, 3]; classes [b, C] and weights [b].
        config: mixup, cutmix and mix_share.
        seed: of the fit.
        epoch: with the step the number of the global batch, for which the method is drawn.
        step: see epoch.
        group: the part of the global batch that this is, when its parts are mixed one by one; each has its own pairs.
    """
    if not (config.mixup or config.cutmix):
        return batch
    of_batch = np.random.default_rng([seed, epoch, step, MIXING])
    if of_batch.random() >= config.mix_share:
        return batch
    cuts = bool(config.cutmix) and not (config.mixup and of_batch.random() < 0.5)
    rng = np.random.default_rng([seed, epoch, step, MIXING, group])
    inputs, classes, weights = batch
    alpha, partners = config.cutmix if cuts else config.mixup, rng.permutation(len(inputs))
    shares = rng.beta(alpha, alpha, len(inputs)).astype(np.float32)  # [b], of the item itself
    mixed, shares = (_pasted if cuts else _blended)(inputs, inputs[partners], shares, rng)
    return mixed, *_mixed_labels(classes, weights, partners, shares)


def _blended(inputs: Floats, others: Floats, shares: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the weighted means of inputs [b, …] and others, and the shares [b] of the inputs."""
    own = shares.reshape(-1, *[1] * (inputs.ndim - 1))
    return inputs * own + others * (1 - own), shares


def _pasted(tiles: Floats, others: Floats, shares: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Paste a rectangle of each of the others [b, S, S, 3] into its tile.

    Returns the tiles, and the share of its area [b] that each keeps. The rectangle has the proportions of the tile and
    is cut off at its edges, so a share is at least the one drawn.
    """
    side = tiles.shape[1]
    half = np.sqrt(1 - shares)[:, None] * side / 2  # [b, 1]
    at = np.arange(side) + 0.5
    down, across = (np.abs(at - rng.uniform(0, side, (len(tiles), 1))) < half for _ in range(2))  # [b, S] each
    pasted = down[:, :, None, None] & across[:, None, :, None]  # [b, S, S, 1]
    return np.where(pasted, others, tiles), 1 - pasted.mean(axis=(1, 2, 3), dtype=np.float32)


def _mixed_labels(
    classes: Floats, weights: Floats, partners: npt.NDArray[np.int64], shares: Floats
) -> tuple[Floats, Floats]:
    """Return labels [b, C] and weights [b] that give pairs the sum of both losses, each by its share.

    A loss that is linear in the labels, as a cross-entropy, is that of the weighted mean of both labels.
    """
    own, other = shares * weights, (1 - shares) * weights[partners]  # [b] each
    total = own + other
    share = np.divide(own, total, out=shares.copy(), where=total > 0)[:, None]
    return classes * share + classes[partners] * (1 - share), total
