"""One version of a kernel on Kaggle: followed to its end, its log shown as it comes, its files fetched."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from clotkit.errors import RemoteError, UsageError
from clotkit.files import atomic_write
from clotkit.kaggle.client import Kaggle
from clotkit.kaggle.public import inside
from clotkit.progress import Log

POLL_S, SOON_S = 20.0, 2.0  # between two looks at a run; after the end of its log
QUEUE_LIMIT_S = 6 * 3_600.0  # that a run may wait for a machine
RUN_LIMIT_S = 13 * 3_600.0  # Kaggle ends a session after 12 hours
LATE_LOGS = 3  # looks for the log of a run that is over: it may come a little later
LAST_LINES = 5  # of the log, in the message of a run that failed
STATES = ("QUEUED", "RUNNING", "COMPLETE", "ERROR", "CANCEL_REQUESTED", "CANCEL_ACKNOWLEDGED", "NEW_SCRIPT")
OVER = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")


class Session:
    """The run of one version of a kernel; `ref` is owner/slug."""

    def __init__(
        self, client: Kaggle, ref: str, version: int, log: Log = print, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client, self.ref, self.version, self.log, self.clock = client, ref, version, log, clock
        self.owner, _, self.slug = ref.partition("/")
        if not (self.owner and self.slug) or "/" in self.slug or version < 1:
            raise UsageError(f"kernel {ref!r} version {version}: OWNER/SLUG and a version from 1 are needed")
        self._taken, self._rest, self._last, self._complaint = 0, "", [""], ""

    def wait(self, queue_limit_s: float = QUEUE_LIMIT_S, run_limit_s: float = RUN_LIMIT_S) -> None:
        """Come back when the run is COMPLETE; its log is shown meanwhile.

        Raises RemoteError when the run fails, is cancelled, does not start or does not end within its limit.
        """
        self.note_newer()
        since, last = self.clock(), ""
        while True:
            status, failure = self.status()
            if status != last:
                self.log(f"{self._name}: {status}")
                since = self.clock()
            last = status
            if status == "COMPLETE":
                self.show_log()
                return
            if status in ("ERROR", "CANCEL_ACKNOWLEDGED"):
                self.show_log()
                raise RemoteError(self._ended(status, failure))
            limit_s = run_limit_s if status == "RUNNING" else queue_limit_s
            if self.clock() - since > limit_s:
                raise RemoteError(
                    f"{self._name}: {status} for {limit_s / 3600:.1f} hours; see https://www.kaggle.com/code/{self.ref}"
                )
            ended = status == "RUNNING" and self._follow_log()
            self.client.wait(SOON_S if ended else POLL_S)

    def status(self) -> tuple[str, str]:
        """How the run is doing, one of STATES, and what Kaggle says of its failure. Raises RemoteError."""
        said, failure = self.client.session_status(self.owner, self.slug, self.version)
        plain = said.replace("_", "")
        found = [state for state in STATES if plain.endswith(state.replace("_", ""))]
        if not found:
            raise RemoteError(f"{self._name}: Kaggle says {said!r}, which is none of {', '.join(STATES)}")
        return found[0], " ".join(failure.split())[:300]

    def note_newer(self) -> None:
        """Say so when the kernel has a newer version than this one. Raises RemoteError for one that is not there."""
        remote = self.client.kernel(self.owner, self.slug)
        newest = int((remote.get("metadata") or {}).get("currentVersionNumber") or 0)
        if not newest or newest < self.version:
            raise RemoteError(f"{self._name}: Kaggle has {newest or 'no'} version{'s' * (newest != 1)} of it")
        if newest > self.version:
            self.log(f"{self.ref}: version {newest} is newer; this is about version {self.version}")

    def show_log(self) -> None:
        """Show what is still to be seen of the log of a run that is over."""
        for _ in range(LATE_LOGS):
            if self._follow_log() and self._taken:
                return
            self.client.wait(POLL_S)

    def follow_log(self) -> None:
        """Show the log as it comes, until the run is over. Raises RemoteError when Kaggle cannot be asked."""
        self.note_newer()
        while self.status()[0] not in OVER:
            ended = self._follow_log()
            self.client.wait(SOON_S if ended else POLL_S)
        self.show_log()

    def fetch(self, out: Path, only: Sequence[str] = ()) -> list[Path]:
        """Fetch the run's files to `out`, each in one step: those named in `only`, or all.

        Raises RemoteError when one leads out of `out`, cannot be had whole, or is a web page.
        """
        listed = self._listed(only)
        paths = {name: out / inside(name, self._name, out) for name in listed}
        sizes = self._sizes() if paths else {}
        for name, path in paths.items():
            size_bytes = self._fetch_one(name, listed[name], path, sizes.get(name, 0))
            self.log(f"{path}: {size_bytes:,} bytes")
        return list(paths.values())

    @property
    def _name(self) -> str:
        return f"{self.ref} version {self.version}"

    def _listed(self, only: Sequence[str]) -> dict[str, str]:
        """The signed address of each of the run's files, or of those named."""
        found = self.client.session_output(self.owner, self.slug, self.version)
        return {name: url for name, url in found if not only or name in only}

    def _sizes(self) -> dict[str, int]:
        try:
            return self.client.session_sizes(self.owner, self.slug, self.version)
        except RemoteError:  # another check of what comes; without it the transfer's own length stands
            return {}

    def _fetch_one(self, name: str, url: str, path: Path, wanted_bytes: int) -> int:
        try:
            try:
                return self._fetch_from(url, name, path, wanted_bytes)
            except RemoteError as error:  # addresses expire: once more, from a fresh one
                fresh = self._listed([name]).get(name)
                if fresh is None:
                    raise error from None
                return self._fetch_from(fresh, name, path, wanted_bytes)
        except OSError as error:
            raise RemoteError(f"{path}: {error.strerror}; free some space or choose another folder") from error

    def _fetch_from(self, url: str, name: str, path: Path, wanted_bytes: int) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            came_bytes = self.client.fetch(url, temporary, name)
            if wanted_bytes and came_bytes != wanted_bytes:
                raise RemoteError(f"{name}: {came_bytes} bytes came, Kaggle's list says {wanted_bytes}: run again")
        return came_bytes

    def _follow_log(self) -> bool:
        """Show what is new of the log until it is cut or ends; True when that was all of it.

        After a cut Kaggle begins again at the start: as many characters as were seen already are left out.
        """
        at = 0
        try:
            for piece in self.client.session_log(self.owner, self.slug, self.version):
                if piece is None:
                    self._show("\n" if self._rest else "")
                    return True
                new = piece[max(0, self._taken - at) :]
                at += len(piece)
                self._taken = max(self._taken, at)
                self._show(new)
        except RemoteError as error:  # the run goes on without its log being seen
            if str(error) != self._complaint:
                self.log(str(error))
            self._complaint = str(error)
        return False

    def _show(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._last = [*self._last, line.rstrip()][-LAST_LINES:]
            self.log(f"  | {line.rstrip()}")

    def _ended(self, status: str, failure: str) -> str:
        last = " / ".join(line for line in self._last if line)[-300:]
        said = "was cancelled" if status.startswith("CANCEL") else "failed"
        where = f"last of its log: {last}" if last else f"see https://www.kaggle.com/code/{self.ref}"
        return f"{self._name} {said}{f': {failure}' if failure else ''}; {where}"
