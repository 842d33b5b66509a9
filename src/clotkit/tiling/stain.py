"""Normalise the colours of tiles from a slide's own staining to a reference.

A normaliser is fitted once per slide, on a sample of its tiles, and applied to all of them, so that tiles of one slide
keep their differences. Glass transmits the slide's own background colour, not white: every method but "none" turns the
background white. The stain methods take (value + 1) / (background + 1) for the transmitted share of light; the 1 keeps
logarithms of black pixels finite.

NORMALISERS maps the recipes' names to fitting functions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError
from clotkit.slides.pixels import Colour, Pixels

Floats = npt.NDArray[np.float32]  # pixels: applied to every tile
Doubles = npt.NDArray[np.float64]  # parameters: fitted once per slide

# Optical density (natural logarithm) from which a pixel counts as tissue: the 0.15 of Macenko's paper, whose logarithms
# are decimal. Most code takes 0.15 of the natural one and so includes pale pixels, whose colour is mostly noise.
TISSUE_OD = 0.15 * np.log(10)
EXTREME_PERCENT = 1.0  # of tissue pixels lie beyond the angles of the pure stains, and beyond the densest stain
SAMPLE_PIXELS = 200_000  # pixels used for a fit: 4 tiles of 224 px
MIN_PIXELS = 1_000  # tissue pixels among them: 10 lie beyond the percentile
MAX_GAIN = 5.0  # of differences; a slide that would need more has one colour, and only its noise would grow
MAX_LIGHT = 2.0  # times the background's; brighter is not light through glass, and its powers would overflow

# Optical densities of haematoxylin and eosin (columns; rows are red, green, blue) and their 99th percentiles: the
# defaults of M. Veta's code of 2013 for Macenko's method, github.com/mitkovetta/staining-normalization, which most
# libraries adopted.
REFERENCE_STAINS = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
REFERENCE_DENSEST = np.array([1.9705, 1.0308])

# Reinhard et al. 2001: linear RGB to cone responses (LMS), and their logarithms to the l, alpha, beta of Ruderman.
RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
# Mean and deviation of l, alpha, beta over tissue, natural logarithms of light up to 256: medians of the 27 patients of
# BreakHis at 100x (Spanhol et al. 2016), each relative to its own background. The usual target of HistomicsTK, a field
# of TCGA-A2-A3XS-DX1, has 2 to 3 times these deviations: with it 17 % of BreakHis's tissue pixels clip, here 0.3 %.
REFERENCE_MEAN = np.array([8.955, -0.077, 0.020])
REFERENCE_DEVIATION = np.array([0.220, 0.042, 0.015])

Transform = Callable[[Pixels], Pixels]  # uint8[H, W, 3] -> uint8[H, W, 3]
Scalar = TypeVar("Scalar", np.uint8, np.float32)


@dataclass(frozen=True)
class Normaliser:
    """A fitted colour normalisation of one slide."""

    name: str  # of the normaliser that the recipe asks for
    used: str  # the same, or "background" if it could not be fitted
    transform: Transform = field(repr=False)

    def __call__(self, tiles: Pixels) -> Pixels:
        """Return tiles uint8[n, H, W, 3] in the reference colours, as a new array.

        Tiles are transformed one at a time, so that memory is bounded.
        """
        done = np.empty_like(tiles)
        for tile, place in zip(tiles, done, strict=True):
            place[:] = self.transform(tile)
        return done


def fit_normaliser(name: str, background: Colour, sample: Pixels) -> Normaliser:
    """Fit the normaliser of one slide.

    A sample with too little tissue, or of one colour, falls back to the division by the background.

    Args:
        name: A key of NORMALISERS.
        background: The slide's background colour.
        sample: A sample of its tissue tiles, uint8[n, H, W, 3].

    Raises:
        ConfigError: The name is unknown.
    """
    fit = NORMALISERS.get(name)
    if fit is None:
        raise ConfigError(f"the normaliser is {name!r}; known: {', '.join(sorted(NORMALISERS))}")
    transform = fit(background, sample)
    if transform is None:
        return Normaliser(name, "background", fit_background(background, sample))
    return Normaliser(name, name, transform)


def fit_none(background: Colour, sample: Pixels) -> Transform:
    """Leave colours as they are."""
    return np.copy


def fit_background(background: Colour, sample: Pixels) -> Transform:
    """Multiply each channel by 255 / background, rounded, at most 255: the background becomes white."""
    values = np.arange(256) * 255.0 / np.maximum(background, 1)[:, None]  # [3, 256]
    return partial(_look_up, np.minimum(np.rint(values), 255).astype(np.uint8))


def fit_reinhard(background: Colour, sample: Pixels) -> Transform | None:
    """Move means and deviations of l, alpha and beta over the slide's tissue to those of the reference.

    Source: E. Reinhard, M. Ashikhmin, B. Gooch, P. Shirley, "Color transfer between images", IEEE Computer Graphics and
    Applications 21(5), 2001. The paper moves all pixels of an image alike, which tints the glass around tissue. Here
    pixels below TISSUE_OD blend into the plain division by the background, in proportion to their squared density.
    """
    tissue = _tissue_densities(background, sample)
    if len(tissue) < MIN_PIXELS:
        return None
    lab = np.log(256 * np.exp(-tissue) @ RGB_TO_LMS.T) @ LMS_TO_LAB.T  # [n, 3]
    mean, deviation = lab.mean(axis=0), lab.std(axis=0)
    if (deviation * MAX_GAIN < REFERENCE_DEVIATION).any():
        return None
    # LMS_TO_LAB is a rotation, so its transpose is its inverse. Shifts of logarithms are factors of LMS and go into the
    # matrices on both sides: a tile takes three products, one logarithm and one power.
    centred = np.diag(np.exp(-LMS_TO_LAB.T @ mean)) @ RGB_TO_LMS
    gain = LMS_TO_LAB.T @ np.diag(REFERENCE_DEVIATION / deviation) @ LMS_TO_LAB
    back = np.linalg.inv(RGB_TO_LMS) @ np.diag(np.exp(LMS_TO_LAB.T @ REFERENCE_MEAN))
    light = _light(background)
    # [3, 256]: the sum over a pixel's channels is 1 where tissue begins.
    square = (np.minimum(np.log(light / 256), 0) / TISSUE_OD) ** 2
    return partial(_recolour, light, _single(square), _single(centred), _single(gain), _single(back))


def fit_macenko(background: Colour, sample: Pixels) -> Transform | None:
    """Move the 99th percentiles of the slide's two stain densities to those of the reference stains.

    Source: M. Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009. As in
    the paper, what lies outside the plane of the two stains is dropped.
    """
    densities = _tissue_densities(background, sample)
    if len(densities) < MIN_PIXELS:
        return None
    stains = find_stains(densities)
    if np.linalg.matrix_rank(stains, tol=0.01) < 2:  # less than a degree apart: one colour
        return None
    unmix = np.linalg.pinv(stains)  # [2, 3]
    densest = np.percentile(densities @ unmix.T, 100 - EXTREME_PERCENT, axis=0)  # [n, 3] -> [n, 2] -> [2]
    if (densest <= 0).any():
        return None
    # Densities -> stains -> reference stains is linear: one 3x3 matrix a slide.
    matrix = REFERENCE_STAINS @ np.diag(REFERENCE_DENSEST / densest) @ unmix
    if np.linalg.norm(matrix, 2) > MAX_GAIN:  # the stains are nearly equal, or one is nearly absent
        return None
    return partial(_restain, -np.log(_light(background) / 256), _single(matrix))


NORMALISERS: dict[str, Callable[[Colour, Pixels], Transform | None]] = {
    "none": fit_none,
    "background": fit_background,
    "reinhard": fit_reinhard,
    "macenko": fit_macenko,
}


def find_stains(densities: Doubles) -> Doubles:
    """Return unit optical densities of haematoxylin and eosin, [3, 2], from tissue pixels' ones, [n, 3].

    The stains are the extreme directions in the plane that holds most of the densities. As in the paper, and unlike
    most code, the plane goes through zero (second moments, not covariances), because it must contain the unstained
    pixel.
    """
    _, axes = np.linalg.eigh(densities.T @ densities)  # ascending: columns 2 and 1 span the plane
    plane = axes[:, [2, 1]] * np.where(axes[:, [2, 1]].sum(axis=0) < 0, -1, 1)  # LAPACK's signs are arbitrary
    along, across = (densities @ plane).T
    # The first axis is close to the mean density, so angles lie around zero and do not wrap.
    angles = np.percentile(np.arctan2(across, along), [EXTREME_PERCENT, 100 - EXTREME_PERCENT])
    stains = plane @ np.array([np.cos(angles), np.sin(angles)])  # [3, 2]
    # Haematoxylin absorbs more red light than eosin does.
    return np.asarray(stains if stains[0, 0] > stains[0, 1] else stains[:, ::-1])


def _light(background: Colour) -> Floats:
    """Return transmitted light by channel and value, [3, 256]: 256 for the background's value."""
    light = 256 * (np.arange(256) + 1) / (np.array(background)[:, None] + 1)
    return _single(np.minimum(light, 256 * MAX_LIGHT))


def _tissue_densities(background: Colour, sample: Pixels) -> Doubles:
    """Return optical densities, [n, 3], of the sample's tissue pixels."""
    pixels = sample.reshape(-1, 3)
    pixels = pixels[:: max(1, -(-len(pixels) // SAMPLE_PIXELS))]  # evenly spaced: equal samples give equal fits
    densities = np.log((np.array(background) + 1) / (pixels + 1.0))  # [n, 3]
    tissue = np.linalg.norm(np.maximum(densities, 0), axis=1) >= TISSUE_OD
    return np.asarray(densities[tissue])


def _restain(densities: Floats, matrix: Floats, tile: Pixels) -> Pixels:
    """Map a tile's values to `densities` [3, 256], multiply by `matrix` [3, 3], and convert back to light."""
    density = _look_up(densities, tile).reshape(-1, 3)
    light = np.exp(-_rows(density, matrix))
    return _as_pixels(256 * light, tile.shape)


def _recolour(light: Floats, square: Floats, centred: Floats, gain: Floats, back: Floats, tile: Pixels) -> Pixels:
    """Move a tile's colours through log LMS space, blended by tissue density.

    Args:
        light: Transmitted light of a tile's values, [3, 256].
        square: Squared densities of a tile's values, [3, 256].
        centred: Matrix from light to centred LMS, [3, 3].
        gain: Matrix applied to log LMS, [3, 3].
        back: Matrix from LMS to light, [3, 3].
        tile: uint8[H, W, 3].
    """
    plain = _look_up(light, tile).reshape(-1, 3)
    moved = _rows(np.exp(_rows(np.log(_rows(plain, centred)), gain)), back)
    # A product with ones gives each channel the sum over channels: [n, 3]. Broadcasting over 3 is slower.
    tissue = np.minimum(_rows(_look_up(square, tile).reshape(-1, 3), np.ones((3, 3), np.float32)), 1)
    return _as_pixels(plain + tissue * (moved - plain), tile.shape)


def _look_up(tables: npt.NDArray[Scalar], tile: Pixels) -> npt.NDArray[Scalar]:
    """Map each channel of a tile, uint8[H, W, 3], through its row of `tables`, [3, 256]."""
    mapped = np.empty(tile.shape, tables.dtype)
    for channel, table in enumerate(tables):
        mapped[..., channel] = table.take(tile[..., channel])
    return mapped


def _rows(rows: Floats, matrix: Floats) -> Floats:
    """Apply `matrix` [3, 3] to each of `rows`, [n, 3]."""
    return np.asarray(rows @ matrix.T)


def _as_pixels(light: Floats, shape: tuple[int, ...]) -> Pixels:
    """Convert light [n, 3], 256 for white, to uint8 of `shape`: rounded, less the 1 that `_light` added."""
    return np.clip(np.rint(light - 1), 0, 255).astype(np.uint8).reshape(shape)


def _single(numbers: npt.NDArray[np.floating]) -> Floats:
    return np.asarray(numbers, np.float32)
