"""Tell which slide a row of a gateway's batch is about, and where its file may be.

Standard library only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.serving.frames import Batch, text_of
from clotkit.splits.identity import BLANK, joined, without_suffix
from clotkit.splits.tables import Row


@dataclass(frozen=True)
class RequestedSlide:
    """The slide that a row of a batch names."""

    image_id: str
    patient_id: str
    row_id: str  # of the submission's row that it counts for
    facts: Mapping[str, str]  # the cells of its row by column
    paths: Sequence[str]  # that its file may have, in the order to try them
    other_paths: Sequence[str] = ()  # cells of unknown meaning with its id in the path: for want of any other


def read_row(
    cells: Mapping[str, Any], number: int, batch: Batch, competition: Competition, roots: Sequence[Path]
) -> RequestedSlide | None:
    """Return the slide that a row asks for; None if its ids are missing or cannot be used.

    Args:
        cells: the row.
        number: of the row, from 1.
        batch: the row's batch.
        competition: says the columns and the names of files.
        roots: folders that may have the slides, like the one that the gateway shares.
    """
    row = Row(((str(column), text_of(cell)) for column, cell in cells.items()), number)
    column = competition.columns.image
    written = row.get(column, "")
    if "/" in written:
        row[column] = without_suffix(PurePosixPath(written).name)
    if row.get(column, "").casefold() in BLANK:
        return None
    try:
        one = joined([row], "batch", competition, None)[0]
    except SplitError:
        return None
    names = list[str]()
    with suppress(KeyError, ValueError, IndexError):
        names = competition.slide_names("test", one.image_id, one.patient_id, row)
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
        return None
    paths = _paths(one.image_id, written, row, names, batch, competition, roots)
    row_id = one.image_id if competition.by_image else one.patient_id
    others = [cell for cell in row.values() if "/" in cell and _names(PurePosixPath(cell), one.image_id)]
    return RequestedSlide(
        one.image_id, one.patient_id, row_id, dict(row), list(dict.fromkeys(paths)), list(dict.fromkeys(others))
    )


def _paths(
    image_id: str,
    written: str,
    row: Mapping[str, str],
    names: Sequence[str],
    batch: Batch,
    competition: Competition,
    roots: Sequence[Path],
) -> Iterator[str]:
    """Yield the paths that a slide's file may have: the stated, those beside the row, those by its names."""
    stated = [row.get(competition.serving.path, ""), written]
    beside = [path for path in batch.paths if without_suffix(PurePosixPath(path).name) == image_id]
    for path in (*(cell for cell in stated if "/" in cell), *beside, *batch.paths):
        yield from (str(PurePosixPath(path) / PurePosixPath(name).name) for name in names)  # if it is a folder
        if path not in batch.paths or path in beside:
            yield path
    yield from (str(root / name) for root in roots for name in names)


def _names(path: PurePosixPath, image_id: str) -> bool:
    """Return whether a file or a folder of a path has the name of a slide."""
    return any(without_suffix(part) == image_id for part in path.parts)
