"""Cut a job's tiles with lazyslide: its tissue contours, its grid within them, its tile images."""

import importlib
from typing import Any

import numpy as np

from bench.peer_scripts.common import Run, Tiles, downsampled, measured

MPP = 0.25  # micrometres per pixel: lazyslide asks for the spacing of tiles


def load() -> Run:
    """Import lazyslide, with its modules that are imported on first use."""
    pp: Any = importlib.import_module("lazyslide").pp
    wsidata: Any = importlib.import_module("wsidata")
    for module in ("openslide", "torch", "wsidata._normalizer"):
        importlib.import_module(module)

    def run(path: str, job: Tiles) -> int:
        slide = wsidata.open_wsi(path, store=None)
        pp.find_tissues(slide)
        pp.tile_tissues(
            slide,
            job.tile_px,
            mpp=MPP * job.downsample,
            slide_mpp=MPP,
            edge=True,
            background_fraction=min(1 - job.least_share, 0.999),
        )
        squares = slide.shapes["tiles"]
        if len(squares) > job.most:
            area = squares.intersection(slide.shapes["tissues"].union_all()).area
            slide.shapes["tiles"] = squares.loc[area.nlargest(job.most).index]
        tiles = []
        for tile in slide.iter.tile_images("tiles"):
            image = np.ascontiguousarray(np.asarray(tile.image)[..., :3])
            tiles.append(downsampled(image, max(1, image.shape[0] // job.tile_px)))
        return len(tiles)

    return run


if __name__ == "__main__":
    measured(load)
