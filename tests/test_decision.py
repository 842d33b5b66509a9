"""Decisions: the rules, their fit to out-of-fold probabilities, and their entry in a file."""

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from clotkit.competitions import Rule
from clotkit.errors import ConfigError, WeightsError
from clotkit.members.decision import (
    Decision,
    default_decision,
    expectations,
    fit_decision,
    leave_class_out,
    mean_decision,
    nested_answers,
)

KAPPA = "quadratic_weighted_kappa"
TABLES = arrays.arrays(np.float64, (9, 4), elements=st.floats(0.01, 1))


def kappa(labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64]) -> float:
    return float(cohen_kappa_score(labels, answers, weights="quadratic"))


def graded(size: int, shift: float = 0.0, noise: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [size, 5] that lie `shift` classes beside the true ones, and these."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % 5
    centre = labels * (1 - shift / 4) + rng.normal(0, noise, size)
    p = np.exp(-((centre[:, None] - np.arange(5)) ** 2))
    return p / p.sum(axis=1, keepdims=True), labels


def subtypes(size: int, known: bool = True, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [size, 5] of units of five classes, or of one that was not learnt."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % 5
    logits = rng.normal(0, 1, (size, 5)) + (5 * np.eye(5)[labels] if known else 0)
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True), labels


@given(TABLES)
def test_the_rules(p: np.ndarray) -> None:
    p = p / p.sum(axis=1, keepdims=True)
    likeliest = p.argmax(axis=1)
    assert default_decision(Rule.ARGMAX, 4).apply(p).tolist() == likeliest.tolist()
    expected = expectations(p)
    np.testing.assert_allclose(expected, p @ np.arange(4), rtol=0, atol=1e-12)  # a last digit may decide at 1.5
    nearest = np.clip(np.floor(expected + 0.5), 0, 3)
    assert default_decision(Rule.EXPECTED_VALUE, 4).apply(p).tolist() == nearest.tolist()
    assert default_decision(Rule.CUT_POINTS, 4).apply(p).tolist() == nearest.tolist()
    by_cuts = Decision(Rule.CUT_POINTS, 4, (1.2, 1.4, 1.7)).apply(p)
    assert by_cuts.tolist() == [int((value >= np.array([1.2, 1.4, 1.7])).sum()) for value in expectations(p)]
    outliers = Decision(Rule.OUTLIER, 4, (0.4,)).apply(p)
    assert outliers.tolist() == np.where(p.max(axis=1) < 0.4, 4, likeliest).tolist()


def test_one_row_and_no_row_are_answered() -> None:
    decision = default_decision(Rule.OUTLIER, 3)
    assert decision.apply([0.1, 0.2, 0.7]).tolist() == [2]
    assert decision.apply([]).tolist() == []


@pytest.mark.parametrize("rule", Rule)
def test_without_units_nothing_is_fitted(rule: Rule) -> None:
    fitted = fit_decision(rule, np.zeros((0, 5)), np.zeros(0, np.int64), KAPPA)
    assert fitted == default_decision(rule, 5)
    assert fitted.problem() == ""


def test_cut_points_make_up_for_shrunken_expectations() -> None:
    """A network that is drawn to the middle: the nearest class is wrong at both ends, fitted cuts are not."""
    p, labels = graded(600, shift=1.6)
    fitted = fit_decision(Rule.CUT_POINTS, p, labels, KAPPA)
    fresh, truth = graded(600, shift=1.6, seed=1)
    before = kappa(truth, default_decision(Rule.CUT_POINTS, 5).apply(fresh))
    assert kappa(truth, fitted.apply(fresh)) > before + 0.03
    assert list(fitted.numbers) == sorted(fitted.numbers)
    assert fit_decision(Rule.CUT_POINTS, p[::-1], labels[::-1], KAPPA) == fitted


def test_cut_points_stay_at_the_halves_where_nothing_is_gained() -> None:
    p, labels = graded(200, noise=0.0)
    assert fit_decision(Rule.CUT_POINTS, p, labels, KAPPA) == default_decision(Rule.CUT_POINTS, 5)
    one_class = fit_decision(Rule.CUT_POINTS, p, np.zeros(200, np.int64), "accuracy")
    assert np.isfinite(one_class.numbers).all()


def test_few_units_move_cut_points_less_than_many() -> None:
    few, many = (fit_decision(Rule.CUT_POINTS, *graded(size, noise=1.2), metric=KAPPA).numbers for size in (20, 2000))
    again = fit_decision(Rule.CUT_POINTS, *graded(20, noise=1.2, seed=3), metric=KAPPA).numbers
    assert max(abs(np.array(few) - [0.5, 1.5, 2.5, 3.5])) < 1
    assert max(abs(np.array(again) - [0.5, 1.5, 2.5, 3.5])) < 1
    assert list(many) == sorted(many)


def test_a_class_that_training_lacks_is_found() -> None:
    p, labels = subtypes(300)
    fitted = fit_decision(Rule.OUTLIER, p, labels, "balanced_accuracy")
    fresh, truth = subtypes(300, seed=1)
    strange, _ = subtypes(60, known=False, seed=2)
    answers = fitted.apply(np.vstack([fresh, strange]))
    score = balanced_accuracy_score([*truth, *[5] * 60], answers)
    plain = balanced_accuracy_score([*truth, *[5] * 60], np.vstack([fresh, strange]).argmax(axis=1))
    assert (fitted.apply(strange) == 5).mean() > 0.6
    assert score > plain + 0.08
    assert 0 < fitted.numbers[0] < 1


def test_the_confidence_is_the_best_of_all() -> None:
    """Against a search over every threshold of the stated objective."""
    p, labels = subtypes(60, seed=4)
    outliers = leave_class_out(p, labels)

    def objective(threshold: float) -> float:
        decision = Decision(Rule.OUTLIER, 5, (threshold,))
        answers, strange = decision.apply(p), decision.apply(outliers)
        return float(sum((answers == labels)[labels == k].mean() for k in range(5)) + (strange == 5).mean()) / 6

    fitted = fit_decision(Rule.OUTLIER, p, labels, "balanced_accuracy")
    assert objective(fitted.numbers[0]) == pytest.approx(max(map(objective, np.linspace(0.25, 1, 4001).tolist())))


def test_where_pseudo_outliers_tell_nothing_a_tenth_of_the_right_answers_is_given_up() -> None:
    """Classes in order: without its own class a unit is sure of the neighbour."""
    p, labels = graded(400, noise=0.6)
    fitted = fit_decision(Rule.OUTLIER, p, labels, "balanced_accuracy")
    right = p.argmax(axis=1) == labels
    lost = (fitted.apply(p)[right] == 5).mean()
    assert fitted.numbers[0] > 0.3
    assert 0.05 < lost < 0.12


def test_two_classes_leave_no_doubt_about_the_rest() -> None:
    """Without one of two classes the other has probability 1, so that no threshold is learnt."""
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    labels = np.array([0, 1, 0])
    assert leave_class_out(p, labels).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert fit_decision(Rule.OUTLIER, p, labels, "accuracy").numbers == (0.55,)


@given(TABLES, st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_leaving_a_class_out_keeps_the_ratios_of_the_others(p: np.ndarray, labels: list[int]) -> None:
    rest = leave_class_out(p, np.array(labels))
    assert rest.sum(axis=1) == pytest.approx(np.ones(9))
    for row, left, label in zip(p, rest, labels, strict=True):
        assert left[label] == 0
        others = np.delete(row, label)
        assert np.delete(left, label) == pytest.approx(others / others.sum())


@pytest.mark.parametrize("rule", [Rule.CUT_POINTS, Rule.OUTLIER])
def test_nested_answers_are_by_the_other_folds(rule: Rule) -> None:
    p, labels = graded(100, noise=1.0)
    folds = np.arange(100) // 5 % 4
    answers = nested_answers(rule, p, labels, folds, KAPPA)
    changed = labels.copy()
    changed[folds == 2] = 0
    again = nested_answers(rule, p, changed, folds, KAPPA)
    assert (again[folds == 2] == answers[folds == 2]).all()
    by_hand = fit_decision(rule, p[folds != 2], labels[folds != 2], KAPPA).apply(p[folds == 2])
    assert (answers[folds == 2] == by_hand).all()


def test_a_judgement_of_luck_is_nested() -> None:
    """With labels by chance a fit gains on its own units, and not on others."""
    p, labels = graded(120, noise=1.0)
    gains = []
    for seed in range(4):
        by_luck = np.random.default_rng(seed).permutation(labels)
        before = kappa(by_luck, default_decision(Rule.CUT_POINTS, 5).apply(p))
        inside = kappa(by_luck, fit_decision(Rule.CUT_POINTS, p, by_luck, KAPPA).apply(p))
        nested = kappa(by_luck, nested_answers(Rule.CUT_POINTS, p, by_luck, np.arange(120) // 5 % 5, KAPPA))
        gains.append((inside - before, nested - before))
    assert min(inside for inside, _ in gains) > 0.04
    assert np.mean(gains, axis=0)[1] < 0.02


def test_members_decide_by_their_mean() -> None:
    one, other = (Decision(Rule.CUT_POINTS, 3, numbers) for numbers in ((0.4, 1.6), (0.6, 1.2)))
    assert mean_decision([one, other]).numbers == pytest.approx((0.5, 1.4))
    assert mean_decision([default_decision(Rule.ARGMAX, 3)] * 2) == default_decision(Rule.ARGMAX, 3)
    with pytest.raises(ConfigError):
        mean_decision([one, default_decision(Rule.ARGMAX, 3)])
    with pytest.raises(ConfigError):
        mean_decision([])


@pytest.mark.parametrize("rule", Rule)
def test_a_decision_is_the_same_after_json(rule: Rule) -> None:
    fitted = fit_decision(rule, *graded(60, noise=0.9), metric=KAPPA)
    assert Decision.from_json(json.loads(json.dumps(fitted.to_json())), "here", 5) == fitted


CUTS = Decision(Rule.CUT_POINTS, 3, (0.4, 1.6)).to_json()


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (None, ConfigError),
        ([], ConfigError),
        ({}, ConfigError),
        (CUTS | {"rule": "vote"}, ConfigError),
        (CUTS | {"numbers": None}, ConfigError),
        (CUTS | {"numbers": ["high", 1]}, ConfigError),
        (CUTS | {"classes": 4}, ConfigError),
        (CUTS | {"classes": 1, "numbers": []}, ConfigError),
        (CUTS | {"numbers": [0.4]}, WeightsError),
        (CUTS | {"numbers": [0.4, 1.6, 2.6]}, WeightsError),
        (CUTS | {"numbers": [1.6, 0.4]}, WeightsError),
        (CUTS | {"numbers": [0.4, math.nan]}, WeightsError),
        (CUTS | {"rule": "argmax"}, WeightsError),
        (CUTS | {"rule": "outlier", "numbers": [1.2]}, WeightsError),
        (CUTS | {"rule": "outlier", "numbers": [math.inf]}, WeightsError),
        (CUTS | {"rule": "outlier", "numbers": []}, WeightsError),
    ],
)
def test_a_wrong_decision_is_refused(raw: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^here: decision") as caught:
        Decision.from_json(raw, "here", 3)
    assert "\n" not in str(caught.value)
