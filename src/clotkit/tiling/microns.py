"""Cut tiles of a given resolution in micrometres from slides of any resolution.

Three lengths meet here, and each has a type: micrometres per pixel, pixels of the slide, and pixels of a tile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NewType

import numpy as np

from clotkit.config import BOUNDS, TilingConfig
from clotkit.errors import ResolutionUnfit, ResolutionUnknown
from clotkit.reasons import Reason
from clotkit.slides.pixels import Pixels
from clotkit.tiling.grid_tilers import TileStream

Mpp = NewType("Mpp", float)  # micrometres per pixel, along a side
SlidePx = NewType("SlidePx", int)  # pixels of level 0
TilePx = NewType("TilePx", int)  # pixels of a tile as the network sees it

TOLERANCE = 0.05  # a whole downsample within this part of the wanted one is taken, and nothing is resampled
MOST_ENLARGED = 16  # times, along a side


@dataclass(frozen=True)
class Scale:
    """The squares of one slide that become tiles of the wanted resolution."""

    tiling: TilingConfig  # with the downsample, and the side of the squares that are read, in pixels at it
    tile_px: TilePx  # side of a tile: squares of another side are resized
    slide_mpp: Mpp
    codes: tuple[Reason, ...] = ()

    @property
    def side_px(self) -> SlidePx:
        """Side of the square that a tile shows."""
        return SlidePx(self.tiling.tile_px * self.tiling.downsample)

    @property
    def tile_mpp(self) -> Mpp:
        """The resolution that tiles have."""
        return Mpp(self.slide_mpp * self.side_px / self.tile_px)

    def facts(self) -> dict[str, Any]:
        """Return the facts for the report."""
        return {"mpp": self.slide_mpp, "tile_mpp": round(self.tile_mpp, 5), "side_px": self.side_px}

    def resized(self, pieces: TileStream) -> TileStream:
        """Resize squares to tiles; facts pass through."""
        if self.tiling.tile_px == self.tile_px:
            yield from pieces
            return
        for piece in pieces:
            yield piece if isinstance(piece, dict) else (piece[0], _resized(piece[1], self.tile_px))


def scale_of(config: TilingConfig, slide_mpp: Mpp | None) -> Scale:
    """Return the squares that make tiles of `config.mpp` from a slide of `slide_mpp`.

    `slide_mpp` is None if the slide states no resolution. The downsample is the wanted ratio, rounded, if that is
    within TOLERANCE of it. Else it is the next smaller one, and squares are resized. A slide that is coarser than
    wanted is enlarged.

    Raises:
        ResolutionUnknown: The slide states no resolution, and the recipe has no `mpp_default`.
        ResolutionUnfit: The wanted ratio is above the largest downsample of a recipe, or below 1 / MOST_ENLARGED.
    """
    codes = list[Reason]()
    if slide_mpp is None:
        if not config.mpp_default:
            raise ResolutionUnknown(
                "the slide states no plausible size of a pixel, which tiling.mpp needs; set tiling.mpp_default"
            )
        slide_mpp = Mpp(config.mpp_default)
        codes.append(Reason.MPP_DEFAULT)
    ratio, most = config.mpp / slide_mpp, BOUNDS["downsample"][1]
    if not 1 / MOST_ENLARGED <= ratio <= most:
        raise ResolutionUnfit(
            f"tiling.mpp is {config.mpp}, {ratio:.4g} times the slide's {slide_mpp}; "
            f"allowed: 1/{MOST_ENLARGED} to {most} times"
        )
    whole = max(1, round(ratio))
    if abs(whole - ratio) <= TOLERANCE * ratio:
        tiling = replace(config, downsample=whole, mpp=0.0)
    else:
        downsample = max(1, int(ratio))
        tiling = replace(
            config, downsample=downsample, tile_px=max(1, round(config.tile_px * ratio / downsample)), mpp=0.0
        )
    if ratio < 1 - TOLERANCE:
        codes.append(Reason.ENLARGED)
    return Scale(tiling, TilePx(config.tile_px), slide_mpp, tuple(codes))


def side_px(tiling: TilingConfig, facts: Mapping[str, Any]) -> SlidePx:
    """Return the side of the square that a tile of a slide with these facts shows."""
    side = tiling.tile_px * tiling.downsample
    return SlidePx(facts.get("side_px", side) if tiling.mpp else side)


def _resized(square: Pixels, tile_px: TilePx) -> Pixels:
    """Return a square, uint8[n, n, 3], averaged or interpolated to uint8[tile_px, tile_px, 3]."""
    from PIL import Image

    wanted = Image.Resampling.BOX if tile_px < len(square) else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(square).resize((tile_px, tile_px), wanted))
