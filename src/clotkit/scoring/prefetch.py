"""Reading ahead: events are taken from their source while the one before is still being worked on.

A slide's process waits once its pipe is full, which is after less than one batch. Taking batches off its hands while
the model works lets it finish, and the next slide begin.
"""

import queue
import threading
from collections.abc import Callable, Generator

from clotkit.workers import Ended, Tiles

MOST_BYTES = 2**27  # of tiles that wait for the model
Event = Tiles | Ended
Make = Callable[[Callable[[], bool]], Generator[Event, None, None]]


def ahead(make: Make, most_bytes: int = MOST_BYTES) -> Generator[Event, None, None]:
    """The events that `make` makes, in their order, read by a thread of its own until `most_bytes` of tiles wait.

    `make` is given a function that says when nobody wants more: closing this generator cannot close one that another
    thread is in. What the events raise is raised here.
    """
    waiting = _Waiting(most_bytes)
    events = make(waiting.is_stopped)
    thread = threading.Thread(target=waiting.fill, args=(events,), name="ahead", daemon=True)
    thread.start()
    try:
        while (event := waiting.take()) is not None:
            yield event
    finally:
        waiting.stop()
        thread.join()
    if waiting.error is not None:
        raise waiting.error


class _Waiting:
    """Events between two threads, with a limit on the bytes of their tiles."""

    def __init__(self, most_bytes: int) -> None:
        self.error: BaseException | None = None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._room, self._free, self._stopped = threading.Condition(), most_bytes, False

    def is_stopped(self) -> bool:
        return self._stopped

    def fill(self, events: Generator[Event, None, None]) -> None:
        try:
            for event in events:
                self._events.put(event)
                if not self._wait_for_room(_size(event)):
                    break
        except BaseException as error:  # noqa: BLE001 - it belongs to the other thread
            self.error = error
        finally:
            events.close()
            self._events.put(None)

    def take(self) -> Event | None:
        event = self._events.get()
        if event is not None:
            with self._room:
                self._free += _size(event)
                self._room.notify()
        return event

    def stop(self) -> None:
        with self._room:
            self._stopped = True
            self._room.notify()

    def _wait_for_room(self, size: int) -> bool:
        """Take room for an event that is in the queue already; False when nobody wants more."""
        with self._room:
            self._free -= size
            self._room.wait_for(lambda: self._free >= 0 or self._stopped)
            return not self._stopped


def _size(event: Event) -> int:
    return event.batch.tiles.nbytes if isinstance(event, Tiles) else 0
