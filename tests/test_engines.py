"""Test that engines return every item once, whatever happens to their processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import psutil
import pytest

from clotkit.engines import Backend, Lost, engine
from clotkit.errors import UsageError
from clotkit.reasons import Reason

from .conftest import ROOT


def silent(_: str) -> None:
    return


def squared(number: int) -> int:
    return number * number


def killing_once(path: Path) -> int:
    """Kill this worker the first time that it gets a path."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def killing(number: int) -> int:
    """Kill this worker for the number 0 only."""
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def raising(number: int) -> int:
    raise UsageError(f"{number} is wrong")


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_item_comes_back_with_its_result(jobs: int) -> None:
    with engine(Backend(jobs=jobs), silent) as workers:
        assert sorted(workers.unordered(squared, range(7))) == [(number, number * number) for number in range(7)]
        assert list(workers.unordered(squared, [])) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_whoever_has_enough_can_leave(jobs: int) -> None:
    with engine(Backend(jobs=jobs), silent) as workers, closing(workers.unordered(squared, count())) as results:
        assert len([next(results) for _ in range(5)]) == 5


def test_items_whose_worker_was_killed_are_done_again(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths[2:]:
        path.touch()
    with engine(Backend(jobs=2), silent) as workers:
        found = dict(workers.unordered(killing_once, paths))
    assert set(found) == set(paths)
    assert all(isinstance(pid, int) and pid != os.getpid() for pid in found.values())


@pytest.mark.slow
def test_an_item_that_kills_every_worker_is_given_up_alone() -> None:
    with engine(Backend(jobs=2), silent) as workers:
        found = dict(workers.unordered(killing, range(6)))
    assert isinstance(found[0], Lost)
    assert found[0].code is Reason.LOST
    assert [found[number] for number in range(1, 6)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_the_function_raises_is_raised(jobs: int) -> None:
    with engine(Backend(jobs=jobs), silent) as workers, pytest.raises(UsageError, match="3 is wrong"):
        list(workers.unordered(raising, [3]))


def test_no_process_outlives_a_caller_that_is_killed(tmp_path: Path) -> None:
    """Kill the caller with SIGKILL; its workers and their slides' processes die with it."""
    code = (
        "import sys; from pathlib import Path\n"
        "from clotkit.engines import Backend, engine\n"
        "from tests.test_engines import hanging, silent\n"
        "with engine(Backend(jobs=2), silent) as workers:\n"
        "    list(workers.unordered(hanging, [Path(sys.argv[1]) / name for name in 'ab']))\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    run.kill()
    run.wait()
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def hanging(path: Path) -> None:
    """Write this process's id to a file, and never return."""
    (path.parent.parent / f"{path.name}.tmp").write_text(str(os.getpid()))
    (path.parent.parent / f"{path.name}.tmp").replace(path)
    signal.pause()


def until(holds: Callable[[], bool], at_most_s: float = 60.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + at_most_s
    while not holds():
        assert time.monotonic() < end
        os.sched_yield()


def test_an_unknown_backend_is_one_line() -> None:
    with pytest.raises(UsageError, match="--backend is spark; allowed: loky, dask"), engine(Backend("spark"), silent):
        pass
