"""Work for a slide's process that really fails; the spawned process imports it by name."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clotkit.errors import SlideUnreadable
from clotkit.scoring.budget import Budget
from clotkit.tiling.tilers import Batch
from clotkit.workers import Piece, Task, tile_task

FOREVER_S = 3600
WORD = "CLOTKIT_TEST_WORD"  # an environment variable
_TRACES: list[str] = []


def work(task: Task) -> Iterator[tuple[int, Piece]]:  # noqa: PLR0912 - a line a fault
    """Do what the slide's name says; sound tiles first if it begins with "late", and for any other name."""
    kind = task.image_id.partition("_")[0]
    if kind.startswith("late"):
        yield from some(task)
    match kind.removeprefix("late"):
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "once":
            if task.budget != Budget.COARSER:
                os.kill(os.getpid(), signal.SIGKILL)
            yield from some(task)
        case "segv":
            ctypes.string_at(0)
        case "hang":
            time.sleep(FOREVER_S)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(FOREVER_S)
        case "hog":
            hoard = [np.ones(2**27, np.uint8) for _ in range(1000)]
            yield 0, {"never": len(hoard)}
        case "large":
            yield 0, {"large": int(np.ones(2**28, np.uint8)[0])}
        case "raise":
            raise ZeroDivisionError("by a decoder")
        case "refuse":
            raise SlideUnreadable("not an image")
        case "exit":
            os._exit(7)
        case "flood":
            while True:
                yield from some(task)
        case _:
            yield from tile_task(task) if task.path.exists() else some(task)


def some(task: Task) -> Iterator[tuple[int, Piece]]:
    """Yield facts and two batches of grey tiles, the same for every slide."""
    side = task.tilings[0].tile_px
    yield 0, {"decoder": "none"}
    for value in (90, 160):
        yield 0, Batch(np.full((4, side, side, 3), value, np.uint8), np.zeros((4, 2), np.int32))


def limited(task: Task) -> Iterator[tuple[int, Piece]]:
    """Refuse a slide; the message has the threads of its process and its libraries."""
    threads = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Threads"))
    raise SlideUnreadable(f"{os.environ['VIPS_CONCURRENCY']} of libvips, {threads.split()[1]} in all")
    yield


def heavy(task: Task) -> Iterator[tuple[int, Piece]]:
    """Refuse a slide; the message has the modules and settings that its process inherited from the engine."""
    brought = {"click", "dask", "distributed", "joblib"} & set(sys.modules)
    set_so = {"MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
    raise SlideUnreadable(f"brought {sorted(brought | set_so)}")
    yield


def traces(task: Task) -> Iterator[tuple[int, Piece]]:
    """Yield what an earlier slide has left behind in this process, then leave as much."""
    left = [*_TRACES, *(name for name in ("trace", "TRACE") if name in sys.modules or name in os.environ)]
    yield (
        0,
        {
            "traces": len(left),
            "word": os.environ.get(WORD),
            "folder": str(Path.cwd()),
            "pid": os.getpid(),
            "parent": os.getppid(),
        },
    )
    _TRACES.append(task.image_id)
    sys.modules["trace"] = sys
    os.environ["TRACE"] = task.image_id
    os.chdir("/")


def kills_parent(task: Task) -> Iterator[tuple[int, Piece]]:
    """Kill the process that has started this one."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(FOREVER_S)
    yield 0, {}
