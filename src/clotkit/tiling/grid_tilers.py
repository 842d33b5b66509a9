"""Tilers that cut a grid of squares and rank each square by its own pixels: patches and darkest.

A square is decoded at most once: the same pixels give its tissue share and become the tile. On a slide with random
access, squares are taken in the order of their upper bounds from the tile index, and the search ends when no other
square can be among the K best. On a sequential slide, one pass keeps the K best.
"""

import heapq
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.slides.index import Corners
from clotkit.slides.pixels import Pixels, box_mean
from clotkit.tiling.overview import SlideContext, grid_corners, tissue_facts
from clotkit.tissue.rules import MIN_TISSUE_SHARE, TissueRule, distance, no_tissue

CELLS = 16  # along a tile's side, at least; this resolves the tissue share to 1/256
RELAXED_SHARES = (0.5, 0.25, 0.1, 0.0)  # minimum tissue shares, tried in turn until a slide gives a tile
LEAST_SHARE = 0.1  # tissue share below which a square is as good as bare
FULL_TENTHS = 9  # tenths of tissue that make a square full; full squares are chosen by their spread
GOLDEN = (5**0.5 - 1) / 2  # the fractional parts of its multiples spread evenly: a low-discrepancy sequence
MAX_EXCLUDED = 0.5  # excluded share of a square, above which it is dropped
MAX_HELD_BYTES = 2**25  # tiles held until a search ends; other tiles are read again

PlacedTile = tuple[tuple[int, int], Pixels]  # a tile's top left corner (x, y), full resolution, and the tile
TileStream = Iterator[dict[str, Any] | PlacedTile]


@dataclass(frozen=True)
class Ranking:
    """A way to rank squares."""

    rank: Callable[[Pixels, float], float]  # (tile, tissue share) -> rank, the higher the better
    bound: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]  # bounds of tissue shares -> of ranks


def patches(context: SlideContext, config: TilingConfig) -> TileStream:
    """Cut the `max_tiles` squares with most tissue, by tenths; among equals, evenly spread over the slide."""
    return _squares(context, config, Ranking(lambda _, share: float(tenths(share)), tenths))


def darkest(context: SlideContext, config: TilingConfig) -> TileStream:
    """Cut the `max_tiles` darkest squares that have tissue.

    Those with a share below LEAST_SHARE are taken only if no square has more.

    Source: the winner and the 25th place of STRIP AI took the 16 darkest squares of 1024 px (arXiv 2405.00908).
    """

    def rank(tile: Pixels, share: float) -> float:
        return 255.0 - float(tile.mean()) - 256.0 * (share < least)  # bare squares come last, however dark

    least = min(config.min_tissue_share, LEAST_SHARE)
    ranking = Ranking(rank, lambda bounds: np.full(len(bounds), 255.0))
    return _squares(context, replace(config, min_tissue_share=least), ranking)


def tenths(share: Any) -> Any:
    """Return a tissue share, or an array of them, in tenths, at most FULL_TENTHS."""
    return np.minimum(np.floor(np.asarray(share) * 10 + 1e-9), FULL_TENTHS)


def spread_order(count: int) -> npt.NDArray[np.float64]:
    """Return a number for each of `count` squares, [n], such that the k smallest are spread evenly."""
    return np.arange(1, count + 1, dtype=np.float64) * GOLDEN % 1


def cell_px(tile_px: int) -> int:
    """Return the side of the cells in which a tile is judged, in tile pixels.

    It is a power of 2 that leaves CELLS or more along a tile's side.
    """
    cell = 1
    while tile_px % (2 * cell) == 0 and tile_px // (2 * cell) >= CELLS:
        cell *= 2
    return cell


@dataclass
class _Search:
    """One pass over a slide's squares with one tissue rule, and what it has found so far."""

    context: SlideContext
    rule: TissueRule
    config: TilingConfig
    corners: Corners
    bounds: npt.NDArray[np.float64]  # [n] upper bound of each square's tissue share
    needed_px: float  # tissue area that settles the search
    skipped_distance: float  # largest distance from the background of what the index skips, grey levels
    tissue_px: float = 0.0  # tissue area found
    read_count: int = 0  # squares read
    read_bounds: float = 0.0  # sum of the bounds of the squares read
    max_distance: int = 0  # of any cell read, marks included, from the background, grey levels
    max_share: float = 0.0  # largest tissue share of a square read
    min_share: float = 0.0  # tissue share required of a square

    @property
    def settled(self) -> bool:
        """True once the rule has found enough tissue."""
        return self.tissue_px >= self.needed_px and self.tissue_px > 0

    def read(self, order: Sequence[int]) -> Iterator[tuple[int, Pixels, float]]:
        """Yield each square of `order` as (index, tile, tissue share), decoded on demand."""
        config, context, cell = self.config, self.context, cell_px(self.config.tile_px)
        side = config.tile_px * config.downsample
        advance = (stride_px(config) / side) ** 2  # share of a square's area that no other square covers
        for index, tile in zip(order, self.tiles(order), strict=True):
            cells = context.flattened(box_mean(tile, cell), self.corner(index), cell * config.downsample)
            share = float(self.rule.mask(cells, context.background).mean())
            if self.tissue_px < self.needed_px:
                self.max_distance = max(self.max_distance, int(distance(cells, context.background).max()))
            self.read_count, self.read_bounds = self.read_count + 1, self.read_bounds + float(self.bounds[index])
            self.tissue_px += share * side * side * advance
            self.max_share = max(self.max_share, share)
            yield index, tile, share

    def tiles(self, order: Sequence[int]) -> Iterator[Pixels]:
        """Yield the tiles of squares, given by index."""
        if not len(order):
            return
        xy = [(int(x), int(y)) for x, y in self.corners[list(order)]]
        config, context = self.config, self.context
        yield from context.slide.tiles(xy, config.tile_px, config.downsample, context.background)

    def corner(self, index: int) -> tuple[int, int]:
        """Return the top left corner of a square."""
        return int(self.corners[index, 0]), int(self.corners[index, 1])

    def rank(self, ranking: Ranking, index: int, tile: Pixels, share: float) -> float:
        """Return the rank of a square that was read."""
        return ranking.rank(self.context.flattened(tile, self.corner(index), self.config.downsample), share)

    def relax(self) -> float:
        """Set and return the minimum tissue share: the recipe's, or the next of RELAXED_SHARES."""
        self.min_share = relaxed_min_share(self.config, self.max_share)
        return self.min_share

    def facts(self) -> dict[str, Any]:
        """Return the facts for the report; the tissue of unread squares is estimated from their bounds."""
        area_px = self.context.slide.width_px * self.context.slide.height_px
        per_bound = self.tissue_px / self.read_bounds if self.read_bounds else 0.0
        tissue_share = min(per_bound * float(self.bounds.sum()) / area_px, 1.0)
        level = self.context.slide.level(self.config.downsample).downsample
        return tissue_facts(self.rule, tissue_share, self.min_share, 1 - self.read_count / len(self.bounds), level)


def _squares(context: SlideContext, config: TilingConfig, ranking: Ranking) -> TileStream:
    """Search with one rule after the other until one finds enough tissue.

    If none does, use the first rule that found any tissue.
    """
    fallback, max_distance = None, 256.0
    for rule in context.rules:
        if rule.threshold > max_distance:
            continue  # an earlier search found nothing on the slide so far from the background
        search = _search(context, rule, config, MIN_TISSUE_SHARE)
        if (yield from _cut(search, ranking)):
            return
        max_distance = max(search.max_distance, search.skipped_distance)
        if fallback is None and search.tissue_px:
            fallback = rule
    if fallback is None:
        raise no_tissue(context.background)
    yield from _cut(_search(context, fallback, config, 0.0), ranking)


def _search(context: SlideContext, rule: TissueRule, config: TilingConfig, needed_share: float) -> _Search:
    """Set up a search that is settled once tissue covers `needed_share` of the slide."""
    side, slide = config.tile_px * config.downsample, context.slide
    corners = grid_corners(slide.width_px, slide.height_px, stride_px(config))
    index = context.index(rule.threshold, config.downsample)
    bounds = np.ones(len(corners)) if index is None else index.bounds(corners, side)
    bounds[context.excluded_share(corners, side) > MAX_EXCLUDED] = 0
    needed_px = needed_share * slide.width_px * slide.height_px
    return _Search(context, rule, config, corners, bounds, needed_px, 0.0 if index is None else index.max_distance)


def _cut(search: _Search, ranking: Ranking) -> Generator[dict[str, Any] | PlacedTile, None, bool]:
    """Yield the tiles and facts of a search, and return whether it was settled; if not, it yields nothing."""
    candidates = np.flatnonzero(search.bounds > 0)
    few = search.config.max_tiles >= len(candidates)
    done = yield from _every(search, candidates, ranking) if few else _best(search, candidates, ranking)
    if done:
        yield search.facts()
    return done


def _every(search: _Search, candidates: npt.NDArray[np.int64], ranking: Ranking) -> Generator[PlacedTile, None, bool]:
    """Yield every square with enough tissue, in slide order.

    The first squares are held back until the search is settled and a square has the required share.
    """
    min_share = search.config.min_tissue_share
    waiting: list[tuple[int, float]] = []
    held: dict[int, Pixels] = {}
    ready = False
    for index, tile, share in search.read(candidates.tolist()):
        if share <= 0 or (ready and share < min_share):
            continue
        if ready:
            yield search.corner(index), tile
            continue
        waiting.append((index, share))
        if tile.nbytes * (len(held) + 1) <= MAX_HELD_BYTES:
            held[index] = tile
        if search.settled and search.max_share >= min_share:
            ready, search.min_share = True, min_share
            yield from _emit(search, [i for i, share in waiting if share >= min_share], held)
            waiting, held = [], {}
    if not ready and search.settled:
        min_share = search.relax()
        yield from _emit(search, [i for i, share in waiting if share >= min_share], held)
    return search.settled


class TopK:
    """The `k` squares of the highest rank so far; ties go to the one that spreads them over the slide.

    Args:
        k: Number of squares to keep.
        bounds: Upper bound of each square's rank, [n].
        min_share: Tissue share that is required of a square. Once a square has it, squares that cannot have it are out.
    """

    def __init__(self, k: int, bounds: npt.NDArray[np.float64], min_share: float) -> None:
        self._k, self._bounds, self._min_share = k, bounds, min_share
        self._spread = -spread_order(len(bounds))  # the larger, the earlier
        self._max_share = 0.0
        self.kept: list[tuple[float, float, int, float]] = []  # heap of (rank, spread, index, share)

    def order(self, candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the candidates by descending bound."""
        return candidates[np.lexsort((-self._spread[candidates], -self._bounds[candidates]))]

    def offer(self, index: int, rank: float, share: float) -> int | None:
        """Offer a square. Return the index of the square that is out, `index` itself or another, or None."""
        self._max_share = max(self._max_share, share)
        entry = (rank, float(self._spread[index]), index, share)
        if share <= 0:
            return index
        if len(self.kept) < self._k:
            heapq.heappush(self.kept, entry)
            return None
        return heapq.heappushpop(self.kept, entry)[2]

    def can_stop(self, following: int) -> bool:
        """Return whether no square from `following` on, in `order`, can be kept or have the required share."""
        if len(self.kept) == self._k and self.kept[0][:2] > (self._bounds[following], self._spread[following]):
            return True
        if self._max_share < self._min_share:
            return False
        return bool(self._bounds[following] < tenths(self._min_share))


def _best(search: _Search, candidates: npt.NDArray[np.int64], ranking: Ranking) -> Generator[PlacedTile, None, bool]:
    """Yield the K squares of the highest rank, sorted by row."""
    k, sequential = search.config.max_tiles, search.context.slide.sequential
    best = TopK(k, ranking.bound(search.bounds), search.config.min_tissue_share)
    order = (candidates if sequential else best.order(candidates)).tolist()
    reading = search.read(order)
    held: dict[int, Pixels] = {}
    for following in order:
        if not sequential and search.settled and best.can_stop(following):
            break
        index, tile, share = next(reading)
        out = best.offer(index, search.rank(ranking, index, tile, share), share)
        if out != index and tile.nbytes * k <= MAX_HELD_BYTES:
            held[index] = tile
        if out is not None:
            held.pop(out, None)
    if search.settled:
        min_share = search.relax()
        yield from _emit(search, sorted(index for _, _, index, share in best.kept if share >= min_share), held)
    return search.settled


def _emit(search: _Search, chosen: list[int], held: dict[int, Pixels]) -> Iterator[PlacedTile]:
    """Yield the chosen squares, sorted by row; those that were not held are read again."""
    again = search.tiles([index for index in chosen if index not in held])
    for index in chosen:
        yield search.corner(index), held[index] if index in held else next(again)


def stride_px(config: TilingConfig) -> int:
    """Return the distance between neighbouring squares in slide pixels, a multiple of the downsample."""
    return max(1, round(config.tile_px * (1 - config.overlap))) * config.downsample


def relaxed_min_share(config: TilingConfig, max_share: float) -> float:
    """Return the minimum tissue share: the recipe's, or the largest of RELAXED_SHARES that is reached.

    `max_share` is the largest tissue share of any square.
    """
    return next(share for share in (config.min_tissue_share, *RELAXED_SHARES) if max_share >= share)
