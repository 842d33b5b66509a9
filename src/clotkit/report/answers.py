"""Read the answers of a run's submission, in any form, for its report page."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from clotkit.competitions import Form, Unit
from clotkit.splits.identity import without_suffix
from clotkit.submission.writing import read_probabilities

Word = TypeVar("Word", bound=StrEnum)


@dataclass(frozen=True)
class Answers:
    """The answers of a submission by id, in its order; all empty if it cannot be read."""

    form: Form
    unit: Unit  # what an id stands for
    classes: Sequence[str]
    columns: Sequence[str] = ()  # of the answer, as the file names them
    ids: Sequence[str] = ()
    rows: Mapping[str, Sequence[float]] = field(default_factory=dict)  # [C]; of labels those of the ids with a score
    labels: Mapping[str, str] = field(default_factory=dict)  # empty for the forms of probabilities

    def key(self, one: str) -> str:
        """Return the patient id or image id of an id, which may be a file name."""
        return without_suffix(one) if self.unit is Unit.IMAGE else one


def read_answers(path: Path | None, scoring: Mapping[str, Any]) -> Answers:
    """Return the answers in a submission.

    Args:
        path: The submission; None: there is none.
        scoring: `scoring` of run.json; empty in a run of an older kit, whose form is probabilities of patients.
    """
    form = word(scoring.get("form"), Form.PROBABILITIES)
    unit = word(scoring.get("unit"), Unit.PATIENT)
    header, table = _table(path)
    classes = [str(name) for name in scoring.get("classes") or header[1:]]
    none = Answers(form, unit, classes)
    at = header.index(scoring["id"]) if scoring.get("id") in header else 0
    columns = [name for index, name in enumerate(header) if index != at]
    if columns and sorted(columns) == sorted(scoring.get("columns") or ()):
        columns = list(scoring["columns"])  # the sample may have them in another order
    ids = [row[at] for row in table]
    cells = [[row[header.index(name)] for name in columns] for row in table]
    if form is Form.LABEL:
        labels = dict(zip(ids, (row[0] for row in cells), strict=True)) if columns else {}
        rows = read_probabilities(path, scoring.get("id") or header[at], classes) if path and header else {}
        return Answers(form, unit, classes, columns, ids, rows, labels)
    try:
        rows = dict(zip(ids, (_row(row, form) for row in cells), strict=True))
    except ValueError:
        return none
    sound = all(len(row) == len(columns) + (form is Form.PROBABILITY) and sum(row) > 0 for row in rows.values())
    return Answers(form, unit, classes, columns, ids, rows) if rows and sound else none


def word(value: Any, otherwise: Word) -> Word:
    """Return the word of an enum that a file has, or `otherwise`: the file may be of any kit, or damaged."""
    return next((one for one in type(otherwise) if one == value), otherwise)


def _row(cells: Sequence[str], form: Form) -> list[float]:
    values = [float(cell) for cell in cells]
    return [1 - values[0], values[0]] if form is Form.PROBABILITY else values


def _table(path: Path | None) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table; both empty if it cannot be read."""
    if path is not None:
        with suppress(OSError, ValueError, csv.Error), path.open(newline="", encoding="utf-8") as file:
            table = [row for row in csv.reader(file) if row]
            if table and all(len(row) == len(table[0]) for row in table) and len(set(table[0])) == len(table[0]):
                return table[0], table[1:]
    return [], []
