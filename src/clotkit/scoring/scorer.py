"""Predict each batch of tiles as it comes, and turn each slide into a report line at its end."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.config import TilingConfig
from clotkit.errors import one_line
from clotkit.members.ensemble import Probabilities
from clotkit.members.loading import Member
from clotkit.members.pooling import pooled, tile_probabilities
from clotkit.reasons import Cause, Reason
from clotkit.report.records import SlideReport, State
from clotkit.report.sidecar import Span, Tiled, Trace
from clotkit.scoring.budget import CAUSES, Budget, Scheduler, coarser
from clotkit.scoring.settings import RunSettings
from clotkit.splits import SlideRow
from clotkit.workers import Ended, Task, Tiles, Work

DIGITS = 9  # of the probabilities in the report: a resumed run writes the same submission


class Scored(NamedTuple):
    """One scored slide."""

    line: SlideReport
    means: dict[str, Probabilities]  # by member: [C], before calibration; empty: fallback
    trace: Trace  # for the report page


@dataclass
class Tally:
    """The predictions of one slide so far."""

    rows: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)  # by member: batches of [n, C or C+1]
    members: dict[str, Member] = field(default_factory=dict)  # those that have rows
    failed: dict[str, str] = field(default_factory=dict)  # by member: why it no longer counts for this slide
    corners: dict[int, list[npt.NDArray[np.int32]]] = field(default_factory=dict)  # by tiling: batches of [n, 2]
    readers: dict[int, list[str]] = field(default_factory=dict)  # by tiling: the members that predict its tiles
    busy: list[Span] = field(default_factory=list)  # when the model worked on this slide

    def predict(self, member: Member, tiles: npt.NDArray[np.uint8]) -> None:
        """Predict a batch, uint8[n, H, W, 3], with one member; one that fails no longer counts for this slide."""
        if member.name in self.failed:
            return
        try:
            rows = member.predict(tiles)  # [n, C], with attention pooling [n, C + 1]
        except Exception as error:  # noqa: BLE001 - any error costs this slide one member, and the report names it
            self.failed[member.name] = f"{type(error).__name__}: {one_line(error)}"
            return
        if not np.isfinite(rows).all():
            self.failed[member.name] = "returned NaN"
            return
        self.rows.setdefault(member.name, []).append(rows)
        self.members[member.name] = member

    @property
    def tiles(self) -> dict[str, int]:
        """The number of tiles by member."""
        return {name: sum(map(len, batches)) for name, batches in self.rows.items()}

    def valid_tiles(self) -> dict[str, int]:
        """Return the number of tiles by member, of the members that have not failed."""
        return {name: count for name, count in self.tiles.items() if name not in self.failed}

    def means(self) -> dict[str, Probabilities]:
        """Return the slide's probabilities by member, [C] each, pooled over tiles as the member's recipe says."""
        return {
            name: np.round(pooled(np.concatenate(self.rows[name]), member.recipe.inference.pooling), DIGITS)
            for name, member in self.members.items()
            if name not in self.failed
        }

    def tiled(self, tilings: Sequence[TilingConfig]) -> Iterator[Tiled]:
        """Yield the tiles of each tiling with the last class's probability, averaged over the valid members."""
        for index, batches in self.corners.items():
            p = [
                tile_probabilities(np.concatenate(self.rows[name]), self.members[name].recipe.inference.pooling)[:, -1]
                for name in self.readers[index]
                if name in self.rows and name not in self.failed
            ]
            if p:
                yield Tiled(tilings[index], np.concatenate(batches), np.mean(p, axis=0))

    def failures(self) -> list[Cause]:
        """Return one cause for each member that failed on this slide."""
        return [
            Cause(Reason.MEMBER_FAILED, f"member {name} left out: {why}") for name, why in sorted(self.failed.items())
        ]


class FirstTry(NamedTuple):
    """The result of a first try whose process was lost."""

    tally: Tally
    ended: Ended


class Scorer:
    """The slides of a run between their first batch and their report line."""

    def __init__(self, members: Sequence[Member], patient_of: Mapping[str, str], min_tiles: int) -> None:
        """Score with `members`; tiling i of every task must be entry i of `tilings_of(members)`."""
        self._members, self._patient_of, self._min_tiles = members, patient_of, min_tiles
        self._tilings = tilings_of(members)
        self._tallies: dict[str, Tally] = {}
        self._first: dict[str, FirstTry] = {}

    def ends(self, events: Iterable[Tiles | Ended]) -> Iterator[Ended]:
        """Predict the tiles among `events`, and yield the ends of slides."""
        for event in events:
            if isinstance(event, Tiles):
                self.add(event)
            else:
                yield event

    def add(self, tiles: Tiles) -> None:
        """Predict a batch with every member that has its tiling."""
        tally, began = self._tallies.setdefault(tiles.image_id, Tally()), time.monotonic()
        members = self._members[:1] if tiles.task.budget == Budget.ONE_MEMBER else self._members
        readers = [member for member in members if self._tilings.index(member.recipe.tiling) == tiles.tiling]
        for member in readers:
            tally.predict(member, tiles.batch.tiles)
        tally.corners.setdefault(tiles.tiling, []).append(tiles.batch.xy)
        tally.readers[tiles.tiling] = [member.name for member in readers]
        tally.busy.append((began, time.monotonic()))

    def postpone(self, ended: Ended) -> None:
        """Keep the predictions of a first try until the second one has ended."""
        self._first[ended.image_id] = FirstTry(self._tallies.pop(ended.image_id, Tally()), ended)

    def finish(self, ended: Ended) -> Scored:
        """Return the result of a slide that has ended.

        The predictions of a lost first try count if the second try gives a fallback and the first had enough tiles.
        """
        tally = self._tallies.pop(ended.image_id, Tally())
        first = self._first.pop(ended.image_id, None)
        task = ended.task
        state, causes = self._judge(ended, tally)
        if first is not None:
            causes = [*_cause(first.ended), *causes]
            if state == "fallback" and self._enough(first.tally, Budget.FULL):
                state, tally, task = "partial", first.tally, first.ended.task
        causes = list(dict.fromkeys(causes))
        means = {} if state == "fallback" else tally.means()
        line = SlideReport(
            image_id=ended.image_id,
            patient_id=self._patient_of[ended.image_id],
            state=state,
            reason="; ".join(cause.sentence for cause in causes),
            tiles=sum(tally.tiles.values()),
            seconds=round(ended.seconds + (first.ended.seconds if first else 0), 2),
            peak_mb=round(max(ended.peak_mb, first.ended.peak_mb if first else 0), 1),
            codes=list(dict.fromkeys(cause.code for cause in causes)),
            p={name: [float(value) for value in mean] for name, mean in means.items()},
            facts=ended.facts or (first.ended.facts if first else {}),
        )
        return Scored(line, means, _trace(tally, task, ended, first))

    def _judge(self, ended: Ended, tally: Tally) -> tuple[State, list[Cause]]:
        """Return a slide's state and its causes; tiles that came before a crash count if there are enough."""
        whole, causes = ended.code is None, _cause(ended)
        if ended.task.budget in CAUSES and (whole or ended.task.budget != Budget.COARSER):
            causes.append(CAUSES[Budget(ended.task.budget)])
        causes += tally.failures()
        if whole and tally.valid_tiles():
            return ("partial" if causes else "done"), causes
        if not whole and self._enough(tally, ended.task.budget):
            return "partial", causes
        return "fallback", causes or [Cause(Reason.NO_TILES, "no tiles were cut")]

    def _enough(self, tally: Tally, budget: int) -> bool:
        """Return whether every member of the budget that has not failed has predicted min_tiles tiles."""
        wanted = 1 if budget == Budget.ONE_MEMBER else len(self._members)
        valid = tally.valid_tiles()
        return bool(valid) and len(valid) + len(tally.failed) == wanted and min(valid.values()) >= self._min_tiles


@dataclass(frozen=True)
class ScoringJob:
    """The slides of a run to score, with the members and the limits."""

    slides: Sequence[SlideRow]
    members: Sequence[Member]
    scorer: Scorer
    settings: RunSettings
    competition: Competition
    started: float  # the time.monotonic() value at which the run began
    work: Work  # what a slide's process does

    @property
    def ordered(self) -> list[SlideRow]:
        """The slides, the smallest file first."""
        return sorted(self.slides, key=lambda slide: slide.size_bytes)

    def scheduler(self) -> Scheduler:
        """Return a scheduler for these slides until the last start that the deadline allows."""
        deadline = self.settings.last_start(self.started)
        return Scheduler(len(self.slides), deadline, self.competition.limits.min_tiles)


def score_tasks(
    scorer: Scorer,
    tasks: Sequence[Task],
    jobs: int,
    deadline: float,
    read: Callable[[Sequence[Task], int], Iterable[Tiles | Ended]],
) -> Iterator[Scored]:
    """Score slides, `jobs` at a time; a slide whose process was lost is read once more, coarser.

    Second tries come after all others, one at a time: whatever killed the first may need the whole machine.

    Args:
        scorer: predicts the tiles.
        tasks: the slides, in the order to begin them.
        jobs: slides at a time.
        deadline: a time.monotonic() value after which nothing is tried again.
        read: yields the tiles and the ends of tasks, so many at a time.
    """
    lost = list[Task]()
    for ended in scorer.ends(read(tasks, jobs)):
        if ended.lost and time.monotonic() < deadline:
            scorer.postpone(ended)
            lost.append(coarser(ended.task))
        else:
            yield _finish(scorer, ended)
    if lost:
        for ended in scorer.ends(read(lost, 1)):
            yield _finish(scorer, ended)


def not_scored(scorer: Scorer, slides: Iterable[SlideRow], cause: Cause) -> Iterator[Scored]:
    """Return a fallback for each of `slides`, which no process has read."""
    for slide in slides:
        yield scorer.finish(Ended(Task(slide.image_id, slide.path, ()), cause.sentence, 0.0, 0.0, cause.code))


def tilings_of(members: Sequence[Member]) -> tuple[TilingConfig, ...]:
    """Return the distinct tilings of members, in their order."""
    return tuple(dict.fromkeys(member.recipe.tiling for member in members))


def _finish(scorer: Scorer, ended: Ended) -> Scored:
    if ended.task.stored is not None:
        ended.task.path.unlink(missing_ok=True)  # a download for this slide only
    return scorer.finish(ended)


def _cause(ended: Ended) -> list[Cause]:
    """Return why a slide's process did not give every tile; an empty list if it did."""
    return [] if ended.code is None else [Cause(ended.code, ended.reason)]


def _trace(tally: Tally, task: Task, ended: Ended, first: FirstTry | None) -> Trace:
    """Return a slide's data for the report page; the tiles of `tally` were cut for `task`."""
    last = ended if ended.started is not None or first is None else first.ended
    thumbnail = ended.thumbnail or (first.ended.thumbnail if first else None)
    lived = None if last.started is None else (last.started, last.started + last.seconds)
    try:
        tiled = tuple(tally.tiled(task.tilings))
    except Exception:  # noqa: BLE001 - boxes on a picture are not worth a slide
        tiled = ()
    return Trace(thumbnail, tiled, lived, tuple(tally.busy))
