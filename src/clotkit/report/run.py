"""Read the folder of a run, for its report page."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.aliases import PICTURE_FIELDS, renamed
from clotkit.errors import UsageError
from clotkit.report import records
from clotkit.report.records import SlideReport
from clotkit.report.sidecar import sidecar_places


@dataclass(frozen=True)
class Run:
    """The contents of a run's folder."""

    folder: Path
    facts: Mapping[str, Any]  # run.json; empty if there is none
    lines: Sequence[SlideReport]  # report.jsonl, by image id
    places: Mapping[str, int]  # by image id: the offset of its line in slides.jsonl, bytes
    submission: Path | None
    classes: Sequence[str]
    rows: Mapping[str, Sequence[float]]  # of the submission: a probability per class, by patient; empty if unreadable

    @property
    def last(self) -> str:
        """The name of the last class, whose probability is shown."""
        return str(self.classes[-1]) if self.classes else "the last class"

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
        """Return how many patients the sample has and how many are scored.

        A run of an older kit has no counts; they are then taken from its lines.
        """
        counts = mapping(self.facts.get("patients"))
        if counts:
            return int(counts.get("asked", 0)), int(counts.get("scored", 0))
        scored = {line.patient_id for line in self.lines if line.p}
        return len(self.rows), len(scored & set(self.rows))

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
    submission = _submission(run_dir, mapping(facts.get("scoring")).get("submission"))
    header, rows = _read_rows(submission)
    classes = mapping(facts.get("scoring")).get("classes") or header[1:]
    lines.sort(key=lambda line: line.image_id)
    return Run(run_dir, facts, lines, sidecar_places(run_dir / records.SLIDES), submission, classes, rows)


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


def _read_rows(path: Path | None) -> tuple[list[str], dict[str, list[float]]]:
    """Return the header and the rows of a submission; both empty if it cannot be read."""
    if path is None:
        return [], {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = [row for row in csv.reader(file) if row]
        rows = {row[0]: [float(value) for value in row[1:]] for row in table[1:]}
    except (OSError, ValueError, csv.Error):
        return [], {}
    sound = table and all(len(row) == len(table[0]) - 1 and sum(row) > 0 for row in rows.values())
    return (table[0], rows) if sound else ([], {})
