"""Find pen marks and shadows: what differs from the background but is not tissue.

A pixel is judged by its optical density (OD), log10(background / pixel) per channel. The tint of the background
cancels, and thicker ink or a thicker section moves a pixel along a line through zero whose direction is the dye's. H&E
has known directions. The ODs of haematoxylin in red, green and blue are as 0.65 : 0.70 : 0.29, those of eosin as 0.07 :
0.99 : 0.11 (A. C. Ruifrok and D. A. Johnston, Anal. Quant. Cytol. Histol. 23, 2001, 291-299). Both dyes absorb green
most, and so does every mixture of them; B. A. Schreiber et al. (Sci. Rep. 14, 2024, 309) also tell H&E from pens this
way. Red cells absorb green and blue most. This leaves two kinds of mark:

- Coloured ink absorbs clearly more red than green. The blue and green pens of D. Eriksson's filters (IBM,
  deep-histopath, filter_blue_pen and filter_green_pen) do, except the darkest blues, which have haematoxylin's hue.
- Black ink and shadows (edges of the coverslip, bubbles, dust) absorb all three channels equally. This is the rule of
  his filter_grays, there as 15 grey levels between channels.

Red ink is not found: a pixel of it looks like packed red cells, of which a clot is made.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from clotkit.slides.pixels import Colour, Pixels

INK_RATIO = 1.15  # OD in red / OD in green; downsampled H&E is below 1 in 999 of 1,000 pixels of OD 0.2 or more
INK_MARGIN = 0.02  # OD in red above that: 5 % of the light, more than noise and JPEG colour errors
GREY_RATIO = 0.9  # least / greatest OD of the three channels; 999 of 1,000 pixels of scanned H&E are below 0.85
MIN_GREY_OD = 0.05  # greatest OD: 11 % of the light; below it, a few grey levels of noise would decide

BLOCK_PX = 2**15  # pixels at a time, so that temporaries fit the CPU cache


def marks(pixels: Pixels, background: Colour) -> npt.NDArray[np.bool_]:
    """Return the mask of pixels, uint8[h, w, 3], that are pen marks or shadows: bool[h, w].

    The rules hold for pixels of 16 to 64 slide pixels, at which single cells no longer show. `background` is the
    slide's own background colour.
    """
    height, width = pixels.shape[:2]
    rows = max(1, BLOCK_PX // max(width, 1))
    if height <= rows:
        return _marks_of_block(pixels, background)
    mask = np.empty((height, width), np.bool_)
    for top in range(0, height, rows):
        mask[top : top + rows] = _marks_of_block(pixels[top : top + rows], background)
    return mask


def _marks_of_block(pixels: Pixels, background: Colour) -> npt.NDArray[np.bool_]:
    tables = _density_tables(background)
    # "clip" skips the check of bounds, which a uint8 cannot exceed.
    red, green, blue = (tables[channel].take(pixels[..., channel], mode="clip") for channel in range(3))
    greatest, least = np.maximum(red, green), np.minimum(red, green)
    np.maximum(greatest, blue, out=greatest)
    np.minimum(least, blue, out=least)
    mask = greatest >= MIN_GREY_OD
    greatest *= GREY_RATIO
    mask &= least >= greatest
    green *= INK_RATIO
    green += INK_MARGIN
    mask |= red > green
    return np.asarray(mask)


@lru_cache(maxsize=16)
def _density_tables(background: Colour) -> npt.NDArray[np.float32]:
    """Return the OD of every grey level in each channel, float32[3, 256], at least 0.

    1 is added to both sides of the ratio, so that log 0 does not occur.
    """
    light = np.log10(np.array(background, np.float32) + 1)[:, None]  # [3, 1]
    return np.asarray(np.maximum(light - np.log10(np.arange(1, 257, dtype=np.float32)), 0), np.float32)
