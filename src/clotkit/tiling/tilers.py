"""From a slide to tiles: a generator of uint8 batches in bounded memory, each tiler known to recipes by one word."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.errors import ConfigError
from clotkit.slides.pixels import Colour, Pixels
from clotkit.slides.reader import Slide, open_slide
from clotkit.tiling.grid_tilers import PlacedTile, TileStream, darkest, patches
from clotkit.tiling.overview import SlideContext, slide_overview
from clotkit.tiling.overview_tilers import chunks, strips, windows
from clotkit.tiling.sections import repeated_area
from clotkit.tiling.stain import Normaliser, fit_normaliser
from clotkit.tiling.tissue import sample_background

Tiler = Callable[[SlideContext, TilingConfig], TileStream]

SECTION_PX = 1024  # the longer side of the overview on which duplicate sections are looked for
SAMPLE_TILES, SAMPLE_BYTES = 48, 2**25  # the first tiles of a slide, on which its colours are fitted


@dataclass(frozen=True)
class Batch:
    """Tiles of one slide: `tiles` uint8[n, tile_px, tile_px, 3], `xy` int32[n, 2] top left corners, full resolution."""

    tiles: Pixels
    xy: npt.NDArray[np.int32]


TILERS: dict[str, Tiler] = {
    "patches": patches,
    "darkest": darkest,
    "windows": windows,
    "chunks": chunks,
    "strips": strips,
}


def tile_slide(path: Path, config: TilingConfig) -> Iterator[dict[str, Any] | Batch]:
    """Open a slide and yield its batches of at most `batch_tiles` tiles, and dicts of facts for the report.

    Raises SlideError (see errors) when the slide gives no tiles, ConfigError for an unknown tiler.
    """
    check_tiler(config)
    yield from cut_slide(open_slide(path), config)


def check_tiler(config: TilingConfig, recipe: str = "") -> None:
    """Raise ConfigError where the recipe, of that name if it has one, asks for an unknown tiler."""
    if config.name not in TILERS:
        where = f"recipe {recipe}: " if recipe else ""
        raise ConfigError(f"{where}tiling.name is {config.name!r}; known: {', '.join(sorted(TILERS))}")


def cut_slide(slide: Slide, config: TilingConfig) -> Iterator[dict[str, Any] | Batch]:
    """The same for an open slide."""
    background = sample_background(slide)
    yield {
        "decoder": slide.decoder,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
        "background": list(background),
    }
    context = SlideContext(slide, background)
    if config.duplicates == "drop":
        context = without_duplicates(context)
        yield {"duplicates_left_out": context.excluded is not None}
    pieces = TILERS[config.name](context, config)
    if config.normalise != "none":
        pieces = normalised(pieces, config.normalise, background)
    yield from batches(pieces, config.batch_tiles)


def without_duplicates(context: SlideContext) -> SlideContext:
    """The context without the sections that repeat another one; itself where none does."""
    downsample = 1
    while max(context.slide.width_px, context.slide.height_px) > SECTION_PX * downsample:
        downsample *= 2
    seen = slide_overview(context, downsample)
    repeated = repeated_area(seen.tissue.mask)
    return SlideContext(context.slide, context.background, repeated, seen.downsample) if repeated.any() else context


def normalised(pieces: TileStream, name: str, background: Colour) -> TileStream:
    """The tiles in the colours of the normaliser `name`, fitted on the first of them, and what it was; facts pass."""
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
                yield from _through(normaliser, waiting)
                waiting = []
    if waiting:
        normaliser = fit_normaliser(name, background, np.stack([tile for _, tile in waiting]))
        yield from _through(normaliser, waiting)


def _through(normaliser: Normaliser, cuts: list[PlacedTile]) -> TileStream:
    yield {"normalised": normaliser.used}
    for corner, tile in cuts:
        yield corner, normaliser(tile[None])[0]


def batches(pieces: TileStream, most: int) -> Iterator[dict[str, Any] | Batch]:
    """Tiles in batches of at most `most`; facts pass."""
    cuts: list[PlacedTile] = []
    for piece in pieces:
        if isinstance(piece, dict):
            yield piece
            continue
        cuts.append(piece)
        if len(cuts) == most:
            yield _batch(cuts)
            cuts = []
    if cuts:
        yield _batch(cuts)


def _batch(cuts: list[PlacedTile]) -> Batch:
    return Batch(np.stack([tile for _, tile in cuts]), np.array([corner for corner, _ in cuts], np.int32))
