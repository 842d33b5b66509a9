"""Limit a command's memory and processes by control groups, where this system allows it."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from clotkit.units import MB

CGROUPS = Path("/sys/fs/cgroup")


@dataclass
class Groups:
    """The control groups of one command: none, one, or one for each controller."""

    memory: Path | None = None  # its folder, if the memory is limited
    processes: Path | None = None
    folders: list[Path] = field(default_factory=list)  # all, to join and to remove

    @property
    def joins(self) -> list[str]:
        """The files to which a process that joins writes its number."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def process_count(self) -> int | None:
        """Return the number of processes and threads now; None if they are not counted."""
        return None if self.processes is None else _number(self.processes / "pids.current")

    def peak_mb(self) -> float | None:
        """Return the largest memory so far, page cache included; None if it is not counted."""
        names = ("memory.peak", "memory.max_usage_in_bytes")
        values = [_number(self.memory / name) for name in names] if self.memory is not None else []
        return next((value / MB for value in values if value is not None), None)

    def out_of_memory(self) -> bool:
        """Return whether the limit of the memory has killed a process."""
        for name in ("memory.events", "memory.oom_control") if self.memory is not None else ():
            with suppress(OSError):
                lines = (self.memory / name).read_text(encoding="utf-8").split("\n")  # type: ignore[operator]
                return any(line.startswith("oom_kill ") and not line.endswith(" 0") for line in lines)
        return False

    def remove(self) -> None:
        """Remove the groups; their processes have ended."""
        for folder in self.folders:
            with suppress(OSError):
                folder.rmdir()


def make_groups(name: str, memory_mb: int, processes: int) -> Groups:
    """Make groups below those of this process, with the limits that the system lets this user set."""
    groups = Groups()
    own = _own_groups()
    if "" in own:  # version 2: one tree
        folder = _made(CGROUPS / own[""].lstrip("/") / name, groups)
        if folder is not None:
            limited = _write(folder / "memory.max", memory_mb * MB)
            _write(folder / "memory.swap.max", 0)
            groups.memory = folder if limited else None
            groups.processes = folder if _write(folder / "pids.max", processes) else None
    for controller, file, value in (
        ("memory", "memory.limit_in_bytes", memory_mb * MB),
        ("pids", "pids.max", processes),
    ):
        if controller not in own:
            continue
        folder = _made(CGROUPS / controller / own[controller].lstrip("/") / name, groups)
        if folder is not None and _write(folder / file, value):
            if controller == "memory":
                _write(folder / "memory.memsw.limit_in_bytes", value)
                groups.memory = folder
            else:
                groups.processes = folder
    return groups


def _own_groups() -> dict[str, str]:
    """Return the group of this process by controller; "" is version 2."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            found |= dict.fromkeys(controllers.split(","), path)
    return found


def _made(folder: Path, groups: Groups) -> Path | None:
    """Make a group; None if the system does not allow it, or a process could not join it."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    if not os.access(folder / "cgroup.procs", os.W_OK):
        with suppress(OSError):
            folder.rmdir()
        return None
    groups.folders.append(folder)
    return folder


def _write(file: Path, value: int) -> bool:
    try:
        file.write_text(str(value), encoding="utf-8")
    except OSError:
        return False
    return True


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(file.read_text(encoding="utf-8"))
    return None
