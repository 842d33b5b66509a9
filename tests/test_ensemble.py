"""Calibration and averaging, by property and against the published figures."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.competitions import Competition
from clotkit.errors import ConfigError
from clotkit.members.calibration import Calibration, fit_calibration
from clotkit.members.ensemble import blend, patient_mean
from clotkit.metric import balanced_log_loss

OOF = Path(__file__).resolve().parents[2] / "shared" / "data" / "strip_oof"
SIMPLEX = st.lists(st.floats(0.001, 1), min_size=3, max_size=3).map(lambda row: [value / sum(row) for value in row])


@given(SIMPLEX)
def test_the_identity_changes_nothing(row: list[float]) -> None:
    assert Calibration(1.0, (0.0, 0.0, 0.0), 0.0).apply(row) == pytest.approx(row, abs=2e-4)


@given(SIMPLEX, st.floats(0, 4), st.tuples(*[st.floats(-5, 5)] * 3), st.floats(0, 0.3))
def test_the_result_is_a_probability_within_the_floor(
    row: list[float], slope: float, offsets: tuple[float, ...], floor: float
) -> None:
    result = Calibration(slope, offsets, floor).apply(row)
    assert result.sum() == pytest.approx(1)
    assert result.min() >= floor / (1 + 3 * floor)


def test_for_two_classes_it_is_platt_scaling() -> None:
    p = np.array([0.1, 0.3, 0.8])
    expected = 1 / (1 + np.exp(-(1.4 * np.log(p / (1 - p)) + 1.3)))
    assert Calibration(1.4, (0.0, 1.3), 0.0).apply(np.stack([1 - p, p], axis=1))[:, 1] == pytest.approx(expected)


def test_fitting_finds_the_shift_of_an_unbalanced_net(strip_ai: Competition) -> None:
    """Probabilities calibrated for the class shares are wrong for the metric; the fit shifts them."""
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.25).astype(np.int64)
    evidence = rng.normal(np.where(labels == 1, 0.5, -0.5), 1)
    p = 1 / (1 + np.exp(-(evidence + np.log(0.25 / 0.75))))
    raw = np.stack([1 - p, p], axis=1)
    fitted = fit_calibration(raw, labels, strip_ai.classes.weights, floor=0.02)
    weights, clip = strip_ai.classes.weights, strip_ai.metric.clip
    before = balanced_log_loss(raw.tolist(), labels.tolist(), weights, clip)
    after = balanced_log_loss(fitted.apply(raw).tolist(), labels.tolist(), weights, clip)
    assert after < before - 0.05
    assert fitted.slope == pytest.approx(1, abs=0.15)
    assert fitted.offsets[1] - fitted.offsets[0] == pytest.approx(np.log(3), abs=0.15)


def test_the_published_predictions_come_below_the_constant(strip_ai: Competition) -> None:
    """Ten published networks, patient means: 0.7485 raw, about 0.644 calibrated in sample."""
    if not OOF.exists():
        pytest.skip(f"the published out-of-fold predictions are not here: {OOF}")
    with (OOF / "train.csv").open(newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    slides: dict[str, list[float]] = defaultdict(list)
    for path in sorted((OOF / "predictions").rglob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                slides[row["image_id"]].append(float(row["predictions"]))
    patients: dict[str, list[float]] = defaultdict(list)
    for image_id, values in slides.items():
        patients[rows[image_id]["patient_id"]].append(float(np.mean(values)))
    label_of = {row["patient_id"]: strip_ai.classes.names.index(row["label"]) for row in rows.values()}
    p = np.array([np.mean(values) for values in patients.values()])
    raw, labels = np.stack([1 - p, p], axis=1), np.array([label_of[patient] for patient in patients])
    fitted = fit_calibration(raw, labels, strip_ai.classes.weights, floor=0.02)
    weights, clip = strip_ai.classes.weights, strip_ai.metric.clip
    assert balanced_log_loss(raw.tolist(), labels.tolist(), weights, clip) == pytest.approx(0.7485, abs=2e-3)
    assert balanced_log_loss(fitted.apply(raw).tolist(), labels.tolist(), weights, clip) < 0.650


def test_patients_are_means_of_slides_and_members(strip_ai: Competition) -> None:
    slides = {
        "a_0": {"one": np.array([0.2, 0.8]), "two": np.array([0.4, 0.6])},
        "a_1": {"one": np.array([0.4, 0.6]), "two": np.array([0.6, 0.4])},
        "b_0": {"one": np.array([0.9, 0.1]), "two": np.array([0.7, 0.3])},
    }
    means = patient_mean(slides, {"a_0": "a", "a_1": "a", "b_0": "b"})
    same = Calibration(1.0, (0.0, 0.0), 0.0)
    assert blend(means["a"], {"one": same, "two": same}) == pytest.approx([0.4, 0.6])
    assert blend(means["b"], {"one": same, "two": same}) == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("raw", [{}, {"method": "beta"}, {"method": "platt", "slope": "x"}, [], None])
def test_a_foreign_calibration_is_named(raw: object) -> None:
    with pytest.raises(ConfigError, match=r"calibration\.json"):
        Calibration.from_json(raw, "calibration.json", 2)
