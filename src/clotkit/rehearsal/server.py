"""Run the serving kernel in its sandbox, as a process that may be reset."""

import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from clotkit.competitions.schema import Serving
from clotkit.errors import RehearsalError
from clotkit.progress import Log
from clotkit.reasons import RehearsalKind
from clotkit.rehearsal.confined.trees import kill_tree, tree_mb
from clotkit.rehearsal.sandbox import Sandbox, Stage, launch
from clotkit.rehearsal.standin import relay
from clotkit.supervise import BATCH_S, RERUN, name_of

WATCH_S = 0.5


class Server:
    """The kernel's process, and the connection to it."""

    def __init__(self, stage: Stage, sandbox: Sandbox, serving: Serving, log: Log) -> None:
        """Serve in the folders of `stage`.

        Args:
            stage: the folders of the run.
            sandbox: the bundle and its Python.
            serving: within how long the server must be up, and the deadlines of batches.
            log: takes the lines of the kernel.
        """
        self.stage = stage
        self.batch_s = serving.deadline_s  # of all batches but the first after a start; it counts from a start on
        self._next_s: float | None = serving.first_deadline_s or serving.deadline_s  # of the next batch, if not batch_s
        self.shared = stage.root / "shared"
        self.up_s: list[float] = []  # of every start
        self.peak_mb = 0.0
        self.workings: list[Path] = []  # of earlier starts
        self._sandbox, self._serving, self._log = sandbox, serving, log
        self._sockets = Path(tempfile.mkdtemp(prefix="clotkit-"))  # a socket's path has at most 107 bytes

    def start(self) -> None:
        """Start the kernel, wait until its server is up. Raises RehearsalError if it ends or is late."""
        path, started = self._sockets / "relay", time.monotonic()
        path.unlink(missing_ok=True)
        self.shared.mkdir(exist_ok=True)
        more = {RERUN: "1", relay.ADDRESS: str(path), BATCH_S: str(self.batch_s)}
        self._process = launch(self.stage, self._sandbox, more)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._watch)]
        for thread in self._threads:
            thread.start()
        self.client = relay.Client(str(path))
        try:
            self._wait(started + self._serving.startup_s)
        except BaseException:  # Ctrl-C too: nothing else would stop the kernel
            self.stop()
            raise
        self.up_s.append(round(time.monotonic() - started, 1))

    def _wait(self, until: float) -> None:
        while not self.client.is_up(min(WATCH_S, max(0.0, until - time.monotonic()))):
            if self._process.poll() is not None:
                raise RehearsalError(
                    f"the kernel ended with {name_of(self._process.returncode)} before its server was up",
                    RehearsalKind.SERVER,
                )
            if time.monotonic() >= until:
                raise RehearsalError(
                    f"the server is not up after {self._serving.startup_s:.0f} s", RehearsalKind.SERVER
                )

    def send(self, *values: Any) -> Any:
        """Return the server's answer to a batch. Raises as relay.Client.send does."""
        limit_s, self._next_s = self._next_s or self.batch_s, None
        return self.client.send("predict", *values, limit_s=limit_s)

    def reset(self) -> None:
        """Kill the kernel and start it again in an empty working folder, as a container that is made anew.

        Its gateway goes on: a longer deadline of the first batch does not come back.
        """
        self.stop()
        kept = self.stage.root / f"working-{len(self.workings) + 1}"
        shutil.rmtree(kept, ignore_errors=True)
        self.stage.working.rename(kept)
        self.workings.append(kept)
        self.stage.working.mkdir()
        self.start()
        self._next_s = self._serving.deadline_s

    def stop(self) -> None:
        """Kill the kernel, as the platform does at the end."""
        self.client.close()
        kill_tree(self._process.pid)
        self._process.wait()
        for thread in self._threads:
            thread.join()

    def stop_members(self) -> None:
        """Stop the process that has the members with SIGSTOP."""
        for process in self._family():
            with suppress(psutil.Error):
                if "--weights" in process.cmdline():
                    process.suspend()

    def held(self, paths: list[Path]) -> list[str]:
        """Return those of `paths` that a process of the kernel has open."""
        wanted, found = {str(path) for path in paths}, set[str]()
        for process in self._family():
            with suppress(psutil.Error):
                found |= {file.path for file in process.open_files()} & wanted
        return sorted(found)

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._log(f"  | {line.rstrip()}")

    def _watch(self) -> None:
        while self._process.poll() is None:
            self.peak_mb = max(self.peak_mb, tree_mb(self._process.pid))
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(WATCH_S)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self._sockets, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)
