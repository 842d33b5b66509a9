"""Read the batch that a gateway sends, and make the answer in its form.

Frames of pandas and polars are told by their methods: neither library is imported here, the gateway has brought the one
that it needs. Standard library only.
"""

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from clotkit.competitions import Competition, Form
from clotkit.competitions.schema import AnswerForm

WHOLE = re.compile("-?[0-9]{1,18}")
NOTHING = frozenset({"<NA>", "NaT", "None"})  # what missing values of pandas are as text


@dataclass(frozen=True)
class Batch:
    """One batch of a gateway."""

    rows: Sequence[Mapping[str, Any]]  # cells by column
    frame: Any = None  # the frame or series that they came in; None: there was none
    paths: Sequence[str] = ()  # texts with a slash that came beside it

    def ids(self, column: str) -> list[Any]:
        """Return the cells of a column, None where a row lacks it."""
        return [row.get(column) for row in self.rows]


def read_batch(values: Iterable[Any], image_column: str) -> Batch:
    """Return the batch in the arguments of a call: a frame, a series of image ids, or image ids and paths.

    The first frame with the column of image ids has the rows; a dict with it counts as a frame or as one row. Frames
    without it, like a sample submission, count only where there is nothing else. A call without any of these is a batch
    of one row without cells.
    """
    flat = list(_flat(values, image_column))
    frames = [value for value in flat if hasattr(value, "columns")]
    records = [row for value in flat if isinstance(value, dict) for row in _rows_of(value, image_column)]
    texts = [str(value) for value in flat if isinstance(value, str | Integral) and not isinstance(value, bool)]
    paths = [text for text in texts if "/" in text]
    frame = next((one for one in frames if image_column in one.columns), None)
    series = next((value for value in flat if hasattr(value, "dtype") and _cells(value) is not None), None)
    ids = [text for text in texts if "/" not in text] or paths
    if frame is None and records:
        return Batch(records, next(iter(frames), None), paths)
    if frame is None and series is not None:
        return Batch([{image_column: cell} for cell in _cells(series) or ()], series, paths)
    if frame is None and ids:
        return Batch([{image_column: cell} for cell in ids], next(iter(frames), None), paths)
    frame = next(iter(frames), None) if frame is None else frame
    return Batch([{}] if frame is None else _records(frame), frame, paths)


def unread_batch(values: Iterable[Any]) -> Batch:
    """Return a batch in which only the number of rows is known: that of the first frame, else 1."""
    frame = next((value for value in values if hasattr(value, "columns")), None)
    return Batch([{}] * (1 if frame is None else len(frame)), frame)


def _flat(values: Iterable[Any], image_column: str) -> Iterator[Any]:
    """Yield the values, and those of lists, tuples and dicts among them; a dict with image ids as it is."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value, image_column)
        elif isinstance(value, dict) and image_column not in value:
            yield from _flat(value.values(), image_column)
        else:
            yield value


def _cells(value: Any) -> list[Any] | None:
    """Return the cells of a list, a series or an array of one dimension; None for any other value."""
    if isinstance(value, list | tuple):
        return list(value)
    if hasattr(value, "to_list"):
        return list(value.to_list())
    return list(value.tolist()) if getattr(value, "ndim", 0) == 1 else None


def _rows_of(record: Mapping[str, Any], image_column: str) -> list[Mapping[str, Any]]:
    """Return the rows of a dict: one, or as many as it has image ids if its values are columns."""
    columns = {name: _cells(cells) for name, cells in record.items()}
    ids = columns[image_column]
    if ids is None:
        return [record]
    whole = {name: cells for name, cells in columns.items() if cells is not None and len(cells) == len(ids)}
    return [{name: cells[place] for name, cells in whole.items()} for place in range(len(ids))]


def _records(frame: Any) -> list[Mapping[str, Any]]:
    """Return the rows of a frame: polars has a method for it, pandas an argument."""
    return list(frame.to_dicts() if hasattr(frame, "to_dicts") else frame.to_dict("records"))


def text_of(cell: Any) -> str:
    """Return a cell as a table has it; empty for a missing value."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():  # a column of whole numbers with a gap
        return str(int(cell))
    text = str(cell).strip()
    return "" if text in NOTHING else text


def answer_for(batch: Batch, ids: Sequence[Any], cells: Sequence[Sequence[str]], competition: Competition) -> Any:
    """Return the answer to a batch, a row for each of `ids`.

    Args:
        batch: its library makes the frame; pandas if it came without one.
        ids: the ids of the rows, as the batch has them.
        cells: of each row, the texts of the answer's columns, as a submission has them.
        competition: says the columns and the form.
    """
    if competition.serving.answer is AnswerForm.VALUE and len(cells) == 1:
        return _value(cells[0][0], competition)
    with_ids = competition.serving.answer is AnswerForm.ROWS
    return _frame_type(batch.frame)(answer_columns(cells, competition, ids if with_ids else None))


def answer_columns(
    cells: Sequence[Sequence[str]], competition: Competition, ids: Sequence[Any] | None = None
) -> dict[str, list[Any]]:
    """Return the columns of answers by name, after that of their ids if those are wanted."""
    columns: dict[str, list[Any]] = {} if ids is None else {competition.submission.id: _whole(ids)}
    for place, name in enumerate(competition.submission.columns):
        columns[name] = [_value(row[place], competition) for row in cells]
    return columns


def _value(text: str, competition: Competition) -> float | int | str:
    """Return a cell of an answer as a number, or a label that is none as text."""
    if competition.submission.form is not Form.LABEL:
        return float(text)
    are_numbers = all(label.lstrip("-").isdecimal() for label in competition.answers)
    return int(text) if are_numbers else text


def _whole(ids: Sequence[Any]) -> list[Any]:
    """Return ids of one type; a gap, which no gateway accepts, is an empty text, or -1 among numbers."""
    texts = [text_of(one) for one in ids]
    numbers = [one for one, text in zip(ids, texts, strict=True) if text]
    if numbers and all(isinstance(one, Integral | float) and WHOLE.fullmatch(text_of(one)) for one in numbers):
        return [int(text) if text else -1 for text in texts]
    return texts


def _frame_type(frame: Any) -> Any:
    """Return the class of frames of the library that a frame is of."""
    library = type(frame).__module__.partition(".")[0]
    if frame is not None and hasattr(sys.modules.get(library), "DataFrame"):
        return sys.modules[library].DataFrame
    import pandas

    return pandas.DataFrame
