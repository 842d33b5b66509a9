"""Work that a page starts and follows: in a thread each, with progress; what ended last is kept."""

import secrets
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from clotkit.errors import ClotkitError, UsageError, described
from clotkit.reasons import Cause, Reason
from clotkit.units import MB

KEPT = 24  # jobs whose results are kept
KEPT_BYTES = 256 * MB  # of their results; a batch of 64 pictures has at most 80 MB
AT_ONCE = 8  # jobs that are not ended, of the short kinds and again of the long ones; more are refused


class State(StrEnum):
    """The state of a job, which its part of a page has as `data-live`."""

    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


class Kind(StrEnum):
    """The pages that a job is for; what it results in differs."""

    CLASSIFY = "classify"
    WATCH = "watch"
    SCORE = "score"
    PLAN = "plan"
    RUN = "run"


LONG = (Kind.WATCH, Kind.RUN)  # they go on until somebody ends them, or for hours


@dataclass
class Job:
    """One piece of work; `key` is unguessable, so that nobody sees another visitor's."""

    title: str
    kind: Kind
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: State = State.RUNNING  # before `result` and `cause`, see snapshot
    done: int = 0
    total: int = 0  # 0: not known yet
    result: object = None
    result_bytes: int = 0  # of its pictures
    cause: Cause | None = None  # why it failed
    about: dict[str, str] = field(default_factory=dict)  # what the page needs to draw it
    only: str = ""  # of two jobs with the same one, the second is not started
    stop: threading.Event = field(default_factory=threading.Event)  # set by who wants it to end
    over: threading.Event = field(default_factory=threading.Event)  # set when it has ended or failed
    over_s: float = 0.0  # when that was, as time.time() has it

    def advance(self, done: int, total: int) -> None:
        """Tell how far it is."""
        self.done, self.total = done, total

    def snapshot(self) -> "Job":
        """Return a copy for a page, so that its parts agree while the work goes on.

        `state` is copied before `result` and `cause`, and the work sets it after them.
        """
        return replace(self)


class Jobs:
    """The jobs of a server."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()

    def start(
        self,
        kind: Kind,
        title: str,
        work: Callable[[Job], object],
        about: dict[str, str],
        only: str = "",
        retry_s: float = 0.0,
    ) -> Job:
        """Start work in a thread, or return the job with the same `only` that runs or has ended well.

        A job that has failed is returned for `retry_s` seconds, so that a page which asks again shows why it failed.
        Raises UsageError if too many jobs run.
        """
        job = Job(title, kind, about=about, only=only)
        with self._lock:
            for one in self._jobs.values():
                if only and one.only == only and not (one.state is State.FAILED and time.time() > one.over_s + retry_s):
                    return one
            running = [one for one in self._jobs.values() if one.state is State.RUNNING]
            if sum((one.kind in LONG) is (kind in LONG) for one in running) >= AT_ONCE:
                raise UsageError(f"{AT_ONCE} pieces of work run already; wait until one has ended, then try again")
            self._jobs[job.key] = job
            self._forget()
        threading.Thread(target=self._run, args=(job, work), daemon=True).start()
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
        """Return all jobs that are kept, what ended last or began last first."""
        with self._lock:
            return list(reversed(self._jobs.values()))

    def _run(self, job: Job, work: Callable[[Job], object]) -> None:
        try:
            job.result = work(job)
        except ClotkitError as error:
            job.cause = Cause(error.reason, str(error))
        except BaseException as error:  # noqa: BLE001 - whatever a library raises ends this job alone, its page shows it
            traceback.print_exc()
            job.cause = Cause(Reason.FAILED, described(error))
        finally:
            with self._lock:
                job.over_s = time.time()
                job.state = State.ENDED if job.cause is None else State.FAILED
                self._jobs.move_to_end(job.key)  # what ended last is kept longest, however long it took
                self._forget()
            job.stop.set()
            job.over.set()

    def _forget(self) -> None:
        """Forget the jobs that ended first and are above what is kept; never the last of all."""
        for key in [key for key, one in self._jobs.items() if one.state is not State.RUNNING]:
            kept_bytes = sum(one.result_bytes for one in self._jobs.values())
            if len(self._jobs) > KEPT or (kept_bytes > KEPT_BYTES and key != next(reversed(self._jobs))):
                del self._jobs[key]
