"""The state of a slide's file: its size, its time of change, and hashes of its bytes.

Looking at a file of a network disk that does not answer may never return, so this module is also a script: `looking`
runs it in a process that may be left behind. The standard library only, and nothing of clotkit.
"""

import json
import os
import queue
import stat
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

WHOLE_BYTES = 2**26  # a file up to this size is hashed whole too
SAMPLES, SAMPLE_BYTES = 64, 2**16  # spread over the file, its head and its tail among them
CHUNK_BYTES = 2**20
THREADS = 16  # files that a process looks at together
SAME, CHANGED, MISSING = "same", "changed", "missing"
READ = "read"  # the question whether a file can be read
State = dict[str, Any]  # bytes, mtime_ns, sampled, and whole if it is not too large; empty: no regular file


def file_state(path: Path) -> State:
    """Return the state of a file, an empty one if it is missing, unreadable or no regular file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return {}
        with path.open("rb") as file:
            state = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sampled": _sampled(file, status.st_size)}
            if status.st_size <= WHOLE_BYTES:
                state["whole"] = _whole(file)
    except OSError:
        return {}
    return state


def compared(path: Path, known: State) -> str:
    """Return whether a file is the SAME as in an earlier state, CHANGED or MISSING.

    A file of the same size and the same samples is the same if its time of change is, or if all its bytes are: a copy
    has another time. One that is too large to be hashed whole counts as changed if its time has changed.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return MISSING
        if known.get("bytes") != status.st_size:
            return CHANGED
        with path.open("rb") as file:
            if known.get("mtime_ns") == status.st_mtime_ns:
                same = known.get("sampled") == _sampled(file, status.st_size)
            else:
                same = "whole" in known and known["whole"] == _whole(file)
    except OSError:
        return MISSING
    return SAME if same else CHANGED


def _sampled(file: BinaryIO, size_bytes: int) -> str:
    """Return a hash of samples of a file."""
    digest, last = sha256(), max(0, size_bytes - SAMPLE_BYTES)
    for start in sorted({last * number // (SAMPLES - 1) for number in range(SAMPLES)}):
        digest.update(os.pread(file.fileno(), SAMPLE_BYTES, start))
    return digest.hexdigest()


def _whole(file: BinaryIO) -> str:
    """Return a hash of all bytes of a file."""
    digest = sha256()
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def can_be_read(path: Path) -> bool:
    """Return whether samples of a file can be read; False for what is missing or no regular file."""
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                _sampled(file, status.st_size)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode)


def _size(path: Path) -> list[int]:
    """Return the size and the time of change of a file; both 0 if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def _answer(path: Path, question: Any) -> Any:
    if question is None:
        return _size(path)
    return can_be_read(path) if question == READ else compared(path, question)


def main() -> None:
    """Answer each line of stdin, [path, question], by a line with its number and the answer.

    The question is READ, a state to compare with, or null for the size and the time of change.
    """
    tasks: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    lines = sys.stdin.read().splitlines()
    for task in enumerate(lines):
        tasks.put(task)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def look() -> None:
        while True:
            number, line = tasks.get()
            name, question = json.loads(line)
            answers.put(json.dumps([number, _answer(Path(name), question)]))

    for _ in range(min(THREADS, len(lines))):
        threading.Thread(target=look, daemon=True).start()
    for _ in lines:
        os.write(1, f"{answers.get()}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
