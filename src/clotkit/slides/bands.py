"""Tiles from a slide that is read top to bottom, in one pass: strips, PNG, JPEG."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from clotkit.slides.pixels import Colour, Pixels, blank, box_mean, padded

BLOCK_BYTES = 2**22  # of full-resolution rows at a time, at least as many as make one shrunk row

Rows = Callable[[int, int], Pixels]  # first row and count -> uint8[count, width, 3]


def tiles_in_one_pass(
    rows: Rows,
    size_px: tuple[int, int],
    xy: Sequence[tuple[int, int]],
    tile_px: int,
    downsample: int,
    background: Colour,
    block_px: int = 0,
) -> Iterator[Pixels]:
    """The tiles at `xy`, sorted by y, of a slide of `size_px` (width, height): see reader.Slide.tiles.

    `rows` is asked for rows further and further down, and for none that no tile reaches into; `block_px` is how many of
    them come cheapest at a time. Held at a time: one block of rows, and the tiles that it touches.
    """
    waiting, touched = deque(xy), deque[tuple[int, int, Pixels]]()
    across = -(-size_px[0] // downsample)  # columns of the shrunk slide
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
    yield from (tile for _, _, tile in touched)  # they reach beyond the lower edge
    yield from (blank(tile_px, tile_px, background) for _ in waiting)


def _bands(
    rows: Rows, size_px: tuple[int, int], tops: Sequence[int], steps_px: tuple[int, int, int], background: Colour
) -> Iterator[tuple[int, Pixels]]:
    """Shrunk rows that tiles with these tops reach into: (first row, uint8[n, width / downsample, 3]).

    `steps_px` are the side of a tile, the downsample, and how many rows to ask for at a time.
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
