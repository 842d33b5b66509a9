"""A local folder of shards: locked for one run, cleaned of temporary files, and measured."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from clotkit.errors import UsageError
from clotkit.locks import exclusive_folder
from clotkit.splits import SlideRow
from clotkit.stores import Folder, Store
from clotkit.units import MB

PREVIEWS = "preview"  # folder of the previews, below that of the shards


@contextmanager
def exclusive(store: Store, slides: Sequence[SlideRow], verb: str = "clotkit tile") -> Iterator[None]:
    """Create a local folder and lock it for this run; do nothing for an object store.

    Two runs in one folder would delete each other's temporary files. Those that killed processes left behind are
    deleted before and after. An object store has no temporary files, and two runs write the same objects.

    Raises UsageError if the folder cannot be created, locked or written.
    """
    if not isinstance(store, Folder):
        yield
        return
    out = store.path
    try:
        with exclusive_folder(out, verb):
            _remove_temporary_files(out, slides)
            yield
            _remove_temporary_files(out, slides)
    except BrokenPipeError:
        raise  # of the log, whose reader is gone
    except OSError as error:
        raise UsageError(
            f"{error.filename or out}: cannot be written: {error.strerror}; free some space, or choose another folder"
        ) from error


def _remove_temporary_files(out: Path, slides: Sequence[SlideRow]) -> None:
    """Delete the temporary files (see files.atomic_write) of processes that were killed."""
    slide_ids = {slide.image_id for slide in slides}  # a slide's id may begin with a dot too
    by_suffix = [out.glob(f".*.{suffix}") for suffix in ("npy", "h5", "csv", "json")]
    for path in chain(*by_suffix, (out / PREVIEWS).glob(".*.jpg")):
        if path.stem not in slide_ids:
            path.unlink(missing_ok=True)


def is_full(out: Path, max_mb: float) -> bool:
    """Return True if the folder's shards, including partly written ones, have reached `max_mb`."""
    return used_mb(out) >= max_mb


def used_mb(out: Path) -> float:
    """Return the MB (2**20 bytes) of the folder's shards, including partly written ones."""
    size_bytes = 0
    for path in out.glob("*.npy"):
        with suppress(FileNotFoundError):  # it was renamed meanwhile
            size_bytes += path.stat().st_size
    return size_bytes / MB
