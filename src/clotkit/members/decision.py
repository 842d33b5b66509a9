"""Turn probabilities into answers by a rule, and fit the numbers of the rule.

A rule either follows from the probabilities alone or has numbers: cut points between ordered classes, or the confidence
below which a unit is an outlier. They are fitted to out-of-fold probabilities for the competition's metric, beside the
calibration. numpy only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Rule
from clotkit.errors import ConfigError, WeightsError
from clotkit.metric import METRICS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CANDIDATES = 200  # values that a cut point may take: quantiles of the expectations
MAX_PASSES = 20  # of the coordinate search; it ends when a pass changes nothing
# Standard deviation of a Gaussian prior of each cut point around its half. With hundreds of units it has no effect;
# with a few dozen it keeps a cut from moving to win a single unit.
CUT_PRIOR = 0.5
ABOVE_CHANCE = 0.05  # least confidence above 1/C: 0.25 of 5 classes, which won a place at UBC-OCEAN unfitted
ALLOWED_LOSS = 0.1  # share of the sum of recalls that a threshold without other evidence may cost
TINY_GAIN = 1e-9  # a smaller gain of the objective is rounding


@dataclass(frozen=True)
class Decision:
    """A rule with its fitted numbers, from probabilities of C classes to an answer."""

    rule: Rule
    classes: int
    numbers: tuple[float, ...] = ()  # rising cut points [C - 1], or the least confidence [1]; other rules have none

    def apply(self, p: npt.ArrayLike) -> Ints:
        """Return the answer to each row of probabilities [n, C]: a class index, or C for an outlier."""
        rows = np.asarray(p, np.float64).reshape(-1, self.classes)
        if self.rule.is_ordinal:
            return np.asarray(np.searchsorted(self._cuts(), expectations(rows), side="right"), np.int64)
        answers = np.asarray(rows.argmax(axis=1), np.int64)
        if self.rule is Rule.OUTLIER:
            answers[rows.max(axis=1) < self.numbers[0]] = self.classes
        return answers

    def _cuts(self) -> Floats:
        return np.array(self.numbers) if self.numbers else halves(self.classes)

    def to_json(self) -> dict[str, Any]:
        """Return the entry `decision` of calibration.json."""
        return {"rule": self.rule.value, "classes": self.classes, "numbers": list(self.numbers)}

    @classmethod
    def from_json(cls, raw: Any, where: str, classes: int | None = None) -> "Decision":
        """Read the entry `decision` of a calibration.json, which errors call `where`.

        Raises ConfigError for any other content or another number of classes than `classes`, WeightsError for numbers
        that are not finite, too few or too many, cut points that fall, or a confidence outside 0 to 1.
        """
        try:
            rule, count = Rule(raw["rule"]), int(raw["classes"])
            found = cls(rule, count, tuple(float(value) for value in raw["numbers"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: decision needs rule, classes and numbers: {error!r}; train again") from error
        if count < 2 or classes not in {None, count}:
            raise ConfigError(f"{where}: decision has {count} classes, needed: {classes or '2 or more'}; train again")
        if problem := found.problem():
            raise WeightsError(f"{where}: decision by {rule.value}: {problem}; train again")
        return found

    def problem(self) -> str:
        """Return what is wrong with the numbers, empty for nothing."""
        wanted, values = _count(self.rule, self.classes), np.array(self.numbers)
        if len(values) != wanted:
            return f"{len(values)} numbers, needed: {wanted}"
        if not np.isfinite(values).all():
            return f"numbers are {values.tolist()}; finite ones are needed"
        if (np.diff(values) < 0).any():
            return f"cut points are {values.tolist()}; they must rise"
        if self.rule is Rule.OUTLIER and not 0 <= values[0] <= 1:
            return f"the least confidence is {values[0]}; allowed: 0 to 1"
        return ""


def _count(rule: Rule, classes: int) -> int:
    """Return how many numbers a rule has."""
    return {Rule.CUT_POINTS: classes - 1, Rule.OUTLIER: 1}.get(rule, 0)


def expectations(p: Floats) -> Floats:
    """Return the expected class index of each row of probabilities [n, C]: float64[n]."""
    return np.asarray(p @ np.arange(p.shape[1]) / p.sum(axis=1), np.float64)


def halves(classes: int) -> Floats:
    """Return the cut points that give the nearest class: 0.5, 1.5, … [C - 1]."""
    return np.arange(0.5, classes - 1)


def default_decision(rule: Rule, classes: int) -> Decision:
    """Return the decision of a rule without data: cuts at the halves, a confidence just above chance."""
    numbers = {Rule.CUT_POINTS: tuple(halves(classes).tolist()), Rule.OUTLIER: (least_confidence(classes),)}
    return Decision(rule, classes, numbers.get(rule, ()))


def least_confidence(classes: int) -> float:
    """Return the confidence below which any unit is an outlier, fitted or not: just above chance."""
    return 1 / classes + ABOVE_CHANCE


def mean_decision(decisions: Sequence[Decision]) -> Decision:
    """Return the decision for the mean of several members' probabilities: the mean of their numbers.

    Raises ConfigError for none, or for members of different rules or classes.
    """
    kinds = sorted({(one.rule.value, one.classes) for one in decisions})
    if len(kinds) != 1:
        shown = ", ".join(f"{rule} of {classes} classes" for rule, classes in kinds) or "no decision"
        raise ConfigError(f"the members decide by {shown}; exactly 1 rule is needed: train them again alike")
    numbers = np.mean([one.numbers for one in decisions], axis=0)
    return Decision(decisions[0].rule, decisions[0].classes, tuple(numbers.tolist()))


def fit_decision(rule: Rule, p: Floats, labels: Ints, metric: str, pseudo_outliers: Floats | None = None) -> Decision:
    """Fit the numbers of a rule so that its answers score best.

    Args:
        rule: how answers follow from probabilities.
        p: out-of-fold probabilities [n, C], calibrated on other units.
        labels: class indices [n].
        metric: a key of METRICS, for cut points.
        pseudo_outliers: probabilities [m, C] of units of classes that the network has not learnt, for the rule
            `outlier`; None: from `p` by leave_class_out.
    """
    start = default_decision(rule, p.shape[1])
    if not len(p) or rule not in {Rule.CUT_POINTS, Rule.OUTLIER}:
        return start
    if rule is Rule.OUTLIER:
        outliers = leave_class_out(p, labels) if pseudo_outliers is None else pseudo_outliers
        numbers: tuple[float, ...] = (_fit_confidence(p, labels, outliers),)
    else:
        numbers = _fit_cuts(expectations(p), labels, p.shape[1], metric)
    return Decision(rule, p.shape[1], tuple(round(value, 6) for value in numbers))


def leave_class_out(p: Floats, labels: Ints) -> Floats:
    """Return probabilities [n, C] without each row's true class, the rest rescaled to sum to 1.

    A softmax over the remaining logits: what a network that never learnt the class would say. Pass probabilities as
    the network gave them, before any clipping; a row that has nothing left becomes uniform over the others.
    """
    others = np.arange(p.shape[1]) != labels[:, None]  # [n, C]
    rest = np.where(others, np.maximum(p, np.finfo(np.float64).tiny), 0.0)
    left: Floats = rest / rest.sum(axis=1, keepdims=True)
    return left


def nested_answers(
    rule: Rule, p: Floats, labels: Ints, folds: Ints, metric: str, pseudo_outliers: Floats | None = None
) -> Ints:
    """Return the answer to each row by a decision that was fitted on the other folds.

    Arguments as for fit_decision; `folds` [n] has the fold of each row, and pseudo_outliers one row for each of `p`.
    """
    answers = np.zeros(len(p), np.int64)
    for fold in np.unique(folds):
        fit, test = folds != fold, folds == fold
        outliers = None if pseudo_outliers is None else pseudo_outliers[fit]
        answers[test] = fit_decision(rule, p[fit], labels[fit], metric, outliers).apply(p[test])
    return answers


def _fit_confidence(p: Floats, labels: Ints, outliers: Floats) -> float:
    """Return the confidence below which a unit is called an outlier.

    No unit of training is an outlier, so each one stands in for one as leave_class_out makes it. The threshold
    maximises the balanced accuracy over the C known classes, each judged on its own units, and the pseudo-outliers as
    one class more; of equal thresholds it is the lowest.

    Where classes resemble each other, a network is sure of the neighbour of a class that it never learnt, and calling
    nothing an outlier would be best. The rule is there because outliers exist, and real ones may be farther away: the
    threshold is then the one that gives up ALLOWED_LOSS of the right answers. It is never below least_confidence.
    """
    sure, doubtful = p.max(axis=1), outliers.max(axis=1)
    right = p.argmax(axis=1) == labels
    weight = 1 / np.bincount(labels, minlength=p.shape[1])[labels]  # of each unit in the sum of recalls
    values = np.unique(np.concatenate([[0.0], sure, doubtful]))
    thresholds = np.append(0.0, (values[:-1] + values[1:]) / 2)
    order = np.argsort(sure)
    right_below = np.append(0.0, np.cumsum((weight * right)[order]))
    lost = right_below[np.searchsorted(sure[order], thresholds)]
    found = np.searchsorted(np.sort(doubtful), thresholds) / max(len(doubtful), 1)
    gain = found - lost  # in the sum of recalls, against calling no unit an outlier
    if gain.max() > TINY_GAIN:
        best = thresholds[int(np.argmax(gain > gain.max() - TINY_GAIN))]
    else:
        best = thresholds[lost < ALLOWED_LOSS * right_below[-1]].max(initial=0.0)
    return max(float(best), least_confidence(p.shape[1]))


def _fit_cuts(expected: Floats, labels: Ints, classes: int, metric: str) -> tuple[float, ...]:
    """Return cut points that score best, by a coordinate search from the halves.

    A cut leaves its half only if that gains more than the prior costs. Of equal cuts it is the one nearest to the half.
    """
    search = _CutSearch(expected, labels, classes, metric)
    cuts = halves(classes)
    for _ in range(MAX_PASSES):
        before = cuts.copy()
        for at in range(len(cuts)):
            cuts[at] = search.best(cuts, at)
        if (cuts == before).all():
            break
    return tuple(cuts.tolist())


class _CutSearch:
    """A search for cut points; running counts give the confusion table of any of them at once."""

    def __init__(self, expected: Floats, labels: Ints, classes: int, metric: str) -> None:
        order = np.argsort(expected, kind="stable")
        self.sorted, self.classes, self.of_table = expected[order], classes, METRICS[metric].of_table
        counts = np.eye(classes)[labels[order]].cumsum(axis=0)
        self.below = np.vstack([np.zeros(classes), counts])  # [n + 1, C], units of each class among the first i
        values = np.unique(expected)
        between = (values[:-1] + values[1:]) / 2
        if len(between) > CANDIDATES:
            between = np.quantile(between, np.linspace(0, 1, CANDIDATES), method="nearest")
        self.values = between

    def best(self, cuts: Floats, at: int) -> float:
        """Return the best place of the cut `at` between its neighbours."""
        best, highest = float(cuts[at]), self._objective(cuts)
        for value in self._candidates(cuts, at):
            objective = self._objective(np.concatenate([cuts[:at], [value], cuts[at + 1 :]]))
            if objective > highest + TINY_GAIN:
                best, highest = value, objective
        return best

    def _candidates(self, cuts: Floats, at: int) -> Iterator[float]:
        low, high = np.concatenate([[-np.inf], cuts, [np.inf]])[[at, at + 2]]
        half = at + 0.5
        for value in sorted([half, *self.values.tolist()], key=lambda value: abs(value - half)):
            if low <= value <= high:
                yield value

    def _objective(self, cuts: Floats) -> float:
        """Return the metric less the penalty of the prior; the penalty alone where the metric is undefined."""
        places = np.concatenate([[0], np.searchsorted(self.sorted, cuts, side="left"), [len(self.sorted)]])
        table = np.diff(self.below[places], axis=0).T  # [C true, C answers]
        score = self.of_table(table.tolist()) if self.of_table is not None else 0.0
        distance = ((cuts - halves(self.classes)) / CUT_PRIOR) ** 2
        return (0.0 if np.isnan(score) else score) - float(distance.sum()) / (2 * len(self.sorted))
