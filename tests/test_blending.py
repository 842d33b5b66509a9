"""What a fitted ensemble does: pools, links, stand-ins, the average and its bounds, to JSON and back."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clotkit.competitions import Competition
from clotkit.errors import ConfigError
from clotkit.members.blending import (
    MEMBER_POOLS,
    SLIDE_POOLS,
    Candidate,
    Committee,
    Covariate,
    Expectation,
    Logistic,
    Pool,
    Steps,
    covariates_of,
    expit,
    logit,
)
from clotkit.members.ensemble import ENSEMBLE, ENSEMBLE_CALIBRATION, read_ensemble
from clotkit.members.pooling import TILE_POOLS, pooled_as

NOTHING = np.zeros((3, 0))
OWNER = np.array([0, 0, 1, 2, 2, 2])
P = np.array([[0.1, 0.3], [0.2, 0.4], [0.9, 0.7], [0.5, 0.5], [0.6, 0.2], [0.1, 0.9]])
PROBABILITIES = arrays.arrays(np.float64, (6, 2), elements=st.floats(0, 1))


def committee(**changed: object) -> Committee:
    pool = Pool(weights=(0.5, 0.5), pseudo_slides=1.0, prior=0.4)
    one = Candidate("one", pool, Logistic({"logit": 1.3, "complement": 0.2}, 0.7, 0.2))
    two = Candidate("two", replace(pool, slides="sum"), Steps((0.1, 0.9), (0.2, 0.8)))
    expectation = Expectation(np.array([0.4, 0.5]), np.array([[0.04, 0.02], [0.02, 0.03]]))
    made = Committee(("a", "b"), expectation, (one, two), (0.1, 0.9))
    return replace(made, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (Pool(weights=(0.25, 0.75)), [(0.25 + 0.35) / 2, 0.75, (0.5 + 0.3 + 0.7) / 3]),
        (Pool(weights=(0.5, 0.5), slides="max"), [0.3, 0.8, 0.5]),
        (Pool(weights=(0.5, 0.5), slides="median"), [0.25, 0.8, 0.5]),
        (Pool(weights=(0.5, 0.5), slides="noisy_or"), [1 - 0.8 * 0.7, 0.8, 1 - 0.5 * 0.6 * 0.5]),
        (Pool(weights=(0.5, 0.5), slides="sum", prior=0.4), [0.4 - 0.2 - 0.1, 0.8, 0.4 + 0.1 + 0 + 0.1]),
        (Pool(weights=(0.5, 0.5), pseudo_slides=2, prior=0.4), [1.3 / 4, 1.6 / 3, 2.2 / 5]),
        (Pool(members="median", weights=(0.5, 0.5)), [0.25, 0.8, (0.5 + 0.4 + 0.5) / 3]),
    ],
)
def test_pools_give_what_their_names_say(pool: Pool, expected: list[float]) -> None:
    assert pool.apply(P, OWNER, 3) == pytest.approx(expected)


@given(PROBABILITIES, st.sampled_from(sorted(MEMBER_POOLS)), st.sampled_from(sorted(SLIDE_POOLS)))
def test_a_pool_gives_probabilities_whatever_it_is_given(p: np.ndarray, members: str, slides: str) -> None:
    found = Pool(members=members, slides=slides, weights=(0.5, 0.5), prior=float(p.mean())).apply(p, OWNER, 3)
    assert ((found >= -1e-12) & (found <= 1 + 1e-12)).all()


@given(PROBABILITIES)
def test_the_order_of_slides_and_of_patients_is_nothing(p: np.ndarray) -> None:
    turned = np.array([4, 2, 0, 5, 1, 3])
    renamed = np.array([2, 0, 1])
    made = committee()
    straight = made.apply(p, OWNER, NOTHING)
    other = made.apply(p[turned], renamed[OWNER[turned]], NOTHING)
    assert other[renamed] == pytest.approx(straight, abs=1e-12)
    assert ((straight >= 0.1) & (straight <= 0.9)).all()


def test_log_odds_are_straight_in_their_links_and_flat_below_the_floor() -> None:
    x = np.array([0.01, 0.2, 0.6])
    found = Logistic({"logit": 2.0, "complement": 3.0, "linear": 1.0}, 0.5, floor=0.2).log_odds(x)
    u = np.array([0.2, 0.2, 0.6])
    assert found == pytest.approx(0.5 + 2 * np.log(u / (1 - u)) - 3 * np.log(1 - u) + u)
    assert expit(logit(x)) == pytest.approx(x)


def test_a_missing_member_is_what_the_others_lead_to_expect() -> None:
    """Of a thousand draws of two correlated members, the stand-in is nearer than the mean, and right on average."""
    rng = np.random.default_rng(0)
    both = np.clip(rng.multivariate_normal([0.4, 0.5], [[0.02, 0.015], [0.015, 0.02]], 1000), 0.01, 0.99)
    expectation = Expectation(both.mean(axis=0), np.cov(both.T))
    gone = both.copy()
    gone[:, 1] = np.nan
    filled = expectation.filled(gone)
    assert filled[:, 0] == pytest.approx(both[:, 0])
    assert filled[:, 1].mean() == pytest.approx(both[:, 1].mean(), abs=0.005)
    assert np.abs(filled[:, 1] - both[:, 1]).mean() < 0.75 * np.abs(both[:, 1].mean() - both[:, 1]).mean()
    assert filled[:, 1].std() < both[:, 1].std()  # less is claimed than with it
    assert expectation.filled(both) == pytest.approx(both)


def test_with_every_member_but_one_gone_the_answer_stays_near() -> None:
    made, gone = committee(), P.copy()
    gone[:, 1] = np.nan
    assert np.abs(made.apply(gone, OWNER, NOTHING) - made.apply(P, OWNER, NOTHING)).max() < 0.25


def test_a_covariate_adds_its_slope_and_nothing_where_it_is_not_known() -> None:
    known = Covariate("width_px", 3.0, 2.0, 0.8)
    one = Candidate("x", Pool(weights=(0.5, 0.5)), Logistic({"logit": 1.0}, 0.0), (known,))
    plain = Candidate("x", Pool(weights=(0.5, 0.5)), Logistic({"logit": 1.0}, 0.0))
    sizes = covariates_of(OWNER, 3, {"width_px": [np.e**5, np.e**5, np.e**3, 0, 10, 10]})
    assert sizes[:2, 0] == pytest.approx([5, 3])
    assert np.isnan(sizes[2, 0])
    difference = logit(one.apply(P, OWNER, sizes)) - logit(plain.apply(P, OWNER, NOTHING))
    assert difference == pytest.approx([0.8, 0.0, 0.0])


def test_json_and_back_gives_the_same_probabilities() -> None:
    made = committee()
    again = Committee.from_json(json.loads(json.dumps(made.to_json())), "here")
    assert again.apply(P, OWNER, NOTHING) == pytest.approx(made.apply(P, OWNER, NOTHING), abs=1e-12)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"method": "platt"},
        committee().to_json() | {"candidates": []},
        committee().to_json() | {"bounds": [0.1]},
        committee().to_json() | {"means": [0.1]},
        committee().to_json() | {"candidates": [{"name": "x"}]},
    ],
)
def test_another_file_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="here"):
        Committee.from_json(broken, "here")


def written(folder: Path, text: str) -> Path:
    (folder / ENSEMBLE_CALIBRATION).write_text(json.dumps(committee().to_json()))
    (folder / ENSEMBLE).write_text(text)
    return folder


GOOD = 'competition = "mayo-clinic-strip-ai"\npositive = "LAA"\ncalibration = "calibration.json"\n[tile_pools]\n'


def test_an_ensemble_is_read_from_its_folder(tmp_path: Path, strip_ai: Competition) -> None:
    assert read_ensemble(tmp_path, strip_ai) is None
    found = read_ensemble(written(tmp_path, GOOD + 'a = "median"\n'), strip_ai)
    assert found is not None
    assert found.tile_pools == {"a": "median"}
    slides = {
        "x_0": {"a": np.array([0.7, 0.3])},
        "x_1": {"a": np.array([0.6, 0.4]), "b": np.array([0.5, 0.5])},
        "y_0": {},
    }
    answers = found.apply(slides, {"x_0": "x", "x_1": "x", "y_0": "y"}, {})
    assert list(answers) == ["x"]  # nobody has seen y's slide
    assert sum(answers["x"]) == pytest.approx(1)
    assert found.apply({"y_0": {}}, {"y_0": "y"}, {}) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing = 1\n", "cannot be read"),
        ("[", "cannot be read"),
        (GOOD.replace("LAA", "CE"), "is for CE"),
        (GOOD.replace("mayo-clinic", "other"), "is for LAA of other-strip-ai"),
        (GOOD + 'a = "sideways"\n', "sideways"),
        (GOOD + 'z = "mean"\n', "'z'"),
        (GOOD.replace("calibration.json", "gone.json"), "cannot be read"),
    ],
)
def test_a_damaged_ensemble_is_named(tmp_path: Path, strip_ai: Competition, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_ensemble(written(tmp_path, text), strip_ai)


def test_tile_pools_give_what_their_names_say() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.9])
    expected = {
        "mean": 0.38,
        "median": 0.3,
        "trimmed": 0.3,
        "max": 0.9,
        "noisy_or": 1 - 0.9 * 0.8 * 0.7 * 0.6 * 0.1,
        "logit_mean": float(expit(np.array([np.mean(np.log(p / (1 - p)))]))[0]),
    }
    assert {name: pool(p) for name, pool in TILE_POOLS.items()} == pytest.approx(expected)
    rows = np.stack([1 - p, p], axis=1)
    assert pooled_as(rows, "mean", "max") == pytest.approx([0.1, 0.9])
    assert pooled_as(rows, "mean", "") == pytest.approx([0.62, 0.38])
