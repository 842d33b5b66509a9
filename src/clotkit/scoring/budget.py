"""Decide how much work each slide gets, from the time that is left before the deadline."""

import time
from collections import deque
from dataclasses import dataclass, field, replace
from enum import IntEnum

from clotkit.config import TilingConfig
from clotkit.reasons import Cause, Reason
from clotkit.workers import Task

FRACTION = 4  # one tile in so many is cut when time is short
COARSENING = 2  # factor on the downsample of a second try: a quarter of the pixels in memory
RECENT = 16  # slides that the pace is measured over


class Budget(IntEnum):
    """The amount of work for a slide; `budget` of a Task."""

    FULL = 0
    FEWER_TILES = 1
    ONE_MEMBER = 2  # fewer tiles, and the first member only
    COARSER = 3  # a second try after the slide's process was lost


CAUSES = {
    Budget.FEWER_TILES: Cause(Reason.FEWER_TILES, f"time was short: one tile in {FRACTION}"),
    Budget.ONE_MEMBER: Cause(Reason.ONE_MEMBER, f"time was short: one tile in {FRACTION}, the first member only"),
    Budget.COARSER: Cause(Reason.COARSER, f"read again at {COARSENING} times the downsample"),
}


@dataclass
class Pace:
    """Keeps the pace of a run: how fast its slides ended so far, and so the budget of the next one."""

    slides: int  # in total
    deadline: float  # a time.monotonic() value
    min_tiles: int  # per slide, however short the time
    done: int = 0
    ends: deque[float] = field(default_factory=lambda: deque([time.monotonic()], maxlen=RECENT + 1))

    def slide_ended(self) -> None:
        """Record that a slide has ended now."""
        self.done += 1
        self.ends.append(time.monotonic())

    def budget(self, now: float) -> Budget:
        """Return the next slide's budget: full while the pace of the recent slides meets the deadline."""
        if len(self.ends) < 2:
            return Budget.FULL
        slide_s = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        needed_s = slide_s * (self.slides - self.done)
        left_s = self.deadline - now
        if needed_s <= left_s:
            return Budget.FULL
        return Budget.FEWER_TILES if needed_s <= 2 * left_s else Budget.ONE_MEMBER

    def prepare(self, task: Task) -> Task:
        """Return the task with as many tiles as there is time for; a second try is left as it is."""
        budget = self.budget(time.monotonic())
        if task.budget == Budget.COARSER or budget == Budget.FULL:
            return task
        return replace(task, budget=budget, tilings=tuple(self._fewer(tiling) for tiling in task.tilings))

    def _fewer(self, tiling: TilingConfig) -> TilingConfig:
        least = min(self.min_tiles, tiling.max_tiles)
        return replace(tiling, max_tiles=max(tiling.max_tiles // FRACTION, least))


def coarser(task: Task) -> Task:
    """Return the task for a second try: as many tiles of the same pixels, at a larger downsample."""
    tilings = tuple(
        replace(tiling, downsample=tiling.downsample * COARSENING, mpp=tiling.mpp * COARSENING)
        for tiling in task.tilings
    )
    return replace(task, budget=Budget.COARSER, tilings=tilings)
