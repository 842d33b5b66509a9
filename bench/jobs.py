"""Define the jobs of the benchmark: which tiles a contender cuts."""

from dataclasses import dataclass, replace

from bench.peer_scripts.common import Tiles
from clotkit.config import TilingConfig

LARGEST = "largest"  # layout name of the competition's largest slide
PYRAMIDS = ("pyramid", "subifd", "svs")  # layouts with levels
ALL_LAYOUTS = ("deflate", "lzw", "jpeg", "strips", "noisy", *PYRAMIDS)


@dataclass(frozen=True)
class Job(Tiles):
    """The tiles to cut from one slide, with a name."""

    name: str

    @property
    def tiling(self) -> TilingConfig:
        """The settings for clotkit, whose best tiles have half tissue where a slide has such tiles."""
        tiling = TilingConfig("patches", self.tile_px, self.downsample, max_tiles=self.most, batch_tiles=4)
        return replace(tiling, min_tissue_share=self.least_share) if self.least_share else tiling


BEST = Job(256, 4, 16, 0.0, "16 best")
EVERY = Job(224, 4, 100_000, 0.01, "every tissue tile")
EVERY_16 = Job(224, 16, 100_000, 0.01, "every tissue tile at 1/16")
