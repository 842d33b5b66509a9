"""Read the slides of a split: the rows of its table, their patients and their files."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.progress import Log
from clotkit.reasons import TableRepair
from clotkit.scratch import scratch
from clotkit.splits.identity import Identity, joined
from clotkit.splits.sample import read_sample_ids
from clotkit.splits.slide_files import matching_files
from clotkit.splits.tables import Row, read_table
from clotkit.stores import Place, StoredFile, store_of

MOST_NAMED = 5  # slides in a line of the log
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
    row: int = 0  # its row in the table, from 1; 0: unknown
    repairs: tuple[TableRepair, ...] = ()  # how its row was read otherwise than it is written
    # Of the file, size in bytes and time of change in ns, see `looking`; empty: it does not answer; None: ask it.
    size_and_mtime: tuple[int, ...] | None = None

    @property
    def size_bytes(self) -> int:
        """Return the file's size in bytes, 0 if it is missing or does not answer."""
        if self.stored is not None:
            return self.stored.entry.size_bytes
        if self.size_and_mtime is not None:
            return self.size_and_mtime[0] if self.size_and_mtime else 0
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


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

    A slide whose file is missing is not an error here. The first row counts if rows repeat. Rows that were read
    otherwise than they are written have `repairs`, and the log says so.

    Raises:
        SplitError: a table is missing or malformed, a label is not a class, or it is uncertain which patient or which
            file a row is about.
    """
    columns, path = competition.columns, competition.table_path(split_dir, split)
    required = [columns.image, *([columns.label] if split == "train" else [])]
    rows = read_table(path, required, [columns.patient, columns.center], log)
    if columns.patient not in rows[0]:
        log(f"{path}: no column {columns.patient}; patient ids are taken from {columns.image}")
    known = _sample_ids(split_dir, competition) if split == "test" else None
    identities = joined(rows, str(path), competition, known)
    labels = [_label(one.row, str(path), competition) if split == "train" else None for one in identities]
    _check_one_label(identities, labels, str(path), competition)
    slides = [
        SlideRow(
            one.image_id,
            one.patient_id,
            competition.slide_path(split_dir, split, one.image_id),
            label,
            one.row.get(columns.center, ""),
            row=one.row.number,
            repairs=one.repairs,
        )
        for one, label in zip(identities, labels, strict=True)
    ]
    found = _with_local_files(_first_rows(slides, str(path)), split_dir, str(path))
    _log_repairs(found, path, competition, log)
    return found


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
    return [
        replace(slide, stored=StoredFile(store, name, entries[name])) if name in entries else slide
        for slide in _with_files(slides, split_dir, entries, str(where))
        for name in [slide.path.relative_to(split_dir).as_posix()]
    ]


def kind_of(split_dir: Path) -> str:
    """Return "synthetic " for a split that clotkit drew, else "": a prefix for lines that name a split."""
    return "synthetic " if (split_dir / SYNTHETIC).is_file() else ""


def _sample_ids(split_dir: Path, competition: Competition) -> list[str] | None:
    """Return the patients of the sample submission; None if there is no sound one."""
    with suppress(SplitError):
        return read_sample_ids(competition.sample_path(split_dir), competition)
    return None


def _label(row: Row, where: str, competition: Competition) -> int:
    """Return the class index of a row. Raises SplitError if its label is not a class."""
    columns, names = competition.columns, competition.classes.names
    label = row[columns.label]
    found = [index for index, name in enumerate(names) if name == label or name.casefold() == label.casefold()]
    if len(found) != 1:
        raise SplitError(
            f"{where}: row {row.number}: {row[columns.image]} has {columns.label} {label!r}; "
            f"classes: {', '.join(names)}"
        )
    return found[0]


def _check_one_label(
    identities: Sequence[Identity], labels: Sequence[int | None], where: str, competition: Competition
) -> None:
    """Raise SplitError if two rows give one patient two classes."""
    first: dict[str, tuple[Identity, int | None]] = {}
    for one, label in zip(identities, labels, strict=True):
        other, other_label = first.setdefault(one.patient_id, (one, label))
        if label is not None and other_label is not None and other_label != label:
            columns, names = competition.columns, competition.classes.names
            raise SplitError(
                f"{where}: row {one.row.number} gives {columns.patient} {one.patient_id} the {columns.label} "
                f"{names[label]}, row {other.row.number} gives it {names[other_label]}; 1 class is allowed: correct one"
            )


def _first_rows(slides: Sequence[SlideRow], where: str) -> list[SlideRow]:
    """Return the first row of each image id. Raises SplitError if rows of one image differ in the patient."""
    first: dict[str, SlideRow] = {}
    for slide in slides:
        earlier = first.setdefault(slide.image_id, slide)
        if earlier.patient_id != slide.patient_id:
            raise SplitError(
                f"{where}: row {slide.row} gives {slide.image_id} the patient {slide.patient_id}, row {earlier.row} "
                f"gives it {earlier.patient_id}; 1 is allowed: correct one"
            )
        if earlier is not slide:
            repairs = (*earlier.repairs, *slide.repairs, TableRepair.REPEATED)
            first[slide.image_id] = replace(earlier, repairs=tuple(dict.fromkeys(repairs)))
    return list(first.values())


def _log_repairs(slides: Sequence[SlideRow], path: Path, competition: Competition, log: Log) -> None:
    """Log a line for each kind of repair, with the first rows that it was made in."""
    columns = competition.columns
    texts = {
        TableRepair.BLANK_PATIENT: f"{columns.patient} is blank and taken from {columns.image}",
        TableRepair.ID_AS_NUMBER: f"{columns.patient} was read as a number by a table program and is restored",
        TableRepair.SPELLING: f"{columns.patient} is spelled in another way than elsewhere; the same patient is meant",
        TableRepair.CONTRADICTION: f"{columns.patient} contradicts {columns.image}; joined to",
        TableRepair.EXTENSION: f"{columns.image} has a file's extension, which is left out",
        TableRepair.OTHER_FILE: "the slide's file has another name than expected",
        TableRepair.REPEATED: f"{columns.image} is repeated; the first row counts",
        TableRepair.NOT_IN_SAMPLE: f"{columns.patient} is not in {competition.files.sample}: not in the output",
    }
    for repair, text in texts.items():
        rows = [slide for slide in slides if repair in slide.repairs]
        names = [f"{slide.image_id} ({slide.patient_id}, row {slide.row})" for slide in rows[:MOST_NAMED]]
        if rows:
            log(f"{path}: {text}: {', '.join(names)}{f' and {len(rows) - MOST_NAMED} more' * (len(rows) > MOST_NAMED)}")


def _with_local_files(slides: Sequence[SlideRow], split_dir: Path, where: str) -> list[SlideRow]:
    """Return the slides, those whose expected file is missing with the one in its folder that is meant.

    Folders are listed, but no file is looked at: that may never return, if its disk does not answer.
    """
    names = set[str]()
    for folder in {slide.path.parent for slide in slides}:
        with suppress(OSError):
            names |= {path.relative_to(split_dir).as_posix() for path in folder.iterdir()}
    return _with_files(slides, split_dir, names, where)


def _with_files(slides: Sequence[SlideRow], split_dir: Path, names: Collection[str], where: str) -> list[SlideRow]:
    """Return the slides with the files that are meant, of all `names` in the split's folder."""
    wanted = [slide.path.relative_to(split_dir).as_posix() for slide in slides]
    found = matching_files(wanted, names, where) if names else {}
    return [
        replace(slide, path=split_dir / found[name], repairs=(*slide.repairs, TableRepair.OTHER_FILE))
        if name in found
        else slide
        for slide, name in zip(slides, wanted, strict=True)
    ]
