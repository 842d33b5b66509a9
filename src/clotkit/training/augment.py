"""What chance does to tiles in training: turns, affine changes, colours, stains, blur, squares; all from one generator.

Outside the networks, because Keras applies a random layer inside one whenever it is called or exported. The draws are
numpy's and the resampling is Keras's, so a seed gives the same tiles on every backend.
"""

import math

import numpy as np
import numpy.typing as npt

from clotkit.config import AugmentConfig

Tiles = npt.NDArray[np.float32]

# Optical densities of haematoxylin, eosin and DAB, a row a stain (Ruifrok & Johnston 2001, "Quantification of
# histochemical staining by color deconvolution").
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
UNSTAINED = np.linalg.inv(STAINS).astype(np.float32)
MOST_BLUR_PX = 1.5  # standard deviation


def augment(tiles: npt.NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> Tiles:
    """A changed copy of each tile: uint8 [n, S, S, 3] -> float32 [n, S, S, 3] in 0..255, one for one `rng`."""
    changed = _turned(tiles, config, rng).astype(np.float32)
    changed = _bent(changed, config, rng)
    changed = _tinted(changed, config, rng)
    if config.stain:
        changed = _stained(changed, config.stain, rng)
    if config.blur:
        changed = _blurred(changed, config.blur, rng)
    if config.cutout:
        changed = _erased(changed, config.cutout, rng)
    return np.asarray(np.clip(changed, 0, 255), np.float32)


def _turned(tiles: npt.NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    if config.rotate_flip:
        return np.stack([np.rot90(tile, int(rng.integers(4)))[:, :: int(rng.choice((-1, 1)))] for tile in tiles])
    if config.mirror:
        return np.stack([tile[:, :: int(rng.choice((-1, 1)))] for tile in tiles])
    return tiles


def _bent(tiles: Tiles, config: AugmentConfig, rng: np.random.Generator) -> Tiles:
    """Rotated, scaled, sheared and shifted in one resampling; what comes in from outside is mirrored at the edge."""
    if not (config.rotate_deg or config.scale or config.shear_deg or config.shift):
        return tiles
    import keras

    transforms = _affine(len(tiles), tiles.shape[1], config, rng)
    bent = keras.ops.image.affine_transform(tiles, transforms, interpolation="bilinear", fill_mode="reflect")
    return np.asarray(keras.ops.convert_to_numpy(bent), np.float32)


def _affine(tiles: int, side_px: int, config: AugmentConfig, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Where each pixel comes from, [n, 8]: x' = a0 x + a1 y + a2, y' = b0 x + b1 y + b2, and two zeros."""
    angle = np.radians(rng.uniform(-config.rotate_deg, config.rotate_deg, tiles))
    shear = np.tan(np.radians(rng.uniform(-config.shear_deg, config.shear_deg, tiles)))
    scale = np.exp(rng.uniform(-1, 1, (2, tiles)) * math.log1p(config.scale))
    shift = rng.uniform(-config.shift, config.shift, (2, tiles)) * side_px
    cos, sin, centre = np.cos(angle), np.sin(angle), (side_px - 1) / 2
    a0, a1 = cos * scale[0], (shear * cos - sin) * scale[0]
    b0, b1 = sin * scale[1], (shear * sin + cos) * scale[1]
    a2 = centre - (a0 + a1) * centre + shift[0]
    b2 = centre - (b0 + b1) * centre + shift[1]
    zero = np.zeros(tiles)
    return np.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1).astype(np.float32)


def _tinted(tiles: Tiles, config: AugmentConfig, rng: np.random.Generator) -> Tiles:
    """A gain a channel, a contrast about the tile's own mean, a brightness for all."""
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


def _stained(tiles: Tiles, most: float, rng: np.random.Generator) -> Tiles:
    """More or less of each stain (Tellez et al. 2018, "Whole-slide mitosis detection in H&E breast histology")."""
    densities = -np.log((np.clip(tiles, 0, 255) + 1) / 256) @ UNSTAINED  # [n, S, S, 3], a channel a stain
    densities *= rng.uniform(1 - most, 1 + most, (len(tiles), 1, 1, 3)).astype(np.float32)
    densities += rng.uniform(-most, most, (len(tiles), 1, 1, 3)).astype(np.float32) * 0.1
    return np.asarray(256 * np.exp(-densities @ STAINS) - 1, np.float32)


def _blurred(tiles: Tiles, share: float, rng: np.random.Generator) -> Tiles:
    from scipy.ndimage import gaussian_filter

    blurred = tiles.copy()
    for index in np.flatnonzero(rng.random(len(tiles)) < share):
        sigma = rng.uniform(0.3, MOST_BLUR_PX)
        blurred[index] = gaussian_filter(tiles[index], (sigma, sigma, 0))
    return blurred


def _erased(tiles: Tiles, most: float, rng: np.random.Generator) -> Tiles:
    """A square of the tile's mean colour (DeVries & Taylor 2017, "Improved regularization … with cutout")."""
    erased, side = tiles.copy(), tiles.shape[1]
    for tile in erased:
        size = int(rng.uniform(0, most) * side)
        y, x = rng.integers(0, side - size + 1, 2)
        tile[y : y + size, x : x + size] = tile.mean(axis=(0, 1))
    return erased
