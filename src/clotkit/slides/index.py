"""Find where tissue can be from the compressed sizes of a slide's tiles: the tile index.

No pixel is decoded for it. Empty background compresses to almost nothing, so the byte counts in a tiled file's
directory map the tissue. The index is a hint, so it is checked: a sample of the tiles that it would skip is decoded. If
tissue is among them, the size limit falls. If the limit leaves too little to skip (noise, uncompressed tiles), there is
no index and every tile may have tissue.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.slides.header.table import SegmentTable, background_bytes
from clotkit.slides.pixels import Colour, box_sums
from clotkit.slides.reader import Slide

Corners = npt.NDArray[np.int64]  # [n, 2] x and y of top left corners, full-resolution pixels
Distance = Callable[[int, int], int]  # tile (row, column) -> largest distance from the background, grey levels

CONTENT_SIZED_CODECS = {5, 7, 8, 32946, 33003, 33005, 34712, 50000, 50001}  # tile size depends on content
MIN_SKIPPED = 0.2  # share of all tiles: with less to skip, an index saves nothing
SAMPLED_LARGEST, SAMPLED_SPREAD = 16, 48  # tiles decoded as a check: the largest skipped ones, an even spread
SAMPLED_SMALL, SMALL = 16, 0.75  # and of those below this part of the commonest size: glass may have noise, tissue none
SAMPLE_DOWNSAMPLE = 8  # of the sampled tiles: finer than tilers need
FEW_TILES = 128  # of a smaller level: reading them all costs little more than the check
MAX_LOWERINGS = 8  # times that the limit may fall
LOWERING_FACTOR = 0.5  # the new limit: this part of the way from the mode to the smallest offending tile


@dataclass(frozen=True)
class TileIndex:
    """The tiles of a slide that may have tissue."""

    side_px: int  # of a tile
    wanted: npt.NDArray[np.bool_]  # [rows, columns] may have tissue
    max_distance: float  # of the other tiles from the background, grey levels
    origin_px: tuple[int, int] = (0, 0)  # where the corners of squares are counted from, x and y in the file

    @property
    def wanted_share(self) -> float:
        """Share of the tiles that may have tissue."""
        return float(self.wanted.mean())

    def bounds(self, corners: Corners, side_px: int) -> npt.NDArray[np.float64]:
        """Return an upper bound of the tissue share of squares of `side_px` at `corners`, [n].

        The bound is the area of the wanted tiles that a square touches, over the square's area.
        """
        corners = corners + np.array(self.origin_px)
        left, top = (corners // self.side_px).T
        right, bottom = -((-corners - side_px) // self.side_px).T
        touched = box_sums(self.wanted, top, bottom, left, right)
        return np.asarray(np.minimum(touched * (self.side_px / side_px) ** 2, 1.0))


def slide_index(slide: Slide, background: Colour, threshold: int, downsample: int = 1) -> TileIndex | None:
    """Return the tile index for tissue at least `threshold` grey levels from the background.

    The tiles are those of the level from which the slide is read at `downsample`. Returns None for a slide without an
    index: not tiled, or one on which the index would skip little.
    """
    level = slide.level(downsample)
    table, step = level.table, max(SAMPLE_DOWNSAMPLE, level.downsample)
    if table is None or slide.sequential or table.width_px % step:
        return None
    if level.downsample > 1 and table.counts.size <= FEW_TILES:
        return None
    side = table.width_px

    def distance(row: int, column: int) -> int:
        corner = (column * side, row * side)
        (tile,) = slide.tiles([corner], side // step, step, background)
        return int(np.abs(tile.astype(np.int16) - background).max())

    return verified_index(table, distance, threshold / 2)


def verified_index(table: SegmentTable, distance: Distance, max_distance: float) -> TileIndex | None:
    """Return the index of a tiled slide after checking it on decoded tiles.

    Args:
        table: Where the tiles lie in the file, and their compressed sizes.
        distance: Decodes one tile (row, column) and returns its largest distance from the background in grey levels.
        max_distance: Distance that a skipped tile may have, in grey levels. It is enforced on the sample alone.

    Returns:
        The index, or None if it would skip less than MIN_SKIPPED of the tiles.

    Raises:
        SlideError: `distance` raised it.
    """
    counts = table.counts
    if not table.tiled or table.width_px != table.height_px or table.codec not in CONTENT_SIZED_CODECS:
        return None
    known: dict[tuple[int, int], int] = {}
    mode, limit = background_bytes(counts[counts > 0])  # absent tiles, of 0 bytes, are background
    for _ in range(MAX_LOWERINGS):
        wanted = counts > limit
        if 1 - wanted.mean() < MIN_SKIPPED:
            return None
        sample = _sample(counts, wanted, SMALL * mode)
        for place in sample:
            if place not in known:
                known[place] = distance(*place)
        offenders = [int(counts[place]) for place in sample if known[place] > max_distance]
        if not offenders:
            return TileIndex(table.width_px, wanted, max_distance)
        limit = mode + LOWERING_FACTOR * (min(offenders) - mode)
    return None


def _sample(counts: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_], small: float) -> list[tuple[int, int]]:
    """Return tiles to decode before skipping the rest, (row, column).

    They are the largest ones, and an even spread of the others and of those with less than `small` bytes.
    """
    rows, columns = np.nonzero(~wanted)
    sizes = counts[rows, columns]
    order = np.argsort(-sizes, kind="stable")
    largest, rest = order[:SAMPLED_LARGEST], np.sort(order[SAMPLED_LARGEST:])  # the rest in slide order
    spread = rest[:: max(1, len(rest) // SAMPLED_SPREAD)]
    smaller = np.flatnonzero((sizes < small) & (sizes > 0))
    smaller = smaller[:: max(1, len(smaller) // SAMPLED_SMALL)]
    return [(int(rows[i]), int(columns[i])) for i in np.concatenate([largest, spread, smaller])]
