"""The folder of a run: made, checked, and continued from (--resume)."""

import json
from collections.abc import Sequence
from pathlib import Path

from clotkit.errors import ClotkitError, UsageError
from clotkit.progress import Log
from clotkit.report import records
from clotkit.report.records import SlideReport
from clotkit.scoring.settings import RunSettings
from clotkit.scoring.state import SubmissionState


def earlier_lines(settings: RunSettings, key: str, log: Log) -> list[SlideReport]:
    """Return the report lines of the run to resume.

    There are none without --resume, or if that run had another key.
    """
    if not settings.resume:
        return []
    try:
        if json.loads((settings.run_dir / records.RUN).read_text(encoding="utf-8")).get("key") != key:
            log(f"{settings.run_dir}: has the report of a run on other slides or weights; starting from the beginning")
            return []
        lines = records.read_report(settings.run_dir / records.REPORT)
    except (OSError, ValueError, ClotkitError):
        return []
    log(f"resuming from {settings.run_dir / records.REPORT}: {len(lines)} slides are done")
    return lines


def make_run_folder(run_dir: Path, state: SubmissionState, resume: bool) -> None:
    """Make the run folder with a valid submission in it, or reuse the folder of an earlier run.

    With `resume` the submission that is there stays: it is better than the fallback until more slides are scored.
    Raises UsageError if the folder cannot be written, or holds files but no run.
    """
    submission = state.path.name
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(run_dir)
        foreign = sorted(path.name for path in run_dir.iterdir() if path.name not in {submission, *records.FILES})
        if foreign and not (run_dir / records.REPORT).exists() and not (run_dir / submission).exists():
            raise UsageError(f"{run_dir}: holds {foreign[0]}, which no run wrote; name an empty or a new folder")
        if not resume:
            state.write()
            for name in (records.RUN, records.SLIDES):
                (run_dir / name).unlink(missing_ok=True)
        (run_dir / records.PAGE).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{run_dir}: cannot be used as a run folder: {error.strerror}; name another") from error


def open_report(run_dir: Path, kept: Sequence[SlideReport]) -> records.ReportFile:
    """Start report.jsonl with the lines that are `kept`. Raises UsageError if it cannot be written."""
    path = run_dir / records.REPORT
    try:
        return records.ReportFile(path, kept)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}; name another folder") from error


def _remove_temporaries(run_dir: Path) -> None:
    """Remove the temporary files of writes that a kill cut short."""
    for name in records.FILES:
        stem, _, suffix = name.partition(".")
        for path in run_dir.glob(f".{stem}.*.{suffix}"):
            path.unlink()
