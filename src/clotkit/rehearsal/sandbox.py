"""Run a bundle in a sandbox that is like Kaggle, so that nothing of the repository can help it.

The bundle starts in an empty working folder, under `python -I`, in an environment with the packages of Kaggle's image.
Its inputs are laid out as on Kaggle, read-only; it has no network, and a time and a memory limit.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from clotkit.bundle.build import bundle_sha256, write_bundle
from clotkit.bundle.install import install_script
from clotkit.bundle.notebook import KernelType, type_of
from clotkit.bundle.places import competition_stem
from clotkit.competitions import Competition, load_competition
from clotkit.errors import RehearsalError, UsageError
from clotkit.files import sha256
from clotkit.kaggle.datasets import Attached
from clotkit.kaggle.metadata import AS_DATASETS, Inputs
from clotkit.progress import Log
from clotkit.reasons import NotRehearsed, RehearsalKind
from clotkit.rehearsal import environment
from clotkit.rehearsal.confined.trees import kill_tree, tree_mb
from clotkit.rehearsal.unrehearsed import not_rehearsed
from clotkit.supervise import STATUS, State, Status, Wheels, read_status


class Layout(NamedTuple):
    """A layout of /kaggle/input: the folders of a competition, a dataset, a version of a model."""

    competition: str
    dataset: str
    model: str


LAYOUTS = {
    "new": Layout("competitions/{slug}", "datasets/{owner}/{dataset}", "models/{owner}/{model}"),
    "old": Layout("{slug}", "{dataset}", "{model}"),
}
OWNER, REHEARSAL = "rehearsal", "rehearsal.json"
EXECUTE = Path(__file__).with_name("execute_notebook.py").resolve()
EXECUTED = "executed.ipynb"  # the notebook with its outputs, which Kaggle shows
WATCH_S = 0.5
# The kernel's whole command line runs inside this: mounts first, then what follows "--".
NAMESPACE = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--")
MOUNTS = """
set -e
while [ "$1" != -- ]; do mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; shift 2; done
shift
exec "$@"
"""


@dataclass(frozen=True)
class Rehearsal:
    """A kernel to rehearse, and how: what the rehearsals of all jobs are given."""

    kernel: Path  # its folder
    competition_name: str  # that ships with the kit, or the path of a .toml
    wheels: Path  # the folder of the wheels
    layout: str  # "new", "old" or "both"
    out: Path  # the folder for everything that the rehearsal writes
    log: Log  # takes the lines of the rehearsal and of the kernel
    chosen_type: str | None = None  # "script" or "notebook"; None: as the kernel's metadata has it
    chosen_inputs: Inputs | None = None  # the forms of members and packages; None: the competition's

    @cached_property
    def competition(self) -> Competition:
        """The competition."""
        return load_competition(self.competition_name)

    @property
    def inputs(self) -> Inputs:
        """The forms of members and packages."""
        return self.chosen_inputs or Inputs.of(self.competition)

    @property
    def layouts(self) -> tuple[str, ...]:
        """The names of the layouts to run in, in order."""
        return tuple(LAYOUTS) if self.layout == "both" else (self.layout,)


@dataclass(frozen=True)
class Outcome:
    """One run of the bundle."""

    layout: str
    working: Path  # the folder with its output
    seconds: float
    peak_mb: float
    status: Status


@dataclass(frozen=True)
class Sandbox:
    """The environment of a bundle's runs."""

    out: Path
    source: Path  # the bundle
    kernel_type: KernelType
    python: Path
    namespace: bool  # whether namespaces isolate it; else a socket guard does
    competition: str  # its name
    not_rehearsed: tuple[NotRehearsed, ...] = ()
    inputs: Inputs = AS_DATASETS

    @property
    def facts(self) -> dict[str, Any]:
        """The entries of rehearsal.json that are the same for every kernel."""
        return {
            "competition": self.competition,
            "bundle_sha256": bundle_sha256(self.source.read_text(encoding="utf-8")),
            "kernel_type": self.kernel_type,
            "network": "namespace" if self.namespace else "socket guard",
            "python": sys.version.split()[0],
            "not_rehearsed": list(self.not_rehearsed),
            "inputs": asdict(self.inputs),
        }

    @property
    def wheels(self) -> Wheels:
        """The source that the kernel must have its packages from."""
        return Wheels.INSTALLED if self.inputs.wheels == "script" else Wheels.USED

    def command(self, source: Path, executed: Path) -> list[str]:
        """Return the command line that runs the bundle; `executed` is for a notebook with its outputs."""
        if self.kernel_type is KernelType.NOTEBOOK:
            return [str(self.python), "-I", str(EXECUTE), str(source), str(executed)]
        return [str(self.python), "-I", str(source)]


def make_sandbox(rehearsal: Rehearsal) -> Sandbox:
    """Build the bundle and the Python that runs it, and remove an earlier rehearsal.json.

    If the inputs have the packages as a script, that script installs them here, with the network on. Raises UsageError
    without wheels, RehearsalError if the bundle or the Python cannot be made.
    """
    kernel, wheels, out, log = rehearsal.kernel, rehearsal.wheels, rehearsal.out, rehearsal.log
    if not any(wheels.glob("*.whl")):
        raise UsageError(f"{wheels}: no wheel here; run make wheels, which collects them")
    out.mkdir(parents=True, exist_ok=True)
    kernel_type = type_of(kernel, rehearsal.chosen_type)
    source = out / kernel_type.file_name
    (out / REHEARSAL).unlink(missing_ok=True)  # an earlier rehearsal says nothing about this bundle
    log(write_bundle(kernel, rehearsal.competition_name, source, kernel_type))
    namespace = namespaces_work(out)
    script = install_script() if rehearsal.inputs.wheels == "script" else ""
    python = environment.make(out / "env", wheels, guard=not namespace, script=script)
    if kernel_type is KernelType.NOTEBOOK:
        environment.check_notebooks(python)
    log(f"python: {python}, {'with a script for' if script else 'without'} {', '.join(environment.hidden(wheels))}")
    log(
        "network: off, by a network namespace; inputs: read-only mounts"
        if namespace
        else "network: off, by a socket guard (no network namespace here); inputs: linked, compared after the run"
    )
    missing = not_rehearsed(kernel, rehearsal.competition)
    for code, sentence in missing.items():
        log(f"not rehearsed: {code}: {sentence}")
    stem = competition_stem(rehearsal.competition_name)
    return Sandbox(out, source, kernel_type, python, namespace, stem, tuple(missing), rehearsal.inputs)


def run_layouts(
    sandbox: Sandbox,
    layouts: Sequence[str],
    attached: Attached,
    split_dir: Path | None,
    competition: Competition,
    allowed: set[str],
    log: Log,
) -> list[Outcome]:
    """Run the bundle in each layout; `split_dir` None attaches no competition.

    `allowed` are the names, beside status.json, that it may leave in its working folder. Raises RehearsalError if it
    fails, leaves another file, changes its inputs, does not use the wheels, or passes a limit.
    """
    outcomes = []
    for name in layouts:
        log(f"layout: {name}")
        stage = Stage(sandbox.out / name, LAYOUTS[name], competition.slug, attached, split_dir, sandbox.namespace)
        outcomes.append(_run(stage, name, sandbox, competition, log))
        _check_left(outcomes[-1], {*allowed, STATUS})
    return outcomes


def hashes_of(attached: Attached) -> dict[str, dict[str, str]]:
    """Return the sha256 of every file of every dataset, or of every model without its version."""
    return {
        name.rpartition("/")[0] or name: {file: sha256(path) for file, path in files.items()}
        for name, files in attached.items()
    }


def attached_facts(attached: Attached) -> dict[str, dict[str, dict[str, str]]]:
    """Return the entries of rehearsal.json about attached files: their sha256, of datasets and of models."""
    models = {name: files for name, files in attached.items() if "/" in name}
    return {
        "datasets": hashes_of({name: files for name, files in attached.items() if name not in models}),
        "models": hashes_of(models),
    }


def costs_of(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Return the seconds and the peak memory in MB of every run, by its layout."""
    return {one.layout: {"seconds": round(one.seconds, 1), "peak_mb": round(one.peak_mb)} for one in outcomes}


def cost_line(outcomes: Sequence[Outcome]) -> str:
    """Return the costs of the runs as a text."""
    return "; ".join(f"layout {one.layout} {one.seconds:.0f} s, {one.peak_mb:.0f} MB" for one in outcomes)


class Stage:
    """The folders of one run: kaggle/input in one layout, kaggle/working, kaggle/src."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        slug: str,
        attached: Attached,
        split_dir: Path | None,
        namespace: bool,
    ) -> None:
        """Make the folders anew; datasets are copied, slides are linked, or mounted when the run starts."""
        shutil.rmtree(folder, ignore_errors=True)
        self.root, self.namespace = (folder / "kaggle").resolve(), namespace
        self.split_dir = None if split_dir is None else split_dir.resolve()
        self.input, self.working = self.root / "input", self.root / "working"
        for path in (self.input, self.working, self.root / "src"):
            path.mkdir(parents=True)
        self.slides = self.input / layout.competition.format(slug=slug)
        for name, files in attached.items():
            form = layout.model if "/" in name else layout.dataset
            _copy(files, self.input / form.format(owner=OWNER, dataset=name, model=name))
        if self.split_dir is None:
            return
        self.slides.parent.mkdir(parents=True, exist_ok=True)
        if namespace:
            self.slides.mkdir()
        else:
            self.slides.symlink_to(self.split_dir)

    def command(self, inner: Sequence[str]) -> list[str]:
        """Return the command line that runs `inner`, in the namespace and with read-only inputs if possible."""
        if not self.namespace:
            return list(inner)
        slides = [] if self.split_dir is None else [self.split_dir, self.slides]
        mounts = [self.input, self.input, *slides]
        return [*NAMESPACE, "sh", "-c", MOUNTS, "sh", *map(str, mounts), "--", *inner]

    def fingerprint(self) -> dict[str, tuple[int, int]]:
        """Return the size and the modification time of every input file."""
        result = {}
        for top in (self.input, *([] if self.split_dir is None else [self.split_dir])):
            for path in sorted(top.rglob("*")):
                if path.is_file():
                    status = path.stat()
                    result[str(path)] = (status.st_size, status.st_mtime_ns)
        return result


def namespaces_work(folder: Path) -> bool:
    """Try whether this system allows a network namespace with read-only mounts."""
    probe = folder / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    probe.mkdir()
    write_fails = ["sh", "-c", '! touch "$0/written" 2>/dev/null', str(probe)]
    inside = ["sh", "-c", MOUNTS, "sh", str(probe), str(probe), "--", *write_fails]
    try:
        ended = subprocess.run([*NAMESPACE, *inside], capture_output=True, timeout=30, check=False)
    except OSError:
        return False
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return ended.returncode == 0


def _copy(files: Mapping[str, Path], target: Path) -> None:
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _run(stage: Stage, name: str, sandbox: Sandbox, competition: Competition, log: Log) -> Outcome:
    """Run the bundle once, and check how it ended."""
    before = stage.fingerprint()
    started = time.monotonic()
    process = launch(stage, sandbox, {})
    limits = _Limits(process, competition)
    with process, limits:
        for line in process.stdout or ():
            log(f"  | {line.rstrip()}")
    if limits.broken is not None:
        raise RehearsalError(f"layout {name}: {limits.message}", limits.broken)
    if process.returncode:
        raise RehearsalError(
            f"layout {name}: the kernel ended with {process.returncode}, 0 is needed", RehearsalKind.EXIT_CODE
        )
    status = read_final_status(stage, name, sandbox.wheels)
    if stage.fingerprint() != before:
        raise RehearsalError(
            f"layout {name}: the kernel changed its inputs; on Kaggle they are read-only", RehearsalKind.INPUTS
        )
    if status.started_twice:
        log(f"layout {name}: the kernel had to start its child process twice")
    return Outcome(name, stage.working, time.monotonic() - started, limits.peak_mb, status)


def launch(stage: Stage, sandbox: Sandbox, more: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start the bundle in its sandbox, with `more` environment variables; its lines come through stdout."""
    source = stage.root / "src" / sandbox.source.name
    source.unlink(missing_ok=True)
    shutil.copyfile(sandbox.source, source)
    source.chmod(0o444)
    return subprocess.Popen(
        stage.command(sandbox.command(source, stage.root.parent / EXECUTED)),
        cwd=stage.working,
        env={**_environment(stage.root), **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )


def read_final_status(stage: Stage, name: str, wheels: Wheels) -> Status:
    """Return the kernel's status.

    Raises RehearsalError if it is not final, or its packages came from elsewhere than `wheels` says.
    """
    status = read_status(stage.working)
    if status is None or status.state is State.STARTED:
        raise RehearsalError(
            f"layout {name}: the kernel ended without a final {STATUS} in its working folder", RehearsalKind.STATUS
        )
    if status.wheels is not wheels:
        raise RehearsalError(
            f"layout {name}: the kernel's packages are {status.wheels}, {wheels} is needed; its lines above say why",
            RehearsalKind.WHEELS,
        )
    return status


def _check_left(outcome: Outcome, allowed: set[str]) -> None:
    left = sorted(path.name for path in outcome.working.iterdir() if path.name not in allowed)
    if left:
        raise RehearsalError(
            f"layout {outcome.layout}: files left behind in the working folder: {', '.join(left)}",
            RehearsalKind.LEFT_BEHIND,
        )


def _environment(root: Path) -> dict[str, str]:
    """Return the kernel's environment: the system's own variables, and nothing of this shell's."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    ours = {"CLOTKIT_KAGGLE_ROOT": str(root), "CLOTKIT_REHEARSAL": "1"}
    ours["CUDA_VISIBLE_DEVICES"] = "-1"  # on the CPU everywhere: a GPU of this machine is not that of Kaggle
    return {**kept, **ours, "HOME": str(root), "KAGGLE_KERNEL_RUN_TYPE": "Batch"}


class _Limits(threading.Thread):
    """The limits of a kernel, which is killed when it passes one, while its lines are read."""

    def __init__(self, process: "subprocess.Popen[str]", competition: Competition) -> None:
        super().__init__(daemon=True)
        self.process, self.limits = process, competition.limits
        self.started, self.peak_mb = time.monotonic(), 0.0
        self.broken: RehearsalKind | None = None  # MEMORY or WALL
        self.message = ""

    def run(self) -> None:
        while self.process.poll() is None:
            try:
                self.process.wait(WATCH_S)
            except subprocess.TimeoutExpired:
                self._check()

    def _check(self) -> None:
        now_mb = tree_mb(self.process.pid)
        self.peak_mb = max(self.peak_mb, now_mb)
        if now_mb > self.limits.kernel_memory_mb:
            self.broken = RehearsalKind.MEMORY
            self.message = f"memory limit: {now_mb:.0f} MB, {self.limits.kernel_memory_mb} allowed"
        elif time.monotonic() - self.started > self.limits.kernel_wall_s:
            self.broken = RehearsalKind.WALL
            self.message = f"time limit: {self.limits.kernel_wall_s:.0f} s allowed"
        if self.broken is not None:
            kill_tree(self.process.pid)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        if sys.exc_info()[0] is not None:
            kill_tree(self.process.pid)  # nothing of an interrupted rehearsal goes on
        self.process.wait()
        self.join()
