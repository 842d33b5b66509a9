"""Start a run in a process of its own, follow what it prints, and end it."""

import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clotkit.app.roots import Roots
from clotkit.competitions import Competition
from clotkit.errors import UsageError
from clotkit.options import DONE, FALLBACKS
from clotkit.planning.plan import Plan, PlanSettings, plan_split

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)  # of a run's folder
LAST_LINES = 40  # of what a run prints that are kept
JOBS = 2  # slides at a time
ENDING_S = 10  # from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Start:
    """A run that may be started."""

    split: Path
    weights: Path
    out: Path
    competition: Competition

    def words(self) -> list[str]:
        """Return its command, as a terminal takes it."""
        options = ["--weights", str(self.weights), "--out", str(self.out), "--jobs", str(JOBS)]
        return ["run", str(self.split), *options, "--competition", str(self.competition.source)]

    def plan(self) -> Plan:
        """Predict the run. Raises as plan_split."""
        limits = self.competition.limits
        return plan_split(
            PlanSettings(self.split, self.weights, "", None, JOBS, limits.deadline_s, limits.slide_memory_mb),
            self.competition,
        )


@dataclass
class Running:
    """A run that goes on: what it printed last, and its exit code once it has ended."""

    process: subprocess.Popen[str]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    def follow(self) -> int:
        """Keep what the run prints until it ends, and return its exit code."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
        return self.process.wait()

    def end(self) -> None:
        """End the run; what it scored stays, and clotkit run --resume continues it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self.process.kill()


def out_folder(roots: Roots, split: Path, name: str) -> Path:
    """Return the new folder of a run, in the root of its split.

    Raises UsageError for a name that is no new folder.
    """
    if not NAME.fullmatch(name):
        raise UsageError("a run's name has 1 to 64 letters, digits, dots, hyphens and underscores; choose another")
    root = next(root for root in roots.folders if split.is_relative_to(root))
    out = root / name
    if out.exists() or out.is_symlink():
        raise UsageError(f"{name}: exists already; choose another name")
    return out


@contextmanager
def started(start: Start) -> Iterator[Running]:
    """Start a run; it ends with the block at the latest."""
    command = [sys.executable, "-m", "clotkit.cli", *start.words()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace"
    ) as process:
        running = Running(process)
        try:
            yield running
        finally:
            running.end()


def is_success(code: int) -> bool:
    """Return whether a run's exit code means a valid submission."""
    return code in {DONE, FALLBACKS}
