"""Score slides on the workers of a cluster, each of which loads the members once."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.engines import Backend, Lost, engine
from clotkit.errors import ClusterError, one_line
from clotkit.members.encoders.loading import load_member
from clotkit.members.folder import find_members
from clotkit.members.loading import Member
from clotkit.progress import Log
from clotkit.scoring.budget import Pace
from clotkit.scoring.inputs import local_weights
from clotkit.scoring.scorer import ScoredSlide, Scorer, ScoringJob, not_scored, score_tasks, slide_task, tilings_of
from clotkit.scratch import scratch
from clotkit.stores import Place
from clotkit.versions import SCORING, Versions, versions_here
from clotkit.workers import NOT_REACHED, Ended, Limits, Task, TileBatch, Work, stream

_LOADING = threading.Lock()
_LOADED: dict[tuple["MemberKey", ...], list[Member]] = {}
MemberKey = tuple[str, str]  # name, sha256 of the weights


@dataclass(frozen=True)
class RunContext:
    """The settings that all requests of a run share."""

    weights: Place  # where a worker finds the members
    competition: Competition
    memory_mb: int  # address space of a slide's process
    stall_s: float  # the longest wait for a slide's next batch
    work: Work  # what a slide's process does
    versions: Versions = field(default_factory=lambda: versions_here(SCORING))  # of the machine that asks


@dataclass(frozen=True)
class ScoreRequest:
    """A request to a worker: score one slide."""

    task: Task
    patient_id: str
    members: tuple[MemberKey, ...]
    left_s: float  # until the deadline; machines' clocks differ
    context: RunContext


@dataclass(frozen=True)
class ScoreResponse:
    """A worker's response: the scored slide."""

    scored: ScoredSlide
    now: float  # time.monotonic() of the worker when it answered


def score_remotely(job: ScoringJob, backend: Backend, log: Log) -> Iterator[ScoredSlide]:
    """Score slides on the workers of a cluster, and yield each as it comes.

    Times are converted to this machine's clock. The smallest file comes first. A worker reads a slide whose process was
    lost once more, at once. Slides get fewer tiles when time is short, as on one machine.

    Raises:
        UsageError: the scheduler does not answer.
        ClusterError: the cluster is gone, or a worker has other members or another clotkit.
    """
    settings, pace = job.settings, job.pace()
    weights = settings.weights_source or settings.weights_dir
    place = weights.absolute() if isinstance(weights, Path) else weights
    context = RunContext(place, job.competition, settings.memory_mb, settings.stall_s, job.work)
    waiting = {slide.image_id: slide for slide in job.ordered}
    requests = _requests(job, context, pace)
    try:
        with engine(backend, log) as workers:
            for request, response in workers.unordered(score_request, requests, pace.deadline):
                pace.slide_ended()
                del waiting[request.task.image_id]
                yield _scored(job.scorer, request, response)
    except ClusterError as error:
        raise ClusterError(f"{error}; scored slides are kept, the same command with --resume goes on") from error
    yield from not_scored(job.scorer, waiting.values(), NOT_REACHED)


def _requests(job: ScoringJob, context: RunContext, pace: Pace) -> Iterator[ScoreRequest]:
    """Yield a request for each slide when its turn comes, until the deadline."""
    keys = tuple((member.name, member.weights_sha256) for member in job.members)
    tilings = tilings_of(job.members)
    for slide in job.ordered:
        left_s = pace.deadline - time.monotonic()
        if left_s <= 0:
            return
        task = slide_task(slide, tilings, slide.path.absolute())
        yield ScoreRequest(pace.prepare(task), slide.patient_id, keys, left_s, context)


def _scored(scorer: Scorer, request: ScoreRequest, response: ScoreResponse | Lost) -> ScoredSlide:
    if isinstance(response, Lost):
        return scorer.finish(Ended(request.task, response.reason, 0.0, 0.0, response.code, lost=True))
    line, means, trace = response.scored
    return ScoredSlide(line, means, trace.shifted(time.monotonic() - response.now))


def score_request(request: ScoreRequest) -> ScoreResponse:
    """Score a slide on this worker: it is read in a process of its own, the members predict in this one.

    Raises ClusterError if the members, the kit or its packages cannot be loaded here, or are other versions.
    """
    task, context = request.task, request.context
    context.versions.check()
    scorer = Scorer(_members(request), {task.image_id: request.patient_id}, context.competition.limits.min_tiles)
    deadline = time.monotonic() + request.left_s
    limits = Limits(context.competition.limits.slide_s, context.memory_mb, deadline, context.stall_s)

    def read(tasks: Sequence[Task], jobs: int) -> Iterator[TileBatch | Ended]:
        return stream(tasks, limits, jobs, context.work)

    with scratch() as folder:
        here = task if task.stored is None else replace(task, path=folder / task.path.name)
        (scored,) = score_tasks(scorer, [here], 1, deadline, read)
    return ScoreResponse(scored, time.monotonic())


def _members(request: ScoreRequest) -> list[Member]:
    """Return the members of a request, loaded once per process and shared by its threads."""
    with _LOADING:
        if request.members not in _LOADED:
            _LOADED.clear()
            _LOADED[request.members] = _load(request.members, request.context)
        return _LOADED[request.members]


def _load(keys: Sequence[MemberKey], context: RunContext) -> list[Member]:
    classes, slug = context.competition.classes.names, context.competition.slug
    try:
        with local_weights(context.weights) as weights:
            folders = {folder.name: folder for folder in find_members(weights)}
            members = [load_member(folders[name], classes, slug) for name, _ in keys]
    except Exception as error:
        raise ClusterError(
            f"a worker cannot load the members in {context.weights}: {type(error).__name__}: {one_line(error)}; "
            "give --weights as a URL or a path that every worker has"
        ) from error
    for member, (name, sha256) in zip(members, keys, strict=True):
        if member.weights_sha256 != sha256:
            raise ClusterError(
                f"{context.weights}: the weights of {name} on a worker differ from those on this machine; copy them"
            )
    return members
