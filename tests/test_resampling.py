"""Test how the classes of training tiles are balanced: weights, repeated tiles and synthetic tiles."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.config import TrainingConfig
from clotkit.data.tiles import TileSet
from clotkit.training.resampling import add_synthetic, draw_evenly, epoch_order, sample_weights

LABELS = np.array([0] * 9 + [1] * 3)
PATIENTS = np.array(list("aaaaaaabb") + list("ccd"))


def config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(seed=1, epochs=1, batch_tiles=4, learning_rate=0.1, **settings)


@pytest.fixture
def tiles() -> TileSet:
    """Return 9 dark tiles of two patients and 3 bright ones of two others."""
    pixels = np.random.default_rng(0).integers(0, 50, (12, 4, 4, 3)) + 150 * LABELS[:, None, None, None]
    names = np.arange(12).astype(str)
    return TileSet(pixels.astype(np.uint8), LABELS, PATIENTS, names, names, names, ("dark", "bright"))


def test_weights_give_every_class_the_same_sum(tiles: TileSet) -> None:
    weights = sample_weights(tiles, config(balance="weights"))
    assert [weights[label == LABELS].sum() for label in (0, 1)] == pytest.approx([6, 6])


def test_weights_by_patient_give_every_patient_of_a_class_the_same_sum(tiles: TileSet) -> None:
    weights = sample_weights(tiles, config(balance="patients"))
    assert [weights[patient == PATIENTS].sum() for patient in "abcd"] == pytest.approx([3, 3, 3, 3])


def test_class_weights_of_the_recipe_come_first(tiles: TileSet) -> None:
    assert sample_weights(tiles, config(class_weights=(1.0, 5.0))).tolist() == [1] * 9 + [5] * 3


@pytest.mark.parametrize(("balance", "counts"), [("none", [9, 3]), ("weights", [9, 3]), ("oversample", [9, 9])])
def test_an_epoch_contains_every_tile_and_with_oversampling_as_many_of_each_class(
    balance: str, counts: list[int]
) -> None:
    orders = [epoch_order(LABELS, config(balance=balance), 2, 1, epoch) for epoch in (0, 0, 1)]
    assert np.bincount(LABELS[orders[0]]).tolist() == counts
    assert set(orders[0].tolist()) == set(range(12))
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


@given(st.integers(1, 20), st.integers(1, 60))
def test_no_row_is_drawn_twice_more_often_than_another(rows: int, count: int) -> None:
    drawn = draw_evenly(np.arange(rows), count, np.random.default_rng(0))
    uses = np.bincount(drawn, minlength=rows)
    assert len(drawn) == count
    assert uses.max() - uses.min() <= 1


def test_synthetic_tiles_fill_up_the_rare_class_with_tiles_between_its_own(tiles: TileSet) -> None:
    filled = add_synthetic(tiles, config(balance="synthetic"), 1)
    assert np.bincount(filled.labels).tolist() == [9, 9]
    assert np.array_equal(filled.tiles[:12], tiles.tiles)
    bright = tiles.tiles[LABELS == 1]
    assert (filled.tiles[12:] >= bright.min(axis=0)).all()
    assert (filled.tiles[12:] <= bright.max(axis=0)).all()
    assert not set(filled.patients[12:]) & set(PATIENTS)


def test_without_balance_no_tile_is_added(tiles: TileSet) -> None:
    assert add_synthetic(tiles, config(balance="weights"), 1) is tiles
