"""Folders and object stores by one face: a local folder, or an fsspec URL of one, like s3://bucket/folder.

A local folder takes the standard library alone; fsspec is imported for a URL. Credentials and addresses are found where
each store's own library looks for them: in the environment. Files appear whole or not at all: a local one is renamed,
an object of S3, Google Cloud Storage or Azure is there once its upload is complete.
"""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from clotkit.errors import StoreError, UsageError, needs_extra, one_line
from clotkit.files import atomic_write, atomic_write_text
from clotkit.scratch import scratch

VERSIONS = ("ETag", "etag", "LastModified", "updated", "mtime")  # what changes with an object, as libraries call it
Place = Path | str  # a local folder, or a URL


@dataclass(frozen=True)
class Entry:
    """A file of a store: its size, and what changes when its content does ("" where the store does not say)."""

    size_bytes: int
    version: str = ""


class Store(Protocol):
    """A folder of files by their names; in a name a "/" is a folder below."""

    def entries(self) -> dict[str, Entry]:
        """All files, those in folders below too; empty where there is no such folder."""
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to read from and seek in; what is not read is not fetched. Raises OSError or StoreError."""
        ...

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to the local `path`. Raises OSError or StoreError."""
        ...

    def read_text(self, name: str) -> str:
        """A file's text, UTF-8. Raises OSError, StoreError or UnicodeDecodeError."""
        ...

    def atomic_write_text(self, name: str, text: str) -> None:
        """Write a file, atomically. Raises OSError or StoreError."""
        ...

    def atomic_write(self, name: str) -> AbstractContextManager[Path]:
        """Give a local path to write; on success its bytes become the file, in one step. Raises OSError, StoreError."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...

    def local(self, name: str) -> Path | None:
        """The path of a file where the store is a local folder, else None."""
        ...

    def url(self, name: str = "") -> str:
        """How the user calls the folder, or a file in it."""
        ...

    def absolute(self) -> "Store":
        """The same for a process that stands elsewhere."""
        ...


@dataclass(frozen=True)
class Folder:
    """A local folder."""

    path: Path

    def entries(self) -> dict[str, Entry]:
        """See Store."""
        return {
            path.relative_to(self.path).as_posix(): Entry(path.stat().st_size)
            for path in self.path.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See Store."""
        return (self.path / name).open("rb")

    def fetch(self, name: str, path: Path) -> None:
        """See Store."""
        shutil.copyfile(self.path / name, path)

    def read_text(self, name: str) -> str:
        """See Store."""
        return (self.path / name).read_text(encoding="utf-8")

    def atomic_write_text(self, name: str, text: str) -> None:
        """See Store."""
        atomic_write_text(self.path / name, text)

    def atomic_write(self, name: str) -> AbstractContextManager[Path]:
        """See Store. A folder below is made."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return atomic_write(path)

    def remove(self, name: str) -> None:
        """See Store."""
        (self.path / name).unlink(missing_ok=True)

    def local(self, name: str) -> Path | None:
        """See Store."""
        return self.path / name

    def url(self, name: str = "") -> str:
        """See Store."""
        return str(self.path / name)

    def absolute(self) -> "Folder":
        """See Store."""
        return Folder(self.path.absolute())


@dataclass(frozen=True)
class Bucket:
    """A folder of an object store, by its fsspec URL; it can be sent to another machine."""

    address: str  # without a slash at its end

    def entries(self) -> dict[str, Entry]:
        """See Store."""
        with _telling(self.address, "listed"):
            found: dict[str, dict[str, Any]] = _filesystem(self.address).find(self._path(), detail=True)
        top = self._path().rstrip("/") + "/"
        return {path.removeprefix(top): Entry(int(facts["size"]), _version(facts)) for path, facts in found.items()}

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """See Store."""
        with _telling(self.url(name), "read"):
            opened = _filesystem(self.address).open(self._path(name), "rb", cache_type="none")
        with opened as file, _telling(self.url(name), "read"):
            yield file

    def fetch(self, name: str, path: Path) -> None:
        """See Store."""
        with _telling(self.url(name), "fetched"):
            _filesystem(self.address).get_file(self._path(name), str(path))

    def read_text(self, name: str) -> str:
        """See Store."""
        with _telling(self.url(name), "read"):
            data: bytes = _filesystem(self.address).cat_file(self._path(name))
        return data.decode("utf-8")

    def atomic_write_text(self, name: str, text: str) -> None:
        """See Store."""
        with _telling(self.url(name), "written"):
            _filesystem(self.address).pipe_file(self._path(name), text.encode())

    @contextmanager
    def atomic_write(self, name: str) -> Iterator[Path]:
        """See Store."""
        with scratch() as folder:
            path = folder / PurePosixPath(name).name
            yield path
            with _telling(self.url(name), "written"):
                _filesystem(self.address).put_file(str(path), self._path(name))

    def remove(self, name: str) -> None:
        """See Store."""
        with _telling(self.url(name), "removed"):
            filesystem = _filesystem(self.address)
            if filesystem.exists(self._path(name)):
                filesystem.rm_file(self._path(name))

    def local(self, name: str) -> Path | None:
        """See Store."""
        return None

    def url(self, name: str = "") -> str:
        """See Store."""
        return f"{self.address}/{name}" if name else self.address

    def absolute(self) -> "Bucket":
        """See Store."""
        return self

    def _path(self, name: str = "") -> str:
        """What the store's library calls a file."""
        path: str = _filesystem(self.address)._strip_protocol(self.url(name))
        return path


@dataclass(frozen=True)
class Stored:
    """One file of an object store: where it is, and what it was when it was listed."""

    store: Store
    name: str
    entry: Entry

    def fetch(self, path: Path) -> None:
        """Copy it to `path`. Raises StoreError where it cannot be had, or is not as long as it was listed."""
        self.store.fetch(self.name, path)
        if path.stat().st_size != self.entry.size_bytes:
            raise StoreError(
                f"{self.store.url(self.name)}: {path.stat().st_size} bytes came, "
                f"{self.entry.size_bytes} were listed; it changed meanwhile: start again"
            )


def place(text: str) -> Place:
    """A folder as the command line names it: a URL as it is, without a slash at its end; else a path."""
    protocol, mark, rest = text.partition("://")
    if not mark:
        return Path(text)
    if protocol in {"file", "local"}:
        return Path(rest)
    return text.rstrip("/")


def is_url(where: Place) -> bool:
    """Whether it is the URL of an object store."""
    return isinstance(where, str)


def store_of(where: Place) -> Store:
    """The store of a folder or a URL; nothing is asked of it yet.

    Raises UsageError for a protocol that fsspec does not know, or whose library is not installed.
    """
    if isinstance(where, Path):
        return Folder(where)
    _filesystem(where)
    return Bucket(where)


@contextmanager
def at_hand(store: Store, name: str) -> Iterator[Path]:
    """A file by a local path: its own, or that of a copy which goes afterwards. Raises OSError or StoreError."""
    path = store.local(name)
    if path is not None:
        yield path
        return
    with scratch() as folder:
        copy = folder / PurePosixPath(name).name
        store.fetch(name, copy)
        yield copy


def _filesystem(address: str) -> Any:
    """fsspec's file system of a URL, which it keeps for the process; what it lists is never from its memory."""
    with needs_extra("cluster"):
        from fsspec.core import url_to_fs

    try:
        return url_to_fs(address, use_listings_cache=False)[0]
    except (ValueError, ImportError) as error:
        raise UsageError(f"{address}: {one_line(error)}; a local folder, s3:// or gs:// is needed") from error


def _version(facts: dict[str, Any]) -> str:
    return next((str(facts[key]).strip('"') for key in VERSIONS if facts.get(key)), "")


@contextmanager
def _telling(url: str, done: str) -> Iterator[None]:
    """Make one error of the many that stores' libraries raise; that a file is not there stays FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, StoreError, UsageError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise StoreError(f"{url}: cannot be {done}: {said}; see the address and the credentials") from error
