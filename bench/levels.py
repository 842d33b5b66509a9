"""Read pyramids: a tissue map from a low level, then each tile from the best level for its downsample."""

from pathlib import Path
from typing import Any

import numpy as np

from bench.jobs import Job
from bench.peer_scripts.common import VIEW, Pixels, best_squares
from bench.peers import blockwise_view


def openslide_levels(path: Path, job: Job) -> int:
    """Cut a job's tiles with OpenSlide."""
    import openslide

    with openslide.OpenSlide(path) as slide:
        return _level_loop(slide, job)


def tiffslide_levels(path: Path, job: Job) -> int:
    """Run the same loop with tiffslide, which has OpenSlide's interface."""
    import tiffslide

    with tiffslide.TiffSlide(path) as slide:
        return _level_loop(slide, job)


def _level_loop(slide: Any, job: Job) -> int:
    level = slide.get_best_level_for_downsample(job.downsample)
    side_px = round(job.side_px / slide.level_downsamples[level])
    tiles = []
    for corner in best_squares(_view(slide), slide.dimensions, job):
        tile = slide.read_region(corner, level, (side_px, side_px)).convert("RGB")
        if side_px != job.tile_px:
            tile = tile.resize((job.tile_px, job.tile_px), 4)  # Image.Resampling.BOX: means, as everyone here has
        tiles.append(np.asarray(tile))
    return len(tiles)


def _view(slide: Any) -> Pixels:
    """Return the slide downsampled by VIEW, from the best level for that."""
    level = slide.get_best_level_for_downsample(VIEW)
    if not level:
        return blockwise_view(slide)
    width, height = slide.dimensions
    whole = slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB")
    return np.asarray(whole.resize((-(-width // VIEW), -(-height // VIEW)), 4))
