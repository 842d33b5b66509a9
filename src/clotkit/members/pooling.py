"""A slide's probabilities from its tiles' rows: their mean, or the tiles that the network attends to count more."""

import numpy as np

from clotkit.errors import ConfigError

TINY = 1e-4  # probabilities are clipped here before a logarithm: a net's 1.0 is not evidence without end


def pooled(rows: np.ndarray, pool: str) -> np.ndarray:
    """A slide's probabilities float64[C] of its tiles' rows: "mean" of [n, C] probabilities, else pool_attention."""
    if pool != "mean":
        return pool_attention(rows)
    mean: np.ndarray = rows.mean(axis=0, dtype=np.float64)
    return mean


def tile_probabilities(rows: np.ndarray, pool: str) -> np.ndarray:
    """What each tile says by itself: rows [n, C], under attention [n, C + 1], -> float64[n, C], each summing to 1."""
    rows = np.asarray(rows, np.float64)
    if pool == "mean":
        return rows
    return _softmax(rows[:, :-1])


def attention_weights(rows: np.ndarray) -> np.ndarray:
    """How much each tile counts: rows [n, C + 1] -> float64[n], the softmax of the last column; sums to 1.

    Raises ConfigError for no rows, fewer than two columns, or a value that is not finite.
    """
    return _softmax(_checked(rows)[:, -1])


def pool_logits(rows: np.ndarray) -> np.ndarray:
    """A slide's logits: rows [n, C + 1] -> float64[C], the mean of its tiles' logits, weighted by their attention.

    The tiles' logits are linear in their features, so these are the logits of the attention-weighted mean feature:
    Ilse et al. 2018, "Attention-based deep multiple instance learning". Raises ConfigError as attention_weights does.
    """
    checked = _checked(rows)
    logits: np.ndarray = _softmax(checked[:, -1]) @ checked[:, :-1]
    return logits


def pool_attention(rows: np.ndarray) -> np.ndarray:
    """A slide's probabilities: rows [n, C + 1] of a network built for attention -> float64[C], the softmax of
    pool_logits; sums to 1.

    A row has a tile's C class logits and then its attention logit. Raises ConfigError as attention_weights does.
    """
    return _softmax(pool_logits(rows))


def _checked(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] < 2 or not np.isfinite(rows).all():
        finite = int(np.isfinite(rows).sum())
        raise ConfigError(
            f"attention: rows of shape {rows.shape}, {finite} of {rows.size} values finite; "
            "give [n, C + 1] with n and C at least 1, all finite"
        )
    return rows


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    powers: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))  # the largest is 1: nothing overflows
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers
