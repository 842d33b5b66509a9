"""Show a whole slide at once: a sketch from sparse tiles first, then the slide itself, block by block.

A slide without smaller levels takes seconds to minutes to be read whole. Its tile index and a few hundred tiles give a
sketch within half a second. The blocks that are read later replace it; those that somebody looks at come first.
"""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from clotkit.errors import SlideError
from clotkit.slides.pixels import Colour, Pixels, blank, box_mean, padded
from clotkit.slides.reader import Slide
from clotkit.tiling.thumbnail import ThumbnailRecorder, thumbnail_downsample, tissue_shares

SKETCH_S = 0.3  # for reading the tiles of a sketch
SQUARE_PX, SQUARE_DOWNSAMPLE = 256, 8  # of the squares that a sketch is made of
STRIP_PX = 32  # the same of a slide in strips, of which each row costs the whole width
BLOCK_PX = 1024  # side of a block, in pixels of the level that it is read from
SEED = 0  # of the order in which squares and blocks are read

Places = npt.NDArray[np.int64]  # [n, 2] x and y


class Overview:
    """The whole slide at one downsample, read in steps."""

    def __init__(self, slide: Slide, background: Colour, downsample: int, coarsest: int) -> None:
        """Draw the sketch; `coarsest` is the largest downsample at which the overview will be shown."""
        self.downsample = downsample
        self._slide, self._background = slide, background
        self.sketch = read_sketch(slide, background)
        side = max(BLOCK_PX * slide.level(downsample).downsample, downsample, coarsest)
        self._block_px, self._cells = side, side // downsample  # powers of 2
        steps = [downsample << number for number in range((coarsest // downsample).bit_length())]
        self._levels = {  # by downsample; the coarser ones are kept, as averaging them for each tile takes longer
            step: np.empty((-(-slide.height_px // step), -(-slide.width_px // step), 3), np.uint8) for step in steps
        }
        self._known = np.zeros((-(-slide.height_px // side), -(-slide.width_px // side)), bool)
        self._order: list[tuple[int, int]] | None = None  # blocks to read, the last one first
        self._wanted: list[tuple[int, int]] = []  # blocks that somebody looks at, the last one first
        self._pass = self._in_one_pass() if slide.sequential else None
        self.damaged = 0  # blocks that cannot be read: they show the background

    @property
    def share(self) -> float:
        """The share of the slide that was read."""
        return float(self._known.mean())

    @property
    def is_sharp(self) -> bool:
        """True once the whole slide was read."""
        return bool(self._known.all())

    def step(self) -> None:
        """Read one more block."""
        if self._pass is not None:
            next(self._pass, None)
            return
        if self._order is None:
            self._order = _block_order(self._slide, self._known.shape, self._block_px)
        while self._wanted or self._order:
            row, column = (self._wanted or self._order).pop()
            if not self._known[row, column]:
                self._read(row, column)
                return

    def view(self, left: int, top: int, size_px: tuple[int, int], downsample: int) -> tuple[Pixels, bool]:
        """Return a part of the slide, uint8[h, w, 3], and whether all of it was read.

        Args:
            left: of the part, in its own pixels.
            top: the same.
            size_px: width and height of the part, in its own pixels.
            downsample: full-resolution pixels per pixel of the part, a multiple of the overview's.
        """
        width, height = size_px
        level = max(step for step in self._levels if step <= downsample)
        times = downsample // level
        rows = (np.arange(top, top + height) * downsample // self._block_px).clip(0, self._known.shape[0] - 1)
        columns = (np.arange(left, left + width) * downsample // self._block_px).clip(0, self._known.shape[1] - 1)
        known = self._known[np.ix_(rows, columns)]  # [height, width]
        part = self._levels[level][top * times : (top + height) * times, left * times : (left + width) * times]
        shown = blank(width, height, self._background)
        if known.any():
            means = box_mean(np.ascontiguousarray(padded(part, times, self._background)), times)[:height, :width]
            shown[: means.shape[0], : means.shape[1]] = means
        if known.all():
            return shown, True
        self._want(rows, columns)
        drawn = self._sketched(left * downsample, top * downsample, size_px, downsample)
        return np.where(known[..., None], shown, drawn), False

    def _want(self, rows: Places, columns: Places) -> None:
        wanted = [
            (row, column) for row in range(rows[0], rows[-1] + 1) for column in range(columns[0], columns[-1] + 1)
        ]
        most = 4 * self._known.size  # older wishes are dropped
        self._wanted = [*self._wanted, *(place for place in wanted if not self._known[place])][-most:]

    def _sketched(self, x_px: int, y_px: int, size_px: tuple[int, int], downsample: int) -> Pixels:
        """Return a part of the sketch, enlarged to `size_px`."""
        from PIL import Image

        picture, step = self.sketch
        right, bottom = (
            min(edge + length * downsample, limit * step) / step  # the last pixels may lie beyond the sketch
            for edge, length, limit in zip((x_px, y_px), size_px, picture.shape[1::-1], strict=True)
        )
        box = (x_px / step, y_px / step, right, bottom)
        drawn = Image.fromarray(picture).resize(size_px, Image.Resampling.BILINEAR, box=box)
        return np.asarray(drawn, np.uint8)

    def _read(self, row: int, column: int) -> None:
        corner = (column * self._block_px, row * self._block_px)
        try:
            (tile,) = self._slide.tiles([corner], self._cells, self.downsample, self._background)
        except SlideError:
            tile = blank(self._cells, self._cells, self._background)
            self.damaged += 1
        self._put(row, column, tile)

    def _put(self, row: int, column: int, tile: Pixels) -> None:
        for step, pixels in self._levels.items():
            times = step // self.downsample
            cells = self._cells // times
            top, left = row * cells, column * cells
            part = pixels[top : top + cells, left : left + cells]
            part[:] = box_mean(tile, times)[: part.shape[0], : part.shape[1]]
        self._known[row, column] = True

    def _in_one_pass(self) -> Iterator[None]:
        """Read the blocks of a slide that is decoded from top to bottom, a block a step."""
        places = [(row, column) for row in range(self._known.shape[0]) for column in range(self._known.shape[1])]
        corners = [(column * self._block_px, row * self._block_px) for row, column in places]
        waiting = iter(places)
        try:
            for tile in self._slide.tiles(corners, self._cells, self.downsample, self._background):
                self._put(*next(waiting), tile)
                yield
        except SlideError:
            for row, column in waiting:
                self._put(row, column, blank(self._cells, self._cells, self._background))
                self.damaged += 1


def read_sketch(slide: Slide, background: Colour) -> tuple[Pixels, int]:
    """Return the sketch of a slide, uint8[h, w, 3], and the full-resolution pixels per pixel of it."""
    recorder = ThumbnailRecorder()
    watched, until = recorder.watch(slide), time.monotonic() + SKETCH_S
    try:
        if slide.sequential:
            _read_rows(
                watched.tiles(_rows_of(slide), STRIP_PX // SQUARE_DOWNSAMPLE, SQUARE_DOWNSAMPLE, background), until
            )
        else:
            for corner in _squares_of(slide):
                next(watched.tiles([corner], SQUARE_PX // SQUARE_DOWNSAMPLE, SQUARE_DOWNSAMPLE, background))
                if time.monotonic() > until:
                    break
    except SlideError:  # what was read until then is shown
        pass
    thumbnail = recorder.thumbnail(background, None)
    if thumbnail is not None:
        return thumbnail.pixels, thumbnail.downsample
    step = thumbnail_downsample(slide.width_px, slide.height_px)
    return blank(-(-slide.width_px // step), -(-slide.height_px // step), background), step


def _read_rows(tiles: Iterator[Pixels], until: float) -> None:
    for _ in tiles:
        if time.monotonic() > until:
            return


def _squares_of(slide: Slide) -> Iterator[tuple[int, int]]:
    """Yield corners of squares, those that may have tissue first, in an order that spreads."""
    step = thumbnail_downsample(slide.width_px, slide.height_px)
    side = max(step, SQUARE_PX)
    shape = (-(-slide.height_px // side), -(-slide.width_px // side))
    for row, column in reversed(_block_order(slide, shape, side)):
        yield column * side, row * side


def _rows_of(slide: Slide) -> list[tuple[int, int]]:
    """Return corners of small squares, row by row: one for each pixel of a sketch, in a few rows."""
    step = thumbnail_downsample(slide.width_px, slide.height_px)
    least = max(step, slide.height_px // 40)
    rows = range(0, slide.height_px, -(-least // step) * step)
    return [(x, y) for y in rows for x in range(0, slide.width_px, step)]


def _block_order(slide: Slide, shape: tuple[int, int], side_px: int) -> list[tuple[int, int]]:
    """Return rows and columns of all blocks, the last one to be read first: tissue is read before glass."""
    shares = tissue_shares(slide, side_px, shape)
    order = np.random.default_rng(SEED).permutation(shares.size)
    order = order[np.argsort(shares.ravel()[order] > 0, kind="stable")]
    return [(int(place) // shape[1], int(place) % shape[1]) for place in order]
