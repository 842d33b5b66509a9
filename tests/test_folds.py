"""Folds: no patient in two parts, every tile held out once, and the same folds for one seed."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from clotkit.config import DataConfig, TrainingConfig
from clotkit.data.folds import Fold, check_folds, make_folds
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, UsageError

NAMES = ("blue", "green", "white")


def training(seed: int = 1, validation: float = 0.0, folds: int = 3) -> TrainingConfig:
    return TrainingConfig(seed, epochs=1, batch_tiles=8, learning_rate=1e-3, folds=folds, validation_share=validation)


def tile_set(patients: list[int], labels: list[int], centres: list[str] | None = None, classes: int = 3) -> TileSet:
    """Return tiles of these patients and labels, each tile an image of its own."""
    rows = np.arange(len(patients))
    return TileSet(
        tiles=np.zeros((len(rows), 2, 2, 3), np.uint8),
        labels=np.array(labels, np.int64),
        patients=np.array(patients).astype(np.str_),
        images=rows.astype(np.str_),
        centres=np.array(centres or [""] * len(rows), np.str_),
        parts=np.full(len(rows), "", np.str_),
        classes=NAMES[:classes],
    )


@st.composite
def tile_sets(draw: st.DrawFn, least: int = 4) -> TileSet:
    """Draw two or three classes of `least` to 12 patients with one to five tiles each.

    A patient's tiles are of one centre.
    """
    classes = draw(st.integers(2, 3))
    patients, labels, centres = list[int](), list[int](), list[str]()
    for label in range(classes):
        for _ in range(draw(st.integers(least, 12))):
            tiles = draw(st.integers(1, 5))
            patients += [max(patients, default=0) + 1] * tiles
            labels += [label] * tiles
            centres += [f"c{draw(st.integers(0, 4))}"] * tiles
    order = draw(st.randoms(use_true_random=False)).sample(range(len(patients)), len(patients))
    return tile_set(
        [patients[index] for index in order],
        [labels[index] for index in order],
        [centres[index] for index in order],
        classes,
    )


def check_sides(folds: list[Fold], tiles: TileSet) -> None:
    for fold in folds:
        parts = [fold.train, fold.validation, fold.held_out]
        assert (np.sum(parts, axis=0) == 1).all()
        patients = [set(tiles.patients[part]) for part in parts]
        assert sum(map(len, patients)) == len(set(tiles.patients))
        assert set(tiles.labels[fold.train]) == set(range(len(tiles.classes)))
        assert fold.held_out.any()


def equal(one: list[Fold], other: list[Fold]) -> bool:
    return all(
        np.array_equal(getattr(a, side), getattr(b, side))
        for a, b in zip(one, other, strict=True)
        for side in ("train", "validation", "held_out")
    )


@settings(max_examples=60, deadline=None)
@given(
    tiles=tile_sets(), seed=st.integers(0, 99), validation=st.sampled_from([0.0, 0.1, 0.3, 0.5]), k=st.integers(2, 4)
)
def test_folds_by_patient(tiles: TileSet, seed: int, validation: float, k: int) -> None:
    folds = make_folds(tiles, DataConfig(split="folds"), training(seed, validation), k)
    assert len(folds) == k
    check_sides(folds, tiles)
    assert (np.sum([fold.held_out for fold in folds], axis=0) == 1).all()
    assert equal(folds, make_folds(tiles, DataConfig(split="folds"), training(seed, validation), k))
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    for fold, (rest, held_out) in zip(folds, splitter.split(tiles.tiles, tiles.labels, tiles.patients), strict=True):
        assert np.array_equal(np.flatnonzero(fold.held_out), held_out)
        assert np.array_equal(np.flatnonzero(fold.train | fold.validation), rest)
        assert fold.validation.any() == (validation > 0)


@settings(max_examples=60, deadline=None)
@given(tiles=tile_sets(), seed=st.integers(0, 99), validation=st.sampled_from([0.0, 0.2]), k=st.integers(2, 6))
def test_folds_by_centre(tiles: TileSet, seed: int, validation: float, k: int) -> None:
    data, config = DataConfig(split="centres"), training(seed, validation)
    rarest = min(len(set(tiles.patients[tiles.labels == label])) for label in range(len(tiles.classes)))
    assume(min(k, len(set(tiles.centres))) <= rarest)
    try:
        folds = make_folds(tiles, data, config, k)
    except ConfigError as error:
        assume("0 tiles" not in str(error))  # all tiles of a class are held out in one fold
        assert len(set(tiles.centres)) < 2
        return
    assert len(folds) == min(k, len(set(tiles.centres)))
    check_sides(folds, tiles)
    assert (np.sum([fold.held_out for fold in folds], axis=0) == 1).all()
    for fold in folds:
        assert not set(tiles.centres[fold.held_out]) & set(tiles.centres[~fold.held_out])
    assert equal(folds, make_folds(tiles, data, config, k))


@settings(max_examples=60, deadline=None)
@given(tiles=tile_sets(least=3), seed=st.integers(0, 99))
def test_holdout_is_exact_to_a_patient(tiles: TileSet, seed: int) -> None:
    folds = make_folds(tiles, DataConfig(split="holdout"), training(seed), None)
    check_sides(folds, tiles)
    for side in (folds[0].validation, folds[0].held_out):
        counts = [len(set(tiles.patients[side & (tiles.labels == index)])) for index in range(len(tiles.classes))]
        totals = [len(set(tiles.patients[tiles.labels == index])) for index in range(len(tiles.classes))]
        assert all(abs(count - 0.15 * total) <= 1.2 for count, total in zip(counts, totals, strict=True))
        if min(totals) >= 7:  # of fewer, one is more than 15 %
            assert abs(sum(counts) - 0.15 * sum(totals)) <= 1
    assert equal(folds, make_folds(tiles, DataConfig(split="holdout"), training(seed), None))


def test_holdout_of_many_patients() -> None:
    tiles = tile_set(list(range(1000)), [0] * 900 + [1] * 100, classes=2)
    (fold,) = make_folds(tiles, DataConfig(split="holdout"), training(), None)
    found = [
        [int((side & (tiles.labels == label)).sum()) for label in (0, 1)]
        for side in (fold.train, fold.validation, fold.held_out)
    ]
    assert found == [[630, 70], [135, 15], [135, 15]]
    (other,) = make_folds(tiles, DataConfig(split="holdout"), training(seed=2), None)
    assert not np.array_equal(fold.held_out, other.held_out)


def test_given_parts_are_the_folds() -> None:
    tiles = tile_set([1, 2, 3, 1, 5, 6], [0, 1, 0, 1, 0, 1], classes=2)
    tiles = replace(tiles, parts=np.array(["train", "train", "val", "val", "test", "test"]))
    (fold,) = make_folds(tiles, DataConfig(split="given"), training(validation=0.5), None)
    assert [side.tolist() for side in (fold.train, fold.validation, fold.held_out)] == [
        [part == name for part in tiles.parts] for name in ("train", "val", "test")
    ]


def test_given_parts_without_val_take_the_validation_share() -> None:
    tiles = tile_set(list(range(24)), [0, 1] * 12, classes=2)
    tiles = replace(tiles, parts=np.array(["train"] * 20 + ["test"] * 4))
    (fold,) = make_folds(tiles, DataConfig(split="given"), training(validation=0.2), None)
    assert fold.validation.sum() == 4
    assert set(tiles.parts[fold.validation]) == {"train"}
    assert not make_folds(tiles, DataConfig(split="given"), training(), None)[0].validation.any()


@pytest.mark.parametrize("seed", range(5))
def test_no_tile_of_the_test_part_validates(seed: int) -> None:
    """A patient, or a group of near-duplicates, may be on both sides of given parts."""
    tiles = tile_set([*range(20), *range(20)], [0, 1] * 20, classes=2)
    tiles = replace(tiles, parts=np.array(["train"] * 20 + ["test"] * 20))
    (fold,) = make_folds(tiles, DataConfig(split="given"), training(seed, validation=0.3), None)
    assert fold.validation.any()
    assert set(tiles.parts[fold.validation]) == {"train"}
    assert (np.stack([fold.train, fold.validation, fold.held_out]).sum(axis=0) == 1).all()


def test_centres_that_share_a_patient_stay_together() -> None:
    tiles = tile_set([1, 1, 2, 3, 4, 5], [0, 0, 1, 0, 0, 1], ["a", "b", "a", "b", "c", "c"], classes=2)
    folds = make_folds(tiles, DataConfig(split="centres"), training(), 3)
    assert sorted(sorted(set(tiles.centres[fold.held_out])) for fold in folds) == [["a", "b"], ["c"]]


def test_the_number_of_folds_is_the_recipes_by_default() -> None:
    tiles = tile_set(list(range(40)), [0, 1] * 20, classes=2)
    assert len(make_folds(tiles, DataConfig(), training(folds=4), None)) == 4
    assert len(make_folds(tiles, DataConfig(), training(folds=4), 2)) == 2


@pytest.mark.parametrize(
    ("split", "folds", "named"),
    [
        ("folds", 50, ("folds", "50", "green", "3")),
        ("folds", 1, ("folds", "1", "2")),
        ("centres", 3, ("data.split", "5 of 9", "2")),
        ("given", 3, ("data.split", "none 5", "train 4")),
        ("holdout", 3, ("data.split", "white", "0", "3")),
    ],
)
def test_an_impossible_split_is_one_line_with_its_numbers(split: str, folds: int, named: tuple[str, ...]) -> None:
    tiles = tile_set(list(range(9)), [0] * 6 + [1] * 3, ["a", "a", "b", "b"] + [""] * 5, 3 if split == "holdout" else 2)
    tiles = replace(tiles, parts=np.array(["train"] * 4 + [""] * 5))
    with pytest.raises(ConfigError) as raised:
        make_folds(tiles, DataConfig(split=split), training(), folds)
    (line,) = str(raised.value).splitlines()
    assert all(re.search(rf"{re.escape(word)}(?!\w)", line) for word in named), line


def test_centres_that_cannot_be_separated_are_refused() -> None:
    tiles = tile_set([1, 1, 2, 2], [0, 0, 1, 1], ["a", "b", "a", "b"], classes=2)
    with pytest.raises(ConfigError, match=r"2 centres .* 1 group"):
        make_folds(tiles, DataConfig(split="centres"), training(), 2)
    tiles = tile_set([1, 2, 3, 4], [0, 0, 1, 1], ["a", "a", "b", "b"], classes=2)
    with pytest.raises(ConfigError, match=r"fold 1 .* 0 tiles of class (blue|green)"):
        make_folds(tiles, DataConfig(split="centres"), training(), 2)


@pytest.mark.parametrize("split", ["given", "holdout"])
def test_a_number_of_folds_that_would_be_ignored_is_refused(split: str) -> None:
    check_folds(None, DataConfig(split=split))
    check_folds(5, DataConfig(split="folds"))
    with pytest.raises(UsageError):
        check_folds(5, DataConfig(split=split))
