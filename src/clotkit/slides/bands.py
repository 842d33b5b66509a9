"""Cut tiles from a slide that is decoded top to bottom in one pass: strips, PNG and JPEG."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from clotkit.slides.pixels import Colour, Pixels, blank, box_mean, padded

BLOCK_BYTES = 2**22  # full-resolution rows per read; at least the rows of one downsampled row

ReadRows = Callable[[int, int], Pixels]  # (first row, count) -> uint8[count, width, 3]


def tiles_in_one_pass(
    rows: ReadRows,
    size_px: tuple[int, int],
    xy: Sequence[tuple[int, int]],
    tile_px: int,
    downsample: int,
    background: Colour,
    block_px: int = 0,
) -> Iterator[Pixels]:
    """Yield the tiles at `xy` of a slide that is read once, from top to bottom.

    At any time, one block of rows and the tiles it overlaps are in memory. Rows that no tile overlaps are not read.

    Args:
        rows: Reads rows of the slide. It is called with increasing first rows.
        size_px: Width and height of the slide.
        xy: Top left corners in full-resolution pixels, sorted by y; see `reader.Slide.tiles`.
        tile_px: Side of a tile, in its own pixels.
        downsample: Slide pixels per tile pixel.
        background: Colour of what lies beyond the slide's edge.
        block_px: Number of rows that the reader decodes at a time, 0 if any number costs the same.
    """
    waiting, touched = deque(xy), deque[tuple[int, int, Pixels]]()
    across = -(-size_px[0] // downsample)  # columns of the downsampled slide
    if not block_px or block_px % downsample:
        block_px = max(1, BLOCK_BYTES // (3 * size_px[0] * downsample)) * downsample
    for top, band in _bands(
        rows, size_px, [y for _, y in xy], (tile_px * downsample, downsample, block_px), background
    ):
        while waiting and waiting[0][1] // downsample < top + len(band):
            x, y = waiting.popleft()
            touched.append((x // downsample, y // downsample, blank(tile_px, tile_px, background)))
        for x, y, tile in touched:
            first, last = max(top, y), min(top + len(band), y + tile_px)
            if first < last and x < across:
                part = band[first - top : last - top, x : x + tile_px]
                tile[first - y : last - y, : part.shape[1]] = part
        while touched and touched[0][1] + tile_px <= top + len(band):
            yield touched.popleft()[2]
    yield from (tile for _, _, tile in touched)  # tiles that extend beyond the lower edge
    yield from (blank(tile_px, tile_px, background) for _ in waiting)


def _bands(
    rows: ReadRows, size_px: tuple[int, int], tops: Sequence[int], steps_px: tuple[int, int, int], background: Colour
) -> Iterator[tuple[int, Pixels]]:
    """Yield downsampled rows that tiles at `tops` overlap: (first row, uint8[n, width / downsample, 3]).

    `steps_px` holds the side of a tile in slide pixels, the downsample, and the number of rows per read.
    """
    side, downsample, block = steps_px
    done = 0
    for top in tops:
        bottom, first = min(top + side, size_px[1]), max(top, done)
        while first < bottom:
            count = min(block - first % block, bottom - first)
            yield first // downsample, box_mean(padded(rows(first, count), downsample, background), downsample)
            first += count + -count % downsample
        done = max(done, first)
