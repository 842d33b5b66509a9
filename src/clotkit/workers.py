"""One process and one pipe per slide: the only place with processes, signals and limits.

A pool loses healthy tasks when a worker is killed, and returns one result a task. Here a slide that is killed, crashes,
hangs or eats memory costs itself alone, and batches stream to the parent: a full pipe blocks the child, so memory is
bounded on both sides whatever the slide's size.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from clotkit.config import TilingConfig
from clotkit.errors import ClotkitError, SlideError, UsageError
from clotkit.reasons import Cause, Reason
from clotkit.slides.reader import open_slide
from clotkit.stores import StoredFile
from clotkit.tiling.thumbnail import Thumbnail, ThumbnailRecorder
from clotkit.tiling.tilers import Batch, check_tiler, cut_slide
from clotkit.tiling.tissue import TissueRule
from clotkit.units import MB

FLOOR_S = 30.0  # a slide's time never falls below this for being one of many
BEAT_S = 0.5
LEAST_MEMORY_MB = 512  # that a slide's process can do anything with
SHARE = 4.0  # a slide may take this many times its fair share of the time left
ONE_CORE = {"OPENBLAS_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}  # of a slide: the other slides have the rest
NOT_REACHED = Cause(Reason.DEADLINE, "the run's deadline came before its turn")
_STARTING = threading.Lock()
FACTS, BATCH, THUMBNAIL, END = "facts", "batch", "thumbnail", "end"  # kinds of message in a pipe
ALLOCATION_WORDS = ("allocate", "out of memory", "malloc")  # of native libraries, which have no type for it


@dataclass(frozen=True)
class Task:
    """One slide to tile, once per distinct tiling; `budget` is for the caller (scoring.budget).

    A slide that is `stored` elsewhere is fetched to `path` by its own process.
    """

    image_id: str
    path: Path
    tilings: tuple[TilingConfig, ...]
    budget: int = field(default=0, kw_only=True)
    stored: StoredFile | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Limits:
    """What a slide may cost; `stall_s` is the longest wait for its next batch.

    `deadline` is a time.monotonic() value, or infinity.
    """

    slide_s: float
    memory_mb: int
    deadline: float = float("inf")
    stall_s: float = float("inf")


@dataclass(frozen=True)
class Tiles:
    """A batch of a slide, cut with `tilings[tiling]` of its task."""

    task: Task
    tiling: int
    batch: Batch

    @property
    def image_id(self) -> str:
        """The slide's id."""
        return self.task.image_id


@dataclass(frozen=True)
class Ended:
    """A slide's end: `code` is None and `reason` empty when every tile came.

    `lost`: the process died and the slide can be retried.

    `started` is a time.monotonic() value, None where there was no process; `thumbnail` is for the report alone.
    """

    task: Task
    reason: str
    seconds: float
    peak_mb: float
    code: Reason | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    lost: bool = False
    started: float | None = None
    thumbnail: Thumbnail | None = None

    @property
    def image_id(self) -> str:
        """The slide's id."""
        return self.task.image_id


Prepare = Callable[[Task], Task]
Piece = dict[str, Any] | Batch | Thumbnail
Work = Callable[[Task], Iterator[tuple[int, Piece]]]


def tile_task(task: Task) -> Iterator[tuple[int, Piece]]:
    """The work of a slide's process: its tiles for each tiling, each piece with the tiling's index; then its thumbnail.

    A slide that is refused is sketched as far as it was read.
    """
    recorder, facts = ThumbnailRecorder(), dict[str, Any]()
    fetch(task)
    try:
        for index, tiling in enumerate(task.tilings):
            check_tiler(tiling)
            for piece in cut_slide(recorder.watch(open_slide(task.path)), tiling):
                if isinstance(piece, dict):
                    facts.update(piece)
                yield index, piece
    except SlideError:
        yield from _thumbnail_of(recorder, facts)
        raise
    yield from _thumbnail_of(recorder, facts)


def fetch(task: Task) -> None:
    """Have the task's slide at its path. Raises StoreError."""
    if task.stored is not None:
        task.path.parent.mkdir(parents=True, exist_ok=True)
        task.stored.fetch(task.path)


def _thumbnail_of(recorder: ThumbnailRecorder, facts: dict[str, Any]) -> Iterator[tuple[int, Thumbnail]]:
    """The thumbnail of a slide of which the tilers have said these facts, if there is one."""
    background = tuple(facts.get("background", (255, 255, 255)))
    rule = TissueRule(facts["tissue_step"], facts["marks_are_tissue"]) if "tissue_step" in facts else None
    try:
        thumbnail = recorder.thumbnail(background, rule)
    except Exception:  # noqa: BLE001 - a picture is not worth a slide
        return
    if thumbnail is not None:
        yield 0, thumbnail


def check_limits(jobs: int, memory_mb: int) -> None:
    """Raise UsageError where `--jobs` or `--memory` leaves no slide's process anything to work with."""
    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}; at least 1 is needed")
    if memory_mb < LEAST_MEMORY_MB:
        raise UsageError(f"--memory is {memory_mb} MB; at least {LEAST_MEMORY_MB} is needed")


def as_it_is(task: Task) -> Task:
    """The task itself: nothing is changed before its turn."""
    return task


def never() -> bool:
    """False: nothing stops the stream."""
    return False


def stream(
    tasks: Sequence[Task],
    limits: Limits,
    jobs: int,
    work: Work = tile_task,
    prepare: Prepare = as_it_is,
    stopped: Callable[[], bool] = never,
) -> Generator[Tiles | Ended, None, None]:
    """Run every task in a process of its own, `jobs` at a time, and yield batches as they come, then each task's end.

    `work` runs in the child and must be importable by name; `prepare` may change a task when its turn comes. Every task
    ends exactly once, whatever its process does; tasks not begun by the deadline end without a process. Closing the
    generator kills what runs, and so does `stopped`, which is asked every BEAT_S, for whoever cannot close it.
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
        for child in running.values():
            child.kill()


def slide_limit_s(limits: Limits, now: float, jobs: int, slides_left: int) -> float:
    """Seconds a slide may take when it starts now: its own limit, a few fair shares of what is left, the deadline."""
    left = limits.deadline - now
    fair = max(FLOOR_S, SHARE * left * jobs / max(slides_left, 1))
    return max(0.0, min(limits.slide_s, fair, left))


def _turn(running: dict[Connection, "_Child"], deadline: float) -> Iterator[Tiles | Ended]:
    """Wait for one message or limit and yield what it gives; ended children leave `running`."""
    if not running:
        return
    next_limit = min(child.due for child in running.values())
    for ready in wait(list(running), timeout=min(BEAT_S, max(0.0, next_limit - time.monotonic()))):
        reader = ready if isinstance(ready, Connection) else None
        if reader is not None and (event := running[reader].receive()) is not None:
            if isinstance(event, Ended):
                del running[reader]
            yield event
    for reader, child in list(running.items()):
        now = time.monotonic()
        # A child with something in its pipe waits for us, not we for it: only the run's deadline ends that.
        if now >= child.due and (now >= deadline or not reader.poll()):
            del running[reader]
            yield child.overdue()


class _Child:
    """A slide's process, seen from the parent."""

    def __init__(self, task: Task, work: Work, limit_s: float, limits: Limits) -> None:
        context = multiprocessing.get_context("spawn")  # never fork: TensorFlow and libvips hold threads
        self.task, self.limit_s, self.facts = task, limit_s, dict[str, Any]()
        self.thumbnail: Thumbnail | None = None
        self.reader, writer = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=_child_main, args=(work, task, writer, limits.memory_mb, os.getpid()), daemon=True
        )
        self.started = self.heard = time.monotonic()
        self.limit, self.stall_s = self.started + limit_s, limits.stall_s
        self.peak_mb = 0.0
        with _one_core():
            self.process.start()
        writer.close()

    @property
    def due(self) -> float:
        """When it has had its time: a time.monotonic() value."""
        return min(self.limit, self.heard + self.stall_s)

    def receive(self) -> Tiles | Ended | None:
        try:
            kind, value = self.reader.recv()
        except (EOFError, OSError):
            return self._died()
        self.heard = time.monotonic()
        if kind == BATCH:
            return Tiles(self.task, *value)
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
            return self._end(f"stalled: {self.stall_s:.0f} s without a batch", Reason.STALLED, lost=True)
        return self._end(f"time limit: {self.limit_s:.0f} s without an end", Reason.TIMEOUT, lost=True)

    def kill(self) -> None:
        """SIGKILL, because native code does not heed SIGTERM; the pipe is closed first so that no join can block."""
        self.reader.close()
        self.process.kill()
        self.process.join()

    def _died(self) -> Ended:
        self.reader.close()
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return self._end(f"its process died of {signal.Signals(-code).name}", Reason.CRASHED, lost=True)
        return self._end(f"its process ended without a word, exit code {code}", Reason.CRASHED, lost=True)

    def _end(self, reason: str, code: Reason | None, lost: bool = False) -> Ended:
        self.kill()
        seconds = time.monotonic() - self.started
        return Ended(self.task, reason, seconds, self.peak_mb, code, self.facts, lost, self.started, self.thumbnail)


@contextmanager
def _one_core() -> Iterator[None]:
    """Let processes that start inside have one core each, in the environment, where libraries look as they are loaded.

    OpenBLAS makes its threads while numpy is imported: two slides that begin at once took 1.7 times as long for that.
    """
    with _STARTING:
        before = {name: os.environ.get(name) for name in ONE_CORE}
        os.environ.update(ONE_CORE)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _child_main(work: Work, task: Task, writer: Connection, memory_mb: int, parent: int) -> None:
    """The life of a slide's process: limits first, then the work, then one last message with the peak memory."""
    die_with(parent)
    _limit(memory_mb)
    last: tuple[str, tuple[str, Reason | None, float]]
    try:
        for index, piece in work(task):
            writer.send(_message(index, piece))
        last = (END, ("", None, peak_mb()))
    except MemoryError:
        last = _failed("", Reason.OUT_OF_MEMORY, memory_mb)
    except ClotkitError as error:
        last = _failed(str(error), error.reason, memory_mb)
    except BrokenPipeError:
        return  # the parent has given this slide up
    except Exception as error:  # noqa: BLE001 - whatever it is, it costs this slide alone and is named in the report
        last = _failed(f"{type(error).__name__}: {error}".splitlines()[0], Reason.FAILED, memory_mb)
    writer.send(last)
    writer.close()
    os._exit(0)  # native libraries may hang or crash in their own clean-up; everything is sent


def _message(index: int, piece: Piece) -> tuple[str, Any]:
    """What goes through the pipe for a piece of the work."""
    if isinstance(piece, Batch):
        return BATCH, (index, piece)
    return (THUMBNAIL if isinstance(piece, Thumbnail) else FACTS), piece


def _failed(reason: str, code: Reason, memory_mb: int) -> tuple[str, tuple[str, Reason, float]]:
    """Return the last message for an error; the memory limit is named where a library could not allocate."""
    if code is Reason.OUT_OF_MEMORY or any(word in reason.lower() for word in ALLOCATION_WORDS):
        why = f" ({reason})" if reason else ""
        return END, (f"memory limit: {memory_mb} MB were not enough{why}", Reason.OUT_OF_MEMORY, peak_mb())
    return END, (reason, code, peak_mb())


def _limit(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * MB, memory_mb * MB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    set_oom_score(1000)


def set_oom_score(score: int) -> None:
    """Say how readily the kernel may take this process when memory runs out (1000: first), where that can be said."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError:
        return


def die_with(parent: int) -> None:
    """Be killed when the parent dies, so that a hung slide does not outlive its run. Linux only; elsewhere nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died before prctl was called
        os._exit(1)


def allow_children() -> None:
    """Let this process, a worker of loky's or of a Dask cluster, start others.

    Dask's are daemons, which multiprocessing refuses children; loky's would hand down a way to start them that only it
    knows. A child would first import the engine's own program, Dask's for as long as a small slide takes; and Dask has
    its workers give memory back at once, with which a slide decodes 1.2 times as long.
    """
    multiprocessing.current_process().daemon = False
    multiprocessing.set_start_method("spawn", force=True)
    program = sys.modules["__main__"]
    program.__spec__ = None
    vars(program).pop("__file__", None)  # where it is None, inspect fails
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)


def peak_mb() -> float:
    """The peak resident memory of this process in MB (2**20 bytes).

    VmHWM, because getrusage's maximum is inherited from the parent across spawn.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
