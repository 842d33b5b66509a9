"""Lock a folder or a file for one process, and ask who writes to a file.

A lock ends with its process, however that ends.
"""

import errno
import fcntl
import os
import signal
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


def is_held(folder: Path) -> bool:
    """Return whether a process of this machine holds the lock of a folder, without touching the lock.

    Linux lists locks by inode in /proc/locks; False on other systems, and for what holds it in another container.
    """
    try:
        inode = str(folder.stat().st_ino)
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return any(fields[1] == "FLOCK" and fields[5].endswith(f":{inode}") for fields in map(str.split, lines))


@contextmanager
def exclusive_file(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file and yield True; the file is created if it is missing.

    Without `wait` it yields False if another process holds the lock. Network file systems pass these locks on if they
    have any. Raises UsageError if the file system has none, or the file cannot be created.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}; choose another folder") from error
    try:
        yield _locked(path, handle, wait)
    finally:
        os.close(handle)  # releases the lock


def _locked(path: Path, handle: int, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise UsageError(
            f"{path}: its file system has no locks: {error.strerror}; choose a folder on another one"
        ) from error
    return True


def is_written_to(path: Path) -> bool | None:
    """Return whether a process has a file open for writing; None if the file system does not tell.

    Linux gives a read lease only on a file that nobody has open for writing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None  # else: another user's file, or no leases here
    finally:
        os.close(descriptor)
    return False


def ignore_lease_breaks() -> None:
    """Ignore SIGIO, which comes when a file is opened during its lease, and would end this process."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
