"""Keep the bytes that were used last, up to a size."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from clotkit.units import MB

ENTRY_BYTES = 400  # of a key and the places in the table, about
Key = TypeVar("Key", bound=Hashable)


class BytesCache(Generic[Key]):
    """Bytes by key, at most `most_mb` in all: the ones not used for longest go first.

    Threads may share it.
    """

    def __init__(self, most_mb: float) -> None:
        """Start empty."""
        self._most_bytes, self.size_bytes = int(most_mb * MB), 0
        self._entries: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> bytes | None:
        """Return the bytes of a key, None if they are not here."""
        with self._lock:
            data = self._entries.get(key)
            if data is not None:
                self._entries.move_to_end(key)
            return data

    def put(self, key: Key, data: bytes) -> None:
        """Keep the bytes of a key."""
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self.size_bytes -= len(old) + ENTRY_BYTES
            self._entries[key] = data
            self.size_bytes += len(data) + ENTRY_BYTES
            while self.size_bytes > self._most_bytes:
                self.size_bytes -= len(self._entries.popitem(last=False)[1]) + ENTRY_BYTES
