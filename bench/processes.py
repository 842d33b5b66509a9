"""Run commands, and measure what they cost."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

from clotkit.workers import die_with

POLL_S = 0.02


@dataclass(frozen=True)
class Cost:
    """The cost of a process and of the processes that it started and waited for."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0  # of the largest process

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of one after the other."""
        return Cost(self.seconds + other.seconds, self.cpu_s + other.cpu_s, max(self.peak_mb, other.peak_mb))


def run(
    command: Sequence[object], log: IO[str], kill_if: Callable[[], bool] = lambda: False, limit_s: float = 3600
) -> tuple[int, Cost]:
    """Run a command and return its exit code, negative for a signal, and its cost.

    It dies with this process. It is killed as soon as `kill_if` is true, which is polled, or `limit_s` have passed.

    Args:
        command: the program and its arguments.
        log: takes what it prints.
        kill_if: when to kill it.
        limit_s: seconds that it may take.
    """
    started = time.monotonic()
    prepare = partial(die_with, os.getpid())
    child = subprocess.Popen([*map(str, command)], stdout=log, stderr=subprocess.STDOUT, preexec_fn=prepare)  # noqa: PLW1509 - no threads here
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        if kill_if() or time.monotonic() - started > limit_s:
            os.kill(child.pid, signal.SIGKILL)
        time.sleep(POLL_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    return child.returncode, Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
