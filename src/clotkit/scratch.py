"""Scratch folders for files on their way to or from another machine.

A folder is removed when its process leaves it, or by the next process if its own was killed.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def scratch_base() -> Path:
    """Return the parent of this user's scratch folders, below TMPDIR."""
    return Path(tempfile.gettempdir()) / f"clotkit-scratch-{os.getuid()}"


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new scratch folder and remove it at the end; first remove those of killed processes."""
    base = scratch_base()
    base.mkdir(mode=0o700, exist_ok=True)
    with _locked(base):
        for folder in base.iterdir():
            _remove_if_unlocked(folder)
        folder = Path(tempfile.mkdtemp(dir=base))
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_if_unlocked(folder: Path) -> None:
    """Remove a scratch folder whose process has ended, and with it the lock."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its own process has just removed it
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)
