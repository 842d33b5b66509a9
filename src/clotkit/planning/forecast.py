"""Forecast the cost of a slide from its header, its tile index and a few dozen decoded cells.

Seconds are those of this slide's own pixels on this machine. Opening, background and index are timed as a run does
them. Then up to SAMPLES cells, spread over the part that the index wants, are decoded; of a slide that is read in rows,
up to BLOCKS blocks of rows. The tissue share of these cells stands for that of the cells near them, and the tiler's
search is simulated on it. If rows can only be read from the top (libvips), one block is timed, and the whole slide
counts as tissue.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clotkit.config import OWN_DOWNSAMPLE, TilingConfig
from clotkit.slides.bands import BLOCK_BYTES
from clotkit.slides.direct import CACHE_BYTES
from clotkit.slides.header.table import SegmentTable
from clotkit.slides.header.tiff import OTHER_CODECS, VIPS_CODECS, Layout, read_layout
from clotkit.slides.index import SAMPLED_LARGEST, SAMPLED_SPREAD, Corners, TileIndex, slide_index
from clotkit.slides.pixels import Colour, Pixels, evenly_spread
from clotkit.slides.reader import Slide, open_slide
from clotkit.tiling.grid_tilers import MAX_HELD_BYTES, TopK, relaxed_min_share, stride_px, tenths
from clotkit.tiling.microns import scale_of
from clotkit.tiling.overview import BLOCK_PX, SlideContext, bounded_downsample, grid_corners, overview_px, slide_context
from clotkit.tiling.overview_tilers import MIN_PIECE_SHARE, piece_downsample, piece_grid
from clotkit.tissue.rules import (
    MIN_TISSUE_SHARE,
    RULES,
    SAMPLE_DOWNSAMPLE,
    SAMPLE_GRID,
    SAMPLE_PX,
    TissueRule,
)
from clotkit.units import MB

T = TypeVar("T")

SAMPLES = 48  # cells that are decoded, for their time and their tissue share
CHECKED = SAMPLED_LARGEST + SAMPLED_SPREAD  # the least number of cells that the index decodes
CELL_DOWNSAMPLE = 8  # at which cells are decoded, as in the index
CELL_PX = 256  # side of a cell, if the file has no square tiles of its own
ROW_CELL_PX, BLOCKS = 128, 16  # rows of a block, and number of decoded blocks, of a slide that is read in rows
SAMPLED_PX = SAMPLE_PX * SAMPLE_DOWNSAMPLE  # rows of a sample of the background
BATCHES = 3  # copies of a batch that is being sent: stacked, pickled, in the pipe
OVERVIEW_BYTES = 22  # a pixel of an overview: its colours, masks, and two summed-area tables

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Forecast:
    """The predicted tiles and costs of one slide with one tiling."""

    tiles: int  # expected
    most_tiles: int  # possible
    squares: int  # that will be decoded; blocks, of a slide that is read in rows and of an overview
    decode_s: float
    extra_mb: float  # of memory, beyond that of opening the slide


@dataclass(frozen=True)
class Probe:
    """The measurements on the decoded cells of a slide."""

    cell_px: int
    share: Floats  # [rows, columns], tissue share of each cell
    index: TileIndex | None = None
    opening_s: float = 0.0  # before a tiler's first tile
    call_s: float = 0.0  # of each square that is read
    cell_s: float = 0.0  # of each of its cells that the index wants
    idle_s: float = 0.0  # of each of its other cells
    rows_s: float = 0.0  # of the whole slide, if it is read in rows
    passes: int = 0  # over everything, before the rule that finds the tissue is known


def forecast(path: Path, tilings: Sequence[TilingConfig]) -> Iterator[dict[str, Any]]:
    """Yield facts of a slide as they become known, those of its header first.

    So the header is known even if decoding fails. The keys are those of planning.plan.SlidePlan; the last one,
    `forecasts`, is a list of Forecast as dicts, one for each tiling.

    Raises SlideError for a slide that cannot be read, as far as the decoded parts show.
    """
    if path.is_file() and path.stat().st_size:
        yield _header(read_layout(path))
    microns = any(one.mpp for one in tilings)
    slide, opened_s = _timed(lambda: open_slide(path, tilings[0].levels, microns))
    tilings = [scale_of(one, slide.facts.get("mpp")).tiling if one.mpp else one for one in tilings]
    yield {
        "decoder": slide.decoder,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
    }
    if slide.sequential:
        probe = _probe_rows(slide, opened_s)
        yield {"forecasts": [asdict(_forecast(slide, tiling, probe)) for tiling in tilings]}
        return
    contexts, probes = dict[str, tuple[Slide, SlideContext, float]](), dict[tuple[str, int], Probe]()
    forecasts = list[Forecast]()
    for tiling in tilings:
        levels = tiling.levels
        if levels not in contexts:  # a run opens the slide once more for a recipe with other levels
            if contexts:
                slide, opened_s = _timed(partial(open_slide, path, levels, microns))
            context, background_s = _timed(partial(slide_context, slide))
            contexts[levels] = (slide, context, opened_s + background_s)
        own, context, opening_s = contexts[levels]
        level, judged_s = _timed(partial(own.level, _downsample(own, tiling)))
        if (levels, level.downsample) not in probes:
            probes[levels, level.downsample] = _probe_cells(context, level.downsample, opening_s + judged_s)
        forecasts.append(_forecast(own, tiling, probes[levels, level.downsample]))
    index = next(iter(probes.values())).index
    yield {"wanted_share": 1.0 if index is None else round(index.wanted_share, 4)}
    yield {"forecasts": [asdict(one) for one in forecasts]}


def _downsample(slide: Slide, tiling: TilingConfig) -> int:
    """Return the downsample at which a tiler reads the slide."""
    if tiling.name not in OWN_DOWNSAMPLE:
        return tiling.downsample
    return piece_downsample(piece_grid(tiling.name, slide.width_px, slide.height_px)[1], tiling.tile_px)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of the work, and the seconds that it took."""
    started = perf_counter()
    return work(), perf_counter() - started


def _header(layout: Layout | None) -> dict[str, Any]:
    """Return the facts of a file's first bytes and its TIFF directory."""
    if layout is None:
        return {"codec": "no TIFF", "layout": "tiled"}
    if layout.codec is None:
        return {"codec": "PNG or JPEG file", "layout": "rows"}
    name = VIPS_CODECS.get(layout.codec) or OTHER_CODECS.get(layout.codec) or f"number {layout.codec}"
    return {
        "codec": name,
        "width_px": layout.width_px,
        "height_px": layout.height_px,
        "layout": "tiled" if layout.tiled else "strips",
        **layout.facts,
    }


def _probe_cells(context: SlideContext, level: int, opening_s: float) -> Probe:
    """Decode and time some of the cells that the index wants, of the level with this downsample."""
    slide, background = context.judged, context.background
    index, index_s = _timed(lambda: slide_index(slide, background, context.rules[0].threshold, level))
    step = max(CELL_DOWNSAMPLE, level)
    table = slide.level(level).table
    side = _cell_px(table, step)
    shape = (-(-slide.height_px // side), -(-slide.width_px // side))
    wanted = np.ones(shape, bool) if index is None else index.wanted
    cells = np.argwhere(wanted)
    places = cells[evenly_spread(len(cells), SAMPLES)]
    xy = [(int(column) * side, int(row) * side) for row, column in places]

    def decode() -> list[Pixels]:
        return list(slide.tiles(xy, side // step, step, background)) if xy else []

    tiles, first_s = _timed(decode)
    # This reader caches decoded cells, so that the second time is that of the calls alone.
    again_s = _timed(decode)[1] if slide.decoder == "direct" else 0.0
    found, passes = _shares(tiles, background, context.rules)
    call_s = again_s / max(1, len(tiles))
    cell_s = max(0.0, first_s / max(1, len(tiles)) - call_s) * _bytes_ratio(table, wanted, places)
    return Probe(
        side,
        _filled(wanted, places, found),
        index,
        opening_s=opening_s + index_s,
        call_s=call_s,
        cell_s=cell_s,
        idle_s=min(max(0.0, index_s / CHECKED - call_s), cell_s),
        passes=passes,
    )


def _bytes_ratio(table: SegmentTable | None, wanted: Flags, places: Corners) -> float:
    """Return the mean compressed bytes of wanted cells over those at `places`, the ratio of their seconds."""
    if table is None or table.counts.shape != wanted.shape or not len(places):
        return 1.0
    counts = table.counts
    return float(counts[wanted].mean() / counts[places[:, 0], places[:, 1]].mean())


def _probe_rows(slide: Slide, opened_s: float) -> Probe:
    """Decode and time blocks of rows, evenly spread, or only the first if rows must be read from the top.

    Seconds are proportional to the compressed bytes if they are known, else to the rows. The background is the median
    colour, because less than half of a slide is tissue.
    """
    side, direct = ROW_CELL_PX, slide.decoder == "direct"
    shape = (-(-slide.height_px // side), -(-slide.width_px // side))
    rows = evenly_spread(shape[0], BLOCKS) if direct else np.zeros(1, np.int64)
    xy = [(column * side, int(row) * side) for row in rows for column in range(shape[1])]
    tiles, taken_s = _timed(lambda: list(slide.tiles(xy, side // CELL_DOWNSAMPLE, CELL_DOWNSAMPLE, (255, 255, 255))))
    rows_s = taken_s / _part_of_rows(slide, rows * side, side)
    opening_s = opened_s + rows_s * (min(1.0, SAMPLE_GRID[1] * SAMPLED_PX / slide.height_px) if direct else 1.0)
    if not direct:
        return Probe(side, np.ones(shape), opening_s=opening_s, rows_s=rows_s)
    red, green, blue = np.median(np.stack(tiles).reshape(-1, 3), axis=0)
    found, passes = _shares(tiles, (int(red), int(green), int(blue)))
    nearest = np.abs(np.arange(shape[0])[:, None] - rows).argmin(axis=1)
    share = found.reshape(len(rows), -1)[nearest]
    return Probe(side, share, opening_s=opening_s, rows_s=rows_s, passes=passes)


def _part_of_rows(slide: Slide, tops: npt.NDArray[np.int64], side_px: int) -> float:
    """Return the share of a slide that the reader decodes for blocks of `side_px` rows at `tops`."""
    table = slide.table
    if table is None or table.tiled:
        return min(1.0, len(tops) * side_px / slide.height_px)
    counts, strip = table.counts.ravel(), table.height_px
    bottoms = np.minimum(tops + side_px, slide.height_px)
    touched = {
        n for top, end in zip(tops, bottoms, strict=True) for n in range(int(top) // strip, -(-int(end) // strip))
    }
    return float(counts[sorted(touched)].sum() / counts.sum())


def _cell_px(table: SegmentTable | None, step: int) -> int:
    """Return the side of a cell: that of a level's own tiles if they are square, as in the index."""
    if table is None or not table.tiled or table.width_px != table.height_px or table.width_px % step:
        return -(-CELL_PX // step) * step
    return table.width_px


def _shares(tiles: Sequence[Pixels], background: Colour, rules: Sequence[TissueRule] = RULES) -> tuple[Floats, int]:
    """Return the tissue share of each tile [n] by the first rule that finds some, and the extra passes.

    A search that finds too little reads everything once more, and then knows which rule finds more. So there is 1 extra
    pass if the rule is not the first one.
    """
    for number, rule in enumerate(rules):
        shares = np.array([rule.mask(tile, background).mean() for tile in tiles])
        if len(shares) and shares.mean() >= MIN_TISSUE_SHARE:
            return shares, min(number, 1)
    return np.zeros(len(tiles)), 0


def _filled(wanted: Flags, places: Corners, found: Floats) -> Floats:
    """Return a tissue share for every cell, [rows, columns].

    It is 0 where nothing is wanted, and else that of the nearest decoded cell of the same kind. There are two kinds:
    cells with an unwanted neighbour, on the edge of the tissue, and all others.
    """
    share = np.zeros(wanted.shape)
    if not len(places):
        return share
    around = np.pad(wanted, 1, constant_values=True)
    rows, columns = wanted.shape
    inside = np.all([around[r : r + rows, c : c + columns] for r in range(3) for c in range(3)], axis=0)
    known_inside = inside[places[:, 0], places[:, 1]]
    for kind, known in ((wanted & inside, known_inside), (wanted & ~inside, ~known_inside)):
        cells = np.argwhere(kind)
        chosen = known if known.any() else np.ones(len(places), bool)
        share[kind] = found[chosen][_nearest(cells, places[chosen])]
    share[places[:, 0], places[:, 1]] = found
    return share


def _nearest(cells: Corners, places: Corners) -> npt.NDArray[np.int64]:
    """Return the index of the nearest of `places` [k, 2] for each of `cells` [n, 2], [n]."""
    best, number = np.full(len(cells), np.inf), np.zeros(len(cells), np.int64)
    for index, place in enumerate(places):  # one place at a time needs little memory
        away = ((cells - place) ** 2).sum(axis=1)
        nearer = away < best
        best[nearer], number[nearer] = away[nearer], index
    return number


def box_shares(probe: Probe, corners: Corners, size_px: tuple[int, int]) -> Floats:
    """Return the tissue share [n] of boxes, from the shares of the cells.

    Exact if the tissue of each cell is evenly spread: the summed-area table is interpolated between the cells' corners.
    Outside the cells there is no tissue.

    Args:
        probe: The measurements on the slide.
        corners: The upper left corners (x, y) of the boxes, [n, 2].
        size_px: The width and height of each box.
    """
    sums = np.pad(probe.share.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    left, top = corners.T / probe.cell_px
    right, bottom = (corners + np.array(size_px)).T / probe.cell_px
    total = (
        _interpolated(sums, bottom, right)
        - _interpolated(sums, top, right)
        - _interpolated(sums, bottom, left)
        + _interpolated(sums, top, left)
    )
    return np.asarray((total * probe.cell_px**2 / (size_px[0] * size_px[1])).clip(0, 1))


def _interpolated(sums: Floats, y: Floats, x: Floats) -> Floats:
    y, x = y.clip(0, sums.shape[0] - 1), x.clip(0, sums.shape[1] - 1)
    top, left = np.minimum(y.astype(int), sums.shape[0] - 2), np.minimum(x.astype(int), sums.shape[1] - 2)
    down, across = y - top, x - left
    upper = sums[top, left] * (1 - across) + sums[top, left + 1] * across
    lower = sums[top + 1, left] * (1 - across) + sums[top + 1, left + 1] * across
    return np.asarray(upper * (1 - down) + lower * down)


def _forecast(slide: Slide, config: TilingConfig, probe: Probe) -> Forecast:
    return (_of_squares if config.name in ("patches", "darkest") else _of_overview)(slide, config, probe)


def _of_squares(slide: Slide, config: TilingConfig, probe: Probe) -> Forecast:
    """Forecast a tiler that searches the squares of a grid."""
    side = config.tile_px * config.downsample
    corners = grid_corners(slide.width_px, slide.height_px, stride_px(config))
    bounds = np.ones(len(corners)) if probe.index is None else probe.index.bounds(corners, side)
    shares = np.minimum(box_shares(probe, corners, (side, side)), bounds)
    candidates = np.flatnonzero(bounds > 0)
    read, tiles = searched(config, bounds, shares)
    if slide.sequential:
        read = candidates  # every row is decoded
        decode_s = probe.rows_s * (1 + probe.passes)
    else:
        read = np.concatenate([read, *[candidates] * probe.passes])
        each_s = bounds[read] * probe.cell_s + (1 - bounds[read]) * probe.idle_s
        decode_s = float((probe.call_s + _cells_of(corners[read], side, probe.cell_px) * each_s).sum())
    most = max(1, min(config.max_tiles, len(candidates)))
    tiles = max(1, tiles)
    held = tiles if most < len(candidates) else 0  # if all candidates are taken, they are sent at once
    tile_bytes = 3 * config.tile_px**2
    across = -(-slide.width_px // stride_px(config))
    cached_bytes = _cached_bytes(slide, config.downsample, len(read) * tile_bytes, across * tile_bytes)
    extra_mb = _extra_mb(config, tiles, held, cached_bytes)
    return Forecast(tiles, most, len(read), probe.opening_s + decode_s, extra_mb)


def searched(config: TilingConfig, bounds: Floats, shares: Floats) -> tuple[npt.NDArray[np.int64], int]:
    """Simulate the search of tiling.grid_tilers, with `shares` in place of pixels.

    Args:
        config: The tiling.
        bounds: The upper bound of each square's tissue share by the index, [n].
        shares: The tissue share of each square, [n].

    Returns:
        The indices of the squares that are decoded, and the number of tiles.
    """
    candidates = np.flatnonzero(bounds > 0)
    most = config.max_tiles
    if config.name == "darkest":
        return candidates, min(most, int((shares > 0).sum()))
    if most >= len(candidates):
        found = shares[candidates]
        return candidates, int(((found > 0) & (found >= _least(config, found))).sum())
    best, ranks, reads = TopK(most, tenths(bounds), config.min_tissue_share), tenths(shares), 0
    order = best.order(candidates)
    for index in order.tolist():
        if best.can_stop(index):
            break
        reads += 1
        best.offer(index, float(ranks[index]), float(shares[index]))
    found = np.array([share for _, _, _, share in best.kept])
    return order[:reads], int((found >= _least(config, found)).sum())


def _least(config: TilingConfig, shares: Floats) -> float:
    """Return the least tissue share of a tile, relaxed until one square has it."""
    return relaxed_min_share(config, float(shares.max(initial=0.0)))


def _of_overview(slide: Slide, config: TilingConfig, probe: Probe) -> Forecast:
    """Forecast a tiler that works on an overview; the tiler windows may read its tiles again."""
    corners, size = _piece_grid(slide, config)
    shares = box_shares(probe, corners, size)
    least = 0.0 if config.name == "windows" else MIN_PIECE_SHARE - 1e-12
    tiles = max(1, min(config.max_tiles, int((shares > least).sum())))
    most = max(1, min(config.max_tiles, len(corners)))
    downsample = bounded_downsample(
        slide, config.downsample if config.name == "windows" else piece_downsample(size, config.tile_px)
    )
    corners = grid_corners(slide.width_px, slide.height_px, BLOCK_PX)
    bounds = np.ones(len(corners)) if probe.index is None else probe.index.bounds(corners, BLOCK_PX)
    corners, bounds = corners[bounds > 0], bounds[bounds > 0]
    again = config.name == "windows" and downsample != config.downsample
    if slide.sequential:
        decode_s = probe.rows_s * (1 + again)
    else:
        each_s = bounds * probe.cell_s + (1 - bounds) * probe.idle_s
        decode_s = float((probe.call_s + _cells_of(corners, BLOCK_PX, probe.cell_px) * each_s).sum())
        decode_s += again * tiles * (config.tile_px * config.downsample / probe.cell_px) ** 2 * probe.cell_s
    view_px = overview_px(slide, downsample)
    cached_bytes = _cached_bytes(slide, downsample, 3 * view_px, 3 * slide.width_px * BLOCK_PX // downsample**2)
    extra_mb = _extra_mb(config, tiles, 0, cached_bytes) + OVERVIEW_BYTES * view_px / MB
    return Forecast(tiles, most, len(corners), probe.opening_s + decode_s, extra_mb)


def _piece_grid(slide: Slide, config: TilingConfig) -> tuple[Corners, tuple[int, int]]:
    """Return the corners and (width, height) of the pieces that a tiler chooses from.

    For windows these are as many as lie side by side.
    """
    if config.name == "windows":
        side = config.tile_px * config.downsample
        return grid_corners(slide.width_px, slide.height_px, side), (side, side)
    return piece_grid(config.name, slide.width_px, slide.height_px)


def _cells_of(corners: Corners, side_px: int, cell_px: int) -> Floats:
    """Return how many cells each square of `side_px` touches, [n], whole or in part."""
    touched = -((-corners - side_px) // cell_px) - corners // cell_px  # [n, 2] columns and rows of cells
    return np.asarray(touched.prod(axis=1), np.float64)


def _extra_mb(config: TilingConfig, tiles: int, held: int, reader_bytes: int) -> float:
    """Return the MB of tiles held until a search ends, batches being sent, and the reader's cache."""
    tile_bytes = 3 * config.tile_px**2
    waiting = held * tile_bytes if config.max_tiles * tile_bytes <= MAX_HELD_BYTES else 0  # else read again
    batch = BATCHES * min(config.batch_tiles, max(1, tiles)) * tile_bytes
    return (waiting + batch + reader_bytes) / MB


def _cached_bytes(slide: Slide, downsample: int, downsampled_bytes: int, touched_bytes: int) -> int:
    """Return the bytes that a reader caches.

    In rows: a strip, a block, and the tiles that the block touches, `touched_bytes`. With random access: downsampled
    pieces, `downsampled_bytes` in all, or full-size ones if the downsample does not divide them.
    """
    table = slide.table
    if slide.sequential:
        strip_px = 0 if table is None else table.height_px * slide.width_px
        return 3 * strip_px + BLOCK_BYTES + touched_bytes
    divided = table is not None and table.width_px % downsample == 0 == table.height_px % downsample
    return min(CACHE_BYTES, downsampled_bytes if divided else slide.width_px * slide.height_px * 3)
