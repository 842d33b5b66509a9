"""Compare the score with scikit-learn's and with published ones, and expectations with sampling."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.exceptions import UndefinedMetricWarning

from clotkit import metric

HALVES = (0.5, 0.5)
CLIP = 1e-15
PRIORS = (0.5, 0.3, 0.2)
THIRDS = (1 / 3,) * 3
# Class counts of the competition's train patients: CE 457, LAA 175.
LABELS = [0] * 457 + [1] * 175


@pytest.mark.parametrize(
    ("row", "published"),
    [((0.5, 0.5), 0.693147), ((0.45, 0.55), 0.69817), ((0.6, 0.4), 0.71356), ((0.75, 0.25), 0.83699)],
)
def test_constants_score_as_published(row: tuple[float, float], published: float) -> None:
    assert metric.balanced_log_loss([row] * len(LABELS), LABELS, HALVES, CLIP) == pytest.approx(published, abs=1e-5)


@given(st.lists(st.tuples(st.floats(0.001, 0.999), st.integers(0, 1)), min_size=4, max_size=40))
def test_equals_scikit_learn_with_balanced_weights(cases: list[tuple[float, int]]) -> None:
    labels = [label for _, label in cases]
    if len(set(labels)) < 2:
        return
    rows = [(1 - p, p) for p, _ in cases]
    weights = [0.5 / labels.count(label) for label in labels]
    expected = metrics.log_loss(labels, rows, sample_weight=weights, labels=[0, 1])
    assert metric.balanced_log_loss(rows, labels, HALVES, CLIP) == pytest.approx(expected, rel=1e-9)


def test_rows_are_rescaled_and_clipped() -> None:
    assert metric.balanced_log_loss([(3, 1)], [0], HALVES, CLIP) == pytest.approx(-math.log(0.75))
    assert metric.balanced_log_loss([(1, 0)], [1], HALVES, CLIP) == pytest.approx(-math.log(CLIP), rel=1e-3)


def test_expectations_agree_with_sampling() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(2, 2, 4000)
    rows = np.stack([p, 1 - p], axis=1).tolist()
    true = [int(value) for value in rng.random(len(p)) > p]
    noise = [int(value) for value in rng.random(len(p)) > 0.5]
    drawn_true = metric.balanced_log_loss(rows, true, HALVES, CLIP)
    drawn_noise = metric.balanced_log_loss(rows, noise, HALVES, CLIP)
    assert metric.expected_if_calibrated(rows, HALVES, CLIP) == pytest.approx(drawn_true, abs=0.03)
    assert metric.expected_if_uninformative(rows, HALVES, CLIP) == pytest.approx(drawn_noise, abs=0.03)
    assert (
        metric.expected_if_calibrated(rows, HALVES, CLIP)
        < math.log(2)
        < metric.expected_if_uninformative(rows, HALVES, CLIP)
    )


ANSWERED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def of_answers(name: str, labels: list[int], answers: list[int]) -> float:
    """Return scikit-learn's score, NaN where it warns of an undefined one."""
    functions = {
        "accuracy": metrics.accuracy_score,
        "balanced_accuracy": metrics.balanced_accuracy_score,
        "macro_f1": lambda y, a: metrics.f1_score(y, a, average="macro", zero_division=0),
        "quadratic_weighted_kappa": lambda y, a: metrics.cohen_kappa_score(y, a, weights="quadratic", labels=range(4)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of answers that the truth lacks, and divides by 0
        return float(functions[name](labels, answers))


@pytest.mark.parametrize("name", [name for name, spec in metric.METRICS.items() if spec.takes is metric.Takes.LABELS])
@given(cases=ANSWERED)
def test_metrics_of_answers_equal_scikit_learn(name: str, cases: list[tuple[int, int]]) -> None:
    """Classes 0 to 2 are trained, 3 is an outlier of the truth, of the answers, or of neither."""
    labels, answers = [label for label, _ in cases], [answer for _, answer in cases]
    score = metric.score(name, [], answers, labels, THIRDS, CLIP)
    assert score == pytest.approx(of_answers(name, labels, answers), abs=1e-9, nan_ok=True)


@given(st.lists(st.tuples(st.floats(0.001, 0.999), st.integers(0, 1)), min_size=1, max_size=40))
def test_the_log_loss_equals_scikit_learn(cases: list[tuple[float, int]]) -> None:
    rows, labels = [(1 - p, p) for p, _ in cases], [label for _, label in cases]
    expected = metrics.log_loss(labels, rows, labels=[0, 1])
    assert metric.score("log_loss", rows, [], labels, HALVES, CLIP) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40))
def test_the_area_under_the_curve_equals_scikit_learn(cases: list[tuple[int, int, int]]) -> None:
    """Probabilities of few values have ties; a class without rows leaves the area undefined."""
    table = np.array([(a + 1, b + 1, 3) for a, b, _ in cases], dtype=np.float64)
    labels = [label for *_, label in cases]
    rows = table / table.sum(axis=1, keepdims=True)
    area = metric.score("auc", rows.tolist(), [], labels, THIRDS, CLIP)
    if len(set(labels)) < 3:
        assert math.isnan(area)
    else:
        expected = metrics.roc_auc_score(labels, rows, multi_class="ovr", average="macro")
        assert area == pytest.approx(expected, abs=1e-9)
    two = [min(label, 1) for label in labels]
    pair = [(1 - p, p) for p in rows[:, 0].tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        expected = metrics.roc_auc_score(two, rows[:, 0])
    assert metric.score("auc", pair, [], two, HALVES, CLIP) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def beats(name: str, score: float, other: float) -> bool:
    return score > other if metric.METRICS[name].higher_is_better else score < other


@pytest.mark.parametrize("name", metric.METRICS)
def test_no_constant_beats_the_best_one(name: str) -> None:
    weights, best = (0.2, 0.2, 0.6), metric.constant_score(name, (0.2, 0.2, 0.6), PRIORS, CLIP)
    rng = np.random.default_rng(0)
    for row, label in [
        *((row, 0) for row in rng.dirichlet(np.ones(3), 200).tolist()),
        *((PRIORS, k) for k in range(3)),
    ]:
        other = metric.score_if_uninformative(name, [row], [label], weights, PRIORS, CLIP)
        assert not beats(name, other, best) or other == pytest.approx(best)
    labels = [0] * 50 + [1] * 30 + [2] * 20
    rows, answers = [metric.best_constant(name, weights, PRIORS)] * 100, [metric.best_label(name, PRIORS)] * 100
    assert metric.score(name, rows, answers, labels, weights, CLIP) == pytest.approx(best)


def test_best_constants() -> None:
    assert metric.best_constant("balanced_log_loss", (1, 1, 2), PRIORS) == (0.25, 0.25, 0.5)
    assert metric.best_constant("log_loss", (1, 1, 2), PRIORS) == PRIORS
    assert metric.best_label("accuracy", PRIORS) == 0
    assert metric.best_label("quadratic_weighted_kappa", PRIORS) == 1  # the mean class is 0.7
    assert metric.constant_score("balanced_log_loss", HALVES, (0.7, 0.3), CLIP) == pytest.approx(math.log(2))
    assert metric.constant_score("accuracy", THIRDS, PRIORS, CLIP) == 0.5
    assert metric.constant_score("balanced_accuracy", THIRDS, PRIORS, CLIP) == pytest.approx(1 / 3)
    assert metric.constant_score("quadratic_weighted_kappa", THIRDS, PRIORS, CLIP) == pytest.approx(0)
    assert metric.constant_score("auc", THIRDS, PRIORS, CLIP) == 0.5


@pytest.mark.parametrize("name", metric.METRICS)
def test_the_expected_scores_of_every_metric_agree_with_sampling(name: str) -> None:
    """Units of three classes in the shares PRIORS, calibrated for the metric's own weights."""
    rng, size = np.random.default_rng(1), 12_000
    truth = rng.choice(3, size, p=PRIORS)
    evidence = rng.normal(truth, 1.0)
    likelihood = np.exp(-((evidence[:, None] - np.arange(3)) ** 2) / 2)
    assumed = np.array(metric.calibration_weights(name, THIRDS, PRIORS)) * likelihood
    rows, answers = (assumed / assumed.sum(axis=1, keepdims=True)).tolist(), assumed.argmax(axis=1).tolist()
    drawn = metric.score(name, rows, answers, truth.tolist(), THIRDS, CLIP)
    noise = metric.score(name, rows, answers, rng.choice(3, size, p=PRIORS).tolist(), THIRDS, CLIP)
    given_arguments = (name, rows, answers, THIRDS, PRIORS, CLIP)
    tolerance = 0.06 if name == "balanced_log_loss" else 0.02  # it takes the units to be as many of each class
    assert metric.score_if_calibrated(*given_arguments) == pytest.approx(drawn, abs=tolerance)
    assert metric.score_if_uninformative(*given_arguments) == pytest.approx(noise, abs=0.02)
    constant = metric.constant_score(name, THIRDS, PRIORS, CLIP)
    assert beats(name, drawn, constant)
