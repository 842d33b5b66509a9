"""How much is done for a slide: everything, or less where time is short or a first try was lost."""

import time
from collections import deque
from dataclasses import dataclass, field, replace

from clotkit.config import TilingConfig
from clotkit.reasons import Cause, Reason
from clotkit.workers import Task

EVERYTHING, FEWER_TILES, ONE_MEMBER, AGAIN = range(4)  # `effort` of a task
FRACTION = 4  # of the tiles: one in so many, where time is short
COARSER = 2  # times the downsample, at a second try: a quarter of the pixels in memory
RECENT = 16  # slides that the pace is taken from
CAUSES = {
    FEWER_TILES: Cause(Reason.FEWER_TILES, f"time was short: one tile in {FRACTION}"),
    ONE_MEMBER: Cause(Reason.ONE_MEMBER, f"time was short: one tile in {FRACTION}, the first member alone"),
    AGAIN: Cause(Reason.COARSER, f"read again at {COARSER} times the downsample"),
}


@dataclass
class Pace:
    """The pace of the run so far, and what it leaves for the next slide. `deadline` is a time.monotonic() value."""

    slides: int  # to do in all
    deadline: float
    min_tiles: int
    done: int = 0
    ends: deque[float] = field(default_factory=lambda: deque([time.monotonic()], maxlen=RECENT + 1))

    def ended(self) -> None:
        """Note that a slide has ended."""
        self.done += 1
        self.ends.append(time.monotonic())

    def effort(self, now: float) -> int:
        """What the next slide may get: everything while the pace of the last slides holds until the deadline."""
        if len(self.ends) < 2:
            return EVERYTHING
        each = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        needed = each * (self.slides - self.done)
        left = self.deadline - now
        return EVERYTHING if needed <= left else FEWER_TILES if needed <= 2 * left else ONE_MEMBER

    def prepare(self, task: Task) -> Task:
        """The task as there is time for it."""
        effort = self.effort(time.monotonic())
        if effort == EVERYTHING:
            return task
        return replace(task, effort=effort, tilings=tuple(self._fewer(tiling) for tiling in task.tilings))

    def _fewer(self, tiling: TilingConfig) -> TilingConfig:
        least = min(self.min_tiles, tiling.max_tiles)
        return replace(tiling, max_tiles=max(tiling.max_tiles // FRACTION, least))


def again(task: Task) -> Task:
    """The task at a second try: the same tiles in number and size, coarser."""
    coarser = tuple(replace(tiling, downsample=tiling.downsample * COARSER) for tiling in task.tilings)
    return replace(task, effort=AGAIN, tilings=coarser)
