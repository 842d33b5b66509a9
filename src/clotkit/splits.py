"""A split folder: its table of slides, its sample submission. Standard library only; ids are strings, always."""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.scratch import scratch
from clotkit.stores import Place, StoredFile, store_of

SYNTHETIC = "phantom.json"  # marks a split whose slides are drawn


@dataclass(frozen=True)
class SlideRow:
    """One slide of a split; `label` is a class index, None in a test split; `centre` "" where the table has none.

    `stored` says where it is in an object store; `path` is then only how it is called.
    """

    image_id: str
    patient_id: str
    path: Path
    label: int | None
    centre: str = ""
    stored: StoredFile | None = None

    @property
    def size_bytes(self) -> int:
        """The file's size, 0 when it is missing: what to start with, and what a table can say of it."""
        if self.stored is not None:
            return self.stored.entry.size_bytes
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV into one dict of strings a row. A byte-order mark and CRLF are taken as they come.

    Raises SplitError when it is missing, not UTF-8, lacks one of `columns`, or has no row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise SplitError(f"{path}: cannot be read: {_why(error)}; a split folder has it") from error
    return rows_of(text, str(path), columns)


def rows_of(text: str, where: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV's text as dicts of strings; `where` is what errors call it.

    Raises SplitError when it is malformed, lacks one of `columns`, or has no row.
    """
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [{key: value or "" for key, value in row.items() if key} for row in reader]
        found = list(reader.fieldnames or [])
    except csv.Error as error:
        raise SplitError(f"{where}: cannot be read: {error}; a split folder has it") from error
    missing = [column for column in columns if column not in found]
    if missing:
        raise SplitError(f"{where}: no column {', '.join(missing)}; columns found: {', '.join(found) or 'none'}")
    if not rows:
        raise SplitError(f"{where}: 0 rows, at least 1 is needed")
    return rows


def split_of(split_dir: Path, competition: Competition, order: Sequence[str]) -> str:
    """The first of the splits in `order` whose table stands in the folder. Raises SplitError where none does."""
    tables = {split: competition.table_path(split_dir, split) for split in order}
    for split, path in tables.items():
        if path.is_file():
            return split
    names = " nor ".join(path.name for path in tables.values())
    raise SplitError(f"{split_dir}: has neither {names}; a split folder has one of them")


def read_slides(
    split_dir: Path, split: str, competition: Competition, log: Callable[[str], None] = print
) -> list[SlideRow]:
    """The slides of a split, in the order of its table; a file that is missing on disk is not an error here.

    Of an image id that repeats, the first row counts; where there is no column of patients, the image id says which
    one it is. Raises SplitError for a missing or malformed table, or a label that is no class.
    """
    columns, path = competition.columns, competition.table_path(split_dir, split)
    rows = read_table(path, [columns.image, *([columns.label] if split == "train" else [])])
    if columns.patient not in rows[0]:
        log(f"{path}: no column {columns.patient}; patients are taken from {columns.image}")
        for row in rows:
            row[columns.patient] = patient_in(row[columns.image], competition)
    images = [row[columns.image] for row in rows]
    repeated = [image for image, count in Counter(images).items() if count > 1]
    if repeated:
        log(f"{path}: {columns.image} {', '.join(repeated)} repeats; the first row of each counts")
    first = {row[columns.image]: row for row in reversed(rows)}
    return [_slide_row(first[image], split_dir, split, competition) for image in dict.fromkeys(images)]


@contextmanager
def tables_of(where: Place, competition: Competition) -> Iterator[Path]:
    """The folder that has a split's tables: the split itself, or for a URL a copy of them, without the slides.

    Raises StoreError where the object store cannot be asked, SplitError where it has no table of a split there.
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
            raise SplitError(f"{where}: has neither {names}, or is not there; a split folder has one of them")
        yield folder


def in_store(slides: Sequence[SlideRow], split_dir: Path, where: Place) -> list[SlideRow]:
    """The slides, whose tables lie in `split_dir`, with what an object store says of each; as they are for a path."""
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
    """The patient's id within an image id. Raises SplitError where it does not have the competition's form."""
    form = re.escape(competition.ids.image).replace(re.escape("{patient}"), f"(?P<patient>{competition.ids.patient})")
    found = re.fullmatch(form.replace(re.escape("{number}"), "[0-9]+"), image_id)
    if found is None:
        raise SplitError(
            f"{image_id}: is no image id of the form {competition.ids.image}, and there is no other column"
        )
    return found["patient"]


def read_sample_ids(path: Path, competition: Competition) -> list[str]:
    """The ids a submission must have, in order, from the sample submission at `path`.

    Raises SplitError when it is missing or malformed, or when an id is empty or repeats.
    """
    rows = read_table(path, competition.header)
    ids = [row[competition.columns.patient] for row in rows]
    for patient, count in Counter(ids).items():
        if not patient or count > 1:
            raise SplitError(f"{path}: {competition.columns.patient} {patient or '(empty)'} stands {count} times")
    return ids


def kind_of(split_dir: Path) -> str:
    """The word for a split that the kit drew, with its space, and nothing for another: for lines that name a split."""
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
        raise SplitError(f"{competition.table_path(split_dir, split)}: {columns.image} {image_id!r} is no file name")
    path = competition.slide_path(split_dir, split, image_id)
    index = None if label is None else names.index(label)
    return SlideRow(image_id, row[columns.patient], path, index, row.get(columns.center, ""))


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
