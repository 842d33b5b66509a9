"""Slides scored on the workers of a cluster: each loads the members once, and sends back a line and means a slide."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from clotkit.competitions import Competition
from clotkit.engines import Backend, Lost, engine
from clotkit.errors import ClusterError, one_line
from clotkit.members.ensemble import Probabilities
from clotkit.members.folder import find_members
from clotkit.members.loading import Member, load_member
from clotkit.progress import Log
from clotkit.reasons import Reason
from clotkit.report.records import SlideReport
from clotkit.report.sidecar import Trace
from clotkit.scoring.budget import Pace, again
from clotkit.scoring.scorer import Scored, Scorer, tilings_of
from clotkit.scratch import scratch
from clotkit.splits import SlideRow
from clotkit.stores import Place, store_of
from clotkit.versions import SCORING, Versions, versions_here
from clotkit.workers import BEFORE_ITS_TURN, Ended, Limits, Task, Tiles, Work, stream

_LOADING = threading.Lock()
_LOADED: dict[tuple[tuple[str, str, str], ...], list[Member]] = {}


@dataclass(frozen=True)
class Terms:
    """What holds for all slides of a run: where the members are, what a slide may cost, when none is begun any more.

    `deadline` is a time.monotonic() value; `work` is what a slide's process does; `versions` are the asking side's.
    """

    weights: Place
    competition: Competition
    memory_mb: int
    stall_s: float
    deadline: float
    work: Work
    versions: Versions = field(default_factory=lambda: versions_here(SCORING))


@dataclass(frozen=True)
class Ask:
    """What a worker is asked for: a slide's score, in `left_s` seconds: clocks differ.

    `members` are (name, sha256 of the weights, how tiles are pooled), to be found where the terms say.
    """

    task: Task
    patient_id: str
    members: tuple[tuple[str, str, str], ...]
    left_s: float
    terms: Terms


@dataclass(frozen=True)
class Answer:
    """A slide's line, its mean a member and what else it left; `now` is the time.monotonic() of its end there."""

    line: SlideReport
    means: dict[str, Probabilities]
    trace: Trace
    now: float


def score_afar(
    slides: Sequence[SlideRow], members: Sequence[Member], terms: Terms, backend: Backend, log: Log
) -> Iterator[Scored]:
    """A line, the mean a member and a trace for each slide, as they come, their times as this machine's clock has them.

    The smallest file is first; a slide that is lost is read again at once, by the worker that lost it. Where time runs
    short slides get less, as on one machine. Raises what `engine` raises.
    """
    scorer = Scorer(members, {slide.image_id: slide.patient_id for slide in slides}, terms.competition.limits.min_tiles)
    pace = Pace(len(slides), terms.deadline, terms.competition.limits.min_tiles)
    left = {slide.image_id: slide for slide in sorted(slides, key=lambda slide: slide.size_bytes)}
    tilings = tilings_of(members)
    with engine(backend, log) as workers:
        for ask, found in workers.unordered(answer, _asks(list(left.values()), members, terms, pace), terms.deadline):
            pace.ended()
            del left[ask.task.image_id]
            if isinstance(found, Lost):
                yield scorer.scored(Ended(ask.task, found.reason, 0.0, 0.0, found.code, lost=True))
            else:
                yield found.line, found.means, found.trace.shifted(time.monotonic() - found.now)
    why = (BEFORE_ITS_TURN, Reason.DEADLINE) if members else ("no member could be loaded", Reason.NO_MEMBER)
    for slide in left.values():
        yield scorer.scored(Ended(Task(slide.image_id, slide.path, tilings), why[0], 0.0, 0.0, why[1]))


def _asks(slides: Sequence[SlideRow], members: Sequence[Member], terms: Terms, pace: Pace) -> Iterator[Ask]:
    """An ask for each slide when its turn comes, until the deadline."""
    named = tuple((member.name, member.weights_sha256, member.tile_pool) for member in members)
    if isinstance(terms.weights, Path):
        terms = replace(terms, weights=terms.weights.absolute())
    for slide in slides if members else ():
        left_s = terms.deadline - time.monotonic()
        if left_s <= 0:
            return
        task = Task(slide.image_id, slide.path.absolute(), tilings_of(members), stored=slide.stored)
        yield Ask(pace.prepare(task), slide.patient_id, named, left_s, terms)


def answer(ask: Ask) -> Answer:
    """Score a slide on this machine: read in a process of its own, predicted here; once more where that was lost.

    Raises ClusterError where the members, the kit or its packages cannot be had here, or are others.
    """
    ask.terms.versions.check()
    scorer = Scorer(_members(ask), {ask.task.image_id: ask.patient_id}, ask.terms.competition.limits.min_tiles)
    deadline = time.monotonic() + ask.left_s
    limits = Limits(ask.terms.competition.limits.slide_s, ask.terms.memory_mb, deadline, ask.terms.stall_s)
    with scratch() as folder:
        task = ask.task if ask.task.stored is None else replace(ask.task, path=folder / ask.task.path.name)
        ended = _watch(scorer, task, limits, ask.terms.work)
        if ended.lost and time.monotonic() < deadline:
            scorer.postpone(ended)
            ended = _watch(scorer, again(task), limits, ask.terms.work)
    return Answer(*scorer.scored(ended), time.monotonic())


@contextmanager
def folder_of(weights: Place) -> Iterator[Path]:
    """The folder of members: itself, or for a URL a copy. Raises StoreError where an object store cannot be asked."""
    if isinstance(weights, Path):
        yield weights
        return
    store = store_of(weights)
    with scratch() as made:
        folder = made / PurePosixPath(weights).name  # a member is called as its folder is
        for name in store.entries():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(name, path)
        yield folder


def _watch(scorer: Scorer, task: Task, limits: Limits, work: Work) -> Ended:
    for event in stream([task], limits, 1, work):
        if isinstance(event, Tiles):
            scorer.add(event)
        else:
            return event
    raise AssertionError("a stream ends every task")


def _members(ask: Ask) -> list[Member]:
    """The members that are asked for; loaded once a process, whatever its threads."""
    with _LOADING:
        if ask.members not in _LOADED:
            _LOADED.clear()
            _LOADED[ask.members] = _load(ask)
        return _LOADED[ask.members]


def _load(ask: Ask) -> list[Member]:
    try:
        with folder_of(ask.terms.weights) as weights:
            found = {folder.name: folder for folder in find_members(weights)}
            members = [
                replace(load_member(found[name], ask.terms.competition.classes.names), tile_pool=pool)
                for name, _, pool in ask.members
            ]
    except Exception as error:
        raise ClusterError(
            f"a worker cannot load the members in {ask.terms.weights}: {type(error).__name__}: {one_line(error)}; "
            "give --weights as a URL or a path that every worker has"
        ) from error
    for member, (name, wanted, _) in zip(members, ask.members, strict=True):
        if member.weights_sha256 != wanted:
            raise ClusterError(
                f"{ask.terms.weights}: a worker has another {name} there than this machine has; make them one"
            )
    return members
