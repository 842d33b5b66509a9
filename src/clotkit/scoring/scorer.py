"""Predict each batch of tiles as it comes, and turn each slide into a report line at its end."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.config import TilingConfig, tiling_for
from clotkit.errors import one_line
from clotkit.members.ensemble import Probabilities
from clotkit.members.loading import Member
from clotkit.members.weights import check_outputs
from clotkit.reasons import Cause, Reason
from clotkit.report.records import SlideReport, State
from clotkit.report.sidecar import Span, Tiled, Trace
from clotkit.scoring.budget import CAUSES, Budget, Pace, coarser
from clotkit.scoring.settings import RunSettings
from clotkit.splits import SlideRow
from clotkit.workers import LEFT_PID, Ended, Task, TileBatch, Work

DIGITS = 9  # of the probabilities in the report: a resumed run writes the same submission


class ScoredSlide(NamedTuple):
    """One scored slide."""

    line: SlideReport
    means: dict[str, Probabilities]  # by member: [C], before calibration; empty: fallback
    trace: Trace  # for the report page


@dataclass
class SlidePredictions:
    """The predictions of one slide so far.

    A member is referred to by its name, a tiling by its index in `tilings_of(members)`.
    """

    outputs: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)  # by member: [n, C or C + 1] each
    members: dict[str, Member] = field(default_factory=dict)  # those that have outputs
    failed: dict[str, str] = field(default_factory=dict)  # by member: why it no longer counts for this slide
    corners: dict[int, list[npt.NDArray[np.int32]]] = field(default_factory=dict)  # by tiling: x, y of tiles, [n, 2]
    predicted_by: dict[int, list[str]] = field(default_factory=dict)  # by tiling: the members that predict its tiles
    busy: list[Span] = field(default_factory=list)  # when the members predicted tiles of this slide
    means: dict[str, Probabilities] = field(default_factory=dict)  # by member: [C] of the slide, once `pool` has run

    def predict(self, member: Member, tiles: npt.NDArray[np.uint8]) -> None:
        """Predict a batch, uint8[n, H, W, 3], with one member; one that fails no longer counts for this slide."""
        if member.name in self.failed:
            return
        try:
            outputs = member.predict(tiles)  # [n, C], with attention pooling [n, C + 1]
        except Exception as error:  # noqa: BLE001 - any error costs this slide one member, and the report names it
            self.failed[member.name] = f"{type(error).__name__}: {one_line(error)}"
            return
        if problem := check_outputs(outputs, member.pooling.rows_are_probabilities):
            self.failed[member.name] = problem
            return
        self.outputs.setdefault(member.name, []).append(outputs)
        self.members[member.name] = member

    @property
    def tiles(self) -> dict[str, int]:
        """The number of tiles by member."""
        return {name: sum(map(len, batches)) for name, batches in self.outputs.items()}

    def valid_tiles(self) -> dict[str, int]:
        """Return the number of tiles by member, of the members that have not failed."""
        return {name: count for name, count in self.tiles.items() if name not in self.failed}

    def pool(self) -> None:
        """Pool the tiles of each member to the slide's probabilities; a member that fails no longer counts."""
        for name, member in self.members.items():
            if name in self.failed:
                continue
            try:
                self.means[name] = np.round(member.pooling.pool(np.concatenate(self.outputs[name])), DIGITS)
            except Exception as error:  # noqa: BLE001 - a head sees all tiles at once, and may run out of memory
                self.failed[name] = f"{type(error).__name__}: {one_line(error)}"

    def tiled(self, tilings: Sequence[TilingConfig]) -> Iterator[Tiled]:
        """Yield the tiles of each tiling with their probabilities, averaged over the valid members."""
        for index, batches in self.corners.items():
            valid = [name for name in self.predicted_by[index] if name in self.outputs and name not in self.failed]
            if valid:
                p = np.mean([self._tile_probabilities(name) for name in valid], axis=0)
                weights = [found for name in valid if (found := self._attention(name)) is not None]
                attention = np.mean(weights, axis=0) if weights else None
                yield Tiled(tilings[index], np.concatenate(batches), p, attention)

    def _tile_probabilities(self, name: str) -> npt.NDArray[np.float64]:
        """Return one member's probabilities of each of its tiles, [n, C]."""
        return self.members[name].pooling.tile_probabilities(np.concatenate(self.outputs[name]))

    def _attention(self, name: str) -> npt.NDArray[np.float64] | None:
        """Return one member's weights of its tiles, [n]; None if it weighs all alike."""
        return self.members[name].pooling.attention(np.concatenate(self.outputs[name]))

    def failures(self) -> list[Cause]:
        """Return one cause for each member that failed on this slide."""
        return [
            Cause(Reason.MEMBER_FAILED, f"member {name} left out: {why}") for name, why in sorted(self.failed.items())
        ]


class FirstTry(NamedTuple):
    """The result of a first try whose process was lost."""

    predictions: SlidePredictions
    ended: Ended


class Scorer:
    """The slides of a run between their first batch of tiles and their report line.

    `score_tasks` is the loop that calls it.
    """

    def __init__(self, members: Sequence[Member], patient_of: Mapping[str, str], min_tiles: int) -> None:
        """Score with `members`; tiling i of every task must be entry i of `tilings_of(members)`."""
        self._members, self._patient_of, self._min_tiles = members, patient_of, min_tiles
        self._tilings = tilings_of(members)
        self._predictions: dict[str, SlidePredictions] = {}  # by slide
        self._first: dict[str, FirstTry] = {}  # by slide

    def predict(self, event: TileBatch) -> None:
        """Predict a batch of tiles with every member that has its tiling."""
        predictions = self._predictions.setdefault(event.image_id, SlidePredictions())
        began = time.monotonic()
        members = self._members[:1] if event.task.budget == Budget.ONE_MEMBER else self._members
        predicted_by = [member for member in members if self._tilings.index(member.recipe.tiling) == event.tiling]
        for member in predicted_by:
            predictions.predict(member, event.batch.tiles)
        predictions.corners.setdefault(event.tiling, []).append(event.batch.xy)
        predictions.predicted_by[event.tiling] = [member.name for member in predicted_by]
        predictions.busy.append((began, time.monotonic()))

    def postpone(self, ended: Ended) -> None:
        """Keep the predictions of a first try until the second one has ended."""
        predictions = self._predictions.pop(ended.image_id, SlidePredictions())
        predictions.pool()
        self._first[ended.image_id] = FirstTry(predictions, ended)

    def finish(self, ended: Ended) -> ScoredSlide:
        """Return the result of a slide that has ended.

        The predictions of a lost first try count if the second try gives a fallback and the first had enough tiles.
        """
        predictions = self._predictions.pop(ended.image_id, SlidePredictions())
        first = self._first.pop(ended.image_id, None)
        task = ended.task
        predictions.pool()
        state, causes = self._state_and_causes(ended, predictions)
        if first is not None:
            causes = [*_cause(first.ended), *causes]
            if state == "fallback" and self._enough_tiles(first.predictions, Budget.FULL):
                state, predictions, task = "partial", first.predictions, first.ended.task
        causes = list(dict.fromkeys(causes))
        left_behind = [Reason.LEFT_BEHIND] if LEFT_PID in ended.facts else []
        means = {} if state == "fallback" else predictions.means
        line = SlideReport(
            image_id=ended.image_id,
            patient_id=self._patient_of[ended.image_id],
            state=state,
            reason="; ".join(cause.sentence for cause in causes),
            tiles=sum(predictions.tiles.values()),
            seconds=round(ended.seconds + (first.ended.seconds if first else 0), 2),
            peak_mb=round(max(ended.peak_mb, first.ended.peak_mb if first else 0), 1),
            codes=list(dict.fromkeys([*(cause.code for cause in causes), *left_behind])),
            p={name: [float(value) for value in mean] for name, mean in means.items()},
            facts=ended.facts or (first.ended.facts if first else {}),
        )
        return ScoredSlide(line, means, _trace(predictions, task, ended, first))

    def _state_and_causes(self, ended: Ended, predictions: SlidePredictions) -> tuple[State, list[Cause]]:
        """Return a slide's state, and the causes for which it is not "done".

        If every tile came, the predictions of one member are enough. If the process failed before its last tile, the
        tiles that came count if there are enough of them.
        """
        complete, budget = ended.code is None, ended.task.budget
        causes = _cause(ended)
        if budget in CAUSES and (complete or budget != Budget.COARSER):  # a second try counts only if it succeeded
            causes.append(CAUSES[Budget(budget)])
        causes += predictions.failures()
        usable = bool(predictions.valid_tiles()) if complete else self._enough_tiles(predictions, budget)
        if not usable:
            return "fallback", causes or [Cause(Reason.NO_TILES, "no tiles were cut")]
        return ("partial" if causes else "done"), causes

    def _enough_tiles(self, predictions: SlidePredictions, budget: int) -> bool:
        """Return True if the members have predicted enough tiles of a slide whose last ones are missing.

        At least one member must not have failed, and each of those must have predicted min_tiles tiles. Every member of
        the budget must have begun: be among these or the failed ones.
        """
        expected = 1 if budget == Budget.ONE_MEMBER else len(self._members)
        tiles = predictions.valid_tiles()
        if not tiles or len(tiles) + len(predictions.failed) != expected:
            return False
        return min(tiles.values()) >= self._min_tiles


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
        """The slides, the smallest file first; those that do not answer last."""
        return sorted(self.slides, key=lambda slide: (slide.size_and_mtime == (), slide.size_bytes))

    def pace(self) -> Pace:
        """Return the pace-keeper of these slides; its deadline is the last start that the run's allows."""
        deadline = self.settings.last_start(self.started)
        return Pace(len(self.slides), deadline, self.competition.limits.min_tiles)


def score_tasks(
    scorer: Scorer,
    tasks: Sequence[Task],
    jobs: int,
    deadline: float,
    read: Callable[[Sequence[Task], int], Iterable[TileBatch | Ended]],
) -> Iterator[ScoredSlide]:
    """Predict each batch of tiles as it comes; yield each slide, with its report line, at its end.

    This is the loop of a run. A slide whose process was lost is read once more, at a larger downsample. Second tries
    come after all others, one at a time: whatever killed the first may need the whole machine.

    Args:
        scorer: predicts the tiles.
        tasks: the slides, in the order to begin them.
        jobs: slides at a time.
        deadline: a time.monotonic() value after which nothing is tried again.
        read: begins the given tasks, so many at a time, and yields their batches of tiles and their ends.
    """
    lost = list[Task]()
    for event in read(tasks, jobs):
        if isinstance(event, TileBatch):
            scorer.predict(event)
        elif event.lost and time.monotonic() < deadline:
            scorer.postpone(event)
            lost.append(coarser(event.task))
        else:
            yield _finish(scorer, event)
    if lost:
        for event in read(lost, 1):
            if isinstance(event, TileBatch):
                scorer.predict(event)
            else:
                yield _finish(scorer, event)


def not_scored(scorer: Scorer, slides: Iterable[SlideRow], cause: Cause) -> Iterator[ScoredSlide]:
    """Return a fallback for each of `slides`, which no process has read."""
    for slide in slides:
        yield scorer.finish(Ended(Task(slide.image_id, slide.path, ()), cause.sentence, 0.0, 0.0, cause.code))


def tilings_of(members: Sequence[Member]) -> tuple[TilingConfig, ...]:
    """Return the distinct tilings of members, in their order."""
    return tuple(dict.fromkeys(member.recipe.tiling for member in members))


def slide_task(slide: SlideRow, tilings: Sequence[TilingConfig], path: Path) -> Task:
    """Return the task to cut a slide at `path` with each of the members' tilings, at its own downsample."""
    cut = tuple(tiling_for(tiling, slide.facts) for tiling in tilings)
    return Task(slide.image_id, path, cut, stored=slide.stored)


def _finish(scorer: Scorer, ended: Ended) -> ScoredSlide:
    if ended.task.stored is not None:
        ended.task.path.unlink(missing_ok=True)  # a download for this slide only
    return scorer.finish(ended)


def _cause(ended: Ended) -> list[Cause]:
    """Return why a slide's process did not give every tile; an empty list if it did."""
    return [] if ended.code is None else [Cause(ended.code, ended.reason)]


def _trace(predictions: SlidePredictions, task: Task, ended: Ended, first: FirstTry | None) -> Trace:
    """Return a slide's data for the report page; the tiles of `predictions` were cut for `task`."""
    last = ended if ended.started is not None or first is None else first.ended
    thumbnail = ended.thumbnail or (first.ended.thumbnail if first else None)
    lived = None if last.started is None else (last.started, last.started + last.seconds)
    try:
        tiled = tuple(predictions.tiled(task.tilings))
    except Exception:  # noqa: BLE001 - boxes on a picture are not worth a slide
        tiled = ()
    return Trace(thumbnail, tiled, lived, tuple(predictions.busy))
