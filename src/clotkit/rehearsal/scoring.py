"""The rehearsal: the built bundle, run here as Kaggle runs it. Nothing of the repository can help it.

An empty working folder; `python -I` in an environment that has what Kaggle's image has and lacks what it lacks; inputs
in Kaggle's two layouts, read-only; no network; a wall and a memory limit; then the check.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from clotkit.bundle.build import bundle_sha256, write_bundle
from clotkit.competitions import Competition, load_competition
from clotkit.errors import RehearsalError, UsageError
from clotkit.files import atomic_write_json, sha256
from clotkit.kaggle.datasets import Attached, weights_files, wheels_files
from clotkit.members.folder import find_members
from clotkit.progress import Log
from clotkit.rehearsal import environment
from clotkit.report import records
from clotkit.scoring.submission import check_submission
from clotkit.splits import read_slides
from clotkit.units import MB

LAYOUTS = {"new": ("competitions/{slug}", "datasets/{owner}/{dataset}"), "old": ("{slug}", "{dataset}")}
OWNER, REHEARSAL = "rehearsal", "rehearsal.json"
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
class Outcome:
    """One run of the bundle: the folder it worked in, and what it cost."""

    layout: str
    working: Path
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Sandbox:
    """What a bundle runs in: its script, the interpreter, and whether namespaces close it off."""

    out: Path
    script: Path
    python: Path
    namespace: bool

    @property
    def facts(self) -> dict[str, Any]:
        """What rehearsal.json says of any rehearsal."""
        return {
            "bundle_sha256": bundle_sha256(self.script.read_text(encoding="utf-8")),
            "network": "namespace" if self.namespace else "socket guard",
            "python": sys.version.split()[0],
        }


def rehearse(
    split: str, weights: Path, wheels: Path, kernel: Path, competition_name: str, layout: str, out: Path, log: Log
) -> bool:
    """Build the bundle, run it in the layouts asked for, check what it leaves; True when every slide was done.

    `split` is a folder, or "public" for the competition's public test slides. Leaves the submission, rehearsal.json
    and the working folders in `out`. Raises RehearsalError when the kernel fails, leaves something else behind,
    changes its inputs, passes a limit, or when the layouts disagree; another ClotkitError when what it is to run with
    is wrong.
    """
    started = time.monotonic()
    competition = load_competition(competition_name)
    split_dir = _split_dir(split, competition, log)
    read_slides(split_dir, "test", competition)
    find_members(weights)  # raises where the kernel would find none
    sandbox = make_sandbox(kernel, competition_name, wheels, out, log)
    allowed = {competition.files.submission, *records.FILES}
    attached = datasets_of(kernel, weights, wheels)
    outcomes = run_layouts(sandbox, layout, attached, split_dir, competition, allowed, log)
    _agree([outcome.working / competition.files.submission for outcome in outcomes])
    facts = sandbox.facts | {"datasets": hashes_of(attached)}
    return _conclude(outcomes, competition, split_dir, facts, out, time.monotonic() - started, log)


def make_sandbox(kernel: Path, competition_name: str, wheels: Path, out: Path, log: Log) -> Sandbox:
    """Build the bundle into `out`, and the Python that runs it; rehearsal.json of an earlier one goes.

    Raises UsageError without wheels, RehearsalError when the bundle or the Python cannot be made.
    """
    if not any(wheels.glob("*.whl")):
        raise UsageError(f"{wheels}: no wheel here; make wheels collects them")
    out.mkdir(parents=True, exist_ok=True)
    script = out / "script.py"
    (out / REHEARSAL).unlink(missing_ok=True)  # what was rehearsed before says nothing of this one
    log(write_bundle(kernel, competition_name, script))
    namespace = namespaces_work(out)
    python = environment.make(out / "env", wheels, guard=not namespace)
    log(f"python: {python}, without {', '.join(environment.hidden(wheels))}")
    log(
        "network: off, by a network namespace; inputs: read-only mounts"
        if namespace
        else "network: off, by a socket guard (no network namespace here); inputs: linked, compared afterwards"
    )
    return Sandbox(out, script, python, namespace)


def run_layouts(
    sandbox: Sandbox,
    layout: str,
    attached: Attached,
    split_dir: Path | None,
    competition: Competition,
    allowed: set[str],
    log: Log,
) -> list[Outcome]:
    """Run the bundle in a layout, or in "both"; `split_dir` None attaches no competition.

    `allowed` are the names that it may leave in its working folder. Raises RehearsalError when it fails, leaves
    something else behind, changes its inputs, or passes a limit.
    """
    outcomes = []
    for name in LAYOUTS if layout == "both" else (layout,):
        log(f"layout: {name}")
        stage = Stage(sandbox.out / name, LAYOUTS[name], competition.slug, attached, split_dir, sandbox.namespace)
        outcomes.append(_run(stage, name, sandbox, competition, log))
        _check_left(outcomes[-1], allowed)
    return outcomes


def hashes_of(attached: Attached) -> dict[str, dict[str, str]]:
    """The sha256 of every file of every dataset: what rehearsal.json has of those that were attached."""
    return {name: {file: sha256(path) for file, path in files.items()} for name, files in attached.items()}


class Stage:
    """The folders of one run: kaggle/input in one layout, kaggle/working, kaggle/src."""

    def __init__(
        self,
        folder: Path,
        layout: tuple[str, str],
        slug: str,
        attached: Attached,
        split_dir: Path | None,
        namespace: bool,
    ) -> None:
        """Lay them out afresh: datasets are copied; the slides are linked, or mounted when the run starts."""
        shutil.rmtree(folder, ignore_errors=True)
        self.root, self.namespace = (folder / "kaggle").resolve(), namespace
        self.split_dir = None if split_dir is None else split_dir.resolve()
        self.input, self.working = self.root / "input", self.root / "working"
        for path in (self.input, self.working, self.root / "src"):
            path.mkdir(parents=True)
        competition_path, dataset_path = layout
        self.slides = self.input / competition_path.format(slug=slug)
        for dataset, files in attached.items():
            _copy(files, self.input / dataset_path.format(owner=OWNER, dataset=dataset))
        if self.split_dir is None:
            return
        self.slides.parent.mkdir(parents=True, exist_ok=True)
        if namespace:
            self.slides.mkdir()
        else:
            self.slides.symlink_to(self.split_dir)

    def command(self, inner: Sequence[str]) -> list[str]:
        """`inner`, inside the namespace where there is one, with the inputs mounted read-only."""
        if not self.namespace:
            return list(inner)
        slides = [] if self.split_dir is None else [self.split_dir, self.slides]
        mounts = [self.input, self.input, *slides]
        return [*NAMESPACE, "sh", "-c", MOUNTS, "sh", *map(str, mounts), "--", *inner]

    def fingerprint(self) -> dict[str, tuple[int, int]]:
        """Size and modification time of every input file."""
        found = {}
        for top in (self.input, *([] if self.split_dir is None else [self.split_dir])):
            for path in sorted(top.rglob("*")):
                if path.is_file():
                    status = path.stat()
                    found[str(path)] = (status.st_size, status.st_mtime_ns)
        return found


def namespaces_work(folder: Path) -> bool:
    """Whether this system lets us make a network namespace with read-only mounts; tried, not guessed."""
    probe = folder / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    probe.mkdir()
    inside = [
        "sh",
        "-c",
        MOUNTS,
        "sh",
        str(probe),
        str(probe),
        "--",
        "sh",
        "-c",
        '! touch "$0/written" 2>/dev/null',
        str(probe),
    ]
    try:
        ended = subprocess.run([*NAMESPACE, *inside], capture_output=True, timeout=30, check=False)
    except OSError:
        return False
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return ended.returncode == 0


def _split_dir(split: str, competition: Competition, log: Log) -> Path:
    if split != "public":
        return Path(split)
    from clotkit.kaggle.public import fetch_public_split

    return fetch_public_split(competition, Path("build/public"), log=log)


def datasets_of(kernel: Path, weights: Path, wheels: Path) -> dict[str, dict[str, Path]]:
    """The datasets that a kernel asks for, as they are pushed too: their files, by the names they have there."""
    sources = json.loads((kernel / "kernel-metadata.json").read_text(encoding="utf-8"))["dataset_sources"]
    names = [source.split("/")[1] for source in sources]
    return {name: wheels_files(wheels) if name.endswith("wheels") else weights_files(weights) for name in names}


def _copy(files: Mapping[str, Path], target: Path) -> None:
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def _run(stage: Stage, name: str, sandbox: Sandbox, competition: Competition, log: Log) -> Outcome:
    placed = stage.root / "src" / "script.py"
    shutil.copyfile(sandbox.script, placed)
    placed.chmod(0o444)
    before = stage.fingerprint()
    started = time.monotonic()
    process = subprocess.Popen(
        stage.command([str(sandbox.python), "-I", str(placed)]),
        cwd=stage.working,
        env=_environment(stage.root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    watch = _Watch(process, competition)
    from_wheels = False
    with process, watch:
        for line in process.stdout or ():
            from_wheels |= line.startswith("pyvips ") and "/wheels" in line
            log(f"  | {line.rstrip()}")
    stopped, peak_mb = watch.stopped, watch.peak_mb
    if stopped or process.returncode:
        raise RehearsalError(
            f"layout {name}: " + (stopped or f"the kernel ended with {process.returncode}, 0 is needed")
        )
    if not from_wheels:
        raise RehearsalError(f"layout {name}: the kernel did not load pyvips from the wheels; its lines above say why")
    if stage.fingerprint() != before:
        raise RehearsalError(f"layout {name}: the kernel changed its inputs; on Kaggle they are read-only")
    return Outcome(name, stage.working, time.monotonic() - started, peak_mb)


def _check_left(outcome: Outcome, allowed: set[str]) -> None:
    left = sorted(path.name for path in outcome.working.iterdir() if path.name not in allowed)
    if left:
        raise RehearsalError(f"layout {outcome.layout}: left behind in the working folder: {', '.join(left)}")


def _environment(root: Path) -> dict[str, str]:
    """What the kernel sees: the system's own variables, nothing of this shell's."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    ours = {"CLOTKIT_KAGGLE_ROOT": str(root), "CLOTKIT_REHEARSAL": "1"}
    return {**kept, **ours, "HOME": str(root), "KAGGLE_KERNEL_RUN_TYPE": "Batch"}


class _Watch(threading.Thread):
    """Holds a kernel to its limits while its lines are read: its `peak_mb`, and why it was `stopped` (empty: not)."""

    def __init__(self, process: "subprocess.Popen[str]", competition: Competition) -> None:
        super().__init__(daemon=True)
        self.process, self.limits = process, competition.limits
        self.started, self.peak_mb, self.stopped = time.monotonic(), 0.0, ""

    def run(self) -> None:
        while self.process.poll() is None:
            try:
                self.process.wait(WATCH_S)
            except subprocess.TimeoutExpired:
                self._look()

    def _look(self) -> None:
        now_mb = tree_mb(self.process.pid)
        self.peak_mb = max(self.peak_mb, now_mb)
        if now_mb > self.limits.kernel_memory_mb:
            self.stopped = f"memory limit: {now_mb:.0f} MB, {self.limits.kernel_memory_mb} allowed"
        elif time.monotonic() - self.started > self.limits.kernel_wall_s:
            self.stopped = f"wall limit: {self.limits.kernel_wall_s:.0f} s allowed"
        if self.stopped:
            _kill_tree(self.process.pid)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        if sys.exc_info()[0] is not None:
            _kill_tree(self.process.pid)  # nothing of an interrupted rehearsal goes on
        self.process.wait()
        self.join()


def tree_mb(pid: int) -> float:
    """The memory of a process and all below it, shared pages counted once (PSS), in MB."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.AccessDenied:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MB


def _kill_tree(pid: int) -> None:
    try:
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _agree(submissions: Sequence[Path]) -> None:
    """The layouts must give the same submission, to 1e-6."""
    tables = []
    for path in submissions:
        with path.open(encoding="utf-8", newline="") as file:
            tables.append(list(csv.reader(file)))
    for table in tables[1:]:
        for row, other in zip(tables[0], table, strict=True):
            if row[0] != other[0] or not all(map(_close, row[1:], other[1:])):
                raise RehearsalError(f"the layouts disagree: {','.join(row)} against {','.join(other)}")


def _close(one: str, other: str) -> bool:
    return one == other or abs(float(one) - float(other)) <= 1e-6 + 1e-12


def costs_of(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """The cost of every run, by its layout: seconds and peak MB."""
    return {one.layout: {"seconds": round(one.seconds, 1), "peak_mb": round(one.peak_mb)} for one in outcomes}


def said_costs(outcomes: Sequence[Outcome]) -> str:
    """The same in words."""
    return "; ".join(f"layout {one.layout} {one.seconds:.0f} s, {one.peak_mb:.0f} MB" for one in outcomes)


def _conclude(
    outcomes: Sequence[Outcome],
    competition: Competition,
    split_dir: Path,
    facts: dict[str, Any],
    out: Path,
    seconds: float,
    log: Log,
) -> bool:
    working = outcomes[-1].working
    lines = records.read_report(working / records.REPORT) if (working / records.REPORT).exists() else []
    submission = working / competition.files.submission
    verdict = check_submission(submission, competition.sample_path(split_dir), competition)
    if not verdict.valid:
        raise RehearsalError(f"the kernel's submission is not valid: {verdict.problems[0]}")
    for row in [*records.table(lines), *verdict.notes]:
        log(row)
    counts = records.counts(lines)
    slides = len(read_slides(split_dir, "test", competition))
    clean = counts["done"] == slides
    facts = facts | {
        "split": str(split_dir),
        "slides": counts,
        "layouts": costs_of(outcomes),
    }
    shutil.copyfile(submission, out / submission.name)
    atomic_write_json(out / REHEARSAL, facts)
    log(f"{out / submission.name}: valid; {said_costs(outcomes)}")
    log(
        f"rehearsal {'passed' if clean else 'passed with fallbacks'}: {counts['done']} of {slides} slides done, "
        f"{seconds:.0f} s in all"
    )
    return clean
