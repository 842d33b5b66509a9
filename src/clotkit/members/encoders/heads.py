"""Build heads over the features of an encoder, and pool the rows that they give tiles.

`abmil` is gated attention (Ilse et al. 2018, "Attention-based deep multiple instance learning"); `clam` the same
network, trained with the instance loss of CLAM-SB (Lu et al. 2021, "Data-efficient and weakly supervised computational
pathology on whole-slide images"); `mean_pool` a linear model of the mean features. Each gives a tile a row: the values
of its classes and its attention logit, so a slide's tiles need not be in memory together. A `transformer` looks at all
tiles of a slide at once: its rows are the features themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import ModelConfig, Recipe
from clotkit.members.heads import FLOAT32, link, output_layers
from clotkit.members.networks import STANDARDISE
from clotkit.members.pooling import attention_weights, linked, pool_attention

TRANSFORMER, MEAN_POOL, CLAM = "transformer", "mean_pool", "clam"
ATTENTION_HEADS = 4  # of each layer of a transformer
BAG_TILES = 2048  # most tiles that a transformer sees at once: its memory grows with their square
HIDDEN = -1e9  # attention logit of the padding of a bag

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """One head as Keras models that share their layers: training or loading one changes all.

    A bag is {"features": [b, T, D], "mask": [b, T]}; the mask is 1 for a tile and 0 for padding.
    """

    model: Any  # features [n, D] -> rows [n, C + 1]; of a transformer: bag -> values [b, C], attention [b, T]
    bag: Any  # bag -> probabilities [b, C], values [b, C], attention logits [b, T], hidden features [b, T, H]
    output: str  # the config's, see members.heads


def build_head(config: ModelConfig, width: int, classes: int, name: str = "head") -> Head:
    """Build one head with fresh weights over features of this width."""
    build = _transformer if config.name == TRANSFORMER else _row_head
    return build(config, width, classes, name)


def build_heads(recipe: Recipe, width: int, classes: int, count: int) -> tuple[list[Head], Any]:
    """Build `count` heads of a recipe, and one Keras model of them all, whose weights a member ships.

    The model maps features [n, D] to the rows of each head side by side, [n, count * (C + 1)]; of transformers a bag to
    the values of each, [b, count * C], and their mean attention [b, T].
    """
    heads = [build_head(recipe.model[0], width, classes, f"head{number}") for number in range(count)]
    return heads, join_heads(heads)


def join_heads(heads: Sequence[Head]) -> Any:
    """Return one Keras model of some heads, see build_heads."""
    from keras import Model, layers

    if len(heads) == 1:
        return heads[0].model
    inputs = heads[0].model.input
    outputs = [head.model(inputs) for head in heads]
    if not isinstance(inputs, dict):
        return Model(inputs, layers.Concatenate(dtype=FLOAT32, name="rows")(outputs), name="heads")
    values = layers.Concatenate(dtype=FLOAT32, name="values")([one[0] for one in outputs])
    return Model(inputs, [values, layers.Average(name="attention")([one[1] for one in outputs])], name="heads")


@dataclass(frozen=True)
class RowHeadPooling:
    """The pooling of heads that give a tile a row: values of classes and attention, [n, heads * (C + 1)]."""

    classes: int
    output: str  # of the heads, see members.heads
    has_attention: bool
    rows_are_probabilities: bool = False

    def pool(self, rows: np.ndarray) -> Floats:
        """See SlidePooling."""
        return np.asarray(np.mean([pool_attention(one, self.output) for one in self._of_heads(rows)], axis=0))

    def tile_probabilities(self, rows: np.ndarray) -> Floats:
        """See SlidePooling."""
        return np.asarray(np.mean([linked(one[:, :-1], self.output) for one in self._of_heads(rows)], axis=0))

    def attention(self, rows: np.ndarray) -> Floats | None:
        """See SlidePooling."""
        if not self.has_attention:
            return None
        return np.asarray(np.mean([attention_weights(one) for one in self._of_heads(rows)], axis=0))

    def _of_heads(self, rows: np.ndarray) -> list[Floats]:
        """Return the rows [n, C + 1] of each head."""
        return np.split(np.asarray(rows, np.float64), rows.shape[1] // (self.classes + 1), axis=1)


@dataclass(frozen=True)
class TransformerPooling:
    """The pooling of transformers, whose rows are features [n, D].

    More than BAG_TILES tiles are pooled in equal parts, and the parts by their mean.
    """

    model: Any  # of build_heads
    classes: int
    output: str
    rows_are_probabilities: bool = False

    def pool(self, rows: np.ndarray) -> Floats:
        """See SlidePooling."""
        parts = _parts(rows)
        pooled = [self._predict(part[None])[0][0] for part in parts]  # [C] each
        return np.asarray(np.average(pooled, axis=0, weights=[len(part) for part in parts]))

    def tile_probabilities(self, rows: np.ndarray) -> Floats:
        """See SlidePooling."""
        return np.concatenate([self._predict(part[:, None])[0] for part in _parts(rows)])

    def attention(self, rows: np.ndarray) -> Floats | None:
        """See SlidePooling."""
        found = np.concatenate([self._predict(part[None])[1][0] * len(part) for part in _parts(rows)])
        return np.asarray(found / found.sum())

    def _predict(self, features: np.ndarray) -> tuple[Floats, Floats]:
        """Return the probabilities [b, C] and attention [b, T] of bags without padding, features [b, T, D]."""
        from keras import ops

        # Called, not `predict`: that would trace a function for every number of tiles.
        bag = {"features": features.astype(np.float32), "mask": np.ones(features.shape[:2], np.float32)}
        values, attention = (np.asarray(ops.convert_to_numpy(one), np.float64) for one in self.model(bag))
        of_heads = [linked(one, self.output) for one in np.split(values, values.shape[1] // self.classes, axis=1)]
        return np.asarray(np.mean(of_heads, axis=0)), attention


def pooling_of_heads(recipe: Recipe, model: Any, classes: int) -> RowHeadPooling | TransformerPooling:
    """Return the pooling of some heads of a recipe; `model` is that of build_heads."""
    config = recipe.model[0]
    if config.name == TRANSFORMER:
        return TransformerPooling(model, classes, config.output)
    return RowHeadPooling(classes, config.output, config.name != MEAN_POOL)


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-len(rows) // BAG_TILES) or 1)


def _row_head(config: ModelConfig, width: int, classes: int, name: str) -> Head:
    from keras import Input, Model, ops

    features = Input((width,), name="features")
    hidden = _through(_hidden(config), features)  # [n, H]
    rows = output_layers(config, classes, "logits" if config.name == MEAN_POOL else "attention")(hidden)
    model = Model(features, rows, name=name)
    both = Model(features, [hidden, rows], name=f"{name}_parts")
    bag = _bag_inputs(width)
    flat_hidden, flat_rows = both(ops.reshape(bag["features"], (-1, width)))
    in_bags = _in_bags()(dtype=FLOAT32, name="in_bags")
    bag_rows = in_bags(flat_rows, bag["mask"])  # [b, T, C + 1]
    logits = bag_rows[..., -1] + (1 - bag["mask"]) * HIDDEN  # [b, T]
    values = ops.sum(ops.softmax(logits, axis=1)[..., None] * bag_rows[..., :-1], axis=1)  # [b, C]
    outputs = [link(values, config.output), values, logits, in_bags(flat_hidden, bag["mask"])]
    return Head(model, Model(bag, outputs, name=f"{name}_bag"), config.output)


def _transformer(config: ModelConfig, width: int, classes: int, name: str) -> Head:
    """Build a transformer of two layers, normalised before each block, without positions.

    In the last layer only the class token looks at the tiles; how strongly it does is their attention.
    """
    from keras import Model, layers, ops

    bag, (units,) = _bag_inputs(width), config.head
    tokens = _class_token()(dtype=FLOAT32, name="class_token")(_through(_hidden(config), bag["features"]))
    seen = ops.pad(bag["mask"], [[0, 0], [1, 0]], constant_values=1.0)[:, None, :] > 0  # [b, 1, T + 1]
    tokens, _ = _block(tokens, tokens, seen, units, config.dropout, "block0")
    token, scores = _block(tokens[:, :1], tokens, seen, units, config.dropout, "block1")
    last = layers.LayerNormalization(dtype=FLOAT32, name="last_norm")(token[:, 0])  # [b, units]
    values = output_layers(config, classes, "attention")(last)[..., :-1]  # [b, C]
    shares = ops.mean(scores, axis=1)[:, 0, 1:] * bag["mask"]  # [b, T]
    attention = shares / ops.maximum(ops.sum(shares, axis=1, keepdims=True), 1e-12)
    logits = ops.log(ops.maximum(attention, 1e-12)) + (1 - bag["mask"]) * HIDDEN
    model = Model(bag, [values, attention], name=name)
    outputs = [link(values, config.output), values, logits, tokens[:, 1:]]
    return Head(model, Model(bag, outputs, name=f"{name}_bag"), config.output)


def _block(query: Any, tokens: Any, seen: Any, units: int, dropout: float, name: str) -> tuple[Any, Any]:
    """Apply attention and two dense layers, each with a shortcut, to `query` [b, q, units].

    It attends to `tokens` [b, t, units]. Returns the result and the attention scores [b, heads, q, t].
    """
    from keras import layers

    norm = layers.LayerNormalization(dtype=FLOAT32, name=f"{name}_norm")
    attend = layers.MultiHeadAttention(
        ATTENTION_HEADS, max(units // ATTENTION_HEADS, 1), dropout=dropout, name=f"{name}_attention"
    )
    normed = norm(tokens)
    found, scores = attend(norm(query), normed, attention_mask=seen, return_attention_scores=True)
    x = layers.Add(name=f"{name}_add")([query, found])
    y = layers.LayerNormalization(dtype=FLOAT32, name=f"{name}_dense_norm")(x)
    y = layers.Dense(2 * units, activation="gelu", name=f"{name}_dense")(y)
    y = layers.Dropout(dropout, name=f"{name}_dropout")(layers.Dense(units, name=f"{name}_project")(y))
    return layers.Add(name=f"{name}_dense_add")([x, y]), scores


def _hidden(config: ModelConfig) -> Iterator[Any]:
    """Build the layers from features to those that attention and classes see."""
    from keras import layers

    if config.standardise:
        yield layers.BatchNormalization(center=False, scale=False, trainable=False, name=STANDARDISE)
    for index, units in enumerate(config.head):
        yield layers.Dense(units, activation="relu", name=f"head{index}_dense")
        yield layers.Dropout(config.dropout, name=f"head{index}_dropout")
    if not config.head:
        yield layers.Dropout(config.dropout, name="dropout")


def _through(stack: Iterator[Any], x: Any) -> Any:
    for layer in stack:
        x = layer(x)
    return x


def _bag_inputs(width: int) -> dict[str, Any]:
    from keras import Input

    return {"features": Input((None, width), name="features"), "mask": Input((None,), name="mask")}


@cache
def _class_token() -> Any:
    """Return the class of the layer that puts a learned token first: [b, T, H] -> [b, T + 1, H]."""
    from keras import layers, ops

    class ClassToken(layers.Layer):  # type: ignore[misc]
        def build(self, shape: Sequence[int]) -> None:
            self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="glorot_uniform", name="token")

        def call(self, tokens: Any) -> Any:
            first = ops.broadcast_to(self.token, (ops.shape(tokens)[0], 1, tokens.shape[-1]))
            return ops.concatenate([first, tokens], axis=1)

    return ClassToken


@cache
def _in_bags() -> Any:
    """Return the class of the layer that unflattens bags: [b * T, K] and a mask [b, T] -> [b, T, K]."""
    from keras import layers, ops

    class InBags(layers.Layer):  # type: ignore[misc]
        def call(self, tiles: Any, like: Any) -> Any:
            return ops.reshape(tiles, (*ops.shape(like), tiles.shape[-1]))

        def compute_output_shape(self, tiles_shape: Sequence[Any], like_shape: Sequence[Any]) -> tuple[Any, ...]:
            return (*like_shape, tiles_shape[-1])

    return InBags
