"""One file to Kaggle's storage: announced, sent, and where the connection broke sent from there on."""

import re
from collections.abc import Mapping
from pathlib import Path

from clotkit.errors import RemoteError, RemoteUnclear
from clotkit.kaggle.client import Kaggle

ROUNDS = 10  # times that the rest of a file is sent, in all
STARTS = 3  # times that it is announced: an address that expired cannot be gone on with
WHOLE, INCOMPLETE, EXPIRED = (200, 201), 308, 404


def upload(client: Kaggle, path: Path, name: str) -> str:
    """Send a file and return the token that stands for it in a dataset's new version.

    Raises RemoteError when it cannot be had there whole; no version may be made then.
    """
    size_bytes = path.stat().st_size
    if client.dry:
        client.log(f"would upload {name}, {size_bytes:,} bytes")
        return f"token of {name}"
    for _ in range(STARTS):
        token, url = client.start_upload(name, size_bytes)
        if _send(client, path, name, url, size_bytes):
            return token
        client.log(f"{name}: its address has expired, starting again")
    raise RemoteError(f"{name}: its address expired {STARTS} times before the file was there: run again later")


def _send(client: Kaggle, path: Path, name: str, url: str, size_bytes: int) -> bool:
    """Send the file, in as many rounds as it takes; False when the address has expired."""
    status, start = _put_from(client, path, url, 0, size_bytes)
    for round_ in range(1, ROUNDS + 1):
        if status in WHOLE:
            return True
        if status == EXPIRED:
            return False
        if status < 500 and status not in (0, 408, 429):
            raise RemoteError(f"{name}: Kaggle's storage answered {status} to the upload: run again later")
        client.wait(min(2.0**round_, 60.0))
        status, start = _ask_how_far(client, url, size_bytes)
        if status == INCOMPLETE:
            client.log(f"{name}: going on at {start:,} of {size_bytes:,} bytes")
            status, _ = _put_from(client, path, url, start, size_bytes)
    raise RemoteError(f"{name}: not sent whole in {ROUNDS} rounds: check the connection, then run again")


def _put_from(client: Kaggle, path: Path, url: str, start: int, size_bytes: int) -> tuple[int, int]:
    headers = {"Content-Range": f"bytes {start}-{size_bytes - 1}/{size_bytes}"} if start else {}
    with path.open("rb") as file:
        file.seek(start)
        try:
            return client.put(url, file, headers)[0], start
        except RemoteUnclear:
            return 0, start


def _ask_how_far(client: Kaggle, url: str, size_bytes: int) -> tuple[int, int]:
    """What the storage has: its status, and the first byte that it lacks."""
    try:
        status, headers = client.put(url, b"", {"Content-Range": f"bytes */{size_bytes}"})
    except RemoteUnclear:
        return 0, 0
    return status, _after(headers, size_bytes)


def _after(headers: Mapping[str, str], size_bytes: int) -> int:
    found = re.fullmatch(r"bytes=0-([0-9]+)", headers.get("Range", ""))
    return min(int(found[1]) + 1, size_bytes - 1) if found else 0
