"""Compare the score with scikit-learn's and with published ones, and expectations with sampling."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from clotkit import metric

HALVES = (0.5, 0.5)
CLIP = 1e-15
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
    expected = log_loss(labels, rows, sample_weight=weights, labels=[0, 1])
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
