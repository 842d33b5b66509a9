"""The tile index: where the tissue can be, from the compressed sizes of a slide's tiles, before a pixel is decoded.

Near-empty background compresses to next to nothing, so a tiled slide's own table of byte counts is a map of it. It is
a hint: a sample of the tiles that it would skip is decoded first. Tissue among them lowers the size that is skipped;
where that leaves little to skip (noise, uncompressed tiles), there is no index, and every tile counts as wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.slides.pixels import Colour, box_sums
from clotkit.slides.reader import Slide
from clotkit.slides.tiff import SegmentTable

Corners = npt.NDArray[np.int64]  # [n, 2] x and y of top left corners, full-resolution pixels
Distance = Callable[[int, int], int]  # of a tile (row, column): largest grey-level distance from the background

CONTENT_SIZED_CODECS = {5, 7, 8, 32946, 33003, 33005, 34712, 50000, 50001}  # their tiles' sizes follow their content
DEVIATIONS = 4.0  # robust standard deviations above the commonest size: still background
MARGIN, MIN_BYTES = 1.25, 32  # and this much above it, where the sizes hardly vary
MIN_SKIPPED = 0.2  # of all tiles: below it the index saves nothing
SAMPLED_LARGEST, SAMPLED_SPREAD = (
    16,
    48,
)  # tiles that are decoded to verify it: those nearest to being wanted, and an even spread
SAMPLE_DOWNSAMPLE = 8  # of those tiles: finer than what a tiler looks at
LOWERINGS, LOWER = 8, 0.5  # how often, and to what part of its way from the mode to an offender, the limit falls


@dataclass(frozen=True)
class TileIndex:
    """Which tiles of a slide may have tissue: `wanted` bool[rows, columns], tiles of `side_px` in each direction.

    The others lie within `within` grey levels of the background.
    """

    side_px: int
    wanted: npt.NDArray[np.bool_]
    max_distance: float

    @property
    def wanted_share(self) -> float:
        """The share of the tiles that is wanted."""
        return float(self.wanted.mean())

    def bounds(self, corners: Corners, side_px: int) -> npt.NDArray[np.float64]:
        """The largest tissue share that squares of `side_px` can have, [n]: the area of the wanted tiles they touch."""
        left, top = (corners // self.side_px).T
        right, bottom = -((-corners - side_px) // self.side_px).T
        touched = box_sums(self.wanted, top, bottom, left, right)
        return np.asarray(np.minimum(touched * (self.side_px / side_px) ** 2, 1.0))


def slide_index(slide: Slide, background: Colour, threshold: int) -> TileIndex | None:
    """Return the tile index for tissue at least `threshold` grey levels from the background, None without one."""
    table = slide.table
    if table is None or slide.sequential or table.width_px % SAMPLE_DOWNSAMPLE:
        return None
    side = table.width_px

    def distance(row: int, column: int) -> int:
        corner = (column * side, row * side)
        (tile,) = slide.tiles([corner], side // SAMPLE_DOWNSAMPLE, SAMPLE_DOWNSAMPLE, background)
        return int(np.abs(tile.astype(np.int16) - background).max())

    return verified_index(table, distance, threshold / 2)


def verified_index(table: SegmentTable, distance: Distance, most: float) -> TileIndex | None:
    """The index of a tiled slide, checked against decoded tiles; None where it would skip little.

    `distance` decodes one tile; what is skipped lies within `most` grey levels of the background, as far as the sample
    of it can tell. Raises what `distance` raises.
    """
    counts = table.counts
    if not table.tiled or table.width_px != table.height_px or table.codec not in CONTENT_SIZED_CODECS:
        return None
    known: dict[tuple[int, int], int] = {}
    mode, limit = background_bytes(counts.ravel())
    for _ in range(LOWERINGS):
        wanted = counts > limit
        if 1 - wanted.mean() < MIN_SKIPPED:
            return None
        sample = _sample(counts, wanted)
        for place in sample:
            if place not in known:
                known[place] = distance(*place)
        offenders = [int(counts[place]) for place in sample if known[place] > most]
        if not offenders:
            return TileIndex(table.width_px, wanted, most)
        limit = mode + LOWER * (min(offenders) - mode)
    return None


def background_bytes(counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The commonest size, and the largest that is still background: above it by its spread, which is taken from below.

    Background is the commonest thing on these slides (half of the largest tissue share ever seen is tissue).
    """
    bins = np.round(np.log2(counts) * 8).astype(np.int64)  # an eighth of a doubling
    values, frequency = np.unique(bins, return_counts=True)
    mode = float(np.median(counts[bins == values[frequency.argmax()]]))
    below = counts[counts <= mode]
    deviation = 1.4826 * float(np.median(mode - below))
    return mode, max(mode + DEVIATIONS * deviation, mode * MARGIN, mode + MIN_BYTES)


def _sample(counts: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Tiles to decode before the others are skipped, (row, column): the largest of them, and an even spread."""
    rows, columns = np.nonzero(~wanted)
    order = np.argsort(-counts[rows, columns], kind="stable")
    largest, rest = order[:SAMPLED_LARGEST], np.sort(order[SAMPLED_LARGEST:])  # the rest in the order of the slide
    spread = rest[:: max(1, len(rest) // SAMPLED_SPREAD)]
    return [(int(rows[i]), int(columns[i])) for i in np.concatenate([largest, spread])]
