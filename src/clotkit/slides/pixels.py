"""What every room of slides/ knows of pixels: their types, and the one way in which they are shrunk, or added up."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Places = npt.NDArray[np.int64]  # rows or columns

BLOCK_PX = 1024  # side of what is held at full resolution while a tile is shrunk, 3 MB
FEW = 16  # rows or columns of a box that are added faster one by one
BAND_SAMPLES = 2**18  # of row sums at a time: 512 kB, which stays in the cache


def box_mean(pixels: Pixels, downsample: int) -> Pixels:
    """Average boxes of `downsample` px, rounded half up: uint8[h, w, 3] -> uint8[h / downsample, w / downsample, 3].

    Both sides must be divisible; every reader downsamples with this, so that they agree to the bit.
    """
    if downsample == 1:
        return pixels
    height, width = pixels.shape[0] // downsample, pixels.shape[1] // downsample
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND_SAMPLES // (3 * downsample * width or 1))
    boxes = pixels.reshape(
        height, downsample, 3 * downsample * width
    )  # [h, w, 3] -> [rows, rows of a box, samples of a row]
    for top in range(0, height, rows):
        _mean_of_rows(boxes[top : top + rows], downsample, out[top : top + rows])
    return out


def _mean_of_rows(boxes: npt.NDArray[np.uint8], downsample: int, out: Pixels) -> None:
    """Write box means of uint8[n, downsample, w * downsample * 3] to uint8[n, w, 3], rows first."""
    sums = _sum(boxes, np.uint16)  # [n, w * downsample * 3]; at most 256 * 255 fits
    columns = sums.reshape(len(boxes), -1, downsample, 3)  # [n, w, columns of a box, 3]
    wide: type[np.unsignedinteger[Any]] = np.uint16 if downsample <= FEW else np.uint32
    area = downsample * downsample
    for channel in range(3):
        total = _sum(columns[..., channel].swapaxes(1, 2), wide)  # [n, columns of a box, w] -> [n, w]
        total += wide(area // 2)
        out[:, :, channel] = total >> wide(area.bit_length() - 1) if area & (area - 1) == 0 else total // wide(area)


def _sum(values: npt.NDArray[Any], wide: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    """Sums over the second axis: one by one, which is faster while they are few."""
    if values.shape[1] > FEW:
        return np.asarray(np.add.reduce(values, axis=1, dtype=wide))
    total = values[:, 0].astype(wide)
    for index in range(1, values.shape[1]):
        total += values[:, index]
    return total


def box_sums(
    values: npt.NDArray[Any], top: Places, bottom: Places, left: Places, right: Places
) -> npt.NDArray[np.float64]:
    """Sums of `values` [h, w] over boxes, by a summed-area table: of the shape that their sides broadcast to.

    A box has the rows from `top` to `bottom` and the columns from `left` to `right`, the ends left out; what lies
    beyond the values counts as 0. Exact for whole numbers and masks.
    """
    height, width = values.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    top, bottom = top.clip(0, height), bottom.clip(0, height)
    left, right = left.clip(0, width), right.clip(0, width)
    return np.asarray(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])


def padded(pixels: Pixels, downsample: int, background: Colour) -> Pixels:
    """The pixels with their right and lower sides filled up with background to multiples of `downsample`."""
    height, width = pixels.shape[:2]
    if not (height % downsample or width % downsample):
        return pixels
    whole = blank(width + -width % downsample, height + -height % downsample, background)
    whole[:height, :width] = pixels
    return whole


def blank(width: int, height: int, background: Colour) -> Pixels:
    """Background only: uint8[height, width, 3]."""
    pixels = np.empty((height, width * 3), np.uint8)
    pixels[:] = np.array(background * width, np.uint8)  # whole rows: ten times as fast as colour by colour
    return pixels.reshape(height, width, 3)


def downsampled_tile(
    read: Callable[[int, int, int, int], Pixels],
    size_px: tuple[int, int],
    corner: tuple[int, int],
    tile_px: int,
    downsample: int,
    background: Colour,
) -> Pixels:
    """One tile from `read` (x, y, width, height: a part of a slide of `size_px`), in blocks of bounded memory."""
    tile = blank(tile_px, tile_px, background)
    block = max(1, BLOCK_PX // downsample)
    for top, left in product(range(0, tile_px, block), repeat=2):
        x, y = corner[0] + left * downsample, corner[1] + top * downsample
        width = min(min(block, tile_px - left) * downsample, size_px[0] - x)
        height = min(min(block, tile_px - top) * downsample, size_px[1] - y)
        if min(width, height) > 0:
            part = box_mean(padded(read(x, y, width, height), downsample, background), downsample)
            tile[top : top + part.shape[0], left : left + part.shape[1]] = part
    return tile
