"""Start the process of a slide: forked from a prepared server on Linux, spawned elsewhere.

A spawned process imports numpy, the codecs and the tilers anew, which takes longer than a small slide. The server is
spawned once, imports them, and never starts a thread, so forking it is safe where forking the run, with the threads of
TensorFlow and libvips, is not. multiprocessing's own fork server does not serve: in Python 3.11 it forgets `sys.path`,
which the kernel sets; its children hold it alive after the run is killed; and it keeps the first environment for all.
"""

import ctypes
import gc
import multiprocessing
import os
import pickle
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NoReturn, Protocol

from clotkit.spawning import without_main

METHOD = "CLOTKIT_START"  # the environment variable that may choose SPAWN
SPAWN = "spawn"
# Libraries read them when they are loaded. OpenBLAS starts its threads while numpy is imported: with them, two slides
# that began at once took 1.7 times as long. They are set in the children alone: other threads read this environment.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
READY_S = 20.0  # the longest wait for the server's imports
FORK_S = 30.0  # the longest wait for a fork, which takes milliseconds
END_S = 1.0  # the longest wait for its end
MOST_SERVERS = 3  # one that is killed is replaced; after that, processes are spawned
NUMBER, READY = struct.Struct("q"), b"r"  # what the server sends
# What most slides need, without what starts threads or keeps state of a process: libvips, OpenSlide.
PREPARED = (
    "clotkit.workers",
    "clotkit.shards.cut",
    "clotkit.tiling.preview",
    "numpy.ma",  # numpy.unique
    "PIL.JpegImagePlugin",
    "imagecodecs._deflate",
    "imagecodecs._imcd",
    "imagecodecs._zlib",
    "simplejpeg",
)
_LOCK = threading.Lock()  # the main module and the server belong to the whole process
_servers: list["_Server"] = []  # all that this process has started


class _ServerLostError(Exception):
    """The server has ended, or does not answer."""


class Child(Protocol):
    """A process of a slide, forked or spawned."""

    @property
    def pid(self) -> int | None:
        """Its process id."""

    @property
    def sentinel(self) -> int:
        """A file descriptor that is ready once it has ended."""

    @property
    def exitcode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def kill(self) -> None:
        """Send it SIGKILL."""


def start(target: Callable[..., None], arguments: Sequence[object], pipe: Connection) -> Child:
    """Run `target(*arguments, pipe)` in a new process, with this one's environment, folder and `sys.path`.

    It has one thread in each library and gets no main module. It dies with this process, on Linux.

    Args:
        target: importable by name; gets the pipe as a file descriptor.
        arguments: are pickled.
        pipe: stays open here.
    """
    with _LOCK, without_main():
        while server := _server():
            try:
                process = server.fork(target, arguments, pipe)
            except _ServerLostError:
                server.end()
                continue
            if process is None:
                break
            return process
        context = multiprocessing.get_context("spawn")
        call = pickle.dumps((target, arguments))
        spawned = context.Process(target=_spawned, args=(os.getpid(), call, pipe), daemon=True)
        spawned.start()
        return spawned


def wait_for_exit(process: Child, until: float) -> None:
    """Wait until a process has ended, or `until`, a time.monotonic() value.

    BaseProcess.join waits without a limit once the process has closed its files, which is before it has ended.
    """
    pause_s = 0.001
    wait([process.sentinel], max(0.0, until - time.monotonic()))
    while process.exitcode is None and time.monotonic() < until:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)


def prepare() -> None:
    """Start the server, which imports what slides need while this process does something else."""
    with _LOCK, without_main():
        _server()


def may_fork() -> bool:
    """Return whether processes are forked from a server: on Linux, unless CLOTKIT_START=spawn."""
    return sys.platform == "linux" and hasattr(os, "memfd_create") and os.environ.get(METHOD) != SPAWN


def _server() -> "_Server | None":
    """Return this process's server, which is started if there is none; None: spawn instead."""
    if not may_fork():
        return None
    if not _servers or (_servers[-1].is_ready and not _servers[-1].is_running and len(_servers) < MOST_SERVERS):
        _servers.append(_Server())
    return _servers[-1] if _servers[-1].is_running else None


def _forget() -> None:
    """Let go of the servers in a fork of this process, which would keep them alive after it."""
    while _servers:
        _servers.pop().line.close()


os.register_at_fork(after_in_child=_forget)


class _Server:
    """The run's side of the server."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.is_ready = False
        self.line, theirs = socket.socketpair()  # the server ends when this end is closed, however this process ends
        process = context.Process(target=_serve, args=(theirs,), name="clotkit-forks", daemon=True)
        process.start()
        theirs.close()
        self.process = process
        vars(multiprocessing.process)["_children"].discard(process)  # Python would wait for it without a limit
        util.Finalize(self, self.leave, exitpriority=0)

    @property
    def is_running(self) -> bool:
        return self.line.fileno() >= 0 and self.process.exitcode is None

    def leave(self) -> None:
        """Let it end with this process, whose CPU seconds then hold those of the slides."""
        self.line.close()
        wait_for_exit(self.process, time.monotonic() + END_S)

    def end(self) -> None:
        """End it, and with it the processes that it has forked."""
        self.process.kill()
        self.line.close()

    def fork(self, target: Callable[..., None], arguments: Sequence[object], pipe: Connection) -> "Forked | None":
        """Return a new process of the server; None if the system has no room for one. Raises _ServerLostError."""
        call = pickle.dumps((_environment(), _folder(), sys.path, pickle.dumps((target, arguments))))
        status, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
        order = os.memfd_create("clotkit-call")
        try:
            with open(order, "wb", closefd=False) as file:
                file.write(call)
            self._order([order, pipe.fileno(), theirs.fileno()])
        finally:
            os.close(order)
            theirs.close()
        if not wait([status], FORK_S):
            raise _ServerLostError
        pid = _number(status)
        return None if pid is None else Forked(pid, status)

    def _order(self, files: list[int]) -> None:
        """Send an order once the server is ready. Raises _ServerLostError."""
        try:
            if not self.is_ready:
                self.line.settimeout(READY_S)
                self.is_ready = self.line.recv(1) == READY
            if self.is_ready:
                socket.send_fds(self.line, [b"f"], files)
        except OSError as error:
            raise _ServerLostError from error
        if not self.is_ready:
            raise _ServerLostError


class Forked:
    """A process that the server has forked."""

    def __init__(self, pid: int, status: Connection) -> None:
        self.pid, self._status = pid, status
        self._exitcode: int | None = None

    @property
    def sentinel(self) -> int:
        """A file descriptor that is ready once it has ended."""
        return self._status.fileno()

    @property
    def exitcode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._exitcode is None and self._status.poll():
            code = _number(self._status)
            self._exitcode = -signal.SIGKILL if code is None else code  # it dies with the server
        return self._exitcode

    def kill(self) -> None:
        """Send it SIGKILL."""
        if self.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _number(status: Connection) -> int | None:
    """Return the next number from the server; None: it has closed the pipe."""
    data = os.read(status.fileno(), NUMBER.size)
    return int(NUMBER.unpack(data)[0]) if len(data) == NUMBER.size else None


def _folder() -> str:
    """Return the working folder, or that of processes without one."""
    try:
        return str(Path.cwd())
    except OSError:
        return "/"


def die_with(parent: int) -> None:
    """Have this process killed when its parent dies, so that a hung slide does not outlive its run.

    Linux only; nothing on other systems.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died before prctl was called
        os._exit(1)


def _environment() -> dict[str, str]:
    """Return the environment of a process of a slide; another thread may change this process's meanwhile."""
    known = ((name, os.environ.get(name)) for name in list(os.environ))
    return {name: value for name, value in known if value is not None} | ONE_THREAD


def _spawned(parent: int, call: bytes, pipe: Connection) -> None:
    """Run a spawned process; its call is pickled apart, because it imports what reads ONE_THREAD."""
    os.environ.update(ONE_THREAD)
    die_with(parent)
    target, arguments = pickle.loads(call)
    target(*arguments, pipe.fileno())


def _serve(line: socket.socket) -> NoReturn:
    """Run the server: import what slides need, then fork a process for each order until the run has gone."""
    os.environ.update(ONE_THREAD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles Ctrl-C
    for name in PREPARED:
        with suppress(ImportError):  # then slides do without it, or say so
            import_module(name)
    gc.freeze()  # what is here stays, so that no collection in a slide's process copies its pages
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    line.sendall(READY)
    serving = _Serving(line, woken, wakes)
    with suppress(ConnectionError):
        serving.run()
    os._exit(0)  # its processes die with it


class _Serving:
    """The server's side: processes that run, each with the pipe that says how it ends."""

    def __init__(self, line: socket.socket, woken: socket.socket, wakes: socket.socket) -> None:
        self.line, self.woken, self.wakes = line, woken, wakes
        self.status: dict[int, int] = {}  # by process id

    def run(self) -> None:
        """Fork and report until the other end of the line is closed."""
        with selectors.DefaultSelector() as selector:
            for source in (self.line, self.woken):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self.woken in ready:
                    self.reap()
                if self.line in ready and not self.fork(selector):
                    return

    def reap(self) -> None:
        """Send the exit code of every process that has ended."""
        with suppress(BlockingIOError):
            while self.woken.recv(4096):
                pass
        for pid in list(self.status):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                _tell(self.status.pop(pid), os.waitstatus_to_exitcode(code))

    def fork(self, selector: selectors.BaseSelector) -> bool:
        """Take an order; return False if there is none, as the run has gone."""
        _, descriptors, _, _ = socket.recv_fds(self.line, 1, 3)
        if not descriptors:
            return False
        order, pipe, status = descriptors
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes: the run gets no process id
            os.close(status)
        else:
            if not pid:
                self.become(server, order, pipe, status, selector)
            self.status[pid] = status
            os.write(status, NUMBER.pack(pid))
        os.close(order)
        os.close(pipe)
        return True

    def become(self, server: int, order: int, pipe: int, status: int, selector: selectors.BaseSelector) -> NoReturn:
        """Be the new process, which has nothing of the server's but its modules."""
        try:
            die_with(server)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            selector.close()
            for end in (self.line, self.woken, self.wakes):
                end.close()
            for descriptor in (status, *self.status.values()):
                os.close(descriptor)
            _obey(order, pipe)
        except BaseException:  # noqa: BLE001 - whatever it is, it must not reach the server's loop
            traceback.print_exc()
            os._exit(1)
        os._exit(0)


def _tell(status: int, number: int) -> None:
    with suppress(BrokenPipeError):
        os.write(status, NUMBER.pack(number))
    os.close(status)


def _obey(order: int, pipe: int) -> None:
    """Set up the process as the run is, and do what it wants."""
    with open(order, "rb") as file:
        file.seek(0)
        environment, folder, path, call = pickle.load(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    with suppress(OSError):
        os.chdir(folder)
    target, arguments = pickle.loads(call)
    target(*arguments, pipe)
