"""Find the scheduler of a Dask cluster, and watch whether its workers work.

No Dask here: a client, which `engines` makes, is passed in.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.errors import ClusterError, UsageError
from clotkit.progress import Log

ADDRESS = re.compile(
    r"(?:(?P<protocol>tcp|tls|ucx|ws|wss)://)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[\w.-]+):(?P<port>\d{1,5})/?"
)
HINT = "give its address, like tcp://host:8786, or its scheduler file"
WORKING = ("executing", "long-running", "flight", "fetch")  # states of a task with which its worker is busy
PAUSED = "paused"


@dataclass(frozen=True)
class Patience:
    """The limits of the wait for a cluster that does nothing, in seconds."""

    look_s: float = 5.0  # between two looks at the workers
    say_s: float = 20.0  # until the log says that nobody works
    idle_s: float = 180.0  # until workers that are all paused, or do not begin, are given up
    absent_s: float = 900.0  # until a cluster without workers is given up: a batch system may have a queue
    silent_s: float = 30.0  # until a scheduler that does not answer is given up


def scheduler_address(text: str) -> str:
    """Return the address of a scheduler from --scheduler: an address, or the path of a scheduler file.

    Raises UsageError for a file that is missing or not whole, and for anything else that is no address.
    """
    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        text, where = _address_in(path), f"--scheduler {path}: its address"
    else:
        where = "--scheduler"
    match = ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65_536:
        raise UsageError(f"{where} is {text!r}, which has no host and port; {HINT}")
    return text if match["protocol"] else f"tcp://{text}"


def _address_in(path: Path) -> str:
    hint = "dask scheduler --scheduler-file writes it while it runs"
    try:
        address = json.loads(path.read_text(encoding="utf-8"))["address"]
    except OSError as error:
        raise UsageError(f"--scheduler {path}: cannot be read: {error.strerror}; {hint}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--scheduler {path}: not a whole scheduler file: {error!r}; {hint}") from error
    return str(address)


class Watch:
    """Looks at the workers of a cluster now and then, says when nobody works, and gives up after a while."""

    def __init__(self, client: Any, patience: Patience, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._patience, self._log, self._clock = client, patience, log, clock
        self._workers: Mapping[str, Any] = {}
        self._looked = float("-inf")  # when it last looked
        self._worked = clock()  # when somebody was last seen to work, or a result came
        self._said = ""  # the last line about idle workers

    @property
    def threads(self) -> int:
        """The number of threads of all workers, when it last looked."""
        return sum(int(worker["nthreads"]) for worker in self._workers.values())

    def progressed(self) -> None:
        """Note that a result has come."""
        self._worked, self._said = self._clock(), ""

    def look(self) -> None:
        """Look at the workers if it is time to.

        Raises ClusterError if nobody has worked for too long, OSError if the scheduler does not answer.
        """
        now = self._clock()
        if now - self._looked < self._patience.look_s:
            return
        info = self._client.sync(
            self._client.scheduler.identity, n_workers=-1, callback_timeout=self._patience.silent_s
        )
        self._looked, self._workers = self._clock(), info["workers"]
        if any(_is_working(worker) for worker in self._workers.values()):
            self.progressed()
            return
        idle_s, trouble = now - self._worked, self._trouble()
        if idle_s >= (self._patience.idle_s if self._workers else self._patience.absent_s):
            raise ClusterError(f"nothing was done for {idle_s:.0f} s: {trouble}")
        if idle_s >= self._patience.say_s and trouble != self._said:
            self._said = trouble
            self._log(f"cluster {self._client.scheduler.address}: waiting for {idle_s:.0f} s: {trouble}")

    def _trouble(self) -> str:
        """Return why nobody works, and what to change."""
        paused = [worker for worker in self._workers.values() if worker.get("status") == PAUSED]
        if not self._workers:
            return f"there are no workers; start some: dask worker {self._client.scheduler.address}"
        if not paused:
            return f"{len(self._workers)} workers have begun nothing; look into their logs"
        limit = max(int(worker.get("memory_limit") or 0) for worker in paused) / 1e6
        return (
            f"{len(paused)} of {len(self._workers)} workers are paused, because they are near their memory limit of "
            f"{limit:,.0f} MB; start them again with a larger --memory-limit, or with fewer --nthreads"
        )


def _is_working(worker: Mapping[str, Any]) -> bool:
    """Return whether a worker has a task at work, by the scheduler's facts of it."""
    counts = worker.get("metrics", {}).get("task_counts", {})
    return any(counts.get(state) for state in WORKING)
