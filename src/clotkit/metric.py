"""Score submissions by a competition's metric, and compute the score to expect of them without labels.

Each metric follows scikit-learn's definition; `METRICS` names them. A metric takes probabilities or their ranks, one
row of C numbers per unit (a patient or an image), or it takes answers, one class index per unit. Metrics of answers
are functions of a confusion table, so that a fit can compute them often. Standard library only: the kernel checks its
own file.

The balanced log loss is that of the STRIP AI evaluation page, and of any competition whose log loss is balanced:

    score = - sum_c w_c * mean over rows of class c of ln p_c  /  sum_c w_c
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

Rows = Sequence[Sequence[float]]
Table = Sequence[Sequence[float]]  # confusion table: rows by true class, columns by answer, square


class Takes(StrEnum):
    """The input of a metric."""

    PROBABILITIES = "probabilities"
    RANKS = "ranks"  # of the probabilities: any rising function of them scores alike
    LABELS = "labels"  # answers: one class index per row


@dataclass(frozen=True)
class MetricSpec:
    """The properties of one metric."""

    higher_is_better: bool
    takes: Takes
    balanced: bool = False  # it weighs the classes by itself, whatever their shares among the rows
    of_table: Callable[[Table], float] | None = None  # the metric of a confusion table, for Takes.LABELS


def accuracy(table: Table) -> float:
    """Return the share of right answers."""
    return _ratio(math.fsum(row[k] for k, row in enumerate(table)), math.fsum(map(math.fsum, table)))


def balanced_accuracy(table: Table) -> float:
    """Return the mean recall of the classes that the truth has."""
    recalls = [row[k] / total for k, row in enumerate(table) if (total := math.fsum(row)) > 0]
    return _ratio(math.fsum(recalls), len(recalls))


def macro_f1(table: Table) -> float:
    """Return the mean F1 of the classes that the truth or the answers have."""
    true, answered = _margins(table)
    scores = [
        2 * table[k][k] / total for k, total in enumerate(map(math.fsum, zip(true, answered, strict=True))) if total > 0
    ]
    return _ratio(math.fsum(scores), len(scores))


def quadratic_weighted_kappa(table: Table) -> float:
    """Return Cohen's kappa with quadratic weights; NaN if all answers and all truths are one class."""
    true, answered = _margins(table)
    rows = math.fsum(true)
    observed = math.fsum(count * (k - j) ** 2 for k, row in enumerate(table) for j, count in enumerate(row))
    by_chance = math.fsum(a * b * (k - j) ** 2 for k, a in enumerate(true) for j, b in enumerate(answered))
    return 1 - _ratio(observed * rows, by_chance)


METRICS = {
    "balanced_log_loss": MetricSpec(False, Takes.PROBABILITIES, balanced=True),
    "log_loss": MetricSpec(False, Takes.PROBABILITIES),
    "quadratic_weighted_kappa": MetricSpec(True, Takes.LABELS, of_table=quadratic_weighted_kappa),
    "balanced_accuracy": MetricSpec(True, Takes.LABELS, balanced=True, of_table=balanced_accuracy),
    "accuracy": MetricSpec(True, Takes.LABELS, of_table=accuracy),
    "macro_f1": MetricSpec(True, Takes.LABELS, balanced=True, of_table=macro_f1),
    "auc": MetricSpec(True, Takes.RANKS),
}


def score(
    name: str, rows: Rows, answers: Sequence[int], labels: Sequence[int], weights: Sequence[float], clip: float
) -> float:
    """Return the score of a submission by the metric `name`; NaN where it is undefined.

    Args:
        name: a key of METRICS.
        rows: C numbers per unit, for metrics of probabilities or ranks; others ignore it.
        answers: a class index per unit, for metrics of answers; others ignore it. C is the outlier class, which the
            truth may have too.
        labels: the true class index of each unit.
        weights: the weight of each class [C] in the balanced log loss; the others take C from it.
        clip: probabilities are clipped to [clip, 1 - clip].
    """
    if of_table := METRICS[name].of_table:
        return of_table(confusion(answers, labels, len(weights)))
    if name == "auc":
        return auc(rows, labels, len(weights))
    return balanced_log_loss(rows, labels, weights, clip) if METRICS[name].balanced else log_loss(rows, labels, clip)


def confusion(answers: Sequence[int], labels: Sequence[int], classes: int) -> list[list[float]]:
    """Return the confusion table of at least `classes` classes, and more if an index needs them."""
    size = max(classes, *(index + 1 for index in (*answers, *labels)))
    table = [[0.0] * size for _ in range(size)]
    for answer, label in zip(answers, labels, strict=True):
        table[label][answer] += 1
    return table


def normalised(row: Sequence[float], clip: float) -> list[float]:
    """Return a row rescaled to sum to 1, then clipped to [clip, 1 - clip].

    `row` has one number per class; none is negative and not all are 0.
    """
    total = math.fsum(row)
    return [min(max(value / total, clip), 1 - clip) for value in row]


def log_loss(rows: Rows, labels: Sequence[int], clip: float) -> float:
    """Return the mean of -ln p of the true classes; lower is better."""
    losses = [-math.log(normalised(row, clip)[label]) for row, label in zip(rows, labels, strict=True)]
    return _ratio(math.fsum(losses), len(losses))


def balanced_log_loss(rows: Rows, labels: Sequence[int], weights: Sequence[float], clip: float) -> float:
    """Return the score of a submission; lower is better.

    A class without rows does not count, and neither does its weight.

    Args:
        rows: one row per patient, one number per class.
        labels: the class index of each row.
        weights: the weight of each class.
        clip: probabilities are clipped to [clip, 1 - clip].
    """
    losses: list[list[float]] = [[] for _ in weights]
    for row, label in zip(rows, labels, strict=True):
        losses[label].append(-math.log(normalised(row, clip)[label]))
    present = [
        (weight, math.fsum(values) / len(values)) for weight, values in zip(weights, losses, strict=True) if values
    ]
    return math.fsum(weight * loss for weight, loss in present) / math.fsum(weight for weight, _ in present)


def auc(rows: Rows, labels: Sequence[int], classes: int) -> float:
    """Return the area under the ROC curve; NaN if a class has no row.

    Of two classes it is that of the second, of more the mean of each class against the rest.
    """
    areas = []
    for index in [1] if classes == 2 else range(classes):
        positive = [float(label == index) for label in labels]
        concordant = _concordant(_column(rows, index), positive, [1 - value for value in positive])
        areas.append(_ratio(concordant, math.fsum(positive) * (len(positive) - math.fsum(positive))))
    return math.fsum(areas) / len(areas)


def best_constant(name: str, weights: Sequence[float], priors: Sequence[float]) -> tuple[float, ...]:
    """Return the constant row with the best score to expect.

    It has the class weights, or the shares of the classes.

    Args:
        name: a key of METRICS.
        weights: the weight of each class in the metric.
        priors: the share of each class.
    """
    chosen = weights if METRICS[name].takes is Takes.PROBABILITIES and METRICS[name].balanced else priors
    total = math.fsum(chosen) or 1.0
    return tuple(value / total for value in chosen)


def best_label(name: str, priors: Sequence[float]) -> int:
    """Return the class index that answers best for every unit.

    It is the most frequent class, the first of equals; under quadratic weights the class with the smallest expected
    squared distance.
    """
    classes = range(len(priors))
    if name == "quadratic_weighted_kappa":
        return min(classes, key=lambda k: math.fsum(share * (k - j) ** 2 for j, share in enumerate(priors)))
    return max(classes, key=lambda k: priors[k])


def constant_score(name: str, weights: Sequence[float], priors: Sequence[float], clip: float) -> float:
    """Return the score to expect of the best constant submission."""
    row, label = best_constant(name, weights, priors), best_label(name, priors)
    return score_if_uninformative(name, [row], [label], weights, priors, clip)


def calibration_weights(name: str, weights: Sequence[float], priors: Sequence[float]) -> tuple[float, ...]:
    """Return the class weights for which probabilities are calibrated.

    They are the metric's if it balances the classes, else the priors.
    """
    return tuple(weights if METRICS[name].balanced else priors)


def score_if_calibrated(
    name: str, rows: Rows, answers: Sequence[int], weights: Sequence[float], priors: Sequence[float], clip: float
) -> float:
    """Return the expected score if the rows are calibrated for calibration_weights.

    Metrics of answers are those of the expected confusion table, the AUC is the ratio of expected pairs. The outlier
    class is taken to be absent.

    Args:
        name: a key of METRICS.
        rows: C numbers per unit, also for metrics of answers.
        answers: a class index per unit, for metrics of answers.
        weights: the weight of each class in the metric.
        priors: the share of each class.
        clip: probabilities are clipped to [clip, 1 - clip].
    """
    if name == "balanced_log_loss":
        return expected_if_calibrated(rows, weights, clip)
    if name == "auc":
        return _expected_auc(rows, len(weights))
    clipped = [normalised(row, clip) for row in rows]
    if name == "log_loss":
        return _ratio(math.fsum(-value * math.log(value) for row in clipped for value in row), len(clipped))
    assumed = calibration_weights(name, weights, priors)
    ratios = [prior / weight if weight else 0.0 for prior, weight in zip(priors, assumed, strict=True)]
    shared = [normalised([p * ratio for p, ratio in zip(row, ratios, strict=True)], 0) for row in clipped]
    return _of_table(name, shared, answers)


def score_if_uninformative(
    name: str, rows: Rows, answers: Sequence[int], weights: Sequence[float], priors: Sequence[float], clip: float
) -> float:
    """Return the expected score if rows and answers are independent of the classes."""
    if name == "auc":
        return 0.5
    if METRICS[name].takes is Takes.PROBABILITIES:
        return expected_if_uninformative(rows, weights if METRICS[name].balanced else priors, clip)
    return _of_table(name, [normalised(priors, 0)] * len(answers), answers)


def expected_if_calibrated(rows: Rows, weights: Sequence[float], clip: float) -> float:
    """Return the expected balanced log loss if the rows are calibrated.

    A row is of class c with probability p_c, and the probabilities are taken to be class-balanced.
    """
    clipped = [normalised(row, clip) for row in rows]
    terms = []
    for index, weight in enumerate(weights):
        mass = math.fsum(row[index] for row in clipped)
        terms.append(weight * math.fsum(-row[index] * math.log(row[index]) for row in clipped) / mass)
    return math.fsum(terms) / math.fsum(weights)


def expected_if_uninformative(rows: Rows, weights: Sequence[float], clip: float) -> float:
    """Return the expected log loss if the rows are independent of the classes."""
    clipped = [normalised(row, clip) for row in rows]
    means = [math.fsum(-math.log(row[index]) for row in clipped) / len(clipped) for index in range(len(weights))]
    return math.fsum(weight * mean for weight, mean in zip(weights, means, strict=True)) / math.fsum(weights)


def _ratio(above: float, below: float) -> float:
    """Return above / below, NaN where below is 0."""
    return above / below if below else math.nan


def _margins(table: Table) -> tuple[list[float], list[float]]:
    """Return the number of units of each true class, and of each answer."""
    return [math.fsum(row) for row in table], [math.fsum(column) for column in zip(*table, strict=True)]


def _of_table(name: str, rows: Rows, answers: Sequence[int]) -> float:
    """Return a metric of the expected confusion table, if a unit is of class c with probability p_c."""
    of_table = METRICS[name].of_table
    if of_table is None or not answers:
        return math.nan
    classes = max(len(rows[0]), max(answers) + 1)
    table = [[0.0] * classes for _ in range(classes)]
    for row, answer in zip(rows, answers, strict=True):
        for index, p in enumerate(row):
            table[index][answer] += p
    return of_table(table)


def _column(rows: Rows, index: int) -> list[float]:
    """Return the probabilities of one class; a row that does not sum to 1 is rescaled first."""
    totals = [math.fsum(row) for row in rows]
    return [
        row[index] if math.isclose(total, 1, rel_tol=1e-5) else row[index] / total
        for row, total in zip(rows, totals, strict=True)
    ]


def _concordant(scores: Sequence[float], positive: Sequence[float], negative: Sequence[float]) -> float:
    """Count the pairs whose positive has a higher score than their negative; ties count half.

    `positive` and `negative` say how much each row counts as one.
    """
    order = sorted(range(len(scores)), key=scores.__getitem__)
    below, pairs = 0.0, []
    for _, tied in groupby(order, key=scores.__getitem__):
        members = list(tied)
        lower = math.fsum(negative[at] for at in members)
        pairs.append(math.fsum(positive[at] for at in members) * (below + lower / 2))
        below += lower
    return math.fsum(pairs)


def _expected_auc(rows: Rows, classes: int) -> float:
    """Return the ratio of expected pairs if the rows are calibrated; a row makes no pair with itself."""
    areas = []
    for index in [1] if classes == 2 else range(classes):
        p = _column(rows, index)
        q = [1 - value for value in p]
        itself = math.fsum(a * b for a, b in zip(p, q, strict=True))
        areas.append(_ratio(_concordant(p, p, q) - itself / 2, math.fsum(p) * math.fsum(q) - itself))
    return math.fsum(areas) / len(areas)
