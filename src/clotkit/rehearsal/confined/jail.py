"""Enter a container's root: `python jail.py SPEC.json`, inside namespaces of its own.

The new root is a small read-only tree of mounts. The command in SPEC runs there without privileges, and cannot get any.
This is a program that imports nothing of the kit, so that it also runs where the kit is not.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
CAPABILITIES = 64  # more than Linux has; dropping one that it lacks fails and changes nothing
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def main(spec_path: str) -> None:
    """Mount the root, enter it, give up every privilege, and become the command."""
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    root = Path(spec["root"])
    mount("-t", "tmpfs", "-o", "mode=755,size=1m", "tmpfs", str(root))
    for source, target, writable in spec["binds"]:
        bind(Path(source), root / target.lstrip("/"), writable)
    for source, target in spec["links"]:
        (root / target.lstrip("/")).symlink_to(source)
    make_devices(root / "dev", spec["shm_mb"])
    (root / "proc").mkdir(exist_ok=True)
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("-o", "remount,ro", str(root))
    start_loopback()
    os.chroot(root)
    os.chdir(spec["folder"])
    give_up_privileges()
    os.execve(spec["command"][0], spec["command"], spec["environment"])


def mount(*arguments: str) -> None:
    """Run mount(8)."""
    subprocess.run(["mount", *arguments], check=True)


def bind(source: Path, target: Path, writable: bool) -> None:
    """Show a folder or a file in the new root."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount("--bind", str(source), str(target))
    if not writable:
        mount("-o", "remount,bind,ro", str(target))


def make_devices(folder: Path, shm_mb: int) -> None:
    """Make /dev: the devices that every container has, and shared memory of this size."""
    folder.mkdir()
    for name in DEVICES:
        bind(Path("/dev") / name, folder / name, True)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (folder / name).symlink_to(f"/proc/self/{target}")
    (folder / "shm").mkdir()
    mount("-t", "tmpfs", "-o", f"size={shm_mb}m,mode=1777", "shm", str(folder / "shm"))


def start_loopback() -> None:
    """Start the loopback device, which a container without network has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def give_up_privileges() -> None:
    """Drop every capability for this process and all that it starts, and let no program give one back."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


if __name__ == "__main__":
    main(sys.argv[1])
