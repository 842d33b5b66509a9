"""Run each slide in a process of its own, with a pipe, a time limit and a memory limit.

A pool loses healthy tasks when a worker is killed, and returns one result per task. Here a slide that is killed,
crashes, hangs or runs out of memory affects no other slide. Batches stream to the parent: a full pipe blocks the child,
so memory is bounded on both sides whatever the slide's size.
"""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from clotkit.config import TilingConfig
from clotkit.errors import ClotkitError, SlideError, UsageError
from clotkit.file_state import file_state
from clotkit.forking import Child, start, wait_for_exit
from clotkit.pipes import Inbox, send
from clotkit.reasons import Cause, Reason
from clotkit.stores import StoredFile
from clotkit.tiling.thumbnail import Thumbnail, ThumbnailRecorder
from clotkit.tiling.tilers import Batch, check_tiler, cut_slide, open_for
from clotkit.tissue.rules import TissueRule
from clotkit.units import MB

FLOOR_S = 30.0  # a slide gets at least this long, however many slides are left
POLL_S = 0.5  # between two looks at the limits
KILL_S = 3.0  # SIGKILL ends a process within it, unless the process sleeps in the kernel
LAST_KILL_S = 0.5  # the same once the run's deadline has come
MIN_MEMORY_MB = 512  # below it a slide's process cannot even start
MAX_SHARE = 4.0  # a slide may take this many times its fair share of the time that is left
NOT_REACHED = Cause(Reason.DEADLINE, "the run's deadline came before its turn")
FILE = "file"  # the fact with the state of a slide's file before it was read
LEFT_PID = "left_pid"  # the fact that names a process which did not end when it was killed
FACTS, BATCH, THUMBNAIL, END = "facts", "batch", "thumbnail", "end"  # kinds of message in a pipe
ALLOCATION_WORDS = (
    "allocate",
    "out of memory",
    "malloc",
)  # in messages of native libraries, which raise no MemoryError


@dataclass(frozen=True)
class Task:
    """A slide to tile, once per distinct tiling."""

    image_id: str
    path: Path
    tilings: tuple[TilingConfig, ...]
    budget: int = field(default=0, kw_only=True)  # for the caller: scoring.budget.Budget
    stored: StoredFile | None = field(default=None, kw_only=True)  # the slide's process downloads it to `path`


@dataclass(frozen=True)
class Limits:
    """The limits of a slide's process."""

    slide_s: float  # seconds
    memory_mb: int  # address space
    deadline: float = float("inf")  # of the whole run, a time.monotonic() value
    stall_s: float = float("inf")  # the longest wait for the next batch, seconds


@dataclass(frozen=True)
class TileBatch:
    """A batch of tiles of a slide."""

    task: Task
    tiling: int  # index into the task's tilings
    batch: Batch

    @property
    def image_id(self) -> str:
        """The slide's id."""
        return self.task.image_id


@dataclass(frozen=True)
class Ended:
    """The end of a slide's process."""

    task: Task
    reason: str  # a sentence for people; empty: every tile came
    seconds: float
    peak_mb: float  # resident memory; 0 if the process was killed
    code: Reason | None = None  # None: every tile came
    facts: dict[str, Any] = field(default_factory=dict)  # of the file and its tissue, from the tilers; LEFT_PID
    lost: bool = False  # the process died and the slide can be retried
    started: float | None = None  # a time.monotonic() value; None: there was no process
    thumbnail: Thumbnail | None = None  # for the report only

    @property
    def image_id(self) -> str:
        """The slide's id."""
        return self.task.image_id


Prepare = Callable[[Task], Task]
Piece = dict[str, Any] | Batch | Thumbnail
Work = Callable[[Task], Iterator[tuple[int, Piece]]]


def tile_task(task: Task) -> Iterator[tuple[int, Piece]]:
    """Cut a slide with each tiling; yield each piece with the tiling's index, and the thumbnail last.

    This is the work of a slide's process. A slide that cannot be read gets a thumbnail of the part that was.
    """
    recorder, facts = ThumbnailRecorder(), dict[str, Any]()
    fetch(task)
    try:
        for index, tiling in enumerate(task.tilings):
            check_tiler(tiling)
            for piece in cut_slide(recorder.watch(open_for(task.path, tiling)), tiling, recorder.see_glass):
                if isinstance(piece, dict):
                    facts.update(piece)
                yield index, piece
    except SlideError:
        yield from _thumbnail_of(recorder, facts)
        raise
    yield from _thumbnail_of(recorder, facts)


def score_task(task: Task) -> Iterator[tuple[int, Piece]]:
    """Cut a slide as tile_task does, after the state of its file, which `--resume` compares."""
    yield 0, {FILE: file_state(task.path) if task.stored is None else asdict(task.stored.entry)}
    yield from tile_task(task)


def fetch(task: Task) -> None:
    """Download the slide to `task.path` if an object store has it. Raises StoreError."""
    if task.stored is not None:
        task.path.parent.mkdir(parents=True, exist_ok=True)
        task.stored.fetch(task.path)


def _thumbnail_of(recorder: ThumbnailRecorder, facts: dict[str, Any]) -> Iterator[tuple[int, Thumbnail]]:
    """Yield the thumbnail of a slide, if one can be made; `facts` are those of its tilers."""
    background = tuple(facts.get("background", (255, 255, 255)))
    rule = TissueRule(facts["tissue_step"], facts["marks_are_tissue"]) if "tissue_step" in facts else None
    try:
        thumbnail = recorder.thumbnail(background, rule)
    except Exception:  # noqa: BLE001 - a thumbnail is not worth a slide
        return
    if thumbnail is not None:
        yield 0, thumbnail


def check_limits(jobs: int, memory_mb: int) -> None:
    """Raise UsageError if `--jobs` or `--memory` is too small for any slide."""
    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}; at least 1 is needed")
    if memory_mb < MIN_MEMORY_MB:
        raise UsageError(f"--memory is {memory_mb} MB; at least {MIN_MEMORY_MB} is needed")


def unchanged(task: Task) -> Task:
    """Return the task as it is."""
    return task


def never() -> bool:
    """Return False: nothing stops the stream."""
    return False


def stream(
    tasks: Sequence[Task],
    limits: Limits,
    jobs: int,
    work: Work = tile_task,
    prepare: Prepare = unchanged,
    stopped: Callable[[], bool] = never,
) -> Generator[TileBatch | Ended, None, None]:
    """Run every task in a process of its own; yield batches as they come, and the end of each task.

    Every task ends exactly once, whatever its process does. Tasks that have not begun by the deadline end without a
    process. Closing the generator kills the processes that run. A process that SIGKILL does not end, because a file
    system does not answer it, is left behind, and its slide's end names it.

    Args:
        tasks: the slides, in the order to begin them.
        limits: of each process.
        jobs: processes at a time.
        work: runs in the child; it must be importable by name.
        prepare: may change a task when its turn comes.
        stopped: polled every POLL_S, for callers that cannot close the generator; True ends it.
    """
    waiting, running = deque(tasks), dict[Connection, _Child]()
    try:
        while (waiting or running) and not stopped():
            while waiting and len(running) < jobs:
                now = time.monotonic()
                if now >= limits.deadline:
                    yield Ended(waiting.popleft(), NOT_REACHED.sentence, 0.0, 0.0, NOT_REACHED.code)
                    continue
                limit = slide_limit_s(limits, now, jobs, len(waiting) + len(running))
                child = _Child(prepare(waiting.popleft()), work, limit, limits)
                running[child.reader] = child
            yield from _turn(running, limits.deadline)
    finally:
        for child in _killed(running.values(), limits.deadline):
            child.close()


def slide_limit_s(limits: Limits, now: float, jobs: int, slides_left: int) -> float:
    """Return the seconds that a slide may take if it starts at `now`, a time.monotonic() value.

    The least of its own limit, MAX_SHARE fair shares of the time that is left, and the time until the deadline.
    """
    left = limits.deadline - now
    fair = max(FLOOR_S, MAX_SHARE * left * jobs / max(slides_left, 1))
    return max(0.0, min(limits.slide_s, fair, left))


def _turn(running: dict[Connection, "_Child"], deadline: float) -> Iterator[TileBatch | Ended]:
    """Wait for one message or limit, and yield its events; ended children leave `running`."""
    if not running:
        return
    next_limit = min(child.due for child in running.values())
    for ready in wait(list(running), timeout=min(POLL_S, max(0.0, next_limit - time.monotonic()))):
        reader = ready if isinstance(ready, Connection) else None
        if reader is not None and (event := running[reader].receive()) is not None:
            if isinstance(event, Ended):
                del running[reader]
            yield event
    now = time.monotonic()
    # A child with a message in its pipe waits for us, so only the run's deadline ends it.
    late = [child for child in running.values() if now >= child.due and (now >= deadline or not child.reader.poll())]
    for child in _killed(late, deadline):
        del running[child.reader]
        yield child.overdue()


def _killed(children: Iterable["_Child"], deadline: float) -> list["_Child"]:
    """Kill all of them, with one wait for their ends, and return them."""
    children = list(children)
    for child in children:
        child.process.kill()
    until = _kill_until(deadline) if children else 0.0
    for child in children:
        wait_for_exit(child.process, until)
    return children


def _kill_until(deadline: float) -> float:
    """Return the time.monotonic() value until which to wait for a process that is killed now."""
    now = time.monotonic()
    return now + min(KILL_S, max(LAST_KILL_S, deadline - now))


class _Child:
    """The parent's side of a slide's process."""

    def __init__(self, task: Task, work: Work, limit_s: float, limits: Limits) -> None:
        self.task, self.limit_s, self.facts = task, limit_s, dict[str, Any]()
        self.thumbnail: Thumbnail | None = None
        self.reader, writer = multiprocessing.Pipe(duplex=False)
        self.started = self.last_message = time.monotonic()
        self.limit, self.stall_s = self.started + limit_s, limits.stall_s
        self.peak_mb = 0.0
        self.process: Child = start(_child_main, (work, task, limits.memory_mb), writer)
        writer.close()
        self.inbox, self.deadline = Inbox(self.reader.fileno()), limits.deadline

    @property
    def due(self) -> float:
        """The time.monotonic() value at which its time is up."""
        return min(self.limit, self.last_message + self.stall_s)

    def receive(self) -> TileBatch | Ended | None:
        try:
            message = self.inbox.receive()
        except Exception:  # noqa: BLE001 - the pipe has ended, or its process sent what is no message
            return self._died()
        if message is None:
            return None
        kind, value = message
        self.last_message = time.monotonic()
        if kind == BATCH:
            return TileBatch(self.task, *value)
        if kind == FACTS:
            self.facts.update(value)
            return None
        if kind == THUMBNAIL:
            self.thumbnail = value
            return None
        reason, code, self.peak_mb = value
        return self._end(reason, code, lost=code is Reason.OUT_OF_MEMORY)

    def overdue(self) -> Ended:
        if self.due < self.limit:
            return self._end(f"stalled: no batch for {self.stall_s:.0f} s", Reason.STALLED, lost=True)
        return self._end(f"time limit: not done after {self.limit_s:.0f} s", Reason.TIMEOUT, lost=True)

    def close(self) -> None:
        """Give up the process, which has ended or does not end when it is killed."""
        self.reader.close()
        if self.process.exitcode is None:
            # At its exit, Python waits without a limit for all of these.
            vars(multiprocessing.process)["_children"].discard(self.process)

    def _died(self) -> Ended:
        wait_for_exit(self.process, _kill_until(self.deadline))  # before it is killed, which would hide why it ends
        code = self.process.exitcode
        if code is not None and code < 0:
            return self._end(f"its process died of {signal.Signals(-code).name}", Reason.CRASHED, lost=True)
        return self._end(f"its process ended without a result, exit code {code}", Reason.CRASHED, lost=True)

    def _end(self, reason: str, code: Reason | None, lost: bool = False) -> Ended:
        """Kill the process with SIGKILL, as native code ignores SIGTERM, and return the slide's end."""
        _killed([self], self.deadline)
        left = self.process.pid if self.process.exitcode is None else None
        self.close()
        if left is not None:
            reason = "; ".join(
                filter(None, [reason, f"its process {left} does not end when killed and is left behind"])
            )
        return Ended(
            self.task,
            reason,
            seconds=time.monotonic() - self.started,
            peak_mb=self.peak_mb,
            code=code,
            facts=self.facts if left is None else self.facts | {LEFT_PID: left},
            lost=lost and left is None,  # another one would be left behind too
            started=self.started,
            thumbnail=self.thumbnail,
        )


def _child_main(work: Work, task: Task, memory_mb: int, writer: int) -> None:
    """Run a slide's process: set the limits, do the work, send one last message with the peak memory."""
    confine(memory_mb)
    reason, code = "", None
    try:
        for index, piece in work(task):
            send(writer, _message(index, piece))
    except BrokenPipeError:
        return  # the parent has abandoned this slide
    except Exception as error:  # noqa: BLE001 - any error affects this slide only, and the report names it
        code, reason = cause_of(error, memory_mb)
    send(writer, (END, (reason, code, peak_mb())))
    os.close(writer)
    os._exit(0)  # native libraries may hang or crash in their clean-up, and everything is sent


def confine(memory_mb: int) -> None:
    """Set the limits of this process, a slide's, and let go of what it shares with the run."""
    _give_up_shared_files()
    _limit(memory_mb)


def _give_up_shared_files() -> None:
    """Close the files that this process shares with the run, which would stay open if it cannot be killed.

    Whoever reads the run's output through a pipe would wait for its end; so would the run itself for the process that
    tracks the shared memory of multiprocessing.
    """
    tracker: int | None = vars(resource_tracker)["_resource_tracker"]._fd
    nowhere = os.open(os.devnull, os.O_RDWR)
    for shared in (0, 1, 2, tracker):
        if shared is not None:
            os.dup2(nowhere, shared)
    os.close(nowhere)


def _message(index: int, piece: Piece) -> tuple[str, Any]:
    """Return the message for one piece of work."""
    if isinstance(piece, Batch):
        return BATCH, (index, piece)
    return (THUMBNAIL if isinstance(piece, Thumbnail) else FACTS), piece


def cause_of(error: Exception, memory_mb: int) -> Cause:
    """Return why a slide's process failed; a failed allocation is reported as the memory limit."""
    reason, code = f"{type(error).__name__}: {error}".splitlines()[0], Reason.FAILED
    if isinstance(error, MemoryError):
        reason, code = "", Reason.OUT_OF_MEMORY
    elif isinstance(error, ClotkitError):
        reason, code = str(error), error.reason
    if code is Reason.OUT_OF_MEMORY or any(word in reason.lower() for word in ALLOCATION_WORDS):
        why = f" ({reason})" if reason else ""
        return Cause(Reason.OUT_OF_MEMORY, f"memory limit: {memory_mb} MB were not enough{why}")
    return Cause(code, reason)


def _limit(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * MB, memory_mb * MB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    set_oom_score(1000)


def set_oom_score(score: int) -> None:
    """Set how readily Linux kills this process when memory runs out; 1000 is first.

    It does nothing on other systems.
    """
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError:
        return


def allow_children() -> None:
    """Let this process, a worker of loky or of a Dask cluster, start the processes of slides.

    Dask's workers are daemons, to which multiprocessing refuses children; loky's would pass on a start method that only
    loky knows. Children would also import the engine's own main module first, which for Dask takes as long as a small
    slide. Dask sets malloc to return memory at once, which makes decoding 1.2 times as slow; that is undone here.
    """
    multiprocessing.current_process().daemon = False
    multiprocessing.set_start_method("spawn", force=True)
    program = sys.modules["__main__"]
    program.__spec__ = None
    vars(program).pop("__file__", None)  # inspect fails if it is None
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)


@cache
def has_semaphores() -> bool:
    """Return whether loky works here.

    Its locks need shared memory, which a small or absent /dev/shm refuses. Threads do as well where each slide has a
    process of its own.
    """
    try:
        multiprocessing.get_context("spawn").Lock()
    except (ImportError, OSError):
        return False
    return True


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB (2**20 bytes).

    It is VmHWM, because a spawned process inherits the maximum of getrusage from its parent.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
