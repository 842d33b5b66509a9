"""The run: slides of a test split in, submission.csv out, one report line a slide."""

import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clotkit import __version__
from clotkit.competitions import Competition
from clotkit.config import TilingConfig
from clotkit.errors import UsageError
from clotkit.files import publish_json, sha256
from clotkit.infer import report
from clotkit.infer.ensemble import Probabilities, blend, patient_mean
from clotkit.infer.submission import write_submission
from clotkit.infer.workers import Ended, Limits, Task, Tiles, Work, set_oom_score, stream, tile_task
from clotkit.learn.models import Member, find_members, load_member
from clotkit.splits import kind_of, read_sample_ids, read_slides

PACKAGES = ("numpy", "keras", "tensorflow", "pyvips", "openslide-python", "imagecodecs", "simplejpeg")
Log = Callable[[str], None]


@dataclass(frozen=True)
class RunSettings:
    """What a run is asked to do; `deadline_s` counts from its start."""

    split_dir: Path
    weights_dir: Path
    run_dir: Path
    deadline_s: float
    memory_mb: int
    jobs: int


@dataclass
class _Tally:
    """What has come of one slide so far: a sum of probabilities and a count of tiles for each tiling's members."""

    sums: dict[str, Probabilities] = field(default_factory=dict)
    tiles: dict[str, int] = field(default_factory=dict)

    def add(self, member: str, probabilities: npt.NDArray[np.float32]) -> None:
        self.sums[member] = self.sums.get(member, 0) + probabilities.sum(axis=0, dtype=np.float64)
        self.tiles[member] = self.tiles.get(member, 0) + len(probabilities)

    def means(self) -> dict[str, Probabilities]:
        return {member: total / self.tiles[member] for member, total in self.sums.items()}


def run(settings: RunSettings, competition: Competition, log: Log = print, work: Work = tile_task) -> dict[str, int]:
    """Score a test split and return how many slides ended done, partial and fallback.

    RUN_DIR gets submission.csv (all fallback before anything heavy is imported, rewritten as slides finish),
    report.jsonl and run.json. `work` is what a slide's process does: the seam for other engines and for faults.
    Raises SplitError, ConfigError or UsageError before anything is written; no slide makes it raise.
    """
    started = time.monotonic()
    slides = read_slides(settings.split_dir, "test", competition)
    ids = read_sample_ids(competition.sample_path(settings.split_dir), competition)
    folders = find_members(settings.weights_dir)
    _check_settings(settings)
    _make_run_dir(settings.run_dir, competition.files.submission)
    patient_of = {slide.image_id: slide.patient_id for slide in slides}
    board = _Board(settings.run_dir / competition.files.submission, competition, ids, patient_of)
    board.publish()
    set_oom_score(500)

    board.members = members = [load_member(folder, competition.classes.names) for folder in folders]
    names = ", ".join(member.name for member in members)
    log(f"{len(slides)} {kind_of(settings.split_dir)}slides, {len(ids)} patients, members: {names}")
    tilings = tuple(dict.fromkeys(member.recipe.tiling for member in members))
    tasks = [Task(slide.image_id, slide.path, tilings) for slide in sorted(slides, key=lambda slide: slide.size_bytes)]
    limits = Limits(competition.limits.slide_s, settings.memory_mb, started + settings.deadline_s)
    lines: list[report.SlideReport] = []
    with report.ReportFile(settings.run_dir / report.REPORT) as file, _progress(len(tasks), log) as advance:
        events = stream(tasks, limits, settings.jobs, work)
        for line, means in _score(events, members, tilings, patient_of, competition):
            if means:
                board.add(line.image_id, means)
            file.add(line)
            lines.append(line)
            advance(line)

    counts = report.counts(lines)
    _close(lines, counts, ids, board.patients(), log)
    publish_json(
        settings.run_dir / report.RUN, _facts(settings, competition, members, counts, time.monotonic() - started)
    )
    return counts


@dataclass
class _Board:
    """The scores so far, and the submission that follows from them."""

    path: Path
    competition: Competition
    ids: Sequence[str]
    patient_of: dict[str, str]
    members: Sequence[Member] = ()
    scored: dict[str, dict[str, Probabilities]] = field(default_factory=dict)

    def add(self, image_id: str, means: dict[str, Probabilities]) -> None:
        """Take a slide's mean a member, and publish."""
        self.scored[image_id] = means
        self.publish()

    def publish(self) -> None:
        """Write the submission: patients with a scored slide, the fallback for the others."""
        calibrations = {member.name: member.calibration for member in self.members}
        patients = patient_mean(self.scored, self.patient_of)
        known = {patient: blend(means, calibrations) for patient, means in patients.items()}
        write_submission(self.path, self.competition, self.ids, known)

    def patients(self) -> set[str]:
        """The patients with at least one scored slide."""
        return {self.patient_of[image_id] for image_id in self.scored}


def _score(
    events: Iterator[Tiles | Ended],
    members: Sequence[Member],
    tilings: Sequence[TilingConfig],
    patient_of: dict[str, str],
    competition: Competition,
) -> Iterator[tuple[report.SlideReport, dict[str, Probabilities]]]:
    """Predict batches as they come; at each slide's end yield its line and its mean a member (none for a fallback)."""
    tallies: dict[str, _Tally] = {}
    for event in events:
        tally = tallies.setdefault(event.image_id, _Tally())
        if isinstance(event, Tiles):
            for member in members:
                if member.recipe.tiling == tilings[event.tiling]:
                    tally.add(member.name, member.predict(event.batch.tiles))
            continue
        state, reason = _judge(event, tally, len(members), competition.limits.min_tiles)
        means = {} if state == "fallback" else tally.means()
        yield (
            report.SlideReport(
                image_id=event.image_id,
                patient_id=patient_of[event.image_id],
                state=state,
                reason=reason,
                tiles=sum(tally.tiles.values()),
                seconds=round(event.seconds, 2),
                peak_mb=round(event.peak_mb, 1),
                p={name: [round(float(value), 6) for value in mean] for name, mean in means.items()},
                facts=event.facts,
            ),
            means,
        )
        del tallies[event.image_id]


def _judge(
    ended: Ended, tally: _Tally, members: int, min_tiles: int
) -> tuple[Literal["done", "partial", "fallback"], str]:
    """A slide's state and reason: what came before a crash counts when every member saw enough of it."""
    if not all(np.isfinite(total).all() for total in tally.sums.values()):
        return "fallback", "a member returned NaN"
    if not ended.reason and tally.tiles:
        return "done", ""
    if len(tally.tiles) == members and min(tally.tiles.values()) >= min_tiles:
        return "partial", ended.reason
    return "fallback", ended.reason or "no tiles came"


def _check_settings(settings: RunSettings) -> None:
    for name, value, least in (("--jobs", settings.jobs, 1), ("--memory", settings.memory_mb, 512)):
        if value < least:
            raise UsageError(f"{name} is {value}{' MB' if name == '--memory' else ''}; at least {least} is needed")
    if settings.deadline_s <= 0:
        raise UsageError(f"--deadline is {settings.deadline_s:g} s; more than 0 is needed")


def _make_run_dir(run_dir: Path, submission: str) -> None:
    """Make RUN_DIR, or take one that a run has used; refuse a folder that holds something else."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        foreign = sorted(
            path.name for path in run_dir.iterdir() if path.name not in {submission, report.REPORT, report.RUN}
        )
        if foreign and not (run_dir / report.REPORT).exists() and not (run_dir / submission).exists():
            raise UsageError(f"{run_dir}: holds {foreign[0]}, which no run wrote; name an empty or a new folder")
        (run_dir / report.RUN).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{run_dir}: cannot be used as a run folder: {error.strerror}; name another") from error


class _progress:  # noqa: N801 - used as a function
    """A tqdm bar on a terminal, a plain line a slide elsewhere."""

    def __init__(self, total: int, log: Log) -> None:
        from tqdm import tqdm

        self._total, self._done, self._log = total, 0, log
        self._bar = tqdm(total=total, unit="slide", disable=not sys.stderr.isatty())

    def __enter__(self) -> Callable[[report.SlideReport], None]:
        return self._advance

    def _advance(self, line: report.SlideReport) -> None:
        self._done += 1
        self._bar.update()
        if self._bar.disable:
            why = f": {line.reason}" if line.reason else ""
            self._log(
                f"[{self._done}/{self._total}] {line.image_id} {line.state}, {line.tiles} tiles, "
                f"{line.seconds:.1f} s{why}"
            )

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _close(
    lines: Sequence[report.SlideReport], counts: dict[str, int], ids: Sequence[str], scored: set[str], log: Log
) -> None:
    for row in report.table(lines):
        log(row)
    missing = [patient for patient in ids if patient not in scored]
    if missing:
        log(f"patients at the fallback: {', '.join(missing)}")
    log(
        f"{len(lines)} slides: "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
        + f"; {len(ids) - len(missing)} of {len(ids)} patients scored"
    )


def _facts(
    settings: RunSettings, competition: Competition, members: Sequence[Member], counts: dict[str, int], seconds: float
) -> dict[str, Any]:
    return {
        "clotkit": __version__,
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "competition": competition.slug,
        "synthetic": bool(kind_of(settings.split_dir)),
        "arguments": {
            "split": str(settings.split_dir),
            "weights": str(settings.weights_dir),
            "deadline_s": settings.deadline_s,
            "memory_mb": settings.memory_mb,
            "jobs": settings.jobs,
        },
        "members": {
            member.name: {"recipe": member.recipe.name, "weights_sha256": member.weights_sha256} for member in members
        },
        "seconds": round(seconds, 1),
        "slides": counts,
        "submission_sha256": sha256(settings.run_dir / competition.files.submission),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"
