"""Tilers that choose on an overview: windows, chunks and strips."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.errors import NoTissue
from clotkit.slides.index import Corners
from clotkit.slides.pixels import Pixels, blank
from clotkit.tiling.grid_tilers import PlacedTile, TileStream
from clotkit.tiling.overview import Overview, SlideContext, box_means, grid_corners, slide_overview

WINDOW_SHARES = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
WINDOW_STRIDE = 8  # a window's stride is its side / 8: 28 px of 224
MIN_PIECE_SHARE = 0.01  # least tissue share of a chunk or a strip; below it in all, the best one is taken


def windows(context: SlideContext, config: TilingConfig) -> TileStream:
    """Overlapping squares of tile_px * downsample px at an eighth of a side: the best that do not overlap each other.

    The tissue share asked of them falls from 0.6 to 0 until there are `max_tiles`. Source: the second place of STRIP AI
    (224 px at 1/24, stride 28, at most 20).
    """
    side, stride = config.tile_px * config.downsample, max(1, config.tile_px // WINDOW_STRIDE) * config.downsample
    seen = slide_overview(context, config.downsample)
    corners = grid_corners(context.slide.width_px, context.slide.height_px, stride, side)
    share = box_means(seen.tissue.mask, corners, (side, side), seen.downsample)
    chosen: list[int] = []
    least = WINDOW_SHARES[0]
    for least in WINDOW_SHARES:
        chosen = _apart(corners, share, side, least, config.max_tiles)
        if len(chosen) >= config.max_tiles:
            break
    if not chosen:
        raise NoTissue("no tissue in any window")
    yield seen.facts(least)
    yield from _windows_at(seen, corners[sorted(chosen)], config)


def chunks(context: SlideContext, config: TilingConfig) -> TileStream:
    """Squares of the slide's short side, spread evenly along the long one, each as one tile of tile_px.

    n = ceil(long / short) squares at offsets round(i * (long - short) / (n - 1)), so that none is lost at the far end;
    those without tissue are left out, and of the others `max_tiles` stay. Source: the chunks of the STRIP AI system
    "Approach 1", which read them whole.
    """
    return _along(context, config, piece_grid("chunks", context.slide.width_px, context.slide.height_px))


def strips(context: SlideContext, config: TilingConfig) -> TileStream:
    """The slide cut across its long side into round(long / short) strips, each squeezed into one tile of tile_px.

    Source: the strips of the STRIP AI system "Approach 2"; here what its division left over is spread evenly.
    """
    return _along(context, config, piece_grid("strips", context.slide.width_px, context.slide.height_px))


def piece_grid(name: str, width_px: int, height_px: int) -> tuple[Corners, tuple[int, int]]:
    """Corners [n, 2] and (width, height) of the pieces that chunks or strips, by their `name`, choose from.

    They follow each other along the slide's long side, each across the whole short one; full-resolution pixels.
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
    """The largest power of 2 at which pieces of `size_px` still have a tile's pixels along their shorter side, or 1."""
    return int(1 << max(0, (min(size_px) // tile_px).bit_length() - 1))


def spread(long_px: int, side_px: int, count: int) -> list[int]:
    """Offsets of `count` squares of `side_px` along `long_px`: the first at 0, the last at the far end."""
    if count == 1:
        return [0]
    return [round(i * (long_px - side_px) / (count - 1)) for i in range(count)]


def _apart(corners: Corners, share: npt.NDArray[np.float64], side_px: int, least: float, most: int) -> list[int]:
    """Indices of the best boxes with at least that share, none of which overlaps a better one."""
    chosen: list[int] = []
    free = (share >= least) & (share > 0)
    for index in np.lexsort((corners[:, 0], corners[:, 1], -share)):
        if free[index]:
            chosen.append(int(index))
            free &= (np.abs(corners - corners[index]) >= side_px).any(axis=1)
        if len(chosen) == most:
            break
    return chosen


def _windows_at(seen: Overview, corners: Corners, config: TilingConfig) -> Iterator[PlacedTile]:
    """Tiles at `corners`, sorted by row: out of the overview where it has the recipe's downsample."""
    xy = [(int(x), int(y)) for x, y in corners]
    if seen.downsample != config.downsample:
        yield from zip(xy, seen.slide.tiles(xy, config.tile_px, config.downsample, seen.tissue.background), strict=True)
        return
    for x, y in xy:
        tile = blank(config.tile_px, config.tile_px, seen.tissue.background)
        left, top = x // config.downsample, y // config.downsample
        part = seen.pixels[top : top + config.tile_px, left : left + config.tile_px]
        tile[: part.shape[0], : part.shape[1]] = part
        yield (x, y), tile


def _along(context: SlideContext, config: TilingConfig, pieces: tuple[Corners, tuple[int, int]]) -> TileStream:
    """The pieces, corners [n, 2] and one (width, height), that have tissue in them, each resized to one tile.

    They are cut from an overview of at least tile_px a side: nothing is ever held at full resolution.
    """
    corners, size = pieces
    seen = slide_overview(context, piece_downsample(size, config.tile_px))
    share = box_means(seen.tissue.mask, corners, size, seen.downsample)
    if not share.max():
        raise NoTissue("no tissue in any piece of the slide")
    least = MIN_PIECE_SHARE if share.max() >= MIN_PIECE_SHARE else 0.0
    ranked = np.argsort(-share, kind="stable")[: config.max_tiles if least else 1]
    yield seen.facts(least)
    for corner in corners[np.sort(ranked[share[ranked] >= least])]:
        yield (int(corner[0]), int(corner[1])), _resized(seen, corner, size, config.tile_px)


def _resized(seen: Overview, corner: npt.NDArray[np.int64], size_px: tuple[int, int], tile_px: int) -> Pixels:
    """A box of the overview, resized to a tile with the Lanczos filter, as the sources did."""
    from PIL import Image

    left, top = (int(value) for value in np.rint(corner / seen.downsample))
    right, bottom = (int(value) for value in np.rint((corner + np.array(size_px)) / seen.downsample))
    box = seen.pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    return np.asarray(Image.fromarray(box).resize((tile_px, tile_px), Image.Resampling.LANCZOS))
