"""Colours of tiles, brought from a slide's own staining to a common one: each normaliser known to recipes by one word.

A normaliser is fitted once a slide, on a sample of its tiles, and then applied to all of them: tiles of one slide keep
their differences. Light that passed through glass alone is the slide's own background, not white: every method but
"none" gives a white background back. The stain methods take (value + 1) / (background + 1) for the transmitted share;
the 1 keeps logarithms of black pixels finite.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError
from clotkit.slides.pixels import Colour, Pixels

Floats = npt.NDArray[np.float32]  # of pixels: what runs on every tile
Doubles = npt.NDArray[np.float64]  # of a few numbers a slide: what is fitted

# Optical density, natural logarithm, from which a pixel counts as tissue: the 0.15 of Macenko's paper, whose logarithms
# are decimal. Most code takes 0.15 of the natural one, and with it the pale pixels, whose colour is mostly noise.
TISSUE_OD = 0.15 * np.log(10)
EXTREME = 1.0  # per cent of tissue pixels beyond the angles taken as pure stains, and beyond the densest stain
SAMPLE_PIXELS = 200_000  # pixels that are looked at when fitting: 4 tiles of 224 px
MIN_PIXELS = 1_000  # of tissue among them: 10 beyond a percentile of EXTREME
MAX_GAIN = 5.0  # differences may grow so many times; a slide that would need more has one colour, and its noise grows
MAX_LIGHT = 2.0  # times the background's: brighter is no light through glass, and its powers would not be finite

# Optical densities of haematoxylin and eosin (columns; rows are red, green, blue) and their 99th percentiles: the
# defaults of M. Veta's code of 2013 for Macenko's method, github.com/mitkovetta/staining-normalization, which most
# libraries took over.
REFERENCE_STAINS = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
REFERENCE_DENSEST = np.array([1.9705, 1.0308])

# Reinhard et al. 2001: linear RGB to cone responses, and their logarithms to the l, alpha, beta of Ruderman.
RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
# Mean and deviation of l, alpha, beta over tissue, natural logarithms of light up to 256: medians of the 27 patients of
# BreakHis at 100x (Spanhol et al. 2016), each over its own background. The usual target of HistomicsTK, a field of
# TCGA-A2-A3XS-DX1, has 2 to 3 times these deviations: with it 17 % of BreakHis's tissue pixels clip, with these 0.3 %.
REFERENCE_MEAN = np.array([8.955, -0.077, 0.020])
REFERENCE_DEVIATION = np.array([0.220, 0.042, 0.015])

Transform = Callable[[Pixels], Pixels]  # uint8[H, W, 3] -> uint8[H, W, 3]
Scalar = TypeVar("Scalar", np.uint8, np.float32)


@dataclass(frozen=True)
class Normaliser:
    """What is done to the colours of one slide. `used` is "background" where `name` could not be fitted."""

    name: str
    used: str
    transform: Transform = field(repr=False)

    def __call__(self, tiles: Pixels) -> Pixels:
        """Tiles uint8[n, H, W, 3] in the common colours, as a new array; one at a time, so that memory is bounded."""
        done = np.empty_like(tiles)
        for tile, place in zip(tiles, done, strict=True):
            place[:] = self.transform(tile)
        return done


def fit_normaliser(name: str, background: Colour, sample: Pixels) -> Normaliser:
    """The normaliser of one slide, from its background colour and a sample of its tissue tiles, uint8[n, H, W, 3].

    A sample with too little tissue, or of one colour, falls back to the division by the background.
    Raises ConfigError for an unknown name.
    """
    fit = NORMALISERS.get(name)
    if fit is None:
        raise ConfigError(f"the normaliser is {name!r}; known: {', '.join(sorted(NORMALISERS))}")
    transform = fit(background, sample)
    if transform is None:
        return Normaliser(name, "background", fit_background(background, sample))
    return Normaliser(name, name, transform)


def fit_none(background: Colour, sample: Pixels) -> Transform:
    """Colours as they are."""
    return np.copy


def fit_background(background: Colour, sample: Pixels) -> Transform:
    """Each channel times 255 / background, rounded, at most 255: the background becomes white exactly."""
    values = np.arange(256) * 255.0 / np.maximum(background, 1)[:, None]  # [3, 256]
    return partial(_look_up, np.minimum(np.rint(values), 255).astype(np.uint8))


def fit_reinhard(background: Colour, sample: Pixels) -> Transform | None:
    """Means and deviations of l, alpha and beta over the slide's tissue become those of the reference.

    Source: E. Reinhard, M. Ashikhmin, B. Gooch, P. Shirley, "Color transfer between images", IEEE Computer Graphics
    and Applications 21(5), 2001. The paper moves all pixels of an image alike, which tints the glass around tissue:
    here a pixel below TISSUE_OD goes over into the plain division by the background, in proportion to its squared
    density.
    """
    tissue = _tissue_densities(background, sample)
    if len(tissue) < MIN_PIXELS:
        return None
    lab = np.log(256 * np.exp(-tissue) @ RGB_TO_LMS.T) @ LMS_TO_LAB.T  # [n, 3]
    mean, deviation = lab.mean(axis=0), lab.std(axis=0)
    if (deviation * MAX_GAIN < REFERENCE_DEVIATION).any():
        return None
    # LMS_TO_LAB is a rotation: its transpose leads back. Shifts of logarithms are factors of LMS: they go into the
    # matrices on both sides, so that a tile takes three products, one logarithm and one power.
    centred = np.diag(np.exp(-LMS_TO_LAB.T @ mean)) @ RGB_TO_LMS
    gain = LMS_TO_LAB.T @ np.diag(REFERENCE_DEVIATION / deviation) @ LMS_TO_LAB
    back = np.linalg.inv(RGB_TO_LMS) @ np.diag(np.exp(LMS_TO_LAB.T @ REFERENCE_MEAN))
    light = _light(background)
    # [3, 256]: the sum over a pixel's channels is 1 where tissue begins.
    square = (np.minimum(np.log(light / 256), 0) / TISSUE_OD) ** 2
    return partial(_recolour, light, _single(square), _single(centred), _single(gain), _single(back))


def fit_macenko(background: Colour, sample: Pixels) -> Transform | None:
    """Densities of the slide's two stains, at their 99th percentiles, become those of the reference stains.

    Source: M. Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009. What
    lies outside the plane of the two stains is dropped, as in the paper.
    """
    densities = _tissue_densities(background, sample)
    if len(densities) < MIN_PIXELS:
        return None
    stains = find_stains(densities)
    if np.linalg.matrix_rank(stains, tol=0.01) < 2:  # less than a degree apart: one colour
        return None
    unmix = np.linalg.pinv(stains)  # [2, 3]
    densest = np.percentile(densities @ unmix.T, 100 - EXTREME, axis=0)  # [n, 3] -> [n, 2] -> [2]
    if (densest <= 0).any():
        return None
    # Densities -> stains -> reference stains is linear: one 3x3 matrix a slide.
    matrix = REFERENCE_STAINS @ np.diag(REFERENCE_DENSEST / densest) @ unmix
    if np.linalg.norm(matrix, 2) > MAX_GAIN:  # stains that are hard to tell apart, or hardly there
        return None
    return partial(_restain, -np.log(_light(background) / 256), _single(matrix))


NORMALISERS: dict[str, Callable[[Colour, Pixels], Transform | None]] = {
    "none": fit_none,
    "background": fit_background,
    "reinhard": fit_reinhard,
    "macenko": fit_macenko,
}


def find_stains(densities: Doubles) -> Doubles:
    """Unit optical densities of haematoxylin and eosin, [3, 2], in the densities of tissue pixels, [n, 3].

    The stains are the extreme directions in the plane that holds most of the densities. As the paper says, and unlike
    most code, the plane goes through zero (second moments, not covariances): it must hold the unstained pixel too.
    """
    _, axes = np.linalg.eigh(densities.T @ densities)  # ascending: columns 2 and 1 span the plane
    plane = axes[:, [2, 1]] * np.where(axes[:, [2, 1]].sum(axis=0) < 0, -1, 1)  # the signs are LAPACK's choice
    along, across = (densities @ plane).T
    # The first axis is close to the mean density, so that angles lie around zero and do not wrap.
    angles = np.percentile(np.arctan2(across, along), [EXTREME, 100 - EXTREME])
    stains = plane @ np.array([np.cos(angles), np.sin(angles)])  # [3, 2]
    # Haematoxylin takes more of the red light than eosin does.
    return np.asarray(stains if stains[0, 0] > stains[0, 1] else stains[:, ::-1])


def _light(background: Colour) -> Floats:
    """Transmitted light by channel and value, [3, 256]: 256 where it is the background's."""
    light = 256 * (np.arange(256) + 1) / (np.array(background)[:, None] + 1)
    return _single(np.minimum(light, 256 * MAX_LIGHT))


def _tissue_densities(background: Colour, sample: Pixels) -> Doubles:
    """Optical densities, [n, 3], of the sample's tissue pixels."""
    pixels = sample.reshape(-1, 3)
    pixels = pixels[:: max(1, -(-len(pixels) // SAMPLE_PIXELS))]  # evenly, so that equal samples give equal fits
    densities = np.log((np.array(background) + 1) / (pixels + 1.0))  # [n, 3]
    tissue = np.linalg.norm(np.maximum(densities, 0), axis=1) >= TISSUE_OD
    return np.asarray(densities[tissue])


def _restain(densities: Floats, matrix: Floats, tile: Pixels) -> Pixels:
    """`densities` [3, 256] of a tile's values, through `matrix` [3, 3], as light again."""
    density = _look_up(densities, tile).reshape(-1, 3)
    light = np.exp(-_rows(density, matrix))
    return _as_pixels(256 * light, tile.shape)


def _recolour(light: Floats, square: Floats, centred: Floats, gain: Floats, back: Floats, tile: Pixels) -> Pixels:
    """Light and squared densities, [3, 256], of a tile's values; [3, 3] each from light to LMS, its gain, and back."""
    plain = _look_up(light, tile).reshape(-1, 3)
    moved = _rows(np.exp(_rows(np.log(_rows(plain, centred)), gain)), back)
    # A product with ones is a sum over channels, given to each of them: [n, 3]. Broadcasting over 3 is slower.
    tissue = np.minimum(_rows(_look_up(square, tile).reshape(-1, 3), np.ones((3, 3), np.float32)), 1)
    return _as_pixels(plain + tissue * (moved - plain), tile.shape)


def _look_up(tables: npt.NDArray[Scalar], tile: Pixels) -> npt.NDArray[Scalar]:
    """Each channel of a tile, uint8[H, W, 3], through its row of `tables`, [3, 256]."""
    found = np.empty(tile.shape, tables.dtype)
    for channel, table in enumerate(tables):
        found[..., channel] = table.take(tile[..., channel])
    return found


def _rows(rows: Floats, matrix: Floats) -> Floats:
    """`matrix` [3, 3] applied to each of `rows`, [n, 3]."""
    return np.asarray(rows @ matrix.T)


def _as_pixels(light: Floats, shape: tuple[int, ...]) -> Pixels:
    """Light [n, 3], 256 for white, as uint8 of the given shape: the nearest value, less the 1 that _light added."""
    return np.clip(np.rint(light - 1), 0, 255).astype(np.uint8).reshape(shape)


def _single(numbers: npt.NDArray[np.floating]) -> Floats:
    return np.asarray(numbers, np.float32)
