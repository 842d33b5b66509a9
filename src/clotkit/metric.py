"""The competition's score, and what a file of probabilities can be expected to score. Standard library only.

Source of the formula: the STRIP AI evaluation page; any competition with a per-class balanced log loss has the same:

    score = - sum_c w_c * mean over rows of class c of ln p_c  /  sum_c w_c

Rows are rescaled to sum to 1, then clipped.
"""

import math
from collections.abc import Sequence

METRICS = ("balanced_log_loss",)

Rows = Sequence[Sequence[float]]


def normalised(row: Sequence[float], clip: float) -> list[float]:
    """`row` (one number a class, none negative, not all 0) rescaled to sum to 1, then clipped to [clip, 1 - clip]."""
    total = math.fsum(row)
    return [min(max(value / total, clip), 1 - clip) for value in row]


def balanced_log_loss(rows: Rows, labels: Sequence[int], weights: Sequence[float], clip: float) -> float:
    """The score of `rows` (one row a patient, one number a class) given each row's class index.

    A class without a row adds nothing, and its weight does not count.
    """
    losses: list[list[float]] = [[] for _ in weights]
    for row, label in zip(rows, labels, strict=True):
        losses[label].append(-math.log(normalised(row, clip)[label]))
    present = [
        (weight, math.fsum(values) / len(values)) for weight, values in zip(weights, losses, strict=True) if values
    ]
    return math.fsum(weight * loss for weight, loss in present) / math.fsum(weight for weight, _ in present)


def expected_if_true(rows: Rows, weights: Sequence[float], clip: float) -> float:
    """The score to expect when every row is a true (class-balanced) probability: each row counts for class c by p_c."""
    clipped = [normalised(row, clip) for row in rows]
    terms = []
    for index, weight in enumerate(weights):
        mass = math.fsum(row[index] for row in clipped)
        terms.append(weight * math.fsum(-row[index] * math.log(row[index]) for row in clipped) / mass)
    return math.fsum(terms) / math.fsum(weights)


def expected_if_noise(rows: Rows, weights: Sequence[float], clip: float) -> float:
    """The score to expect when the rows say nothing of the classes: every row counts for every class alike."""
    clipped = [normalised(row, clip) for row in rows]
    means = [math.fsum(-math.log(row[index]) for row in clipped) / len(clipped) for index in range(len(weights))]
    return math.fsum(weight * mean for weight, mean in zip(weights, means, strict=True)) / math.fsum(weights)
