"""Find tissue by its distance from a background colour that is estimated for each slide.

A fixed threshold fails: real slides have white, pinkish, lilac (234, 216, 254) and green-grey (196, 211, 192)
backgrounds, and a rule such as "grey below 230" calls all of a green-grey slide tissue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.errors import NoTissue
from clotkit.slides.header.table import median
from clotkit.slides.pixels import Colour, Pixels, box_mean
from clotkit.slides.reader import Slide
from clotkit.tissue.marks import marks

SAMPLE_GRID = (17, 5)  # columns and rows of background samples; few rows, because strips are decoded whole
SAMPLE_PX, SAMPLE_DOWNSAMPLE = 32, 4  # of a sample: 128 px of the slide, one tile of most files
LEVEL_DOWNSAMPLE = 16  # of the coarsest level that samples are read from: many of them lie in one of its tiles
BORDER_SHARE = 0.05  # of the shorter side: maximum depth of a border sample, on slides that are large enough
DARK = 64  # grey levels of the brightest channel: JPEG rings up to here beside black, and no tissue is as dark
FLAT = 4  # grey levels between neighbours, below which a pixel has no texture
MIN_TISSUE_SHARE = 5e-4  # of a slide; the smallest seen on a real slide is 1.1e-3
THRESHOLDS = (24, 16, 10, 6, 3)  # grey levels from the background, tried in this order


@dataclass(frozen=True)
class TissueRule:
    """A rule for what counts as tissue."""

    threshold: int  # minimum distance from the background, grey levels
    with_marks: bool = False  # pen marks and shadows count as tissue

    def mask(self, pixels: Pixels, background: Colour) -> npt.NDArray[np.bool_]:
        """Return which pixels, uint8[h, w, 3], are tissue: bool[h, w]."""
        mask = distance(pixels, background) >= self.threshold
        return mask if self.with_marks or not mask.any() else mask & ~marks(pixels, background)


# Tried in this order. A grey picture is all marks, so marks count as tissue when there is nothing else.
RULES = tuple(TissueRule(threshold, with_marks) for with_marks in (False, True) for threshold in THRESHOLDS)

# On a grey slide all tissue is a mark. The grey of pink and purple differs less from the glass than their green does.
GREY_RULES = tuple(TissueRule(threshold, with_marks=True) for threshold in THRESHOLDS[1:])


@dataclass(frozen=True)
class TissueMap:
    """The tissue on one overview."""

    mask: npt.NDArray[np.bool_]  # [h, w] of the overview
    background: Colour
    rule: TissueRule  # that found it

    @property
    def share(self) -> float:
        """Share of the overview that is tissue."""
        return float(self.mask.mean())


def find_tissue(overview: Pixels, background: Colour, rules: Sequence[TissueRule] = RULES) -> TissueMap:
    """Find the tissue of an overview, uint8[h, w, 3].

    The first of `rules` that finds enough is used, or else the first that finds any.

    Raises:
        NoTissue: Nothing differs from the background, even by the lowest threshold.
    """
    for min_share in (MIN_TISSUE_SHARE, np.finfo(float).tiny):
        for rule in rules:
            mask = rule.mask(overview, background)
            if mask.mean() >= min_share:
                return TissueMap(mask, background, rule)
    raise no_tissue(background)


def distance(pixels: Pixels, background: Colour) -> npt.NDArray[np.uint8]:
    """Return the largest channel difference from the background: uint8[h, w, 3] -> uint8[h, w]."""
    colour = np.array(background, np.uint8)
    difference = np.maximum(pixels, colour) - np.minimum(pixels, colour)  # stays in uint8, without a sign
    return np.asarray(np.maximum(np.maximum(difference[..., 0], difference[..., 1]), difference[..., 2]))


def no_tissue(background: Colour) -> NoTissue:
    """Return the error for a slide that is all background."""
    return NoTissue(
        f"no tissue: nothing differs from the background {background} by {THRESHOLDS[-1]} grey levels or more"
    )


@dataclass(frozen=True)
class Samples:
    """Small samples of a slide: most along its border, some inside."""

    parts: list[Pixels]  # [h, w, 3] each
    flat: list[npt.NDArray[np.bool_]]  # [h, w] each: pixels without texture
    outer: list[npt.NDArray[np.bool_]]  # [h, w] each: pixels on the slide's border
    black_side: bool  # a whole side of the slide is black wherever it was sampled

    def colour(self) -> Colour:
        """Return the commonest flat colour along the border, or of all samples if the border is all texture."""
        flat = np.concatenate([part.ravel() for part in self.flat])
        ring = np.repeat([outer.any() for outer in self.outer], [outer.size for outer in self.outer])
        pixels = np.concatenate([part.reshape(-1, 3) for part in self.parts])
        for chosen in (ring & flat, flat):
            if chosen.any():
                return mode(pixels[chosen])
        return mode(pixels)


def sample_background(slide: Slide) -> Colour:
    """Return a slide's background colour: the commonest flat colour of samples along its border.

    If the border is all texture, samples of the whole slide are used.
    """
    return background_samples(slide).colour()


def background_samples(slide: Slide) -> Samples:
    """Read the samples of a slide from which its background colour is estimated."""
    size = (slide.width_px, slide.height_px)
    downsample = SAMPLE_DOWNSAMPLE if min(size) * BORDER_SHARE >= SAMPLE_PX * SAMPLE_DOWNSAMPLE else 1
    side = SAMPLE_PX * downsample
    level = slide.level(LEVEL_DOWNSAMPLE).downsample if downsample > 1 else 1
    downsample = max(downsample, level)
    columns, rows = (_places(px, count, side, downsample) for px, count in zip(size, SAMPLE_GRID, strict=True))
    xy = [(x, y) for y in rows for x in columns]
    whole = list(slide.tiles(xy, side // level, level, (255, 255, 255)))
    parts = [
        box_mean(tile, downsample // level)[: (size[1] - y) // downsample, : (size[0] - x) // downsample]
        for (x, y), tile in zip(xy, whole, strict=True)
    ]
    sides = [(x == 0, y == 0, x == columns[-1], y == rows[-1]) for x, y in xy]
    inside = [tile[: (size[1] - y) // level, : (size[0] - x) // level] for (x, y), tile in zip(xy, whole, strict=True)]
    outer = [_on_border(part, *side) for part, side in zip(parts, sides, strict=True)]
    return Samples(parts, [_flat(part) for part in parts], outer, _has_black_side(inside, sides))


def is_dark(pixels: Pixels) -> npt.NDArray[np.bool_]:
    """Return which pixels, uint8[..., 3], may be black with noise."""
    return np.asarray(np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]) <= DARK)


def _has_black_side(parts: Sequence[Pixels], sides: Sequence[tuple[bool, bool, bool, bool]]) -> bool:
    """Return whether a side of the slide is black in all samples on it; `sides` has those of each sample."""
    lines = [[part[:, 0], part[0], part[:, -1], part[-1]] for part in parts]
    return any(
        all(bool(is_dark(line[side]).all()) for line, on in zip(lines, sides, strict=True) if on[side])
        for side in range(4)
    )


def _on_border(part: Pixels, left: bool, top: bool, right: bool, bottom: bool) -> npt.NDArray[np.bool_]:
    """Return which pixels of a sample lie on the slide's border, bool[h, w]."""
    outer = np.zeros(part.shape[:2], bool)
    outer[:, 0], outer[:, -1] = left, right
    outer[0] |= top
    outer[-1] |= bottom
    return outer


def _places(length_px: int, count: int, side_px: int, downsample: int) -> list[int]:
    """Return where `count` samples start along a side, evenly spread, each within one tile of a file."""
    last = max(length_px - side_px, 0)
    places = {round(last * i / (count - 1)) // side_px * side_px for i in range(count - 1)}
    return sorted(places | {last // downsample * downsample})


def _flat(pixels: Pixels) -> npt.NDArray[np.bool_]:
    grey = pixels.mean(axis=2)  # [h, w, 3] -> [h, w]
    across = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    down = np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    return np.asarray(np.maximum(across, down) < FLAT)


def mode(pixels: Pixels) -> Colour:
    """Return the commonest colour of uint8[n, 3].

    It is the median within the fullest bin of 8 grey levels per channel.
    """
    bins = (pixels >> 3).astype(np.int32) @ np.array([1024, 32, 1], np.int32)  # [n, 3] -> [n]
    red, green, blue = median(pixels[bins == np.bincount(bins).argmax()])
    return round(float(red)), round(float(green)), round(float(blue))
