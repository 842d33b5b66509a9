"""Read a slide's overview, and find the tissue on it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.slides.fallback import Decoded
from clotkit.slides.index import Corners, TileIndex, slide_index
from clotkit.slides.pixels import Colour, Pixels, blank, box_sums
from clotkit.slides.reader import Slide
from clotkit.tissue.background import find_glass
from clotkit.tissue.glass import Glass, GlassSlide
from clotkit.tissue.rules import (
    GREY_RULES,
    MIN_TISSUE_SHARE,
    RULES,
    THRESHOLDS,
    TissueMap,
    TissueRule,
    find_tissue,
)
from clotkit.tissue.surround import ScannedSlide

Mask = npt.NDArray[np.bool_]

BLOCK_PX = 1024  # side of the blocks that are read; a block without a wanted tile is skipped
MAX_OVERVIEW_PX = 32_000_000  # 96 MB: bounds the memory of a recipe with small tiles on a large slide


@dataclass(frozen=True)
class SlideContext:
    """An open slide, its glass, and the area to exclude from tiling; `slide_context` makes one."""

    slide: Slide  # what was scanned, with glass in the place of padding
    judged: Slide  # the file, with glass of one colour in the place of padding, for the tile index
    glass: Glass
    excluded: Mask | None = None  # bool[h, w] of an overview at `excluded_downsample`
    excluded_downsample: int = 1

    @property
    def background(self) -> Colour:
        """Colour of the glass."""
        return self.glass.colour

    @property
    def origin(self) -> tuple[int, int]:
        """Return the corner (x, y) of `slide` in the file: not (0, 0) if that is in a black surround."""
        return self.glass.origin

    def index(self, threshold: int, downsample: int) -> TileIndex | None:
        """Return the tile index of `slide`; see `slides.index.slide_index`."""
        index = slide_index(self.judged, self.background, threshold, downsample)
        return index if index is None else replace(index, origin_px=self.origin)

    @property
    def rules(self) -> tuple[TissueRule, ...]:
        """The tissue rules to try, in this order."""
        return GREY_RULES if self.glass.grey else RULES

    def flattened(self, pixels: Pixels, corner: tuple[int, int], downsample: int) -> Pixels:
        """Return a part of the slide, uint8[h, w, 3], as tissue is judged on it; see `Glass.flattened`."""
        return self.glass.flattened(pixels, corner, (self.slide.width_px, self.slide.height_px), downsample)

    def excluded_share(self, corners: Corners, side_px: int) -> npt.NDArray[np.float64]:
        """Return the excluded share of squares of `side_px` at `corners`, [n]."""
        if self.excluded is None:
            return np.zeros(len(corners))
        return box_means(self.excluded, corners, (side_px, side_px), self.excluded_downsample)

    def excluded_at(self, downsample: int, shape: tuple[int, ...]) -> Mask:
        """Return the excluded area on an overview at `downsample`, bool[shape]."""
        if self.excluded is None:
            return np.zeros(shape, bool)
        rows, columns = (
            np.minimum(np.arange(length) * downsample // self.excluded_downsample, limit - 1)
            for length, limit in zip(shape, self.excluded.shape, strict=True)
        )
        return self.excluded[np.ix_(rows, columns)]


def slide_context(slide: Slide) -> SlideContext:
    """Find the glass of a slide, and return its context."""
    glass = find_glass(slide)
    box, scanned = glass.scanned, slide
    if box is not None:
        scanned = ScannedSlide(slide, box)
    elif glass.places is None:
        return SlideContext(slide, slide, glass)
    shown = scanned if glass.places is None else GlassSlide(scanned, glass)
    return SlideContext(shown, GlassSlide(slide, glass, flatten=True, box=box), glass)


@dataclass(frozen=True)
class Overview:
    """A downsampled slide, and the tissue on it."""

    slide: Slide
    pixels: Pixels  # [h, w, 3]
    downsample: int
    tissue: TissueMap
    skipped_share: float  # of the slide, not read thanks to the tile index

    def facts(self, min_share: float) -> dict[str, Any]:
        """Return the slide's tissue facts for the report; `min_share` is the tissue share required of a tile."""
        level = self.slide.level(self.downsample).downsample
        return tissue_facts(self.tissue.rule, self.tissue.share, min_share, self.skipped_share, level)


def tissue_facts(
    rule: TissueRule, tissue_share: float, min_share: float, skipped_share: float, level: int
) -> dict[str, Any]:
    """Return the facts about a slide's tissue that every tiler reports.

    Args:
        rule: The rule that found the tissue.
        tissue_share: Share of the slide that is tissue.
        min_share: Tissue share that was finally required of a tile.
        skipped_share: Share of the slide that was not read.
        level: Downsample of the level that tiles come from; 1, level 0, is not reported.
    """
    return {
        "tissue_share": round(tissue_share, 5),
        "tissue_step": rule.threshold,
        "marks_are_tissue": rule.with_marks,
        "min_share": min_share,
        "skipped_share": round(skipped_share, 3),
    } | ({"level": level} if level > 1 else {})


def slide_overview(context: SlideContext, downsample: int) -> Overview:
    """Return the overview of a slide at `downsample`, or coarser (see `bounded_downsample`).

    Raises:
        NoTissue: The slide is all background.
    """
    slide, background = context.slide, context.background
    downsample = bounded_downsample(slide, downsample)
    shape = (-(-slide.height_px // downsample), -(-slide.width_px // downsample))
    bare = context.glass.unread(downsample, shape)
    for rule in context.rules[: len(THRESHOLDS)]:
        index = context.index(rule.threshold, downsample)
        view = read_overview(slide, downsample, background, index, bare)
        flat = context.flattened(view, (0, 0), downsample)
        if index is None or rule.mask(flat, background).mean() >= MIN_TISSUE_SHARE:
            break
    excluded = context.excluded_at(downsample, shape)
    view[excluded] = background if bare is None else bare[excluded]
    if flat is not view:
        flat[excluded] = background
    tissue = find_tissue(flat, background, context.rules)
    return Overview(slide, view, downsample, tissue, 0.0 if index is None else 1 - index.wanted_share)


def bounded_downsample(slide: Slide, downsample: int) -> int:
    """Return `downsample`, doubled until an overview of the slide has at most MAX_OVERVIEW_PX pixels."""
    while overview_px(slide, downsample) > MAX_OVERVIEW_PX:
        downsample *= 2
    return downsample


def overview_px(slide: Slide, downsample: int) -> int:
    """Return the number of pixels of an overview at `downsample`."""
    return -(-slide.width_px // downsample) * -(-slide.height_px // downsample)


def read_overview(
    slide: Decoded, downsample: int, background: Colour, index: TileIndex | None = None, bare: Pixels | None = None
) -> Pixels:
    """Return the whole slide, box-averaged: uint8[ceil(height / downsample), ceil(width / downsample), 3].

    Blocks that the index does not want are not read and show `background`, or the overview `bare`, as what lies beyond
    the slide's edge shows `background`.
    """
    cells = max(1, BLOCK_PX // downsample)
    corners = grid_corners(slide.width_px, slide.height_px, cells * downsample)
    if index is not None:
        corners = corners[index.bounds(corners, cells * downsample) > 0]
    xy = [(int(x), int(y)) for x, y in corners]
    size = (-(-slide.width_px // downsample), -(-slide.height_px // downsample))
    view = blank(*size, background) if bare is None else bare.copy()
    for (x, y), tile in zip(xy, slide.tiles(xy, cells, downsample, background) if xy else (), strict=True):
        part = view[y // downsample : y // downsample + cells, x // downsample : x // downsample + cells]
        part[:] = tile[: part.shape[0], : part.shape[1]]
    return view


def grid_corners(width_px: int, height_px: int, stride_px: int, side_px: int | None = None) -> Corners:
    """Return corners of squares at every `stride_px` that cover the slide, row by row: [n, 2].

    With `side_px`, larger than the stride, the last squares extend beyond the edge by less than a stride.
    """
    beyond = 0 if side_px is None else side_px - stride_px
    columns = np.arange(0, max(width_px - beyond, 1), stride_px)
    rows = np.arange(0, max(height_px - beyond, 1), stride_px)
    x, y = np.meshgrid(columns, rows)
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)


def box_means(
    values: npt.NDArray[Any], corners: Corners, size_px: tuple[int, int], downsample: int
) -> npt.NDArray[np.float64]:
    """Return means of `values` [h, w] over boxes of a slide: [n].

    Args:
        values: An overview at `downsample`; beyond its edge values count as 0.
        corners: Top left corners, full-resolution pixels, [n, 2].
        size_px: Width and height of the boxes, full-resolution pixels.
        downsample: Slide pixels per overview pixel.
    """
    left, top = np.rint(corners.T / downsample).astype(np.int64)
    right, bottom = (np.rint((corners.T + np.array(size_px)[:, None]) / downsample)).astype(np.int64)
    area = np.maximum(right - left, 1) * np.maximum(bottom - top, 1)
    return np.asarray(box_sums(values, top, bottom, left, right) / area)
