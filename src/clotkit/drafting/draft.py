"""Draft a competition's TOML: what follows from its data folder, and what must be filled in."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from clotkit.competitions import Form, Limits, Rule, Unit, load_competition
from clotkit.drafting.answers import Answer, find_answer
from clotkit.drafting.contents import Contents, read_contents
from clotkit.drafting.patterns import Named, find_missing_file, find_patterns
from clotkit.drafting.roles import ColumnRoles, Roles, as_integers, find_columns, find_roles, other_split
from clotkit.drafting.slide_sizes import measure
from clotkit.drafting.toml_text import Line, Mark, toml_text
from clotkit.files import atomic_write
from clotkit.splits.identity import without_suffix
from clotkit.units import many

HEADING = """Drafted by `clotkit competition new` from {folder}.
Lines with "guessed" follow from the files there: check them. Lines with "FILL IN" are yours: correct the value, then
remove these two words. `clotkit competition check` says what is left."""
FLAGS = frozenset({"True", "False"})
LIMITS = {  # what a person must find on the competition's pages
    "deadline_s": "seconds that a run may take: the kernel's limit less an hour",
    "kernel_wall_s": "seconds that the competition allows a kernel (9 hours are 32400)",
    "hidden_slides": "slides that the scoring run sees; 0: unknown",
}


def draft_competition(folder: Path) -> list[Line]:
    """Return the lines of a competition's TOML, guessed from the files in a folder.

    Raises UsageError if the folder holds neither a sample submission nor a table of train.
    """
    contents = read_contents(folder)
    roles = find_roles(contents)
    columns = find_columns(roles, contents)
    answer = find_answer(roles, columns, contents.tables.values())
    rows = slide_rows(roles, columns)
    patterns = find_patterns(rows, contents)
    return [
        *_names(folder),
        *_files(roles, patterns, rows, contents),
        *_columns(columns, roles, rows),
        *_ids(roles, columns),
        *_classes(answer),
        *_submission(roles, columns, answer),
        Line("metric.name", answer.metric, Mark.GUESSED if answer.metric_known else Mark.FILL_IN, answer.metric_why),
        *_facts(roles, rows, contents),
        *_limits(),
        *_sizes(rows, patterns, contents),
    ]


def write_draft(lines: Sequence[Line], folder: Path, out: Path) -> None:
    """Write the TOML of a draft to `out`.

    Raises ConfigError, and writes nothing, for a draft that load_competition refuses.
    """
    text = toml_text(lines, HEADING.format(folder=folder.resolve().name))
    with atomic_write(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
        load_competition(str(temporary))


def slide_rows(roles: Roles, columns: ColumnRoles) -> list[Named]:
    """Return a row for each slide of the tables; without a test table, the sample's ids are its slides."""
    tables = [(split, table) for split, table in (("train", roles.train), ("test", roles.test)) if table is not None]
    shared = set.intersection(*(set(table.columns) for _, table in tables)) if roles.test else set[str]()
    cells = [name for name in shared - {columns.image, columns.patient, columns.label, "split"} if name.isidentifier()]
    rows = [
        Named(
            split,
            without_suffix(row.get(columns.image, "")),
            row.get(columns.patient, ""),
            {name: row[name] for name in cells},
        )
        for split, table in tables
        for row in table.rows
    ]
    if roles.test is None and roles.sample is not None and columns.id != columns.patient:
        rows += [Named("test", without_suffix(cell), "", {}) for cell in roles.sample.cells(columns.id)]
    return [row for row in rows if row.image_id]


def _names(folder: Path) -> Iterator[Line]:
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.casefold()).strip("-") or "competition"
    yield Line("slug", name, Mark.FILL_IN, "the competition's name in its URL; kernels are named after it")
    yield Line("title", folder.resolve().name or name, Mark.FILL_IN, "its name for people")


def _files(roles: Roles, patterns: Sequence[str], rows: Sequence[Named], contents: Contents) -> Iterator[Line]:
    if roles.sample:
        yield Line("files.sample", roles.sample.name, Mark.GUESSED, f"{many(len(roles.sample.rows), 'row')} of answers")
    else:
        yield Line("files.sample", "sample_submission.csv", Mark.FILL_IN, "no table here looks like a sample")
    yield Line("files.submission", "submission.csv", Mark.GUESSED, "the name that Kaggle expects")
    yield _table(roles)
    if roles.labels:
        yield Line("files.labels", roles.labels.name, Mark.GUESSED, "it has the labels of the train table's slides")
    if not patterns:
        why = f"{many(len(contents.slides), 'slide')} here, none with an id of the tables in its name"
        yield Line("files.slide", "{split}/{image_id}.tif", Mark.FILL_IN, why)
        return
    there = set(contents.slides)
    counts = []
    for split in ("train", "test"):
        found = [any(row.file(pattern) in there for pattern in patterns) for row in rows if row.split == split]
        counts += [f"{sum(found)} of {len(found)} {split} rows"] if found else []
    value = patterns[0] if len(patterns) == 1 else list(patterns)
    yield Line("files.slide", value, Mark.GUESSED, f"the files of {' and '.join(counts)}")


def _table(roles: Roles) -> Line:
    if roles.train is None:
        return Line("files.table", roles.pattern, Mark.FILL_IN, "there is no table of train")
    if not other_split(roles.train.name):
        why = f"rename {roles.train.name} to {roles.pattern.format(split='train')}: {{split}} stands for train or test"
        return Line("files.table", roles.pattern, Mark.FILL_IN, why)
    test = roles.test.name if roles.test else "no test table: the sample lists its slides"
    return Line("files.table", roles.pattern, Mark.GUESSED, f"{roles.train.name}, {test}")


def _columns(columns: ColumnRoles, roles: Roles, rows: Sequence[Named]) -> Iterator[Line]:
    yield Line("columns.image", columns.image, Mark.GUESSED, f"names slides, like {rows[0].image_id if rows else ''}")
    if columns.label:
        yield Line("columns.label", columns.label, Mark.GUESSED, "the classes of train")
    else:
        why = "no column of train has few values and is not in test; one label a row is needed, not a column a class"
        yield Line("columns.label", columns.answer, Mark.FILL_IN, why)
    if columns.patient and roles.train:
        count = len(set(roles.train.cells(columns.patient)))
        why = f"{many(count, 'patient')} of {many(len(roles.train.rows), 'train slide')}"
        yield Line("columns.patient", columns.patient, Mark.GUESSED, why)
    if columns.center and roles.train:
        count = len(set(roles.train.cells(columns.center)))
        yield Line("columns.center", columns.center, Mark.GUESSED, f"by its name; {count} values")
    if columns.number:
        yield Line("columns.number", columns.number, Mark.GUESSED, "0, 1, 2 … within each patient")


def _ids(roles: Roles, columns: ColumnRoles) -> Iterator[Line]:
    if roles.train is None:
        return
    images, patients = roles.train.cells(columns.image), roles.train.cells(columns.patient)
    lengths = {len(patient) for patient in patients}
    for form in ("[0-9]", "[0-9a-f]") if columns.patient and len(lengths) == 1 else ():
        if all(re.fullmatch(f"{form}+", patient) for patient in patients):
            why = "the form of every patient id of train"
            yield Line("ids.patient", f"{form}{{{lengths.pop()}}}", Mark.GUESSED, why)
            break
    pairs = [(without_suffix(image), patient) for image, patient in zip(images, patients, strict=True)]
    for mark in "_-" if all(patients) else "":
        if all(re.fullmatch(f"{re.escape(patient)}{mark}[0-9]+", image) for image, patient in pairs):
            yield Line("ids.image", f"{{patient}}{mark}{{number}}", Mark.GUESSED, "the form of every image id of train")
    if sum(without_suffix(image) != image for image in images) > len(images) / 2:
        yield Line("ids.has_extension", True, Mark.GUESSED, f"like {images[0]}")


def _classes(answer: Answer) -> Iterator[Line]:
    integers = as_integers(answer.names)
    mark = Mark.GUESSED if answer.names_known else Mark.FILL_IN
    yield Line("classes.names", integers or list(answer.names), mark, answer.names_why)
    if answer.priors and sum(answer.priors) > 0:
        yield Line("classes.priors", list(answer.priors), Mark.MEASURED, "shares in train")


def _submission(roles: Roles, columns: ColumnRoles, answer: Answer) -> Iterator[Line]:
    yield Line("submission.form", answer.form.value, Mark.GUESSED, answer.form_why)
    yield Line("submission.id", columns.id, Mark.GUESSED, "the sample's column of ids")
    unit, why = find_unit(roles, columns)
    yield Line("submission.unit", unit.value, Mark.GUESSED, why)
    yield Line("submission.columns", list(answer.columns), Mark.GUESSED, "the sample's other columns")
    if answer.form is Form.LABEL:
        yield Line("submission.rule", answer.rule.value, Mark.GUESSED, answer.rule_why)
    if answer.rule is Rule.OUTLIER:
        yield Line("submission.outlier", answer.outlier, Mark.GUESSED, "labels of test slides here have it")


def find_unit(roles: Roles, columns: ColumnRoles) -> tuple[Unit, str]:
    """Return what a row of the sample is, a patient or a slide, and why."""
    if columns.id == columns.image or not columns.patient:
        return Unit.IMAGE, f"{columns.id} is the id of a slide"
    if columns.id == columns.patient:
        return Unit.PATIENT, f"{columns.id} is the id of a patient"
    ids = set(map(without_suffix, roles.sample.cells(columns.id))) if roles.sample else set[str]()
    images = set(map(without_suffix, roles.test.cells(columns.image))) if roles.test else set[str]()
    return (Unit.IMAGE, "ids are those of slides") if ids & images else (Unit.PATIENT, "ids are not those of slides")


def _facts(roles: Roles, rows: Sequence[Named], contents: Contents) -> Iterator[Line]:
    """Yield the facts of train slides that the test table lacks and that the files tell."""
    train = [row for row in rows if row.split == "train"]
    if roles.train is None or roles.test is None or len(train) != len(roles.train.rows):
        return
    for column in roles.train.columns:
        cells = roles.train.cells(column)
        if column in roles.test.columns or set(cells) != FLAGS:
            continue
        if pattern := find_missing_file(train, [cell == "True" for cell in cells], contents):
            yield Line("facts.name", column, Mark.GUESSED, f"{roles.test.name} lacks this column")
            yield Line("facts.missing_file", pattern, Mark.GUESSED, "exactly the slides with False have this file")


def _limits() -> Iterator[Line]:
    for one in fields(Limits):
        why = LIMITS.get(one.name, "")
        yield Line(f"limits.{one.name}", one.default, Mark.FILL_IN if why else Mark.DEFAULT, why or "of the kit")


def _sizes(rows: Sequence[Named], patterns: Sequence[str], contents: Contents) -> Iterator[Line]:
    """Yield the sizes of the train slides that are here, or of the others where there are none."""
    there = set(contents.slides)
    files = [
        {
            name: None
            for row in rows
            if row.split == split
            for pattern in patterns
            if (name := row.file(pattern)) in there
        }
        for split in ("train", "test")
    ]
    paths = [contents.root / name for name in files[0] or files[1]]
    sizes = measure(paths)
    for one in fields(sizes) if sizes else ():
        yield Line(f"sizes.{one.name}", getattr(sizes, one.name), Mark.MEASURED, f"of {many(len(paths), 'slide')} here")
