"""Follow one version of a kernel on Kaggle to its end, show its log as it comes, and fetch its files."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from clotkit.errors import RemoteError, RemoteMissing, UsageError
from clotkit.files import atomic_write
from clotkit.kaggle.client import Kaggle
from clotkit.kaggle.polling import Poller
from clotkit.kaggle.public import check_name
from clotkit.kaggle.states import RunState
from clotkit.progress import Log
from clotkit.reasons import RemoteKind

POLL_S, POLL_AFTER_LOG_S = 20.0, 2.0  # before the next look at a run; after the end of its log. Both grow
# Before each look for a version that Kaggle does not show yet. If it was not pushed from here, only the first four.
SHOW_WAITS_S = (2.0, 5.0, 10.0, 20.0, 30.0, 30.0, 30.0)
QUEUE_LIMIT_S = 6 * 3_600.0  # that a run may wait for a machine
RUN_LIMIT_S = 13 * 3_600.0  # Kaggle ends a session after 12 hours
LATE_LOG_TRIES = 3  # for the log of a run that is over: it may come a little later
LAST_LINES = 5  # of the log, in the message of a run that failed


T = TypeVar("T")


class KernelRun:
    """The run of one version of a kernel; `ref` is owner/slug.

    A version that was `pushed_here` certainly exists, so that it is waited for longer if Kaggle does not show it.
    """

    def __init__(
        self,
        client: Kaggle,
        ref: str,
        version: int,
        log: Log = print,
        clock: Callable[[], float] = time.monotonic,
        pushed_here: bool = False,
    ) -> None:
        self.client, self.ref, self.version, self.log, self.clock = client, ref, version, log, clock
        self.owner, _, self.slug = ref.partition("/")
        if not (self.owner and self.slug) or "/" in self.slug or version < 1:
            raise UsageError(f"kernel {ref!r} version {version}: OWNER/SLUG and a version from 1 are needed")
        self._show_waits_s = SHOW_WAITS_S if pushed_here else SHOW_WAITS_S[:4]
        self._shown_characters = 0  # of the log
        self._open_line = ""  # the last line of the log, as long as it has no line end
        self._last_lines = [""]
        self._last_log_error = ""
        self._log_ended = self._said_complete = False
        self._failure = ""  # Kaggle's message about the run's failure, at the last look

    def wait(self, queue_limit_s: float = QUEUE_LIMIT_S, run_limit_s: float = RUN_LIMIT_S) -> None:
        """Wait until the run is complete, and show its log meanwhile.

        Raises RemoteError if the run fails, is cancelled, or does not start or end within its limit in seconds.
        """
        state = self._to_the_end(queue_limit_s, run_limit_s)
        if state is not RunState.COMPLETE:
            raise self._run_error(state, self._failure)

    def follow_log(self) -> None:
        """Show the log as it comes, until the run is over. Raises RemoteError after the limits of `wait`."""
        self._to_the_end(QUEUE_LIMIT_S, RUN_LIMIT_S)

    def _to_the_end(self, queue_limit_s: float, run_limit_s: float) -> RunState:
        """Wait until the run is over, show its log, and return its last state."""
        self.note_newer()
        poller = Poller(
            self._look,
            self._name,
            self.log,
            self.client.wait,
            lambda state: run_limit_s if state is RunState.RUNNING else queue_limit_s,
            f"https://www.kaggle.com/code/{self.ref}",
            POLL_S,
            self.clock,
        )
        for state in poller:
            if state.over:
                self.show_log()
                return state
            if state is RunState.RUNNING:
                self._follow_between(poller)
        raise AssertionError

    def _follow_between(self, poller: Poller[RunState]) -> None:
        """Show the log between two polls of a run, and say when the next one is due."""
        if self._log_ended:
            if not self._said_complete:
                self.log(f"{self._name}: its log is complete, but Kaggle says RUNNING; waiting, with ever rarer looks")
            self._said_complete = True
            return
        shown_before = self._shown_characters
        if self._follow_log():
            self._log_ended = True
            poller.soon(POLL_AFTER_LOG_S)
        elif self._shown_characters > shown_before:
            poller.soon()

    def _look(self) -> RunState:
        state, self._failure = self.status()
        return state

    def status(self) -> tuple[RunState, str]:
        """Return the state of the run, and Kaggle's message about its failure. Raises RemoteError."""
        word, failure = self._once_shown(lambda: self.client.session_status(self.owner, self.slug, self.version))
        state = RunState.read(word)
        if state is None:
            raise RemoteError(
                f"{self._name}: Kaggle reports the state {word!r}, which is none of {', '.join(RunState)}",
                RemoteKind.UNCLEAR,
            )
        return state, " ".join(failure.split())[:300]

    def note_newer(self) -> None:
        """Log a line if the kernel has a newer version.

        Raises RemoteMissing if it does not have this one: at once if it has not even the one before, otherwise if it
        does not show in time.
        """
        newest = self._once_shown(self._newest)
        if newest > self.version:
            self.log(f"{self.ref}: version {newest} is newer; this is about version {self.version}")

    def _newest(self) -> int:
        remote = self.client.get_kernel(self.owner, self.slug)
        newest = int((remote.get("metadata") or {}).get("currentVersionNumber") or 0)
        if newest < self.version:
            missing = f"{self._name}: Kaggle has {newest or 'no'} version{'s' * (newest != 1)} of it"
            if 0 < newest < self.version - 1:
                raise RemoteError(missing, RemoteKind.MISSING)
            raise RemoteMissing(missing)
        return newest

    def _once_shown(self, look: Callable[[], T]) -> T:
        """Return the result of a look; while Kaggle does not find the version yet, look again, within limits."""
        for pause_s in self._show_waits_s:
            try:
                return look()
            except RemoteMissing as error:
                self.log(f"{error}; a new version may take a while to show, looking again in {pause_s:.0f} s")
                self.client.wait(pause_s)
        return look()

    def show_log(self) -> None:
        """Show the rest of the log of a run that is over."""
        for _ in range(LATE_LOG_TRIES):
            if self._follow_log() and self._shown_characters:
                return
            self.client.wait(POLL_S)

    def fetch(self, out: Path, only: Sequence[str] = ()) -> list[Path]:
        """Fetch the run's output files to `out`, those named in `only` or all, and return their paths.

        Each is written in one step. Raises RemoteError if a name leads out of `out`, or a file does not come whole or
        is a web page.
        """
        addresses = self._addresses(only)
        paths = {name: out / check_name(name, self._name, out) for name in addresses}
        sizes = self._sizes() if paths else {}
        for name, path in paths.items():
            size_bytes = self._fetch_one(name, addresses[name], path, sizes.get(name, 0))
            self.log(f"{path}: {size_bytes:,} bytes")
        return list(paths.values())

    @property
    def _name(self) -> str:
        return f"{self.ref} version {self.version}"

    def _addresses(self, only: Sequence[str]) -> dict[str, str]:
        """Return the signed address of each output file, or of those named."""
        listed = self.client.session_output(self.owner, self.slug, self.version)
        return {name: url for name, url in listed if not only or name in only}

    def _sizes(self) -> dict[str, int]:
        try:
            return self.client.session_sizes(self.owner, self.slug, self.version)
        except RemoteError:  # the sizes are a second check: without them the length of the transfer is the only one
            return {}

    def _fetch_one(self, name: str, url: str, path: Path, listed_bytes: int) -> int:
        try:
            try:
                return self._fetch_from(url, name, path, listed_bytes)
            except RemoteError as error:  # addresses expire, so try a fresh one, once
                fresh = self._addresses([name]).get(name)
                if fresh is None:
                    raise error from None
                return self._fetch_from(fresh, name, path, listed_bytes)
        except OSError as error:
            raise RemoteError(
                f"{path}: {error.strerror}; free some space or choose another folder", RemoteKind.DISK
            ) from error

    def _fetch_from(self, url: str, name: str, path: Path, listed_bytes: int) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            size_bytes = self.client.fetch(url, temporary, name)
            if listed_bytes and size_bytes != listed_bytes:
                raise RemoteError(
                    f"{name}: {size_bytes} bytes came, Kaggle's list says {listed_bytes}: run again",
                    RemoteKind.MISMATCH,
                )
        return size_bytes

    def _follow_log(self) -> bool:
        """Show new text of the log until the stream is cut or ends; True if the log has ended.

        After a cut Kaggle starts again at the beginning, so as many characters as were shown already are skipped.
        """
        position = 0
        try:
            for piece in self.client.session_log(self.owner, self.slug, self.version):
                if piece is None:
                    self._show("\n" if self._open_line else "")
                    return True
                new = piece[max(0, self._shown_characters - position) :]
                position += len(piece)
                self._shown_characters = max(self._shown_characters, position)
                self._show(new)
        except RemoteError as error:  # the run goes on without its log being shown
            if str(error) != self._last_log_error:
                self.log(str(error))
            self._last_log_error = str(error)
        return False

    def _show(self, text: str) -> None:
        *lines, self._open_line = (self._open_line + text).split("\n")
        for line in lines:
            self._last_lines = [*self._last_lines, line.rstrip()][-LAST_LINES:]
            self.log(f"  | {line.rstrip()}")

    def _run_error(self, state: RunState, failure: str) -> RemoteError:
        """Return the error of a run that failed or was cancelled, with the end of its log."""
        last = " / ".join(line for line in self._last_lines if line)[-300:]
        end = f"end of its log: {last}" if last else f"see https://www.kaggle.com/code/{self.ref}"
        reason = f": {failure}" if failure else ""
        if state is RunState.ERROR:
            return RemoteError(f"{self._name} failed{reason}; {end}", RemoteKind.FAILED)
        return RemoteError(f"{self._name} was cancelled{reason}; {end}", RemoteKind.CANCELLED)
