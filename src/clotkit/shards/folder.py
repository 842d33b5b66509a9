"""A local folder of shards while a run is at work in it: held for that run alone, swept, no fuller than it may be."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from clotkit.errors import UsageError
from clotkit.splits import SlideRow
from clotkit.stores import Folder, Store
from clotkit.units import MB

PREVIEWS = "preview"


@contextmanager
def alone(store: Store, slides: Sequence[SlideRow]) -> Iterator[None]:
    """Make a local folder and hold it for this run: two at a time would sweep away each other's temporary files.

    What killed processes left half-written is swept before and after. An object store has neither: two runs write the
    same objects. Raises UsageError for a folder that is not to be had, or not to be written.
    """
    if not isinstance(store, Folder):
        yield
        return
    out = store.path
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{out}: cannot be used as a folder of shards: {error.strerror}; name another") from error
    try:
        with suppress(OSError):  # a file system without locks; BlockingIOError, which says held, is raised below
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{out}: another clotkit tile is at work there; wait for it, or name another"
                ) from None
        _sweep(out, slides)
        yield
        _sweep(out, slides)
    except BrokenPipeError:
        raise  # of the log: whoever read it is gone
    except OSError as error:
        raise UsageError(
            f"{error.filename or out}: cannot be written: {error.strerror}; free it, or name another"
        ) from error
    finally:
        os.close(handle)  # and with it the lock


def _sweep(out: Path, slides: Sequence[SlideRow]) -> None:
    """Remove the temporary files (see files.atomic_write) of processes that were killed."""
    wanted = {slide.image_id for slide in slides}  # one of them may begin with a dot
    kinds = [out.glob(f".*.{kind}") for kind in ("npy", "csv", "json")]
    for path in chain(*kinds, (out / PREVIEWS).glob(".*.jpg")):
        if path.stem not in wanted:
            path.unlink(missing_ok=True)


def full(out: Path, most_mb: float) -> bool:
    """Whether the folder's shards, half-written ones too, take up all that they may."""
    return taken_mb(out) >= most_mb


def taken_mb(out: Path) -> float:
    """The MB (2**20 bytes) of the folder's shards, half-written ones too."""
    taken = 0
    for path in out.glob("*.npy"):
        with suppress(FileNotFoundError):  # it was renamed meanwhile
            taken += path.stat().st_size
    return taken / MB
