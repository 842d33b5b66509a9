"""The settings of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clotkit.engines import Backend
from clotkit.errors import UsageError
from clotkit.stores import Place
from clotkit.workers import check_limits

STALL_S = 120.0  # the largest slide's first batch takes 15 s on a slow core
CLOSING_S, CLOSING_SHARE = 2.0, 0.05  # kept for the last writes: seconds, or a share of the deadline if that is less


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run, as the command line gives them."""

    split_dir: Path  # has the tables, and the slides unless `source` is set
    weights_dir: Path
    run_dir: Path
    deadline_s: float  # from the start of the run
    memory_mb: int  # address space of a slide's process
    jobs: int  # slides at a time
    resume: bool = False  # continue from the report in run_dir
    stall_s: float = STALL_S  # the longest wait for a slide's next batch
    source: Place | None = None  # where the slides are, if not in split_dir
    weights_source: Place | None = None  # where a cluster's workers find the members, if not at weights_dir
    backend: Backend | None = None  # None: this process
    without: Sequence[str] = ()  # members to score without, though their ensemble counts on them
    without_missing: bool = False  # score without the ensemble's members whose folder is missing, as the kernel does

    def check(self) -> None:
        """Raise UsageError if a number is out of range."""
        check_limits(self.jobs, self.memory_mb)
        if self.deadline_s <= 0:
            raise UsageError(f"--deadline is {self.deadline_s:g} s; more than 0 is needed")

    def last_start(self, started: float) -> float:
        """Return the time.monotonic() value after which no slide is started.

        `started` is the one at which the run began. Some of the time is kept for the last writes.
        """
        return started + self.deadline_s - min(CLOSING_S, CLOSING_SHARE * self.deadline_s)
