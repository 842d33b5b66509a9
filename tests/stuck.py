"""Make slides whose file system stops answering, and processes that SIGKILL does not end.

A FUSE mount over one file stands in for a hung network disk: who opens it, or reads its second half, sleeps in the
kernel until the mount ends. It needs root and /dev/fuse.
"""

import ctypes
import os
import select
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INIT, GETATTR, OPEN, READ, RELEASE, FLUSH = 26, 3, 14, 15, 18, 25  # operations of FUSE
NO_REPLY = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
NOT_IMPLEMENTED = -38


@contextmanager
def stuck_file(path: Path, operation: int = OPEN) -> Iterator[None]:
    """Mount over a file: `operation` (OPEN, READ of its second half, FLUSH, GETATTR) is never answered.

    Skips the test where the system cannot do it. Those who sleep wake up at the end.
    """
    if os.geteuid() or not Path("/dev/fuse").exists():
        pytest.skip("needs root and /dev/fuse")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.stuck", str(path), str(operation)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert server.stdout is not None
    with server.stdout as lines:
        if lines.readline() != "mounted\n":
            server.wait()
            pytest.skip("this system mounts no FUSE")
        try:
            yield
        finally:
            server.terminate()
            server.wait()


def kill_left(pid: int) -> None:
    """Kill a process that a run left behind in a test."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main(target: Path, held: int) -> None:
    """Mount over the file and answer all but one operation until SIGTERM."""
    data, libc = target.read_bytes(), ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=100444,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"stuck", os.fsencode(target), b"fuse", 1 | 2 | 4, options):
        sys.exit(os.strerror(ctypes.get_errno()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        print("mounted", flush=True)
        while True:
            select.select([device], [], [])
            request = os.read(device, 2**18)
            _, operation, unique = struct.unpack_from("<IIQ", request)
            reply = _reply(operation, request[40:], data, held)
            if isinstance(reply, bytes):
                os.write(device, struct.pack("<IiQ", 16 + len(reply), 0, unique) + reply)
            elif reply is not None:
                os.write(device, struct.pack("<IiQ", 16, reply, unique))
    finally:
        libc.umount2(os.fsencode(target), 2)
        os.close(device)


def _reply(operation: int, body: bytes, data: bytes, held: int) -> bytes | int | None:
    """Return the reply to a request: its bytes, an error, or None for no reply."""
    offset, count = struct.unpack_from("<QI", body, 8) if operation == READ else (0, 0)
    if operation in NO_REPLY or (operation == held and (operation != READ or offset > len(data) // 2)):
        return None
    size, mode = len(data), stat.S_IFREG | 0o444
    replies = {
        INIT: struct.pack("<IIIIHHIIHHI28x", 7, 31, 2**16, 0, 12, 9, 2**16, 1, 0, 0, 0),
        GETATTR: struct.pack("<QII", 0, 0, 0)
        + struct.pack("<QQQQQQIIIIIIIIII", 1, size, -(-size // 512), 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0),
        OPEN: struct.pack("<QII", 1, 1, 0),  # FOPEN_DIRECT_IO
        READ: data[offset : offset + count],
        RELEASE: b"",
        FLUSH: b"",
    }
    return replies.get(operation, NOT_IMPLEMENTED)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
