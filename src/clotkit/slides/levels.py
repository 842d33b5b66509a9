"""Read a pyramid: take pixels from the coarsest of its levels that shows what level 0 shows.

Files have levels that are black, shifted, cut short, or of another slide. So a level is compared with level 0 on a few
squares when it is first needed, and left out with a code if it differs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clotkit.errors import SlideError
from clotkit.reasons import LevelFault, Reason
from clotkit.slides.fallback import MAX_ROWS_PX, WHITE, Decoded
from clotkit.slides.header.table import SegmentTable, background_bytes, median
from clotkit.slides.pixels import Colour, Pixels

SQUARES = 3  # along either side of the slide: in so many parts, one square each is compared
SQUARE_PX, LEVEL_PX = 256, 16  # least side of a square, in pixels of level 0 and of the level
REFERENCE_TIMES = 16  # how many times finer the pixels are, at least, with which a level is compared
AUTO, CLOSE, FULL = "auto", "close", "full"  # which levels may be used; see `config.TilingConfig.levels`
# The mean difference of the squares from level 0, in grey levels: at most this after 2 x 2 px are averaged, which takes
# out most of a codec's noise (on tissue, pixel by pixel: JPEG 1 to 2 at quality 90, 3 to 5 at 75). CLOSE levels differ
# by no more pixel by pixel. Both by no more than this part of the contrast within the squares: without contrast they
# tell nothing of a shift, and the level is not used. A single square may differ more, within that part of its contrast.
MAX_DIFFERENCE, MAX_PART, MIN_CONTRAST = 3.0, 0.5, 1.5


@dataclass(frozen=True)
class LevelFile:
    """A level that a file has, and that was not read yet."""

    downsample: int  # slide pixels per level pixel, along a side
    open: Callable[[], Decoded]  # raises SlideError
    fits: bool = True  # its size is that of the slide at this downsample


@dataclass(frozen=True)
class Level:
    """The level from which tiles of a slide are read."""

    downsample: int  # 1: level 0
    table: SegmentTable | None  # its tiles, with sides in pixels of level 0


class Slide(Decoded, Protocol):
    """An open slide: level 0 of a file, whose other levels give its tiles if they may."""

    def level(self, downsample: int) -> Level:
        """Return the level from which tiles at `downsample` are read."""
        ...


@dataclass(frozen=True)
class Comparison:
    """A level, compared with level 0: means over squares, in grey levels."""

    difference: float  # pixel by pixel
    averaged: float  # of means of 2 x 2 px
    contrast: float  # of level 0, within the squares
    worst: float  # of `averaged`: the largest of one square, of those where it is above MAX_PART of their contrast

    def fault(self, allowed: str) -> LevelFault | None:
        """Return why the level is not used if `allowed` ones may be; None: it is."""
        if max(self.difference if allowed == CLOSE else self.averaged, self.worst) > MAX_DIFFERENCE:
            return LevelFault.DIFFERS
        if self.contrast < MIN_CONTRAST:
            return LevelFault.UNPROVEN
        return LevelFault.DIFFERS if self.difference > MAX_PART * self.contrast else None


class PyramidSlide:
    """A slide with its smaller levels. Without any, it is level 0 alone.

    Tiles at a downsample come from the coarsest level whose own downsample divides it. Tile pixels that a level lacks
    at the right and lower edge, less than one pixel of it, show the background.
    """

    def __init__(self, full: Decoded, levels: Sequence[LevelFile] = (), allowed: str = AUTO) -> None:
        """Wrap level 0, `full`, with the other levels of its file, of which none is opened yet.

        `allowed` says how much a level may differ: AUTO, CLOSE, or FULL for none of them.
        """
        self.decoder, self.sequential, self.table = full.decoder, full.sequential, full.table
        self.width_px, self.height_px, self.facts = full.width_px, full.height_px, full.facts
        self._full, self._allowed = full, allowed
        self._waiting = {level.downsample: level for level in levels if allowed != FULL}
        self._trusted: dict[int, Decoded] = {}
        for level in [level for level in self._waiting.values() if not level.fits]:
            self._refuse(level.downsample, LevelFault.SIZE)

    def level(self, downsample: int) -> Level:
        """Return the level from which tiles at `downsample` are read."""
        factor, slide = self._best(downsample, downsample)
        table = self.table if factor == 1 else slide.table
        if table is not None and factor > 1:
            table = replace(table, width_px=table.width_px * factor, height_px=table.height_px * factor)
        return Level(factor, table)

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `Decoded.tiles`. A finer level goes on where one is damaged."""
        yield from self._tiles(xy, tile_px, (downsample, downsample), background)

    def _tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, steps: tuple[int, int], background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; `steps` are their downsample, and that of the coarsest level that may be read."""
        done = 0
        while done < len(xy):
            factor, slide = self._best(*steps)
            corners = [(x // factor, y // factor) for x, y in xy[done:]]
            try:
                for tile in slide.tiles(corners, tile_px, steps[0] // factor, background):
                    yield tile
                    done += 1
            except SlideError as error:
                if factor == 1:
                    raise
                self._refuse(factor, fault_of(error))
            finally:
                self.decoder = self._full.decoder  # another one may have gone on

    def _best(self, downsample: int, most: int) -> tuple[int, Decoded]:
        """Return the downsample of the coarsest level that may be used, at most `most`, and the level."""
        known = (*self._waiting, *self._trusted)
        for factor in sorted((factor for factor in known if factor <= most and downsample % factor == 0), reverse=True):
            if factor in self._waiting:
                self._judge(self._waiting.pop(factor))
            if factor in self._trusted:
                return factor, self._trusted[factor]
        return 1, self._full

    def _judge(self, level: LevelFile) -> None:
        """Open a level and compare it with level 0, or with a level that was: trust it, or refuse it."""
        try:
            slide = level.open()
            compared = None if (fault := self._fault_of(slide)) else self._compared(level.downsample, slide)
        except SlideError as error:
            self._refuse(level.downsample, fault_of(error))
            return
        fault = compared.fault(self._allowed) if compared else fault
        if fault is None:
            self._trusted[level.downsample] = slide
        else:
            self._refuse(level.downsample, fault, compared)

    def _fault_of(self, slide: Decoded) -> LevelFault | None:
        """Return why an opened level is not used, whatever it shows; None: its pixels decide."""
        if slide.sequential and not self.sequential:  # it needs its tiles in order, and they come in any
            return LevelFault.UNSUPPORTED
        doubts = set(slide.facts.get("notes", ())) - set(self.facts.get("notes", ()))  # absent tiles, guessed sizes
        return LevelFault.DAMAGED if doubts else None

    def _refuse(self, downsample: int, fault: LevelFault, compared: Comparison | None = None) -> None:
        """Leave out a level, and write into the facts that it is."""
        self._trusted.pop(downsample, None)
        self._waiting.pop(downsample, None)
        row: dict[str, Any] = {"downsample": downsample, "code": fault}
        if compared is not None:
            row |= {name: round(value, 2) for name, value in asdict(compared).items()}
        self.facts["levels_refused"] = [*self.facts.get("levels_refused", ()), row]
        if fault is not LevelFault.UNPROVEN:  # then nothing is wrong with the file
            self.facts["notes"] = list(dict.fromkeys([*self.facts.get("notes", ()), Reason.LEVEL_REFUSED]))

    def _compared(self, factor: int, slide: Decoded) -> Comparison:
        """Compare a level with finer pixels on a few squares."""
        side = factor * max(LEVEL_PX, SQUARE_PX // factor // 2 * 2)  # of the level, an even number of pixels
        xy = self._squares(side)
        if not xy:
            return Comparison(0.0, 0.0, 0.0, 0.0)
        pixels = side // factor
        expected = np.stack(list(self._tiles(xy, pixels, (factor, factor // REFERENCE_TIMES), WHITE)))  # [n, px, px, 3]
        shown = np.stack(list(slide.tiles([(x // factor, y // factor) for x, y in xy], pixels, 1, WHITE)))
        differences = expected.astype(np.float32) - shown
        contrast = np.abs(expected - expected.mean(axis=(1, 2), keepdims=True)).mean(axis=(1, 2, 3))  # [n]
        pairs = differences.reshape(len(xy), pixels // 2, 2, pixels // 2, 2, 3).mean(axis=(2, 4))
        averaged = np.abs(pairs).mean(axis=(1, 2, 3))  # [n]
        worst = averaged[averaged > MAX_PART * contrast].max(initial=0.0)
        return Comparison(
            float(np.abs(differences).mean()), float(averaged.mean()), float(contrast.mean()), float(worst)
        )

    def _squares(self, side_px: int) -> list[tuple[int, int]]:
        """Return the corners of squares to compare, multiples of their side, sorted by row.

        In each part of the slide, it is the one whose weight is nearest to that of typical tissue. None of a slide that
        is too small, or of one in rows that is too large.
        """
        shape = (self.height_px // side_px, self.width_px // side_px)
        # In rows, each square costs all rows above it: a large slide is not compared, and its levels are unproven.
        if 0 in shape or (self.sequential and self.height_px * self.width_px > MAX_ROWS_PX):
            return []
        off = self._untypical(side_px, shape)
        corners = []
        for rows in np.array_split(np.arange(shape[0]), SQUARES):
            for columns in np.array_split(np.arange(shape[1]), SQUARES):
                if len(rows) and len(columns):
                    part = off[np.ix_(rows, columns)]
                    row, column = np.unravel_index(int(part.argmin()), part.shape)
                    corners.append((int(columns[column]) * side_px, int(rows[row]) * side_px))
        return sorted(corners, key=lambda xy: xy[::-1])

    def _untypical(self, side_px: int, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Return for every square of a grid, [shape], how far it is from typical tissue.

        It is the difference in compressed bytes of the tile in its middle from the median above background; without
        tiles, the distance from the slide's middle.
        """
        table = self.table
        rows, columns = (np.arange(count) * side_px + side_px // 2 for count in shape)
        if table is None or not table.tiled:
            return np.asarray(np.abs(rows - rows.mean())[:, None] + np.abs(columns - columns.mean()))
        counts = table.counts[np.ix_(rows // table.height_px, columns // table.width_px)]
        fuller = counts[counts > background_bytes(table.counts[table.counts > 0])[1]]
        return np.asarray(np.abs(counts - median(fuller if fuller.size else counts.ravel())))


def fault_of(error: SlideError) -> LevelFault:
    """Return the fault of a level that could not be read."""
    return LevelFault.UNSUPPORTED if error.reason is Reason.UNSUPPORTED else LevelFault.DAMAGED
