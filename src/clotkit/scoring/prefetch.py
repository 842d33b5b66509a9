"""Read events from a stream of slides in a thread while the model works on earlier ones.

A slide's process blocks once its pipe is full, which takes less than one batch. Taking batches from it while the model
works lets it finish, and the next slide begin.
"""

import queue
import threading
from collections.abc import Callable, Generator

from clotkit.workers import Ended, TileBatch

MAX_BYTES = 2**27  # of tiles that wait for the model
CLOSE_S = 30.0  # the longest wait for the thread, whose source looks several times a second whether it is stopped
Event = TileBatch | Ended
Source = Callable[[Callable[[], bool]], Generator[Event, None, None]]


def prefetch(source: Source, max_bytes: int = MAX_BYTES) -> Generator[Event, None, None]:
    """Yield the events of `source` in order, read by a thread that pauses while `max_bytes` of tiles wait.

    `source` is called with a function that returns True once no more events are wanted: closing this generator cannot
    close one that another thread is running. An exception in `source` is raised here, after the events before it.
    """
    buffer = _Buffer(max_bytes)
    events = source(buffer.is_stopped)
    thread = threading.Thread(target=buffer.fill, args=(events,), name="prefetch", daemon=True)
    thread.start()
    try:
        while (event := buffer.take()) is not None:
            yield event
    finally:
        buffer.stop()
        thread.join(CLOSE_S)
    if buffer.error is not None:
        raise buffer.error


class _Buffer:
    """Events between two threads, with a limit on the bytes of their tiles."""

    def __init__(self, max_bytes: int) -> None:
        self.error: BaseException | None = None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._condition, self._free_bytes, self._stopped = threading.Condition(), max_bytes, False

    def is_stopped(self) -> bool:
        return self._stopped

    def fill(self, events: Generator[Event, None, None]) -> None:
        try:
            for event in events:
                self._events.put(event)
                if not self._wait_for_room(_size_bytes(event)):
                    break
        except BaseException as error:  # noqa: BLE001 - raised again in the other thread
            self.error = error
        finally:
            events.close()
            self._events.put(None)

    def take(self) -> Event | None:
        event = self._events.get()
        if event is not None:
            with self._condition:
                self._free_bytes += _size_bytes(event)
                self._condition.notify()
        return event

    def stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify()

    def _wait_for_room(self, size_bytes: int) -> bool:
        """Count an event that is in the queue already, and wait until the queue fits; False: stopped."""
        with self._condition:
            self._free_bytes -= size_bytes
            self._condition.wait_for(lambda: self._free_bytes >= 0 or self._stopped)
            return not self._stopped


def _size_bytes(event: Event) -> int:
    return event.batch.tiles.nbytes if isinstance(event, TileBatch) else 0
