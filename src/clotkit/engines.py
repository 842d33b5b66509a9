"""Engines: one function over many items in worker processes; joblib's loky on this machine, or a Dask cluster.

Both are used as they are. Results come as they are ready, in any order; few items are out at a time, so that neither
the caller nor a scheduler holds more than the workers can take. An item whose worker dies is done again; where every
worker dies under it, or has no room for it, it is Lost. The function and the items go to other processes, and other
machines: it must be importable there by its name.
"""

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
from clotkit.errors import ClotkitError, ClusterError, UsageError, needs_extra, one_line
from clotkit.progress import Log
from clotkit.reasons import Reason
from clotkit.workers import allow_children, die_with

T = TypeVar("T")
R = TypeVar("R")
LOKY, DASK = "loky", "dask"
LOSSES = 3  # workers that may die under an item before it is given up
AHEAD = 2  # items out at a time for each thread of a cluster: one at work, one to go on with
CONNECT_S = 15.0  # a scheduler has to answer
AGAIN = object()  # in place of a result that was lost


@dataclass(frozen=True)
class Backend:
    """Which engine: its name, how many processes of this machine loky takes, where Dask's scheduler is.

    `scheduler` is an address like tcp://host:8786 or a scheduler file (.json); None: where Dask's own settings say.
    """

    name: str = LOKY
    jobs: int = 1
    scheduler: str | None = None
    connect_s: float = CONNECT_S


@dataclass(frozen=True)
class Lost:
    """The result of an item whose workers died, could not begin it, or did not reach it before the deadline."""

    reason: str  # a sentence for people
    code: Reason


class Engine(Protocol):
    """Something that does a function over items elsewhere."""

    def unordered(
        self, function: Callable[[T], R], items: Iterable[T], until: float = float("inf")
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """Each item with its result, as they are ready; `items` is asked for the next one when there is a place.

        Nothing is waited for after `until`, a time.monotonic() value. Raises ClusterError when the cluster is gone or
        cannot run the function, and what the function raises.
        """
        ...


@contextmanager
def engine(backend: Backend, log: Log) -> Iterator[Engine]:
    """The engine of a backend; its processes, or the connection, end with it.

    Raises UsageError for a backend that is not known, or a scheduler that does not answer.
    """
    if backend.name != DASK and backend.scheduler:
        raise UsageError(f"--scheduler is of a cluster, --backend is {backend.name}; give --backend dask")
    if backend.name == LOKY:
        try:
            yield Loky(backend.jobs)
        finally:
            _end_processes(backend.jobs)
        return
    if backend.name != DASK:
        raise UsageError(f"--backend is {backend.name}; allowed: {LOKY}, {DASK}")
    client = _connect(backend.scheduler, backend.connect_s)
    try:
        log(_said(client))
        yield Dask(client)
    finally:
        with suppress(Exception):  # whatever a connection that is lost says when it is closed
            client.close(timeout=5)


def _end_processes(jobs: int) -> None:
    """End loky's processes: the next engine's shall have the environment of its time."""
    from joblib.externals.loky import get_reusable_executor

    if jobs > 1:
        get_reusable_executor(max_workers=jobs).shutdown(wait=True)


@dataclass
class _Out:
    """An item that a worker has, how many workers have died with it, and whether it is the only one that is out."""

    item: Any
    losses: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Loky:
    """Processes of this machine, by joblib; one alone is this process itself."""

    jobs: int

    def unordered(
        self, function: Callable[[T], R], items: Iterable[T], until: float = float("inf")
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """See Engine. What runs at `until` has its own limits."""
        from joblib import Parallel
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        feed = _Feed(function, iter(items))
        while feed.blamed or not feed.ended:
            run = Parallel(self.jobs, LOKY, return_as="generator_unordered", batch_size=1, pre_dispatch=self.jobs)
            try:
                with _closing(run(feed.calls())) as results:
                    for number, result in results:
                        yield feed.out.pop(number).item, result
            except TerminatedWorkerError:
                for item in feed.lost():
                    yield item, Lost(f"its worker died, {LOSSES} times", Reason.LOST)


@contextmanager
def _closing(results: Any) -> Iterator[Any]:
    """Close joblib's generator, which kills what still runs, and not be told that something did."""
    try:
        yield results
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            results.close()


@dataclass
class _Feed:
    """Calls for joblib, and which of them have not come back.

    Every worker goes when one dies, and nobody says whose item it was. So what was out is done again after all others,
    alone, where no other can be to blame.
    """

    function: Callable[[Any], Any]
    items: Iterator[Any]
    out: dict[int, _Out] = field(default_factory=dict)
    blamed: deque[_Out] = field(default_factory=deque)
    number: int = 0
    ended: bool = False  # whether every item has been out

    def calls(self) -> Iterator[Any]:
        """What is left, each with its number; once nothing is, one of those that are blamed."""
        from joblib import delayed

        call = delayed(_numbered)
        for one in [self.blamed.popleft()] if self.ended else map(_Out, self.items):
            self.number += 1
            self.out[self.number] = one
            yield call(self.function, self.number, one.item, os.getpid())
        self.ended = True

    def lost(self) -> Iterator[Any]:
        """Take back what was out when a worker died; the items that are given up."""
        for number in sorted(self.out):
            one = self.out.pop(number)
            one.losses += 1
            if one.losses < LOSSES:
                self.blamed.append(one)
            else:
                yield one.item


def _numbered(function: Callable[[T], R], number: int, item: T, caller: int) -> tuple[int, R]:
    """A call in a process of loky's, which does not outlive the caller's."""
    if os.getpid() != caller:
        die_with(caller)
        allow_children()
    return number, function(item)


@dataclass(frozen=True)
class Dask:
    """The workers of a cluster; a dask.distributed client's scheduler spreads, steals and repeats."""

    client: Any

    def unordered(
        self, function: Callable[[T], R], items: Iterable[T], until: float = float("inf")
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """See Engine."""
        feed = _Submitted(self.client, function, iter(items), until)
        try:
            with _told():
                feed.fill()
            while feed.out:
                with _told():
                    ended = feed.next()
                    feed.fill()
                if ended is not None:
                    yield ended
            for one in feed.blamed:
                yield one.item, Lost("the run's deadline came before it was done", Reason.DEADLINE)
        finally:
            with suppress(Exception):
                self.client.cancel(list(feed.out))


class _Submitted:
    """Items on their way through a cluster, by the futures of a client.

    Dask blames all that a worker had, what it had not begun too, when the worker dies. So an item that it gives up is
    done once more after all others, alone, where no other can be to blame.
    """

    def __init__(
        self, client: Any, function: Callable[[Any], Any], items: Iterator[Any], until: float = float("inf")
    ) -> None:
        from distributed import as_completed

        left_s = None if until == float("inf") else max(until - time.monotonic(), 0.1)
        self.client, self.function, self.items = client, function, items
        self.ready = as_completed([], loop=client.loop, timeout=left_s)
        self.out: dict[Any, _Out] = {}
        self.blamed: deque[_Out] = deque()
        self.late = False  # whether `until` has come

    def fill(self) -> None:
        """Submit what there is room for; the cluster may have grown or shrunk since."""
        most = max(AHEAD * sum(self.client.ncores().values()), AHEAD)
        while len(self.out) < most and not self.late:
            one = next(map(_Out, self.items), None)
            if one is None:
                break
            self._submit(one)
        if not self.out and self.blamed and not self.late:
            self._submit(replace(self.blamed.popleft(), alone=True))

    def next(self) -> tuple[Any, Any] | None:
        """The next item that has ended, with its result; None where one was lost and is done again."""
        try:
            future = next(self.ready)
        except TimeoutError:
            self.late = True
            self.client.cancel(list(self.out))
            self.blamed.extend(self.out.values())
            self.out.clear()
            return None
        one = self.out.pop(future)
        result = self._result(future, one)
        return None if result is AGAIN else (one.item, result)

    def _submit(self, one: _Out) -> None:
        future = self.client.submit(_on_worker, self.function, one.item, pure=False, retries=LOSSES - 1)
        self.out[future] = one
        self.ready.add(future)

    def _result(self, future: Any, one: _Out) -> Any:
        """What came of a task, or AGAIN where a result was lost with its worker before it was here."""
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
            if one.alone:
                return Lost(f"its worker died, {error.allowed_failures + 1} times", Reason.LOST)
            self.blamed.append(one)
            return AGAIN
        if self.client.status != "running":
            raise ClusterError("the scheduler is gone")
        one.losses += 1
        if one.losses >= LOSSES:
            return Lost(f"its result was lost with its worker, {LOSSES} times", Reason.LOST)
        self._submit(one)
        return AGAIN


def _on_worker(function: Callable[[T], R], item: T) -> R:
    """A call on a worker of a cluster, where slides have processes of their own."""
    allow_children()
    return function(item)


def _failed(error: BaseException) -> Lost:
    """What an item gets whose task failed with this error, if it is the item's.

    Raises what the function raised, if it is the kit's, and ClusterError for what no other item would fare better with.
    """
    if isinstance(error, ClotkitError):
        raise error
    if isinstance(error, OSError):  # of a machine, a full disk say, on which it was tried last
        return Lost(f"a worker could not begin it: {one_line(error)}", Reason.NOT_STARTED)
    raise ClusterError(
        f"a worker cannot do it: {type(error).__name__}: {one_line(error)}; "
        f"it needs clotkit {__version__} and its packages"
    )


@contextmanager
def _told() -> Iterator[None]:
    """Make a ClusterError of what a client raises whose scheduler is gone."""
    from concurrent.futures import CancelledError

    try:
        yield
    except (OSError, CancelledError) as error:
        raise ClusterError(f"the scheduler is gone: {one_line(error)}") from error


def _connect(scheduler: str | None, connect_s: float) -> Any:
    with needs_extra("cluster"):
        import dask
        from distributed import Client

    where = scheduler or dask.config.get("scheduler-address", None)
    if not where:
        raise UsageError("--backend dask: no --scheduler; give its address, like tcp://host:8786, or its file")
    for handler in logging.getLogger("distributed").handlers:
        handler.setLevel(logging.CRITICAL)  # what it says of a lost connection is said here, on one line
    named = {"scheduler_file": where} if where.endswith(".json") else {"address": where}
    try:
        return Client(**named, timeout=connect_s, set_as_default=False, name="clotkit")
    except Exception as error:  # OSError, TimeoutError, ValueError: an address that is none
        raise UsageError(f"--scheduler {where}: {one_line(error)}; is it running? dask scheduler starts one") from error


def _said(client: Any) -> str:
    """One line about a cluster: its address, workers, threads, and the page that shows them at work."""
    threads = client.ncores()
    waiting = "" if threads else f"; waiting for one: dask worker {client.scheduler.address}"
    return (
        f"cluster {client.scheduler.address}: {len(threads)} workers, {sum(threads.values())} threads; "
        f"dashboard {client.dashboard_link}{waiting}"
    )
