"""Write the tables of a synthetic split as a competition declares them, and name its slides' files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter

from clotkit.competitions import Competition, Form
from clotkit.errors import ConfigError
from clotkit.metric import best_label
from clotkit.synthetic.folder import write_table
from clotkit.synthetic.phantom_patients import Patient, image_id_of

CORES = 4  # one slide in so many has the facts that a missing file tells
FOLDERS = 2  # different values of a column that only the names of files need
SUFFIX = ".tif"  # of ids with an extension, where the names of slides have none
# Placeholders of names that are not columns.
KNOWN = [field for _, field, _, _ in Formatter().parse("{split}{image_id}{patient_id}")]


@dataclass(frozen=True)
class PhantomRow:
    """One slide of a synthetic split in its table."""

    image_id: str
    patient: Patient
    cells: dict[str, str]  # by column, without the label
    facts: dict[str, bool]  # of [[facts]], also where the table lacks them
    name: str  # of the slide's file in the split's folder
    fact_files: tuple[str, ...]  # the files in the split's folder that are there as a fact is False


def draw_rows(split: str, patients: list[Patient], competition: Competition) -> list[PhantomRow]:
    """Return a row for each slide of the patients.

    Raises ConfigError if the columns of a table cannot name its files.
    """
    slides = [(patient, number) for patient in patients for number in range(patient.slides)]
    return [_row(split, at, patient, number, competition) for at, (patient, number) in enumerate(slides)]


def _row(split: str, at: int, patient: Patient, number: int, competition: Competition) -> PhantomRow:
    columns, image_id = competition.columns, image_id_of(competition, patient, number)
    facts = {fact.name: at % CORES == CORES - 1 for fact in competition.facts}
    values: dict[str, object] = {columns.image: image_id, columns.center: patient.center, columns.patient: patient.id}
    values |= {columns.number: number, **(facts if split == "train" else {})}
    if competition.ids.has_extension:
        values[columns.image] = image_id + (PurePosixPath(competition.files.slide[0]).suffix or SUFFIX)
    cells: dict[str, str] = {column: str(value) for column, value in values.items() if column}
    for column in _columns_of_names(competition):
        cells.setdefault(column, f"{column}_{1 + at % FOLDERS}")
    known = {column: str(cell) for column, cell in cells.items()}
    files = [competition.named(fact.missing_file, split, image_id, patient.id, known) for fact in competition.facts]
    return PhantomRow(
        image_id,
        patient,
        cells,
        facts,
        competition.slide_names(split, image_id, patient.id, known)[0],
        tuple(file for file, fact in zip(files, facts.values(), strict=True) if not fact),
    )


def _columns_of_names(competition: Competition) -> list[str]:
    """Return the columns of the table that the names of slides have. Raises ConfigError for the label's."""
    parsed = [part for pattern in competition.files.slide for part in Formatter().parse(pattern)]
    columns = [field for _, field, _, _ in parsed if field and field not in KNOWN]
    if competition.columns.label in columns:
        raise ConfigError(
            f"{competition.source}: files.slide has {{{competition.columns.label}}}, the label, which a test table "
            "lacks; name another column"
        )
    return columns


def named_by_id(competition: Competition) -> bool:
    """Return True if the files of a split follow from its image ids alone."""
    name = competition.files.slide[0].replace("{split}", "").replace("{image_id}", "")
    return not competition.facts and "{" not in name


def table_files(split: str, competition: Competition) -> Iterator[str]:
    """Yield the names of the tables of a split in its folder."""
    if split == "train":
        yield competition.files.labels
    else:
        yield competition.files.sample
    yield competition.files.table.format(split=split)


def write_tables(out: Path, split: str, rows: list[PhantomRow], competition: Competition) -> None:
    """Write the table of a split, the labels of train or the sample submission of test; the table last."""
    files, label = competition.files, competition.columns.label
    rows = sorted(rows, key=lambda row: row.image_id)
    header, body = list(rows[0].cells), [list(row.cells.values()) for row in rows]
    labels = [competition.answers[row.patient.label] for row in rows]
    if split == "test":
        _write_sample(out / files.sample, rows, competition)
    elif files.labels:
        pairs = [(row.cells[competition.columns.image], name) for row, name in zip(rows, labels, strict=True)]
        write_table(out / files.labels, (competition.columns.image, label), pairs)
    else:
        header, body = [*header, label], [[*line, name] for line, name in zip(body, labels, strict=True)]
    if split == "train" or files.test_table:
        write_table(competition.table_path(out, split), header, body)


def _write_sample(path: Path, rows: list[PhantomRow], competition: Competition) -> None:
    """Write the sample submission: the fallback for each patient or slide."""
    column = competition.columns.image
    ids = sorted({str(row.cells[column]) if competition.by_image else row.patient.id for row in rows})
    write_table(path, competition.header, [[one, *_fallback(competition)] for one in ids])


def _fallback(competition: Competition) -> list[str | float]:
    """Return the cells of an answer without information, in the submission's form."""
    form, classes = competition.submission.form, competition.classes
    if form is Form.PROBABILITIES:
        return list(classes.fallback)
    if form is Form.PROBABILITY:
        return [classes.fallback[-1]]
    best = classes.names[best_label(competition.metric.name, classes.priors)]
    return [competition.submission.fallback or best]
