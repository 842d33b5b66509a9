"""submission.csv: moulded on the sample, joined by patient id, valid whenever it is on disk. Standard library only."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clotkit import metric
from clotkit.competitions import Competition
from clotkit.errors import SubmissionError
from clotkit.files import atomic_write_text
from clotkit.splits import read_sample_ids


def write_submission(
    path: Path, competition: Competition, ids: Sequence[str], probabilities: Mapping[str, Sequence[float]]
) -> None:
    """Write a submission for `ids`, in their order; one without `probabilities` (one number a class) gets the fallback.

    The file appears in one step: it is the old one or the new one at every instant.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(competition.header)
    for patient in ids:
        row = probabilities.get(patient, competition.classes.fallback)
        writer.writerow([patient, *(f"{value:.6f}" for value in row)])
    atomic_write_text(path, text.getvalue())


@dataclass
class Verdict:
    """What a check found: `problems` make Kaggle refuse or misread the file, `notes` do not; `rows` are the numbers."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: dict[str, list[float]] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """True when Kaggle can score the file."""
        return not self.problems


def check_submission(path: Path, sample: Path, competition: Competition) -> Verdict:
    """Check a submission against the sample: one problem a line, with row numbers (the header is row 1).

    Raises SubmissionError when there is no file to read, SplitError when the sample itself is wrong.
    """
    ids = read_sample_ids(sample, competition)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SubmissionError(f"{path}: cannot be read: {error.strerror}; name the file to check") from error
    verdict = Verdict()
    table = _decode(data, competition, verdict)
    if table:
        _check_table(table, ids, competition, verdict)
    if verdict.valid:
        _note_spread(competition, verdict)
    return verdict


def _decode(data: bytes, competition: Competition, verdict: Verdict) -> list[list[str]]:
    """The cells of the file; empty when nothing more can be said after the problems found here."""
    for mark, name in ((b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if data.startswith(mark):
            verdict.problems.append(f"row 1: starts with a {name} byte-order mark; save as UTF-8 without BOM")
            data = data[len(mark) :] if name == "UTF-8" else data.decode("utf-16", "replace").encode()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        verdict.problems.append(f"row {row}: byte {data[error.start]:#04x} is not UTF-8; save as UTF-8")
        text = data.decode("latin-1")
    if "\0" in text:
        row = text[: text.index("\0")].count("\n") + 1
        verdict.problems.append(f"row {row}: a NUL byte; the file is damaged or not text")
        return []
    if not text.strip():
        verdict.problems.append("the file is empty; the header and a row a patient are needed")
        return []
    try:
        return list(csv.reader(io.StringIO(text), delimiter=_delimiter(text, competition, verdict)))
    except csv.Error as error:
        verdict.problems.append(f"not a CSV table: {error}")
        return []


def _delimiter(text: str, competition: Competition, verdict: Verdict) -> str:
    first = text.splitlines()[0]
    for other, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if "," not in first and first.count(other) == len(competition.header) - 1:
            verdict.problems.append(f"row 1: columns are separated by {name}; commas are needed")
            return other
    return ","


def _check_table(table: list[list[str]], ids: Sequence[str], competition: Competition, verdict: Verdict) -> None:
    header, body = table[0], [(number, row) for number, row in enumerate(table[1:], start=2) if row]
    verdict.problems += _header_problems(header, competition.header)
    blank = [number for number, row in enumerate(table[1:], start=2) if not row]
    if blank:
        verdict.problems.append(f"row {blank[0]}: blank line ({len(blank)} in all)")
    if len(body) != len(ids):
        verdict.problems.append(f"{len(body)} rows under the header; the sample has {len(ids)}")
    if set(header) != set(competition.header) or len(header) != len(competition.header):
        return
    seen: dict[str, int] = {}
    for number, row in body:
        if len(row) != len(header):
            verdict.problems.append(f"row {number}: {len(row)} cells; the header has {len(header)}")
            continue
        cells = dict(zip(header, row, strict=True))
        patient = cells[competition.columns.patient]
        verdict.problems += _id_problems(patient, number, seen, ids, competition)
        values, problems = _numbers(cells, number, competition)
        verdict.problems += problems
        verdict.rows[patient] = values
    missing = [patient for patient in ids if patient not in seen]
    verdict.problems += [
        f"{competition.columns.patient} {patient} is missing; the sample has it" for patient in missing
    ]


def _header_problems(header: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    if list(header) == list(wanted):
        return
    if sorted(header) == sorted(wanted):
        yield f"row 1: columns in the order {','.join(header)}; the sample has {','.join(wanted)}"
        return
    for column in wanted:
        if column not in header:
            yield f"row 1: column {column} is missing; found {','.join(header)}"
    for column in header:
        if column not in wanted:
            yield f"row 1: column {column or '(empty)'} is too many; the sample has {','.join(wanted)}"
        elif header.count(column) > 1:
            yield f"row 1: column {column} stands {header.count(column)} times"


def _id_problems(
    patient: str, number: int, seen: dict[str, int], ids: Sequence[str], competition: Competition
) -> Iterator[str]:
    column = competition.columns.patient
    if patient in seen:
        yield f"row {number}: {column} {patient} again; first in row {seen[patient]}"
        return
    seen[patient] = number
    if patient in ids:
        return
    stripped = patient.strip()
    twin = next((known for known in ids if _same_number(known, stripped)), None)
    if stripped in ids:
        yield f"row {number}: {column} {patient!r} has spaces around {stripped}"
    elif twin:
        yield f"row {number}: {column} {patient} lost its form: the sample has {twin}; read ids as strings"
    else:
        yield f"row {number}: {column} {patient or '(empty)'} is not in the sample"


def _same_number(known: str, given: str) -> bool:
    """True when `given` is `known` as a table program writes it: zeros lost, a float, or 1e5 for 100000."""
    if known.lstrip("0") == given.lstrip("0"):
        return True
    if not (re.fullmatch(r"[0-9]+(e[0-9]+)?", known) and re.fullmatch(r"[0-9.]+([eE][+-]?[0-9]+)?", given)):
        return False
    try:
        return float(known) == float(given)
    except ValueError:
        return False


def _numbers(cells: Mapping[str, str], number: int, competition: Competition) -> tuple[list[float], list[str]]:
    values, problems = [], []
    for name in competition.classes.names:
        value, fault = _number(cells[name])
        values.append(value)
        if fault:
            problems.append(f"row {number}: {name} is {fault}")
    if not problems and not any(values):
        problems.append(f"row {number}: {' and '.join(competition.classes.names)} are all 0; a row must sum to more")
    return values, problems


def _number(cell: str) -> tuple[float, str]:
    """The number in a cell and, where it is none that can be scored, what it is instead."""
    if not cell.strip():
        return 0.0, "empty; a number is needed"
    try:
        value = float(cell)
    except ValueError:
        return 0.0, f"{cell!r}, not a number"
    if math.isnan(value):
        return 0.0, "NaN; a number is needed"
    if math.isinf(value):
        return 0.0, "infinite; a finite number is needed"
    return (value, f"{cell}, negative; at least 0 is needed") if value < 0 else (value, "")


def _note_spread(competition: Competition, verdict: Verdict) -> None:
    """Say what the constant scores, and what this file's spread is worth at best and at worst."""
    rows, weights, clip = list(verdict.rows.values()), competition.classes.weights, competition.metric.clip
    fallback = metric.normalised(competition.classes.fallback, clip)
    constant = metric.expected_if_noise([fallback], weights, clip)
    verdict.notes += [
        f"{len(rows)} patients; the constant {'/'.join(f'{value:g}' for value in fallback)} scores {constant:.4f}",
        f"this file: {metric.expected_if_true(rows, weights, clip):.4f} if its probabilities are true, "
        f"{metric.expected_if_noise(rows, weights, clip):.4f} if they say nothing",
    ]
    for index, name in enumerate(competition.classes.names):
        column = [metric.normalised(row, clip)[index] for row in rows]
        verdict.notes.append(f"{name}: {min(column):.4f} to {max(column):.4f}, {len(set(column))} different values")
    same = sum(metric.normalised(row, clip) == fallback for row in rows)
    if same == len(rows):
        verdict.notes.append("every row is the fallback: the file is valid and says nothing")
    elif len({tuple(row) for row in rows}) == 1 and len(rows) > 1:
        verdict.notes.append("every row is the same: the file is valid and tells no patient from another")
    elif same:
        verdict.notes.append(f"{same} of {len(rows)} rows are the fallback")
    unscaled = sum(not math.isclose(math.fsum(row), 1, abs_tol=1e-5) for row in rows)
    if unscaled:
        verdict.notes.append(f"{unscaled} rows do not sum to 1; Kaggle rescales them")
