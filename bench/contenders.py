"""Name the benchmark's contenders, and which of them have a part in which layout."""

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import levels, limits, peers
from bench.environments import ENVIRONMENTS
from bench.jobs import BEST, EVERY, EVERY_16, PYRAMIDS, Job


@dataclass(frozen=True)
class Contender:
    """One way to do a job with the packages of the kit's environment."""

    run: Callable[[Path], Any]  # path of a slide -> number of tiles
    modules: tuple[str, ...]  # imported before the clock starts
    peer: bool = True  # False for the limits and for clotkit itself
    prepares: bool = False  # `run` is called before the clock starts, and returns what is measured

    def prepared(self, path: Path) -> Callable[[Path], int]:
        """Import the modules it needs, and return what is to be measured."""
        for module in self.modules:
            importlib.import_module(module)
        ready: Callable[[Path], int] = self.run(path) if self.prepares else self.run
        return ready


@dataclass(frozen=True)
class Separate:
    """A peer in an environment of its own that does a job."""

    environment: str
    job: Job


def of_job(who: str, job: Job) -> str:
    """Return the name of a contender that does a job."""
    return f"{who}, {job.name}"


def tissue_limit(name: str) -> str:
    """Return the contender that decodes the tissue alone, for the job of another."""
    return TISSUE_16 if name.endswith(EVERY_16.name) or name == TISSUE_16 else TISSUE


def names_of(layout: str, environments: Collection[str]) -> list[str]:
    """Return the contenders of a layout, with the peers of some environments."""
    pyramid = layout in PYRAMIDS
    jobs = (EVERY, EVERY_16) if pyramid else (BEST,)
    return [*(OF_PYRAMIDS if pyramid else OF_ONE_LEVEL), *(of_job(name, job) for job in jobs for name in environments)]


def is_peer(name: str) -> bool:
    """Return whether a contender is neither clotkit nor a limit."""
    return name in SEPARATE or CONTENDERS[name].peer


def _of_levels(job: Job) -> dict[str, Contender]:
    return {
        of_job("clotkit", job): Contender(partial(peers.ours, job=job), KIT, peer=False),
        of_job(LOOP, job): Contender(partial(levels.openslide_levels, job=job), ("openslide", "PIL.Image")),
        of_job("tiffslide loop", job): Contender(
            partial(levels.tiffslide_levels, job=job), ("tiffslide", "imagecodecs", "PIL.Image")
        ),
    }


def _tissue(downsample: int) -> Contender:
    return Contender(
        partial(limits.tissue_decode, downsample=downsample), ("tifffile", *KIT), peer=False, prepares=True
    )


KIT = ("imagecodecs", "simplejpeg")
LOOP = "OpenSlide loop"
LIMIT, OURS, OURS_EVERY = "libvips whole decode", of_job("clotkit", BEST), of_job("clotkit", EVERY)
TISSUE, TISSUE_16 = "decode of the tissue alone", "decode of the tissue alone at 1/16"
DECODE = {LIMIT: Contender(peers.decode_whole, ("pyvips",), peer=False), TISSUE: _tissue(EVERY.downsample)}
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
OF_PYRAMIDS = DECODE | {TISSUE_16: _tissue(EVERY_16.downsample)} | _of_levels(EVERY) | _of_levels(EVERY_16)
CONTENDERS = OF_ONE_LEVEL | OF_PYRAMIDS
SEPARATE = {of_job(name, job): Separate(name, job) for name in ENVIRONMENTS for job in (BEST, EVERY, EVERY_16)}
