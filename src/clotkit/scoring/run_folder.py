"""The folder of a run: made, checked, and continued from (--resume)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from clotkit.errors import ClotkitError, UsageError
from clotkit.file_state import CHANGED, MISSING, SAME
from clotkit.looking import ANSWER_S, look_at
from clotkit.progress import Log
from clotkit.report import records
from clotkit.report.records import SlideReport
from clotkit.report.run import mapping
from clotkit.scoring.inputs import Inputs
from clotkit.scoring.settings import RunSettings
from clotkit.scoring.state import SubmissionState
from clotkit.splits import SlideRow
from clotkit.submission.writing import PROBABILITIES
from clotkit.workers import FILE


@dataclass(frozen=True)
class Earlier:
    """The part of an earlier run that still counts."""

    lines: Sequence[SlideReport] = ()
    counts: Mapping[str, int] | None = None  # of its slides: kept, failed, changed, unchecked; None: none is resumed


def read_earlier(settings: RunSettings, inputs: Inputs, log: Log) -> Earlier:
    """Return the report lines of the run to resume that still count.

    Slides that failed or whose file has changed are read again. A line stays if its file is missing or does not answer
    now. There are none without --resume, or if that run had another key.
    """
    if not settings.resume:
        return Earlier()
    report = settings.run_dir / records.REPORT
    try:
        if json.loads((settings.run_dir / records.RUN).read_text(encoding="utf-8")).get("key") != inputs.key:
            log(f"{settings.run_dir}: has a run with other weights, or of another clotkit; starting from the beginning")
            return Earlier()
        lines = {line.image_id: line for line in records.read_report(report)}
    except (OSError, ValueError, TypeError, AttributeError, ClotkitError):
        return Earlier()
    by_id = {slide.image_id: slide for slide in inputs.slides}
    slides = [by_id[image_id] for image_id in lines if image_id in by_id]
    scored = [slide for slide in slides if lines[slide.image_id].state != "fallback"]
    seen = _compared(scored, lines, log, min(ANSWER_S, settings.deadline_s / 10))
    kept = [slide for slide in scored if seen[slide.image_id] != CHANGED]
    counts = {
        "kept": len(kept),
        "failed": len(slides) - len(scored),
        "changed": len(scored) - len(kept),
        "unchecked": sum(state == MISSING for state in seen.values()),
    }
    log(f"resuming from {report}: {len(kept)} slides are done{_more(counts)}")
    return Earlier([replace(lines[slide.image_id], patient_id=slide.patient_id) for slide in kept], counts)


def _compared(
    slides: Sequence[SlideRow], lines: Mapping[str, SlideReport], log: Log, answer_s: float
) -> dict[str, str]:
    """Return whether each slide's file is SAME as in its line, CHANGED or MISSING.

    A file that does not answer is MISSING too.
    """
    known = {slide.image_id: mapping(lines[slide.image_id].facts.get(FILE)) for slide in slides}
    local = [slide for slide in slides if slide.stored is None]
    looked = look_at([(slide.path, dict(known[slide.image_id])) for slide in local], log, answer_s)
    seen = {slide.image_id: looked.get(number, MISSING) for number, slide in enumerate(local)}
    for slide in slides:
        if slide.stored is not None:
            seen[slide.image_id] = SAME if known[slide.image_id] == asdict(slide.stored.entry) else CHANGED
    return seen


def _more(counts: Mapping[str, int]) -> str:
    """Return what else happens to the slides of an earlier run, for its line in the log."""
    texts = {
        "failed": "tried again because they failed",
        "changed": "read again because their files changed",
        "unchecked": "of those that are done not compared, as their files are missing or do not answer",
    }
    return "".join(f"; {text}: {counts[name]}" for name, text in texts.items() if counts[name])


def make_run_folder(run_dir: Path, state: SubmissionState, resume: bool) -> None:
    """Make the run folder with a valid submission in it, or reuse the folder of an earlier run.

    With `resume` the submission that is there stays: it is better than the fallback until more slides are scored.
    Raises UsageError if the folder cannot be written, or holds files but no run.
    """
    submission = state.path.name
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _remove_temporaries(run_dir)
        own = {submission, PROBABILITIES, *records.FILES}
        foreign = sorted(path.name for path in run_dir.iterdir() if path.name not in own)
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
    for name in (PROBABILITIES, *records.FILES):
        stem, _, suffix = name.partition(".")
        for path in run_dir.glob(f".{stem}.*.{suffix}"):
            path.unlink()
