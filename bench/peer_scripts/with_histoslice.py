"""Cut a job's tiles with histoslice: its tissue mask (Otsu), its grid, its regions of the best level."""

import importlib
from typing import Any

import numpy as np

from bench.peer_scripts.common import Run, Tiles, best_level, downsampled, measured


def load() -> Run:
    """Import histoslice."""
    histoslice: Any = importlib.import_module("histoslice")
    functional: Any = importlib.import_module("histoslice.functional")

    def run(path: str, job: Tiles) -> int:
        reader = histoslice.SlideReader(path)
        _, mask = reader.get_tissue_mask()
        grid = reader.get_tile_coordinates(mask, job.side_px, max_background=min(1 - job.least_share, 0.999))
        squares = list(grid.coordinates)
        if len(squares) > job.most:
            downsample = functional.get_downsample(mask, reader.dimensions)
            order = np.argsort(functional.get_background_percentages(squares, mask, downsample), kind="stable")
            squares = [squares[at] for at in order[: job.most]]
        level = best_level([max(pair) for pair in reader.level_downsamples.values()], job.downsample)
        tiles = [
            downsampled(tile, max(1, tile.shape[0] // job.tile_px))
            for tile, _ in reader.yield_regions(squares, level=level)
        ]
        return len(tiles)

    return run


if __name__ == "__main__":
    measured(load)
