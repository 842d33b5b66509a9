"""Run jobs in a container's entry point under the limits of Grand Challenge, with or without Docker.

With a Docker or Podman that works, the image is built and its test script does each job. Without, the entry point runs
in namespaces, with a root of read-only mounts and a Python that has the packages of the image. What this system cannot
enforce is watched, and rehearsal.json says which limit is which.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from clotkit.containers.config import PROCESSES, SHARED_MB, Api, ContainerConfig
from clotkit.errors import RehearsalError
from clotkit.progress import Log
from clotkit.reasons import Enforcement, JobLimit, RehearsalKind
from clotkit.rehearsal.confined.cgroups import Groups, make_groups
from clotkit.rehearsal.confined.trees import kill_tree, tree_mb
from clotkit.units import MB

JAIL, INVOKE = (Path(__file__).with_name(name).resolve() for name in ("jail.py", "invoke.py"))
NAMESPACES = (
    "unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--"
)  # fmt: skip
JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'
SYSTEM = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
ENTRY = ("-m", "clotkit.containers.entry")
APP = "/opt/app"
WATCH_S = 0.2
REMOVE_S = 60.0  # the longest wait for an engine to remove a container
ENGINES = ("docker", "podman")


@dataclass
class Peaks:
    """The most that one job used; None: not measured, as nothing is of an engine's container."""

    memory_mb: float | None = None  # of all processes, shared pages counted once
    group_mb: float | None = None  # as the control group counts it, page cache included
    processes: int | None = None  # and threads
    shared_mb: float | None = None  # in /dev/shm
    seconds: float = 0.0


@dataclass(frozen=True)
class Container:
    """A container's folder, and what runs it here."""

    folder: Path  # as clotkit container writes it
    config: ContainerConfig
    python: Path  # with the packages of the image; not used with an engine
    jailed: bool  # whether namespaces isolate it
    engine: str = ""  # docker or podman, if one of them works

    def limits(self, groups: Groups) -> dict[JobLimit, Enforcement]:
        """Return how each limit is held for a job in these control groups."""
        system = Enforcement.ENFORCED if self.engine or self.jailed else Enforcement.ABSENT
        held = dict.fromkeys(JobLimit, system)
        for limit, group in ((JobLimit.MEMORY, groups.memory), (JobLimit.PROCESSES, groups.processes)):
            held[limit] = Enforcement.ENFORCED if self.engine or group is not None else Enforcement.WATCHED
        return held | {JobLimit.TIME: Enforcement.ENFORCED}


def engine_here() -> str:
    """Return a container engine that works, not only its program; empty for none."""
    for name in ENGINES:
        if shutil.which(name):
            with suppress(OSError, subprocess.TimeoutExpired):
                if not subprocess.run([name, "info"], capture_output=True, timeout=60, check=False).returncode:
                    return name
    return ""


def jails_work(folder: Path, python: Path) -> bool:
    """Try whether this system allows a root of its own without privileges."""
    probe = folder / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    for name in ("input", "output", "tmp"):
        (probe / name).mkdir(parents=True)
    spec = spec_of(probe, python, [], ["-c", "pass"], {})
    with suppress(OSError, subprocess.TimeoutExpired):
        command = [*NAMESPACES, sys.executable, "-I", str(JAIL), str(spec)]
        return not subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
    return False


def spec_of(
    place: Path, python: Path, app: Sequence[tuple[Path, str]], words: Sequence[str], environment: dict[str, str]
) -> Path:
    """Write what jail.py needs for a job whose input, output and tmp are in `place`, and return the file."""
    root, file = place / "root", place / "jail.json"
    root.mkdir(exist_ok=True)
    # The folder of this Python may be below /tmp, so that it comes after that.
    binds = [(str(place / name), f"/{name}", name != "input") for name in ("input", "output", "tmp")]
    binds += [(str(path), str(path), False) for path in _pythons(python)]
    binds += [(path, path, False) for path in SYSTEM if Path(path).is_dir() and not Path(path).is_symlink()]
    links = [(str(Path(path).readlink()), path) for path in SYSTEM if Path(path).is_symlink()]
    binds += [(str(path.resolve()), target, False) for path, target in app]
    ours = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": APP,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
    }
    spec = {
        "root": str(root.resolve()), "binds": binds, "links": links, "shm_mb": SHARED_MB,
        "folder": "/tmp", "command": [str(python), *words], "environment": ours | environment,
    }  # fmt: skip
    file.write_text(json.dumps(spec), encoding="utf-8")
    return file


def run_job(container: Container, name: str, place: Path, log: Log) -> tuple[Peaks, dict[JobLimit, Enforcement]]:
    """Do the job in the folder `place`; return what it used, and how its limits were held.

    The folder has its input, and gets its output. Raises RehearsalError if it passes a limit, or ends with an exit code
    other than 0.
    """
    for folder in ("output", "tmp"):
        (place / folder).mkdir(exist_ok=True)
    groups = Groups()
    if not container.engine:
        groups = make_groups(f"clotkit-{os.getpid()}", container.config.memory_mb, PROCESSES)
    try:
        peaks, status = _watched(container, place, groups, log)
    finally:
        shutil.rmtree(place / "tmp", ignore_errors=True)
        oom = groups.out_of_memory()
        groups.remove()
    if oom:
        log(f"{name}: the memory limit has killed a process of this job")
    if status:
        late = peaks.seconds > container.config.time_limit_s  # the script may notice it before the watch
        kind = RehearsalKind.WALL if late else RehearsalKind.EXIT_CODE
        raise RehearsalError(f"job {name}: it ended with {status} after {peaks.seconds:.0f} s, 0 is needed", kind)
    return peaks, container.limits(groups)


def _watched(container: Container, place: Path, groups: Groups, log: Log) -> tuple[Peaks, int]:
    """Run a job's command to its end, print its lines, and return what it used and its exit status."""
    command, environment = _command(container, place, groups)
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    watch = Watch(process, container, groups)
    with process:
        try:
            watch.start()
            for line in process.stdout or ():
                log(f"  | {line.rstrip()}")
            watch.join()
        except BaseException:
            end_job(process, container.engine)  # nothing of an interrupted rehearsal goes on
            raise
    watch.peaks.seconds = time.monotonic() - started
    watch.peaks.group_mb = groups.peak_mb()
    if watch.broken is not None:
        raise RehearsalError(f"job {place.name}: {watch.message}", watch.broken)
    return watch.peaks, process.returncode


def end_job(process: "subprocess.Popen[str]", engine: str) -> None:
    """End a job with all its processes; the script of an engine's job first removes the container."""
    if engine:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            process.terminate()
            process.wait(REMOVE_S)
    kill_tree(process.pid)


def _command(container: Container, place: Path, groups: Groups) -> tuple[list[str], dict[str, str]]:
    """Return the command line of a job, and its environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR", "DOCKER_HOST") if name in os.environ}
    if container.engine:
        script = str(container.folder.resolve() / "do_test_run.sh")
        places = [str((place / name).resolve()) for name in ("input", "output")]
        return [script, *places], kept | {"BUILT": "1", "ENGINE": container.engine}
    app = [(path, f"{APP}/{path.name}") for path in (container.folder / "app").iterdir()]
    app.append((container.folder / "model", f"{APP}/model"))
    words = ["-c", INVOKE.read_text(encoding="utf-8")] if container.config.api is Api.INVOKE else list(ENTRY)
    if container.jailed:
        spec = spec_of(place.resolve(), container.python, app, words, {})
        inner = [*NAMESPACES, sys.executable, "-I", str(JAIL), str(spec)]
        return ["sh", "-c", JOIN, "sh", *groups.joins, "--", *inner], kept
    model = place / "opt" / "ml" / "model"
    model.parent.mkdir(parents=True)
    model.symlink_to((container.folder / "model").resolve())
    ours = {"CLOTKIT_CONTAINER_ROOT": str(place.resolve()), "PYTHONPATH": str(container.folder.resolve() / "app")}
    ours |= {"TMPDIR": str((place / "tmp").resolve()), "PYTHONDONTWRITEBYTECODE": "1"}
    return ["sh", "-c", JOIN, "sh", *groups.joins, "--", str(container.python), *words], kept | ours


def _pythons(python: Path) -> list[Path]:
    """Return the folders of a Python: its environment, the packages linked in it, the installation."""
    folders = [python.parents[1].absolute(), Path(sysconfig.get_paths()["purelib"]), Path(sys.base_prefix).resolve()]
    return [one for one in folders if not any(one.is_relative_to(system) for system in SYSTEM)]


class Watch(threading.Thread):
    """Measures a job while it runs, and kills it when it passes a limit that the system does not enforce."""

    def __init__(self, process: "subprocess.Popen[str]", container: Container, groups: Groups) -> None:
        super().__init__(daemon=True)
        self.process, self.config, self.groups = process, container.config, groups
        self.engine, self.jailed = container.engine, container.jailed
        self.peaks, self.started = Peaks(), time.monotonic()
        self.broken: RehearsalKind | None = None
        self.message = ""

    def run(self) -> None:
        """Measure until the job ends."""
        while self.process.poll() is None:
            self._measure()
            try:
                self.process.wait(WATCH_S)
            except subprocess.TimeoutExpired:
                self._check()
            if self.broken is not None:
                end_job(self.process, self.engine)

    def _measure(self) -> None:
        if self.engine:
            return
        peaks, family = self.peaks, _family(self.process.pid)
        peaks.memory_mb = max(peaks.memory_mb or 0.0, tree_mb(self.process.pid))
        counted = self.groups.process_count()
        peaks.processes = max(peaks.processes or 0, _threads(family) if counted is None else counted)
        if self.jailed:
            peaks.shared_mb = max([peaks.shared_mb or 0.0, *map(_shared_mb, family)])

    def _check(self) -> None:
        peaks, limit_s = self.peaks, self.config.time_limit_s
        if time.monotonic() - self.started > limit_s:
            self.broken, self.message = RehearsalKind.WALL, f"time limit: {limit_s:.0f} s allowed"
        elif self.groups.memory is None and (peaks.memory_mb or 0) > self.config.memory_mb:
            self.broken = RehearsalKind.MEMORY
            self.message = f"memory limit: {peaks.memory_mb:.0f} MB, {self.config.memory_mb} allowed"
        elif self.groups.processes is None and (peaks.processes or 0) > PROCESSES:
            self.broken = RehearsalKind.PROCESSES
            self.message = f"{peaks.processes} processes and threads, {PROCESSES} allowed"


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def _threads(family: Sequence[psutil.Process]) -> int:
    total = 0
    for process in family:
        with suppress(psutil.Error):
            total += process.num_threads()
    return total


def _shared_mb(process: psutil.Process) -> float:
    """Return what a job's /dev/shm holds, in MB; 0 while a process is not in the job's root."""
    with suppress(OSError):
        state = os.statvfs(f"/proc/{process.pid}/root/dev/shm")
        if state.f_blocks * state.f_frsize == SHARED_MB * MB:
            return (state.f_blocks - state.f_bfree) * state.f_frsize / MB
    return 0.0
