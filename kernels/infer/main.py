"""The scoring kernel: a supervisor that always leaves a valid submission.csv and ends with 0.

The bundle builder fills FILES (the kit's modules, as text) and SETTINGS below, and this is the one script that Kaggle
runs. Until the kit is unpacked there is only the standard library, and the supervisor itself never needs more:
a fallback submission first, then the pipeline as a child under the deadline, then the check.
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}

ROOT = Path(os.environ.get("CLOTKIT_KAGGLE_ROOT", "/kaggle"))  # a rehearsal has its own
INPUT, WORKING = ROOT / "input", ROOT / "working"
WALK_DEPTH = 6
PIP_LIMIT_S = 600
GRACE_S = 60  # what the child gets beyond its deadline to close its files
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


def main() -> int:
    """Leave a valid submission.csv whatever happens to the child; 2 only when there is no competition data at all."""
    started = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is a file that a stop would leave
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="clotkit-", ignore_cleanup_errors=True) as scratch:
        code = unpack(Path(scratch) / "code")
        sys.path.insert(0, str(code))
        from clotkit.competitions import load_competition
        from clotkit.infer.submission import write_submission

        competition = load_competition(SETTINGS["competition"])
        say(f"clotkit kernel on Python {sys.version.split()[0]}, rerun: {rerun()}")
        split = find_split(competition)
        if split is None:
            say(f"no {competition.files.sample} under {INPUT}: attach the competition's data. What is there:")
            say("\n".join(f"  {folder}" for folder, _ in walk(INPUT)))
            return 2
        ids = patient_ids(competition, split)
        submission = WORKING / competition.files.submission
        write_submission(submission, competition, ids, {})
        say(f"fallback submission for {len(ids)} patients of {split}")
        ended_well = False
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            ended_well = run_child(competition, split, code, Path(scratch) / "wheels", started)
        except Stopped:
            say("told to stop (SIGTERM): the pipeline is stopped, what it had published stands")
        except Exception as error:  # noqa: BLE001 - the fallback file stands; nothing may take the kernel down
            say(f"the pipeline could not be run: {type(error).__name__}: {error}")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        finish(competition, split, ids, ended_well, started)
    return 0


class Stopped(BaseException):
    """SIGTERM has come."""


def _stop(_number: int, _frame: object) -> None:
    raise Stopped


def unpack(folder: Path) -> Path:
    """Write FILES below `folder` and return it."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def rerun() -> str:
    """Which run this is: Kaggle sets a variable in the scoring re-run only."""
    return "yes (scoring)" if os.environ.get("KAGGLE_IS_COMPETITION_RERUN") else "no (commit or rehearsal)"


def find_split(competition: Any) -> Path | None:
    """The competition's folder: the new layout, the old one, then wherever its sample submission is."""
    likely = [INPUT / "competitions" / competition.slug, INPUT / competition.slug]
    folders = [*likely, *(folder for folder, _ in walk(INPUT))]
    return next((folder for folder in folders if competition.sample_path(folder).is_file()), None)


def walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `top` with their file names, breadth last, links followed, WALK_DEPTH levels at most."""
    for folder, folders, names in os.walk(top, followlinks=True):
        folders.sort()
        if len(Path(folder).relative_to(top).parts) >= WALK_DEPTH:
            folders.clear()
        yield Path(folder), names


def patient_ids(competition: Any, split: Path) -> list[str]:
    """The ids of the sample submission; those of the test table where the sample is damaged."""
    from clotkit.errors import ClotkitError
    from clotkit.splits import read_sample_ids, read_slides

    try:
        return read_sample_ids(competition.sample_path(split), competition)
    except ClotkitError as error:
        say(f"{error}; the ids are taken from the test table instead")
        return list(dict.fromkeys(slide.patient_id for slide in read_slides(split, "test", competition)))


def run_child(competition: Any, split: Path, code: Path, wheels: Path, started: float) -> bool:
    """Run the pipeline under the deadline; True when it ended by itself with a code that says so."""
    datasets = [(folder, names) for folder, names in walk(INPUT) if split not in (folder, *folder.parents)]
    install_wheels(datasets, wheels)
    scratch = wheels.parent
    weights = find_weights(datasets, scratch) or find_weights(unpacked(datasets, scratch / "tars"), scratch)
    if weights is None:
        say(f"no member (recipe.toml) under {INPUT}: attach the weights dataset; the fallback stands")
        return False
    deadline = started + SETTINGS.get("deadline_s", competition.limits.deadline_s)
    say(f"weights: {weights}; {deadline - time.monotonic():.0f} s until the deadline")
    command = [sys.executable, "-I", "-u", "-c", CHILD, f"{code}:{wheels}", "run", str(split)]
    command += ["--weights", str(weights), "--out", str(WORKING), "--competition", SETTINGS["competition"]]
    status = run_once(command, deadline)
    if status in (0, 3):
        return True
    say(f"the pipeline ended with {name_of(status)}; what it had published stands")
    if status < 0 and time.monotonic() < deadline:
        say("it is started once more, from the slides that are done")
        status = run_once([*command, "--resume"], deadline)
        if status not in (0, 3):
            say(f"the pipeline ended with {name_of(status)} again")
    return status in (0, 3)


def run_once(command: list[str], deadline: float) -> int:
    """Run the pipeline in a session of its own until `deadline` (of time.monotonic) and GRACE_S; its exit status."""
    left = max(deadline - time.monotonic(), 1)
    child = subprocess.Popen([*command, "--deadline", f"{left:.0f}s"], start_new_session=True, cwd=WORKING)
    try:
        return child.wait(timeout=left + SETTINGS.get("grace_s", GRACE_S))
    except subprocess.TimeoutExpired:
        say("the pipeline did not end by its deadline: killed")
        return -signal.SIGKILL
    finally:
        kill_group(child)


def install_wheels(datasets: list[tuple[Path, list[str]]], target: Path) -> None:
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


def find_weights(datasets: list[tuple[Path, list[str]]], scratch: Path) -> Path | None:
    """The folder of a lone member; else one that has the members, and what belongs to all, right inside."""
    members = sorted(folder for folder, names in datasets if "recipe.toml" in names)
    if not members:
        return None
    above = {parent for member in members for parent in member.parents}
    ensembles = [folder for folder, names in datasets if "ensemble.toml" in names]
    if len(members) == 1 and not ensembles:
        return members[0]
    if {member.parent for member in members} == set(ensembles or [members[0].parent]):
        return members[0].parent
    gathered = scratch / "members"  # of a dataset that was unpacked with one more folder a member
    gathered.mkdir(exist_ok=True)
    beside = [folder / name for folder, names in datasets if folder in above for name in names if of_all(name)]
    for path in [*members, *beside]:
        if not (gathered / path.name).exists():
            (gathered / path.name).symlink_to(path)
    return gathered


def of_all(name: str) -> bool:
    """Whether a file beside the members may belong to all of them: the manifest, an ensemble."""
    return name.endswith((".json", ".toml"))


def unpacked(datasets: list[tuple[Path, list[str]]], target: Path) -> list[tuple[Path, list[str]]]:
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


def kill_group(child: "subprocess.Popen[bytes]") -> None:
    """SIGKILL whatever is left of the child's session."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def finish(competition: Any, split: Path, ids: list[str], ended_well: bool, started: float) -> None:
    """Check the file on disk, put the fallback back where it is not valid, tidy up, print what there is to say."""
    from clotkit.errors import ClotkitError
    from clotkit.infer import report
    from clotkit.infer.submission import check_submission, write_submission

    submission = WORKING / competition.files.submission
    for left_behind in WORKING.glob(f".{submission.stem}.*"):  # of a write that a kill cut short
        left_behind.unlink()
    try:
        verdict = check_submission(submission, competition.sample_path(split), competition)
        problems, notes = verdict.problems, verdict.notes
    except ClotkitError as error:
        problems, notes = [str(error)], []
    if problems:
        say("\n".join([*problems, "the fallback submission is written again"]))
        write_submission(submission, competition, ids, {})
    path = WORKING / report.REPORT
    if path.is_file() and not ended_well:
        say("\n".join(report.table(report.read_report(path))))
    say("\n".join(notes))
    say(f"{submission.name}: {'fallback' if problems else 'valid'}, {time.monotonic() - started:.0f} s in all")


def name_of(status: int) -> str:
    """An exit status in words."""
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def say(text: str) -> None:
    """Print now: a killed kernel's log ends where its buffer did."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
