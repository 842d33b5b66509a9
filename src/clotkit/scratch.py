"""Scratch folders: for what is fetched and for what is sent, gone with the process that uses them, however it ends."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def scratch_base() -> Path:
    """The folder of this user's scratch folders: below TMPDIR."""
    return Path(tempfile.gettempdir()) / f"clotkit-scratch-{os.getuid()}"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what is fetched, removed in the end; those of processes that were killed go before it is made."""
    base = scratch_base()
    base.mkdir(mode=0o700, exist_ok=True)
    with _held(base):
        for left in base.iterdir():
            _remove_unheld(left)
        folder = Path(tempfile.mkdtemp(dir=base))
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_unheld(folder: Path) -> None:
    """Remove a scratch folder that no process holds any more."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its owner has just removed it
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)
