"""Read a split folder: its table of slides and its sample submission.

Ids are always strings: `006388` is not a number. Standard library only.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.progress import Log
from clotkit.scratch import scratch
from clotkit.stores import Place, StoredFile, store_of

SYNTHETIC = "phantom.json"  # file that marks a split with synthetic slides


@dataclass(frozen=True)
class SlideRow:
    """One slide of a split."""

    image_id: str
    patient_id: str
    path: Path  # the slide's file; of a stored slide only its name
    label: int | None  # class index; None in a test split
    centre: str = ""  # empty if the table has no centres
    stored: StoredFile | None = None  # the slide in an object store; None: a local file

    @property
    def size_bytes(self) -> int:
        """Return the file's size in bytes, 0 if it is missing."""
        if self.stored is not None:
            return self.stored.entry.size_bytes
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file into one dict of strings per row; a byte-order mark and CRLF are accepted.

    Raises SplitError if the file is missing, not UTF-8, lacks one of `columns`, or has no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise SplitError(f"{path}: cannot be read: {_why(error)}; a split folder needs this table") from error
    return rows_of(text, str(path), columns)


def rows_of(text: str, where: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV text as dicts of strings; `where` names it in errors.

    Raises SplitError if it is malformed, lacks one of `columns`, or has no rows.
    """
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
        header = list(reader.fieldnames or [])
    except csv.Error as error:
        raise SplitError(f"{where}: cannot be read: {error}; a split folder needs this table") from error
    missing = [column for column in columns if column not in header]
    if missing:
        raise SplitError(f"{where}: no column {', '.join(missing)}; it has: {', '.join(header) or 'no columns'}")
    if not rows:
        raise SplitError(f"{where}: 0 rows; at least 1 is needed")
    return rows


def split_of(split_dir: Path, competition: Competition, order: Sequence[str]) -> str:
    """Return the first split of `order` whose table is in the folder. Raises SplitError if none is."""
    tables = {split: competition.table_path(split_dir, split) for split in order}
    for split, path in tables.items():
        if path.is_file():
            return split
    names = " nor ".join(path.name for path in tables.values())
    raise SplitError(f"{split_dir}: has neither {names}; a split folder needs one of them")


def read_slides(split_dir: Path, split: str, competition: Competition, log: Log = print) -> list[SlideRow]:
    """Return the slides of a split, in the order of its table.

    A slide whose file is missing is not an error here. The first row counts if an image id repeats. Without a patient
    column, the patient id is taken from the image id. Raises SplitError for a missing or malformed table, or a label
    that is not a class.
    """
    columns, path = competition.columns, competition.table_path(split_dir, split)
    rows = read_table(path, [columns.image, *([columns.label] if split == "train" else [])])
    if columns.patient not in rows[0]:
        log(f"{path}: no column {columns.patient}; patient ids are taken from {columns.image}")
        for row in rows:
            row[columns.patient] = patient_in(row[columns.image], competition)
    images = [row[columns.image] for row in rows]
    repeated = [image for image, count in Counter(images).items() if count > 1]
    if repeated:
        log(f"{path}: {columns.image} {', '.join(repeated)} is repeated; the first row counts")
    first = {row[columns.image]: row for row in reversed(rows)}
    return [_slide_row(first[image], split_dir, split, competition) for image in dict.fromkeys(images)]


@contextmanager
def tables_of(where: Place, competition: Competition) -> Iterator[Path]:
    """Give a folder with a split's tables: the split's own, or for a URL a temporary copy without slides.

    Raises StoreError if the object store cannot be read, SplitError if it has no table of a split there.
    """
    if isinstance(where, Path):
        yield where
        return
    store = store_of(where)
    with scratch() as folder:
        tables = [competition.table_path(folder, split) for split in ("train", "test")]
        for path in (*tables, competition.sample_path(folder), folder / SYNTHETIC):
            with suppress(FileNotFoundError):
                store.fetch(path.relative_to(folder).as_posix(), path)
        if not any(path.is_file() for path in tables):
            names = " nor ".join(path.name for path in tables)
            raise SplitError(f"{where}: missing, or has neither {names}; a split folder needs one of them")
        yield folder


def in_store(slides: Sequence[SlideRow], split_dir: Path, where: Place) -> list[SlideRow]:
    """Return slides with their places in the object store at `where`.

    They are unchanged if `where` is a local path. A slide that the store lacks stays without a place. `split_dir` is
    the folder that the tables were read from.
    """
    if isinstance(where, Path):
        return list(slides)
    store = store_of(where)
    entries = store.entries()
    names = [slide.path.relative_to(split_dir).as_posix() for slide in slides]
    return [
        replace(slide, stored=StoredFile(store, name, entries[name])) if name in entries else slide
        for slide, name in zip(slides, names, strict=True)
    ]


def patient_in(image_id: str, competition: Competition) -> str:
    """Return the patient id within an image id. Raises SplitError for an image id of another form."""
    form = re.escape(competition.ids.image).replace(re.escape("{patient}"), f"(?P<patient>{competition.ids.patient})")
    match = re.fullmatch(form.replace(re.escape("{number}"), "[0-9]+"), image_id)
    if match is None:
        raise SplitError(
            f"{image_id}: not an image id of the form {competition.ids.image}, and the table has no patient column"
        )
    return match["patient"]


def read_sample_ids(path: Path, competition: Competition) -> list[str]:
    """Return the patient ids of the sample submission at `path`, in order.

    Raises SplitError if it is missing or malformed, or if an id is empty or repeated.
    """
    rows = read_table(path, competition.header)
    ids = [row[competition.columns.patient] for row in rows]
    for patient, count in Counter(ids).items():
        if not patient or count > 1:
            raise SplitError(
                f"{path}: {competition.columns.patient} {patient or '(empty)'} is in {count} rows; 1 is allowed"
            )
    return ids


def kind_of(split_dir: Path) -> str:
    """Return "synthetic " for a split that clotkit drew, else "": a prefix for lines that name a split."""
    return "synthetic " if (split_dir / SYNTHETIC).is_file() else ""


def _slide_row(row: dict[str, str], split_dir: Path, split: str, competition: Competition) -> SlideRow:
    columns, names = competition.columns, competition.classes.names
    label = row.get(columns.label) if split == "train" else None
    if label is not None and label not in names:
        raise SplitError(
            f"{competition.table_path(split_dir, split)}: {row[columns.image]} has {columns.label} {label!r}; "
            f"classes: {', '.join(names)}"
        )
    image_id = row[columns.image]
    if not image_id or "/" in image_id or image_id in {".", ".."}:
        raise SplitError(f"{competition.table_path(split_dir, split)}: {columns.image} {image_id!r} is not a file name")
    path = competition.slide_path(split_dir, split, image_id)
    index = None if label is None else names.index(label)
    return SlideRow(image_id, row[columns.patient], path, index, row.get(columns.center, ""))


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
