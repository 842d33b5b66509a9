"""Define pixel types and the one way to downsample or sum pixels, shared by all readers and tilers."""

import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Places = npt.NDArray[np.int64]  # row or column numbers

BLOCK_PX = 1024  # side of a full-resolution block while a tile is downsampled, 3 MB
MAX_UNROLLED = 16  # terms of a sum; up to here adding them one by one is faster
# Downsamples of which four sums of a row are added as one number, and the bits of a box's area.
PACKED_SHIFTS = {4: np.uint64(4), 8: np.uint64(6), 16: np.uint64(8)} if sys.byteorder == "little" else {}
BAND_SAMPLES = 2**17  # row sums at a time: 256 kB, which fits the CPU cache


def box_mean(pixels: Pixels, downsample: int) -> Pixels:
    """Average boxes of `downsample` px: uint8[h, w, 3] -> uint8[h / downsample, w / downsample, 3].

    Means are rounded half up. Both sides must be divisible by `downsample`. Every reader downsamples with this
    function, so that their results agree to the bit.
    """
    if downsample == 1:
        return pixels
    height, width = pixels.shape[0] // downsample, pixels.shape[1] // downsample
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND_SAMPLES // (3 * downsample * width or 1))
    # [h, w, 3] -> [rows of boxes, rows of a box, samples of a row]
    boxes = pixels.reshape(height, downsample, 3 * downsample * width)
    for top in range(0, height, rows):
        _mean_of_rows(boxes[top : top + rows], downsample, out[top : top + rows])
    return out


def _mean_of_rows(boxes: npt.NDArray[np.uint8], downsample: int, out: Pixels) -> None:
    """Write box means of uint8[n, downsample, w * downsample * 3] into `out`, uint8[n, w, 3]."""
    sums = _sum(boxes, _holding(255 * downsample))  # [n, w * downsample * 3]
    if downsample in PACKED_SHIFTS and sums.flags.c_contiguous:
        _mean_of_columns(sums.view(np.uint64).reshape(len(boxes) * out.shape[1], -1, 3), downsample, out)
        return
    columns = sums.reshape(len(boxes), -1, downsample, 3)  # [n, w, columns of a box, 3]
    area = downsample * downsample
    wide = _holding(255 * area + area // 2)
    for channel in range(3):
        total = _sum(columns[..., channel].swapaxes(1, 2), wide)  # [n, columns of a box, w] -> [n, w]
        total += wide(area // 2)
        out[:, :, channel] = total >> wide(area.bit_length() - 1) if area & (area - 1) == 0 else total // wide(area)


def _holding(most: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest unsigned type, of 16 bits or more, that holds numbers up to `most`."""
    return next(wide for wide in (np.uint16, np.uint32, np.uint64) if most <= np.iinfo(wide).max)


def _mean_of_columns(groups: npt.NDArray[np.uint64], downsample: int, out: Pixels) -> None:
    """Write box means of sums of rows into `out`, uint8[n, w, 3], four samples at a time.

    `groups` is uint64[n * w, downsample / 4, 3] of four uint16 sums each, the first one lowest: four pixels are the
    numbers R0 G0 B0 R1, G1 B1 R2 G2 and B2 R3 G3 B3. The sums of R, G and B end up in the lower three samples; what
    overflows is in the fourth.
    """
    first, second, third = (_sum(groups[..., i], np.uint64) for i in range(3))  # [n * w] each
    total = first >> np.uint64(48)  # R1 0 0 0
    total += first
    total += second << np.uint64(16)  # 0 G1 B1 R2
    second >>= np.uint64(32)  # R2 G2 0 0
    total += second
    total += third << np.uint64(32)  # 0 0 B2 R3
    third >>= np.uint64(16)  # R3 G3 B3 0
    total += third
    total += np.uint64(0x0001_0001_0001 * (downsample * downsample // 2))  # rounds half up
    total >>= PACKED_SHIFTS[downsample]
    low_bytes = total.view(np.uint8).reshape(*out.shape[:2], 8)
    for channel in range(3):
        out[:, :, channel] = low_bytes[:, :, 2 * channel]


def _sum(values: npt.NDArray[Any], wide: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    """Return sums over the second axis; few terms are added one by one, which is faster."""
    if values.shape[1] > MAX_UNROLLED:
        return np.asarray(np.add.reduce(values, axis=1, dtype=wide))
    total = values[:, 0].astype(wide)
    for index in range(1, values.shape[1]):
        total += values[:, index]
    return total


def box_sums(
    values: npt.NDArray[Any], top: Places, bottom: Places, left: Places, right: Places
) -> npt.NDArray[np.float64]:
    """Return sums of `values` [h, w] over boxes, from a summed-area table.

    A box spans rows [top, bottom) and columns [left, right). Values beyond the edges count as 0. Sums of integers and
    masks are exact.

    Args:
        values: The array, [h, w].
        top: First row of each box; the four arrays broadcast.
        bottom: Row after the last one.
        left: First column of each box.
        right: Column after the last one.

    Returns:
        float64 of the shape that the four arrays broadcast to.
    """
    height, width = values.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    top, bottom = top.clip(0, height), bottom.clip(0, height)
    left, right = left.clip(0, width), right.clip(0, width)
    return np.asarray(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left])


def evenly_spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of the indices below `count`, evenly spread from the first to the last."""
    places = np.linspace(0, count - 1, min(most, count)).astype(np.int64)
    return np.array(sorted(set(places.tolist())), np.int64)  # np.unique imports numpy.ma


def padded(pixels: Pixels, downsample: int, background: Colour) -> Pixels:
    """Return the pixels with background added on the right and below, to multiples of `downsample`."""
    height, width = pixels.shape[:2]
    if not (height % downsample or width % downsample):
        return pixels
    whole = blank(width + -width % downsample, height + -height % downsample, background)
    whole[:height, :width] = pixels
    return whole


def blank(width: int, height: int, background: Colour) -> Pixels:
    """Return a background image, uint8[height, width, 3]."""
    pixels = np.empty((height, width * 3), np.uint8)
    pixels[:] = np.array(background * width, np.uint8)  # filling whole rows is ten times as fast as pixel by pixel
    return pixels.reshape(height, width, 3)


def downsampled_tile(
    read: Callable[[int, int, int, int], Pixels],
    size_px: tuple[int, int],
    corner: tuple[int, int],
    tile_px: int,
    downsample: int,
    background: Colour,
) -> Pixels:
    """Return one tile, read and downsampled in blocks, so that memory is bounded.

    Args:
        read: Reads a region of the slide: (x, y, width, height) -> uint8[height, width, 3].
        size_px: Width and height of the slide.
        corner: Top left corner (x, y) of the tile, full-resolution pixels.
        tile_px: Side of the tile, in its own pixels.
        downsample: Slide pixels per tile pixel.
        background: Colour of what lies beyond the slide's edge.
    """
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
