"""Define the jobs of the benchmark: which tiles a contender cuts."""

from dataclasses import dataclass, replace

from clotkit.config import TilingConfig

PYRAMIDS = ("pyramid", "subifd", "svs")  # layouts with levels


@dataclass(frozen=True)
class Job:
    """The tiles to cut from one slide."""

    name: str
    tile_px: int
    downsample: int  # slide pixels per tile pixel
    most: int  # tiles
    least_share: float  # of tissue in a tile

    @property
    def side_px(self) -> int:
        """The side of a tile in the slide."""
        return self.tile_px * self.downsample

    @property
    def tiling(self) -> TilingConfig:
        """The settings for clotkit, whose best tiles have half tissue where a slide has such tiles."""
        tiling = TilingConfig("patches", self.tile_px, self.downsample, max_tiles=self.most, batch_tiles=4)
        return replace(tiling, min_tissue_share=self.least_share) if self.least_share else tiling


BEST = Job("16 best", 256, 4, 16, 0.0)
EVERY = Job("every tissue tile", 224, 4, 100_000, 0.01)
EVERY_16 = Job("every tissue tile at 1/16", 224, 16, 100_000, 0.01)
