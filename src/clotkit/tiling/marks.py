"""What differs from the background and is no tissue: ink of felt-tip pens, and shadows.

A pixel is judged by its optical density (OD), log10(background / pixel) channel by channel: the tint of the background
drops out, and thicker ink or a thicker section moves a pixel along a line from zero whose direction is the dye's.
H&E has its own directions. Haematoxylin's OD in red, green, blue is as 0.65 : 0.70 : 0.29, eosin's as
0.07 : 0.99 : 0.11 (A. C. Ruifrok and D. A. Johnston, Anal. Quant. Cytol. Histol. 23, 2001, 291-299): both take most
from green, and so does every mixture of them, which is also how B. A. Schreiber et al. (Sci. Rep. 14, 2024, 309) tell
H&E from pens. Red cells take most from green and blue. Hence two kinds of mark:

- coloured ink takes clearly more from red than from green. The blue and the green pens of D. Eriksson's filters (IBM,
  deep-histopath, filter_blue_pen and filter_green_pen) do, except the darkest blues, which are haematoxylin's hue;
- black ink and shadows (edges of the coverslip, bubbles, dust) take the same from all three channels, which is the rule
  of his filter_grays, there as 15 grey levels between channels.

Red ink stays: a pixel of it cannot be told from packed red cells, of which a clot is made.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from clotkit.slides.pixels import Colour, Pixels

INK_RATIO = 1.15  # OD in red over OD in green; H&E so shrunk stays below 1 in 999 of 1,000 pixels of OD 0.2 or more
INK_LEAST = 0.02  # OD in red beyond that: 5 % of the light, clear of noise and of the colour errors of JPEG
GREY_RATIO = 0.9  # least over greatest OD of the three channels; on scanned H&E 999 in 1,000 stay below 0.85
GREY_LEAST = 0.05  # greatest OD: 11 % of the light; fainter, a few grey levels of noise would decide

BLOCK_PX = 2**15  # pixels at a time: the temporaries stay in the cache


def marks(pixels: Pixels, background: Colour) -> npt.NDArray[np.bool_]:
    """Which pixels of uint8[h, w, 3] are ink or shadow: bool[h, w].

    For pixels of 16 to 64 px of the slide, in which single cells no longer show; `background` is the slide's own.
    """
    height, width = pixels.shape[:2]
    rows = max(1, BLOCK_PX // max(width, 1))
    if height <= rows:
        return _marks_of_block(pixels, background)
    found = np.empty((height, width), np.bool_)
    for top in range(0, height, rows):
        found[top : top + rows] = _marks_of_block(pixels[top : top + rows], background)
    return found


def _marks_of_block(pixels: Pixels, background: Colour) -> npt.NDArray[np.bool_]:
    tables = _density_tables(background)
    # "clip" spares a check of the bounds, which a uint8 cannot leave.
    red, green, blue = (tables[channel].take(pixels[..., channel], mode="clip") for channel in range(3))
    greatest, least = np.maximum(red, green), np.minimum(red, green)
    np.maximum(greatest, blue, out=greatest)
    np.minimum(least, blue, out=least)
    found = greatest >= GREY_LEAST
    greatest *= GREY_RATIO
    found &= least >= greatest
    green *= INK_RATIO
    green += INK_LEAST
    found |= red > green
    return np.asarray(found)


@lru_cache(maxsize=16)
def _density_tables(background: Colour) -> npt.NDArray[np.float32]:
    """OD of every grey level in each channel, float32[3, 256]: at least 0, with 1 added to both sides against log 0."""
    light = np.log10(np.array(background, np.float32) + 1)[:, None]  # [3, 1]
    return np.asarray(np.maximum(light - np.log10(np.arange(1, 257, dtype=np.float32)), 0), np.float32)
