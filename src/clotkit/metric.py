"""Compute the class-balanced log loss, and the score to expect of probabilities without labels.

The formula is that of the STRIP AI evaluation page, and of any competition with a log loss balanced by class:

    score = - sum_c w_c * mean over rows of class c of ln p_c  /  sum_c w_c

Rows are rescaled to sum to 1, then clipped. Standard library only.
"""

import math
from collections.abc import Sequence

METRICS = (
    "balanced_log_loss",
    "log_loss",
    "quadratic_weighted_kappa",
    "balanced_accuracy",
    "accuracy",
    "macro_f1",
    "auc",
)

Rows = Sequence[Sequence[float]]


def normalised(row: Sequence[float], clip: float) -> list[float]:
    """Return a row rescaled to sum to 1, then clipped to [clip, 1 - clip].

    `row` has one number per class; none is negative and not all are 0.
    """
    total = math.fsum(row)
    return [min(max(value / total, clip), 1 - clip) for value in row]


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


def expected_if_calibrated(rows: Rows, weights: Sequence[float], clip: float) -> float:
    """Return the expected score if the rows are calibrated: a row is of class c with probability p_c.

    The probabilities are taken to be class-balanced.
    """
    clipped = [normalised(row, clip) for row in rows]
    terms = []
    for index, weight in enumerate(weights):
        mass = math.fsum(row[index] for row in clipped)
        terms.append(weight * math.fsum(-row[index] * math.log(row[index]) for row in clipped) / mass)
    return math.fsum(terms) / math.fsum(weights)


def expected_if_uninformative(rows: Rows, weights: Sequence[float], clip: float) -> float:
    """Return the expected score if the rows are independent of the classes: each counts for every class."""
    clipped = [normalised(row, clip) for row in rows]
    means = [math.fsum(-math.log(row[index]) for row in clipped) / len(clipped) for index in range(len(weights))]
    return math.fsum(weight * mean for weight, mean in zip(weights, means, strict=True)) / math.fsum(weights)
