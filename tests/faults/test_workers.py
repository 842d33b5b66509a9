"""Test that a slide's process affects no other slide, and that each ends once, with its code."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clotkit.config import TilingConfig
from clotkit.reasons import Reason
from clotkit.workers import FLOOR_S, Ended, Limits, Piece, Task, TileBatch, slide_limit_s, stream
from tests.stuck import FLUSH, READ, kill_left, stuck_file

from .misbehaving import limited, work

TILING = TilingConfig("patches", tile_px=32, downsample=1, max_tiles=8, batch_tiles=4)
LIMITS = Limits(slide_s=4.0, memory_mb=2048)
PATIENT = Limits(slide_s=120.0, memory_mb=2048)  # where it is not the time that ends a slide


def tasks(*names: str) -> list[Task]:
    return [Task(name, Path("/nowhere") / name, (TILING,)) for name in names]


def ends_of(names: list[str], limits: Limits = LIMITS, jobs: int = 2) -> tuple[dict[str, Ended], Counter[str]]:
    ends: dict[str, Ended] = {}
    tiles: Counter[str] = Counter()
    for event in stream(tasks(*names), limits, jobs, work):
        if isinstance(event, TileBatch):
            tiles[event.image_id] += len(event.batch.tiles)
        else:
            assert event.image_id not in ends
            ends[event.image_id] = event
    return ends, tiles


@pytest.mark.parametrize(
    ("kind", "code", "detail"),
    [
        ("kill", Reason.CRASHED, "SIGKILL"),
        ("segv", Reason.CRASHED, "SIGSEGV"),
        ("hang", Reason.TIMEOUT, "4 s"),
        ("deaf", Reason.TIMEOUT, "4 s"),
        ("hog", Reason.OUT_OF_MEMORY, "2048 MB"),
        ("raise", Reason.FAILED, "ZeroDivisionError"),
        ("refuse", Reason.DAMAGED, ""),
        ("exit", Reason.CRASHED, "7"),
    ],
)
def test_one_bad_slide_affects_no_other(kind: str, code: Reason, detail: str) -> None:
    names = ["good_0", f"{kind}_0", "good_1", "good_2"]
    ends, tiles = ends_of(names, LIMITS if code is Reason.TIMEOUT else PATIENT)
    assert ends[f"{kind}_0"].code is code
    assert detail in ends[f"{kind}_0"].reason
    assert [(ends[name].code, ends[name].reason) for name in names if name.startswith("good")] == [(None, "")] * 3
    assert tiles == {"good_0": 8, "good_1": 8, "good_2": 8}


@pytest.mark.parametrize("own", [None, "7"])
def test_a_slide_has_one_core_and_the_run_what_it_had(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "VIPS_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False) if own is None else monkeypatch.setenv(name, own)
    before = dict(os.environ)
    [ended] = stream(tasks("a"), PATIENT, 1, limited)
    assert isinstance(ended, Ended)
    assert ended.reason == "1 of libvips, 1 in all"
    assert dict(os.environ) == before


def test_tiles_sent_before_a_crash_have_arrived() -> None:
    ends, tiles = ends_of(["latekill_0", "latesegv_0", "latehang_0"])
    assert [end.code for end in ends.values()].count(None) == 0
    assert tiles == {"latekill_0": 8, "latesegv_0": 8, "latehang_0": 8}


def test_a_slide_that_sends_nothing_more_has_stalled() -> None:
    """It ends long before its own limit; a slide that goes on sending is not stopped."""
    limits = Limits(600.0, 2048, deadline=time.monotonic() + 8, stall_s=3.0)
    ends, tiles = ends_of(["latehang_0", "hang_0", "flood_0", "good_0"], limits, jobs=4)
    assert ends["hang_0"].code is ends["latehang_0"].code is Reason.STALLED
    assert ends["flood_0"].code is Reason.TIMEOUT
    assert (ends["good_0"].code, tiles["good_0"]) == (None, 8)


def test_a_slide_without_end_meets_the_deadline() -> None:
    ends, tiles = ends_of(["flood_0", "good_0"], Limits(60.0, 2048, deadline=time.monotonic() + 3))
    assert ends["flood_0"].code is Reason.TIMEOUT
    assert tiles["good_0"] == 8


def test_no_slide_starts_after_the_deadline() -> None:
    ends, _ = ends_of(["good_0", "good_1"], Limits(4.0, 2048, deadline=time.monotonic() - 1))
    assert {end.code for end in ends.values()} == {Reason.DEADLINE}


def test_a_slide_is_stopped_at_the_deadline() -> None:
    ends, _ = ends_of(["hang_0", "hang_1", "good_0"], Limits(60.0, 2048, deadline=time.monotonic() + 2))
    assert [ends[name].code for name in ("hang_0", "hang_1", "good_0")] == [
        Reason.TIMEOUT,
        Reason.TIMEOUT,
        Reason.DEADLINE,
    ]


def test_closing_the_stream_leaves_no_process() -> None:
    events = stream(tasks("latehang_0", "latehang_1"), LIMITS, 2, work)
    assert isinstance(next(events), TileBatch)
    events.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("name", ["hang_0", "latehang_0"])
def test_a_process_that_does_not_die_is_left_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, its slide is not tried again, and Python does not wait for it at its exit."""
    from multiprocessing.process import BaseProcess

    kill = BaseProcess.kill
    monkeypatch.setattr(BaseProcess, "kill", lambda process: None if process.is_alive() else kill(process))
    ends, tiles = ends_of([name, "good_0"], Limits(3.0, 2048, deadline=time.monotonic() + 60))
    pid = ends[name].facts["left_pid"]
    assert psutil.pid_exists(pid)
    kill_left(pid)
    assert (ends[name].code, ends[name].lost, str(pid) in ends[name].reason) == (Reason.TIMEOUT, False, True)
    assert (ends["good_0"].code, tiles["good_0"]) == (None, 8)
    assert multiprocessing.active_children() == []


def test_a_process_that_is_stopped_while_it_sends_has_stalled() -> None:
    """The message that it has begun is not waited for."""
    ends = {}
    for event in stream(tasks("flood_0"), Limits(600.0, 2048, stall_s=2.0), 1, work):
        if isinstance(event, Ended):
            ends[event.image_id] = event
            break
        for child in multiprocessing.active_children():
            child_pid = child.pid
            assert child_pid is not None
            os.kill(child_pid, signal.SIGSTOP)
    assert ends["flood_0"].code is Reason.STALLED


@pytest.mark.parametrize("operation", [READ, pytest.param(FLUSH, marks=pytest.mark.slow_faults)])
def test_a_file_that_does_not_answer_leaves_its_process_behind(operation: int, tmp_path: Path) -> None:
    """At its open, a read, or its close: the process sleeps in the kernel, which SIGKILL does not end."""
    path = tmp_path / "a.tif"
    path.write_bytes(bytes(2**17))
    stuck = Task("stuck_0", path, (TILING,))
    with stuck_file(path, operation):
        ends = {}
        for event in stream([stuck, *tasks("good_0")], Limits(3.0, 2048), 2, whole):
            if isinstance(event, Ended):
                ends[event.image_id] = event
        assert psutil.Process(ends["stuck_0"].facts["left_pid"]).status() == psutil.STATUS_DISK_SLEEP
    assert ends["stuck_0"].code in (Reason.TIMEOUT, None)
    assert ends["good_0"].code is None


def whole(task: Task) -> Iterator[tuple[int, Piece]]:
    """Read the slide's file to its end, if it has one."""
    if task.path.exists():
        with task.path.open("rb") as file:
            yield 0, {"bytes": len(file.read())}


def test_every_end_has_its_cost() -> None:
    ended = [event for event in stream(tasks("good_0"), LIMITS, 1, work) if isinstance(event, Ended)]
    assert 10 < ended[0].peak_mb < 300
    assert 0 < ended[0].seconds < LIMITS.slide_s
    assert ended[0].facts == {"decoder": "none"}


def test_a_slide_dies_with_the_run() -> None:
    """Kill the parent; its hanging child must die too."""
    code = (
        "from pathlib import Path\n"
        "from clotkit.workers import stream, Limits\n"
        "from tests.faults.test_workers import tasks\n"
        "from tests.faults.misbehaving import work\n"
        "import multiprocessing\n"
        "events = stream(tasks('latehang_0'), Limits(600, 2048), 1, work)\n"
        "next(events)\n"
        "print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "[event for event in events]\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert (len(gone), len(alive)) == (1, 0)


@pytest.mark.parametrize(
    ("left_s", "jobs", "slides", "expected"),
    [
        (28_800, 4, 280, 300.0),  # plenty of time: the slide's own limit
        (1_000, 2, 100, 80.0),  # four fair shares of 20 s
        (1_000, 1, 1_000, FLOOR_S),  # never below the floor
        (10, 1, 1, 10.0),  # never beyond the deadline
    ],
)
def test_a_slides_time(left_s: float, jobs: int, slides: int, expected: float) -> None:
    assert slide_limit_s(Limits(300.0, 2048, deadline=left_s), 0.0, jobs, slides) == pytest.approx(expected)
