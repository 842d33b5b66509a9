"""Draw sizes of slides from a competition's [sizes]: sides in px and bytes of files.

Draws are stratified: the sizes of n slides are the quantiles in the middle of n equal shares. So sums match those of
the real slides, and a seed only decides which side goes with which bytes.
"""

import re
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Sizes
from clotkit.errors import UsageError

SCALES = {"small": 1 / 8, "real": 1.0}  # of the real sides, by the name of a size
SIDE_PX = (256, 120_000)  # allowed in WxH
# No published list has area and bytes of the same slides. With this rank correlation, raw bytes over file bytes have a
# median of 7.6, and 2.8 to 18 for nine slides of ten; the real ones have a median of 8.7, and 2.4 to 159 in all.
RANK_CORRELATION = 0.9
DEFAULT_SIZES = Sizes(  # of a competition without a table [sizes]: scans at 20x to 40x, from a biopsy to a resection
    slides=1_000,
    total_bytes=250e9,
    area_levels=(0, 0.05, 0.5, 0.95, 1),
    areas_px=(20e6, 80e6, 500e6, 2_000e6, 3_960e6),
    aspects=(1.0, 1.05, 1.4, 2.5, 4.0),
    largest_px=(60_000, 66_000),
    least_side_px=4_000,
    most_side_px=100_000,
    portrait_share=0.5,
    file_levels=(0, 0.05, 0.5, 0.95, 1),
    file_bytes=(5e6, 25e6, 150e6, 800e6, 2_500e6),
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DrawnSlide:
    """A slide of which only the size is known."""

    width_px: int
    height_px: int
    file_bytes: int


def slide_sizes(size: str, slides: int, rng: np.random.Generator, real: Sizes) -> list[tuple[int, int]]:
    """Return width and height of each slide in px, in random order.

    Named sizes are stratified quantiles of the real slides.

    Raises:
        UsageError: The size is neither a name of SCALES nor WIDTHxHEIGHT within bounds.
    """
    if size not in SCALES:
        return [fixed_size(size)] * slides
    scale = SCALES[size]
    return [(round(width * scale), round(height * scale)) for width, height in draw_sides(real, slides, rng)]


def fixed_size(size: str) -> tuple[int, int]:
    """Return width and height of a size WIDTHxHEIGHT.

    Raises:
        UsageError: The size has another form, or a side is out of bounds.
    """
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", size)
    sides = tuple(map(int, match.groups())) if match else ()
    low, high = SIDE_PX
    if not sides or not all(low <= side <= high for side in sides):
        raise UsageError(f"size is {size!r}; allowed: {', '.join(SCALES)}, or WIDTHxHEIGHT of {low} to {high} px each")
    return sides[0], sides[1]


def draw_slides(sizes: Sizes, slides: int, seed: int) -> list[DrawnSlide]:
    """Draw slides of a competition's sizes; the same arguments draw the same slides.

    Areas and file sizes follow their own quantiles, with a rank correlation of RANK_CORRELATION.
    """
    rng = np.random.default_rng(seed)
    sides = draw_sides(sizes, slides, rng)
    rank = np.argsort(np.argsort([width * height for width, height in sides], kind="stable"))
    noisy = RANK_CORRELATION * _normal((rank + 0.5) / slides) + np.sqrt(1 - RANK_CORRELATION**2) * rng.standard_normal(
        slides
    )
    drawn = file_quantiles(sizes, (np.arange(slides) + 0.5) / slides)[np.argsort(np.argsort(noisy))]
    return [
        DrawnSlide(round(width), round(height), round(float(size)))
        for (width, height), size in zip(sides, drawn, strict=True)
    ]


def draw_sides(sizes: Sizes, slides: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return width and height of each slide in px, in random order; the largest real slide is among them."""
    level = (np.arange(slides - 1) + 0.5) / slides
    area = np.exp(np.interp(level, sizes.area_levels, np.log(sizes.areas_px)))
    aspect = np.exp(np.interp(rng.permutation(level), sizes.area_levels, np.log(sizes.aspects)))
    short = np.clip(np.sqrt(area / aspect), sizes.least_side_px, min(sizes.largest_px) - 1)
    long = np.minimum(area / short, sizes.most_side_px)
    portrait = rng.permutation(slides - 1) < sizes.portrait_share * (slides - 1)
    pairs = [(float(sizes.largest_px[0]), float(sizes.largest_px[1]))]
    for low, high, upright in zip(short.tolist(), long.tolist(), portrait, strict=True):
        pairs.append((low, high) if upright else (high, low))
    return [pairs[index] for index in rng.permutation(slides)]


def file_quantiles(sizes: Sizes, level: Floats) -> Floats:
    """Return file sizes in bytes at each level [n], 0 to 1.

    Between known levels, log bytes are interpolated over the normal quantile. File sizes are nearly log-normal: this
    gives the real total within 2 %; linear interpolation over the level gives 4 % too much.
    """
    edge = 0.5 / sizes.slides  # level of the smallest and largest of so many draws
    known = _normal(np.clip(sizes.file_levels, edge, 1 - edge))
    wanted = _normal(np.clip(level, edge, 1 - edge))
    return np.asarray(np.exp(np.interp(wanted, known, np.log(sizes.file_bytes))))


def _normal(level: Floats) -> Floats:
    """Return the quantiles of the standard normal distribution."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile(float(each)) for each in level])
