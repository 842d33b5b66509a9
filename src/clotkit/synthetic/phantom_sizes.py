"""How large the slides of a competition are, drawn from its [sizes]: sides in px and bytes of files.

Draws are stratified: the sizes of n slides are the quantiles in the middle of n equal shares, so that sums come out as
those of the real slides, and a seed decides only which side goes with which bytes.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Sizes

# No published list has area and bytes of the same slides. With this share of rank in common raw bytes over file bytes
# are 7.6 in the median and 2.8 to 18 for nine slides of ten; the real ones have 8.7 in the median, 2.4 to 159 in all.
COMMON = 0.9

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DrawnSlide:
    """A slide of which only the size is known."""

    width_px: int
    height_px: int
    file_bytes: int


def draw_slides(sizes: Sizes, slides: int, seed: int) -> list[DrawnSlide]:
    """So many slides of a competition's sizes, areas and bytes by their own quantiles, their ranks COMMON in common.

    The same arguments draw the same slides.
    """
    rng = np.random.default_rng(seed)
    sides = draw_sides(sizes, slides, rng)
    rank = np.argsort(np.argsort([width * height for width, height in sides], kind="stable"))
    noisy = COMMON * _normal((rank + 0.5) / slides) + np.sqrt(1 - COMMON**2) * rng.standard_normal(slides)
    drawn = file_quantiles(sizes, (np.arange(slides) + 0.5) / slides)[np.argsort(np.argsort(noisy))]
    return [
        DrawnSlide(round(width), round(height), round(float(size)))
        for (width, height), size in zip(sides, drawn, strict=True)
    ]


def draw_sides(sizes: Sizes, slides: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Width and height of so many slides, px, in random order; the largest of all is always among them."""
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
    """Bytes of a file at each level [n], 0 to 1: between the known ones log bytes follow the normal quantile.

    File sizes are nearly log-normal: straight lines there give the real total within 2 %, over the level 4 % too much.
    """
    edge = 0.5 / sizes.slides  # where a normal distribution has the least and the most of so many
    known = _normal(np.clip(sizes.file_levels, edge, 1 - edge))
    wanted = _normal(np.clip(level, edge, 1 - edge))
    return np.asarray(np.exp(np.interp(wanted, known, np.log(sizes.file_bytes))))


def _normal(level: Floats) -> Floats:
    """The quantiles of the standard normal distribution."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile(float(each)) for each in level])
