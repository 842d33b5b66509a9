"""Scores of a competition's units: decisions fitted out of fold, and its metric judged nested."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from clotkit.competitions import Competition, Rule, load_competition
from clotkit.config import load_recipe
from clotkit.evaluation.scores import (
    EvaluationTarget,
    calibrated_on,
    competition_figures,
    cross_calibrated,
    decision_on,
    nested_answers_on,
    target_of,
)
from clotkit.members.decision import default_decision

IDENTITY_FOLDS = 4


def target_for(competition: Competition) -> EvaluationTarget:
    return target_of(load_recipe("demo"), np.zeros(1, np.int64), competition.classes.names, competition)


def images(competition: Competition, size: int = 160, seed: int = 0) -> pd.DataFrame:
    """Return raw rows of images whose probabilities lie around their class."""
    rng, classes = np.random.default_rng(seed), len(competition.classes.names)
    labels = np.arange(size) % classes
    centre = rng.normal(labels, 0.7)
    p = np.exp(-((centre[:, None] - np.arange(classes)) ** 2))
    table = pd.DataFrame(p / p.sum(axis=1, keepdims=True), columns=list(competition.classes.names))
    names = [f"i{at}" for at in range(size)]
    return table.assign(image=names, patient=names, label=labels, fold=np.arange(size) // classes % IDENTITY_FOLDS)


def test_grades_are_judged_by_their_kappa_nested() -> None:
    panda = load_competition("panda")
    target, units = target_for(panda), images(panda)
    assert target.weights == panda.classes.priors
    assert not target.by_patient
    of_fold = {fold: calibrated_on(units[units["fold"] != fold], target) for fold in range(IDENTITY_FOLDS)}
    decision = decision_on(units, of_fold, target)
    assert decision is not None
    assert decision.rule is Rule.CUT_POINTS
    answers = nested_answers_on(units, of_fold, target)
    assert answers is not None
    judged = competition_figures(cross_calibrated(units, of_fold, target), answers, target)
    assert judged is not None
    expected = cohen_kappa_score(units["label"], answers, weights="quadratic")
    assert judged["value"] == pytest.approx(expected, abs=1e-6)
    assert judged["value"] > 0.6 > judged["constant"] == 0


def test_outliers_are_decided_from_classes_left_out() -> None:
    ubc = load_competition("ubc_ocean")
    target, units = target_for(ubc), images(ubc)
    assert target.weights == (0.2,) * 5
    of_fold = {fold: calibrated_on(units[units["fold"] != fold], target) for fold in range(IDENTITY_FOLDS)}
    decision = decision_on(units, of_fold, target)
    assert decision is not None
    assert 0.25 <= decision.numbers[0] < 1
    assert decision_on(units[:0], {}, target) == default_decision(Rule.OUTLIER, 5)


def test_probabilities_have_no_decision() -> None:
    camelyon = load_competition("camelyon16")
    target, units = target_for(camelyon), images(camelyon)
    of_fold = dict.fromkeys(range(IDENTITY_FOLDS), calibrated_on(units, target))
    assert decision_on(units, of_fold, target) is None
    assert nested_answers_on(units, of_fold, target) is None
    judged = competition_figures(units, None, target)
    assert judged is not None
    assert judged["value"] == pytest.approx(roc_auc_score(units["label"], units["tumor"]), abs=1e-6)
    assert judged["constant"] == 0.5


def test_pictures_have_no_competition(strip_ai: Competition) -> None:
    labels = np.array([0, 0, 1])
    target = target_of(load_recipe("bloodmnist"), labels, ("a", "b"), strip_ai)
    assert target.weights == pytest.approx((2 / 3, 1 / 3))
    assert competition_figures(pd.DataFrame({"label": labels}), None, target) is None
