"""Cut a slide into batches of tiles in bounded memory.

TILERS maps the recipes' tiler names to functions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.errors import ConfigError
from clotkit.slides.pixels import Colour, Pixels
from clotkit.slides.reader import Slide, open_slide
from clotkit.tiling.grid_tilers import PlacedTile, TileStream, darkest, patches
from clotkit.tiling.microns import scale_of
from clotkit.tiling.overview import SlideContext, slide_context, slide_overview
from clotkit.tiling.overview_tilers import chunks, strips, windows
from clotkit.tiling.sections import repeated_area
from clotkit.tiling.stain import Normaliser, fit_normaliser
from clotkit.tissue.glass import Glass

Tiler = Callable[[SlideContext, TilingConfig], TileStream]

SECTION_PX = 1024  # maximum long side of the overview in which duplicate sections are searched
SAMPLE_TILES, SAMPLE_BYTES = 48, 2**25  # limits of the first tiles of a slide, on which a normaliser is fitted


@dataclass(frozen=True)
class Batch:
    """Tiles of one slide."""

    tiles: Pixels  # [n, tile_px, tile_px, 3]
    xy: npt.NDArray[np.int32]  # [n, 2] top left corners, full resolution


TILERS: dict[str, Tiler] = {
    "patches": patches,
    "darkest": darkest,
    "windows": windows,
    "chunks": chunks,
    "strips": strips,
}


def tile_slide(path: Path, config: TilingConfig) -> Iterator[dict[str, Any] | Batch]:
    """Open a slide; yield batches of at most `batch_tiles` tiles, and dicts of facts for the report.

    Raises:
        SlideError: The slide gives no tiles; its subclasses say why.
        ConfigError: The tiler is unknown.
    """
    check_tiler(config)
    yield from cut_slide(open_for(path, config), config)


def open_for(path: Path, config: TilingConfig) -> Slide:
    """Open a slide to be cut as `config` says. Raises SlideError."""
    return open_slide(path, config.levels, config.mpp > 0)


def check_tiler(config: TilingConfig, recipe: str = "") -> None:
    """Check that the tiler is known; `recipe`, if given, names the recipe in the error.

    Raises:
        ConfigError: The tiler is unknown.
    """
    if config.name not in TILERS:
        where = f"recipe {recipe}: " if recipe else ""
        raise ConfigError(f"{where}tiling.name is {config.name!r}; known: {', '.join(sorted(TILERS))}")


def cut_slide(
    slide: Slide, config: TilingConfig, see_glass: Callable[[Glass], None] | None = None
) -> Iterator[dict[str, Any] | Batch]:
    """Yield batches and facts of an open slide; see `tile_slide`. `see_glass` is called with its glass."""
    context = slide_context(slide)
    if see_glass is not None:
        see_glass(context.glass)
    yield {
        "decoder": slide.decoder,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
        **context.glass.facts(),
        **slide.facts,
    }
    facts = dict(slide.facts)
    scale = scale_of(config, slide.facts.get("mpp")) if config.mpp else None
    if scale is not None:
        if scale.codes:
            slide.facts["notes"] = [*slide.facts.get("notes", ()), *scale.codes]
        yield {**slide.facts, **scale.facts()}
    if config.duplicates == "drop":
        context = without_duplicates(context)
        yield {"duplicates_left_out": context.excluded is not None}
    pieces = TILERS[config.name](context, scale.tiling if scale else config)
    if scale is not None:
        pieces = scale.resized(pieces)
    if config.normalise != "none":
        pieces = normalised(pieces, config.normalise, context.background)
    yield from batches(moved(pieces, context.origin), config.batch_tiles)
    if slide.facts != facts:  # another decoder went on where the first one failed, or a level was refused
        yield dict(slide.facts)


def without_duplicates(context: SlideContext) -> SlideContext:
    """Return the context with sections excluded that repeat another one."""
    downsample = 1
    while max(context.slide.width_px, context.slide.height_px) > SECTION_PX * downsample:
        downsample *= 2
    overview = slide_overview(context, downsample)
    repeated = repeated_area(overview.tissue.mask)
    return replace(context, excluded=repeated, excluded_downsample=overview.downsample) if repeated.any() else context


def moved(pieces: TileStream, origin: tuple[int, int]) -> TileStream:
    """Move the corners of tiles from the scanned part, which begins at `origin`, to the file."""
    for piece in pieces:
        yield piece if isinstance(piece, dict) else ((piece[0][0] + origin[0], piece[0][1] + origin[1]), piece[1])


def normalised(pieces: TileStream, name: str, background: Colour) -> TileStream:
    """Normalise the colours of tiles with the normaliser `name`, fitted on the first of them.

    Facts pass through. The name of the normaliser that was used is added to the facts.
    """
    waiting: list[PlacedTile] = []
    normaliser = None
    for piece in pieces:
        if isinstance(piece, dict):
            yield piece
        elif normaliser is not None:
            yield piece[0], normaliser(piece[1][None])[0]
        else:
            waiting.append(piece)
            if len(waiting) == SAMPLE_TILES or len(waiting) * piece[1].nbytes > SAMPLE_BYTES:
                normaliser = fit_normaliser(name, background, np.stack([tile for _, tile in waiting]))
                yield from _normalised_tiles(normaliser, waiting)
                waiting = []
    if waiting:
        normaliser = fit_normaliser(name, background, np.stack([tile for _, tile in waiting]))
        yield from _normalised_tiles(normaliser, waiting)


def _normalised_tiles(normaliser: Normaliser, tiles: list[PlacedTile]) -> TileStream:
    yield {"normalised": normaliser.used}
    for corner, tile in tiles:
        yield corner, normaliser(tile[None])[0]


def batches(pieces: TileStream, batch_tiles: int) -> Iterator[dict[str, Any] | Batch]:
    """Group tiles in batches of at most `batch_tiles`; facts pass through."""
    tiles: list[PlacedTile] = []
    for piece in pieces:
        if isinstance(piece, dict):
            yield piece
            continue
        tiles.append(piece)
        if len(tiles) == batch_tiles:
            yield _batch(tiles)
            tiles = []
    if tiles:
        yield _batch(tiles)


def _batch(tiles: list[PlacedTile]) -> Batch:
    return Batch(np.stack([tile for _, tile in tiles]), np.array([corner for corner, _ in tiles], np.int32))
