"""Send messages through a pipe, and receive them without waiting for the rest of one.

`multiprocessing.Connection.recv` waits for a whole message: a process that is stopped while it sends one would stop
its reader too. Standard library only.
"""

import os
import pickle
import struct
from typing import Any

HEADER = struct.Struct("!Q")  # bytes of the message that follows


def send(pipe: int, message: Any) -> None:
    """Write a message to a file descriptor, and wait while the pipe is full. Raises BrokenPipeError."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    for part in (HEADER.pack(len(data)), data):
        left = memoryview(part)
        while left:
            left = left[os.write(pipe, left) :]


def receive(pipe: int) -> Any:
    """Wait for a message from a trusted sender, and return it. Raises EOFError."""
    return pickle.loads(_whole(pipe, HEADER.unpack(_whole(pipe, HEADER.size))[0]))


def _whole(pipe: int, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        part = os.read(pipe, size_bytes - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


class Inbox:
    """The messages that come through a pipe."""

    def __init__(self, pipe: int) -> None:
        """Read from a file descriptor, which no longer waits from now on."""
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._expect(HEADER.size, is_header=True)

    def receive(self) -> Any:
        """Return the next message, or None while it has not come whole.

        Raises EOFError if the other end is closed, and whatever `pickle` raises for a damaged message.
        """
        while self._fill():
            whole, was_header = self._buffer, self._is_header
            if was_header:
                self._expect(HEADER.unpack(whole)[0], is_header=False)
            else:
                self._expect(HEADER.size, is_header=True)
                return pickle.loads(whole)
        return None

    def _expect(self, size_bytes: int, is_header: bool) -> None:
        self._buffer, self._position, self._is_header = bytearray(size_bytes), 0, is_header

    def _fill(self) -> bool:
        """Read what has come; return whether the buffer is full. Raises EOFError."""
        with memoryview(self._buffer) as view:
            while self._position < len(view):
                try:
                    count = os.readv(self._pipe, [view[self._position :]])
                except BlockingIOError:
                    return False
                if not count:
                    raise EOFError
                self._position += count
        return True
