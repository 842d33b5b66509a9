"""Pool the rows of a slide's tiles to the slide's probabilities: by their mean, or by attention.

A row holds the probabilities of a tile, or under attention and logits pooling its class logits and attention logit.
"""

import numpy as np

from clotkit.errors import ConfigError

TINY = 1e-4  # probabilities are clipped to [TINY, 1 - TINY] before a logarithm: a network's 1.0 is not certainty


def pooled(rows: np.ndarray, pool: str) -> np.ndarray:
    """Pool the rows of a slide's tiles to its probabilities float64[C].

    With "mean", rows are probabilities [n, C]; otherwise they are [n, C + 1], for pool_attention.
    """
    if pool != "mean":
        return pool_attention(rows)
    mean: np.ndarray = rows.mean(axis=0, dtype=np.float64)  # [C]
    return mean


def tile_probabilities(rows: np.ndarray, pool: str) -> np.ndarray:
    """Return the probabilities of each tile by itself, float64[n, C], from rows [n, C] or [n, C + 1]."""
    rows = np.asarray(rows, np.float64)
    if pool == "mean":
        return rows
    return _softmax(rows[:, :-1])  # [n, C]


def attention_weights(rows: np.ndarray) -> np.ndarray:
    """Return the weight of each tile, float64[n], from rows [n, C + 1]; the weights sum to 1.

    They are the softmax of the last column. Raises ConfigError for no rows, fewer than two columns, or a value that is
    not finite.
    """
    return _softmax(_checked(rows)[:, -1])


def pool_logits(rows: np.ndarray) -> np.ndarray:
    """Return a slide's logits float64[C]: the attention-weighted mean of its rows [n, C + 1].

    A tile's logits are linear in its features, so these are the logits of the attention-weighted mean feature (Ilse et
    al. 2018, "Attention-based deep multiple instance learning"). Raises ConfigError as attention_weights does.
    """
    logits: np.ndarray = attention_weights(rows) @ np.asarray(rows, np.float64)[:, :-1]  # [n] @ [n, C] -> [C]
    return logits


def pool_attention(rows: np.ndarray) -> np.ndarray:
    """Return a slide's probabilities float64[C], the softmax of pool_logits, from rows [n, C + 1].

    A row has a tile's C class logits and then its attention logit. Raises ConfigError as attention_weights does.
    """
    return _softmax(pool_logits(rows))


def _checked(rows: np.ndarray) -> np.ndarray:
    """Return rows as float64. Raises ConfigError for a wrong shape, no rows or non-finite values."""
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] < 2 or not np.isfinite(rows).all():
        finite = int(np.isfinite(rows).sum())
        raise ConfigError(
            f"attention: rows of shape {rows.shape}, {finite} of {rows.size} values finite; "
            "give [n, C + 1] with n and C at least 1, all finite"
        )
    return rows


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax along the last axis."""
    powers: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))  # at most 1, so nothing overflows
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers
