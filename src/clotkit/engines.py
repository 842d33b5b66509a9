"""Apply a function to many items in worker processes: loky's on this machine, or a Dask cluster's.

Results come as they are ready, in any order. Few items are submitted at a time, so that neither the caller nor a
scheduler holds more than the workers can take. An item whose worker dies is submitted again; it is Lost if LOSSES
workers in a row die, or cannot start it. The function goes to other processes and machines, so it must be importable by
name there.
"""

import asyncio
import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from clotkit import __version__
from clotkit.cluster import HINT, Patience, Watch, scheduler_address
from clotkit.errors import MOST_CHARACTERS, ClotkitError, ClusterError, UsageError, needs_extra, one_line
from clotkit.forking import die_with
from clotkit.progress import Log
from clotkit.reasons import Reason
from clotkit.workers import allow_children, has_semaphores

T = TypeVar("T")
R = TypeVar("R")
LOKY, DASK, THREADS = "loky", "dask", "threading"  # the last one only in place of loky
LOSSES = 3  # workers that may die while they have an item before it is Lost
SUBMITTED_PER_THREAD = 2  # of a cluster: one at work, one waiting
CONNECT_S = 8.0  # within which a scheduler must answer
WAIT_S = 0.1  # between two looks for a result, whose coming ends the wait
RESUBMITTED = object()  # in place of a result that was lost


@dataclass(frozen=True)
class Backend:
    """The choice of an engine."""

    name: str = LOKY  # or dask
    jobs: int = 1  # processes of loky
    scheduler: str | None = None  # tcp://host:8786, or a scheduler file (.json); None: the one in Dask's settings
    connect_s: float = CONNECT_S
    patience: Patience = field(default_factory=Patience)  # with a cluster that does nothing


@dataclass(frozen=True)
class Lost:
    """The result of an item whose workers died, could not start it, or did not reach it in time."""

    reason: str  # a sentence for people
    code: Reason


class Engine(Protocol):
    """Applies a function to items in other processes."""

    def unordered(
        self, function: Callable[[T], R], items: Iterable[T], until: float = float("inf")
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """Yield each item with its result as they are ready.

        Args:
            function: importable by name; an exception that it raises is raised here.
            items: read one by one, when a worker has room.
            until: a time.monotonic() value after which no result is waited for.

        Raises:
            ClusterError: the cluster is gone, or cannot run the function.
        """
        ...


@contextmanager
def engine(backend: Backend, log: Log) -> Iterator[Engine]:
    """Start the engine of a backend; its processes or its connection end with the context.

    Raises UsageError for an unknown backend, or a scheduler that does not answer.
    """
    if backend.name != DASK and backend.scheduler:
        raise UsageError(f"--scheduler needs a cluster, but --backend is {backend.name}; give --backend dask")
    if backend.name == LOKY:
        try:
            yield Loky(backend.jobs)
        finally:
            _end_processes(backend.jobs)
        return
    if backend.name != DASK:
        raise UsageError(f"--backend is {backend.name}; allowed: {LOKY}, {DASK}")
    client = _connect(backend.scheduler, backend.connect_s, log)
    try:
        log(_cluster_line(client))
        yield Dask(client, backend.patience, log)
    finally:
        with suppress(Exception):  # closing a lost connection may raise anything
            client.close(timeout=5)


def check_backend(backend: Backend) -> None:
    """Raise UsageError if the scheduler of a backend has no address or does not answer."""
    if backend.name == DASK:
        _scheduler(backend.scheduler, backend.connect_s)


def _end_processes(jobs: int) -> None:
    """End loky's processes, so that the next engine starts new ones in the environment of that time."""
    from joblib.externals.loky import get_reusable_executor

    if jobs > 1 and has_semaphores():
        get_reusable_executor(max_workers=jobs).shutdown(wait=True)


@dataclass
class _InFlight:
    """An item that was given to a worker."""

    item: Any
    losses: int = 0  # workers that have died while they had it
    alone: bool = False  # no other item is in flight


@dataclass(frozen=True)
class Loky:
    """Processes of this machine, by joblib; with `jobs` 1 it is this process itself."""

    jobs: int

    def unordered(
        self, function: Callable[[T], R], items: Iterable[T], until: float = float("inf")
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """See Engine; `until` is ignored, as items have limits of their own."""
        from joblib import Parallel
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        feed, kind = _LokyCalls(function, iter(items)), LOKY if has_semaphores() else THREADS
        while feed.suspects or not feed.exhausted:
            run = Parallel(self.jobs, kind, return_as="generator_unordered", batch_size=1, pre_dispatch=self.jobs)
            try:
                with _closing(run(feed.calls())) as results:
                    for number, result in results:
                        yield feed.in_flight.pop(number).item, result
            except TerminatedWorkerError:
                for item in feed.lost():
                    yield item, Lost(f"its worker died {LOSSES} times", Reason.LOST)


@contextmanager
def _closing(results: Any) -> Iterator[Any]:
    """Close joblib's generator, which kills what still runs, without its warning about that."""
    try:
        yield results
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            results.close()


@dataclass
class _LokyCalls:
    """Calls for joblib, and the items in flight.

    joblib drops the pool without naming the item that killed it, so items in flight are retried after all others, one
    at a time.
    """

    function: Callable[[Any], Any]
    items: Iterator[Any]
    in_flight: dict[int, _InFlight] = field(default_factory=dict)
    suspects: deque[_InFlight] = field(default_factory=deque)
    number: int = 0
    exhausted: bool = False  # every item has been in flight

    def calls(self) -> Iterator[Any]:
        """Yield the remaining calls, each with a number; once none remains, one of the suspects."""
        from joblib import delayed

        call = delayed(_numbered)
        for entry in [self.suspects.popleft()] if self.exhausted else map(_InFlight, self.items):
            self.number += 1
            self.in_flight[self.number] = entry
            yield call(self.function, self.number, entry.item, os.getpid())
        self.exhausted = True

    def lost(self) -> Iterator[Any]:
        """Take back the items in flight after a worker died, and yield those that are given up."""
        for number in sorted(self.in_flight):
            entry = self.in_flight.pop(number)
            entry.losses += 1
            if entry.losses < LOSSES:
                self.suspects.append(entry)
            else:
                yield entry.item


def _numbered(function: Callable[[T], R], number: int, item: T, caller: int) -> tuple[int, R]:
    """Call the function in a process of loky, which dies with the caller's process."""
    if os.getpid() != caller:
        die_with(caller)
        allow_children()
    return number, function(item)


@dataclass(frozen=True)
class Dask:
    """The workers of a cluster; the scheduler of Dask assigns, moves and repeats tasks."""

    client: Any
    patience: Patience
    log: Log

    def unordered(
        self, function: Callable[[T], R], items: Iterable[T], until: float = float("inf")
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """See Engine."""
        watch = Watch(self.client, self.patience, self.log)
        feed = _DaskTasks(self.client, function, iter(items), watch, until)
        try:
            with _cluster_errors():
                feed.fill()
            while feed.in_flight:
                with _cluster_errors():
                    ended = feed.next()
                    feed.fill()
                if ended is not None:
                    yield ended
            for entry in feed.suspects:
                yield entry.item, Lost("the run's deadline came before it was done", Reason.DEADLINE)
        except ClusterError:
            raise  # nobody is there to cancel the rest
        except BaseException:
            feed.cancel()
            raise


class _DaskTasks:
    """Items in flight on a cluster, by the futures of a client.

    When a worker dies, Dask counts it against every item that the worker had, begun or not. So an item that Dask gives
    up is tried once more after all others, alone.
    """

    def __init__(
        self, client: Any, function: Callable[[Any], Any], items: Iterator[Any], watch: Watch, until: float
    ) -> None:
        from distributed import as_completed

        self.client, self.function, self.items, self.watch = client, function, items, watch
        self.until = float("inf") if until == float("inf") else max(until, time.monotonic() + 0.1)
        self.ready = as_completed([], loop=client.loop)
        self.in_flight: dict[Any, _InFlight] = {}
        self.suspects: deque[_InFlight] = deque()
        self.late = False  # `until` has passed

    def fill(self) -> None:
        """Submit as many items as there is room for; the cluster may have grown or shrunk since."""
        self.watch.look()
        most = max(SUBMITTED_PER_THREAD * self.watch.threads, SUBMITTED_PER_THREAD)
        while len(self.in_flight) < most and not self.late:
            entry = next(map(_InFlight, self.items), None)
            if entry is None:
                break
            self._submit(entry)
        if not self.in_flight and self.suspects and not self.late:
            self._submit(replace(self.suspects.popleft(), alone=True))

    def next(self) -> tuple[Any, Any] | None:
        """Return the next item that has ended, with its result; None if one was lost and submitted again."""
        while not self.ready.has_ready():
            if time.monotonic() >= self.until:
                self._give_up()
                return None
            self.watch.look()
            with self.ready.thread_condition:
                self.ready.thread_condition.wait(timeout=WAIT_S)
        future = next(self.ready)
        self.watch.progressed()
        entry = self.in_flight.pop(future)
        result = self._result(future, entry)
        return None if result is RESUBMITTED else (entry.item, result)

    def cancel(self) -> None:
        """Cancel the items in flight."""
        with suppress(Exception):
            self.client.cancel(list(self.in_flight))

    def _give_up(self) -> None:
        """Cancel the items in flight: `until` has passed."""
        self.late = True
        self.client.cancel(list(self.in_flight))
        self.suspects.extend(self.in_flight.values())
        self.in_flight.clear()

    def _submit(self, entry: _InFlight) -> None:
        future = self.client.submit(_on_worker, self.function, entry.item, pure=False, retries=LOSSES - 1)
        self.in_flight[future] = entry
        self.ready.add(future)

    def _result(self, future: Any, entry: _InFlight) -> Any:
        """Return the result of a task, or RESUBMITTED if it was lost with its worker."""
        from distributed import KilledWorker
        from distributed.utils import CancelledError

        try:
            if future.status == "finished":
                return future.result()
        except CancelledError:
            pass
        if future.status == "error":
            error = future.exception()
            if not isinstance(error, KilledWorker):
                return _failed(error)
            if entry.alone:
                return Lost(f"its worker died {error.allowed_failures + 1} times", Reason.LOST)
            self.suspects.append(entry)
            return RESUBMITTED
        if self.client.status != "running":
            raise ClusterError("the scheduler is gone")
        entry.losses += 1
        if entry.losses >= LOSSES:
            return Lost(f"its result was lost with its worker {LOSSES} times", Reason.LOST)
        self._submit(entry)
        return RESUBMITTED


def _on_worker(function: Callable[[T], R], item: T) -> R:
    """Call the function on a worker of a cluster, where slides have processes of their own."""
    allow_children()
    return function(item)


def _failed(error: BaseException) -> Lost:
    """Return Lost for an error that concerns this item only; raise any other.

    An exception of the kit is raised as it is; for any other, which every item would meet, a ClusterError.
    """
    if isinstance(error, ClotkitError):
        raise error
    if isinstance(error, OSError):  # of one machine: a full disk, for example
        return Lost(f"a worker could not start it: {one_line(error)}", Reason.NOT_STARTED)
    raise ClusterError(
        f"a worker failed: {type(error).__name__}: {one_line(error)}; it needs clotkit {__version__} and its packages"
    )


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """Turn the errors of a client whose scheduler is gone into ClusterError."""
    from concurrent.futures import CancelledError

    try:
        yield
    except (OSError, CancelledError) as error:
        raise ClusterError(f"the scheduler is gone: {one_line(error)}") from error


def _scheduler(scheduler: str | None, connect_s: float) -> str:
    """Return the address of a scheduler, once it has answered. Raises UsageError."""
    with needs_extra("cluster"):
        import dask
        import distributed  # noqa: F401 - it makes the log handlers that are silenced below

    where = scheduler or dask.config.get("scheduler-address", None)
    if not where:
        raise UsageError(f"--backend dask: no --scheduler; {HINT}")
    for handler in logging.getLogger("distributed").handlers:
        handler.setLevel(logging.CRITICAL)  # a lost connection is reported here, on one line
    address = scheduler_address(where)
    with _one_line_about(where):
        asyncio.run(_greet(address, connect_s))
    return address


def _connect(scheduler: str | None, connect_s: float, log: Log) -> Any:
    """Return a client of a scheduler; the log has what Dask warns about other versions. Raises UsageError."""
    address = _scheduler(scheduler, connect_s)
    from distributed import Client

    with warnings.catch_warnings(record=True) as versions, _one_line_about(scheduler or address):
        warnings.simplefilter("always")
        client = Client(address, timeout=connect_s, set_as_default=False, name="clotkit")
    for warning in versions:
        log(f"cluster {address}: {' '.join(str(warning.message).split())[:MOST_CHARACTERS]}")
    return client


@contextmanager
def _one_line_about(where: str) -> Iterator[None]:
    """Raise UsageError for whatever a connection raises: OSError, TimeoutError or ValueError."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"--scheduler {where}: {one_line(error)}; is it running? dask scheduler starts one") from error


async def _greet(address: str, connect_s: float) -> None:
    """Connect to a scheduler and close the connection again.

    A client's own limit does not end its wait for a server that does not speak Dask's protocol. Raises OSError.
    """
    from distributed.comm import connect
    from distributed.security import Security

    keys = Security().get_connection_args("client")
    try:
        comm = await asyncio.wait_for(connect(address, timeout=connect_s, **keys), connect_s)
    except TimeoutError as error:
        raise OSError(f"no Dask scheduler answered within {connect_s:g} s") from error
    await comm.close()


def _cluster_line(client: Any) -> str:
    """Return one line about a cluster: its address, workers, threads and dashboard."""
    threads = client.ncores()
    waiting = "" if threads else f"; waiting for one: dask worker {client.scheduler.address}"
    return (
        f"cluster {client.scheduler.address}: {len(threads)} workers, {sum(threads.values())} threads; "
        f"dashboard {client.dashboard_link}{waiting}"
    )
