"""Write and read the cells of an answer: probabilities of the classes, one probability, or a label.

Standard library only.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from clotkit.competitions import Competition, Form, label_key
from clotkit.metric import METRICS, Takes

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
    ABOVE_ONE = "above_one"
    NOT_A_LABEL = "not_a_label"


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
class Answer:
    """The answer of one row of a submission."""

    row: list[float]  # a number per class, with a label 1 for it and 0 for the others, the outlier among them
    label: int | None = None  # the index of a label; None in the forms of probabilities


def answer_cells(competition: Competition, row: Sequence[float] | None, label: int | None = None) -> list[str]:
    """Return the cells of an answer, in the order of submission.columns.

    Args:
        competition: It says the form, and the fallback.
        row: The probability of each class; None: the fallback.
        label: An index of `competition.answers`; None: the fallback. Probabilities ignore it.
    """
    if competition.submission.form is Form.LABEL:
        return [competition.submission.fallback if label is None else competition.answers[label]]
    values = competition.classes.fallback if row is None else row
    return [f"{value:.6f}" for value in (values[-1:] if competition.submission.form is Form.PROBABILITY else values)]


def read_answer(cells: Mapping[str, str], number: int, competition: Competition) -> tuple[Answer, list[Problem]]:
    """Return the answer in the cells of row `number`, and its problems."""
    columns = competition.submission.columns
    if competition.submission.form is Form.LABEL:
        return _label(cells[columns[0]], columns[0], number, competition)
    values, problems = list[float](), list[Problem]()
    for name in columns:
        value, fault = _number(cells[name], competition)
        values.append(value)
        if fault is not None:
            problems.append(Problem(fault[0], f"{name} is {fault[1]}", number))
    if competition.submission.form is Form.PROBABILITY:
        return Answer([1 - values[0], values[0]]), problems
    if not problems and math.isinf(sum(values)):
        problems.append(Problem(Fault.INFINITE, f"the numbers add up to more than {sys.float_info.max:g}", number))
    if not problems and not any(values):
        names = " and ".join(columns)
        problems.append(Problem(Fault.ALL_ZERO, f"{names} are all 0; a row needs a positive sum", number))
    return Answer(values), problems


def _label(cell: str, column: str, number: int, competition: Competition) -> tuple[Answer, list[Problem]]:
    answers = competition.answers
    if cell in answers:
        label = answers.index(cell)
        return Answer([float(index == label) for index in range(len(answers))], label), []
    none = Answer([0.0] * len(answers))
    if not cell.strip():
        return none, [Problem(Fault.EMPTY_CELL, f"{column} is empty; a label is needed", number)]
    meant = next((one for one in answers if label_key(one) == label_key(cell)), None)
    hint = f"write {meant}" if meant else f"allowed: {', '.join(answers)}"
    return none, [Problem(Fault.NOT_A_LABEL, f"{column} is {cell!r}, not a label; {hint}", number)]


def _number(cell: str, competition: Competition) -> tuple[float, tuple[Fault, str] | None]:
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
    return value, _out_of_range(value, cell.strip(), competition)


def _out_of_range(value: float, cell: str, competition: Competition) -> tuple[Fault, str] | None:
    """Return the fault of a finite number that is no probability; None for one that can be scored."""
    is_single = competition.submission.form is Form.PROBABILITY
    if is_single and METRICS[competition.metric.name].takes is Takes.RANKS:
        return None  # whatever ranks the rows
    if value > 1 and is_single:
        return Fault.ABOVE_ONE, f"{cell}; at most 1 is allowed"
    return (Fault.NEGATIVE, f"{cell}, negative; at least 0 is needed") if value < 0 else None
