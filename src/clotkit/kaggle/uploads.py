"""Upload a dataset's file to Kaggle's storage.

After a broken connection an upload resumes from the last byte that the storage has.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from clotkit.errors import RemoteError, RemoteUnclear
from clotkit.kaggle.client import Kaggle
from clotkit.reasons import RemoteKind

ROUNDS = 10  # times that the rest of a file is sent
STARTS = 3  # times that a file is announced: an upload to an address that has expired cannot be resumed
WHOLE, INCOMPLETE, EXPIRED = (200, 201), 308, 404  # the storage's HTTP statuses
NO_ANSWER = 0  # in place of a status


def upload(client: Kaggle, path: Path, name: str, kind: str = "DATASET") -> str:
    """Upload a file of a dataset or MODEL and return the token that stands for it in a new version.

    Raises RemoteError if the file does not arrive whole; no version may be made then.
    """
    size_bytes = path.stat().st_size
    if client.dry:
        client.log(f"would upload {name}, {size_bytes:,} bytes")
        return f"token of {name}"
    for _ in range(STARTS):
        token, url = client.start_upload(name, size_bytes, kind)
        if _send(client, path, name, url, size_bytes):
            return token
        client.log(f"{name}: its address has expired, starting again")
    raise RemoteError(
        f"{name}: its address expired {STARTS} times before the upload was complete: run again later",
        RemoteKind.EXPIRED,
    )


def _send(client: Kaggle, path: Path, name: str, url: str, size_bytes: int) -> bool:
    """Send the file, in as many rounds as it takes; False if the address has expired."""
    status, start = _put_from(client, path, url, 0, size_bytes)
    for round_ in range(1, ROUNDS + 1):
        if status in WHOLE:
            return True
        if status == EXPIRED:
            return False
        if status < 500 and status not in (NO_ANSWER, 408, 429):
            raise RemoteError(
                f"{name}: Kaggle's storage answered {status} to the upload: run again later", RemoteKind.REFUSED
            )
        client.wait(min(2.0**round_, 60.0))
        status, start = _ask_progress(client, url, size_bytes)
        if status == INCOMPLETE:
            client.log(f"{name}: going on at {start:,} of {size_bytes:,} bytes")
            status, _ = _put_from(client, path, url, start, size_bytes)
    raise RemoteError(
        f"{name}: not sent whole in {ROUNDS} rounds: check the connection, then run again", RemoteKind.UNCLEAR
    )


def _put_from(client: Kaggle, path: Path, url: str, start: int, size_bytes: int) -> tuple[int, int]:
    """Send the file from byte `start` on, and return the status of the answer, and `start`."""
    headers = {"Content-Range": f"bytes {start}-{size_bytes - 1}/{size_bytes}"} if start else {}
    with path.open("rb") as file:
        file.seek(start)
        try:
            return client.put(url, file, headers)[0], start
        except RemoteUnclear:
            return NO_ANSWER, start


def _ask_progress(client: Kaggle, url: str, size_bytes: int) -> tuple[int, int]:
    """Ask the storage what it has, and return its status and the first byte that it lacks."""
    try:
        status, headers = client.put(url, b"", {"Content-Range": f"bytes */{size_bytes}"})
    except RemoteUnclear:
        return NO_ANSWER, 0
    return status, _first_missing(headers, size_bytes)


def _first_missing(headers: Mapping[str, str], size_bytes: int) -> int:
    stored = re.fullmatch(r"bytes=0-([0-9]+)", headers.get("Range", ""))
    return min(int(stored[1]) + 1, size_bytes - 1) if stored else 0
