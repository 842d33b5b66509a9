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
from typing import Any

import psutil
import pytest

from clotkit.config import TilingConfig
from clotkit.forking import METHOD
from clotkit.reasons import Reason
from clotkit.workers import FLOOR_S, Ended, Limits, Piece, Task, TileBatch, slide_limit_s, stream
from tests.stuck import FLUSH, READ, kill_left, stuck_file

from .misbehaving import WORD, limited, traces, work

TILING = TilingConfig("patches", tile_px=32, downsample=1, max_tiles=8, batch_tiles=4)
LIMITS = Limits(slide_s=4.0, memory_mb=2048)
PATIENT = Limits(slide_s=120.0, memory_mb=2048)  # where it is not the time that ends a slide


@pytest.fixture(autouse=True, params=["fork", pytest.param("spawn", marks=pytest.mark.slow_faults)])
def start_method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here holds for a forked and for a spawned process."""
    monkeypatch.setenv(METHOD, request.param)
    return str(request.param)


def running() -> list[psutil.Process]:
    """Return the processes of slides that this process has started, which are known by their score."""
    started = [process for process in psutil.Process().children(recursive=True) if _score(process.pid) == "1000"]
    return [process for process in started if process.status() != psutil.STATUS_ZOMBIE]


def _score(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
    except OSError:
        return ""  # it has ended


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
    """Nothing is written to the run's environment meanwhile: a thread that copies it would fail."""
    for name in ("OPENBLAS_NUM_THREADS", "VIPS_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False) if own is None else monkeypatch.setenv(name, own)
    before, written = dict(os.environ), list[object]()
    monkeypatch.setattr(os, "putenv", lambda name, _: written.append(name))
    monkeypatch.setattr(os, "unsetenv", written.append)
    [ended] = stream(tasks("a"), PATIENT, 1, limited)
    assert isinstance(ended, Ended)
    assert ended.reason == "1 of libvips, 1 in all"
    assert (dict(os.environ), written) == (before, [])


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
    assert running()
    events.close()
    assert running() == []


@pytest.mark.parametrize("name", ["hang_0", "latehang_0"])
def test_a_process_that_does_not_die_is_left_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, its slide is not tried again, and Python does not wait for it at its exit."""
    with monkeypatch.context() as deaf:
        deaf.setattr(os, "kill", lambda pid, number: None)
        ends, tiles = ends_of([name, "good_0"], Limits(3.0, 2048, deadline=time.monotonic() + 60))
    pid = ends[name].facts["left_pid"]
    assert [process.pid for process in running()] == [pid]
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
        for child in running():
            child.suspend()
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
    """Kill the parent; its hanging child must die too, and whatever else it has started."""
    code = (
        "from pathlib import Path\n"
        "from clotkit.workers import stream, Limits\n"
        "from tests.faults.test_workers import running, tasks\n"
        "from tests.faults.misbehaving import work\n"
        "events = stream(tasks('latehang_0'), Limits(600, 2048), 1, work)\n"
        "next(events)\n"
        "print(running()[0].pid, flush=True)\n"
        "[event for event in events]\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert parent.stdout is not None
    with parent.stdout:
        slide = int(parent.stdout.readline())
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert slide in {process.pid for process in family}
    assert alive == []


def facts_of(names: list[str], jobs: int = 1) -> dict[str, dict[str, Any]]:
    """Return the facts of each slide that `traces` has read."""
    ends = [event for event in stream(tasks(*names), PATIENT, jobs, traces) if isinstance(event, Ended)]
    assert [end.code for end in ends] == [None] * len(names)
    return {end.image_id: end.facts for end in ends}


def test_a_slide_leaves_no_trace_in_the_next(start_method: str) -> None:
    """Modules, environment, folder and memory are those that the first one had."""
    names = ["a", "b", "c"]
    seen = list(facts_of(names).values())
    assert [facts["traces"] for facts in seen] == [0] * 3
    assert len({facts["pid"] for facts in seen}) == 3
    assert {facts["folder"] for facts in seen} == {str(Path.cwd())}
    [parent] = {facts["parent"] for facts in seen}
    assert (parent == os.getpid()) is (start_method == "spawn")
    assert psutil.Process(parent).num_threads() == 1 or start_method == "spawn"


def test_a_peak_is_of_its_own_slide() -> None:
    ends, _ = ends_of(["large_0", "good_0"], PATIENT, jobs=1)
    assert ends["large_0"].peak_mb > 256
    assert 10 < ends["good_0"].peak_mb < 128


def test_a_slide_has_the_runs_environment_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are when it starts, not as they were when the first one did."""
    assert facts_of(["a"])["a"]["word"] is None
    monkeypatch.setenv(WORD, "later")
    monkeypatch.chdir(tmp_path)
    assert (facts_of(["b"])["b"]["word"], facts_of(["c"])["c"]["folder"]) == ("later", str(tmp_path))


def test_a_killed_server_costs_the_slides_that_run() -> None:
    """Later ones have another server; in the end each is spawned by the run itself."""
    code = (
        "import os, signal\n"
        "from tests.faults.test_workers import LIMITS, facts_of, tasks\n"
        "from tests.faults.misbehaving import kills_parent\n"
        "from clotkit.workers import stream\n"
        "for number in range(3):\n"
        "    parent = facts_of(['a'])['a']['parent']\n"
        "    [end] = stream(tasks('b'), LIMITS, 1, kills_parent)\n"
        "    print(parent, end.code, end.lost)\n"
        "print(facts_of(['c'])['c']['parent'], os.getpid())\n"
    )
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != METHOD} | {"PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    *servers, last = [line.split() for line in ended.stdout.splitlines()]
    assert len({server for server, _, _ in servers}) == 3
    assert {tuple(outcome) for _, *outcome in servers} == {(str(Reason.CRASHED), "True")}
    assert last[0] == last[1]


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
