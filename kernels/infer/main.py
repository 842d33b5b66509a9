"""The scoring kernel: a supervisor that always leaves a valid submission.csv and ends with 0.

The bundle builder fills FILES (the kit's modules, as text) and SETTINGS below, and puts the source of `unpack` in place
of its import; the result is the single script that Kaggle runs. The supervisor needs only the standard library. It
writes a fallback submission first, runs the pipeline as a child under the deadline, then checks the submission.
status.json says how the run ended, for programs.
"""

import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clotkit.bundle.unpack import unpack

FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}


def main() -> int:
    """Leave a valid submission.csv whatever happens to the child; return 2 without data, else 0."""
    started = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until a stop would leave a submission
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="clotkit-", ignore_cleanup_errors=True) as scratch:
        code = unpack(FILES, Path(scratch) / "code")
        from clotkit.competitions import load_competition
        from clotkit.console import unforeseen
        from clotkit.reasons import Reason
        from clotkit.supervise import WORKING, Kit, State, Status, find_split, is_rerun, say, supervised

        competition, status = load_competition(SETTINGS["competition"]), Status("score")
        say(f"clotkit kernel on Python {sys.version.split()[0]}, rerun: {'yes' if is_rerun() else 'no'}")
        split = find_split(competition, competition.sample_path)
        if split is None:
            status.add(Reason.NO_DATA)
            status.write(State.FAILED, started)
            return 2
        rows = write_fallback(competition, split, WORKING / competition.files.submission)
        status.write(State.STARTED, started)
        say(f"fallback submission for {rows} {competition.unit}s of {split}" if rows else str(split))
        ended_well = False
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            ended_well = run_child(competition, split, Kit(code, Path(scratch) / "wheels"), started, status)
        except Stopped:
            status.add(Reason.STOPPED)
            say("SIGTERM: the pipeline is stopped; its last published submission stays")
        except Exception as error:  # noqa: BLE001 - the fallback submission is there; nothing may end the kernel early
            status.add(Reason.FAILED)
            say(f"the pipeline could not be run: {unforeseen(error, WORKING)}")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

        def end() -> int:
            status.write(finish(competition, split, ended_well, started, status), started)
            return 0

        return supervised(end, status, started, code=0)


class Stopped(BaseException):
    """SIGTERM has come."""


def _stop(_number: int, _frame: object) -> None:
    raise Stopped


def write_fallback(competition: Any, split: Path, submission: Path) -> int:
    """Write the fallback for every id of the sample and count them; 0: the sample itself, not understood."""
    from clotkit.errors import ClotkitError
    from clotkit.files import atomic_write
    from clotkit.splits import read_sample
    from clotkit.submission.writing import write_submission
    from clotkit.supervise import say

    path = competition.sample_path(split)
    try:
        sample = read_sample(path, competition)
        write_submission(submission, competition, sample, {})
        return len(sample.ids)
    except ClotkitError as error:
        say(f"{error}; the submission is a copy of the sample")
        with atomic_write(submission) as temporary:
            temporary.write_bytes(path.read_bytes())
        return 0


def run_child(competition: Any, split: Path, kit: Any, started: float, status: Any) -> bool:
    """Run the pipeline under the deadline; return whether its exit code is one of ENDED_WELL."""
    from clotkit.reasons import Reason
    from clotkit.supervise import (
        ENDED_WELL,
        INPUT,
        WORKING,
        code_of,
        name_of,
        prepare_weights,
        say,
    )

    weights = prepare_weights(split, kit, status)
    if weights is None:
        status.add(Reason.NO_MEMBER)
        say(f"no member (recipe.toml) under {INPUT}: attach the weights dataset; the fallback submission stays")
        return False
    deadline = started + SETTINGS.get("deadline_s", competition.limits.deadline_s)
    say(f"weights: {weights}; {deadline - time.monotonic():.0f} s until the deadline")
    command = kit.command("run", str(split), "--weights", str(weights), "--out", str(WORKING))
    command += ["--competition", SETTINGS["competition"], "--without-missing"]
    ended = run_once(command, deadline)
    if ended in ENDED_WELL:
        return True
    say(f"the pipeline ended with {name_of(ended)}; its last published submission stays")
    if ended < 0 and time.monotonic() < deadline:
        status.started_twice = True
        say("the pipeline is started once more, and resumes after the slides that are done")
        ended = run_once([*command, "--resume"], deadline)
        if ended not in ENDED_WELL:
            say(f"the pipeline ended with {name_of(ended)} again")
    if ended not in ENDED_WELL:
        status.add(code_of(ended, deadline))
    return ended in ENDED_WELL


def run_once(command: list[str], deadline: float) -> int:
    """Run the pipeline until `deadline` (of time.monotonic) and GRACE_S, and return its exit status."""
    from clotkit.supervise import GRACE_S, run_until

    left_s = max(deadline - time.monotonic(), 1)
    command = [*command, "--deadline", f"{left_s:.0f}s"]
    return run_until(command, left_s, "the pipeline", SETTINGS.get("grace_s", GRACE_S))


def finish(competition: Any, split: Path, ended_well: bool, started: float, status: Any) -> Any:
    """Check the submission, replace it by the fallback if it is not valid, and return the kernel's state."""
    from clotkit.errors import ClotkitError
    from clotkit.reasons import Reason
    from clotkit.report import records
    from clotkit.submission.checking import check_submission
    from clotkit.supervise import WORKING, State, say

    submission = WORKING / competition.files.submission
    for temporary in WORKING.glob(f".{submission.stem}.*"):  # of a write that a kill cut short
        temporary.unlink()
    try:
        verdict = check_submission(submission, competition.sample_path(split), competition)
        problems: list[Any] = list(verdict.problems)
        codes, notes = [str(problem.code) for problem in problems], verdict.notes
    except ClotkitError as error:
        problems, codes, notes = [error], [str(error.reason)], []
    if problems:
        status.add(Reason.INVALID, *codes)
        say("\n".join([*map(str, problems), "the fallback submission is written again"]))
        write_fallback(competition, split, submission)
    lines = report_lines(WORKING / records.REPORT)
    if lines and not ended_well:
        say("\n".join(records.table(lines)))
    say("\n".join(notes))
    say(f"{submission.name}: {'fallback' if problems else 'valid'}, {time.monotonic() - started:.0f} s in all")
    status.slides = records.counts(lines)
    status.add(*(code for line in lines for code in line.codes))
    if problems or status.slides["fallback"] == len(lines):
        return State.FALLBACK
    return State.DONE if ended_well and status.slides["done"] == len(lines) else State.PARTIAL


def report_lines(path: Path) -> Any:
    """Return the lines of report.jsonl, none if it cannot be read: nothing may end the kernel early."""
    from clotkit.errors import ClotkitError
    from clotkit.report.records import read_report

    try:
        return read_report(path)
    except (ClotkitError, ValueError, TypeError):
        return []


if __name__ == "__main__" and (code := main()):  # in a notebook every SystemExit is an error, that of 0 too
    sys.exit(code)
