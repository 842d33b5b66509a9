"""From a slide to tiles: generators of uint8 batches in bounded memory, each tiler known to recipes by one word."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.errors import ConfigError, NoTissue
from clotkit.slides.reader import Pixels, Slide, open_slide
from clotkit.slides.tissue import TissueMap, find_tissue

CELLS = 16  # overview pixels along a tile's side: enough to know its tissue share to 1/256
SHARES = (0.5, 0.25, 0.1, 0.0)  # least tissue share of a tile, relaxed until a slide gives a tile


@dataclass(frozen=True)
class Batch:
    """Tiles of one slide: `tiles` uint8[n, tile_px, tile_px, 3], `xy` int32[n, 2] top left corners, full resolution."""

    tiles: Pixels
    xy: npt.NDArray[np.int32]


Tiler = Callable[[Slide, TilingConfig], Iterator[dict[str, Any] | Batch]]


def tile_slide(path: Path, config: TilingConfig) -> Iterator[dict[str, Any] | Batch]:
    """Open a slide and yield one dict of facts for the report, then its batches of at most `batch_tiles` tiles.

    Raises SlideError (see errors) when the slide gives no tiles, ConfigError for an unknown tiler.
    """
    tiler = TILERS.get(config.name)
    if tiler is None:
        raise ConfigError(f"tiling.name is {config.name!r}; known: {', '.join(sorted(TILERS))}")
    yield from tiler(open_slide(path), config)


def grid(slide: Slide, config: TilingConfig) -> Iterator[dict[str, Any] | Batch]:
    """A grid of squares of tile_px * shrink px; of those with enough tissue the `max_tiles` best, densest among equals.

    Facts: decoder, width_px, height_px, background, tissue_share, tissue_step, min_share, skipped_share.
    """
    side = config.tile_px * config.shrink
    fine = max(divisor for divisor in range(1, max(1, side // CELLS) + 1) if side % divisor == 0)
    tissue = find_tissue(slide.overview(fine))
    xy, least = choose(tissue, side, fine, config.max_tiles)
    yield {
        "decoder": slide.decoder,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
        "background": list(tissue.background),
        "tissue_share": round(tissue.share, 5),
        "tissue_step": tissue.step,
        "min_share": least,
        "skipped_share": round(slide.skipped_share, 3),
    }
    tiles = slide.tiles(xy, config.tile_px, config.shrink, tissue.background)
    for start in range(0, len(xy), config.batch_tiles):
        corners = xy[start : start + config.batch_tiles]
        yield Batch(np.stack([next(tiles) for _ in corners]), np.array(corners, np.int32))


def choose(tissue: TissueMap, side_px: int, fine: int, most: int) -> tuple[list[tuple[int, int]], float]:
    """The best grid squares of an overview shrunk by `fine`, a divisor of `side_px`.

    Returns their corners in full-resolution pixels, sorted by row, and the least tissue share asked of them.
    Raises NoTissue when no square has any.
    """
    cells = side_px // fine
    share = _block_means(tissue.mask.astype(np.float32), cells)  # [rows, columns]
    density = _block_means(tissue.distance.astype(np.float32), cells)  # [rows, columns]
    for least in SHARES:
        rows, columns = np.nonzero((share >= least) & (share > 0))
        if len(rows):
            break
    else:
        raise NoTissue("no tissue in any square of the grid")
    # Shares are compared to 1/20, so that among full tiles the densest come first; position settles ties.
    order = np.lexsort((columns, rows, -density[rows, columns], -np.rint(share[rows, columns] * 20)))[:most]
    best = sorted((int(rows[i]), int(columns[i])) for i in order)
    return [(column * side_px, row * side_px) for row, column in best], least


def _block_means(values: npt.NDArray[np.float32], cells: int) -> npt.NDArray[np.float32]:
    """Means of `cells` x `cells` blocks of [h, w]; blocks beyond the edge count the missing part as 0."""
    height, width = (-(-length // cells) for length in values.shape)
    padded = np.zeros((height * cells, width * cells), np.float32)
    padded[: values.shape[0], : values.shape[1]] = values
    return np.asarray(padded.reshape(height, cells, width, cells).mean(axis=(1, 3)), np.float32)


TILERS: dict[str, Tiler] = {"grid": grid}
