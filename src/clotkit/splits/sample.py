"""Read the sample submission: the patients to score, in order."""

import re
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.splits.identity import BLANK, NUMBER, patient_of, same_number, without_suffix
from clotkit.splits.tables import Row, read_table

Patients = tuple[Collection[str], Collection[str]]  # of a test table: in its cells, and in its image ids


def read_sample_ids(path: Path, competition: Competition) -> list[str]:
    """Return the patient ids of the sample submission at `path`, in order.

    An id that a table program made a number of (`6388`) is restored where the image ids of the test table beside it
    have one such patient (`006388`).

    Raises SplitError if the sample is missing or malformed, or if an id is blank, repeated, or lost.
    """
    column = competition.columns.patient
    rows = read_table(path, competition.header)
    beside = cache(partial(_patients_beside, path, competition))  # the test table is read once, if at all
    ids = [_restored(row, path, competition, beside) for row in rows]
    for patient, count in Counter(ids).items():
        if count > 1:
            numbers = [str(row.number) for row, one in zip(rows, ids, strict=True) if one == patient]
            raise SplitError(f"{path}: {column} {patient} is in {count} rows ({', '.join(numbers)}); 1 is allowed")
    return ids


def _restored(row: Row, path: Path, competition: Competition, beside: Callable[[], Patients]) -> str:
    """Return the patient id of a row. Raises SplitError if it is blank, or a number of several ids."""
    cell, column = row[competition.columns.patient], competition.columns.patient
    if re.fullmatch(competition.ids.patient, cell):
        return cell
    if cell.casefold() in BLANK:
        raise SplitError(f"{path}: row {row.number}: {column} is {cell or '(empty)'}; a patient id is needed")
    if not NUMBER.fullmatch(cell):
        return cell
    cells, embedded = beside()
    similar = {one for one in embedded if same_number(one, cell)}
    if len(similar) == 1:
        return similar.pop()
    padded = (cell.partition(".")[0].zfill(length) for length in range(1, 33))
    if cell in cells or not any(re.fullmatch(competition.ids.patient, one) for one in padded):
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
