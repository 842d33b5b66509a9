"""Find a slide's black surround, and read the slide as if its file ended where the surround begins.

Scanners and data sets put black around what was scanned: exact zeros, or JPEG's noise above them. The grid, the glass
and every estimate start at the inner edge, so that a slide gives the same tiles with a surround and without.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.slides.bands import ReadRows, tiles_in_one_pass
from clotkit.slides.header.table import SegmentTable
from clotkit.slides.levels import Level
from clotkit.slides.pixels import Colour, Pixels, blank, downsampled_tile
from clotkit.slides.reader import Slide
from clotkit.tissue.glass import Box
from clotkit.tissue.rules import is_dark

Counts = npt.NDArray[np.int64]

MIN_LIGHT_PX = 8  # of a row or column that was scanned
BLOCK_PX, OUTER_PX = 128, 512  # side of the blocks that are read: in rows, and with random access


def scanned_box(slide: Slide) -> Box | None:
    """Return the box that a black surround leaves; None if nothing is around it, or nothing within."""
    counted = _all_light(slide) if slide.sequential else _outer_light(slide)
    rows, columns = (np.flatnonzero(count >= MIN_LIGHT_PX) for count in counted)
    if not len(rows) or not len(columns):
        return None
    x, y = int(columns[0]), int(rows[0])
    box = (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)
    return None if box[2:] == (slide.width_px, slide.height_px) else box


def _all_light(slide: Slide) -> tuple[Counts, Counts]:
    """Return the number of light pixels in every row and in every column, from one pass."""
    xs, ys = (range(0, length, BLOCK_PX) for length in (slide.width_px, slide.height_px))
    return _light(slide, xs, ys, BLOCK_PX)


def _outer_light(slide: Slide) -> tuple[Counts, Counts]:
    """Return the same from every side up to the first rows and columns that have some; 0 within."""
    xs, ys = (range(0, length, OUTER_PX) for length in (slide.width_px, slide.height_px))
    rows, columns = np.zeros(slide.height_px, np.int64), np.zeros(slide.width_px, np.int64)
    for y in _until_found(ys, rows):
        rows += _light(slide, xs, [y], OUTER_PX)[0]
    for x in _until_found(xs, columns):
        columns += _light(slide, [x], ys, OUTER_PX)[1]
    return rows, columns


def _until_found(starts: range, counts: Counts) -> Iterator[int]:
    """Yield the starts of blocks from either end, each once, until the caller has counted enough in one."""
    done = set[int]()
    for order in (starts, starts[::-1]):
        for start in order:
            if start not in done:
                done.add(start)
                yield start
            if counts[start : start + OUTER_PX].max() >= MIN_LIGHT_PX:
                break


def _light(slide: Slide, xs: Sequence[int], ys: Sequence[int], side_px: int) -> tuple[Counts, Counts]:
    """Return the number of light pixels by row and by column, in the blocks at all `xs` and `ys`."""
    rows, columns = np.zeros(slide.height_px, np.int64), np.zeros(slide.width_px, np.int64)
    xy = [(x, y) for y in ys for x in xs]
    for (x, y), block in zip(xy, slide.tiles(xy, side_px, 1, (0, 0, 0)), strict=True):
        light = ~is_dark(block[: slide.height_px - y, : slide.width_px - x])
        rows[y : y + side_px] += light.sum(axis=1)
        columns[x : x + side_px] += light.sum(axis=0)
    return rows, columns


class ScannedSlide:
    """The part of a slide within its surround, as a slide of its own."""

    table: SegmentTable | None = None  # its tiles do not begin at this slide's corner

    def __init__(self, slide: Slide, box: Box) -> None:
        """Show `box` of `slide`."""
        self._slide, (self._x, self._y, self.width_px, self.height_px) = slide, box
        self.decoder, self.sequential = slide.decoder, slide.sequential
        self.facts: dict[str, Any] = slide.facts

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `reader.Slide.tiles`."""
        size = (self.width_px, self.height_px)
        if self._is_aligned(downsample):
            yield from self._shifted(xy, tile_px, downsample, background)
        elif self.sequential:
            rows = self._rows([y for _, y in xy], tile_px * downsample, background)
            yield from tiles_in_one_pass(rows, size, xy, tile_px, downsample, background)
        else:
            for corner in xy:
                yield downsampled_tile(self._read, size, corner, tile_px, downsample, background)

    def level(self, downsample: int) -> Level:
        """Return the level from which tiles are read, without its table: its tiles begin elsewhere."""
        return Level(self._slide.level(downsample).downsample if self._is_aligned(downsample) else 1, None)

    def _is_aligned(self, downsample: int) -> bool:
        """Return whether tiles of the whole slide are tiles of this part too.

        On a smaller level, the last columns and rows may be incomplete, as those of the level itself are.
        """
        sides = () if self._slide.level(downsample).downsample > 1 else (self.width_px, self.height_px)
        return not any(length % downsample for length in (self._x, self._y, *sides))

    def _shifted(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield the tiles of the whole slide, with background beyond this one's edges."""
        there = [(x + self._x, y + self._y) for x, y in xy]
        for (x, y), tile in zip(xy, self._slide.tiles(there, tile_px, downsample, background), strict=True):
            right, bottom = (max(0, (end - at) // downsample) for end, at in ((self.width_px, x), (self.height_px, y)))
            if right >= tile_px and bottom >= tile_px:
                yield tile
                continue
            part = blank(tile_px, tile_px, background)
            part[:bottom, :right] = tile[:bottom, :right]
            yield part

    def _read(self, x: int, y: int, width: int, height: int) -> Pixels:
        (block,) = self._slide.tiles([(x + self._x, y + self._y)], max(width, height), 1, (0, 0, 0))
        return np.ascontiguousarray(block[:height, :width])

    def _rows(self, tops: Sequence[int], side_px: int, background: Colour) -> ReadRows:
        """Return a reader of rows, from top to bottom, of those that tiles of `side_px` at `tops` overlap."""
        wanted = sorted({row for top in tops for row in range(top // BLOCK_PX, -(-(top + side_px) // BLOCK_PX))})
        columns = range(0, self.width_px, BLOCK_PX)
        tiles = self._shifted([(x, row * BLOCK_PX) for row in wanted for x in columns], BLOCK_PX, 1, background)
        bands, last = iter(wanted), (-1, blank(1, 1, background))

        def band(number: int) -> Pixels:
            nonlocal last
            while last[0] < number:
                last = next(bands), np.hstack([next(tiles) for _ in columns])
            return last[1]

        def rows(first: int, count: int) -> Pixels:
            parts = []
            for number in range(first // BLOCK_PX, -(-(first + count) // BLOCK_PX)):
                top = number * BLOCK_PX
                parts.append(band(number)[max(first - top, 0) : first + count - top, : self.width_px])
            return np.ascontiguousarray(np.concatenate(parts))

        return rows
