"""Run commands, and measure what they cost."""

import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from clotkit.forking import die_with
from clotkit.rehearsal.confined.trees import tree_mb

POLL_S = 0.02
MEMORY_POLL_S = 0.25


@dataclass(frozen=True)
class Cost:
    """The cost of a process and of the processes that it started and waited for."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0  # of the largest process

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of one after the other."""
        return Cost(self.seconds + other.seconds, self.cpu_s + other.cpu_s, max(self.peak_mb, other.peak_mb))


@dataclass
class MemoryWatch:
    """A limit on the memory of a process and of those that it started, shared pages counted once (PSS).

    A limit on addresses would be unfair: readers map files and reserve space that they never use.
    """

    most_mb: float
    passed: bool = False
    _next: float = field(default=0.0, repr=False)

    def __call__(self, pid: int) -> bool:
        """Return whether a process is past the limit; it is measured every MEMORY_POLL_S."""
        if not self.passed and self.most_mb < math.inf and time.monotonic() >= self._next:
            self.passed = tree_mb(pid) > self.most_mb  # kept: a killed process has no memory
            self._next = time.monotonic() + MEMORY_POLL_S
        return self.passed


def run(
    command: Sequence[object],
    log: IO[str],
    kill_if: Callable[[int], bool] = lambda _: False,
    limit_s: float = 3600,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, Cost]:
    """Run a command and return its exit code, negative for a signal, and its cost.

    It dies with this process. It is killed, with what it started, as soon as `kill_if` is true, which is polled, or
    `limit_s` have passed.

    Args:
        command: the program and its arguments.
        log: takes what it prints.
        kill_if: when to kill it, from its process id.
        limit_s: seconds that it may take.
        environment: its environment variables, this process's if None.
    """
    started = time.monotonic()
    prepare = partial(die_with, os.getpid())
    child = subprocess.Popen(
        [*map(str, command)],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        preexec_fn=prepare,  # noqa: PLW1509 - no threads here
    )
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        if kill_if(child.pid) or time.monotonic() - started > limit_s:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        time.sleep(POLL_S)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    return child.returncode, Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
