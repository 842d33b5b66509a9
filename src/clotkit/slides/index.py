"""The tile index: where the tissue can be, from the compressed sizes of a slide's tiles, before a pixel is decoded.

Near-empty background compresses to next to nothing, so a tiled slide's own table of byte counts is a map of it. It is a
hint: `Index.sample` names tiles that it would skip, and the reader decodes those first. Where they are not background,
or where the sizes tell nothing apart (strips, uncompressed tiles, noise), the slide is read whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

CODECS = {5, 7, 8, 32946}  # LZW, JPEG, deflate: their tiles' sizes follow their content
DEVIATIONS = 4.0  # robust standard deviations above the commonest size: still background
MARGIN, LEAST_BYTES = 1.25, 32  # and this much above it, where the sizes hardly vary
LEAST_SKIPPED = 0.2  # of all tiles: below it the index saves nothing
LARGEST, SPREAD = 16, 48  # tiles that are decoded to verify it: those nearest to being wanted, and an even spread


@dataclass(frozen=True)
class Index:
    """Which tiles of a slide may have tissue: `wanted` bool[rows, columns], tiles of `side_px` in each direction."""

    side_px: int
    counts: npt.NDArray[np.int64]  # [rows, columns] compressed bytes
    wanted: npt.NDArray[np.bool_]  # [rows, columns]

    def sample(self) -> list[tuple[int, int]]:
        """Tiles to decode before the others are skipped, (row, column): the largest of them, and an even spread."""
        rows, columns = np.nonzero(~self.wanted)
        order = np.argsort(-self.counts[rows, columns], kind="stable")
        largest, rest = order[:LARGEST], np.sort(order[LARGEST:])  # the rest in the order of the slide
        spread = rest[:: max(1, len(rest) // SPREAD)]
        return [(int(rows[i]), int(columns[i])) for i in np.concatenate([largest, spread])]

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """The wanted tiles as runs along a row: (row, first column, one past the last column)."""
        for row, line in enumerate(self.wanted):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
            yield from ((row, int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True))


def read_index(path: Path) -> Index | None:
    """The index of a tiled TIFF's first page; None where its sizes cannot tell background from tissue."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        side, length = int(page.tilewidth), int(page.tilelength)
        if not page.is_tiled or side != length or int(page.compression) not in CODECS or page.planarconfig != 1:
            return None
        shape = (-(-int(page.imagelength) // side), -(-int(page.imagewidth) // side))
        counts = np.array(page.databytecounts, np.int64)
    if counts.size != shape[0] * shape[1] or not counts.min():
        return None
    wanted = (counts > background_bytes(counts)).reshape(shape)
    if 1 - wanted.mean() < LEAST_SKIPPED:
        return None
    return Index(side, counts.reshape(shape), wanted)


def background_bytes(counts: npt.NDArray[np.int64]) -> float:
    """The largest size that is still background: above the commonest one by its spread, which is taken from below it.

    Background is the commonest thing on these slides (half of the largest tissue share ever seen is tissue).
    """
    bins = np.round(np.log2(counts) * 8).astype(np.int64)  # an eighth of a doubling
    values, frequency = np.unique(bins, return_counts=True)
    mode = float(np.median(counts[bins == values[frequency.argmax()]]))
    below = counts[counts <= mode]
    deviation = 1.4826 * float(np.median(mode - below))
    return max(mode + DEVIATIONS * deviation, mode * MARGIN, mode + LEAST_BYTES)
