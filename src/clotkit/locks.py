"""Lock a folder for one process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clotkit.errors import UsageError


@contextmanager
def exclusive_folder(folder: Path, verb: str) -> Iterator[None]:
    """Create a folder and hold its lock, which ends with this process, however it ends.

    The folder itself is locked, by flock: no file is left behind, and processes that start here do not hold the lock.
    It holds between the processes of one machine. Between machines it holds as far as their file system passes locks of
    folders on, which NFS does not. A file system without locks is not locked.

    Raises UsageError if the folder cannot be created, or another process holds its lock; `verb` is in the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be used for results: {error.strerror}; choose another folder") from error
    try:
        with suppress(OSError):  # a file system without locks; BlockingIOError is raised below
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{folder}: another {verb} is writing there; wait for it, or choose another folder"
                ) from None
        yield
    finally:
        os.close(handle)  # releases the lock
