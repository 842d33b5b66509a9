"""A plain TIFF read segment by segment, each decoded at most once while it is near: the fast reader."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clotkit.slides.bands import tiles_in_one_pass
from clotkit.slides.pixels import Colour, Pixels, blank, box_mean, downsampled_tile, padded
from clotkit.slides.segments import Segments
from clotkit.slides.tiff import SegmentTable

CACHE_BYTES = 2**22  # of shrunk segments: a row of the wanted ones, for tiles that do not lie on the segments' own grid


class DirectSlide:
    """A slide whose segments go straight to their codec: random access where it is tiled, one pass where not."""

    decoder = "direct"

    def __init__(self, path: Path, table: SegmentTable, width_px: int, height_px: int) -> None:
        """Open it. Raises SlideUnreadable when the file cannot be opened."""
        self.width_px, self.height_px = width_px, height_px
        self.table: SegmentTable | None = table
        self._table = table
        self.sequential = not table.tiled
        self._segments = Segments(path, table, width_px, height_px)
        self._pieces: OrderedDict[tuple[int, int, int, Colour], Pixels] = OrderedDict()
        self._strip: tuple[int, Pixels] | None = None
        self._held_bytes = 0

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """See reader.Slide.tiles."""
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
        """A part of the slide shrunk by `downsample`, in its pixels, put together from shrunk segments."""
        across, down = self._table.width_px // downsample, self._table.height_px // downsample  # px of a shrunk segment
        region = blank(width, height, background)
        rows, columns = self._table.counts.shape
        for row in range(top // down, min(-(-(top + height) // down), rows)):
            for column in range(left // across, min(-(-(left + width) // across), columns)):
                piece = self._piece(row, column, downsample, background)
                y, x = row * down - top, column * across - left  # the piece's corner in the region, maybe outside
                part = piece[max(0, -y) : height - y, max(0, -x) : width - x]
                region[max(0, y) :, max(0, x) :][: part.shape[0], : part.shape[1]] = part
        return region

    def _piece(self, row: int, column: int, downsample: int, background: Colour) -> Pixels:
        """A shrunk segment, from the cache where it is there."""
        key = (row, column, downsample, background)  # the background fills up the segments at the edge
        if (piece := self._pieces.get(key)) is not None:
            self._pieces.move_to_end(key)
            return piece
        piece = box_mean(padded(self._segments.decode(row, column), downsample, background), downsample)
        self._pieces[key] = piece
        self._held_bytes += piece.nbytes
        while self._held_bytes > CACHE_BYTES:
            self._held_bytes -= self._pieces.popitem(last=False)[1].nbytes
        return piece

    def _rows(self, first: int, count: int) -> Pixels:
        """Rows of a slide in strips; the strip in which the last ones lay is kept."""
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
        """Those of `count` rows from `first` on that lie in one strip; they stand until the next strip is decoded."""
        if self._strip is None or self._strip[0] != number:
            self._strip = (number, self._segments.decode(number, 0))
        top = number * self._table.height_px
        return self._strip[1][max(first - top, 0) : first + count - top]
