"""The figures of a set of predictions, each with an interval: what an evaluation reports.

The intervals are percentile intervals of a bootstrap over patients (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13): the rows of one patient are alike, and drawing rows would make the intervals too narrow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import SplitError, UsageError
from clotkit.metric import balanced_log_loss

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
CELLS_AT_ONCE = 4_000_000  # resamples x rows that are worked on together: 32 MB an array


@dataclass(frozen=True)
class Scored:
    """Predictions with their truth, one row a unit: a picture, a slide or a patient.

    `labels` int64[n] are class indices, `probabilities` float64[n, C] are not negative and need not sum to 1,
    `patients` str[n] says which rows belong together. Raises SplitError where they do not fit each other.
    """

    labels: Integers
    probabilities: Floats
    patients: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        shape = self.probabilities.shape
        if len(shape) != 2 or shape[0] < 1 or shape[1] < 2:
            raise SplitError(f"predictions: probabilities have shape {shape}; give [rows >= 1, classes >= 2]")
        if self.labels.shape != shape[:1] or self.patients.shape != shape[:1]:
            seen = f"labels {self.labels.shape}, patients {self.patients.shape}"
            raise SplitError(f"predictions: {seen} for probabilities {shape}; give one of each a row")
        if self.labels.min() < 0 or self.labels.max() >= shape[1]:
            seen = f"{self.labels.min()} to {self.labels.max()}"
            raise SplitError(f"predictions: labels go from {seen}; allowed: 0 to {shape[1] - 1}, class indices")
        _check_probabilities(self.probabilities)

    def shares(self) -> Floats:
        """The probabilities [n, C], each row rescaled to sum to 1."""
        return np.asarray(self.probabilities / self.probabilities.sum(axis=1, keepdims=True), dtype=np.float64)

    def present(self) -> npt.NDArray[np.bool_]:
        """For each class [C], whether a row has it as its truth."""
        return np.bincount(self.labels, minlength=self.probabilities.shape[1]) > 0


def _check_probabilities(probabilities: Floats) -> None:
    totals = probabilities.sum(axis=1)
    bad = ~np.isfinite(totals) | (totals <= 0) | (probabilities < 0).any(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        seen = ", ".join(f"{value:.4g}" for value in probabilities[row])
        raise SplitError(
            f"predictions: row {row} has the probabilities {seen}; allowed: finite, not negative, not all 0; "
            "predict again"
        )


def positive_index(classes: Sequence[str], positive: str | None) -> int | None:
    """The index of the positive class: of `positive` among two classes, their second one for None.

    None for more than two classes, which have no positive one. Raises UsageError for a name that no class has.
    """
    if positive is not None and positive not in classes:
        raise UsageError(f"the positive class is {positive!r}; allowed: {', '.join(classes)}")
    if len(classes) != 2:
        return None
    return 1 if positive is None else list(classes).index(positive)


def decided(scored: Scored, positive: int | None) -> Integers:
    """The class index int64[n] that each row is taken for.

    With a positive class that one from a probability of 0.5 up, else the likeliest class, the first of equals.
    """
    shares = scored.shares()
    if positive is None:
        return np.asarray(shares.argmax(axis=1), dtype=np.int64)
    return np.where(shares[:, positive] >= 0.5, positive, 1 - positive).astype(np.int64)


def figures(
    scored: Scored,
    classes: Sequence[str],
    positive: str | None,
    weights: Sequence[float],
    clip: float,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, float | None]:
    """The figures of `scored`: `n` (rows), `patients`, and each of NAMES with its `_low` and `_high`.

    With two classes precision, recall (= sensitivity) and F1 are those of `positive` (None: the second class) at a
    probability of 0.5, specificity is the recall of the other class, and AUC ranks the rows by the probability of
    `positive`. With more, these are macro means over the classes, one against the rest, of the likeliest class, and
    `positive` says nothing. Precision is 0 where nothing is taken for the class. weighted_log_loss is
    metric.balanced_log_loss with `weights` (one a class) and `clip`.

    `_low` and `_high` are the 2.5 % and 97.5 % points of `resamples` bootstrap samples, drawn with `seed`: patients
    with replacement, each with all of its rows. The interval describes these predictions; it does not cover what
    another training would give.

    A figure that needs a class without a row is None (null in JSON): recall and its kin need the positive class,
    specificity the other, AUC both, macro means all. Accuracy needs none; the log loss goes without the missing class.
    A bootstrap sample which lacks a class that a figure needs (for the log loss: a class that the data have) is left
    out of that figure's interval. Both ends are None where no sample is left, and with fewer than two patients.

    Raises UsageError for settings that do not fit.
    """
    _check_settings(scored, classes, weights, clip, resamples)
    at = positive_index(classes, positive)
    names, owner = np.unique(scored.patients, return_inverse=True)
    result: dict[str, float | None] = {"n": len(scored.labels), "patients": len(names)}
    point = _points(scored, at, weights, clip)
    samples: list[dict[str, Floats]] = []
    if len(names) > 1:
        draws = _draws(owner.astype(np.int64), len(names), seed, resamples)
        samples = [weighted_figures(scored, at, weights, clip, counts) for counts in draws]
    for name in NAMES:
        low, high = _interval([sample[name] for sample in samples])
        result |= {name: _plain(point[name]), f"{name}_low": low, f"{name}_high": high}
    return result


def weighted_figures(
    scored: Scored, positive: int | None, weights: Sequence[float], clip: float, counts: Floats
) -> dict[str, Floats]:
    """Each of NAMES, float64[B], for B samples in which row i stands counts[b, i] times; nan where undefined.

    `counts` are whole numbers float64[B, n]. What is defined, and from what, is as `figures` says.
    """
    classes = scored.probabilities.shape[1]
    cells = np.eye(classes * classes)[scored.labels * classes + decided(scored, positive)]  # [n, C * C]
    table = (counts @ cells).reshape(-1, classes, classes)  # [B, true, decided]
    found = _rates(table, positive)
    shares, which = scored.shares(), range(classes) if positive is None else [positive]
    areas = [weighted_auc(scored.labels == index, shares[:, index], counts) for index in which]  # [B] a class
    found["auc"] = np.mean(areas, axis=0)
    found["weighted_log_loss"] = _weighted_losses(scored, weights, clip, counts)
    return found


def weighted_auc(truth: npt.NDArray[np.bool_], scores: Floats, counts: Floats) -> Floats:
    """The area under the ROC curve, float64[B], of `scores` [n] in B samples with `counts` [B, n]; nan without a side.

    The share of pairs of a true and a false row in which the true one scores higher, ties counting half (Mann and
    Whitney 1947; Hanley and McNeil, Radiology 143, 1982).
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where a run of equal scores begins
    ordered = counts[:, order]  # [B, n]
    true = np.add.reduceat(ordered * truth[order], starts, axis=1)  # [B, runs]
    false = np.add.reduceat(ordered, starts, axis=1) - true
    beaten = np.cumsum(false, axis=1) - false / 2
    return _ratio((true * beaten).sum(axis=1), true.sum(axis=1) * false.sum(axis=1))


def _rates(table: Floats, positive: int | None) -> dict[str, Floats]:
    """What follows from confusion tables [B, true, decided] alone."""
    right, true, said = table.diagonal(axis1=1, axis2=2), table.sum(axis=2), table.sum(axis=1)  # each [B, C]
    total = true.sum(axis=1, keepdims=True)  # [B, 1]
    recall, missing = _ratio(right, true), np.where(true > 0, 0.0, np.nan)
    return {
        "accuracy": right.sum(axis=1) / total[:, 0],
        "balanced_accuracy": recall.mean(axis=1),
        "precision": _of_class(right / np.maximum(said, 1) + missing, positive, missing),
        "recall": _of_class(recall, positive, missing),
        "sensitivity": _of_class(recall, positive, missing),
        "specificity": _of_class(_ratio(total - true - said + right, total - true), positive, missing),
        "f1": _of_class(_ratio(2 * right, true + said) + missing, positive, missing),
    }


def _of_class(values: Floats, positive: int | None, missing: Floats) -> Floats:
    """From values [B, C] those of the positive class, or the macro mean where no class is missing (nan there)."""
    return (values + missing).mean(axis=1) if positive is None else values[:, positive]


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, nan where below is 0."""
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)


def _weighted_losses(scored: Scored, weights: Sequence[float], clip: float, counts: Floats) -> Floats:
    """metric.balanced_log_loss for each of B samples [B]; nan where one lacks a class that the data have."""
    rows, present = np.arange(len(scored.labels)), scored.present()
    member = np.eye(len(present))[scored.labels][:, present]  # [n, classes that the data have]
    losses = -np.log(np.clip(scored.shares(), clip, 1 - clip)[rows, scored.labels])  # [n]
    means = _ratio(counts @ (member * losses[:, None]), counts @ member)  # [B, classes that the data have]
    weight = np.asarray(weights, dtype=np.float64)[present]
    return np.asarray(means @ weight / weight.sum(), dtype=np.float64)


def _draws(owner: Integers, patients: int, seed: int, resamples: int) -> Iterator[Floats]:
    """How often each row stands in each bootstrap sample: float64[some, n] at a time, `resamples` together."""
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
    return None if np.isnan(value) else float(value)


def _points(scored: Scored, positive: int | None, weights: Sequence[float], clip: float) -> dict[str, float]:
    """Each of NAMES for the rows as they are, by scikit-learn; nan where undefined."""
    from sklearn import metrics

    said, rows = decided(scored, positive), scored.probabilities.tolist()
    found = dict.fromkeys(NAMES, float("nan"))
    found["accuracy"] = metrics.accuracy_score(scored.labels, said)
    found["weighted_log_loss"] = balanced_log_loss(rows, scored.labels.tolist(), weights, clip)
    if scored.present().all():
        found["balanced_accuracy"] = metrics.balanced_accuracy_score(scored.labels, said)
        found["auc"] = _area(scored, positive)
    return found | _points_of_class(scored, positive, said)


def _points_of_class(scored: Scored, positive: int | None, said: Integers) -> dict[str, float]:
    """Those figures that are one class's, or macro means; without those that are undefined."""
    from sklearn import metrics

    labels, options, found = scored.labels, _averaging(scored, positive), dict[str, float]()
    has_true, has_other = _sides(scored, positive)
    if has_true:
        found["precision"] = metrics.precision_score(labels, said, **options)
        found["recall"] = found["sensitivity"] = metrics.recall_score(labels, said, **options)
        found["f1"] = metrics.f1_score(labels, said, **options)
    if has_other:
        which = range(scored.probabilities.shape[1]) if positive is None else [positive]
        others = [metrics.recall_score(labels != index, said != index) for index in which]
        found["specificity"] = float(np.mean(others))
    return found


def _averaging(scored: Scored, positive: int | None) -> dict[str, Any]:
    """scikit-learn's arguments for the positive class, or for macro means."""
    which = list(range(scored.probabilities.shape[1])) if positive is None else [positive]
    return {"labels": which, "average": "macro", "zero_division": 0}


def _sides(scored: Scored, positive: int | None) -> tuple[bool, bool]:
    """Whether recall, and whether specificity, have the rows that they need."""
    present = scored.present()
    if positive is None:
        return bool(present.all()), bool(present.all())
    return bool(present[positive]), bool(present[1 - positive])


def _area(scored: Scored, positive: int | None) -> float:
    from sklearn.metrics import roc_auc_score

    shares, which = scored.shares(), range(scored.probabilities.shape[1]) if positive is None else [positive]
    return float(np.mean([roc_auc_score(scored.labels == index, shares[:, index]) for index in which]))


def _check_settings(
    scored: Scored, classes: Sequence[str], weights: Sequence[float], clip: float, resamples: int
) -> None:
    width = scored.probabilities.shape[1]
    if len(classes) != width or len(weights) != width:
        seen = f"{len(classes)} classes and {len(weights)} weights"
        raise UsageError(f"figures: {seen} for probabilities of {width} classes; give one of each a class")
    if not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"figures: the class weights are {', '.join(map(str, weights))}; allowed: above 0")
    if not 0 < clip < 0.5:
        raise UsageError(f"figures: clip is {clip}; allowed: above 0, below 0.5")
    if resamples < 1:
        raise UsageError(f"figures: resamples is {resamples}; allowed: 1 and more, 1000 are usual")
