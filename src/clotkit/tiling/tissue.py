"""Find tissue by its distance from a background colour that is estimated for each slide.

A fixed threshold fails: real slides have white, pinkish, lilac (234, 216, 254) and green-grey (196, 211, 192)
backgrounds, and a rule such as "grey below 230" calls all of a green-grey slide tissue.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.errors import NoTissue
from clotkit.slides.pixels import Colour, Pixels
from clotkit.slides.reader import Slide
from clotkit.tiling.marks import marks

SAMPLE_GRID = (17, 5)  # columns and rows of background samples; few rows, because strips are decoded whole
SAMPLE_PX, SAMPLE_DOWNSAMPLE = 32, 4  # of a sample: 128 px of the slide, one tile of most files
BORDER_SHARE = 0.05  # of the shorter side: maximum depth of a border sample, on slides that are large enough
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


def find_tissue(overview: Pixels, background: Colour) -> TissueMap:
    """Find the tissue of an overview, uint8[h, w, 3].

    The first of RULES that finds enough is used, or else the first that finds any.

    Raises:
        NoTissue: Nothing differs from the background, even by the lowest threshold.
    """
    for min_share in (MIN_TISSUE_SHARE, np.finfo(float).tiny):
        for rule in RULES:
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


def sample_background(slide: Slide) -> Colour:
    """Return a slide's background colour: the commonest flat colour of samples along its border.

    If the border is all texture, samples of the whole slide are used.
    """
    size = (slide.width_px, slide.height_px)
    downsample = SAMPLE_DOWNSAMPLE if min(size) * BORDER_SHARE >= SAMPLE_PX * SAMPLE_DOWNSAMPLE else 1
    columns, rows = (
        _places(px, count, SAMPLE_PX * downsample, downsample) for px, count in zip(size, SAMPLE_GRID, strict=True)
    )
    xy = [(x, y) for y in rows for x in columns]
    flat, ringed, pixels = [], [], []
    for (x, y), tile in zip(xy, slide.tiles(xy, SAMPLE_PX, downsample, (255, 255, 255)), strict=True):
        part = tile[: (size[1] - y) // downsample, : (size[0] - x) // downsample]
        pixels.append(part.reshape(-1, 3))
        flat.append(_flat(part).ravel())
        on_ring = x in (columns[0], columns[-1]) or y in (rows[0], rows[-1])
        ringed.append(np.full(len(pixels[-1]), on_ring))
    return _background_of(np.concatenate(pixels), np.concatenate(flat), np.concatenate(ringed))


def _places(length_px: int, count: int, side_px: int, downsample: int) -> list[int]:
    """Return where `count` samples start along a side, evenly spread, each within one tile of a file."""
    last = max(length_px - side_px, 0)
    places = {round(last * i / (count - 1)) // side_px * side_px for i in range(count - 1)}
    return sorted(places | {last // downsample * downsample})


def _background_of(pixels: Pixels, flat: npt.NDArray[np.bool_], ring: npt.NDArray[np.bool_]) -> Colour:
    """Return the mode of uint8[n, 3]: of the flat pixels on the ring, else of the flat ones, else of all."""
    for chosen in (ring & flat, flat):
        if chosen.any():
            return _mode(pixels[chosen])
    return _mode(pixels)


def _flat(pixels: Pixels) -> npt.NDArray[np.bool_]:
    grey = pixels.mean(axis=2)  # [h, w, 3] -> [h, w]
    across = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    down = np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    return np.asarray(np.maximum(across, down) < FLAT)


def _mode(pixels: Pixels) -> Colour:
    """Return the commonest colour of uint8[n, 3].

    It is the median within the fullest bin of 8 grey levels per channel.
    """
    bins = (pixels >> 3).astype(np.int32) @ np.array([1024, 32, 1], np.int32)  # [n, 3] -> [n]
    values, counts = np.unique(bins, return_counts=True)
    red, green, blue = np.median(pixels[bins == values[counts.argmax()]], axis=0)
    return round(float(red)), round(float(green)), round(float(blue))
