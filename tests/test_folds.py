"""Folds: no patient on two sides, every tile in one of the three, every tile held once, the same for the same seed."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from clotkit.config import DataConfig, TrainingConfig
from clotkit.data.folds import Fold, make_folds
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError

NAMES = ("blue", "green", "white")


def training(seed: int = 1, watch: float = 0.0, folds: int = 3) -> TrainingConfig:
    return TrainingConfig(seed, epochs=1, batch_tiles=8, learning_rate=1e-3, folds=folds, watch=watch)


def tile_set(patients: list[int], labels: list[int], centres: list[str] | None = None, classes: int = 3) -> TileSet:
    """Tiles of these patients and labels; each tile is an image."""
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
    """Of two or three classes, `least` to 12 patients each, of one to five tiles; patients of a centre may vary."""
    classes = draw(st.integers(2, 3))
    patients, labels, centres = list[int](), list[int](), list[str]()
    for label in range(classes):
        for _ in range(draw(st.integers(least, 12))):
            tiles = draw(st.integers(1, 5))
            patients += [max(patients, default=0) + 1] * tiles
            labels += [label] * tiles
            centres += [f"c{draw(st.integers(0, 4))}"] * tiles
    order = draw(st.randoms(use_true_random=False)).sample(range(len(patients)), len(patients))
    return tile_set(*([column[index] for index in order] for column in (patients, labels, centres)), classes=classes)


def check_sides(folds: list[Fold], tiles: TileSet) -> None:
    for fold in folds:
        sides = [fold.train, fold.watch, fold.held]
        assert (np.sum(sides, axis=0) == 1).all()
        people = [set(tiles.patients[side]) for side in sides]
        assert sum(map(len, people)) == len(set(tiles.patients))
        assert set(tiles.labels[fold.train]) == set(range(len(tiles.classes)))
        assert fold.held.any()


def equal(one: list[Fold], other: list[Fold]) -> bool:
    return all(
        np.array_equal(getattr(a, side), getattr(b, side))
        for a, b in zip(one, other, strict=True)
        for side in ("train", "watch", "held")
    )


@settings(max_examples=60, deadline=None)
@given(tiles=tile_sets(), seed=st.integers(0, 99), watch=st.sampled_from([0.0, 0.1, 0.3, 0.5]), k=st.integers(2, 4))
def test_folds_by_patient(tiles: TileSet, seed: int, watch: float, k: int) -> None:
    folds = make_folds(tiles, DataConfig(split="folds"), training(seed, watch), k)
    assert len(folds) == k
    check_sides(folds, tiles)
    assert (np.sum([fold.held for fold in folds], axis=0) == 1).all()
    assert equal(folds, make_folds(tiles, DataConfig(split="folds"), training(seed, watch), k))
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    for fold, (seen, held) in zip(folds, splitter.split(tiles.tiles, tiles.labels, tiles.patients), strict=True):
        assert np.array_equal(np.flatnonzero(fold.held), held)
        assert np.array_equal(np.flatnonzero(fold.train | fold.watch), seen)
        assert fold.watch.any() == (watch > 0)


@settings(max_examples=60, deadline=None)
@given(tiles=tile_sets(), seed=st.integers(0, 99), watch=st.sampled_from([0.0, 0.2]), k=st.integers(2, 6))
def test_folds_by_centre(tiles: TileSet, seed: int, watch: float, k: int) -> None:
    data, config = DataConfig(split="centres"), training(seed, watch)
    rarest = min(len(set(tiles.patients[tiles.labels == label])) for label in range(len(tiles.classes)))
    assume(min(k, len(set(tiles.centres))) <= rarest)
    try:
        folds = make_folds(tiles, data, config, k)
    except ConfigError as error:
        assume("to train on" not in str(error))  # a class of one centre
        assert len(set(tiles.centres)) < 2
        return
    assert len(folds) == min(k, len(set(tiles.centres)))
    check_sides(folds, tiles)
    assert (np.sum([fold.held for fold in folds], axis=0) == 1).all()
    for fold in folds:
        assert not set(tiles.centres[fold.held]) & set(tiles.centres[~fold.held])
    assert equal(folds, make_folds(tiles, data, config, k))


@settings(max_examples=60, deadline=None)
@given(tiles=tile_sets(least=3), seed=st.integers(0, 99))
def test_holdout_is_exact_to_a_patient(tiles: TileSet, seed: int) -> None:
    folds = make_folds(tiles, DataConfig(split="holdout"), training(seed), None)
    check_sides(folds, tiles)
    for side in (folds[0].watch, folds[0].held):
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
        for side in (fold.train, fold.watch, fold.held)
    ]
    assert found == [[630, 70], [135, 15], [135, 15]]
    (other,) = make_folds(tiles, DataConfig(split="holdout"), training(seed=2), None)
    assert not np.array_equal(fold.held, other.held)


def test_given_parts_are_the_folds() -> None:
    tiles = tile_set([1, 2, 3, 1, 5, 6], [0, 1, 0, 1, 0, 1], classes=2)
    tiles = replace(tiles, parts=np.array(["train", "train", "val", "val", "test", "test"]))
    (fold,) = make_folds(tiles, DataConfig(split="given"), training(watch=0.5), None)
    assert [side.tolist() for side in (fold.train, fold.watch, fold.held)] == [
        [part == name for part in tiles.parts] for name in ("train", "val", "test")
    ]


def test_given_parts_without_val_are_watched_by_share() -> None:
    tiles = tile_set(list(range(24)), [0, 1] * 12, classes=2)
    tiles = replace(tiles, parts=np.array(["train"] * 20 + ["test"] * 4))
    (fold,) = make_folds(tiles, DataConfig(split="given"), training(watch=0.2), None)
    assert fold.watch.sum() == 4
    assert set(tiles.parts[fold.watch]) == {"train"}
    assert not make_folds(tiles, DataConfig(split="given"), training(), None)[0].watch.any()


def test_centres_that_share_a_patient_stay_together() -> None:
    tiles = tile_set([1, 1, 2, 3, 4, 5], [0, 0, 1, 0, 0, 1], ["a", "b", "a", "b", "c", "c"], classes=2)
    folds = make_folds(tiles, DataConfig(split="centres"), training(), 3)
    assert sorted(sorted(set(tiles.centres[fold.held])) for fold in folds) == [["a", "b"], ["c"]]


def test_the_number_of_folds_is_the_recipes_where_none_is_said() -> None:
    tiles = tile_set(list(range(40)), [0, 1] * 20, classes=2)
    assert len(make_folds(tiles, DataConfig(), training(folds=4), None)) == 4
    assert len(make_folds(tiles, DataConfig(), training(folds=4), 2)) == 2


@pytest.mark.parametrize(
    ("split", "folds", "words"),
    [
        ("folds", 50, "--folds is 50, but class green has only 3 patients; at most that many folds, at least 2"),
        ("folds", 1, "--folds is 1; at least 2"),
        ("centres", 3, "5 of 9 tiles have no centre, and centres are 2; every tile needs one, of at least 2"),
        ("given", 3, "the tiles by part are: none 5, train 4; every tile needs one of train, val, test"),
        ("holdout", 3, "data.split is 'holdout', but class white has only 0 patients; at least 3 are needed"),
    ],
)
def test_what_a_split_needs_is_said_in_one_line(split: str, folds: int, words: str) -> None:
    tiles = tile_set(list(range(9)), [0] * 6 + [1] * 3, ["a", "a", "b", "b"] + [""] * 5, 3 if split == "holdout" else 2)
    tiles = replace(tiles, parts=np.array(["train"] * 4 + [""] * 5))
    with pytest.raises(ConfigError, match=re.escape(words)) as told:
        make_folds(tiles, DataConfig(split=split), training(), folds)
    assert len(str(told.value).splitlines()) == 1


def test_centres_that_cannot_be_parted_are_refused() -> None:
    tiles = tile_set([1, 1, 2, 2], [0, 0, 1, 1], ["a", "b", "a", "b"], classes=2)
    with pytest.raises(ConfigError, match="all 2 centres share patients and make 1 group"):
        make_folds(tiles, DataConfig(split="centres"), training(), 2)
    tiles = tile_set([1, 2, 3, 4], [0, 0, 1, 1], ["a", "a", "b", "b"], classes=2)
    with pytest.raises(ConfigError, match=r"fold 1 of split centres: 0 tiles of class (blue|green) to train on"):
        make_folds(tiles, DataConfig(split="centres"), training(), 2)
