"""One interface for local folders and object stores.

An object store is named by an fsspec URL, like s3://bucket/folder. Credentials and addresses come from the environment,
where each store's own library looks for them. A local folder needs only the standard library; fsspec is imported for
URLs.

Writes are atomic: a local file is renamed into place, and an object of S3, Google Cloud Storage or Azure appears once
its upload is complete.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from clotkit.downloads import (
    CONNECT_S,
    SILENCE_S,
    CheckedReads,
    Facts,
    download,
    facts_of,
    limited,
    version_of,
)
from clotkit.errors import StoreError, UsageError, needs_extra, one_line
from clotkit.files import ESCAPED, atomic_write, atomic_write_text
from clotkit.scratch import scratch

LIST_S = 300.0  # longest wait for the whole list of a folder
# Libraries that print a traceback for every request that fails, beside raising it.
LOUD = ("s3fs", "gcsfs", "fsspec", "botocore", "aiobotocore", "aiohttp", "asyncio", "google.auth")
Place = Path | str  # a local folder, or a URL


@dataclass(frozen=True)
class Entry:
    """A file in the listing of a store."""

    size_bytes: int
    version: str = ""  # changes with the content; "" if the store has none


class Store(Protocol):
    """A folder of files by name; a "/" in a name separates folders."""

    def entries(self) -> dict[str, Entry]:
        """List all files, including those of subfolders; empty if the folder does not exist."""
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file to read and seek; only the parts that are read are fetched.

        Raises OSError or StoreError.
        """
        ...

    def fetch(self, name: str, path: Path) -> Entry:
        """Copy a file to the local `path`, whole or not at all, and return what it was.

        Raises OSError or StoreError.
        """
        ...

    def read_text(self, name: str) -> str:
        """Read a UTF-8 file. Raises OSError, StoreError or UnicodeDecodeError."""
        ...

    def atomic_write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 file atomically. Raises OSError or StoreError."""
        ...

    def atomic_write(self, name: str) -> AbstractContextManager[Path]:
        """Yield a local path to write; on success its bytes become the file, in one step.

        Raises OSError or StoreError.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        ...

    def local(self, name: str) -> Path | None:
        """Return the path of a file of a local folder, None in an object store."""
        ...

    def url(self, name: str = "") -> str:
        """Return the folder, or a file in it, as messages name it: a path or a URL."""
        ...

    def absolute(self) -> "Store":
        """Return the same store for processes with another working directory."""
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

    def fetch(self, name: str, path: Path) -> Entry:
        """See Store."""
        shutil.copyfile(self.path / name, path)
        return Entry(path.stat().st_size)

    def read_text(self, name: str) -> str:
        """See Store."""
        return (self.path / name).read_text(encoding="utf-8")

    def atomic_write_text(self, name: str, text: str) -> None:
        """See Store."""
        atomic_write_text(self.path / name, text)

    def atomic_write(self, name: str) -> AbstractContextManager[Path]:
        """See Store; missing subfolders are created."""
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
class RemoteFolder:
    """A folder of an object store; it can be pickled and sent to another machine."""

    address: str  # fsspec URL without a trailing slash

    def entries(self) -> dict[str, Entry]:
        """See Store."""
        filesystem, top = _filesystem(self.address), self._path().rstrip("/") + "/"
        with _store_errors(self.address, "listed"):
            with suppress(FileNotFoundError):  # a lookup fails at once where a list is tried again for minutes
                facts_of(filesystem, f"{top}probe")
            try:
                found = filesystem.find(self._path(), detail=True, **limited(filesystem, LIST_S))
            except FileNotFoundError as error:  # an empty folder has an empty list
                raise StoreError(
                    f"{self.address}: cannot be listed: {one_line(error)}; check the bucket's name and the credentials"
                ) from error
        return {path.removeprefix(top): _entry(facts) for path, facts in found.items()}

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """See Store."""
        with _store_errors(self.url(name), "read"):
            facts = facts_of(_filesystem(self.address), self._path(name))
            opened = _filesystem(self.address).open(self._path(name), "rb", cache_type="none")
        with opened as file, _store_errors(self.url(name), "read"):
            yield cast(BinaryIO, CheckedReads(file, int(facts["size"])))

    def fetch(self, name: str, path: Path) -> Entry:
        """See Store."""
        with _store_errors(self.url(name), "fetched"):
            return _entry(download(_filesystem(self.address), self._path(name), path))

    def read_text(self, name: str) -> str:
        """See Store."""
        with scratch() as folder:
            self.fetch(name, folder / "text")
            return (folder / "text").read_bytes().decode("utf-8")

    def atomic_write_text(self, name: str, text: str) -> None:
        """See Store."""
        with _store_errors(self.url(name), "written"):
            _filesystem(self.address).pipe_file(self._path(name), text.encode(errors=ESCAPED))

    @contextmanager
    def atomic_write(self, name: str) -> Iterator[Path]:
        """See Store."""
        with scratch() as folder:
            path = folder / PurePosixPath(name).name
            yield path
            with _store_errors(self.url(name), "written"):
                _filesystem(self.address).put_file(str(path), self._path(name))

    def remove(self, name: str) -> None:
        """See Store."""
        with _store_errors(self.url(name), "removed"):
            filesystem = _filesystem(self.address)
            if filesystem.exists(self._path(name)):
                filesystem.rm_file(self._path(name))

    def local(self, name: str) -> Path | None:
        """See Store."""
        return None

    def url(self, name: str = "") -> str:
        """See Store."""
        return f"{self.address}/{name}" if name else self.address

    def absolute(self) -> "RemoteFolder":
        """See Store."""
        return self

    def _path(self, name: str = "") -> str:
        """Return the name of a file in the store's own library."""
        path: str = _filesystem(self.address)._strip_protocol(self.url(name))
        return path


@dataclass(frozen=True)
class StoredFile:
    """A file of an object store, as it was listed."""

    store: Store
    name: str
    entry: Entry

    def fetch(self, path: Path) -> None:
        """Copy the file to `path`. Raises StoreError if it cannot be fetched, or its size has changed."""
        try:
            fetched = self.store.fetch(self.name, path)
        except FileNotFoundError as error:
            raise StoreError(f"{self.store.url(self.name)}: is no longer there; run the same command again") from error
        if self.entry.version not in ("", fetched.version):
            path.unlink()
            raise StoreError(
                f"{self.store.url(self.name)}: has changed since it was listed; run the same command again"
            )
        if path.stat().st_size != self.entry.size_bytes:
            raise StoreError(
                f"{self.store.url(self.name)}: fetched {path.stat().st_size} bytes, but {self.entry.size_bytes} were "
                "listed; the file has changed: run the same command again"
            )


def place(text: str) -> Place:
    """Parse a folder of the command line: a URL of an object store, or a local path."""
    protocol, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if protocol in {"file", "local"}:
        return Path(rest)
    return text.rstrip("/")


def is_url(where: Place) -> bool:
    """Return True for the URL of an object store."""
    return isinstance(where, str)


def store_of(where: Place) -> Store:
    """Return the store of a local folder or a URL, without any request to it.

    Raises UsageError if fsspec does not know the protocol, or its library is not installed.
    """
    if isinstance(where, Path):
        return Folder(where)
    _filesystem(where)
    return RemoteFolder(where)


@contextmanager
def local_copy(store: Store, name: str) -> Iterator[Path]:
    """Yield a local path of a file: its own, or that of a temporary copy. Raises OSError or StoreError."""
    path = store.local(name)
    if path is not None:
        yield path
        return
    with scratch() as folder:
        copy = folder / PurePosixPath(name).name
        store.fetch(name, copy)
        yield copy


def _filesystem(address: str) -> Any:
    """Return fsspec's file system of a URL; fsspec caches it for the process, but not its listings."""
    with needs_extra("cluster"):
        from fsspec.core import url_to_fs

    for library in LOUD:
        logging.getLogger(library).setLevel(logging.CRITICAL)  # an error is reported here, on one line
    try:
        return url_to_fs(address, use_listings_cache=False, **_time_limits(address))[0]
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"{address}: {one_line(error)}; give a local folder, or a URL like s3://… or gs://…"
        ) from error


def _entry(facts: Facts) -> Entry:
    return Entry(int(facts["size"]), version_of(facts))


def _time_limits(address: str) -> dict[str, Any]:
    """Return the options of fsspec's file system that limit its waits.

    s3fs has limits of its own: 5 s for a connection, 15 s for an answer.
    """
    if address.partition("://")[0] not in {"gs", "gcs"}:
        return {}
    with needs_extra("cluster"):
        from aiohttp import ClientTimeout
    return {"requests_timeout": ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)}


@contextmanager
def _store_errors(url: str, done: str) -> Iterator[None]:
    """Raise StoreError for any error of a store's library; a missing file stays FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, StoreError, UsageError):
        raise
    except TimeoutError as error:
        raise StoreError(f"{url}: cannot be {done}: no answer in time; check the address and the network") from error
    except Exception as error:
        raise StoreError(
            f"{url}: cannot be {done}: {type(error).__name__}: {one_line(error)}; check the address and the credentials"
        ) from error
