"""Tilers that choose tiles on an overview: windows, chunks and strips."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.errors import NoTissue
from clotkit.slides.index import Corners
from clotkit.slides.pixels import Pixels, blank
from clotkit.tiling.grid_tilers import LEAST_SHARE, PlacedTile, TileStream
from clotkit.tiling.overview import Overview, SlideContext, box_means, grid_corners, slide_overview

WINDOW_SHARES = (0.6, 0.5, 0.4, 0.3, 0.2, LEAST_SHARE, 0.0)
WINDOW_STRIDE = 8  # windows per side: a stride of 28 px for 224 px
MIN_PIECE_SHARE = 0.01  # least tissue share of a chunk or strip; if all have less, the best one is taken


def windows(context: SlideContext, config: TilingConfig) -> TileStream:
    """Cut overlapping squares at an eighth of a side, and keep the best that do not overlap each other.

    A square has tile_px * downsample px a side. The tissue share required of it falls from 0.6 to 0.1 until there are
    `max_tiles`, and to 0 if there are none. Source: the second place of STRIP AI (224 px at 1/24, stride 28, at most
    20), without that floor.
    """
    side, stride = config.tile_px * config.downsample, max(1, config.tile_px // WINDOW_STRIDE) * config.downsample
    overview = slide_overview(context, config.downsample)
    corners = grid_corners(context.slide.width_px, context.slide.height_px, stride, side)
    share = box_means(overview.tissue.mask, corners, (side, side), overview.downsample)
    chosen: list[int] = []
    min_share = WINDOW_SHARES[0]
    for min_share in WINDOW_SHARES:
        chosen = _non_maximum_suppression(corners, share, side, min_share, config.max_tiles)
        if len(chosen) >= config.max_tiles or (chosen and min_share <= LEAST_SHARE):
            break
    if not chosen:
        raise NoTissue("no tissue in any window")
    yield overview.facts(min_share)
    yield from _windows_at(overview, corners[sorted(chosen)], config)


def chunks(context: SlideContext, config: TilingConfig) -> TileStream:
    """Cut squares of the slide's short side, spread evenly along the long side, each resized to one tile.

    n = ceil(long / short) squares lie at offsets round(i * (long - short) / (n - 1)), so that the far end is covered.
    Squares without tissue are dropped, and the best `max_tiles` of the others kept. Source: the chunks of the STRIP AI
    system "Approach 1", which read them whole.
    """
    return _cut_pieces(context, config, piece_grid("chunks", context.slide.width_px, context.slide.height_px))


def strips(context: SlideContext, config: TilingConfig) -> TileStream:
    """Cut the slide across its long side into round(long / short) strips, each squeezed into one tile.

    Source: the strips of the STRIP AI system "Approach 2"; here the remainder of its division is spread evenly.
    """
    return _cut_pieces(context, config, piece_grid("strips", context.slide.width_px, context.slide.height_px))


def piece_grid(name: str, width_px: int, height_px: int) -> tuple[Corners, tuple[int, int]]:
    """Return the corners [n, 2] and the (width, height) of the pieces that chunks or strips choose from.

    The pieces follow each other along the slide's long side, each across the whole short side. `name` is the tiler's;
    all sizes are in full-resolution pixels.
    """
    long, short = max(width_px, height_px), min(width_px, height_px)
    if name == "chunks":
        offsets, length = spread(long, short, -(-long // short)), short
    else:
        count = max(1, round(round(long / short, 2)))
        offsets, length = [i * long // count for i in range(count)], -(-long // count)
    wide = width_px >= height_px
    corners = np.array([(offset, 0) if wide else (0, offset) for offset in offsets], np.int64)
    return corners, (length, short) if wide else (short, length)


def piece_downsample(size_px: tuple[int, int], tile_px: int) -> int:
    """Return the largest power of 2 at which the shorter side of a piece has `tile_px` pixels, at least 1."""
    return int(1 << max(0, (min(size_px) // tile_px).bit_length() - 1))


def spread(long_px: int, side_px: int, count: int) -> list[int]:
    """Return offsets of `count` squares of `side_px` along `long_px`, from 0 to the far end."""
    if count == 1:
        return [0]
    return [round(i * (long_px - side_px) / (count - 1)) for i in range(count)]


def _non_maximum_suppression(
    corners: Corners, share: npt.NDArray[np.float64], side_px: int, min_share: float, count: int
) -> list[int]:
    """Return indices of the best boxes with a share of at least `min_share` that overlap no better one."""
    chosen: list[int] = []
    free = (share >= min_share) & (share > 0)
    for index in np.lexsort((corners[:, 0], corners[:, 1], -share)):
        if free[index]:
            chosen.append(int(index))
            free &= (np.abs(corners - corners[index]) >= side_px).any(axis=1)
        if len(chosen) == count:
            break
    return chosen


def _windows_at(overview: Overview, corners: Corners, config: TilingConfig) -> Iterator[PlacedTile]:
    """Yield tiles at `corners`, sorted by row, from the overview if it has the recipe's downsample."""
    xy = [(int(x), int(y)) for x, y in corners]
    if overview.downsample != config.downsample:
        yield from zip(
            xy, overview.slide.tiles(xy, config.tile_px, config.downsample, overview.tissue.background), strict=True
        )
        return
    for x, y in xy:
        tile = blank(config.tile_px, config.tile_px, overview.tissue.background)
        left, top = x // config.downsample, y // config.downsample
        part = overview.pixels[top : top + config.tile_px, left : left + config.tile_px]
        tile[: part.shape[0], : part.shape[1]] = part
        yield (x, y), tile


def _cut_pieces(context: SlideContext, config: TilingConfig, pieces: tuple[Corners, tuple[int, int]]) -> TileStream:
    """Yield the pieces with tissue, each resized to one tile.

    `pieces` holds corners [n, 2] and one (width, height). Pieces are cut from an overview with at least tile_px pixels
    along a piece's shorter side; nothing is kept at full resolution.
    """
    corners, size = pieces
    overview = slide_overview(context, piece_downsample(size, config.tile_px))
    share = box_means(overview.tissue.mask, corners, size, overview.downsample)
    if not share.max():
        raise NoTissue("no tissue in any piece of the slide")
    min_share = MIN_PIECE_SHARE if share.max() >= MIN_PIECE_SHARE else 0.0
    ranked = np.argsort(-share, kind="stable")[: config.max_tiles if min_share else 1]
    yield overview.facts(min_share)
    for corner in corners[np.sort(ranked[share[ranked] >= min_share])]:
        yield (int(corner[0]), int(corner[1])), _resized(overview, corner, size, config.tile_px)


def _resized(overview: Overview, corner: npt.NDArray[np.int64], size_px: tuple[int, int], tile_px: int) -> Pixels:
    """Return a box of the overview, resized to a tile with the Lanczos filter, as the sources did."""
    from PIL import Image

    left, top = (int(value) for value in np.rint(corner / overview.downsample))
    right, bottom = (int(value) for value in np.rint((corner + np.array(size_px)) / overview.downsample))
    box = overview.pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    return np.asarray(Image.fromarray(box).resize((tile_px, tile_px), Image.Resampling.LANCZOS))
