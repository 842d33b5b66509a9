"""Find the class of each row of a train split: in its table, or in a table of labels beside it."""

from collections.abc import Sequence
from pathlib import Path

from clotkit.competitions import Competition, label_key
from clotkit.errors import SplitError
from clotkit.progress import Log
from clotkit.splits.identity import Identity, without_suffix
from clotkit.splits.tables import Row, read_table


def labels_of(
    identities: Sequence[Identity], split_dir: Path, where: str, competition: Competition, log: Log
) -> list[int]:
    """Return the class index of each row of a train split.

    Raises SplitError for a label that is not a class, a row without a label, or two classes of one patient where a
    patient has one answer.
    """
    if competition.files.labels:
        rows = _rows_of_labels(identities, split_dir / competition.files.labels, competition, log)
        where = str(split_dir / competition.files.labels)
    else:
        rows = [one.row for one in identities]
    labels = [label_of(row, where, competition) for row in rows]
    _check_one_label(identities, labels, where, competition)
    return labels


def _rows_of_labels(identities: Sequence[Identity], path: Path, competition: Competition, log: Log) -> list[Row]:
    """Return the row of a table of labels for each slide. Raises SplitError if one has none, or several."""
    columns, by_id = competition.columns, dict[str, Row]()
    for row in read_table(path, [columns.image, columns.label], log=log):
        earlier = by_id.setdefault(without_suffix(row[columns.image]), row)
        if label_of(earlier, str(path), competition) != label_of(row, str(path), competition):
            raise SplitError(
                f"{path}: row {row.number} gives {row[columns.image]} another {columns.label} than row "
                f"{earlier.number}; 1 is allowed: correct one"
            )
    missing = [one for one in identities if one.image_id not in by_id]
    if missing:
        raise SplitError(
            f"{path}: no {columns.label} of {len(missing)} of {len(identities)} slides, the first is "
            f"{missing[0].image_id} (row {missing[0].row.number} of the train table); add them, or leave the slides out"
        )
    if unused := len(by_id) - len({one.image_id for one in identities}):
        log(f"{path}: {unused} labels are of slides that the train table lacks")
    return [by_id[one.image_id] for one in identities]


def label_of(row: Row, where: str, competition: Competition) -> int:
    """Return the class index of a row. Raises SplitError if its label is not a class."""
    columns, names = competition.columns, competition.classes.names
    label = row[columns.label]
    found = class_index(label, names)
    if found is None:
        raise SplitError(
            f"{where}: row {row.number}: {row[columns.image]} has {columns.label} {label!r}; "
            f"classes: {', '.join(names)}"
        )
    return found


def class_index(label: str, names: Sequence[str]) -> int | None:
    """Return the index of the class that a label names, in any case; None if not exactly one."""
    found = [index for index, name in enumerate(names) if label_key(name) == label_key(label)]
    return found[0] if len(found) == 1 else None


def _check_one_label(
    identities: Sequence[Identity], labels: Sequence[int], where: str, competition: Competition
) -> None:
    """Raise SplitError if two rows give two classes to one patient, or to one slide that has an answer."""
    first: dict[str, tuple[Identity, int]] = {}
    for one, label in zip(identities, labels, strict=True):
        unit = one.image_id if competition.by_image else one.patient_id
        other, other_label = first.setdefault(unit, (one, label))
        if other_label != label:
            columns, names = competition.columns, competition.classes.names
            raise SplitError(
                f"{where}: row {one.row.number} gives {competition.submission.id} {unit} the {columns.label} "
                f"{names[label]}, row {other.row.number} gives it {names[other_label]}; 1 class is allowed: correct one"
            )
