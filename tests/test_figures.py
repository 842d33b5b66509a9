"""Figures against scikit-learn, the bootstrap against repeated rows, and missing classes."""

import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from clotkit.errors import SplitError, UsageError
from clotkit.evaluation.figures import NAMES, ScoredUnits, figures, predicted, weighted_auc, weighted_figures
from clotkit.metric import balanced_log_loss

CLIP = 1e-15
TWO, FOUR = ("blue", "green"), ("a", "b", "c", "d")
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def scored(
    seed: int, rows: int, classes: int, patients: int, sharpness: float = 1.0, ties: bool = False
) -> ScoredUnits:
    """Every class has a row; the true one is `sharpness` likelier."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=rows - classes)])
    probabilities = rng.dirichlet(np.ones(classes), rows)
    probabilities[np.arange(rows), labels] += sharpness * rng.random(rows)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    if ties:
        probabilities = np.round(probabilities, 1) + 0.01
    owners = np.array([f"p{number}" for number in rng.integers(patients, size=rows)])
    return ScoredUnits(labels.astype(np.int64), probabilities, owners)


def repeated(rows: ScoredUnits, counts: np.ndarray) -> ScoredUnits:
    chosen = np.repeat(np.arange(len(rows.labels)), counts.astype(int))
    return ScoredUnits(rows.labels[chosen], rows.probabilities[chosen], rows.patients[chosen])


def number(found: Mapping[str, float | None], name: str) -> float:
    value = found[name]
    assert value is not None, name
    return value


def by_scikit_learn(rows: ScoredUnits, at: int | None, weights: list[float]) -> dict[str, float]:
    """Return the figures by scikit-learn, NaN where one needs a missing class; `at` is the positive one."""
    labels, shares, said = rows.labels, rows.shares(), predicted(rows, at)
    which = range(shares.shape[1]) if at is None else [at]
    has = [bool((labels == index).any()) for index in range(shares.shape[1])]
    has_own = all(has[index] for index in which)
    has_others = all((labels != index).any() for index in which) if at is not None else all(has)
    found = dict.fromkeys(NAMES, float("nan"))
    found["accuracy"] = metrics.accuracy_score(labels, said)
    found["weighted_log_loss"] = balanced_log_loss(rows.probabilities.tolist(), labels.tolist(), weights, CLIP)
    if all(has):
        found["balanced_accuracy"] = metrics.balanced_accuracy_score(labels, said)
        found["auc"] = np.mean([metrics.roc_auc_score(labels == index, shares[:, index]) for index in which])
    if has_own:
        options: dict[str, Any] = {"labels": list(which), "average": "macro", "zero_division": 0}
        found["precision"] = metrics.precision_score(labels, said, **options)
        found["recall"] = found["sensitivity"] = metrics.recall_score(labels, said, **options)
        found["f1"] = metrics.f1_score(labels, said, **options)
    if has_others:
        found["specificity"] = np.mean([metrics.recall_score(labels != index, said != index) for index in which])
    return found


def evenly(classes: int) -> list[float]:
    return [1 / classes] * classes


def test_two_classes_are_scikit_learns() -> None:
    rows = scored(0, 200, 2, 40)
    found = figures(rows, TWO, "green", evenly(2), CLIP, resamples=10)
    share = rows.shares()[:, 1]
    truth, said = rows.labels == 1, share >= 0.5
    assert found["n"] == 200
    assert found["patients"] == len(set(rows.patients))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, said))
    assert found["precision"] == pytest.approx(metrics.precision_score(truth, said))
    assert found["recall"] == found["sensitivity"] == pytest.approx(metrics.recall_score(truth, said))
    assert found["specificity"] == pytest.approx(metrics.recall_score(~truth, ~said))
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, said))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, share))
    expected = balanced_log_loss(rows.probabilities.tolist(), rows.labels.tolist(), evenly(2), CLIP)
    assert found["weighted_log_loss"] == pytest.approx(expected)


def test_the_positive_class_may_be_the_first() -> None:
    rows = scored(1, 100, 2, 30)
    one, other = (figures(rows, TWO, name, evenly(2), CLIP, resamples=5) for name in TWO)
    assert one["sensitivity"] == other["specificity"]
    assert one["specificity"] == other["sensitivity"]
    assert one["auc"] == pytest.approx(other["auc"])
    assert one["f1"] != other["f1"]
    assert figures(rows, TWO, None, evenly(2), CLIP, resamples=5) == other


def test_a_half_is_the_positive_class() -> None:
    rows = ScoredUnits(np.array([0, 1]), np.array([[0.5, 0.5], [2.0, 2.0]]), np.array(["p", "q"]))
    assert predicted(rows, 1).tolist() == [1, 1]
    assert predicted(rows, 0).tolist() == [0, 0]


def test_more_classes_are_scikit_learns_macro_means() -> None:
    rows = scored(2, 300, 4, 50)
    found = figures(rows, FOUR, None, [0.4, 0.3, 0.2, 0.1], CLIP, resamples=10)
    shares = rows.shares()
    said = shares.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(rows.labels, said))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(rows.labels, said))
    assert found["precision"] == pytest.approx(metrics.precision_score(rows.labels, said, average="macro"))
    assert found["recall"] == pytest.approx(metrics.recall_score(rows.labels, said, average="macro"))
    assert found["sensitivity"] == found["recall"]
    assert found["f1"] == pytest.approx(metrics.f1_score(rows.labels, said, average="macro"))
    tables = metrics.multilabel_confusion_matrix(rows.labels, said)  # [C, 2, 2] of true and false
    assert found["specificity"] == pytest.approx(np.mean(tables[:, 0, 0] / tables[:, 0].sum(axis=1)))
    wanted = metrics.roc_auc_score(rows.labels, shares, multi_class="ovr", average="macro")
    assert found["auc"] == pytest.approx(wanted)


@QUICK
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 5),
    ties=st.booleans(),
    most=st.integers(1, 4),
    sharpness=st.sampled_from([0.0, 0.5, 5.0]),
    missing=st.sets(st.integers(0, 4)),
    first=st.booleans(),
)
def test_a_sample_is_scikit_learns_of_its_rows_written_out(
    seed: int, classes: int, ties: bool, most: int, sharpness: float, missing: set[int], first: bool
) -> None:
    """Compare rows with counts with rows repeated that often, also where some classes are missing."""
    rows = scored(seed, 40, classes, 12, sharpness, ties)
    rng = np.random.default_rng(seed)
    weights, counts = rng.uniform(0.1, 1, classes).tolist(), rng.integers(0, most + 1, (3, 40)).astype(np.float64)
    counts[:, :classes] += 1  # every class stays
    left = ~np.isin(rows.labels, list(missing - {seed % classes}))
    rows = ScoredUnits(rows.labels[left], rows.probabilities[left], rows.patients[left])
    at = (0 if first else 1) if classes == 2 else None
    quick = weighted_figures(rows, at, weights, CLIP, counts[:, left])
    assert tuple(sorted(quick)) == tuple(sorted(NAMES))
    for index, some in enumerate(counts[:, left]):
        plain = by_scikit_learn(repeated(rows, some), at, weights)
        for name in NAMES:
            assert quick[name][index] == pytest.approx(plain[name], abs=1e-9, nan_ok=True), name


@QUICK
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5), ties=st.booleans(), missing=st.sets(st.integers(0, 4)))
def test_the_figures_are_scikit_learns(seed: int, classes: int, ties: bool, missing: set[int]) -> None:
    rows = scored(seed, 40, classes, 12, ties=ties)
    left = ~np.isin(rows.labels, list(missing - {seed % classes}))
    rows = ScoredUnits(rows.labels[left], rows.probabilities[left], rows.patients[left])
    found = figures(rows, (*FOUR, "e")[:classes], None, evenly(classes), CLIP, resamples=1)
    plain = by_scikit_learn(rows, 1 if classes == 2 else None, evenly(classes))
    for name in NAMES:
        wanted = None if np.isnan(plain[name]) else pytest.approx(plain[name], abs=1e-12)
        assert found[name] == wanted, name


@QUICK
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_weighted_auc_is_scikit_learns(cases: list[tuple[bool, int, int]]) -> None:
    truth, scores, counts = (np.array(column) for column in zip(*cases, strict=True))
    found = weighted_auc(truth, scores.astype(np.float64), counts[None].astype(np.float64))
    if counts[truth].sum() and counts[~truth].sum():
        assert found[0] == pytest.approx(metrics.roc_auc_score(truth, scores, sample_weight=counts))
    else:
        assert np.isnan(found[0])


@QUICK
@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 4]))
def test_the_order_of_the_rows_says_nothing(seed: int, classes: int) -> None:
    rows = scored(seed, 60, classes, 15)
    order = np.random.default_rng(seed).permutation(60)
    mixed = ScoredUnits(rows.labels[order], rows.probabilities[order], rows.patients[order])
    names = FOUR[:classes]
    one, other = (figures(some, names, None, evenly(classes), CLIP, resamples=50) for some in (rows, mixed))
    assert one == pytest.approx(other)


@QUICK
@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 4]), sharpness=st.sampled_from([0.3, 1.0, 20.0]))
def test_intervals_contain_the_figure(seed: int, classes: int, sharpness: float) -> None:
    rows = scored(seed, 300, classes, 100, sharpness)
    found = figures(rows, FOUR[:classes], None, evenly(classes), CLIP, seed=seed, resamples=200)
    for name in NAMES:
        low, value, high = found[f"{name}_low"], found[name], found[f"{name}_high"]
        assert low is not None
        assert value is not None
        assert high is not None
        assert low - 1e-12 <= value <= high + 1e-12, name


def test_patients_are_drawn_and_not_rows() -> None:
    """Ten rows a patient, all alike: ten times as many rows, but no narrower interval."""
    few = scored(3, 60, 2, 10**9)
    many = ScoredUnits(few.labels.repeat(10), few.probabilities.repeat(10, axis=0), few.patients.repeat(10))
    alone = ScoredUnits(many.labels, many.probabilities, np.arange(600).astype(str))
    one, same, narrow = (figures(some, TWO, None, evenly(2), CLIP) for some in (few, many, alone))
    assert [same[f"{name}_low"] for name in NAMES] == pytest.approx([one[f"{name}_low"] for name in NAMES])
    widths = [number(found, "accuracy_high") - number(found, "accuracy_low") for found in (narrow, same)]
    assert widths[0] < 0.5 * widths[1]


def test_the_interval_is_as_wide_as_the_binomial() -> None:
    right = np.arange(400) < 300
    labels = np.arange(400) % 2
    probabilities = np.where(np.eye(2, dtype=bool)[np.where(right, labels, 1 - labels)], 0.8, 0.2)
    rows = ScoredUnits(labels, probabilities, np.arange(400).astype(str))
    found = figures(rows, TWO, None, evenly(2), CLIP, resamples=4000)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert found["accuracy_low"] == pytest.approx(0.75 - half, abs=0.005)
    assert found["accuracy_high"] == pytest.approx(0.75 + half, abs=0.005)


def test_the_seed_decides() -> None:
    rows = scored(4, 80, 2, 20)
    one, same, other = (figures(rows, TWO, None, evenly(2), CLIP, seed=seed, resamples=50) for seed in (5, 5, 6))
    assert one == same
    assert one != other


def test_a_missing_class_leaves_what_does_not_need_it() -> None:
    rows = scored(5, 100, 4, 30)
    some = rows.labels != 3
    found = figures(
        ScoredUnits(rows.labels[some], rows.probabilities[some], rows.patients[some]), FOUR, None, evenly(4), CLIP
    )
    for name in set(NAMES) - {"accuracy", "weighted_log_loss"}:
        assert found[name] is found[f"{name}_low"] is found[f"{name}_high"] is None, name
    for name in ("accuracy", "weighted_log_loss"):
        assert number(found, f"{name}_low") <= number(found, name) <= number(found, f"{name}_high")


@pytest.mark.parametrize("only", [0, 1])
def test_one_of_two_classes_has_its_own_recall(only: int) -> None:
    rows = scored(6, 100, 2, 30)
    some = rows.labels == only
    one = ScoredUnits(rows.labels[some], rows.probabilities[some], rows.patients[some])
    found = figures(one, TWO, "green", evenly(2), CLIP, resamples=50)
    known, unknown = ("sensitivity", "specificity") if only else ("specificity", "sensitivity")
    assert found[known] == found["accuracy"]
    assert found[f"{known}_low"] == found["accuracy_low"]
    assert found[unknown] is found["auc"] is found["balanced_accuracy"] is None
    assert (found["f1"] is None) == (only == 0)


def test_samples_without_a_rare_class_are_left_out() -> None:
    """One patient has all of class d: a third of the samples lack it and have no macro means."""
    rows = scored(7, 120, 4, 40)
    owners = np.where(rows.labels == 3, "rare", rows.patients)
    found = figures(ScoredUnits(rows.labels, rows.probabilities, owners), FOUR, None, evenly(4), CLIP)
    recall = np.mean(rows.shares().argmax(axis=1)[rows.labels == 3] == 3)
    assert number(found, "recall_low") > recall / 4
    assert number(found, "recall_low") < number(found, "recall") < number(found, "recall_high")


def test_one_patient_has_no_interval() -> None:
    found = figures(scored(8, 30, 2, 1), TWO, None, evenly(2), CLIP)
    assert found["accuracy"] is not None
    assert found["accuracy_low"] is found["accuracy_high"] is None


def test_nothing_decided_for_a_class_is_a_precision_of_0() -> None:
    rows = ScoredUnits(np.array([0, 1, 0, 1]), np.full((4, 2), [0.9, 0.1]), np.array(list("pqrs")))
    found = figures(rows, TWO, "green", evenly(2), CLIP, resamples=20)
    assert found["precision"] == found["f1"] == found["recall"] == 0
    assert found["auc"] == 0.5


def test_many_classes_are_scikit_learns() -> None:
    """The cells of whole confusion tables would take 160 MB."""
    rows = scored(10, 2000, 60, 500)
    tracemalloc.start()
    found = figures(rows, [f"c{index}" for index in range(60)], None, evenly(60), CLIP, resamples=20)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    plain = by_scikit_learn(rows, None, evenly(60))
    assert [found[name] for name in NAMES] == pytest.approx([plain[name] for name in NAMES], abs=1e-12)
    assert peak_bytes < 30e6


def test_the_bootstrap_is_quick() -> None:
    rows = scored(9, 3421, 8, 900)
    started = time.process_time()
    figures(rows, (*FOUR, *"efgh"), None, evenly(8), CLIP)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("labels", "probabilities", "words"),
    [
        ([0, 1], [[0.5, 0.5]], "give one of each a row"),
        ([0], [[1.0]], "classes >= 2"),
        ([], np.empty((0, 2)), "rows >= 1"),
        ([2], [[0.5, 0.5]], "labels go from 2 to 2"),
        ([-1], [[0.5, 0.5]], "allowed: 0 to 1"),
        ([0], [[np.nan, 0.5]], "row 0 has the probabilities nan, 0.5"),
        ([0], [[-0.5, 1.5]], "not negative"),
        ([0, 1], [[0.5, 0.5], [0.0, 0.0]], "row 1"),
    ],
)
def test_refuses_predictions_that_do_not_fit(labels: list[int], probabilities: list[list[float]], words: str) -> None:
    with pytest.raises(SplitError, match=words) as caught:
        ScoredUnits(np.array(labels, np.int64), np.array(probabilities), np.array(["p"] * len(labels)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": FOUR}, "4 classes and 2 weights"),
        ({"weights": [1.0]}, "1 weights"),
        ({"weights": [0.5, 0.0]}, "allowed: above 0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"resamples": 0}, "resamples is 0"),
        ({"positive": "red"}, "allowed: blue, green"),
    ],
)
def test_refuses_settings_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    given_: dict[str, Any] = {"classes": TWO, "positive": "green", "weights": evenly(2), "clip": CLIP, **change}
    with pytest.raises(UsageError, match=words):
        figures(scored(0, 20, 2, 5), **given_)
