"""Work that a page starts and follows: in a thread each, with progress, and the newest kept."""

import secrets
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from clotkit.errors import ClotkitError, UsageError, described
from clotkit.reasons import Cause, Reason

KEPT = 24  # jobs whose results are kept; a batch of 64 pictures has at most 80 MB
AT_ONCE = 8  # jobs that are not ended; more are refused


class State(StrEnum):
    """The state of a job, which its part of a page has as `data-live`."""

    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


@dataclass
class Job:
    """One piece of work; `key` is unguessable, so that nobody sees another visitor's."""

    title: str
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = State.RUNNING
    done: int = 0
    total: int = 0  # 0: not known yet
    result: object = None
    cause: Cause | None = None  # why it failed
    about: dict[str, str] = field(default_factory=dict)  # what the page needs to draw it
    stop: threading.Event = field(default_factory=threading.Event)  # set by who wants it to end
    over: threading.Event = field(default_factory=threading.Event)  # set when it has ended or failed

    def advance(self, done: int, total: int) -> None:
        """Tell how far it is."""
        self.done, self.total = done, total


class Jobs:
    """The jobs of a server."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, title: str, work: Callable[[Job], object], about: dict[str, str]) -> Job:
        """Start work in a thread. Raises UsageError if too many jobs run."""
        job = Job(title, about=about)
        with self._lock:
            if sum(one.state is State.RUNNING for one in self._jobs.values()) >= AT_ONCE:
                raise UsageError(f"{AT_ONCE} pieces of work run already; wait until one has ended, then try again")
            self._jobs[job.key] = job
            for key in [key for key, one in self._jobs.items() if one.state is not State.RUNNING]:
                if len(self._jobs) > KEPT:
                    del self._jobs[key]
        threading.Thread(target=_run, args=(job, work), daemon=True).start()
        return job

    def find(self, key: str) -> Job:
        """Return a job. Raises LookupError if it is unknown, or no longer kept."""
        with self._lock:
            return self._jobs[key]

    def stop(self) -> None:
        """Ask all jobs to end."""
        for job in self.all():
            job.stop.set()

    def all(self) -> list[Job]:
        """Return all jobs that are kept, the newest first."""
        with self._lock:
            return list(reversed(self._jobs.values()))


def _run(job: Job, work: Callable[[Job], object]) -> None:
    try:
        job.result = work(job)
        job.state = State.ENDED
    except ClotkitError as error:
        job.cause, job.state = Cause(error.reason, str(error)), State.FAILED
    except Exception as error:  # noqa: BLE001 - whatever a library raises ends this job alone, and is shown on its page
        traceback.print_exc()
        job.cause, job.state = Cause(Reason.FAILED, described(error)), State.FAILED
    finally:
        job.stop.set()
        job.over.set()
