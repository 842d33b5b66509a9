"""Read a plain TIFF segment by segment, without libvips: the fast reader.

A segment is a tile or a strip of the file. Each one is decoded once as long as it stays in the cache.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.slides.bands import tiles_in_one_pass
from clotkit.slides.pixels import Colour, Pixels, blank, box_mean, downsampled_tile, padded
from clotkit.slides.segments import Segments
from clotkit.slides.tiff import SegmentTable

CACHE_BYTES = 2**22  # downsampled segments: about one row of them, for tiles that do not match the file's tile grid


class DirectSlide:
    """A plain TIFF whose segments are decoded directly.

    A tiled file gives random access; a file in strips is read in one pass.
    """

    decoder = "direct"

    def __init__(self, path: Path, table: SegmentTable, width_px: int, height_px: int) -> None:
        """Open the slide.

        Raises:
            SlideUnreadable: The file cannot be opened.
        """
        self.width_px, self.height_px = width_px, height_px
        self.facts: dict[str, Any] = {}
        self.table: SegmentTable | None = table
        self._table = table
        self.sequential = not table.tiled
        self._segments = Segments(path, table, width_px, height_px)
        self._cache: OrderedDict[tuple[int, int, int, Colour], Pixels] = OrderedDict()
        self._strip: tuple[int, Pixels] | None = None
        self._cached_bytes = 0

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `reader.Slide.tiles`."""
        size = (self.width_px, self.height_px)
        if self.sequential:
            strip = self._table.height_px
            yield from tiles_in_one_pass(self._rows, size, xy, tile_px, downsample, background, strip)
        elif self._table.width_px % downsample == 0 == self._table.height_px % downsample:
            for x, y in xy:
                yield self._region(x // downsample, y // downsample, tile_px, tile_px, downsample, background)
        else:
            for corner in xy:
                yield downsampled_tile(self._whole, size, corner, tile_px, downsample, background)

    def _whole(self, x: int, y: int, width: int, height: int) -> Pixels:
        return self._region(x, y, width, height, 1, (0, 0, 0))

    def _region(self, left: int, top: int, width: int, height: int, downsample: int, background: Colour) -> Pixels:
        """Return a region of the downsampled slide, uint8[height, width, 3], assembled from segments.

        All sizes are in downsampled pixels.
        """
        across, down = self._table.width_px // downsample, self._table.height_px // downsample  # segment size
        region = blank(width, height, background)
        rows, columns = self._table.counts.shape
        for row in range(top // down, min(-(-(top + height) // down), rows)):
            for column in range(left // across, min(-(-(left + width) // across), columns)):
                segment = self._segment(row, column, downsample, background)
                y, x = row * down - top, column * across - left  # the segment's corner in the region, may be outside
                part = segment[max(0, -y) : height - y, max(0, -x) : width - x]
                region[max(0, y) :, max(0, x) :][: part.shape[0], : part.shape[1]] = part
        return region

    def _segment(self, row: int, column: int, downsample: int, background: Colour) -> Pixels:
        """Return a downsampled segment, from the cache if it is there."""
        key = (row, column, downsample, background)  # the background pads segments at the edge
        if (segment := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return segment
        segment = box_mean(padded(self._segments.decode(row, column), downsample, background), downsample)
        self._cache[key] = segment
        self._cached_bytes += segment.nbytes
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return segment

    def _rows(self, first: int, count: int) -> Pixels:
        """Return rows of a slide in strips; the last decoded strip is kept."""
        side = self._table.height_px
        numbers = range(first // side, -(-(first + count) // side))
        if len(numbers) == 1:
            return self._part(numbers[0], first, count)
        rows = np.empty((count, self.width_px, 3), np.uint8)
        done = 0
        for number in numbers:
            part = self._part(number, first, count)
            rows[done : done + len(part)] = part
            done += len(part)
        return rows

    def _part(self, number: int, first: int, count: int) -> Pixels:
        """Return the rows of [first, first + count) that lie in one strip.

        The array is valid until the next strip is decoded.
        """
        if self._strip is None or self._strip[0] != number:
            self._strip = (number, self._segments.decode(number, 0))
        top = number * self._table.height_px
        return self._strip[1][max(first - top, 0) : first + count - top]
