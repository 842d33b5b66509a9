"""Tile the plain way: decode the whole slide, judge every square, choose.

The tilers' search is tested against it. What the glass is, and how padding is filled, is the product's own.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from clotkit.config import TilingConfig
from clotkit.slides.header.table import SegmentTable
from clotkit.slides.levels import Level
from clotkit.slides.pixels import Colour, Pixels
from clotkit.tissue.glass import Glass
from clotkit.tissue.marks import marks

THRESHOLDS, SHARES, MIN_TISSUE = (24, 16, 10, 6, 3), (0.5, 0.25, 0.1, 0.0), 5e-4
RULES = [(threshold, with_marks) for with_marks in (False, True) for threshold in THRESHOLDS]
GREY_RULES = [(threshold, True) for threshold in THRESHOLDS[1:]]
Tile = tuple[tuple[int, int], Pixels]


class ArraySlide:
    """A slide that is an array, uint8[h, w, 3]: no file, no index, random access."""

    decoder, sequential = "array", False
    table: SegmentTable | None = None

    def __init__(self, pixels: Pixels) -> None:
        self.pixels, (self.height_px, self.width_px) = pixels, pixels.shape[:2]
        self.facts: dict[str, Any] = {}

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `reader.Slide.tiles`."""
        for corner in xy:
            yield cut(self.pixels, corner, tile_px, downsample, background)

    def level(self, downsample: int) -> Level:
        """Return level 0, the only one; see `levels.Slide.level`."""
        return Level(1, self.table)


def decoded(path: Path) -> Pixels:
    """Return the whole slide as libvips decodes it."""
    return np.ascontiguousarray(pyvips.Image.new_from_file(str(path)).numpy())


def cut(whole: Pixels, corner: tuple[int, int], tile_px: int, downsample: int, background: Colour) -> Pixels:
    """Return one tile, box-averaged and rounded half up, with background beyond the edge."""
    side = tile_px * downsample
    full = np.empty((side, side, 3), np.uint8)
    full[:] = background
    part = whole[corner[1] : corner[1] + side, corner[0] : corner[0] + side]
    full[: part.shape[0], : part.shape[1]] = part
    return downsampled(full, downsample)


def downsampled(pixels: Pixels, downsample: int) -> Pixels:
    height, width = pixels.shape[0] // downsample, pixels.shape[1] // downsample
    sums = pixels.reshape(height, downsample, width, downsample, 3).astype(np.int64).sum(axis=(1, 3))
    return np.floor(sums / downsample**2 + 0.5).astype(np.uint8)


def squares(whole: Pixels, config: TilingConfig, glass: Glass) -> list[Tile]:
    """Return the tiles that patches and darkest should cut, sorted by row.

    There are none if nothing differs from the glass.
    """
    left, top, width, height = glass.scanned or (0, 0, whole.shape[1], whole.shape[0])
    whole = whole[top : top + height, left : left + width]
    stride_px = max(1, round(config.tile_px * (1 - config.overlap))) * config.downsample
    corners = [(x, y) for y in range(0, whole.shape[0], stride_px) for x in range(0, whole.shape[1], stride_px)]
    tiles = [
        glass.filled(cut(whole, corner, config.tile_px, config.downsample, glass.colour), corner, config.downsample)
        for corner in corners
    ]
    cell = next(
        c for c in (64, 32, 16, 8, 4, 2, 1) if (config.tile_px % c == 0 and config.tile_px // c >= 16) or c == 1
    )
    size_px, cell_px = whole.shape[1::-1], cell * config.downsample
    cells = [
        glass.flattened(downsampled(tile, cell), corner, size_px, cell_px)
        for tile, corner in zip(tiles, corners, strict=True)
    ]
    share = tissue_shares(cells, glass, MIN_TISSUE * whole.shape[0] * whole.shape[1] / stride_px**2)
    spread = -(np.arange(1, len(tiles) + 1) * (5**0.5 - 1) / 2 % 1)
    if config.name == "darkest":
        least = 0.1 if share.max() >= 0.1 else 0.0
        shown = [
            glass.flattened(tile, corner, size_px, config.downsample)
            for tile, corner in zip(tiles, corners, strict=True)
        ]
        rank = 255 - np.array([tile.mean() for tile in shown]) - 256 * (share < 0.1)
    else:
        rank = np.minimum(np.floor(share * 10 + 1e-9), 9)
        shares = [
            config.min_tissue_share,
            *(least_share for least_share in SHARES if least_share < config.min_tissue_share),
        ]
        least = next(least_share for least_share in shares if share.max() >= least_share)
    order = [i for i in np.lexsort((-spread, -rank)) if share[i] > 0][: config.max_tiles]
    return [((corners[i][0] + left, corners[i][1] + top), tiles[i]) for i in sorted(order) if share[i] >= least]


def tissue_shares(cells: Sequence[Pixels], glass: Glass, needed: float) -> np.ndarray:
    """Return the tissue share of each square by the first rule that finds enough, or else any: [n].

    `needed` is the sum of the shares that is enough.
    """
    rules = GREY_RULES if glass.grey else RULES
    any_tissue = None
    for rule in rules:
        share = np.array([tissue(cell, glass.colour, *rule).mean() for cell in cells])
        if share.sum() >= needed > 0:
            return share
        if any_tissue is None and share.any():
            any_tissue = share
    return share if any_tissue is None else any_tissue


def tissue(cells: Pixels, background: Colour, threshold: int, with_marks: bool) -> np.ndarray:
    far = np.abs(cells.astype(int) - background).max(axis=2) >= threshold
    return far if with_marks else far & ~marks(cells, background)
