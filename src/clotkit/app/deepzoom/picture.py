"""Read one slide for the viewer, in its own process: tiles, an overview that sharpens, the tissue."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.app.deepzoom.grid import TILE_PX, Grid
from clotkit.app.deepzoom.overview import Overview
from clotkit.errors import NoTissue
from clotkit.report.drawing import outline_path
from clotkit.slides.fallback import WHITE
from clotkit.slides.header.table import SegmentTable
from clotkit.slides.levels import Level
from clotkit.slides.pixels import Colour, Pixels, blank
from clotkit.slides.reader import open_slide
from clotkit.tiling.overview import slide_context, slide_overview
from clotkit.tissue.rules import sample_background

COSTLY_PX = 20_000_000  # pixels to decode for one tile: 0.1 to 0.3 s; tiles that need more come from the overview
MOST_OVERVIEW_PX = 24_000_000  # of an overview: 72 MB
TISSUE_PX = 1024  # long side, at most, of the picture on which tissue is found
OUTLINE_BYTES = 200_000  # of the path of an outline
NEIGHBOURS = 8  # tiles on either side of one in strips, which cost little more
QUALITY = 85


@dataclass(frozen=True)
class Tile:
    """An encoded tile."""

    column: int
    row: int
    jpeg: bytes
    sharp: bool  # False: drawn from the sketch, and better later


class SlidePicture:
    """An open slide."""

    def __init__(self, path: Path) -> None:
        """Open the slide. Raises SlideError."""
        self.opening = secrets.token_hex(8)  # tells a viewer that the process it had has ended
        self.slide = open_slide(path, microns=True)
        self.grid = Grid(self.slide.width_px, self.slide.height_px)
        # Samples of a slide that is decoded from top to bottom cost its whole height.
        self.background = WHITE if self.slide.sequential else sample_background(self.slide)
        coarsest = self.grid.downsamples[-1]
        costly = self._first_costly()
        self.overview = None if costly is None else Overview(self.slide, self.background, costly, coarsest)

    def info(self) -> dict[str, Any]:
        """Return the facts that a viewer needs of the slide."""
        grid, overview, facts = self.grid, self.overview, self.slide.facts
        return {
            "width_px": grid.width_px,
            "height_px": grid.height_px,
            "tile_px": TILE_PX,
            "first_level": grid.first,
            "last_level": grid.last,
            "mpp": facts.get("mpp"),
            "decoder": self.slide.decoder,
            "notes": [str(note) for note in facts.get("notes", ())],
            "levels_refused": facts.get("levels_refused", []),
            "background": list(self.background),
            "read_share": 1.0 if overview is None else round(overview.share, 4),
            "sharp": overview is None or overview.is_sharp,
            "opening": self.opening,
            "damaged_blocks": 0 if overview is None else overview.damaged,
            "blurred_level": None if overview is None else grid.last - (overview.downsample.bit_length() - 1),
        }

    def tiles(self, level: int, column: int, row: int) -> list[Tile]:
        """Return a tile, and its neighbours where they cost little. Raises SlideError."""
        downsample = self.grid.downsample(level)
        if self.overview is not None and downsample >= self.overview.downsample:
            size = self.grid.tile_size_px(level, column, row)
            pixels, sharp = self.overview.view(column * TILE_PX, row * TILE_PX, size, downsample)
            return [Tile(column, row, encoded(pixels), sharp)]
        columns = [column]
        if self.slide.sequential:
            count = self.grid.counts(level)[0]
            columns = list(range(max(0, column - NEIGHBOURS), min(count, column + NEIGHBOURS + 1)))
        side = TILE_PX * downsample
        corners = [(one * side, row * side) for one in columns]
        read = zip(columns, self.slide.tiles(corners, TILE_PX, downsample, self.background), strict=True)
        return [Tile(one, row, encoded(self._cropped(tile, level, one, row)), True) for one, tile in read]

    def tissue(self) -> dict[str, Any]:
        """Return the outline of the tissue as SVG path data in full-resolution pixels, as far as it was read."""
        step = 1 << (-(-max(self.grid.width_px, self.grid.height_px) // TISSUE_PX) - 1).bit_length()
        sharp = self.overview is None or self.overview.is_sharp
        try:
            context = slide_context(_Quick(self))
            found = slide_overview(context, step)
        except NoTissue:
            return {"share": 0.0, "outline": "", "origin_px": [0, 0], "sharp": sharp}
        path = outline_path(found.tissue.mask, found.downsample, OUTLINE_BYTES)
        share, origin = round(found.tissue.share, 5), [int(px) for px in context.origin]
        return {"share": share, "outline": path, "origin_px": origin, "sharp": sharp}

    def step(self) -> bool:
        """Read a part of what is still blurred, and return whether something was left."""
        if self.overview is None or self.overview.is_sharp:
            return False
        self.overview.step()
        return True

    def _cropped(self, tile: Pixels, level: int, column: int, row: int) -> Pixels:
        width, height = self.grid.tile_size_px(level, column, row)
        return tile[:height, :width]

    def _first_costly(self) -> int | None:
        """Return the least downsample whose tiles come from an overview; None: every tile is read directly."""
        for downsample in self.grid.downsamples:
            if self._overview_px(downsample) <= MOST_OVERVIEW_PX and self._is_costly(downsample):
                return downsample
        return None

    def _is_costly(self, downsample: int) -> bool:
        if self.slide.sequential:
            return True
        side = TILE_PX * downsample
        area = min(side, self.slide.width_px) * min(side, self.slide.height_px)
        if area <= COSTLY_PX:  # without asking for a level, which is compared with others then
            return False
        return area > COSTLY_PX * self.slide.level(downsample).downsample ** 2

    def _overview_px(self, downsample: int) -> int:
        return -(-self.slide.width_px // downsample) * -(-self.slide.height_px // downsample)


class _Quick:
    """A slide whose coarse tiles come from the overview, as far as that was read."""

    def __init__(self, picture: SlidePicture) -> None:
        self._picture, slide = picture, picture.slide
        self.decoder, self.width_px, self.height_px = slide.decoder, slide.width_px, slide.height_px
        self.table: SegmentTable | None = None
        self.facts: dict[str, Any] = {}
        self.sequential = slide.sequential and picture.overview is not None and picture.overview.downsample > 1

    def level(self, downsample: int) -> Level:
        return Level(1, None)

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        overview = self._picture.overview
        if overview is None or downsample < overview.downsample:
            yield from self._picture.slide.tiles(xy, tile_px, downsample, background)
            return
        width, height = -(-self.width_px // downsample), -(-self.height_px // downsample)
        for x, y in xy:
            left, top = x // downsample, y // downsample
            tile = blank(tile_px, tile_px, background)
            size = (min(tile_px, width - left), min(tile_px, height - top))
            if min(size) > 0:
                tile[: size[1], : size[0]] = overview.view(left, top, size, downsample)[0]
            yield tile


def encoded(pixels: Pixels) -> bytes:
    """Return pixels, uint8[h, w, 3], as a JPEG."""
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY, colorsubsampling="420")
    return data
