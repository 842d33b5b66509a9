"""What a slide will cost, told from its header, its tile index and a few dozen decoded cells: nothing is cut.

Seconds are those that this slide's own pixels take here and now: opening, background and index are timed as a run does
them, then up to SAMPLES cells spread over what the index wants, or up to BLOCKS blocks of rows where the slide is read
in rows. The tissue in these cells stands for that of the cells near them, and the tiler's search is walked through on
it. Where rows cannot be had but from the top (libvips), one block is timed and all of the slide counts as tissue.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.slides.bands import BLOCK_BYTES
from clotkit.slides.direct import CACHE_BYTES
from clotkit.slides.index import SAMPLED_LARGEST, SAMPLED_SPREAD, Corners, TileIndex, slide_index
from clotkit.slides.pixels import Colour, Pixels
from clotkit.slides.reader import Slide, open_slide
from clotkit.slides.tiff import OTHER_CODECS, VIPS_CODECS, Layout, read_layout
from clotkit.tiling.grid_tilers import MAX_HELD_BYTES, TopK, relaxed_min_share, stride_px, tenths
from clotkit.tiling.overview import BLOCK_PX, bounded_downsample, grid_corners, overview_px
from clotkit.tiling.overview_tilers import MIN_PIECE_SHARE, piece_downsample, piece_grid
from clotkit.tiling.tissue import (
    MIN_TISSUE_SHARE,
    RULES,
    SAMPLE_DOWNSAMPLE,
    SAMPLE_GRID,
    SAMPLE_PX,
    THRESHOLDS,
    sample_background,
)
from clotkit.units import MB

T = TypeVar("T")

SAMPLES = 48  # cells that are decoded to time them, and to see how much of what the index wants is tissue
CHECKED = SAMPLED_LARGEST + SAMPLED_SPREAD  # cells that the index decodes, at least
SHRINK = 8  # at which they are looked at, as the index does
CELL_PX = 256  # side of a cell where the slide has no square tiles of its own
ROW_CELL_PX, BLOCKS = 128, 16  # rows of a block, and how many are decoded, where a slide is read in rows
SAMPLED_PX = SAMPLE_PX * SAMPLE_DOWNSAMPLE  # rows of a sample of the background
BATCHES = 3  # copies of a batch on its way: stacked, pickled, in the pipe
VIEW_BYTES = 22  # for a pixel of an overview: its colours, its place in masks, and in two tables of sums

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Forecast:
    """What one slide will give and take by one tiling."""

    tiles: int  # expected
    most_tiles: int  # that can come
    squares: int  # that will be decoded; of a slide in rows and of an overview, its blocks
    decode_s: float
    extra_mb: float  # of memory, beyond what opening the slide took


@dataclass(frozen=True)
class Probe:
    """What the decoded cells of a slide say of all: `share` [rows, columns] is the tissue share of each.

    `opening_s` is what comes before a tiler's first tile. Then each square takes `call_s`, and each of its cells
    `cell_s` where the index wants it and `idle_s` where not; a slide in rows takes `rows_s` in all. `passes` is how
    often everything is looked through before the rule that finds the tissue is known.
    """

    cell_px: int
    share: Floats
    index: TileIndex | None = None
    opening_s: float = 0.0
    call_s: float = 0.0
    cell_s: float = 0.0
    idle_s: float = 0.0
    rows_s: float = 0.0
    passes: int = 0


def forecast(path: Path, tilings: Sequence[TilingConfig]) -> Iterator[dict[str, Any]]:
    """Facts of a slide, as they are found: its header's first, so that they are known whatever its pixels do.

    The keys are those of planning.plan.SlidePlan; the last, `forecasts`, is a list of Forecast as dicts, one a tiling.
    Raises SlideError for a slide that cannot be read, as far as that shows from what is decoded here.
    """
    if path.is_file() and path.stat().st_size:
        yield _header(read_layout(path))
    slide, opened_s = _timed(lambda: open_slide(path))
    yield {
        "decoder": slide.decoder,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
    }
    if slide.sequential:
        probe = _probe_rows(slide, opened_s)
    else:
        background, background_s = _timed(lambda: sample_background(slide))
        index, index_s = _timed(lambda: slide_index(slide, background, THRESHOLDS[0]))
        yield {"wanted_share": 1.0 if index is None else round(index.wanted_share, 4)}
        probe = _probe_cells(slide, background, index, opened_s + background_s + index_s, index_s / CHECKED)
    yield {"forecasts": [asdict(_forecast(slide, tiling, probe)) for tiling in tilings]}


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What comes of it, and the seconds that it took."""
    started = perf_counter()
    return work(), perf_counter() - started


def _header(layout: Layout | None) -> dict[str, Any]:
    """What a file's first bytes and directory say."""
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
    }


def _probe_cells(slide: Slide, background: Colour, index: TileIndex | None, opening_s: float, idle_s: float) -> Probe:
    """Decode cells of what is wanted."""
    side = _cell_px(slide)
    shape = (-(-slide.height_px // side), -(-slide.width_px // side))
    wanted = np.ones(shape, bool) if index is None else index.wanted
    places = _evenly(np.argwhere(wanted), SAMPLES)
    xy = [(int(column) * side, int(row) * side) for row, column in places]

    def decode() -> list[Pixels]:
        return list(slide.tiles(xy, side // SHRINK, SHRINK, background)) if xy else []

    tiles, first_s = _timed(decode)
    # This reader keeps what it has decoded: what takes time again is the asking alone.
    again_s = _timed(decode)[1] if slide.decoder == "direct" else 0.0
    found, passes = _shares(tiles, background)
    call_s = again_s / max(1, len(tiles))
    cell_s = max(0.0, first_s / max(1, len(tiles)) - call_s) * _heavier(slide, wanted, places)
    return Probe(
        side,
        _filled(wanted, places, found),
        index,
        opening_s=opening_s,
        call_s=call_s,
        cell_s=cell_s,
        idle_s=min(max(0.0, idle_s - call_s), cell_s),
        passes=passes,
    )


def _heavier(slide: Slide, wanted: Flags, places: Corners) -> float:
    """The mean bytes of a wanted cell over those of the ones at `places`: it takes so many times as long."""
    if slide.table is None or slide.table.counts.shape != wanted.shape or not len(places):
        return 1.0
    counts = slide.table.counts
    return float(counts[wanted].mean() / counts[places[:, 0], places[:, 1]].mean())


def _evenly(values: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """At most so many of `values` [n, ...], evenly spread from the first to the last."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).astype(int))
    return np.asarray(values[chosen])


def _probe_rows(slide: Slide, opened_s: float) -> Probe:
    """Decode blocks of rows: evenly spread, or the first alone where the others come only after it.

    Seconds follow the compressed bytes where they are known, else the rows. The background is the median colour:
    less than half of a slide is tissue.
    """
    side, direct = ROW_CELL_PX, slide.decoder == "direct"
    shape = (-(-slide.height_px // side), -(-slide.width_px // side))
    rows = _evenly(np.arange(shape[0]), BLOCKS) if direct else np.zeros(1, np.int64)
    xy = [(column * side, int(row) * side) for row in rows for column in range(shape[1])]
    tiles, taken_s = _timed(lambda: list(slide.tiles(xy, side // SHRINK, SHRINK, (255, 255, 255))))
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
    """The part of a slide in rows that blocks of `side_px` at `tops` make the reader decode, 0 to 1."""
    table = slide.table
    if table is None or table.tiled:
        return min(1.0, len(tops) * side_px / slide.height_px)
    counts, strip = table.counts.ravel(), table.height_px
    bottoms = np.minimum(tops + side_px, slide.height_px)
    touched = {
        n for top, end in zip(tops, bottoms, strict=True) for n in range(int(top) // strip, -(-int(end) // strip))
    }
    return float(counts[sorted(touched)].sum() / counts.sum())


def _cell_px(slide: Slide) -> int:
    """The side of a cell: that of the file's own tiles where they are square, as the index has it."""
    table = slide.table
    if table is None or not table.tiled or table.width_px != table.height_px or table.width_px % SHRINK:
        return CELL_PX
    return table.width_px


def _shares(tiles: Sequence[Pixels], background: Colour) -> tuple[Floats, int]:
    """The tissue share of each tile [n], by the first rule that finds some, and 1 where that is not the first of all.

    A search that finds too little looks through everything, and then knows which rule can find more.
    """
    for number, rule in enumerate(RULES):
        shares = np.array([rule.mask(tile, background).mean() for tile in tiles])
        if len(shares) and shares.mean() >= MIN_TISSUE_SHARE:
            return shares, min(number, 1)
    return np.zeros(len(tiles)), 0


def _filled(wanted: Flags, places: Corners, found: Floats) -> Floats:
    """A tissue share for every cell, [rows, columns]: 0 where nothing is wanted, else that of the nearest known cell.

    Cells with an unwanted neighbour have the edge of the tissue in them: they learn from their like.
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
    """The number of the nearest of `places` [k, 2] for each of `cells` [n, 2]; one place at a time, for memory."""
    best, number = np.full(len(cells), np.inf), np.zeros(len(cells), np.int64)
    for index, place in enumerate(places):
        away = ((cells - place) ** 2).sum(axis=1)
        nearer = away < best
        best[nearer], number[nearer] = away[nearer], index
    return number


def box_shares(probe: Probe, corners: Corners, size_px: tuple[int, int]) -> Floats:
    """The tissue share of boxes of `size_px` (width, height) at `corners` [n, 2] (x, y), from the cells' shares: [n].

    Exact for cells of even tissue: the summed-area table is interpolated between the cells' corners. What lies beyond
    the cells counts as 0.
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
    """Of the tilers that search through the squares of a grid."""
    side = config.tile_px * config.downsample
    corners = grid_corners(slide.width_px, slide.height_px, stride_px(config))
    bounds = np.ones(len(corners)) if probe.index is None else probe.index.bounds(corners, side)
    shares = np.minimum(box_shares(probe, corners, (side, side)), bounds)
    candidates = np.flatnonzero(bounds > 0)
    read, tiles = searched(config, bounds, shares)
    if slide.sequential:
        read = candidates  # all of them pass by
        decode_s = probe.rows_s * (1 + probe.passes)
    else:
        read = np.concatenate([read, *[candidates] * probe.passes])
        each_s = bounds[read] * probe.cell_s + (1 - bounds[read]) * probe.idle_s
        decode_s = float((probe.call_s + _cells_of(corners[read], side, probe.cell_px) * each_s).sum())
    most = max(1, min(config.max_tiles, len(candidates)))
    tiles = max(1, tiles)
    held = tiles if most < len(candidates) else 0  # where all are taken they are sent as they come
    tile_bytes = 3 * config.tile_px**2
    across = -(-slide.width_px // stride_px(config))
    kept_bytes = _kept_bytes(slide, config.downsample, len(read) * tile_bytes, across * tile_bytes)
    extra_mb = _extra_mb(config, tiles, held, kept_bytes)
    return Forecast(tiles, most, len(read), probe.opening_s + decode_s, extra_mb)


def searched(config: TilingConfig, bounds: Floats, shares: Floats) -> tuple[npt.NDArray[np.int64], int]:
    """The squares that slides.squares decodes, by index, and how many tiles come: of squares [n] with these shares.

    The search goes through the squares as that of slides.squares does, with `shares` in place of pixels.
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
    """The tissue share that is asked of a square in the end: relaxed until one has it."""
    return relaxed_min_share(config, float(shares.max(initial=0.0)))


def _of_overview(slide: Slide, config: TilingConfig, probe: Probe) -> Forecast:
    """Of the tilers that look at the whole slide from afar, and of windows, which may read their tiles again."""
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
    kept_bytes = _kept_bytes(slide, downsample, 3 * view_px, 3 * slide.width_px * BLOCK_PX // downsample**2)
    extra_mb = _extra_mb(config, tiles, 0, kept_bytes) + VIEW_BYTES * view_px / MB
    return Forecast(tiles, most, len(corners), probe.opening_s + decode_s, extra_mb)


def _piece_grid(slide: Slide, config: TilingConfig) -> tuple[Corners, tuple[int, int]]:
    """Corners and (width, height) of the pieces that a tiler chooses from; windows: as many as lie side by side."""
    if config.name == "windows":
        side = config.tile_px * config.downsample
        return grid_corners(slide.width_px, slide.height_px, side), (side, side)
    return piece_grid(config.name, slide.width_px, slide.height_px)


def _cells_of(corners: Corners, side_px: int, cell_px: int) -> Floats:
    """How many cells squares of `side_px` touch, [n]: more than their area where they lie across the cells."""
    touched = -((-corners - side_px) // cell_px) - corners // cell_px  # [n, 2] columns and rows of cells
    return np.asarray(touched.prod(axis=1), np.float64)


def _extra_mb(config: TilingConfig, tiles: int, held: int, reader_bytes: int) -> float:
    """Memory for `held` tiles that wait for the end of a search, batches on their way, and what the reader keeps."""
    tile_bytes = 3 * config.tile_px**2
    waiting = held * tile_bytes if config.max_tiles * tile_bytes <= MAX_HELD_BYTES else 0  # too many are read again
    batch = BATCHES * min(config.batch_tiles, max(1, tiles)) * tile_bytes
    return (waiting + batch + reader_bytes) / MB


def _kept_bytes(slide: Slide, downsample: int, shrunk_bytes: int, touched_bytes: int) -> int:
    """What a reader keeps. In rows: a strip, a block, and the tiles that it touches, of `touched_bytes`.

    With random access: shrunk pieces, `shrunk_bytes` in all, or whole ones where the downsample does not divide them.
    """
    table = slide.table
    if slide.sequential:
        strip_px = 0 if table is None else table.height_px * slide.width_px
        return 3 * strip_px + BLOCK_BYTES + touched_bytes
    divided = table is not None and table.width_px % downsample == 0 == table.height_px % downsample
    return min(CACHE_BYTES, shrunk_bytes if divided else slide.width_px * slide.height_px * 3)
