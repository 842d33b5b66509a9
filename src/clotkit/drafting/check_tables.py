"""Check the tables of a data folder: columns, labels, shares, the sample's header."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from clotkit.competitions import Competition, Form
from clotkit.drafting.finding import Finding, some
from clotkit.errors import SplitError
from clotkit.reasons import Misfit
from clotkit.splits import Row, read_table
from clotkit.splits.labels import class_index

OWN = frozenset({"{split}", "{image_id}", "{patient_id}"})  # placeholders that are no columns
FAR, ERRORS = 0.05, 3.0  # a prior is far from a share by more than FAR and by so many standard errors


@dataclass(frozen=True)
class Tables:
    """The rows of each table that could be read; None for the others."""

    train: Sequence[Row] | None
    test: Sequence[Row] | None
    labels: Sequence[Row] | None
    sample: Sequence[Row] | None


def check_tables(competition: Competition, data: Path) -> tuple[Tables, list[Finding]]:
    """Read the tables of a folder; return them and what does not fit in them."""
    files, columns = competition.files, competition.columns
    found: list[Finding] = []
    own_label = [] if files.labels else [columns.label]
    optional = [columns.center, columns.number, "" if competition.ids.image else columns.patient]
    needed = list(filter(None, [columns.image, *own_label, *optional]))
    by_image = competition.by_image and not competition.table_path(data, "test").is_file()
    tables = Tables(
        train=_read(data, files.table.format(split="train"), needed, found, competition),
        test=None if by_image else _read(data, files.table.format(split="test"), [columns.image], found, competition),
        labels=_read(data, files.labels, [columns.image, columns.label], found, competition) if files.labels else None,
        sample=_read(data, files.sample, list(competition.header), found, competition),
    )
    for split, rows in (("train", tables.train), ("test", tables.test)):
        found += check_placeholders(competition, files.table.format(split=split), rows)
    found += check_labels(competition, tables)
    found += check_sample(competition, tables.sample)
    return tables, found


def _read(
    data: Path, name: str, needed: Sequence[str], found: list[Finding], competition: Competition
) -> list[Row] | None:
    """Return the rows of a table, None if it is missing or lacks a column; `found` gets why."""
    path = data / name
    is_sample = name == competition.files.sample
    if not path.is_file():
        keys = {competition.files.sample: "files.sample", competition.files.labels: "files.labels"}
        is_test = name == competition.files.table.format(split="test")
        listed = "; the sample's rows are patients, so this table must list the slides" if is_test else ""
        found.append(Finding(Misfit.NO_TABLE, name, f"is missing{listed}", key=keys.get(name, "files.table")))
        return None
    try:
        return read_table(path, needed)
    except SplitError as error:
        missing = _missing(path, needed)
        code = Misfit.SAMPLE_HEADER if is_sample else Misfit.NO_COLUMN
        text = str(error).removeprefix(f"{path}: ")
        keys = {column: key for key, column in vars(competition.columns).items()}
        found += [
            Finding(code, name, text, key="submission.columns" if is_sample else f"columns.{keys.get(column, '')}")
            for column in missing
        ] or [Finding(Misfit.REFUSED, name, text)]
        return None


def _missing(path: Path, needed: Sequence[str]) -> list[str]:
    """Return the columns that a table lacks; none if it cannot be read at all."""
    try:
        (first, *_) = read_table(path, [], needed)
    except SplitError:
        return []
    return [column for column in needed if column not in first]


def check_placeholders(competition: Competition, where: str, rows: Sequence[Row] | None) -> Iterator[Finding]:
    """Yield the placeholders of patterns that no column of a table has."""
    patterns = {"files.slide": competition.files.slide}
    patterns["facts.missing_file"] = tuple(fact.missing_file for fact in competition.facts)
    for key, texts in patterns.items():
        fields = {f"{{{field}}}" for text in texts for _, field, _, _ in Formatter().parse(text) if field}
        for field in sorted(fields - OWN - {f"{{{column}}}" for column in rows[0]}) if rows else []:
            text = f"no column for {field} of {key}; it has: {', '.join(rows[0]) if rows else ''}"
            yield Finding(Misfit.UNKNOWN_PLACEHOLDER, where, text, key=key)


def label_counts(competition: Competition, tables: Tables) -> Counter[str]:
    """Return how many rows of train have each class, and each label that is none."""
    rows = tables.labels if competition.files.labels else tables.train
    names = competition.classes.names
    counts: Counter[str] = Counter()
    for row in rows or []:
        label = row.get(competition.columns.label, "")
        index = class_index(label, names)
        counts[label if index is None else names[index]] += 1
    return counts


def check_labels(competition: Competition, tables: Tables) -> Iterator[Finding]:
    """Yield labels that are no class, classes that no row has, and priors far from the shares."""
    rows = tables.labels if competition.files.labels else tables.train
    if rows is None:
        return
    where = competition.files.labels or competition.files.table.format(split="train")
    counts, classes = label_counts(competition, tables), competition.classes
    for label in [label for label in counts if label not in classes.names]:
        row = next(row.number for row in rows if row.get(competition.columns.label, "") == label)
        known = ", ".join(classes.names)
        text = f"{label or '(blank)'} is not a class, in {counts[label]} of {len(rows)} rows; {known} are"
        yield Finding(Misfit.UNKNOWN_LABEL, where, text, "classes.names", row, counts[label], len(rows))
    for name in [name for name in classes.names if not counts[name]]:
        text = f"0 of {len(rows)} rows have the class {name}"
        yield Finding(Misfit.EMPTY_CLASS, where, text, "classes.names", of=len(rows))
    total = sum(counts[name] for name in classes.names)
    for name, weight in zip(classes.names, classes.priors, strict=True):
        prior = weight / sum(classes.priors)
        share = counts[name] / total if total else prior
        if abs(prior - share) > max(FAR, ERRORS * math.sqrt(prior * (1 - prior) / max(total, 1))):
            text = f"the prior of {name} is {prior:.3f}, its share is {share:.3f} ({counts[name]} of {total})"
            yield Finding(Misfit.PRIOR_FAR, where, text, "classes.priors", count=counts[name], of=total)


def check_sample(competition: Competition, rows: Sequence[Row] | None) -> Iterator[Finding]:
    """Yield what the sample has beside the submission's columns, and labels that are no answer."""
    if rows is None:
        return
    where = competition.files.sample
    for column in [column for column in rows[0] if column not in competition.header]:
        text = f"has the column {column}; a submission has {', '.join(competition.header)}"
        yield Finding(Misfit.SAMPLE_HEADER, where, text, "submission.columns")
    if competition.submission.form is not Form.LABEL:
        return
    (answer,) = competition.submission.columns
    bad = [row for row in rows if row[answer] and class_index(row[answer], competition.answers) is None]
    if bad:
        labels = some(dict.fromkeys(row[answer] for row in bad))
        text = f"{labels} is no answer, in {len(bad)} of {len(rows)} rows; {', '.join(competition.answers)} are"
        yield Finding(Misfit.UNKNOWN_LABEL, where, text, "submission.outlier", bad[0].number, len(bad), len(rows))
