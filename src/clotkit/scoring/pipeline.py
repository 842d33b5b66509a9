"""The run: slides of a test split in, submission.csv out, one report line a slide."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from clotkit import __version__
from clotkit.competitions import Competition
from clotkit.engines import Backend
from clotkit.errors import ClotkitError, ClusterError, ConfigError, UsageError, one_line
from clotkit.files import atomic_write_json, sha256
from clotkit.members.blending import COVARIATES
from clotkit.members.ensemble import ENSEMBLE, Ensemble, Probabilities, blend, patient_mean, read_ensemble
from clotkit.members.folder import OUT_OF_FOLD, find_members
from clotkit.members.loading import Member, load_member
from clotkit.progress import Log, progress
from clotkit.reasons import Cause, Reason
from clotkit.report import page, records
from clotkit.report.records import SlideReport
from clotkit.report.shift import read_out_of_fold
from clotkit.report.sidecar import Trace, kept_lines, sidecar_line
from clotkit.scoring.budget import Pace, again
from clotkit.scoring.prefetch import ahead
from clotkit.scoring.scorer import Scored, Scorer, tilings_of
from clotkit.scoring.submission import write_submission
from clotkit.splits import SlideRow, in_store, kind_of, read_sample_ids, read_slides
from clotkit.stores import Place
from clotkit.workers import (
    Ended,
    Limits,
    Task,
    Tiles,
    Work,
    as_it_is,
    check_limits,
    peak_mb,
    set_oom_score,
    stream,
    tile_task,
)

PACKAGES = ("numpy", "keras", "tensorflow", "pyvips", "openslide-python", "imagecodecs", "simplejpeg")
STALL_S = 120.0  # the largest slide's first batch takes 15 s on a slow core
CLOSING_S, CLOSING_SHARE = 2.0, 0.05  # of the deadline, kept for the last writes


@dataclass(frozen=True)
class RunSettings:
    """What a run is asked to do; `deadline_s` counts from its start. `resume`: go on from the report that is there."""

    split_dir: Path
    weights_dir: Path
    run_dir: Path
    deadline_s: float
    memory_mb: int
    jobs: int
    resume: bool = False
    stall_s: float = STALL_S
    source: Place | None = None  # where the slides are, if not in split_dir, which then has the tables alone
    weights_source: Place | None = None  # the same of weights_dir: what the workers of a cluster are told
    backend: Backend | None = None  # None: this process


def run(settings: RunSettings, competition: Competition, log: Log = print, work: Work = tile_task) -> dict[str, int]:
    """Score a test split and return how many slides ended done, partial and fallback.

    RUN_DIR gets submission.csv (all fallback before anything heavy is imported, rewritten as slides finish),
    report.jsonl, slides.jsonl, run.json and, at the end, report.html. `work` is what a slide's process does: the seam
    for other engines and for faults. Where patients of the sample have no score, or the disk took no more and an older
    submission stands, the counts have the entries `unscored` and `unwritten` besides.
    Raises SplitError, ConfigError or UsageError before anything is written; no slide and no member makes it raise.
    """
    started = time.monotonic()
    slides = read_slides(settings.split_dir, "test", competition, log)
    slides = in_store(slides, settings.split_dir, settings.source or settings.split_dir)
    ids = read_sample_ids(competition.sample_path(settings.split_dir), competition)
    ensemble, folders = find_ensemble(settings.weights_dir, competition)
    _check_settings(settings)
    key = _key(competition, slides, folders, settings.weights_dir)
    earlier = _earlier(settings, key, log)
    patient_of = {slide.image_id: slide.patient_id for slide in slides}
    board = _Board(settings.run_dir / competition.files.submission, competition, ids, patient_of, log)
    _make_run_dir(settings.run_dir, competition.files.submission, board, resume=bool(earlier))
    set_oom_score(500)

    board.ensemble = ensemble
    left_out = dict[str, Cause]()
    board.members = members = _load(folders, competition, log, ensemble, left_out)
    facts = {"key": key} | _facts(settings, competition, members, folders, left_out)
    _publish(settings.run_dir / records.RUN, {"state": "running"} | facts, board)
    _say_what_there_is(settings, slides, ids, members, log)
    lines: list[SlideReport] = []
    known = {line.image_id for line in earlier}
    left = [slide for slide in slides if slide.image_id not in known]
    with (
        _report_file(settings.run_dir, earlier) as file,
        _Sidecar(settings.run_dir / records.SLIDES, known, len(slides), started, log) as sidecar,
        progress(len(slides), log) as advance,
    ):
        for line in earlier:
            board.take(line, {name: np.array(values) for name, values in line.p.items()})
        score = _score if settings.backend is None else partial(_score_afar, log=log)
        for line, means, trace in score(left, members, settings, competition, started, work):
            if means:
                board.take(line, means)
                board.publish()
            board.attempt(partial(file.add, line))
            sidecar.add(line, trace)
            lines.append(line)
            advance(_said(line), False)

    lines = [*earlier, *lines]
    counts = records.counts(lines)
    board.publish()
    for member in members:
        for note in member.notes:
            log(f"member {member.name}: {note}")
    _close(lines, counts, board, log)
    seconds = time.monotonic() - started
    _publish(settings.run_dir / records.RUN, facts | _outcome(counts, seconds, board), board)
    _make_page(settings.run_dir, started + settings.deadline_s, log)
    return counts | board.falls_short()


def _score(
    slides: Sequence[SlideRow],
    members: Sequence[Member],
    settings: RunSettings,
    competition: Competition,
    started: float,
    work: Work,
) -> Iterator[Scored]:
    """A line, the mean a member and a trace for each slide: smallest file first, then the lost ones once more."""
    scorer = Scorer(members, {slide.image_id: slide.patient_id for slide in slides}, competition.limits.min_tiles)
    ordered = sorted(slides, key=lambda slide: slide.size_bytes)
    tasks = [Task(slide.image_id, slide.path, tilings_of(members), stored=slide.stored) for slide in ordered]
    deadline = _last_begun(settings, started)
    limits = Limits(competition.limits.slide_s, settings.memory_mb, deadline, settings.stall_s)
    pace = Pace(len(tasks), deadline, competition.limits.min_tiles)
    if not members:
        yield from (
            _ended(scorer, Ended(task, "no member could be loaded", 0.0, 0.0, Reason.NO_MEMBER)) for task in tasks
        )
        return
    lost: list[Ended] = []
    for event in ahead(partial(stream, tasks, limits, settings.jobs, work, pace.prepare)):
        if isinstance(event, Tiles):
            scorer.add(event)
            continue
        pace.ended()
        if event.lost and time.monotonic() < deadline:
            scorer.postpone(event)
            lost.append(event)
        else:
            yield _ended(scorer, event)
    for event in ahead(partial(stream, [again(end.task) for end in lost], limits, 1, work, as_it_is)):
        if isinstance(event, Tiles):
            scorer.add(event)
        else:
            yield _ended(scorer, event)


def _score_afar(
    slides: Sequence[SlideRow],
    members: Sequence[Member],
    settings: RunSettings,
    competition: Competition,
    started: float,
    work: Work,
    log: Log,
) -> Iterator[Scored]:
    """The same on a cluster. Raises ClusterError where that is gone; what was scored stands."""
    from clotkit.scoring.remote import Terms, score_afar

    weights = settings.weights_source or settings.weights_dir
    limits = settings.memory_mb, settings.stall_s, _last_begun(settings, started)
    assert settings.backend is not None
    try:
        yield from score_afar(slides, members, Terms(weights, competition, *limits, work), settings.backend, log)
    except ClusterError as error:
        raise ClusterError(f"{error}; what was scored stands, the same command with --resume goes on") from error


def _last_begun(settings: RunSettings, started: float) -> float:
    """When no slide is begun any more, a time.monotonic() value: some of the deadline is for the last writes."""
    return started + settings.deadline_s - min(CLOSING_S, CLOSING_SHARE * settings.deadline_s)


def _ended(scorer: Scorer, event: Ended) -> Scored:
    if event.task.stored is not None:
        event.task.path.unlink(missing_ok=True)  # it was fetched for this
    return scorer.scored(event)


class _Sidecar:
    """slides.jsonl while a run writes it: whatever keeps it from a line costs the pictures alone, and is said once."""

    def __init__(self, path: Path, kept: set[str], slides: int, started: float, log: Log) -> None:
        """Start it anew, with the lines that are there of the slides that are `kept`."""
        self.path, self._slides, self._started, self._log = path, slides, started, log
        self._file: records.LinesFile | None = None
        self._part, self._said = 1, False
        self._attempt(partial(self._open, kept))

    def add(self, line: SlideReport, trace: Trace) -> None:
        """Append what a slide left besides its line."""
        file = self._file
        if file is not None:
            self._attempt(lambda: file.append(sidecar_line(line, trace, self._slides, self._started, self._part)))

    def _open(self, kept: set[str]) -> None:
        lines, self._part = kept_lines(self.path, kept)
        self._file = records.LinesFile(self.path, lines, durable=False)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on without pictures
            if not self._said:
                self._log(f"{self.path}: {_why(error)}; the report will be without some pictures, the run goes on")
            self._said = True

    def __enter__(self) -> "_Sidecar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _make_page(run_dir: Path, deadline: float, log: Log) -> None:
    """Write report.html, if there is time; whatever keeps it from that is one line, and the run is what it is."""
    later = f"clotkit report {run_dir} makes it"
    if time.monotonic() >= deadline:
        log(f"{run_dir / records.PAGE}: not made, the deadline has come; {later}")
        return
    try:
        page.write_page(run_dir)
    except Exception as error:  # noqa: BLE001 - a page about the run is not worth the run
        log(f"{run_dir / records.PAGE}: not made: {_why(error)}; {later}")


def _why(error: Exception) -> str:
    known = isinstance(error, ClotkitError | OSError)
    return one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"


@dataclass
class _Board:
    """The scores so far, and the submission that follows from them."""

    path: Path
    competition: Competition
    ids: Sequence[str]
    patient_of: dict[str, str]  # the patient of each slide
    log: Log
    members: Sequence[Member] = ()
    ensemble: Ensemble | None = None
    sizes: dict[str, dict[str, float]] = field(default_factory=dict)  # of slides, for an ensemble that asks for them
    scored: dict[str, dict[str, Probabilities]] = field(default_factory=dict)
    unwritten: Cause | None = None  # why the last attempt to write failed

    def take(self, line: SlideReport, means: dict[str, Probabilities]) -> None:
        """Take a slide's mean a member, and what its line says of its size."""
        self.scored[line.image_id] = means
        self.sizes[line.image_id] = {name: line.facts[name] for name in COVARIATES if name in line.facts}

    def publish(self) -> None:
        """Write the submission: patients with a scored slide, the fallback for the others."""
        self.attempt(self.write)

    def write(self) -> None:
        """The same; raises OSError where it cannot be written. What was there before then stands."""
        write_submission(self.path, self.competition, self.ids, self.known())

    def known(self) -> dict[str, Sequence[float]]:
        """The probabilities of every patient with a scored slide."""
        if self.ensemble is not None:
            return dict(self.ensemble.apply(self.scored, self.patient_of, self.sizes))
        calibrations = {member.name: member.calibration for member in self.members}
        patients = patient_mean(self.scored, self.patient_of)
        return {patient: blend(means, calibrations) for patient, means in patients.items()}

    def attempt(self, write: Callable[[], None]) -> None:
        """Write something; where the disk says no, say so once and go on: the next slide may find room."""
        try:
            write()
        except OSError as error:
            if self.unwritten is None:
                self.log(f"{self.path.parent}: {error.strerror}; what was written before stands, the run goes on")
            self.unwritten = Cause(Reason.NOT_WRITTEN, str(error.strerror))
        else:
            self.unwritten = None

    def falls_short(self) -> dict[str, int]:
        """What makes the file less than the slides' states say: patients without a score, a write that failed."""
        found = {"unscored": len(set(self.ids) - self.patients()), "unwritten": int(self.unwritten is not None)}
        return {name: count for name, count in found.items() if count}

    def patients(self) -> set[str]:
        """The patients with at least one scored slide."""
        return {self.patient_of[image_id] for image_id, means in self.scored.items() if means}


def find_ensemble(weights_dir: Path, competition: Competition) -> tuple[Ensemble | None, list[Path]]:
    """The ensemble of a folder, if there is one, and its members' folders; of a folder without one, all that it has.

    Raises ConfigError where there is no member, or an ensemble that cannot be read or has none of its members.
    """
    ensemble, folders = read_ensemble(weights_dir, competition), find_members(weights_dir)
    if ensemble is None:
        return None, folders
    wanted = ensemble.committee.members
    found = [folder for folder in folders if folder.name in wanted]
    if not found:
        raise ConfigError(
            f"{weights_dir / ENSEMBLE}: blends {', '.join(wanted)}; found beside it: "
            f"{', '.join(folder.name for folder in folders)}; put its members there"
        )
    return ensemble, found


def _load(
    folders: Sequence[Path],
    competition: Competition,
    log: Log,
    ensemble: Ensemble | None,
    left_out: dict[str, Cause],
) -> list[Member]:
    """The members that can be loaded; the others are left out, each with a line, and the rest stand in for them.

    `left_out` is given why each of them is, by name.
    """
    members = []
    pools = ensemble.tile_pools if ensemble else {}
    for name in ensemble.committee.members if ensemble else ():
        if name not in {folder.name for folder in folders}:
            left_out[name] = Cause(Reason.MISSING, "its folder is missing")
    for folder in folders:
        try:
            member = load_member(folder, competition.classes.names)
            members.append(replace(member, tile_pool=pools.get(member.name, "")))
        except ClotkitError as error:
            left_out[folder.name] = Cause(error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - a member costs itself, whatever its file makes a library do
            left_out[folder.name] = Cause(Reason.FAILED, f"{type(error).__name__}: {one_line(error)}")
    for name, cause in left_out.items():
        log(f"member {name} left out: {cause.sentence}")
    return members


def _key(competition: Competition, slides: Sequence[SlideRow], folders: Sequence[Path], weights_dir: Path) -> str:
    """What a report belongs to: the same competition, slides and weights."""
    parts = [competition.slug, *sorted(f"{slide.image_id} {slide.size_bytes}" for slide in slides)]
    for folder in folders:
        parts += [f"{path.name} {path.stat().st_size} {folder.name}" for path in sorted(folder.iterdir())]
    parts += filter(None, [_ensemble_sha256(weights_dir)])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _ensemble_sha256(weights_dir: Path) -> str | None:
    path = weights_dir / ENSEMBLE
    return sha256(path) if path.is_file() else None


def _earlier(settings: RunSettings, key: str, log: Log) -> list[SlideReport]:
    """The lines of the run that is gone on with; none where there is no such run, or it was another one."""
    if not settings.resume:
        return []
    try:
        if json.loads((settings.run_dir / records.RUN).read_text(encoding="utf-8")).get("key") != key:
            log(f"{settings.run_dir}: holds the report of another run; this one starts afresh")
            return []
        lines = records.read_report(settings.run_dir / records.REPORT)
    except (OSError, ValueError, ClotkitError):
        return []
    log(f"{len(lines)} slides are done already: going on from {settings.run_dir / records.REPORT}")
    return lines


def _report_file(run_dir: Path, kept: Sequence[SlideReport]) -> records.ReportFile:
    try:
        return records.ReportFile(run_dir / records.REPORT, kept)
    except OSError as error:
        raise UsageError(
            f"{run_dir / records.REPORT}: cannot be written: {error.strerror}; name another folder"
        ) from error


def _publish(path: Path, value: dict[str, Any], board: _Board) -> None:
    board.attempt(lambda: atomic_write_json(path, value))


def _say_what_there_is(
    settings: RunSettings, slides: Sequence[SlideRow], ids: Sequence[str], members: Sequence[Member], log: Log
) -> None:
    strangers = sorted({slide.patient_id for slide in slides} - set(ids))
    if strangers:
        log(f"patients that the sample submission does not ask for: {', '.join(strangers)}")
    names = ", ".join(member.name for member in members) or "none: everything stays at the fallback"
    log(f"{len(slides)} {kind_of(settings.split_dir)}slides, {len(ids)} patients, members: {names}")


def _check_settings(settings: RunSettings) -> None:
    check_limits(settings.jobs, settings.memory_mb)
    if settings.deadline_s <= 0:
        raise UsageError(f"--deadline is {settings.deadline_s:g} s; more than 0 is needed")


def _make_run_dir(run_dir: Path, submission: str, board: _Board, resume: bool) -> None:
    """Make RUN_DIR, or take one that a run has used, with a submission in it; refuse one that holds something else."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in records.FILES:  # a publication that a kill cut short
            stem, _, suffix = name.partition(".")
            for path in run_dir.glob(f".{stem}.*.{suffix}"):
                path.unlink()
        foreign = sorted(path.name for path in run_dir.iterdir() if path.name not in {submission, *records.FILES})
        if foreign and not (run_dir / records.REPORT).exists() and not (run_dir / submission).exists():
            raise UsageError(f"{run_dir}: holds {foreign[0]}, which no run wrote; name an empty or a new folder")
        if not resume:  # then the one that is there is the better one until more is known
            board.write()
            for name in (records.RUN, records.SLIDES):
                (run_dir / name).unlink(missing_ok=True)
        (run_dir / records.PAGE).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{run_dir}: cannot be used as a run folder: {error.strerror}; name another") from error


def _said(line: SlideReport) -> str:
    why = f": {line.reason}" if line.reason else ""
    return f"{line.image_id} {line.state}, {line.tiles} tiles, {line.seconds:.1f} s{why}"


def _close(lines: Sequence[SlideReport], counts: dict[str, int], board: _Board, log: Log) -> None:
    for row in records.table(lines):
        log(row)
    scored = board.patients()
    missing = [patient for patient in board.ids if patient not in scored]
    if missing:
        log(f"patients at the fallback: {', '.join(missing)}")
    if board.unwritten is not None:
        log(f"{board.path}: not the latest: {board.unwritten.sentence}")
    log(
        f"{len(lines)} slides: "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
        + f"; {len(board.ids) - len(missing)} of {len(board.ids)} patients scored"
    )


def _facts(
    settings: RunSettings,
    competition: Competition,
    members: Sequence[Member],
    folders: Sequence[Path],
    left_out: dict[str, Cause],
) -> dict[str, Any]:
    """What run.json says of a run from its start on; the weights may be gone when its page is made."""
    classes, where = competition.classes, {folder.name: folder for folder in folders}
    out_of_fold = {name: read_out_of_fold(folder / OUT_OF_FOLD, classes.names[-1]) for name, folder in where.items()}
    return {
        "clotkit": __version__,
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "competition": competition.slug,
        "scoring": {
            "title": competition.title,
            "submission": competition.files.submission,
            "classes": list(classes.names),
            "weights": list(classes.weights),
            "fallback": list(classes.fallback),
            "clip": competition.metric.clip,
        },
        "synthetic": bool(kind_of(settings.split_dir)),
        "arguments": {
            "split": str(settings.source or settings.split_dir),
            "weights": str(settings.weights_source or settings.weights_dir),
            "deadline_s": settings.deadline_s,
            "memory_mb": settings.memory_mb,
            "jobs": settings.jobs,
        },
        "members": {
            member.name: {
                "recipe": member.recipe.name,
                "weights_sha256": member.weights_sha256,
                "notes": member.notes,
                "calibration": member.calibration.to_json(),
                "tile_pool": member.tile_pool,
                "out_of_fold": None if (found := out_of_fold[member.name]) is None else found.to_json(),
            }
            for member in members
        },
        "left_out": {name: cause.sentence for name, cause in left_out.items()},
        "left_out_codes": {name: cause.code for name, cause in left_out.items()},
        "ensemble": _ensemble_sha256(settings.weights_dir),
    }


def _outcome(counts: dict[str, int], seconds: float, board: _Board) -> dict[str, Any]:
    """What run.json says of a run once it has ended."""
    return {
        "state": "ended",
        "seconds": round(seconds, 1),
        "peak_mb": round(peak_mb(), 1),
        "slides": counts,
        "patients": {"asked": len(board.ids), "scored": len(set(board.ids) & board.patients())},
        "unwritten": board.unwritten.sentence if board.unwritten else "",
        "unwritten_code": board.unwritten.code if board.unwritten else None,
        "submission_sha256": sha256(board.path),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"
