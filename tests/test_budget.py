"""Test the budget of slides: fewer tiles when time is short, coarser ones at a second try."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clotkit.config import InferenceConfig, TilingConfig
from clotkit.members.pooling import RowPooling, SlidePooling
from clotkit.reasons import Reason
from clotkit.scoring.budget import Budget, Pace, coarser
from clotkit.scoring.scorer import Scorer, score_tasks, tilings_of
from clotkit.tiling.tilers import Batch
from clotkit.workers import Ended, Task, TileBatch

TILING = TilingConfig("patches", tile_px=32, downsample=4, max_tiles=24, batch_tiles=8)
OTHER = TilingConfig("darkest", tile_px=32, downsample=8, max_tiles=6, batch_tiles=8)
TASK = Task("a_0", Path("a_0.tif"), (TILING, OTHER))


@pytest.mark.parametrize(
    ("now", "budget"),
    [(20.0, Budget.FULL), (40.0, Budget.FEWER_TILES), (65.0, Budget.ONE_MEMBER), (200.0, Budget.ONE_MEMBER)],
)
def test_what_the_pace_of_the_last_slides_leaves(now: float, budget: int) -> None:
    """Slides take 10 s each, eight are left, and the deadline is at 100 s."""
    pace = Pace(slides=10, deadline=100.0, min_tiles=4, done=2, ends=deque([0.0, 10.0, 20.0]))
    assert pace.budget(now) == budget


def test_the_first_slides_get_everything() -> None:
    assert Pace(slides=10, deadline=0.0, min_tiles=4).budget(1e9) == Budget.FULL
    assert Pace(slides=10, deadline=float("inf"), min_tiles=4, ends=deque([0.0, 1e6])).budget(2e6) == Budget.FULL


def test_fewer_tiles_are_never_fewer_than_count() -> None:
    pace = Pace(slides=1000, deadline=0.0, min_tiles=4, ends=deque([0.0, 10.0]))
    task = pace.prepare(TASK)
    assert task.budget == Budget.ONE_MEMBER
    assert [tiling.max_tiles for tiling in task.tilings] == [6, 4]
    assert [tiling.downsample for tiling in task.tilings] == [4, 8]


def test_a_second_try_is_coarser() -> None:
    task = coarser(TASK)
    assert (task.budget, task.image_id) == (Budget.COARSER, "a_0")
    assert [(tiling.downsample, tiling.max_tiles) for tiling in task.tilings] == [(8, 24), (16, 6)]


@dataclass
class FakeMember:
    """A member that predicts a constant, and records the batches that it was given."""

    name: str
    tiling: TilingConfig
    p: float
    asked: list[int] = field(default_factory=list)

    @property
    def pooling(self) -> SlidePooling:
        return RowPooling("mean", "softmax")

    @property
    def recipe(self) -> Any:
        return SimpleNamespace(tiling=self.tiling, inference=InferenceConfig(), output="softmax")

    def predict(self, tiles: np.ndarray) -> np.ndarray:
        self.asked.append(len(tiles))
        if self.p > 1:
            raise MemoryError("no room for tiles")
        return np.tile(np.array([self.p, 1 - self.p], np.float32), (len(tiles), 1))


def scored(members: list[FakeMember], *events: TileBatch | Ended) -> tuple[Any, dict[str, Any]]:
    scorer = Scorer(members, {"a_0": "a"}, min_tiles=4)  # type: ignore[arg-type]
    for event in events[:-1]:
        if isinstance(event, TileBatch):
            scorer.predict(event)
        else:
            scorer.postpone(event)
    last = events[-1]
    assert isinstance(last, Ended)
    line, means, _ = scorer.finish(last)
    return line, means


def tiles(task: Task, tiling: int, count: int) -> TileBatch:
    return TileBatch(task, tiling, Batch(np.zeros((count, 32, 32, 3), np.uint8), np.zeros((count, 2), np.int32)))


def members() -> list[FakeMember]:
    return [FakeMember("first", TILING, 0.25), FakeMember("second", OTHER, 0.75)]


def task_of(budget: int) -> Task:
    return Task("a_0", Path("a_0.tif"), (TILING, OTHER), budget=budget)


def test_each_member_sees_its_own_tiling() -> None:
    both = members()
    assert tilings_of(both) == (TILING, OTHER)  # type: ignore[arg-type]
    line, means = scored(both, tiles(TASK, 0, 8), tiles(TASK, 1, 6), Ended(TASK, "", 1.0, 50.0))
    assert (line.state, line.tiles, line.reason, line.codes) == ("done", 14, "", [])
    assert means == {"first": pytest.approx([0.25, 0.75]), "second": pytest.approx([0.75, 0.25])}
    assert [member.asked for member in both] == [[8], [6]]


def test_where_time_is_short_the_first_member_stands_alone() -> None:
    task, both = task_of(Budget.ONE_MEMBER), members()
    line, means = scored(both, tiles(task, 0, 6), tiles(task, 1, 4), Ended(task, "", 1.0, 50.0))
    assert (line.state, list(means), both[1].asked) == ("partial", ["first"], [])
    assert line.codes == [Reason.ONE_MEMBER]


def test_a_member_that_raises_is_out_for_that_slide() -> None:
    both = [FakeMember("first", TILING, 0.25), FakeMember("second", TILING, 2.0)]
    line, means = scored(both, tiles(TASK, 0, 8), tiles(TASK, 0, 8), Ended(TASK, "", 1.0, 50.0))
    assert (line.state, list(means)) == ("partial", ["first"])
    assert line.codes == [Reason.MEMBER_FAILED]
    assert "second" in line.reason
    assert "MemoryError: no room for tiles" in line.reason
    assert both[1].asked == [8]  # and is not asked again
    line, means = scored(both[1:], tiles(TASK, 0, 8), Ended(TASK, "", 1.0, 50.0))
    assert (line.state, means) == ("fallback", {})


def test_what_had_come_of_a_lost_first_try_counts_when_the_second_is_lost_too() -> None:
    first = Ended(TASK, "time limit: not done after 300 s", 300.0, 90.0, Reason.TIMEOUT, lost=True)
    second = Ended(coarser(TASK), "its process died of SIGKILL", 2.0, 70.0, Reason.CRASHED, lost=True)
    line, means = scored(members(), tiles(TASK, 0, 8), tiles(TASK, 1, 4), first, second)
    assert (line.state, line.tiles, line.seconds, line.peak_mb) == ("partial", 12, 302.0, 90.0)
    assert line.codes == [Reason.TIMEOUT, Reason.CRASHED]
    assert line.reason == f"{first.reason}; {second.reason}"
    assert means["first"] == pytest.approx([0.25, 0.75])
    line, means = scored(members(), tiles(TASK, 0, 8), tiles(TASK, 1, 3), first, second)
    assert (line.state, means) == ("fallback", {})


@pytest.mark.parametrize(("deadline", "tries"), [(float("inf"), [3, 1]), (0.0, [3])])
def test_a_lost_slide_is_read_once_more_alone_and_coarser(deadline: float, tries: list[int]) -> None:
    """Local and remote scoring share this rule; after the deadline nothing is read again."""
    jobs_of_tries: list[int] = []

    def read(tasks: Sequence[Task], jobs: int) -> Iterator[TileBatch | Ended]:
        jobs_of_tries.append(jobs)
        for task in tasks:
            if task.budget == Budget.COARSER:
                yield from (tiles(task, 0, 8), tiles(task, 1, 6), Ended(task, "", 1.0, 50.0))
            else:
                yield Ended(task, "killed", 2.0, 60.0, Reason.CRASHED, lost=True)

    scorer = Scorer(members(), {"a_0": "a"}, min_tiles=4)  # type: ignore[arg-type]
    ((line, _, _),) = score_tasks(scorer, [TASK], 3, deadline, read)
    assert jobs_of_tries == tries
    if len(tries) == 2:
        assert (line.state, line.codes, line.seconds) == ("partial", [Reason.CRASHED, Reason.COARSER], 3.0)
    else:
        assert (line.state, line.codes, line.seconds) == ("fallback", [Reason.CRASHED], 2.0)
