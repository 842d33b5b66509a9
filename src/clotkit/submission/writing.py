"""Write submission.csv in the form of the sample submission. Standard library only.

Whatever is on disk is a valid submission at every instant.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.files import atomic_write_text
from clotkit.splits import Sample, read_table
from clotkit.submission.answers import answer_cells

PROBABILITIES = "probabilities.csv"  # beside a submission of labels: the probabilities that they come from
Rows = Mapping[str, Sequence[float]]  # probabilities by id


def write_submission(
    path: Path, competition: Competition, sample: Sample, probabilities: Rows, labels: Mapping[str, int] | None = None
) -> None:
    """Write a submission with the header, the ids and the order of the sample.

    The file is replaced in one step: a reader sees the old one or the new one, never a part.

    Args:
        path: The file.
        competition: It says the form; ids without an answer get its fallback.
        sample: The mould.
        probabilities: A number per class by id; for a submission of labels they are not written.
        labels: The index of a label by id, for a submission of labels.
    """
    known = labels or {}
    rows = [
        {competition.submission.id: text}
        | dict(
            zip(
                competition.submission.columns,
                answer_cells(competition, probabilities.get(one), known.get(one)),
                strict=True,
            )
        )
        for one, text in zip(sample.ids, sample.texts, strict=True)
    ]
    _write(path, sample.header, [[row[column] for column in sample.columns] for row in rows])


def write_probabilities(path: Path, competition: Competition, sample: Sample, probabilities: Rows) -> None:
    """Write the probabilities of the ids that have some, one column a class."""
    rows = [
        [text, *(f"{value:.6f}" for value in probabilities[one])]
        for one, text in zip(sample.ids, sample.texts, strict=True)
        if one in probabilities
    ]
    _write(path, [competition.submission.id, *competition.classes.names], rows)


def read_probabilities(submission: Path, column: str, classes: Sequence[str]) -> dict[str, list[float]]:
    """Return the probabilities [C] beside a submission by id; none if they are not there or damaged."""
    with suppress(SplitError, ValueError):
        rows = read_table(submission.with_name(PROBABILITIES), [column, *classes])
        return {row[column]: [float(row[name]) for name in classes] for row in rows}
    return {}


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    atomic_write_text(path, text.getvalue())
