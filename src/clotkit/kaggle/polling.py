"""Poll something on Kaggle until its state changes: ever more rarely, and not without end."""

import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from clotkit.errors import RemoteError
from clotkit.progress import Log
from clotkit.reasons import RemoteKind

State = TypeVar("State")
GROWTH, LONGEST_PAUSE_S = 1.5, 120.0  # of the pause between two polls
SAID_FIRST_S = 1_200.0  # in one state: a line then, and whenever that time has doubled


class Poller(Generic[State]):
    """Poller of something that has a state: iterating yields the state at each poll.

    A poll that finds another state logs it. The pauses start at `first_s` and grow while the state stays the same. A
    state that stays for long is logged again, and raises RemoteError after its limit.

    Args:
        look: Asks Kaggle for the state.
        name: The thing's name, in messages.
        log: Takes the lines.
        wait: Sleeps, in seconds.
        clock: Gives the time in seconds.
        limit_s: Returns how long the thing may stay in a state, in seconds.
        first_s: The first pause.
        see: Where a person can look for the cause.
    """

    def __init__(
        self,
        look: Callable[[], State],
        name: str,
        log: Log,
        wait: Callable[[float], None],
        limit_s: Callable[[State], float],
        see: str,
        first_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look, self._name, self._log, self._wait = look, name, log, wait
        self._clock, self._limit_s, self._first_s, self._see = clock, limit_s, first_s, see
        self._pause_s = first_s

    def soon(self, pause_s: float | None = None) -> None:
        """Poll again after `pause_s` (default: the first pause), because something went on."""
        self._pause_s = self._first_s if pause_s is None else pause_s

    def __iter__(self) -> Iterator[State]:
        last: State | None = None
        since, said_s = self._clock(), SAID_FIRST_S
        while True:
            state = self._look()
            if state != last:
                self._log(f"{self._name}: {state or 'not there yet'}")
                last, since, said_s = state, self._clock(), SAID_FIRST_S
                self.soon()
            yield state
            passed_s, limit_s = self._clock() - since, self._limit_s(state)
            if passed_s > limit_s:
                raise RemoteError(
                    f"{self._name}: {state or 'not there'} for {_length(limit_s)}: see {self._see}; the same command "
                    "goes on from there",
                    RemoteKind.TIMEOUT,
                )
            if passed_s >= said_s:
                said_s = 2 * passed_s
                self._log(f"{self._name}: {state} for {_length(passed_s)} now; a look every {self._pause_s:.0f} s")
            self._wait(self._pause_s)
            self._pause_s = min(self._pause_s * GROWTH, LONGEST_PAUSE_S)


def _length(seconds: float) -> str:
    """Return a length of time in words."""
    return f"{seconds / 60:.0f} minutes" if seconds <= 3_600 else f"{seconds / 3_600:.1f} hours"
