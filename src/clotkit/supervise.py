"""What the supervisors of the kernels share, on Kaggle: finding inputs, installing wheels, running a child to its end.

Standard library only: a supervisor never needs more. Each kernel's main.py unpacks the kit and imports this.
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition

ROOT = Path(os.environ.get("CLOTKIT_KAGGLE_ROOT", "/kaggle"))  # a rehearsal has its own
INPUT, WORKING = ROOT / "input", ROOT / "working"
WALK_DEPTH = 6
PIP_LIMIT_S = 600
GRACE_S = 60  # what a child gets beyond its deadline to close its files
CHILD = """
import sys
sys.path[:0] = sys.argv.pop(1).split(":")
from clotkit.cli import main
sys.exit(main())
"""
PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import imagecodecs, pyvips, simplejpeg
for module in (imagecodecs, pyvips, simplejpeg):
    if not module.__file__.startswith(sys.argv[1]):
        sys.exit(f"{module.__name__} comes from {module.__file__}, not from the wheels")
libvips = f"{pyvips.version(0)}.{pyvips.version(1)}"
codecs = f"imagecodecs {imagecodecs.__version__}, simplejpeg {simplejpeg.__version__}"
print(f"pyvips {pyvips.__version__} with libvips {libvips}, {codecs}: {sys.argv[1]}")
"""
Folders = list[tuple[Path, list[str]]]  # with the names of their files


def walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `top` with their file names, breadth last, links followed, WALK_DEPTH levels at most."""
    for folder, folders, names in os.walk(top, followlinks=True):
        folders.sort()
        if len(Path(folder).relative_to(top).parts) >= WALK_DEPTH:
            folders.clear()
        yield Path(folder), names


def find_split(competition: Competition, mark: Callable[[Path], Path]) -> Path | None:
    """The competition's folder: the new layout, the old one, then wherever the file `mark(folder)` is."""
    likely = [INPUT / "competitions" / competition.slug, INPUT / competition.slug]
    folders = [*likely, *(folder for folder, _ in walk(INPUT))]
    return next((folder for folder in folders if mark(folder).is_file()), None)


def say_what_is_there() -> None:
    """Print every folder of the input: for a kernel that misses something."""
    say("\n".join(f"  {folder}" for folder, _ in walk(INPUT)))


def recipes_of(settings: dict[str, Any]) -> list[str]:
    """The recipes that a kernel works on: those of its settings; in a rehearsal those that stand in for them."""
    return list(settings["rehearse" if os.environ.get("CLOTKIT_REHEARSAL") else "recipes"])


def datasets_beside(split: Path | None) -> Folders:
    """Every folder of the input but the competition's."""
    return [(folder, names) for folder, names in walk(INPUT) if split not in (folder, *folder.parents)]


def install_wheels(datasets: Folders, target: Path) -> None:
    """Install every wheel of the wheels dataset into `target`, offline, and say what reads the slides then."""
    found = [(folder, name) for folder, names in datasets for name in sorted(names) if name.endswith(".whl")]
    if not found:
        say("no wheels dataset: slides are read by OpenSlide")
        return
    packages = sorted({name.split("-")[0] for _, name in found})
    links = [part for folder in sorted({folder for folder, _ in found}) for part in ("--find-links", str(folder))]
    pip = [
        sys.executable,
        "-I",
        "-m",
        "pip",
        "install",
        "--no-index",
        *links,
        "--no-deps",
        "--target",
        str(target),
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--no-warn-script-location",
        *packages,
    ]
    probe = [sys.executable, "-I", "-c", PROBE, str(target)]
    for step in (pip, probe):
        ended = subprocess.run(step, capture_output=True, text=True, timeout=PIP_LIMIT_S, check=False)
        last = (ended.stdout + ended.stderr).strip().splitlines()[-1:]
        if last:
            say(last[0])
        if ended.returncode:
            say("the wheels could not be used: slides are read by OpenSlide")
            return


def of_all(name: str) -> bool:
    """Whether a file beside the members may belong to all of them: the manifest, an ensemble."""
    return name.endswith((".json", ".toml"))


def unpacked(datasets: Folders, target: Path) -> Folders:
    """The folders of the datasets' tars, unpacked below `target`. Kaggle unpacks them itself, as a rule."""
    for folder, names in datasets:
        tars = [name for name in sorted(names) if name.endswith(".tar")]
        for name in tars:
            say(f"unpacking {folder / name}")
            with tarfile.open(folder / name) as archive:
                archive.extractall(target / name.removesuffix(".tar"), filter="data")
        for name in filter(of_all, names if tars else []):
            shutil.copyfile(folder / name, target / name)
    return list(walk(target))


def kit(code: Path, wheels: Path, *words: str) -> list[str]:
    """The command line of a verb of the unpacked kit, with the wheels behind it."""
    return [sys.executable, "-I", "-u", "-c", CHILD, f"{code}:{wheels}", *words]


def run_until(command: list[str], left_s: float, what: str, grace_s: float = GRACE_S) -> int:
    """Run a command in a session of its own for `left_s` and `grace_s`, then kill it; its exit status.

    Whatever it leaves running is killed with it, also when this process is told to stop.
    """
    child = subprocess.Popen(command, start_new_session=True, cwd=WORKING)
    try:
        return child.wait(timeout=left_s + grace_s)
    except subprocess.TimeoutExpired:
        say(f"{what} did not end by its deadline: killed")
        return -signal.SIGKILL
    finally:
        kill_group(child)


def kill_group(child: "subprocess.Popen[bytes]") -> None:
    """SIGKILL whatever is left of the child's session."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def name_of(status: int) -> str:
    """An exit status in words."""
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def list_files(top: Path) -> dict[str, Path]:
    """The files below `top` by their path in it, hidden ones left out, in order."""
    found = {path.relative_to(top).as_posix(): path for path in sorted(top.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if not any(part.startswith(".") for part in Path(name).parts)}


def bytes_of(paths: Iterable[Path]) -> int:
    """The bytes of files, all of them together."""
    return sum(path.stat().st_size for path in paths)


def say(text: str) -> None:
    """Print now: a killed kernel's log ends where its buffer did."""
    print(text, flush=True)
