"""Guess the form of a submission, its classes and its metric."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from clotkit.competitions import COLUMNS_OF_TABLES, Form, Rule
from clotkit.drafting.contents import Table
from clotkit.drafting.roles import (
    MOST_CLASSES,
    ColumnRoles,
    Roles,
    answer_classes,
    as_integers,
    in_order,
    ordered,
    shares,
)
from clotkit.splits.identity import BLANK, without_suffix

DECIMAL = re.compile(r"-?[0-9]*\.[0-9]+([eE]-?[0-9]+)?")


@dataclass(frozen=True)
class Answer:
    """The form of a submission with its classes, and why each is taken to be so."""

    form: Form
    form_why: str
    columns: Sequence[str]
    names: Sequence[str]
    names_why: str
    names_known: bool
    priors: Sequence[float]  # empty: unknown
    rule: Rule
    rule_why: str
    outlier: str
    metric: str
    metric_why: str
    metric_known: bool


def find_answer(roles: Roles, columns: ColumnRoles, tables: Iterable[Table]) -> Answer:
    """Guess the answer's form, classes, rule and metric from the labels of train and the sample's cells."""
    labels = train_labels(roles, columns)
    answers = [column for column in roles.sample.columns if column != columns.id] if roles.sample else []
    form, form_why = find_form(roles, answers, columns.label, labels)
    names, names_why, known = find_names(form, answers, labels)
    outlier = find_outlier(roles, columns, tables, names) if form is Form.LABEL else ""
    rule, rule_why = find_rule(form, names, outlier)
    metric, metric_why = find_metric(form, rule, names)
    return Answer(
        form, form_why, answers or (list(names) if form is Form.PROBABILITIES else [columns.answer]),
        names, names_why, known, shares(labels, names) if labels and known else [], rule, rule_why, outlier,
        metric, metric_why, rule is Rule.CUT_POINTS,
    )  # fmt: skip


def train_labels(roles: Roles, columns: ColumnRoles) -> list[str]:
    """Return the label of each patient, or of each slide where there are no patients, that has one."""
    table = roles.labels or roles.train
    if table is None or not columns.label:
        return []
    units = table.cells(columns.patient) if columns.patient else []
    keys = units if any(units) else map(str, range(len(table.rows)))
    of_unit = dict(zip(keys, table.cells(columns.label), strict=False))
    labels = [label for label in of_unit.values() if label.casefold() not in BLANK]
    integers = as_integers(labels)
    return [str(number) for number in integers] if integers else labels


def find_form(roles: Roles, answers: Sequence[str], label: str, labels: Collection[str]) -> tuple[Form, str]:
    """Return the form of the sample's answer and why; without a sample it is that of a label."""
    if roles.sample is None:
        return Form.LABEL, "there is no sample"
    if len(answers) > 1:
        return Form.PROBABILITIES, f"the sample has {len(answers)} columns beside its ids"
    cells = [cell for column in answers for cell in roles.sample.cells(column)]
    seen = ", ".join(list(dict.fromkeys(cells))[:3])
    decimal = bool(cells) and all(DECIMAL.fullmatch(cell) for cell in cells)
    if len(set(labels)) == 2 and (decimal or not (set(answers) & {label} or set(cells) <= set(labels))):
        return Form.PROBABILITY, f"two classes and one column of numbers like {seen}"
    if len(set(labels)) == 2 and cells:
        return Form.LABEL, f"one column, with {seen}; write probability if the metric is an AUC or a log loss"
    return Form.LABEL, f"one column, with {seen}" if cells else "the sample has no column beside its ids"


def find_names(form: Form, answers: Sequence[str], labels: Collection[str]) -> tuple[list[str], str, bool]:
    """Return the classes in the order of the submission, why, and whether that is sure enough."""
    names, why, is_sure = _names(form, answers, labels)
    if not (taken := [name for name in names if name in COLUMNS_OF_TABLES]):
        return names, why, is_sure
    why = f"{taken[0]} is a column of the tables of predictions: rename it in the tables, and write the classes here"
    return _numbered(len(names)), why, False


def _names(form: Form, answers: Sequence[str], labels: Collection[str]) -> tuple[list[str], str, bool]:
    """Return the same without regard to the names of columns."""
    found = ordered(labels)
    if form is Form.PROBABILITIES:
        named = answer_classes(answers, labels)
        if all(named) and len(set(named)) == len(named):
            return named, "labels of train, in the order of the sample's columns", True
        return _bare(answers), "the sample's columns; write the labels of train in their order", False
    if not 1 < len(found) <= MOST_CLASSES:
        why = f"{len(found)} labels in train; write the classes (at least 2)"
        return _numbered(2), why, False
    if form is Form.PROBABILITY:
        positive = found[-1]
        return found, f"labels of train; the probability is of the last one, {positive}", True
    return found, "labels of train, in order", True


def _bare(columns: Sequence[str]) -> list[str]:
    """Return column names without the words that all of them begin with."""
    parts = [column.split("_") for column in columns]
    same = 0
    while all(len(part) > same + 1 and part[same] == parts[0][same] for part in parts):
        same += 1
    names = ["_".join(part[same:]) for part in parts]
    alike = len({name.casefold() for name in names}) < len(names) or not all(names)
    return _numbered(len(names)) if alike else names


def _numbered(count: int) -> list[str]:
    return [f"class_{index}" for index in range(count)]


def find_outlier(roles: Roles, columns: ColumnRoles, tables: Iterable[Table], names: Sequence[str]) -> str:
    """Return the one label that the sample or a table of test labels has and train lacks."""
    if roles.sample is None or columns.label not in roles.sample.columns or as_integers(names):
        return ""
    ids = set(map(without_suffix, roles.sample.cells(columns.id)))
    seen: set[str] = set()
    for table in tables:
        if {columns.id, columns.label} <= set(table.columns) and ids >= set(
            map(without_suffix, table.cells(columns.id))
        ):
            seen |= {label for label in table.cells(columns.label) if label.casefold() not in BLANK}
    extra = sorted(seen - set(names))
    return extra[0] if len(extra) == 1 else ""


def find_rule(form: Form, names: Sequence[str], outlier: str) -> tuple[Rule, str]:
    """Return the rule from probabilities to a label, and why."""
    if form is not Form.LABEL:
        return Rule.ARGMAX, ""
    if outlier:
        return Rule.OUTLIER, f"the test split has the label {outlier}, which train lacks"
    if in_order(names) and len(names) > 2:
        return Rule.CUT_POINTS, "the classes are integers in order"
    return Rule.ARGMAX, 'the classes have no order; if test has one that train lacks: "outlier", with its label'


def find_metric(form: Form, rule: Rule, names: Sequence[str]) -> tuple[str, str]:
    """Return the metric that competitions of this form mostly have, and why."""
    if form is Form.PROBABILITIES:
        return "log_loss", "see the evaluation page; most with a column a class have it"
    if form is Form.PROBABILITY:
        return "auc", "see the evaluation page; most with one probability have it or log_loss"
    if rule is Rule.CUT_POINTS:
        return "quadratic_weighted_kappa", f"most with {len(names)} grades have it; see the evaluation page"
    return "balanced_accuracy", "see the evaluation page; most with a label have it, accuracy or macro_f1"
