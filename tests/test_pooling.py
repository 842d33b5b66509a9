"""Test pooling by attention: weights of tiles, a slide's logits, large values and wrong ones."""

import numpy as np
import pytest

from clotkit.errors import ConfigError
from clotkit.members.pooling import attention_weights, pool_attention, pool_logits


def test_equal_attention_is_the_mean_of_the_logits() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    rows = np.column_stack([logits, np.full(5, 7.0)])
    assert attention_weights(rows) == pytest.approx(np.full(5, 0.2))
    assert pool_logits(rows) == pytest.approx(logits.mean(axis=0))


def test_probabilities_are_the_softmax_of_the_weighted_mean_logits() -> None:
    rows = np.array([[2.0, 0.0, np.log(3)], [0.0, 4.0, 0.0]])  # weights 3/4 and 1/4
    assert pool_logits(rows) == pytest.approx([1.5, 1.0])
    p = pool_attention(rows)
    assert p.dtype == np.float64
    assert p == pytest.approx([1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(0.5))])


def test_a_slide_of_one_tile_has_that_tile_s_probabilities() -> None:
    assert pool_attention(np.array([[0.0, np.log(4), -50.0]])) == pytest.approx([0.2, 0.8])


def test_the_order_of_tiles_and_a_shift_of_attention_do_not_matter() -> None:
    rows = np.random.default_rng(2).normal(size=(9, 4))
    p = pool_attention(rows)
    assert pool_attention(rows[::-1]) == pytest.approx(p, abs=1e-12)
    assert pool_attention(rows + np.array([0, 0, 0, 1e3])) == pytest.approx(p, abs=1e-9)


def test_large_logits_do_not_overflow() -> None:
    p = pool_attention(np.array([[3e4, -3e4, 1e5], [0.0, 0.0, -1e5]], np.float32))
    assert p == pytest.approx([1, 0])
    assert p.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 3)), r"\(0, 3\)"),
        (np.zeros((4, 1)), r"\(4, 1\)"),
        (np.zeros(4), r"\(4,\)"),
        (np.array([[0.0, np.nan, 1.0]]), "2 of 3"),
    ],
)
def test_wrong_rows_are_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pool_attention(rows)
