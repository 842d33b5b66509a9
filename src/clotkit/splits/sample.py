"""Read the sample submission: its columns and ids, in the order that every submission must have."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.splits.identity import BLANK, NUMBER, patient_of, same_number, without_suffix
from clotkit.splits.tables import Row, read_table, read_with_header

Patients = tuple[Collection[str], Collection[str]]  # of a test table: in its cells, and in its image ids


@dataclass(frozen=True)
class Sample:
    """The mould of a submission."""

    header: Sequence[str]  # its columns, as the sample spells them
    columns: Sequence[str]  # the same, as the competition spells them
    ids: Sequence[str]  # of its rows: patients, or slides by their image id
    texts: Sequence[str]  # the cell of each id


def read_sample(path: Path, competition: Competition) -> Sample:
    """Return the columns and the ids of the sample submission at `path`, in order.

    A patient id that a table program made a number of (`6388`) is restored where the image ids of the test table beside
    it have one such patient (`006388`).

    Raises SplitError if the sample is missing or malformed, has another column than the competition's, or if an id is
    blank, repeated, or lost.
    """
    column = competition.submission.id
    rows, header, columns = read_with_header(path, competition.header)
    if extra := [name for name, known in zip(header, columns, strict=True) if known not in competition.header]:
        shown, known = ", ".join(name or "(empty)" for name in extra), ", ".join(competition.header)
        raise SplitError(
            f"{path}: has the column {shown}; {competition.source.name} has {known}: correct submission.columns"
        )
    beside = cache(partial(_patients_beside, path, competition))  # the test table is read once, if at all
    texts = [_text(row, path, competition, beside) for row in rows]
    ids = [without_suffix(text) for text in texts] if competition.by_image else texts
    for one, count in Counter(ids).items():
        if count > 1:
            numbers = [str(row.number) for row, other in zip(rows, ids, strict=True) if other == one]
            raise SplitError(f"{path}: {column} {one} is in {count} rows ({', '.join(numbers)}); 1 is allowed")
    return Sample(header, columns, ids, texts)


def read_sample_ids(path: Path, competition: Competition) -> list[str]:
    """Return the ids of the sample submission at `path`, in order. Raises SplitError as read_sample does."""
    return list(read_sample(path, competition).ids)


def _text(row: Row, path: Path, competition: Competition, beside: Callable[[], Patients]) -> str:
    """Return the id of a row. Raises SplitError if it is blank, or a number of several ids."""
    column, form = competition.submission.id, competition.ids.patient or ".+"
    cell = row[column]
    if cell.casefold() in BLANK:
        raise SplitError(f"{path}: row {row.number}: {column} is {cell or '(empty)'}; an id is needed")
    if competition.by_image or re.fullmatch(form, cell) or not NUMBER.fullmatch(cell):
        return cell
    cells, embedded = beside()
    similar = {one for one in embedded if same_number(one, cell)}
    if len(similar) == 1:
        return similar.pop()
    padded = (cell.partition(".")[0].zfill(length) for length in range(1, 33))
    if cell in cells or not any(re.fullmatch(form, one) for one in padded):
        return cell
    raise SplitError(
        f"{path}: row {row.number}: {column} {cell!r} was read as a number by a table program; ids have the form "
        f"{competition.ids.patient}: fetch the file again"
    )


def _patients_beside(path: Path, competition: Competition) -> Patients:
    """Return the patients in the cells and those in the image ids of the test table beside the sample."""
    columns, rows = competition.columns, list[Row]()
    with suppress(SplitError):
        rows = read_table(competition.table_path(path.parent, "test"), [columns.image], [columns.patient])
    embedded = [patient_of(without_suffix(row[columns.image]), competition) for row in rows]
    return {row.get(columns.patient, "") for row in rows}, {one for one in embedded if one is not None}
