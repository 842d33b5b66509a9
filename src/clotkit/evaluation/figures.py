"""Compute the figures of a set of predictions, each with an interval.

The intervals are percentile intervals of a bootstrap over patients (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13): the rows of one patient are alike, and drawing rows would make the intervals too narrow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.errors import SplitError, UsageError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

NAMES = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "sensitivity",
    "specificity",
    "f1",
    "auc",
    "weighted_log_loss",
)
CONFIDENCE = 0.95
CELLS_AT_ONCE = 4_000_000  # resamples x rows of one array of counts: 32 MB


@dataclass(frozen=True)
class ScoredUnits:
    """Predictions with their true classes, one row per unit: a picture, a slide or a patient.

    Raises SplitError if the arrays do not fit each other.
    """

    labels: Integers  # [n] class indices
    probabilities: Floats  # [n, C], not negative; they need not sum to 1
    patients: npt.NDArray[np.str_]  # [n]; rows of one patient are resampled together

    def __post_init__(self) -> None:
        shape = self.probabilities.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
            raise SplitError(f"predictions: probabilities have shape {shape}; give [rows >= 1, classes >= 2]")
        if self.labels.shape != shape[:1] or self.patients.shape != shape[:1]:
            actual = f"labels {self.labels.shape}, patients {self.patients.shape}"
            raise SplitError(f"predictions: {actual} for probabilities {shape}; give one of each a row")
        if self.labels.min() < 0 or self.labels.max() >= shape[1]:
            actual = f"{self.labels.min()} to {self.labels.max()}"
            raise SplitError(f"predictions: labels go from {actual}; allowed: 0 to {shape[1] - 1}, class indices")
        _check_probabilities(self.probabilities)

    def shares(self) -> Floats:
        """Return the probabilities [n, C], each row rescaled to sum to 1."""
        return np.asarray(self.probabilities / self.probabilities.sum(axis=1, keepdims=True), dtype=np.float64)

    def present(self) -> npt.NDArray[np.bool_]:
        """Return a mask of the classes, bool[C]: True if a row has the class as its label."""
        return np.bincount(self.labels, minlength=self.probabilities.shape[1]) > 0


def _check_probabilities(probabilities: Floats) -> None:
    totals = probabilities.sum(axis=1)
    bad = ~np.isfinite(totals) | (totals <= 0) | (probabilities < 0).any(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        actual = ", ".join(f"{value:.4g}" for value in probabilities[row])
        raise SplitError(
            f"predictions: row {row} has the probabilities {actual}; allowed: finite, not negative, not all 0; "
            "predict again"
        )


def positive_index(classes: Sequence[str], positive: str | None) -> int | None:
    """Return the index of the positive class; None for more than two classes, which have none.

    Of two classes, `positive` None means the second. Raises UsageError for a name that no class has.
    """
    if positive is not None and positive not in classes:
        raise UsageError(f"the positive class is {positive!r}; allowed: {', '.join(classes)}")
    if len(classes) != 2:
        return None
    return 1 if positive is None else list(classes).index(positive)


def predicted(scored: ScoredUnits, positive: int | None) -> Integers:
    """Return the predicted class index of each row, int64[n], by `predicted_indices`."""
    return predicted_indices(scored.probabilities, positive)


def predicted_indices(probabilities: Floats, positive: int | None) -> Integers:
    """Return the predicted class index of each row of probabilities [n, C]: int64[n].

    The probabilities of a row need not sum to 1. With a positive class: that one from a probability of 0.5. Without:
    the likeliest class, the first of equals.
    """
    shares = probabilities / probabilities.sum(axis=1, keepdims=True)
    if positive is None:
        return np.asarray(shares.argmax(axis=1), dtype=np.int64)
    return np.where(shares[:, positive] >= 0.5, positive, 1 - positive).astype(np.int64)


def figures(
    scored: ScoredUnits,
    classes: Sequence[str],
    positive: str | None,
    weights: Sequence[float],
    clip: float,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, float | None]:
    """Return `n` (rows), `patients`, and each of NAMES with the ends of its interval, `_low` and `_high`.

    With two classes, precision, recall (= sensitivity) and F1 are those of the positive class at a probability of 0.5,
    specificity is the recall of the other class, and AUC ranks the rows by the probability of the positive class. With
    more classes, these are macro means over the classes, each against the rest. Precision is 0 if no row is predicted
    as the class. weighted_log_loss is metric.balanced_log_loss.

    The intervals span 95 % of bootstrap samples of the patients, each drawn with all its rows. They describe these
    predictions, not the variation between trainings.

    A figure that needs a class without a row is None (null in JSON). Recall, precision and F1 need the positive class,
    specificity the other, AUC both, macro means all; accuracy needs none, and the log loss omits the missing class. A
    bootstrap sample without a class that a figure needs (for the log loss: that the data have) is left out of its
    interval. Both ends are None if no sample is left, and with fewer than two patients.

    Args:
        scored: The predictions.
        classes: The names of the classes.
        positive: The positive one of two classes; None: the second. Ignored with more classes.
        weights: The weight of each class in the log loss.
        clip: Probabilities in the log loss are clipped to [clip, 1 - clip].
        seed: Seeds the bootstrap.
        resamples: Bootstrap samples.

    Raises:
        UsageError: A setting does not fit the predictions.
    """
    _check_settings(scored, classes, weights, clip, resamples)
    at = positive_index(classes, positive)
    names, owner = np.unique(scored.patients, return_inverse=True)
    result: dict[str, float | None] = {"n": len(scored.labels), "patients": len(names)}
    point = weighted_figures(scored, at, weights, clip, np.ones((1, len(scored.labels))))
    samples: list[dict[str, Floats]] = []
    if len(names) > 1:
        draws = _draws(owner.astype(np.int64), len(names), seed, resamples)
        samples = [weighted_figures(scored, at, weights, clip, counts) for counts in draws]
    for name in NAMES:
        low, high = _interval([sample[name] for sample in samples])
        result |= {name: _plain(float(point[name][0])), f"{name}_low": low, f"{name}_high": high}
    return result


def weighted_figures(
    scored: ScoredUnits, positive: int | None, weights: Sequence[float], clip: float, counts: Floats
) -> dict[str, Floats]:
    """Return each of NAMES for B samples, float64[B]; NaN if undefined.

    Row i is `counts[b, i]` times in sample b; `counts` are whole numbers, float64[B, n]. `figures` has the definitions.
    """
    classes, guesses = scored.probabilities.shape[1], predicted(scored, positive)
    of_label, of_guess = np.eye(classes)[scored.labels], np.eye(classes)[guesses]  # [n, C]
    hits = of_label * (guesses == scored.labels)[:, None]
    # No whole confusion table: with C * C cells a row, 100 classes would take gigabytes.
    values = _rates(counts @ hits, counts @ of_label, counts @ of_guess, positive)
    shares, which = scored.shares(), range(classes) if positive is None else [positive]
    areas = [weighted_auc(scored.labels == index, shares[:, index], counts) for index in which]  # [B] a class
    values["auc"] = np.mean(areas, axis=0)
    values["weighted_log_loss"] = _weighted_losses(scored, weights, clip, counts)
    return values


def loss_difference(
    one: ScoredUnits, other: ScoredUnits, weights: Sequence[float], clip: float, seed: int = 0, resamples: int = 1000
) -> dict[str, float | None]:
    """Return the weighted log loss of `one` minus that of `other`: `value`, from `low` to `high`.

    Both have predictions of the same units in the same order; each bootstrap sample of the patients is scored by both.
    """
    change = unit_losses(one, clip) - unit_losses(other, clip)
    return weighted_mean(change, one.labels, one.patients, weights, seed, resamples)


def weighted_mean(
    values: Floats,
    labels: Integers,
    patients: npt.NDArray[np.str_],
    weights: Sequence[float],
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, float | None]:
    """Return the mean of values [n] of units, each class by its weight: `value`, from `low` to `high`.

    The interval is that of `figures`. A class without a unit takes no part; both ends are None for a single patient.
    """
    names, owner = np.unique(patients, return_inverse=True)
    draws = _draws(owner.astype(np.int64), len(names), seed, resamples) if len(names) > 1 else ()
    low, high = _interval([_weighted_means(values, labels, weights, counts) for counts in draws])
    (value,) = _weighted_means(values, labels, weights, np.ones((1, len(labels))))
    return {"value": _plain(float(value)), "low": low, "high": high}


def unit_losses(scored: ScoredUnits, clip: float) -> Floats:
    """Return -ln of the probability of each unit's class, [n], clipped as in the log loss."""
    of_class = scored.shares()[np.arange(len(scored.labels)), scored.labels]
    return np.asarray(-np.log(np.clip(of_class, clip, 1 - clip)), dtype=np.float64)


def weighted_auc(truth: npt.NDArray[np.bool_], scores: Floats, counts: Floats) -> Floats:
    """Return the area under the ROC curve of `scores` [n] in B samples: float64[B].

    Row i is `counts[b, i]` times in sample b. The area is the share of pairs of a true and a false row in which the
    true one scores higher; ties count half (Mann and Whitney 1947; Hanley and McNeil, Radiology 143, 1982). It is NaN
    for a sample without a true or without a false row.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where a run of equal scores begins
    ordered = counts[:, order]  # [B, n]
    true = np.add.reduceat(ordered * truth[order], starts, axis=1)  # [B, runs]
    false = np.add.reduceat(ordered, starts, axis=1) - true
    beaten = np.cumsum(false, axis=1) - false / 2
    return _ratio((true * beaten).sum(axis=1), true.sum(axis=1) * false.sum(axis=1))


def _rates(right: Floats, true: Floats, guesses: Floats, positive: int | None) -> dict[str, Floats]:
    """Return the figures that follow from three counts of rows of each class, each [B, C].

    Those of the class that are right, all those of the class, and all that are predicted as it.
    """
    total = true.sum(axis=1, keepdims=True)  # [B, 1]
    recall, missing = _ratio(right, true), np.where(true > 0, 0.0, np.nan)
    return {
        "accuracy": right.sum(axis=1) / total[:, 0],
        "balanced_accuracy": recall.mean(axis=1),
        "precision": _of_class(right / np.maximum(guesses, 1) + missing, positive, missing),
        "recall": _of_class(recall, positive, missing),
        "sensitivity": _of_class(recall, positive, missing),
        "specificity": _of_class(_ratio(total - true - guesses + right, total - true), positive, missing),
        "f1": _of_class(_ratio(2 * right, true + guesses) + missing, positive, missing),
    }


def _of_class(values: Floats, positive: int | None, missing: Floats) -> Floats:
    """Return the positive class's values [B, C], or their macro mean: NaN if a class is missing."""
    return (values + missing).mean(axis=1) if positive is None else values[:, positive]


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)


def _weighted_losses(scored: ScoredUnits, weights: Sequence[float], clip: float, counts: Floats) -> Floats:
    """Return metric.balanced_log_loss of each sample [B]; NaN if it lacks a class of the data."""
    return _weighted_means(unit_losses(scored, clip), scored.labels, weights, counts)


def _weighted_means(values: Floats, labels: Integers, weights: Sequence[float], counts: Floats) -> Floats:
    """Return the weighted mean of values [n] in each sample [B]; NaN if it lacks a class of the data."""
    present = np.bincount(labels, minlength=len(weights)) > 0
    member = np.eye(len(present))[labels][:, present]  # [n, classes that the data have]
    means = _ratio(counts @ (member * values[:, None]), counts @ member)  # [B, classes that the data have]
    weight = np.asarray(weights, dtype=np.float64)[present]
    return np.asarray(means @ weight / weight.sum(), dtype=np.float64)


def _draws(owner: Integers, patients: int, seed: int, resamples: int) -> Iterator[Floats]:
    """Yield how often each row is in each bootstrap sample: float64[some, n], `resamples` in all."""
    rng = np.random.default_rng(seed)
    step = max(1, CELLS_AT_ONCE // len(owner))
    for start in range(0, resamples, step):
        some = min(step, resamples - start)
        drawn = rng.integers(patients, size=(some, patients)) + np.arange(some)[:, None] * patients
        times = np.bincount(drawn.ravel(), minlength=some * patients).reshape(some, patients)
        yield times[:, owner].astype(np.float64)


def _interval(samples: list[Floats]) -> tuple[float | None, float | None]:
    values = np.concatenate(samples) if samples else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value


def _check_settings(
    scored: ScoredUnits, classes: Sequence[str], weights: Sequence[float], clip: float, resamples: int
) -> None:
    width = scored.probabilities.shape[1]
    if len(classes) != width or len(weights) != width:
        actual = f"{len(classes)} classes and {len(weights)} weights"
        raise UsageError(f"figures: {actual} for probabilities of {width} classes; give one of each a class")
    if not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"figures: the class weights are {', '.join(map(str, weights))}; allowed: above 0")
    if not 0 < clip < 0.5:
        raise UsageError(f"figures: clip is {clip}; allowed: above 0, below 0.5")
    if resamples < 1:
        raise UsageError(f"figures: resamples is {resamples}; allowed: 1 and more, 1000 are usual")
