"""Pool the rows of a slide's tiles to the slide's probabilities: by their mean, or by attention.

A row holds the probabilities of a tile, or under attention and logits pooling the values of its classes and its
attention logit. The model's `output` says what the values are, and so their link to probabilities: see members.heads.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from clotkit.config import Recipe
from clotkit.errors import ConfigError

TINY = 1e-4  # probabilities are clipped to [TINY, 1 - TINY] before a logarithm: a network's 1.0 is not certainty

Floats = npt.NDArray[np.float64]


class SlidePooling(Protocol):
    """Turns a member's rows [n, K] of a slide's tiles into the slide's probabilities."""

    @property
    def rows_are_probabilities(self) -> bool:
        """Tell if a row holds the probabilities of its tile; other rows need only be finite."""
        ...

    def pool(self, rows: np.ndarray) -> Floats:
        """Return the slide's probabilities float64[C]."""
        ...

    def tile_probabilities(self, rows: np.ndarray) -> Floats:
        """Return the probabilities of each tile by itself, float64[n, C]."""
        ...

    def attention(self, rows: np.ndarray) -> Floats | None:
        """Return the weight of each tile, float64[n] with sum 1; None if all tiles weigh the same."""
        ...


@dataclass(frozen=True)
class RowPooling:
    """The pooling of a network whose rows are those of `pooled`."""

    name: str  # the recipe's inference.pooling
    output: str  # of the network, see members.heads

    @property
    def rows_are_probabilities(self) -> bool:
        """See SlidePooling."""
        return self.name == "mean"

    def pool(self, rows: np.ndarray) -> Floats:
        """See SlidePooling."""
        return pooled(rows, self.name, self.output)

    def tile_probabilities(self, rows: np.ndarray) -> Floats:
        """See SlidePooling."""
        return tile_probabilities(rows, self.name, self.output)

    def attention(self, rows: np.ndarray) -> Floats | None:
        """See SlidePooling."""
        return attention_weights(rows) if self.name == "attention" else None


def pooling_of(recipe: Recipe) -> RowPooling:
    """Return the pooling of a recipe whose networks see tiles."""
    return RowPooling(recipe.inference.pooling, recipe.output)


def pooled(rows: np.ndarray, pool: str, output: str) -> np.ndarray:
    """Pool the rows of a slide's tiles to its probabilities float64[C].

    With "mean", rows are probabilities [n, C]; otherwise they are [n, C + 1], for pool_attention.
    """
    if pool != "mean":
        return pool_attention(rows, output)
    mean: np.ndarray = rows.mean(axis=0, dtype=np.float64)  # [C]
    return mean


def tile_probabilities(rows: np.ndarray, pool: str, output: str) -> np.ndarray:
    """Return the probabilities of each tile by itself, float64[n, C], from rows [n, C] or [n, C + 1]."""
    rows = np.asarray(rows, np.float64)
    if pool == "mean":
        return rows
    return linked(rows[:, :-1], output)  # [n, C]


def linked(values: np.ndarray, output: str) -> np.ndarray:
    """Return the probabilities of values, float64[..., C]; members.heads.link does it for tensors."""
    if output == "softmax":
        return np.asarray(softmax(values, axis=-1))
    if output == "ordinal":
        above = expit(values[..., :-1])  # [..., C - 1]: P(y > k)
        edges = np.concatenate([np.ones_like(above[..., :1]), above, np.zeros_like(above[..., :1])], axis=-1)
        return np.asarray(np.maximum(edges[..., :-1] - edges[..., 1:], 0.0))
    last = values.shape[-1] - 1
    value = last * expit(values[..., :1])  # [..., 1], 0 to C - 1
    return np.asarray(np.maximum(1.0 - np.abs(value - np.arange(last + 1)), 0.0))


def attention_weights(rows: np.ndarray) -> np.ndarray:
    """Return the weight of each tile, float64[n], from rows [n, C + 1]; the weights sum to 1.

    They are the softmax of the last column. Raises ConfigError for no rows, fewer than two columns, or a value that is
    not finite.
    """
    return np.asarray(softmax(_checked(rows)[:, -1]))


def pool_logits(rows: np.ndarray) -> np.ndarray:
    """Return a slide's values float64[C]: the attention-weighted mean of its rows [n, C + 1].

    A tile's values are linear in its features, so these are the logits of the attention-weighted mean feature (Ilse et
    al. 2018, "Attention-based deep multiple instance learning"). Raises ConfigError as attention_weights does.
    """
    logits: np.ndarray = attention_weights(rows) @ np.asarray(rows, np.float64)[:, :-1]  # [n] @ [n, C] -> [C]
    return logits


def pool_attention(rows: np.ndarray, output: str = "softmax") -> np.ndarray:
    """Return a slide's probabilities float64[C], the link of pool_logits, from rows [n, C + 1].

    A row has the values of a tile's C classes and then its attention logit. Raises ConfigError as attention_weights
    does.
    """
    return linked(pool_logits(rows), output)


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
