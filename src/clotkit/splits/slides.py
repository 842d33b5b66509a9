"""Read the slides of a split: the rows of its table, their patients and their files."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from clotkit.competitions import Competition
from clotkit.errors import SplitError, UsageError
from clotkit.progress import Log
from clotkit.reasons import TableRepair
from clotkit.scratch import scratch
from clotkit.splits.identity import Identity, in_sample, joined, patient_of, without_suffix
from clotkit.splits.labels import labels_of
from clotkit.splits.sample import read_sample, read_sample_ids
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
    facts: Mapping[str, str] = field(default_factory=dict)  # the cells of its row by column, and derived facts
    names: tuple[str, ...] = ()  # that its file may have in the split's folder, in the order to try them
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


def row_id(slide: SlideRow, competition: Competition) -> str:
    """Return the id of the submission's row that a slide counts for: its patient's, or its own."""
    return slide.image_id if competition.by_image else slide.patient_id


def first_of_each_class(slides: Sequence[SlideRow], limit: int | None) -> list[SlideRow]:
    """Return the first `limit` slides of each class, or all for None. Raises UsageError for fewer than 1."""
    if limit is None:
        return list(slides)
    if limit < 1:
        raise UsageError(f"--limit is {limit}; at least 1 slide per class is needed")
    labels = sorted({slide.label or 0 for slide in slides})
    return [slide for label in labels for slide in [one for one in slides if one.label == label][:limit]]


def split_of(split_dir: Path, competition: Competition, order: Sequence[str]) -> str:
    """Return the first split of `order` whose table is in the folder. Raises SplitError if none is."""
    tables = {split: competition.table_path(split_dir, split) for split in order}
    for split, path in tables.items():
        if path.is_file() or (split == "test" and _sample_lists_slides(split_dir, competition)):
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
    path = competition.table_path(split_dir, split)
    from_sample = split == "test" and not path.is_file() and _sample_lists_slides(split_dir, competition)
    path = competition.sample_path(split_dir) if from_sample else path
    rows = _rows_of_sample(path, competition) if from_sample else _rows_of_table(path, split, competition, log)
    known = _sample_ids(split_dir, competition) if split == "test" else None
    identities = joined(rows, str(path), competition, None if competition.by_image else known)
    if competition.by_image and known is not None:
        identities = in_sample(identities, known)
    labels: Sequence[int | None] = [None] * len(rows)
    if split == "train":
        labels = labels_of(identities, split_dir, str(path), competition, log)
    slides = [
        _slide_row(one, label, split_dir, split, path, competition)
        for one, label in zip(identities, labels, strict=True)
    ]
    if competition.by_image and known is not None:
        slides = [_noted(slide, TableRepair.NOT_IN_SAMPLE, slide.image_id not in known) for slide in slides]
    slides = [_noted(slide, TableRepair.FROM_SAMPLE, from_sample) for slide in slides]
    found = _with_local_files(_first_rows(slides, str(path)), split_dir, str(path), competition)
    _log_repairs(found, path, competition, log)
    return found


def _rows_of_table(path: Path, split: str, competition: Competition, log: Log) -> list[Row]:
    columns = competition.columns
    needs_label = split == "train" and not competition.files.labels
    known = filter(None, [columns.patient, columns.center])
    rows = read_table(path, [columns.image, *([columns.label] if needs_label else [])], list(known), log)
    if columns.patient and columns.patient not in rows[0]:
        log(f"{path}: no column {columns.patient}; patient ids are taken from {columns.image}")
    return rows


def _sample_lists_slides(split_dir: Path, competition: Competition) -> bool:
    """Return True if the rows of the sample submission are slides, and it is there."""
    return competition.by_image and competition.sample_path(split_dir).is_file()


def _rows_of_sample(path: Path, competition: Competition) -> list[Row]:
    """Return a row for each slide of the sample submission, in place of a test split's table."""
    rows = []
    for number, text in enumerate(read_sample(path, competition).texts, start=2):
        row = Row([(competition.columns.image, text)], number)
        if competition.columns.patient:  # which the sample lacks: the one in the image id, or the slide itself
            image_id = without_suffix(text)
            row.setdefault(competition.columns.patient, patient_of(image_id, competition) or image_id)
        rows.append(row)
    return rows


def _slide_row(
    one: Identity, label: int | None, split_dir: Path, split: str, path: Path, competition: Competition
) -> SlideRow:
    """Return a slide at its first name. Raises SplitError for a column or a name that cannot be used."""
    try:
        names = competition.slide_names(split, one.image_id, one.patient_id, one.row)
    except KeyError as error:
        raise SplitError(
            f"{path}: no column {error.args[0]}, which files.slide of {competition.source.name} names; it has: "
            f"{', '.join(one.row)}"
        ) from error
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise SplitError(f"{path}: row {one.row.number}: the slide would be {name!r}, outside the split's folder")
    centre = one.row.get(competition.columns.center, "")
    return SlideRow(
        one.image_id,
        one.patient_id,
        split_dir / names[0],
        label,
        centre,
        facts=dict(one.row),
        names=tuple(names),
        row=one.row.number,
        repairs=one.repairs,
    )


def _noted(slide: SlideRow, repair: TableRepair, holds: bool) -> SlideRow:
    return replace(slide, repairs=(*slide.repairs, repair)) if holds else slide


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
        beside = [folder / name for name in (competition.files.labels, SYNTHETIC) if name]
        for path in (*tables, competition.sample_path(folder), *beside):
            with suppress(FileNotFoundError):
                store.fetch(path.relative_to(folder).as_posix(), path)
        if not any(path.is_file() for path in tables) and not _sample_lists_slides(folder, competition):
            names = " nor ".join(path.name for path in tables)
            raise SplitError(f"{where}: missing, or has neither {names}; a split folder needs one of them")
        yield folder


def in_store(slides: Sequence[SlideRow], split_dir: Path, where: Place, competition: Competition) -> list[SlideRow]:
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
        for slide in _with_files(slides, split_dir, entries, str(where), competition)
        for name in [slide.path.relative_to(split_dir).as_posix()]
    ]


def kind_of(split_dir: Path) -> str:
    """Return "synthetic " for a split that clotkit drew, else "": a prefix for lines that name a split."""
    return "synthetic " if (split_dir / SYNTHETIC).is_file() else ""


def _sample_ids(split_dir: Path, competition: Competition) -> list[str] | None:
    """Return the ids of the sample submission; None if there is no sound one."""
    with suppress(SplitError):
        return read_sample_ids(competition.sample_path(split_dir), competition)
    return None


def _suffix(slide: SlideRow) -> str:
    """Return the extension of a slide's image id as its row has it, without capitals; empty for none."""
    written = next((cell for cell in slide.facts.values() if without_suffix(cell) == slide.image_id != cell), "")
    return PurePosixPath(written).suffix.casefold()


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
        if earlier.names != slide.names or _suffix(earlier) != _suffix(slide):
            raise SplitError(
                f"{where}: rows {earlier.row} and {slide.row} have the image id {slide.image_id}, but are two slides: "
                "each needs an id of its own"
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
        TableRepair.NOT_IN_SAMPLE: f"not in {competition.files.sample}, so not in the output",
        TableRepair.FROM_SAMPLE: f"there is no {competition.files.table.format(split='test')}; these are its slides",
        TableRepair.DERIVED_FACT: f"{', '.join(one.name for one in competition.facts)} is derived from other files",
    }
    for repair, text in texts.items():
        rows = [slide for slide in slides if repair in slide.repairs]
        names = [f"{slide.image_id} ({slide.patient_id}, row {slide.row})" for slide in rows[:MOST_NAMED]]
        if rows:
            log(f"{path}: {text}: {', '.join(names)}{f' and {len(rows) - MOST_NAMED} more' * (len(rows) > MOST_NAMED)}")


def _with_local_files(
    slides: Sequence[SlideRow], split_dir: Path, where: str, competition: Competition
) -> list[SlideRow]:
    """Return the slides with their files, those whose expected file is missing with the one that is meant.

    Folders are listed, but no file is looked at: that may never return, if its disk does not answer.
    """
    expected = [name for slide in slides for name in slide.names]
    expected += [name for slide in slides for name in _files_of_facts(slide, competition).values()]
    names = set[str]()
    for folder in {(split_dir / name).parent for name in expected}:
        with suppress(OSError):
            names |= {path.relative_to(split_dir).as_posix() for path in folder.iterdir()}
    return _with_files(slides, split_dir, names, where, competition)


def _with_files(
    slides: Sequence[SlideRow], split_dir: Path, names: Collection[str], where: str, competition: Competition
) -> list[SlideRow]:
    """Return the slides with the files that are meant and derived facts, by all `names` in the folder."""
    there = set(names)
    exact = {slide.image_id: name for slide in slides for name in reversed(slide.names) if name in there}
    others = there - set(exact.values())
    meant = _names_meant([slide for slide in slides if slide.image_id not in exact], others, where)
    name_of = {slide.image_id: slide.names[0] for slide in slides} | exact | meant
    placed = [replace(slide, path=split_dir / name_of[slide.image_id]) for slide in slides]
    placed = [_noted(slide, TableRepair.OTHER_FILE, slide.image_id in meant) for slide in placed]
    files = [_files_of_facts(slide, competition) for slide in placed]
    known = {fact for one in files for fact, name in one.items() if name in there}  # else the files are elsewhere
    return [
        _with_facts(slide, {fact: str(name not in there) for fact, name in one.items() if fact in known})
        for slide, one in zip(placed, files, strict=True)
    ]


def _names_meant(slides: Sequence[SlideRow], names: Collection[str], where: str) -> dict[str, str]:
    """Return {image id: the file that is meant} of slides without a file of any of their names."""
    found = dict[str, str]()
    for place in range(max((len(slide.names) for slide in slides), default=0) if names else 0):
        rest = [slide for slide in slides if slide.image_id not in found]
        files = matching_files([slide.names[place] for slide in rest], names, where)
        found |= {slide.image_id: files[name] for slide in rest if (name := slide.names[place]) in files}
    return found


def _files_of_facts(slide: SlideRow, competition: Competition) -> dict[str, str]:
    """Return {fact: the file whose absence tells it} of the facts that the slide's row lacks."""
    split = "train" if slide.label is not None else "test"
    unknown = [fact for fact in competition.facts if not slide.facts.get(fact.name)]
    try:
        return {
            fact.name: competition.named(fact.missing_file, split, slide.image_id, slide.patient_id, slide.facts)
            for fact in unknown
        }
    except KeyError as error:
        raise SplitError(
            f"{competition.source.name}: facts.missing_file has {{{error.args[0]}}}, which is no column of the {split} "
            f"table; it has: {', '.join(slide.facts)}"
        ) from error


def _with_facts(slide: SlideRow, facts: Mapping[str, str]) -> SlideRow:
    return _noted(replace(slide, facts={**slide.facts, **facts}), TableRepair.DERIVED_FACT, bool(facts))
