"""Fetch objects of a store whole: in one stream, checked, and again if the connection was cut.

Every wait has a limit. Libraries fetch large objects in ranges, side by side, and trust each answer. A server that
answers a range shorter than asked then leaves zeros in the file, which a slide's decoder takes for black pixels.
"""

import base64
import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from clotkit.errors import described

ATTEMPTS = 3  # of a download, each from the first byte
PAUSE_S = 1.0  # before the second attempt; twice as long before the next
LOOKUP_S = 20.0  # longest wait for the facts of one object; the libraries would try for minutes
SLOWEST_BYTES_S = 50_000  # a download that takes longer than at this rate is given up
CONNECT_S, SILENCE_S = 15.0, 60.0  # longest wait for a connection, and for the next bytes
ONE_STREAM = {"s3": {"max_concurrency": 1}, "s3a": {"max_concurrency": 1}, "gs": {"concurrency": 1}}
ONE_STREAM["gcs"] = ONE_STREAM["gs"]
# Names of the field that changes when an object does, in the listings of the stores' libraries.
VERSION_FIELDS = ("ETag", "etag", "LastModified", "updated", "mtime")
MD5 = re.compile("[0-9a-f]{32}")  # an ETag of this form is a hash, unless the store encrypts
Facts = dict[str, Any]  # of one object, as fsspec lists it


def version_of(facts: Facts) -> str:
    """Return what changes with an object's content, "" if the store has none."""
    return next((str(facts[key]).strip('"') for key in VERSION_FIELDS if facts.get(key)), "")


def limited(filesystem: Any, wait_s: float) -> dict[str, float]:
    """Return the argument that limits the wait of a call to fsspec.

    Only asynchronous libraries take it; for others there is none.
    """
    return {"timeout": wait_s} if getattr(filesystem, "async_impl", False) else {}


def facts_of(filesystem: Any, path: str) -> Facts:
    """Return the facts of an object as they are now.

    Raises FileNotFoundError, or whatever the library raises.
    """
    facts: Facts = filesystem.info(path, **limited(filesystem, LOOKUP_S))
    if facts.get("type") == "directory":
        raise FileNotFoundError(path)
    return facts


def download(filesystem: Any, path: str, copy: Path, pause: Callable[[float], None] = time.sleep) -> Facts:
    """Copy an object to a local file and return its facts.

    The copy has the size that the store lists, and its MD5 where the store lists one; an object that was changed
    meanwhile, or a connection that was cut, is fetched again.

    Args:
        filesystem: fsspec's, of the object's store.
        path: the object, as the file system names it.
        copy: the local file; after an error it is removed.
        pause: waits between two attempts.

    Raises:
        ConnectionError: no attempt gave the whole object.
        FileNotFoundError: there is no such object.
    """
    problem, hashes = "", set[str]()
    for attempt in range(ATTEMPTS):
        if attempt:
            pause(PAUSE_S * 2 ** (attempt - 1))
        facts = facts_of(filesystem, path)
        try:
            wait_s = LOOKUP_S + float(facts["size"] or 0) / SLOWEST_BYTES_S
            one_stream = ONE_STREAM.get(_protocol(filesystem), {})
            filesystem.get_file(path, str(copy), **one_stream, **limited(filesystem, wait_s))
            problem = _difference(facts, facts_of(filesystem, path), copy, hashes)
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001 - the libraries raise their own kinds for a cut connection
            problem = described(error)
        if not problem:
            return facts
        copy.unlink(missing_ok=True)
    raise ConnectionError(f"not fetched whole in {ATTEMPTS} attempts: {problem}")


class CheckedReads:
    """A file of an object store to read and seek, in which no read gives other than the bytes asked for."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file, self._size_bytes = file, size_bytes

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or to the end of the file; fewer only at the end. Raises ConnectionError."""
        start, left = self._file.tell(), max(self._size_bytes - self._file.tell(), 0)
        wanted = left if size is None or size < 0 else min(size, left)
        for _ in range(ATTEMPTS):
            self._file.seek(start)
            data = self._file.read(wanted)
            if len(data) == wanted:
                return data
        raise ConnectionError(f"a range of {wanted} bytes was answered with {len(data)}, {ATTEMPTS} times")

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to another place; see io.IOBase."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._file.tell()


def _protocol(filesystem: Any) -> str:
    return filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]


def _difference(before: Facts, after: Facts, copy: Path, hashes: set[str]) -> str:
    """Return why a copy is not the object, empty if it is.

    Args:
        before: the facts of the object when the download began.
        after: its facts now.
        copy: the local file.
        hashes: MD5s of earlier attempts, to which this one is added. An encrypted object's ETag is no MD5, so two
            downloads that agree are believed.
    """
    found, wanted = copy.stat().st_size, int(before["size"])
    if (version_of(before), wanted) != (version_of(after), int(after["size"])):
        return "the object was changed during the download"
    if found != wanted:
        return f"{found:,} bytes came, {wanted:,} are listed"
    listed = _listed_md5(before)
    if not listed:
        return ""
    with copy.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    known = md5 in hashes
    hashes.add(md5)
    return "" if md5 == listed or known else f"the MD5 is {md5}, {listed} is listed"


def _listed_md5(facts: Facts) -> str:
    """Return the MD5 that a store lists for an object, in hex; "" for none."""
    if facts.get("md5Hash"):
        return base64.b64decode(facts["md5Hash"]).hex()
    etag = str(facts.get("ETag") or "").strip('"')
    return etag if MD5.fullmatch(etag) else ""
