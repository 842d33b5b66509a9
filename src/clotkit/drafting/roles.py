"""Guess the role of each table (sample, train, test, labels) and of their columns."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

from clotkit.drafting.contents import Contents, Table
from clotkit.errors import UsageError
from clotkit.splits.identity import without_suffix

SAMPLE_WORDS = re.compile(r"sample|submission|format|template")
PATIENT_WORDS = re.compile(r"(?<![a-z])(patient|case|subject|person|participant|donor)(?![a-z])|^pid$|^ptid$")
CENTER_WORDS = re.compile(r"center|centre|provider|hospital|institut|^site$|^site_?id$|source_?site")
LABEL_WORDS = re.compile(r"label|class|diagnos|target|grade|subtype|outcome|stage|^y$")
NEGATIVE = frozenset({"normal", "benign", "negative", "neg", "no", "control", "healthy", "absent", "false", "none"})
MOST_CLASSES = 50


@dataclass(frozen=True)
class Roles:
    """The tables of a competition."""

    train: Table | None
    test: Table | None
    sample: Table | None
    labels: Table | None  # of the train split, apart from `train`
    pattern: str  # the name of train and test tables, with {split}


@dataclass(frozen=True)
class ColumnRoles:
    """The columns of the train table by what they hold; empty: there is none."""

    id: str  # of the sample
    image: str
    patient: str = ""
    center: str = ""
    number: str = ""
    label: str = ""

    @property
    def answer(self) -> str:
        """Return the column of labels; where there is none, a name that no other column has."""
        return self.label or ("label" if "label" not in (self.id, self.image, self.patient) else "class")


def find_roles(contents: Contents) -> Roles:
    """Guess the role of each table. Raises UsageError if there is neither a train table nor a sample."""
    tables = dict(contents.tables)
    sample = find_sample(tables)
    others = {name: table for name, table in tables.items() if table is not sample}
    train = find_train(others, sample)
    if sample is None and train is None:
        raise UsageError(
            f"{contents.root}: {len(tables)} tables (.csv, .tsv) and {len(contents.slides)} slides, but neither a "
            "sample submission nor a table of the train slides; unpack them into this folder"
        )
    name = train.name if train else "train.csv"
    test = others.get(other_split(name))
    labels = find_labels([table for table in others.values() if table not in (train, test)], train, sample)
    folder, file = PurePosixPath(name).parent, PurePosixPath(name).name
    pattern = file.replace("train", "{split}", 1) if "train" in file else f"{{split}}{PurePosixPath(file).suffix}"
    return Roles(train, test, sample, labels, (folder / pattern).as_posix())


def find_sample(tables: dict[str, Table]) -> Table | None:
    """Return the table with a sample's name, else one with unique ids and the same answers for all."""
    wide = [table for table in tables.values() if len(table.columns) > 1]
    named = [table for table in wide if SAMPLE_WORDS.search(PurePosixPath(table.name).stem.casefold())]
    named.sort(key=lambda table: ("sample" not in table.name.casefold(), len(table.name)))
    shared = [
        table for table in wide
        if any(table.columns[0] in other.columns for other in tables.values() if other is not table)
    ]  # fmt: skip
    return next(iter([*named, *filter(_answers_alike, shared)]), None)


def _answers_alike(table: Table) -> bool:
    """Return True if the first column is unique, each other is constant, and the name is of no split."""
    first, *others = (table.cells(column) for column in table.columns)
    alike = all(len(set(cells)) == 1 for cells in others)
    is_split = re.search("train|test", table.name.casefold())
    return len(set(first)) == len(first) and alike and not is_split


def find_train(tables: dict[str, Table], sample: Table | None) -> Table | None:
    """Return the table of train by its name, best with a test table; else the longest other one."""
    named = [table for table in tables.values() if "train" in PurePosixPath(table.name).name.casefold()]
    paired = [table for table in named if other_split(table.name) in tables]
    rest = [table for table in tables.values() if not re.search("test|truth", table.name.casefold())]
    id_column = sample.columns[0] if sample else ""
    for group in (paired, named, rest):
        if group:
            return max(group, key=lambda table: (id_column in table.columns, len(table.rows), -len(table.name)))
    return None


def other_split(name: str) -> str:
    """Return the name of the test table beside a train table."""
    path = PurePosixPath(name)
    return (path.parent / path.name.replace("train", "test", 1)).as_posix() if "train" in path.name else ""


def find_labels(tables: Sequence[Table], train: Table | None, sample: Table | None) -> Table | None:
    """Return the table that has the labels of the train table's rows, if that one has none."""
    if train is None:
        return None
    answers = sample.columns[1:] if sample else []
    if any(column in train.columns for column in answers):
        return None
    for table in tables:
        shared = [column for column in train.columns if column in table.columns]
        known = {without_suffix(cell) for column in shared[:1] for cell in table.cells(column)}
        covered = [without_suffix(cell) in known for column in shared[:1] for cell in train.cells(column)]
        has_label = any(column in answers or LABEL_WORDS.search(column.casefold()) for column in table.columns)
        already = any(LABEL_WORDS.search(column.casefold()) for column in train.columns)
        if covered and sum(covered) > len(covered) / 2 and has_label and not already:
            return table
    return None


def find_columns(roles: Roles, contents: Contents) -> ColumnRoles:
    """Guess what the columns of the tables hold."""
    tables = [table for table in (roles.train, roles.test) if table is not None]
    sample_id = _sample_id(roles, tables)
    image = find_image(tables or [roles.sample] if roles.sample else tables, sample_id, contents)
    if roles.train is None:
        return ColumnRoles(sample_id or image, image)
    rest = [column for column in roles.train.columns if column != image]
    patient = find_patient(roles.train, rest, sample_id)
    rest = [column for column in rest if column != patient]
    label = find_label(roles, image, rest)
    rest = [column for column in rest if column != label]
    centers = [
        column
        for column in rest
        if CENTER_WORDS.search(column.casefold())
        and 1 < len(set(roles.train.cells(column))) <= len(roles.train.rows) / 2
    ]
    number = find_number(roles.train, rest, patient) if patient else ""
    return ColumnRoles(sample_id or image, image, patient, next(iter(centers), ""), number, label)


def _sample_id(roles: Roles, tables: Iterable[Table]) -> str:
    """Return the sample's column of ids: the first that another table has, else its first one."""
    if roles.sample is None:
        return ""
    shared = [column for column in roles.sample.columns if any(column in table.columns for table in tables)]
    unique = [column for column in shared if len(set(roles.sample.cells(column))) == len(roles.sample.rows)]
    return next(iter([*unique, *roles.sample.columns]))


def find_image(tables: Sequence[Table], sample_id: str, contents: Contents) -> str:
    """Return the column whose cells name most slides; without slides the sample's id or a unique one."""
    columns = [column for column in tables[0].columns if all(column in table.columns for table in tables)]
    shares = {column: _share_named(tables, column, contents) for column in columns or tables[0].columns}
    best = max(shares, key=lambda column: (shares[column], column == sample_id))
    if shares[best] > 0:
        return best
    unique = [column for column in shares if len(set(tables[0].cells(column))) == len(tables[0].rows)]
    return sample_id if sample_id in shares and (sample_id in unique or not unique) else next(iter([*unique, best]))


def _share_named(tables: Iterable[Table], column: str, contents: Contents) -> float:
    """Return the share of unique cells that are names of slides; a word of the name counts a little."""
    cells = [without_suffix(cell) for table in tables for cell in table.cells(column)]
    whole = sum(cell in contents.by_stem for cell in set(cells)) / len(cells)
    few = sorted(cell for cell in set(cells) if len(cell) > 2)[:20]
    words = 0.0 if whole else sum(bool(contents.named_after(cell)) for cell in few) / 20
    return whole or words * len(set(cells)) / len(cells) / 10


def find_patient(train: Table, columns: Sequence[str], sample_id: str) -> str:
    """Return the column of patients: the sample's id beside the image, else one named so that repeats."""
    if sample_id in columns:
        return sample_id
    repeating = [column for column in columns if len(set(train.cells(column))) < len(train.rows)]
    return next((column for column in repeating if PATIENT_WORDS.search(column.casefold())), "")


def find_number(train: Table, columns: Sequence[str], patient: str) -> str:
    """Return the column that counts the slides of each patient from 0."""
    for column in columns if len(set(train.cells(patient))) < len(train.rows) else ():
        numbers = defaultdict[str, list[str]](list)
        for row in train.rows:
            numbers[row[patient]].append(row[column])
        if all(sorted(cells) == sorted(map(str, range(len(cells)))) for cells in numbers.values()):
            return column
    return ""


def find_label(roles: Roles, image: str, columns: Sequence[str]) -> str:
    """Return the column of classes: the sample's answer, or named so, or with the fewest values."""
    table = roles.labels or roles.train
    if table is None:
        return ""
    hidden = [
        column for column in (table.columns if roles.labels else columns)
        if column != image and not (roles.test and column in roles.test.columns)
    ]  # fmt: skip
    counts = {column: len(set(table.cells(column)) - {""}) for column in hidden}
    answers = roles.sample.columns if roles.sample else []
    of_classes = (
        answers if len(set(answers) & set(hidden)) > 1 else []
    )  # a column a class, in train too: none is the label
    few = [
        column for column in hidden
        if 1 < counts[column] <= MOST_CLASSES and counts[column] < len(table.rows) and column not in of_classes
    ]  # fmt: skip
    told = [column for column in few if set(answer_classes(answers, table.cells(column))) > {""}]
    named = [column for column in few if LABEL_WORDS.search(column.casefold())]
    fewest = sorted(few, key=lambda column: counts[column])
    return next(iter([*(column for column in few if column in answers), *told, *named, *fewest]), "")


def answer_classes(answers: Sequence[str], labels: Collection[str]) -> list[str]:
    """Return the label that each answer column names, empty for none: its name is or ends with the label."""
    return [
        max((label for label in set(labels) if label and _names(column, label)), key=len, default="")
        for column in answers
    ]


def _names(column: str, label: str) -> bool:
    words = [re.sub(r"[\W_]+", " ", text).strip().casefold() for text in (column, label)]
    return words[0] == words[1] or words[0].endswith(f" {words[1]}")


def ordered(labels: Collection[str]) -> list[str]:
    """Return the labels in order: numbers by value, a negative word first, others by the alphabet."""
    if numbers := as_integers(labels):
        return [str(number) for number in sorted(set(numbers))]
    unique = {label.casefold(): label for label in sorted(labels, reverse=True)}  # case does not tell classes apart
    return sorted(unique.values(), key=lambda label: (label.casefold() not in NEGATIVE, label))


def as_integers(labels: Collection[str]) -> list[int]:
    """Return labels as integers, which a table program may write as 2.0; empty if one is none."""
    matches = [re.fullmatch(r"(-?[0-9]{1,9})(\.0*)?", label) for label in labels]
    return [int(match[1]) for match in matches if match] if all(matches) else []


def in_order(labels: Collection[str]) -> bool:
    """Return True for integers without a gap."""
    numbers = sorted(set(as_integers(labels)))
    return len(numbers) > 1 and all(b - a == 1 for a, b in pairwise(numbers))


def shares(labels: Iterable[str], names: Sequence[str]) -> list[float]:
    """Return the share of each class among labels."""
    counts = Counter(labels)
    total = sum(counts[name] for name in names) or 1
    return [round(counts[name] / total, 4) for name in names]
