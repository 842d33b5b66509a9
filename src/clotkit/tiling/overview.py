"""A slide seen from afar: its overview, and the tissue on it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.slides.index import Corners, TileIndex, slide_index
from clotkit.slides.pixels import Colour, Pixels, blank, box_sums
from clotkit.slides.reader import Slide
from clotkit.tiling.tissue import MIN_TISSUE_SHARE, THRESHOLDS, TissueMap, TissueRule, find_tissue

Mask = npt.NDArray[np.bool_]

BLOCK_PX = 1024  # side of what is read at a time; where the index wants nothing of it, it is not read at all
OVERVIEW_PX = 32_000_000  # 96 MB: bounds the memory of a recipe with small tiles on a large slide


@dataclass(frozen=True)
class SlideContext:
    """An open slide, its background, and what of it is to be left out: a mask bool[h, w] at `excluded_downsample`."""

    slide: Slide
    background: Colour
    excluded: Mask | None = None
    excluded_downsample: int = 1

    def excluded_share(self, corners: Corners, side_px: int) -> npt.NDArray[np.float64]:
        """The share of squares that is left out, [n]."""
        if self.excluded is None:
            return np.zeros(len(corners))
        return box_means(self.excluded, corners, (side_px, side_px), self.excluded_downsample)

    def excluded_at(self, downsample: int, shape: tuple[int, ...]) -> Mask:
        """What is left out on an overview at `downsample`, bool[shape]."""
        if self.excluded is None:
            return np.zeros(shape, bool)
        rows, columns = (
            np.minimum(np.arange(length) * downsample // self.excluded_downsample, limit - 1)
            for length, limit in zip(shape, self.excluded.shape, strict=True)
        )
        return self.excluded[np.ix_(rows, columns)]


@dataclass(frozen=True)
class Overview:
    """A slide seen from afar: its overview uint8[h, w, 3], shrunk by `downsample`, and the tissue on it."""

    slide: Slide
    pixels: Pixels
    downsample: int
    tissue: TissueMap
    skipped_share: float  # of the slide: what did not have to be read

    def facts(self, least: float) -> dict[str, Any]:
        """What the report says of the slide; `least` is the tissue share that was asked of a tile in the end."""
        return tissue_facts(self.tissue.rule, self.tissue.share, least, self.skipped_share)


def tissue_facts(rule: TissueRule, tissue_share: float, least: float, skipped_share: float) -> dict[str, Any]:
    """What the report says of a slide's tissue, found by `rule`, whichever tiler has looked for it.

    `least` is the tissue share that was asked of a tile in the end, `skipped_share` the part that was not read.
    """
    return {
        "tissue_share": round(tissue_share, 5),
        "tissue_step": rule.threshold,
        "marks_are_tissue": rule.with_marks,
        "min_share": least,
        "skipped_share": round(skipped_share, 3),
    }


def slide_overview(context: SlideContext, downsample: int) -> Overview:
    """The slide at `downsample`, or coarser (bounded_downsample). Raises NoTissue when all is background."""
    slide, background = context.slide, context.background
    downsample = bounded_downsample(slide, downsample)
    for threshold in THRESHOLDS:
        index = slide_index(slide, background, threshold)
        view = read_overview(slide, downsample, background, index)
        if index is None or TissueRule(threshold).mask(view, background).mean() >= MIN_TISSUE_SHARE:
            break
    view[context.excluded_at(downsample, view.shape[:2])] = background
    return Overview(
        slide, view, downsample, find_tissue(view, background), 0.0 if index is None else 1 - index.wanted_share
    )


def bounded_downsample(slide: Slide, downsample: int) -> int:
    """`downsample`, or the next double of it that keeps an overview of the slide within OVERVIEW_PX."""
    while overview_px(slide, downsample) > OVERVIEW_PX:
        downsample *= 2
    return downsample


def overview_px(slide: Slide, downsample: int) -> int:
    """How many pixels an overview at `downsample` has."""
    return -(-slide.width_px // downsample) * -(-slide.height_px // downsample)


def read_overview(slide: Slide, downsample: int, background: Colour, index: TileIndex | None = None) -> Pixels:
    """The whole slide, box-averaged: uint8[ceil(height / downsample), ceil(width / downsample), 3].

    What an index does not want is `background`, and so is what lies beyond the edge.
    """
    cells = max(1, BLOCK_PX // downsample)
    corners = grid_corners(slide.width_px, slide.height_px, cells * downsample)
    if index is not None:
        corners = corners[index.bounds(corners, cells * downsample) > 0]
    xy = [(int(x), int(y)) for x, y in corners]
    view = blank(-(-slide.width_px // downsample), -(-slide.height_px // downsample), background)
    for (x, y), tile in zip(xy, slide.tiles(xy, cells, downsample, background) if xy else (), strict=True):
        part = view[y // downsample : y // downsample + cells, x // downsample : x // downsample + cells]
        part[:] = tile[: part.shape[0], : part.shape[1]]
    return view


def grid_corners(width_px: int, height_px: int, stride_px: int, side_px: int | None = None) -> Corners:
    """Corners of squares at every `stride_px`, row by row, that cover the slide.

    With `side_px`, larger than a step, the last ones reach beyond the edge by less than a step.
    """
    beyond = 0 if side_px is None else side_px - stride_px
    columns = np.arange(0, max(width_px - beyond, 1), stride_px)
    rows = np.arange(0, max(height_px - beyond, 1), stride_px)
    x, y = np.meshgrid(columns, rows)
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)


def box_means(
    values: npt.NDArray[Any], corners: Corners, size_px: tuple[int, int], downsample: int
) -> npt.NDArray[np.float64]:
    """Means of `values` [h, w], an overview at `downsample`, over boxes of `size_px` (width, height): [n].

    What lies beyond the overview's edge counts as 0.
    """
    left, top = np.rint(corners.T / downsample).astype(np.int64)
    right, bottom = (np.rint((corners.T + np.array(size_px)[:, None]) / downsample)).astype(np.int64)
    area = np.maximum(right - left, 1) * np.maximum(bottom - top, 1)
    return np.asarray(box_sums(values, top, bottom, left, right) / area)
