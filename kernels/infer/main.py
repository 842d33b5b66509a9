"""The scoring kernel: a supervisor that always leaves a valid submission.csv and ends with 0.

The bundle builder fills FILES (the kit's modules, as text) and SETTINGS below, and this is the one script that Kaggle
runs. Until the kit is unpacked there is only the standard library, and the supervisor itself never needs more:
a fallback submission first, then the pipeline as a child under the deadline, then the check.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}


def main() -> int:
    """Leave a valid submission.csv whatever happens to the child; 2 only when there is no competition data at all."""
    started = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is a file that a stop would leave
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="clotkit-", ignore_cleanup_errors=True) as scratch:
        code = unpack(Path(scratch) / "code")
        sys.path.insert(0, str(code))
        from clotkit.competitions import load_competition
        from clotkit.scoring.submission import write_submission
        from clotkit.supervise import INPUT, WORKING, find_split, say, say_what_is_there

        competition = load_competition(SETTINGS["competition"])
        say(f"clotkit kernel on Python {sys.version.split()[0]}, rerun: {rerun()}")
        split = find_split(competition, competition.sample_path)
        if split is None:
            say(f"no {competition.files.sample} under {INPUT}: attach the competition's data. What is there:")
            say_what_is_there()
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


def patient_ids(competition: Any, split: Path) -> list[str]:
    """The ids of the sample submission; those of the test table where the sample is damaged."""
    from clotkit.errors import ClotkitError
    from clotkit.splits import read_sample_ids, read_slides
    from clotkit.supervise import say

    try:
        return read_sample_ids(competition.sample_path(split), competition)
    except ClotkitError as error:
        say(f"{error}; the ids are taken from the test table instead")
        return list(dict.fromkeys(slide.patient_id for slide in read_slides(split, "test", competition)))


def run_child(competition: Any, split: Path, code: Path, wheels: Path, started: float) -> bool:
    """Run the pipeline under the deadline; True when it ended by itself with a code that says so."""
    from clotkit.supervise import INPUT, WORKING, datasets_beside, install_wheels, kit, name_of, say, unpacked

    datasets = datasets_beside(split)
    install_wheels(datasets, wheels)
    scratch = wheels.parent
    weights = find_weights(datasets, scratch) or find_weights(unpacked(datasets, scratch / "tars"), scratch)
    if weights is None:
        say(f"no member (recipe.toml) under {INPUT}: attach the weights dataset; the fallback stands")
        return False
    deadline = started + SETTINGS.get("deadline_s", competition.limits.deadline_s)
    say(f"weights: {weights}; {deadline - time.monotonic():.0f} s until the deadline")
    command = kit(code, wheels, "run", str(split))
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
    from clotkit.supervise import GRACE_S, run_until

    left = max(deadline - time.monotonic(), 1)
    command = [*command, "--deadline", f"{left:.0f}s"]
    return run_until(command, left, "the pipeline", SETTINGS.get("grace_s", GRACE_S))


def find_weights(datasets: list[tuple[Path, list[str]]], scratch: Path) -> Path | None:
    """The folder of a lone member; else one that has the members, and what belongs to all, right inside."""
    from clotkit.supervise import of_all

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


def finish(competition: Any, split: Path, ids: list[str], ended_well: bool, started: float) -> None:
    """Check the file on disk, put the fallback back where it is not valid, tidy up, print what there is to say."""
    from clotkit.errors import ClotkitError
    from clotkit.report import records
    from clotkit.scoring.submission import check_submission, write_submission
    from clotkit.supervise import WORKING, say

    submission = WORKING / competition.files.submission
    for left_behind in WORKING.glob(f".{submission.stem}.*"):  # of a write that a kill cut short
        left_behind.unlink()
    try:
        verdict = check_submission(submission, competition.sample_path(split), competition)
        problems, notes = [str(problem) for problem in verdict.problems], verdict.notes
    except ClotkitError as error:
        problems, notes = [str(error)], []
    if problems:
        say("\n".join([*problems, "the fallback submission is written again"]))
        write_submission(submission, competition, ids, {})
    path = WORKING / records.REPORT
    if path.is_file() and not ended_well:
        say("\n".join(records.table(records.read_report(path))))
    say("\n".join(notes))
    say(f"{submission.name}: {'fallback' if problems else 'valid'}, {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
