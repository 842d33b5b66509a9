"""Run a test split: slides in, submission.csv and one report line per slide out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from clotkit import forking
from clotkit.competitions import Competition
from clotkit.errors import described
from clotkit.files import atomic_write_json
from clotkit.locks import exclusive_folder
from clotkit.progress import Log, progress
from clotkit.reasons import Cause, Reason
from clotkit.report import records
from clotkit.report.page import write_page
from clotkit.report.records import SlideReport
from clotkit.report.shown import Shown
from clotkit.report.sidecar_writer import SidecarWriter
from clotkit.scoring.facts import outcome_facts, run_facts
from clotkit.scoring.inputs import Inputs, load_members, read_inputs, with_missing_facts
from clotkit.scoring.local import score_locally
from clotkit.scoring.run_folder import make_run_folder, open_report, read_earlier
from clotkit.scoring.scorer import ScoredSlide, Scorer, ScoringJob, not_scored
from clotkit.scoring.settings import RunSettings
from clotkit.scoring.state import SubmissionState
from clotkit.splits import SlideRow, kind_of
from clotkit.units import many
from clotkit.workers import LEFT_PID, Work, score_task, set_oom_score

NO_MEMBER = Cause(Reason.NO_MEMBER, "no member could be loaded")


def run(settings: RunSettings, competition: Competition, log: Log = print, work: Work = score_task) -> dict[str, int]:
    """Score a test split and return the number of slides by state: done, partial, fallback.

    RUN_DIR gets submission.csv (all fallback before anything heavy is imported, rewritten as slides finish),
    report.jsonl, slides.jsonl, run.json and, at the end, report.html.

    Args:
        settings: where the inputs and outputs are, and the limits of the run.
        competition: the competition to score for.
        log: called with each line for people.
        work: what a slide's process does; tests and other engines replace it.

    Returns:
        Slides by state. In addition, if they are not 0: `unscored` patients, scored slides whose patient is
            `not_in_sample`, `unwritten` (1: the last write failed), and members that are `left_out`.

    Raises:
        SplitError, ConfigError, UsageError: before anything is written; also if another run uses RUN_DIR. No slide and
            no member makes a run raise.
        ClusterError: the cluster is gone; what was scored stays in RUN_DIR.
    """
    started = time.monotonic()
    inputs = read_inputs(settings, competition, log)
    settings.check()
    with exclusive_folder(settings.run_dir, "clotkit run"):
        return _run(settings, competition, inputs, started, work, log)


def _run(
    settings: RunSettings, competition: Competition, inputs: Inputs, started: float, work: Work, log: Log
) -> dict[str, int]:
    """Score a test split in a run folder that no other run uses; see `run`."""
    earlier = read_earlier(settings, inputs, log)
    path = settings.run_dir / competition.submission_csv
    state = SubmissionState(path, competition, inputs, log)
    make_run_folder(settings.run_dir, state, resume=bool(earlier.lines))
    set_oom_score(500)
    if settings.backend is None:
        forking.prepare()  # while this process imports TensorFlow
    state.members, left_out = load_members(inputs, competition, log)
    inputs = with_missing_facts(inputs, state.members, log)
    facts = run_facts(settings, competition, inputs, state.members, left_out) | {"resumed": earlier.counts}
    _write_run_json(settings, {"state": "running"} | facts, state)
    _log_inputs(settings, inputs, state, log)
    kept = [line for line in earlier.lines if state.is_complete(line)]
    lines = [*kept, *_score_slides(settings, inputs, state, kept, started, work, log)]
    state.publish()

    counts = records.counts(lines)
    left_behind = {line.image_id: line.facts[LEFT_PID] for line in lines if LEFT_PID in line.facts}
    _log_results(lines, counts, left_behind, state, log)
    _write_run_json(settings, facts | outcome_facts(counts, left_behind, time.monotonic() - started, state), state)
    _write_page(settings, started, log)
    return counts | state.shortfalls() | ({"left_out": len(left_out)} if left_out else {})


def _score_slides(
    settings: RunSettings,
    inputs: Inputs,
    state: SubmissionState,
    earlier: Sequence[SlideReport],
    started: float,
    work: Work,
    log: Log,
) -> list[SlideReport]:
    """Score the slides that have no earlier line, write each as it ends, and return their lines."""
    for line in earlier:
        state.add_earlier(line)
    if earlier:
        state.publish()  # without the slides that are read again
    done = {line.image_id for line in earlier}
    slides = [slide for slide in inputs.slides if slide.image_id not in done]
    lines: list[SlideReport] = []
    with (
        open_report(settings.run_dir, earlier) as report,
        SidecarWriter(
            settings.run_dir / records.SLIDES, done, len(inputs.slides), started, Shown.of(state.competition), log
        ) as sidecar,
        progress(len(inputs.slides), log) as advance,
    ):
        for scored, means, trace in _scored(settings, slides, state, started, work, log):
            line = _with_repairs(scored, inputs)
            if means:
                state.add(line, means)
                state.publish()
            state.attempt(partial(report.add, line))
            sidecar.add(line, trace)
            lines.append(line)
            advance(_line_text(line), False)
    return lines


def _scored(
    settings: RunSettings, slides: Sequence[SlideRow], state: SubmissionState, started: float, work: Work, log: Log
) -> Iterator[ScoredSlide]:
    """Score slides here, or on the workers of a cluster if the settings name one."""
    members, competition = state.members, state.competition
    scorer = Scorer(members, state.inputs.patient_of, competition.limits.min_tiles)
    job = ScoringJob(slides, members, scorer, settings, competition, started, work)
    if not members:
        yield from not_scored(scorer, slides, NO_MEMBER)
    elif settings.backend is None:
        yield from score_locally(job)
    else:
        from clotkit.scoring.remote import score_remotely

        yield from score_remotely(job, settings.backend, log)


def _write_run_json(settings: RunSettings, value: dict[str, object], state: SubmissionState) -> None:
    state.attempt(partial(atomic_write_json, settings.run_dir / records.RUN, value))


def _log_inputs(settings: RunSettings, inputs: Inputs, state: SubmissionState, log: Log) -> None:
    unit = state.competition.unit
    names = ", ".join(member.name for member in state.members) or f"none: every {unit} gets the fallback"
    slides = many(len(inputs.slides), f"{kind_of(settings.split_dir)}slide")
    log(f"{slides}, {many(len(inputs.sample.ids), unit)}, members: {names}")


def _with_repairs(line: SlideReport, inputs: Inputs) -> SlideReport:
    """Return a slide's line, with how its row of the table was read if that is not as it is written."""
    repairs = inputs.repairs_of.get(line.image_id)
    return replace(line, facts=line.facts | {"repairs": list(repairs)}) if repairs else line


def _line_text(line: SlideReport) -> str:
    why = f": {line.reason}" if line.reason else ""
    return f"{line.image_id} {line.state}, {line.tiles} tiles, {line.seconds:.1f} s{why}"


def _log_results(
    lines: Sequence[SlideReport],
    counts: dict[str, int],
    left_behind: Mapping[str, int],
    state: SubmissionState,
    log: Log,
) -> None:
    for member in state.members:
        for note in member.notes:
            log(f"member {member.name}: {note}")
    for row in records.table(lines):
        log(row)
    scored = state.scored_patients()
    unit = state.competition.unit
    missing = [one for one in state.ids if one not in scored]
    if missing:
        log(f"{unit}s at the fallback: {', '.join(missing)}")
    if left_behind:
        named = ", ".join(f"{pid} ({image_id})" for image_id, pid in left_behind.items())
        log(f"left behind, as they do not end when killed: processes {named}; they end when their disk answers")
    strangers = sorted(scored - set(state.ids))
    if strangers:
        log(f"{unit}s scored, but missing from the sample submission, so not in the output: {', '.join(strangers)}")
    if state.unwritten is not None:
        log(f"{state.path}: not the latest: {state.unwritten.sentence}")
    by_state = ", ".join(f"{count} {name}" for name, count in counts.items())
    log(f"{many(len(lines), 'slide')}: {by_state}; {len(state.ids) - len(missing)} of {len(state.ids)} {unit}s scored")


def _write_page(settings: RunSettings, started: float, log: Log) -> None:
    """Write report.html if there is time; a failure is one log line and does not fail the run."""
    path, later = settings.run_dir / records.PAGE, f"make it with: clotkit report {settings.run_dir}"
    if time.monotonic() >= started + settings.deadline_s:
        log(f"{path}: not made, the deadline has passed; {later}")
        return
    try:
        write_page(settings.run_dir)
    except Exception as error:  # noqa: BLE001 - the page is not worth the run
        log(f"{path}: not made: {described(error)}; {later}")
