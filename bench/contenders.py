"""Name the benchmark's contenders, and which of them have a part in which layout."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import levels, peers
from bench.jobs import BEST, EVERY, EVERY_16, Job


@dataclass(frozen=True)
class Contender:
    """One way to do a job."""

    run: Callable[[Path], int]  # path of a slide -> number of tiles
    modules: tuple[str, ...]  # imported before the clock starts
    peer: bool = True  # False for the limit and for clotkit itself

    def load(self) -> None:
        """Import the modules it needs."""
        for module in self.modules:
            importlib.import_module(module)


def of_job(who: str, job: Job) -> str:
    """Return the name of a contender that does a job."""
    return f"{who}, {job.name}"


def _of_levels(job: Job) -> dict[str, Contender]:
    return {
        of_job("clotkit", job): Contender(partial(peers.ours, job=job), KIT, peer=False),
        of_job(LOOP, job): Contender(partial(levels.openslide_levels, job=job), ("openslide", "PIL.Image")),
        of_job("tiffslide loop", job): Contender(
            partial(levels.tiffslide_levels, job=job), ("tiffslide", "imagecodecs", "PIL.Image")
        ),
    }


KIT = ("imagecodecs", "simplejpeg")
LOOP = "OpenSlide loop"
LIMIT, OURS, OURS_EVERY = "libvips whole decode", of_job("clotkit", BEST), of_job("clotkit", EVERY)
DECODE = {LIMIT: Contender(peers.decode_whole, ("pyvips",), peer=False)}
OF_ONE_LEVEL = DECODE | {
    OURS: Contender(partial(peers.ours, job=BEST), KIT, peer=False),
    f"{OURS}, no index": Contender(peers.ours_unindexed, KIT, peer=False),
    OURS_EVERY: Contender(partial(peers.ours, job=EVERY), KIT, peer=False),
    "pyvips thumbnail, crops": Contender(peers.vips_thumbnail, ("pyvips",)),
    "OpenSlide grid loop": Contender(peers.openslide_grid, ("openslide", "PIL.Image")),
    "tiffslide grid loop": Contender(peers.tiffslide_grid, ("tiffslide", "imagecodecs", "PIL.Image")),
    "tifffile whole, numpy": Contender(peers.tifffile_whole, ("tifffile", "imagecodecs")),
    "2nd place's recipe": Contender(peers.second_place, ("pyvips",)),
    "25th place's recipe": Contender(peers.twenty_fifth_place, ("pyvips", "PIL.Image")),
    "Approach 1 as it was": Contender(peers.approach_1, ("openslide", "PIL.Image")),
}
OF_PYRAMIDS = DECODE | _of_levels(EVERY) | _of_levels(EVERY_16)
CONTENDERS = OF_ONE_LEVEL | OF_PYRAMIDS
KIT_NAMES = (LIMIT, OURS, OURS_EVERY)
