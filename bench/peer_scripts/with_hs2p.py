"""Cut a job's tiles with hs2p: its tissue mask (HSV), its grid, its reader (OpenSlide)."""

import importlib
from dataclasses import replace
from typing import Any

import numpy as np

from bench.peer_scripts.common import VIEW, Run, Tiles, downsampled, measured

MPP = 0.25  # micrometres per pixel: hs2p asks for the spacing of tiles


def load() -> Run:
    """Import hs2p."""
    hs2p: Any = importlib.import_module("hs2p")
    stream: Any = importlib.import_module("hs2p.wsi.streaming.stream")
    importlib.import_module("openslide")

    def run(path: str, job: Tiles) -> int:
        result = hs2p.tile_slide(
            hs2p.SlideSpec(sample_id="slide", image_path=path, spacing_at_level_0=MPP),
            tiling=hs2p.TilingConfig(
                backend="openslide",
                requested_spacing_um=MPP * job.downsample,
                requested_tile_size_px=job.tile_px,
                tolerance=0.07,
                overlap=0.0,
            ),
            segmentation=hs2p.SegmentationConfig(method="hsv", downsample=VIEW),
        )
        order = np.argsort(-result.tiles.tissue_fractions, kind="stable")[: job.most]
        kept = {name: getattr(result.tiles, name)[order] for name in ("x", "y", "tissue_fractions")}
        result.tiles = replace(result.tiles, **kept, tile_index=None)
        tiles = [
            downsampled(np.ascontiguousarray(tile[..., :3]), max(1, tile.shape[0] // job.tile_px))
            for tile in stream.iter_tile_arrays_from_result(result=result)
        ]
        return len(tiles)

    return run


if __name__ == "__main__":
    measured(load)
