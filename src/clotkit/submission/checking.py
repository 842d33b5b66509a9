"""Check a submission against the sample. Standard library only."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clotkit import metric
from clotkit.competitions import Competition, Form
from clotkit.errors import SubmissionError
from clotkit.metric import METRICS, Takes
from clotkit.splits import Sample, read_sample
from clotkit.splits.identity import same_number
from clotkit.submission.answers import Fault, Problem, read_answer
from clotkit.submission.writing import read_probabilities
from clotkit.units import many


@dataclass(frozen=True)
class Expected:
    """The expected scores of a submission; METRICS says whether higher is better."""

    calibrated: float  # if its probabilities are calibrated; NaN for labels whose probabilities are not known
    uninformative: float  # if its answers do not depend on the class
    constant: float  # of the competition's constant fallback


@dataclass
class Verdict:
    """The result of a check: `problems` make Kaggle refuse or misread the file, `notes` do not."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: dict[str, list[float]] = field(default_factory=dict)  # a number per class by id; see answers.Answer
    labels: dict[str, int] = field(default_factory=dict)  # the index of a label by id, for a submission of labels
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


def check_submission(path: Path, sample: Path, competition: Competition) -> Verdict:
    """Check a submission against the sample and return every problem with its row number.

    Raises SubmissionError if the file cannot be read, SplitError if the sample itself is wrong.
    """
    mould = read_sample(sample, competition)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SubmissionError(f"{path}: cannot be read: {error.strerror}; name the file to check") from error
    verdict = Verdict()
    table = _decode(data, competition, verdict)
    if table:
        _check_table(table, mould, competition, verdict)
    if verdict.valid:
        _add_notes(path, mould, competition, verdict)
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


def _check_table(table: list[list[str]], sample: Sample, competition: Competition, verdict: Verdict) -> None:
    header, body = table[0], [(number, row) for number, row in enumerate(table[1:], start=2) if row]
    verdict.problems += _header_problems(header, sample.header)
    blank = [number for number, row in enumerate(table[1:], start=2) if not row]
    if blank:
        verdict.add(Fault.BLANK_LINE, f"blank line ({len(blank)} in total)", blank[0])
    if len(body) != len(sample.ids):
        verdict.add(Fault.ROW_COUNT, f"{many(len(body), 'row')} under the header; the sample has {len(sample.ids)}")
    if sorted(header) != sorted(sample.header):
        return
    column_of = dict(zip(sample.header, sample.columns, strict=True))
    seen: dict[str, int] = {}
    for number, row in body:
        if len(row) != len(header):
            verdict.add(Fault.CELL_COUNT, f"{many(len(row), 'cell')}; the header has {len(header)}", number)
            continue
        cells = {column_of[name]: cell for name, cell in zip(header, row, strict=True)}
        one = cells[competition.submission.id]
        verdict.problems += _id_problems(one, number, seen, sample.texts, competition)
        answer, problems = read_answer(cells, number, competition)
        verdict.problems += problems
        verdict.rows[one] = answer.row
        if answer.label is not None:
            verdict.labels[one] = answer.label
    for text in sample.texts:
        if text not in seen:
            verdict.add(Fault.MISSING_PATIENT, f"{competition.submission.id} {text} is missing; the sample has it")


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
    column, shown = competition.submission.id, patient if patient.isprintable() else repr(patient)
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


def _add_notes(path: Path, sample: Sample, competition: Competition, verdict: Verdict) -> None:
    """Add the expected scores of a valid file, and notes about the spread of its rows."""
    unit = competition.unit
    verdict.notes.append(many(len(verdict.rows), unit.value))
    verdict.notes += _label_notes(verdict, competition) if verdict.labels else _row_notes(verdict, competition)
    verdict.expected = expected = _expected(path, sample, competition, verdict)
    calibrated = "" if math.isnan(expected.calibrated) else f"{expected.calibrated:.4f} if calibrated, "
    higher = "higher is better" if METRICS[competition.metric.name].higher_is_better else "lower is better"
    verdict.notes.insert(
        1,
        f"expected score {calibrated}{expected.uninformative:.4f} if uninformative "
        f"(constant {'/'.join(_constant(competition))}: {expected.constant:.4f}); {competition.metric.name}, {higher}",
    )
    rows = len(verdict.rows)
    if verdict.fallback_rows == rows:
        verdict.notes.append("every row is the fallback: the file is valid but has no information")
    elif verdict.distinct_rows == 1 and rows > 1:
        verdict.notes.append(f"every row is the same: the file is valid but tells no {unit.value} from another")
    elif verdict.fallback_rows:
        verdict.notes.append(f"{verdict.fallback_rows} of {rows} rows are the fallback")


def _constant(competition: Competition) -> list[str]:
    """Return the fallback for people: a label, or a number per class."""
    if competition.submission.form is Form.LABEL:
        return [competition.submission.fallback]
    return [f"{value:g}" for value in metric.normalised(competition.classes.fallback, competition.metric.clip)]


def _row_notes(verdict: Verdict, competition: Competition) -> Iterator[str]:
    """Count the fallbacks among rows of probabilities, and yield a line for each class."""
    clip, rows = competition.metric.clip, list(verdict.rows.values())
    normalised = rows if _ranks(competition) else [metric.normalised(row, clip) for row in rows]
    fallback = metric.normalised(competition.classes.fallback, clip)
    verdict.fallback_rows = sum(all(map(_printed_alike, row, fallback)) for row in normalised)
    verdict.distinct_rows = len({tuple(row) for row in rows})
    names = dict(enumerate(competition.classes.names))
    if competition.submission.form is Form.PROBABILITY:
        names.pop(0)  # the rest to 1
    for index, name in names.items():
        column = [row[index] for row in normalised]
        yield f"{name}: {min(column):.4f} to {max(column):.4f}, {many(len(set(column)), 'distinct value')}"
    unscaled = sum(not math.isclose(math.fsum(row), 1, abs_tol=1e-5) for row in rows)
    if unscaled:
        yield f"{unscaled} of {len(rows)} rows do not sum to 1; Kaggle rescales them"


def _ranks(competition: Competition) -> bool:
    """Return whether the numbers of a file only rank its rows, so that they may be of any size."""
    is_single = competition.submission.form is Form.PROBABILITY
    return is_single and METRICS[competition.metric.name].takes is Takes.RANKS


def _printed_alike(one: float, other: float) -> bool:
    """Return whether two probabilities are the same in a submission, which has six digits."""
    return math.isclose(one, other, abs_tol=1e-6)


def _label_notes(verdict: Verdict, competition: Competition) -> Iterator[str]:
    """Count the fallbacks among labels, and yield a line for each label."""
    labels = list(verdict.labels.values())
    verdict.fallback_rows = labels.count(competition.answers.index(competition.submission.fallback))
    verdict.distinct_rows = len(set(labels))
    for index, name in enumerate(competition.answers):
        yield f"{name}: {many(labels.count(index), 'row')}"


def _expected(path: Path, sample: Sample, competition: Competition, verdict: Verdict) -> Expected:
    """Return the expected scores of a valid file; of labels by the probabilities beside it."""
    name, classes, clip = competition.metric.name, competition.classes, competition.metric.clip
    settings = (classes.weights, classes.priors, clip)
    ids = list(verdict.rows)
    rows, labels = list(verdict.rows.values()), [verdict.labels.get(one, 0) for one in ids]
    known = _probabilities_beside(path, ids, competition) if verdict.labels else rows
    known = known if all(0 <= value <= 1 for row in known for value in row) or not _ranks(competition) else []
    calibrated = metric.score_if_calibrated(name, known, labels, *settings) if known else math.nan
    uninformative = metric.score_if_uninformative(name, rows, labels, *settings)
    fallback = metric.normalised(classes.fallback, clip)
    label = competition.answers.index(competition.submission.fallback) if verdict.labels else 0
    constant = metric.score_if_uninformative(name, [fallback], [label], *settings)
    return Expected(calibrated, uninformative, constant)


def _probabilities_beside(path: Path, ids: Sequence[str], competition: Competition) -> list[list[float]]:
    """Return the probabilities that a run left beside its labels, by `ids`; empty if there are none."""
    classes = competition.classes
    by_id = read_probabilities(path, competition.submission.id, classes.names)
    return [by_id.get(one, list(classes.fallback)) for one in ids] if by_id.keys() & set(ids) else []
