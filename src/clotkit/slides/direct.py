"""Read a plain TIFF segment by segment, without libvips: the fast reader.

A segment is a tile or a strip of the file. Each one is decoded once as long as it stays in the cache.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from clotkit.reasons import Reason
from clotkit.slides.bands import tiles_in_one_pass
from clotkit.slides.header.table import SegmentTable
from clotkit.slides.pixels import Colour, Pixels, blank, box_mean, downsampled_tile, padded

CACHE_BYTES = 2**22  # downsampled segments: about one row of them, for tiles that do not match the file's tile grid

# Compressed bytes of a segment that is told from others by them: empty glass and padding repeat, and are decoded once.
FEW_BYTES = 2**12
GROUP_BYTES = 2**18  # full-resolution segments that are downsampled together, within the CPU cache

Content = tuple[int, int] | bytes  # row and column of a segment, or its compressed bytes
Key = tuple[Content, int, Colour]  # of a downsampled segment: its content, the downsample, the colour beyond the edge


class SegmentReader(Protocol):
    """The decoded tiles or strips of one file."""

    table: SegmentTable
    codes: tuple[Reason, ...]  # what was chosen by a rule

    def packed(self, row: int, column: int) -> bytes:
        """Return the compressed bytes of a segment."""
        ...

    def decode(self, row: int, column: int, background: Colour) -> Pixels:
        """Return one segment that is not absent; see `segments.Segments.decode`."""
        ...

    def rows(self, number: int, first: int, count: int, background: Colour) -> Pixels:
        """Return rows of a strip that is too large to be decoded at once."""
        ...


class DirectSlide:
    """A TIFF whose segments are decoded one by one.

    A tiled file gives random access; a file in strips is read in one pass. Absent segments show the background.
    """

    def __init__(self, segments: SegmentReader, size_px: tuple[int, int], decoder: str = "direct") -> None:
        """Read from `segments`; `decoder` is the name in reports, `size_px` the slide's width and height."""
        self.decoder, (self.width_px, self.height_px) = decoder, size_px
        self._table = segments.table
        self.table: SegmentTable | None = self._table if self._table.planes == 1 else None
        self.sequential = not self._table.tiled
        codes = dict.fromkeys((*self._table.codes, *segments.codes))
        self.facts: dict[str, Any] = {"notes": list(codes)} if codes else {}
        self._segments = segments
        self._absent = (self._table.counts == 0).reshape(self._table.planes, *self._table.grid).all(axis=0)
        self._cache: OrderedDict[Key, Pixels] = OrderedDict()
        self._strip: tuple[int, Colour, Pixels] | None = None
        self._cached_bytes = 0
        self._group: Pixels | None = None  # full-resolution segments that are downsampled together

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `reader.Slide.tiles`."""
        size = (self.width_px, self.height_px)
        if self.sequential:
            strip = 0 if self._table.row_by_row else self._table.height_px
            yield from tiles_in_one_pass(
                partial(self._rows, background), size, xy, tile_px, downsample, background, strip
            )
        elif self._table.width_px % downsample == 0 == self._table.height_px % downsample:
            for x, y in xy:
                yield self._region(x // downsample, y // downsample, tile_px, tile_px, downsample, background)
        else:
            for corner in xy:
                yield downsampled_tile(partial(self._whole, background), size, corner, tile_px, downsample, background)

    def _whole(self, background: Colour, x: int, y: int, width: int, height: int) -> Pixels:
        return self._region(x, y, width, height, 1, background)

    def _region(self, left: int, top: int, width: int, height: int, downsample: int, background: Colour) -> Pixels:
        """Return a region of the downsampled slide, uint8[height, width, 3], assembled from segments.

        All sizes are in downsampled pixels.
        """
        across, down = self._table.width_px // downsample, self._table.height_px // downsample  # segment size
        region = blank(width, height, background)
        rows, columns = self._table.grid
        for row in range(top // down, min(-(-(top + height) // down), rows)):
            wanted = range(left // across, min(-(-(left + width) // across), columns))
            present = [column for column in wanted if not self._absent[row, column]]
            for column, segment in self._row_of_segments(row, present, downsample, background):
                y, x = row * down - top, column * across - left  # the segment's corner in the region, may be outside
                part = segment[max(0, -y) : height - y, max(0, -x) : width - x]
                region[max(0, y) :, max(0, x) :][: part.shape[0], : part.shape[1]] = part
        return region

    def _row_of_segments(
        self, row: int, columns: Sequence[int], downsample: int, background: Colour
    ) -> Iterator[tuple[int, Pixels]]:
        """Yield the columns of one row with their downsampled segments, those in the cache first."""
        missing: dict[Key, list[int]] = {}
        for column in columns:
            key = (self._content(row, column), downsample, background)  # the background pads segments at the edge
            if (segment := self._cache.get(key)) is None:
                missing.setdefault(key, []).append(column)
                continue
            self._cache.move_to_end(key)
            yield column, segment
        places = [(row, same[0]) for same in missing.values()]
        for (key, same), segment in zip(missing.items(), self._decoded(places, downsample, background), strict=True):
            self._remember(key, segment)
            for column in same:
                yield column, segment

    def _content(self, row: int, column: int) -> Content:
        """Return what tells a segment from all others: its bytes if they are few, or else its place."""
        table = self._table
        whole = (row + 1) * table.height_px <= self.height_px and (column + 1) * table.width_px <= self.width_px
        if whole and table.planes == 1 and table.counts[row, column] <= FEW_BYTES:
            return self._segments.packed(row, column)
        return row, column

    def _decoded(self, places: Sequence[tuple[int, int]], downsample: int, background: Colour) -> Iterator[Pixels]:
        """Yield downsampled segments; the boxes of a few of them are averaged together, in fewer calls."""
        shape = (self._table.height_px, self._table.width_px, 3)
        group_size = max(1, GROUP_BYTES // (shape[0] * shape[1] * 3))
        for first in range(0, len(places), group_size):
            group = places[first : first + group_size]
            segments = (self._segments.decode(row, column, background) for row, column in group)
            if downsample == 1 or len(group) == 1:
                yield from (box_mean(padded(segment, downsample, background), downsample) for segment in segments)
                continue
            if self._group is None:
                self._group = np.empty((group_size, *shape), np.uint8)  # kept: new pages cost as much as the means
            for index, segment in enumerate(segments):
                if segment.shape != shape:  # at the slide's edge
                    self._group[index] = background
                self._group[index, : segment.shape[0], : segment.shape[1]] = segment
            means = box_mean(self._group[: len(group)].reshape(-1, *shape[1:]), downsample)
            yield from means.reshape(len(group), -1, *means.shape[1:])

    def _remember(self, key: Key, segment: Pixels) -> None:
        """Add a segment to the cache, which drops the ones that were not used for longest."""
        self._cache[key] = segment
        self._cached_bytes += _cached_bytes(key, segment)
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= _cached_bytes(*self._cache.popitem(last=False))

    def _rows(self, background: Colour, first: int, count: int) -> Pixels:
        """Return rows of a slide in strips; the last decoded strip is kept."""
        side = self._table.height_px
        numbers = range(first // side, -(-(first + count) // side))
        if len(numbers) == 1:
            return self._part(background, numbers[0], first, count)
        rows = np.empty((count, self.width_px, 3), np.uint8)
        done = 0
        for number in numbers:
            part = self._part(background, number, first, count)
            rows[done : done + len(part)] = part
            done += len(part)
        return rows

    def _part(self, background: Colour, number: int, first: int, count: int) -> Pixels:
        """Return the rows of [first, first + count) that lie in one strip.

        The array is valid until the next strip is decoded.
        """
        top = number * self._table.height_px
        begin, end = max(first - top, 0), min(first + count - top, self._table.height_px, self.height_px - top)
        if self._absent[number, 0]:
            return blank(self.width_px, end - begin, background)
        if self._table.row_by_row:
            return self._segments.rows(number, begin, end - begin, background)
        if self._strip is None or self._strip[:2] != (number, background):
            self._strip = (number, background, self._segments.decode(number, 0, background))
        return self._strip[2][begin:end]


def _cached_bytes(key: Key, segment: Pixels) -> int:
    """Return the size of an entry of the cache."""
    return segment.nbytes + (len(key[0]) if isinstance(key[0], bytes) else 0)
