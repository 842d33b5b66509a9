"""Write submission.csv from the sample submission, and check one against it. Standard library only.

Rows are joined by patient id, and whatever is on disk is a valid submission at every instant.
"""

import csv
import io
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from clotkit import metric
from clotkit.competitions import Competition
from clotkit.errors import SubmissionError
from clotkit.files import atomic_write_text
from clotkit.splits import read_sample_ids
from clotkit.splits.identity import same_number
from clotkit.units import many

# A number, an infinity and a missing value as pandas.read_csv reads them by default, as Kaggle's metric does. Python's
# float takes more: 1_0, full-width digits, a no-break space before a number.
NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)
INFINITY = re.compile(r"[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
NAN_WORDS = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL"}
    | {"NaN", "None", "n/a", "nan", "null"}
)


class Fault(StrEnum):
    """One kind of fault in a submission."""

    # The file.
    BYTE_ORDER_MARK = "byte_order_mark"
    ENCODING = "encoding"  # not UTF-8
    NUL_BYTE = "nul_byte"
    EMPTY_FILE = "empty_file"
    NOT_CSV = "not_csv"
    DELIMITER = "delimiter"  # semicolons, tabs or bars instead of commas
    # The header.
    COLUMN_ORDER = "column_order"
    MISSING_COLUMN = "missing_column"
    EXTRA_COLUMN = "extra_column"
    REPEATED_COLUMN = "repeated_column"
    # The rows.
    BLANK_LINE = "blank_line"
    ROW_COUNT = "row_count"
    CELL_COUNT = "cell_count"
    MISSING_PATIENT = "missing_patient"
    REPEATED_PATIENT = "repeated_patient"
    UNKNOWN_PATIENT = "unknown_patient"
    ID_WITH_SPACES = "id_with_spaces"
    ID_AS_NUMBER = "id_as_number"  # a table program read the id as a number
    # The cells.
    EMPTY_CELL = "empty_cell"
    NOT_A_NUMBER = "not_a_number"
    NAN = "nan"
    INFINITE = "infinite"
    NEGATIVE = "negative"
    ALL_ZERO = "all_zero"


@dataclass(frozen=True)
class Problem:
    """One problem that makes Kaggle refuse or misread a submission; `str()` of it is one line for people."""

    code: Fault
    text: str
    row: int | None = None  # the header is row 1; None: the file as a whole

    def __str__(self) -> str:
        """Return the line for people, with the row it is about."""
        return self.text if self.row is None else f"row {self.row}: {self.text}"


@dataclass(frozen=True)
class Expected:
    """The expected scores of a submission, lower is better."""

    calibrated: float  # if its probabilities are calibrated
    uninformative: float  # if they do not depend on the patient's class
    constant: float  # of the competition's constant fallback


@dataclass
class Verdict:
    """The result of a check: `problems` make Kaggle refuse or misread the file, `notes` do not."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: dict[str, list[float]] = field(default_factory=dict)  # a probability per class, by patient
    expected: Expected | None = None  # None: the file has problems
    fallback_rows: int = 0  # equal to the competition's constant
    distinct_rows: int = 0

    @property
    def valid(self) -> bool:
        """True if Kaggle can score the file."""
        return not self.problems

    def add(self, code: Fault, text: str, row: int | None = None) -> None:
        """Add a problem."""
        self.problems.append(Problem(code, text, row))


def write_submission(
    path: Path, competition: Competition, ids: Sequence[str], probabilities: Mapping[str, Sequence[float]]
) -> None:
    """Write a submission with one row per patient in `ids`, in their order.

    `probabilities` has one number per class; patients without an entry get the competition's fallback. The file is
    replaced in one step: a reader sees the old one or the new one, never a part.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(competition.header)
    for patient in ids:
        row = probabilities.get(patient, competition.classes.fallback)
        writer.writerow([patient, *(f"{value:.6f}" for value in row)])
    atomic_write_text(path, text.getvalue())


def check_submission(path: Path, sample: Path, competition: Competition) -> Verdict:
    """Check a submission against the sample and return every problem with its row number.

    Raises SubmissionError if the file cannot be read, SplitError if the sample itself is wrong.
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
        _add_notes(competition, verdict)
    return verdict


def _decode(data: bytes, competition: Competition, verdict: Verdict) -> list[list[str]]:
    """Return the cells of the file; an empty list if its problems leave nothing to check."""
    text = _text(data, verdict)
    if "\0" in text:
        row = text[: text.index("\0")].count("\n") + 1
        verdict.add(Fault.NUL_BYTE, "contains a NUL byte; the file is damaged or not text", row)
        return []
    if not text.strip():
        verdict.add(Fault.EMPTY_FILE, "the file is empty; a header and one row per patient are needed")
        return []
    try:
        return list(csv.reader(io.StringIO(text), delimiter=_delimiter(text, competition, verdict)))
    except csv.Error as error:
        verdict.add(Fault.NOT_CSV, f"the file is not a CSV table: {error}")
        return []


def _text(data: bytes, verdict: Verdict) -> str:
    """Return the file as text, whatever its encoding, so that more problems can be reported."""
    for mark, name in ((b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if data.startswith(mark):
            verdict.add(Fault.BYTE_ORDER_MARK, f"starts with a {name} byte-order mark; save as UTF-8 without BOM", 1)
            data = data[len(mark) :] if name == "UTF-8" else data.decode("utf-16", "replace").encode()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        verdict.add(Fault.ENCODING, f"byte {data[error.start]:#04x} is not valid UTF-8; save as UTF-8", row)
        return data.decode("latin-1")


def _delimiter(text: str, competition: Competition, verdict: Verdict) -> str:
    first = next(io.StringIO(text, newline=""))
    for other, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if "," not in first and first.count(other) == len(competition.header) - 1:
            verdict.add(Fault.DELIMITER, f"columns are separated by {name}; use commas", 1)
            return other
    return ","


def _check_table(table: list[list[str]], ids: Sequence[str], competition: Competition, verdict: Verdict) -> None:
    header, body = table[0], [(number, row) for number, row in enumerate(table[1:], start=2) if row]
    verdict.problems += _header_problems(header, competition.header)
    blank = [number for number, row in enumerate(table[1:], start=2) if not row]
    if blank:
        verdict.add(Fault.BLANK_LINE, f"blank line ({len(blank)} in total)", blank[0])
    if len(body) != len(ids):
        verdict.add(Fault.ROW_COUNT, f"{many(len(body), 'row')} under the header; the sample has {len(ids)}")
    if set(header) != set(competition.header) or len(header) != len(competition.header):
        return
    seen: dict[str, int] = {}
    for number, row in body:
        if len(row) != len(header):
            verdict.add(Fault.CELL_COUNT, f"{many(len(row), 'cell')}; the header has {len(header)}", number)
            continue
        cells = dict(zip(header, row, strict=True))
        patient = cells[competition.columns.patient]
        verdict.problems += _id_problems(patient, number, seen, ids, competition)
        values, problems = _numbers(cells, number, competition)
        verdict.problems += problems
        verdict.rows[patient] = values
    for patient in ids:
        if patient not in seen:
            verdict.add(Fault.MISSING_PATIENT, f"{competition.columns.patient} {patient} is missing; the sample has it")


def _header_problems(header: Sequence[str], wanted: Sequence[str]) -> Iterator[Problem]:
    if list(header) == list(wanted):
        return
    if sorted(header) == sorted(wanted):
        text = f"the columns are in the order {','.join(header)}; the sample has {','.join(wanted)}"
        yield Problem(Fault.COLUMN_ORDER, text, 1)
        return
    for column in wanted:
        if column not in header:
            yield Problem(Fault.MISSING_COLUMN, f"column {column} is missing; the file has {','.join(header)}", 1)
    for column in header:
        if column not in wanted:
            text = f"column {column or '(empty)'} is not expected; the sample has {','.join(wanted)}"
            yield Problem(Fault.EXTRA_COLUMN, text, 1)
        elif header.count(column) > 1:
            yield Problem(Fault.REPEATED_COLUMN, f"column {column} appears {header.count(column)} times", 1)


def _id_problems(
    patient: str, number: int, seen: dict[str, int], ids: Sequence[str], competition: Competition
) -> Iterator[Problem]:
    column, shown = competition.columns.patient, patient if patient.isprintable() else repr(patient)
    if patient in seen:
        yield Problem(Fault.REPEATED_PATIENT, f"{column} {shown} repeats; first in row {seen[patient]}", number)
        return
    seen[patient] = number
    if patient in ids:
        return
    stripped = patient.strip()
    original = next((known for known in ids if same_number(known, stripped)), None)
    if stripped in ids:
        yield Problem(Fault.ID_WITH_SPACES, f"{column} {patient!r} has spaces around {stripped}", number)
    elif original:
        text = f"{column} {shown} was read as a number: the sample has {original}; read ids as strings"
        yield Problem(Fault.ID_AS_NUMBER, text, number)
    else:
        yield Problem(Fault.UNKNOWN_PATIENT, f"{column} {shown or '(empty)'} is not in the sample", number)


def _numbers(cells: Mapping[str, str], number: int, competition: Competition) -> tuple[list[float], list[Problem]]:
    values, problems = [], []
    for name in competition.classes.names:
        value, fault = _number(cells[name])
        values.append(value)
        if fault is not None:
            problems.append(Problem(fault[0], f"{name} is {fault[1]}", number))
    if not problems and math.isinf(sum(values)):
        problems.append(Problem(Fault.INFINITE, f"the numbers add up to more than {sys.float_info.max:g}", number))
    if not problems and not any(values):
        names = " and ".join(competition.classes.names)
        problems.append(Problem(Fault.ALL_ZERO, f"{names} are all 0; a row needs a positive sum", number))
    return values, problems


def _number(cell: str) -> tuple[float, tuple[Fault, str] | None]:
    """Return the number in a cell as pandas.read_csv reads it, and its fault if it cannot be scored."""
    if not cell.strip():
        return 0.0, (Fault.EMPTY_CELL, "empty; a number is needed")
    if cell in NAN_WORDS:
        return 0.0, (Fault.NAN, f"{cell}, which is NaN; a number is needed")
    if not (NUMBER.fullmatch(cell) or INFINITY.fullmatch(cell)):
        return 0.0, (Fault.NOT_A_NUMBER, f"{cell!r}, not a number; write it like 0.25")
    value = float(cell)
    if math.isinf(value):
        return 0.0, (Fault.INFINITE, f"{cell.strip()}, infinite; a finite number is needed")
    return value, (Fault.NEGATIVE, f"{cell.strip()}, negative; at least 0 is needed") if value < 0 else None


def _add_notes(competition: Competition, verdict: Verdict) -> None:
    """Add the expected scores of a valid file, and notes about the spread of its rows."""
    rows, weights, clip = list(verdict.rows.values()), competition.classes.weights, competition.metric.clip
    fallback = metric.normalised(competition.classes.fallback, clip)
    verdict.expected = expected = Expected(
        metric.expected_if_calibrated(rows, weights, clip),
        metric.expected_if_uninformative(rows, weights, clip),
        metric.expected_if_uninformative([fallback], weights, clip),
    )
    verdict.fallback_rows = sum(metric.normalised(row, clip) == fallback for row in rows)
    verdict.distinct_rows = len({tuple(row) for row in rows})
    constant = "/".join(f"{value:g}" for value in fallback)
    verdict.notes += [
        many(len(rows), "patient"),
        f"expected score {expected.calibrated:.4f} if calibrated, {expected.uninformative:.4f} if uninformative "
        f"(constant {constant}: {expected.constant:.4f})",
    ]
    for index, name in enumerate(competition.classes.names):
        column = [metric.normalised(row, clip)[index] for row in rows]
        verdict.notes.append(
            f"{name}: {min(column):.4f} to {max(column):.4f}, {many(len(set(column)), 'distinct value')}"
        )
    if verdict.fallback_rows == len(rows):
        verdict.notes.append("every row is the fallback: the file is valid but has no information")
    elif verdict.distinct_rows == 1 and len(rows) > 1:
        verdict.notes.append("every row is the same: the file is valid but does not tell patients apart")
    elif verdict.fallback_rows:
        verdict.notes.append(f"{verdict.fallback_rows} of {len(rows)} rows are the fallback")
    unscaled = sum(not math.isclose(math.fsum(row), 1, abs_tol=1e-5) for row in rows)
    if unscaled:
        verdict.notes.append(f"{unscaled} of {len(rows)} rows do not sum to 1; Kaggle rescales them")
