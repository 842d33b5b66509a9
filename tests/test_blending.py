"""A fitted blend: shrunken means, calibration within bounds, imputation, and its files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import expit

from clotkit.competitions import Competition
from clotkit.errors import ConfigError
from clotkit.members.blending import BOUNDS, Blend, Calibrator, Imputer, logit, patient_means
from clotkit.members.ensemble import ENSEMBLE, ENSEMBLE_CALIBRATION, read_ensemble

OWNER = np.array([0, 0, 1, 2, 2, 2])
P = np.array([[0.1, 0.3], [0.2, 0.4], [0.9, 0.7], [0.5, 0.5], [0.6, 0.2], [0.1, 0.9]])
PROBABILITIES = arrays.arrays(np.float64, (6, 2), elements=st.floats(0, 1))
CALIBRATOR = Calibrator((0.25, 0.75), pseudo_slides=2.0, prior=0.4, floor=0.38, slope=1.3, intercept=0.7)


def fitted_blend() -> Blend:
    imputer = Imputer(np.array([0.4, 0.5]), np.array([[0.04, 0.02], [0.02, 0.03]]))
    return Blend(("a", "b"), imputer, CALIBRATOR)


def test_a_patient_is_the_mean_of_its_slides_and_of_pseudo_slides() -> None:
    slides = P.mean(axis=1)
    assert patient_means(slides, OWNER) == pytest.approx([0.25, 0.8, (0.5 + 0.4 + 0.5) / 3])
    assert patient_means(slides, OWNER, 2, 0.4) == pytest.approx([1.3 / 4, 1.6 / 3, 2.2 / 5])


def test_a_calibrator_is_platt_scaling_of_the_floored_shrunken_mean() -> None:
    means = np.array([0.25 + 0.35 + 0.8, 0.75 + 0.8, 0.5 + 0.3 + 0.7 + 0.8]) / np.array([4, 3, 5])
    assert means[0] < CALIBRATOR.floor < means[1]
    floored = np.array([0.38, *means[1:]])
    expected = 1 / (1 + np.exp(-(1.3 * np.log(floored / (1 - floored)) + 0.7)))
    assert CALIBRATOR.apply(P, OWNER) == pytest.approx(expected)
    assert expit(logit(P)) == pytest.approx(P)


@given(PROBABILITIES, st.floats(-50, 50), st.floats(-50, 50), st.floats(0, 10))
def test_a_calibrator_stays_within_its_bounds(p: np.ndarray, slope: float, intercept: float, pseudo: float) -> None:
    calibrator = replace(CALIBRATOR, slope=slope, intercept=intercept, pseudo_slides=pseudo)
    found = calibrator.apply(p, OWNER)
    assert found.shape == (3,)
    assert ((found >= BOUNDS[0]) & (found <= BOUNDS[1])).all()


@given(PROBABILITIES)
def test_the_order_of_slides_and_patients_does_not_matter(p: np.ndarray) -> None:
    order = np.array([4, 2, 0, 5, 1, 3])
    renamed = np.array([2, 0, 1])
    blend = fitted_blend()
    assert blend.apply(p[order], renamed[OWNER[order]])[renamed] == pytest.approx(blend.apply(p, OWNER), abs=1e-12)


def test_a_missing_member_is_imputed_from_the_others() -> None:
    """Of two correlated members, the imputed one is nearer to the truth than its mean, and unbiased."""
    rng = np.random.default_rng(0)
    both = np.clip(rng.multivariate_normal([0.4, 0.5], [[0.02, 0.015], [0.015, 0.02]], 1000), 0.01, 0.99)
    imputer = Imputer(both.mean(axis=0), np.cov(both.T))
    gone = both.copy()
    gone[:, 1] = np.nan
    filled = imputer.fill(gone)
    assert filled[:, 0] == pytest.approx(both[:, 0])
    assert filled[:, 1].mean() == pytest.approx(both[:, 1].mean(), abs=0.005)
    assert np.abs(filled[:, 1] - both[:, 1]).mean() < 0.75 * np.abs(both[:, 1].mean() - both[:, 1]).mean()
    assert filled[:, 1].std() < both[:, 1].std()  # less sure than the member itself
    assert imputer.fill(both) == pytest.approx(both)


def test_missing_members_change_the_answer_little() -> None:
    blend, gone = fitted_blend(), P.copy()
    gone[:, 1] = np.nan
    assert np.abs(blend.apply(gone, OWNER) - blend.apply(P, OWNER)).max() < 0.25
    assert np.isfinite(blend.apply(np.full_like(P, np.nan), OWNER)).all()


def test_json_and_back_gives_the_same_probabilities() -> None:
    blend = fitted_blend()
    again = Blend.from_json(json.loads(json.dumps(blend.to_json())), "here")
    assert again.apply(P, OWNER) == pytest.approx(blend.apply(P, OWNER), abs=1e-12)


OLD = {  # an ensemble of clotkit 0.1
    "method": "committee",
    "members": ["a", "b"],
    "means": [0.4, 0.5],
    "covariance": [[0.04, 0.02], [0.02, 0.03]],
    "bounds": [0.1, 0.9],
    "candidates": [],
}
GOOD_JSON = fitted_blend().to_json()


@pytest.mark.parametrize(
    "broken",
    [
        {},
        [],
        None,
        OLD,
        {"method": "platt"},
        GOOD_JSON | {"members": []},
        GOOD_JSON | {"members": ["a"]},
        GOOD_JSON | {"means": [0.1]},
        GOOD_JSON | {"covariance": [[0.1, 0.1]]},
        GOOD_JSON | {"calibrator": {}},
        GOOD_JSON | {"calibrator": GOOD_JSON["calibrator"] | {"slope": "steep"}},
        GOOD_JSON | {"calibrator": GOOD_JSON["calibrator"] | {"other": 1}},
        GOOD_JSON | {"calibrator": GOOD_JSON["calibrator"] | {"weights": [1.0]}},
    ],
)
def test_another_file_is_refused_in_one_line(broken: object) -> None:
    with pytest.raises(ConfigError, match=r"^here: .*clotkit blend") as caught:
        Blend.from_json(broken, "here")
    assert "\n" not in str(caught.value)


def written(folder: Path, text: str) -> Path:
    (folder / ENSEMBLE_CALIBRATION).write_text(json.dumps(GOOD_JSON))
    (folder / ENSEMBLE).write_text(text)
    return folder


GOOD = 'competition = "mayo-clinic-strip-ai"\npositive = "LAA"\ncalibration = "calibration.json"\n'


def test_an_ensemble_is_read_from_its_folder(tmp_path: Path, strip_ai: Competition) -> None:
    assert read_ensemble(tmp_path, strip_ai) is None
    found = read_ensemble(written(tmp_path, GOOD), strip_ai)
    assert found is not None
    slides = {
        "x_0": {"a": np.array([0.7, 0.3])},
        "x_1": {"a": np.array([0.6, 0.4]), "b": np.array([0.5, 0.5])},
        "y_0": {},
    }
    answers = found.apply(slides, {"x_0": "x", "x_1": "x", "y_0": "y"})
    assert list(answers) == ["x"]  # no member has seen y's slide
    assert sum(answers["x"]) == pytest.approx(1)
    assert found.apply({"y_0": {}}, {"y_0": "y"}) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing = 1\n", "competition|calibration"),
        ("[", "cannot be read"),
        (GOOD.replace("LAA", "CE"), "is for CE"),
        (GOOD.replace("mayo-clinic", "other"), "is for LAA of other-strip-ai"),
        (GOOD.replace("calibration.json", "gone.json"), "cannot be read"),
    ],
)
def test_a_damaged_ensemble_is_named(tmp_path: Path, strip_ai: Competition, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_ensemble(written(tmp_path, text), strip_ai)
