"""Read the folder of a run, for its report page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.aliases import PICTURE_FIELDS, renamed
from clotkit.competitions import Unit
from clotkit.errors import UsageError
from clotkit.report import records
from clotkit.report.answers import Answers, read_answers, word
from clotkit.report.records import SlideReport
from clotkit.report.shown import Kind, Shown
from clotkit.report.sidecar import sidecar_places


@dataclass(frozen=True)
class Run:
    """The contents of a run's folder."""

    folder: Path
    facts: Mapping[str, Any]  # run.json; empty if there is none
    lines: Sequence[SlideReport]  # report.jsonl, by image id
    places: Mapping[str, int]  # by image id: the offset of its line in slides.jsonl, bytes
    submission: Path | None
    answers: Answers  # of the submission

    @property
    def by_image(self) -> bool:
        """True if a row of the submission stands for one slide."""
        return self.answers.unit is Unit.IMAGE

    @property
    def shown(self) -> Shown:
        """The number that the page draws of a slide; of an older kit, the probability of the last class."""
        return Shown(word(self.scoring.get("shown"), Kind.LAST), tuple(self.answers.classes))

    def row_of(self, line: SlideReport) -> str:
        """Return the patient or the image that a slide's line counts for in the submission."""
        return line.image_id if self.by_image else line.patient_id

    @property
    def scoring(self) -> Mapping[str, Any]:
        """The facts of the competition; empty in a run of an older kit."""
        return mapping(self.facts.get("scoring"))

    @property
    def members(self) -> dict[str, Mapping[str, Any]]:
        """The facts of each member; empty for a member that only the slides' lines name."""
        known = {name: mapping(value) for name, value in mapping(self.facts.get("members")).items()}
        return known | {name: {} for line in self.lines for name in line.p if name not in known}

    def patients(self) -> tuple[int, int]:
        """Return how many patients or images the sample has, and how many are scored.

        A run of an older kit has no counts; they are then taken from its lines.
        """
        counts = mapping(self.facts.get("patients"))
        if counts:
            return int(counts.get("asked", 0)), int(counts.get("scored", 0))
        scored, ids = {self.row_of(line) for line in self.lines if line.p}, set(map(self.answers.key, self.answers.ids))
        return len(ids), len(scored & ids)

    def sidecar_line(self, image_id: str) -> Mapping[str, Any]:
        """Return a slide's line of slides.jsonl. Raises KeyError, OSError or ValueError if it has none."""
        with (self.folder / records.SLIDES).open("rb") as file:
            file.seek(self.places[image_id])
            line = mapping(json.loads(file.readline()))
        return dict(line) | {"picture": renamed(mapping(line.get("picture")), PICTURE_FIELDS)}


def read_run(run_dir: Path) -> Run:
    """Read a run's folder. Raises UsageError if it holds no run, or its report or run.json cannot be read."""
    if not (run_dir / records.REPORT).is_file():
        raise UsageError(f"{run_dir}: no run here: {records.REPORT} is missing; name the --out of a clotkit run")
    try:
        lines = records.read_report(run_dir / records.REPORT)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{run_dir / records.REPORT}: not the report of a run: {error}; run again") from error
    facts = _read_facts(run_dir / records.RUN)
    scoring = mapping(facts.get("scoring"))
    submission = _submission(run_dir, scoring.get("submission"))
    lines.sort(key=lambda line: line.image_id)
    places = sidecar_places(run_dir / records.SLIDES)
    return Run(run_dir, facts, lines, places, submission, read_answers(submission, scoring))


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a dict, an empty dict otherwise: the files may be of any kit, or damaged."""
    return value if isinstance(value, dict) else {}


def _read_facts(path: Path) -> Mapping[str, Any]:
    """Return the contents of run.json; an empty dict if there is none."""
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; run again") from error


def _submission(run_dir: Path, name: Any) -> Path | None:
    """Return the run's submission: the file of that name, or the one table of a run of an older kit."""
    if name:
        path = run_dir / Path(str(name)).name
        return path if path.is_file() else None
    return next(iter(sorted(run_dir.glob("*.csv"))), None)
