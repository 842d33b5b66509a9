"""Where the tissue is: the distance from a background colour that is estimated slide by slide.

A fixed threshold fails: slides of this kind have white, pinkish, lilac (234, 216, 254) and green-grey (196, 211, 192)
backgrounds, and a rule such as "grey below 230" calls all of a green-grey slide tissue.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.errors import NoTissue
from clotkit.slides.reader import Colour, Pixels

BORDER_SHARE = 0.05  # of the shorter side: the ring that is background on nearly every slide
FLAT = 4  # grey levels between neighbours: below it a pixel has no texture
MIN_TISSUE_SHARE = 5e-4  # the least tissue seen on a real slide is 1.1e-3 of it
STEPS = (24, 16, 10, 6, 3)  # grey levels from the background, tried in this order


@dataclass(frozen=True)
class TissueMap:
    """Tissue of one overview."""

    mask: npt.NDArray[np.bool_]  # [h, w] of the overview
    distance: npt.NDArray[np.uint8]  # [h, w] largest channel difference from the background
    background: Colour
    step: int  # grey levels from the background at which tissue was found

    @property
    def share(self) -> float:
        """The share of the overview that is tissue."""
        return float(self.mask.mean())


def find_tissue(overview: Pixels) -> TissueMap:
    """The tissue of an overview, uint8[h, w, 3]. Thresholds relax step by step until something is found.

    Raises NoTissue when nothing differs from the background by the last step.
    """
    background = estimate_background(overview)
    difference = np.abs(overview.astype(np.int16) - np.array(background, np.int16))
    distance = difference.max(axis=2).astype(np.uint8)  # [h, w, 3] -> [h, w]
    for step in STEPS:
        mask = distance >= step
        if mask.mean() >= MIN_TISSUE_SHARE:
            return TissueMap(mask, distance, background, step)
    raise NoTissue(f"no tissue: nothing differs from the background {background} by {STEPS[-1]} grey levels or more")


def estimate_background(overview: Pixels) -> Colour:
    """The background colour of an overview, uint8[h, w, 3]: the mode of the border's pixels without texture.

    The whole overview takes the border's place where the border is all texture.
    """
    flat = _flat(overview)
    ring = np.zeros(flat.shape, bool)
    depth = max(1, round(min(flat.shape) * BORDER_SHARE))
    ring[:depth] = ring[-depth:] = True
    ring[:, :depth] = ring[:, -depth:] = True
    for chosen in (ring & flat, flat, ring):
        if chosen.any():
            return _mode(overview[chosen])
    raise AssertionError("the ring of an overview is never empty")


def _flat(overview: Pixels) -> npt.NDArray[np.bool_]:
    grey = overview.mean(axis=2)  # [h, w, 3] -> [h, w]
    across = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    down = np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    return np.asarray(np.maximum(across, down) < FLAT)


def _mode(pixels: Pixels) -> Colour:
    """The commonest colour of uint8[n, 3]: the fullest bin of 8 grey levels a channel, then the median inside it."""
    bins = (pixels >> 3).astype(np.int32) @ np.array([1024, 32, 1], np.int32)  # [n, 3] -> [n]
    values, counts = np.unique(bins, return_counts=True)
    red, green, blue = np.median(pixels[bins == values[counts.argmax()]], axis=0)
    return round(float(red)), round(float(green)), round(float(blue))
