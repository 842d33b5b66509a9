"""Describe a slide's glass: its colour or colours, and the padding around what was scanned.

Padding is outside the slide. A `GlassSlide` shows the glass in its place, as beyond the slide's edge, so that no tiler
meets it. Where the glass has more than one colour, tissue is judged on flattened pixels: each is multiplied by the
slide's glass colour over the one at its place, as light meters divide by a blank field.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.slides.header.table import SegmentTable, background_bytes
from clotkit.slides.levels import Level
from clotkit.slides.pixels import Colour, Pixels, blank
from clotkit.slides.reader import Slide

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Box = tuple[int, int, int, int]  # x, y, width, height in full-resolution pixels

COLOUR, LOCAL, BRIGHTEST = "colour", "local", "brightest"  # background models


@dataclass(frozen=True)
class GlassMap:
    """A coarse map of a slide's padding and of its glass colours, at `downsample` slide pixels per pixel."""

    downsample: int
    outside: Mask  # [h, w] padding, and the rim in which it mixes with what was scanned
    seams: Mask  # [h, w] lines between glass of two colours: never tissue
    local: Pixels | None  # [h, w, 3] colour of the glass at each place; None if it has one colour


@dataclass(frozen=True)
class Glass:
    """The background of one slide."""

    colour: Colour  # of the glass, or of most of it
    grey: bool = False  # glass and tissue have no colour, so that marks cannot be told from tissue
    model: str = COLOUR  # `colour`, `local`, or `brightest` if there is tissue and padding but no glass
    padding_share: float = 0.0  # of the slide
    padding_colours: tuple[Colour, ...] = ()
    colours: tuple[Colour, ...] = ()  # of the glass, if there are several
    places: GlassMap | None = None
    scanned: Box | None = None  # what a black surround leaves: all else is about this part; None: there is none

    def facts(self) -> dict[str, Any]:
        """Return the facts for the report."""
        facts: dict[str, Any] = {
            "background": list(self.colour),
            "background_model": self.model,
            "padding_share": round(self.padding_share, 4),
            "grey": self.grey,
        }
        if self.scanned is not None:
            facts["scanned"] = list(self.scanned)
        if self.padding_colours:
            facts["padding_colours"] = [list(colour) for colour in self.padding_colours]
        return facts | ({"glass_colours": [list(colour) for colour in self.colours]} if self.colours else {})

    def unread(self, downsample: int, shape: tuple[int, ...]) -> Pixels | None:
        """Return bare glass for an overview, uint8[*shape, 3]; None if the glass has one colour."""
        if self.places is None or self.places.local is None:
            return None
        return _means(self.places.local, *_samples(self.places, (0, 0), shape, downsample))

    def filled(self, pixels: Pixels, corner: tuple[int, int], downsample: int) -> Pixels:
        """Return pixels, uint8[h, w, 3], with glass in the place of padding.

        Args:
            pixels: A part of the slide.
            corner: Its top left corner (x, y), full-resolution pixels.
            downsample: Slide pixels per pixel.
        """
        places = self.places
        if places is None:
            return pixels
        at = _samples(places, corner, pixels.shape[:2], downsample)
        outside = _any(places.outside, *at)
        if not outside.any():
            return pixels
        glass = np.array(self.colour, np.uint8) if places.local is None else _means(places.local, *at)
        return np.where(outside[..., None], glass, pixels)

    def flattened(self, pixels: Pixels, corner: tuple[int, int], size_px: tuple[int, int], downsample: int) -> Pixels:
        """Return filled pixels as if all glass had the slide's glass colour; for arguments see `filled`.

        `size_px` is the slide's (width, height): what lies beyond it becomes bare glass.
        """
        places = self.places
        if places is None or places.local is None:
            return pixels
        at = _samples(places, corner, pixels.shape[:2], downsample)
        gain = np.array(self.colour, np.float32) / np.maximum(_means(places.local, *at), 1)
        flat = np.minimum(np.rint(pixels * gain), 255).astype(np.uint8)
        flat[_any(places.seams | places.outside, *at)] = self.colour
        columns, rows = (max(0, (size - start) // downsample) for size, start in zip(size_px, corner, strict=True))
        flat[rows:], flat[:, columns:] = self.colour, self.colour
        return flat

    def framed(self, pixels: Pixels, corner: tuple[int, int], downsample: int) -> Pixels:
        """Return pixels, uint8[h, w, 3], with glass in the place of the surround.

        `corner` (x, y) is relative to that of `scanned`.
        """
        if self.scanned is None:
            return pixels
        rows, columns = (
            slice(max(0, -(start // downsample)), max(0, (length - start) // downsample))
            for start, length in zip(corner[::-1], self.scanned[:1:-1], strict=True)
        )
        framed = blank(pixels.shape[1], pixels.shape[0], self.colour)
        framed[rows, columns] = pixels[rows, columns]
        return framed

    def table(self, table: SegmentTable | None) -> SegmentTable | None:
        """Return a file's segments with tiles of padding as small as those of bare glass."""
        if table is None or not table.tiled or (self.scanned is None and self.places is None):
            return table
        outside = _outer_tiles(self.scanned, table)
        if self.places is not None and self.places.outside.any():
            outside |= _whole_tiles(self.places, table, self.origin)
        if not outside.any() or outside.all():
            return table
        scanned = table.counts[~outside & (table.counts > 0)]  # a tile of 0 bytes is absent
        if not len(scanned):
            return table
        glass = round(background_bytes(scanned)[0])
        return replace(table, counts=np.where(outside, glass, table.counts))

    @property
    def origin(self) -> tuple[int, int]:
        """Return the corner (x, y) of the scanned part in the file."""
        return (0, 0) if self.scanned is None else self.scanned[:2]


class GlassSlide:
    """A slide that shows glass in the place of padding, and flattened glass if `flatten`."""

    def __init__(self, slide: Slide, glass: Glass, flatten: bool = False, box: Box | None = None) -> None:
        """Wrap `slide`, of which `box` was scanned: all if it is None."""
        self._slide, self._glass, self._flatten = slide, glass, flatten
        self.decoder, self.sequential, self.table = slide.decoder, slide.sequential, glass.table(slide.table)
        self.width_px, self.height_px, self.facts = slide.width_px, slide.height_px, slide.facts
        self._box, self._framed = box or (0, 0, self.width_px, self.height_px), box is not None

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `reader.Slide.tiles`."""
        left, top, *size = self._box
        for (x, y), tile in zip(xy, self._slide.tiles(xy, tile_px, downsample, background), strict=True):
            corner = (x - left, y - top)
            shown = self._glass.filled(tile, corner, downsample)
            if self._flatten:
                shown = self._glass.flattened(shown, corner, (size[0], size[1]), downsample)
            yield self._glass.framed(shown, corner, downsample) if self._framed else shown

    def level(self, downsample: int) -> Level:
        """Return the level from which tiles are read; see `Glass.table`."""
        level = self._slide.level(downsample)
        return replace(level, table=self._glass.table(level.table))


def _samples(
    places: GlassMap, corner: tuple[int, int], shape: tuple[int, ...], downsample: int
) -> tuple[Places, Places, int]:
    """Return the map's rows and columns under a part of the slide, and their number per pixel."""
    count = -(-downsample // places.downsample)
    at = [
        (start + (2 * np.arange(length * count) + 1) * downsample // (2 * count)) // places.downsample
        for start, length in zip(corner[::-1], shape, strict=True)
    ]
    rows, columns = (np.clip(line, 0, most - 1) for line, most in zip(at, places.outside.shape, strict=True))
    return rows, columns, count


def _any(mask: Mask, rows: Places, columns: Places, count: int) -> Mask:
    part = mask[np.ix_(rows, columns)]
    if count == 1:
        return part
    return np.asarray(part.reshape(len(rows) // count, count, len(columns) // count, count).any(axis=(1, 3)))


def _means(colours: Pixels, rows: Places, columns: Places, count: int) -> Pixels:
    part: Pixels = colours[np.ix_(rows, columns)]
    if count == 1:
        return part
    boxes = part.reshape(len(rows) // count, count, len(columns) // count, count, 3)
    return np.asarray(np.rint(boxes.mean(axis=(1, 3), dtype=np.float32)), np.uint8)


def _outer_tiles(scanned: Box | None, table: SegmentTable) -> Mask:
    """Return which tiles of a file lie beyond the scanned part as a whole, bool[rows, columns]."""
    if scanned is None:
        return np.zeros(table.counts.shape, bool)
    x, y, width, height = scanned
    rows, columns = (np.arange(count) for count in table.counts.shape)
    within_rows = ((rows + 1) * table.height_px > y) & (rows * table.height_px < y + height)
    within_columns = ((columns + 1) * table.width_px > x) & (columns * table.width_px < x + width)
    return np.asarray(~(within_rows[:, None] & within_columns))


def _whole_tiles(places: GlassMap, table: SegmentTable, origin: tuple[int, int]) -> Mask:
    """Return which tiles of a file lie in padding as a whole, bool[rows, columns], from `origin` on."""
    shape = table.counts.shape
    outside = np.ones(shape, bool)
    rows, columns = (
        np.clip((np.arange(count + 1) * side - start) // places.downsample, 0, most)
        for count, side, start, most in zip(
            shape, (table.height_px, table.width_px), origin[::-1], places.outside.shape, strict=True
        )
    )
    for row, column in np.ndindex(*shape):
        part = places.outside[rows[row] : rows[row + 1] + 1, columns[column] : columns[column + 1] + 1]
        outside[row, column] = part.all() if part.size else False
    return outside
