"""Write files atomically: under a temporary name, fsynced, then renamed. Standard library only."""

import hashlib
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A name that is not UTF-8 has lone surrogates in Python. It is written with \udc80 to \udcff, which JSON reads back.
ESCAPED = "backslashreplace"
LONGEST_PART = 100  # bytes of a name that the temporary file's name begins or ends with: a name has at most 255


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` on success.

    Its permissions are `mode` then. On an exception the temporary file is removed, and `path` stays as it was. The
    temporary file has the suffixes of `path`, for writers that choose a format by them.
    """
    suffix = "".join(path.suffixes)
    suffix = suffix if len(os.fsencode(suffix)) <= LONGEST_PART else path.suffix
    stem = os.fsdecode(os.fsencode(path.name.removesuffix(suffix))[:LONGEST_PART])
    handle, name = tempfile.mkstemp(prefix=f".{stem}.", suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)  # mkstemp makes it 0600, unreadable for other users
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def remove_temporaries(path: Path) -> None:
    """Remove the temporary files of `atomic_write` to `path` that killed processes left."""
    suffix = "".join(path.suffixes)
    for temporary in path.parent.glob(f".{path.name.removesuffix(suffix)}.*{suffix}"):
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8 with its line ends unchanged; see ESCAPED."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", errors=ESCAPED, newline="") as file:
        file.write(text)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tar(path: Path, files: Mapping[str, Path]) -> None:
    """Write a tar archive of files, {name in the archive: file}; the same files give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)  # its defaults: time 0, no owner, mode 0644
            entry.size = files[name].stat().st_size
            with files[name].open("rb") as file:
                archive.addfile(entry, file)


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
