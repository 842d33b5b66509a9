"""Build the output layers of networks, link their values to probabilities, and fit those by a loss.

Values have a column a class, before the link: with the output "softmax" the logits of the classes; with "ordinal" C - 1
cumulative logits, none above the one before it, and a 0; with "value" one logit and C - 1 zeros.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from clotkit.config import ModelConfig

FLOAT32 = "float32"  # dtype of layers that half precision would spoil: pixels, means, probabilities
EPSILON = 1e-7  # probabilities are clipped to [EPSILON, 1 - EPSILON] before a logarithm, as Keras does

ORDERED_LOSSES = ("ordinal", "squared")  # for classes in order, see item_loss

Stage = Callable[[Any], Any]  # layers that are built once and applied to one or more tensors


def output_layers(config: ModelConfig, classes: int, pool: str) -> Stage:
    """Build a head's last layers, see build_network.

    They map features [n, D] to probabilities [n, C], or to rows [n, C + 1].
    """
    from keras import layers, regularizers

    if pool == "mean":
        return _probabilities(config, classes)
    # Without biases, shrunk features of 0 are every class with the same probability.
    bias, l2 = pool != "logits" or not config.shrink_novel, regularizers.L2(config.l2) if pool == "logits" else None
    values = _values(config.output, classes, bias, l2)
    attention = _attention(config.attention_units) if pool == "attention" else _uniform_attention()
    both = layers.Concatenate(dtype=FLOAT32, name="rows")
    return lambda x: both([values(x), attention(x)])  # [n, C], [n, 1]


def link(values: Any, output: str) -> Any:
    """Return the probabilities of values, tensors [..., C]; members.pooling.linked does it for arrays."""
    from keras import ops

    if output == "softmax":
        return ops.softmax(values, axis=-1)
    if output == "ordinal":
        above = ops.sigmoid(values[..., :-1])  # [..., C - 1]: P(y > k)
        edges = ops.concatenate([ops.ones_like(above[..., :1]), above, ops.zeros_like(above[..., :1])], axis=-1)
        return ops.maximum(edges[..., :-1] - edges[..., 1:], 0.0)  # rounding may leave a difference just below 0
    last = values.shape[-1] - 1
    value = last * ops.sigmoid(values[..., :1])  # [..., 1], 0 to C - 1
    return ops.maximum(1.0 - ops.abs(value - ops.arange(last + 1, dtype=FLOAT32)), 0.0)


def item_loss(name: str, label_smoothing: float) -> Callable[[Any, Any], Any]:
    """Return the loss "ordinal" or "squared": classes and probabilities, both [b, C] -> losses [b].

    - "ordinal": the sum of the binary cross-entropies of P(y > k), k = 0 ... C - 2 (Cao, Mirjalili and Raschka 2020,
      "Rank consistent ordinal regression for neural networks", equation 4).
    - "squared": the squared error of the expected class index.

    Smoothed labels are distributions: their P(y > k) and their expectation are the targets.
    """
    measure = {"ordinal": _cumulative_cross_entropy, "squared": _squared_error}[name]

    def loss(classes: Any, probabilities: Any) -> Any:
        return measure(classes * (1 - label_smoothing) + label_smoothing / classes.shape[-1], probabilities)

    return loss


def _cumulative_cross_entropy(classes: Any, probabilities: Any) -> Any:
    from keras import ops

    wanted, above = _above(classes), ops.clip(_above(probabilities), EPSILON, 1 - EPSILON)  # [b, C - 1]
    return -ops.sum(wanted * ops.log(above) + (1 - wanted) * ops.log(1 - above), axis=-1)


def _above(probabilities: Any) -> Any:
    """Return P(y > k) for k = 0 ... C - 2: [b, C] -> [b, C - 1]."""
    from keras import ops

    return ops.flip(ops.cumsum(ops.flip(probabilities, axis=-1), axis=-1), axis=-1)[..., 1:]


def _squared_error(classes: Any, probabilities: Any) -> Any:
    from keras import ops

    indices = ops.arange(classes.shape[-1], dtype=FLOAT32)  # [C]
    return ops.square(ops.sum((probabilities - classes) * indices, axis=-1))


def _probabilities(config: ModelConfig, classes: int) -> Stage:
    """Build the output of "mean" pooling: features [n, D] -> probabilities [n, C]."""
    from keras import layers

    if config.output == "softmax":
        return _sigmoid() if config.name == "cnn_flat" else _softmax(classes)
    values = _values(config.output, classes, True, None)
    linked = layers.Lambda(partial(link, output=config.output), dtype=FLOAT32, name="probabilities")
    return lambda x: linked(values(x))


def _softmax(classes: int) -> Stage:
    from keras import layers

    last: Stage = layers.Dense(classes, activation="softmax", dtype=FLOAT32, name="classes")
    return last


def _sigmoid() -> Stage:
    """Build the output of cnn_flat: a sigmoid unit gives p, and the probabilities [n, 2] are 1 - p, p."""
    from keras import layers

    unit = layers.Dense(1, activation="sigmoid", dtype=FLOAT32, name="classes")
    other = layers.Rescaling(-1.0, 1.0, dtype=FLOAT32, name="other_class")
    both = layers.Concatenate(dtype=FLOAT32, name="probabilities")

    def apply(x: Any) -> Any:
        p = unit(x)  # [n, 1]
        return both([other(p), p])

    return apply


def _values(output: str, classes: int, bias: bool, regularizer: Any) -> Stage:
    """Build the layers from features [n, D] to values [n, C]."""
    from keras import layers, ops

    units, bias = (classes, bias) if output == "softmax" else (1, bias and output == "value")
    score = layers.Dense(units, use_bias=bias, kernel_regularizer=regularizer, dtype=FLOAT32, name="classes")
    if output == "softmax":
        last: Stage = score
        return last
    if output == "ordinal":
        widened = _ordered_biases()(classes, dtype=FLOAT32, name="cumulative")
    else:
        widened = layers.Lambda(lambda x: ops.pad(x, [[0, 0], [0, classes - 1]]), dtype=FLOAT32, name="value")
    return lambda x: widened(score(x))  # [n, 1] -> [n, C]


@cache
def _ordered_biases() -> Any:
    """Return the class of the layer that adds ordered biases to a score.

    It maps [n, 1] to cumulative logits and a 0, [n, C]. Its weight [C - 1] is the first bias and then the steps down
    from each bias to the next, before their softplus, so that no step is negative. A score of 0 begins with equal
    probabilities of all classes.
    """
    from keras import layers, ops

    class OrderedBiases(layers.Layer):  # type: ignore[misc]
        def __init__(self, classes: int, **settings: Any) -> None:
            super().__init__(**settings)
            initial = partial(_even_biases, classes)
            self.biases = self.add_weight(shape=(classes - 1,), initializer=initial, name="biases")

        def call(self, score: Any) -> Any:
            steps = ops.pad(ops.softplus(self.biases[1:]), [[1, 0]])  # [C - 1]
            return ops.pad(score + self.biases[0] - ops.cumsum(steps), [[0, 0], [0, 1]])

    return OrderedBiases


def _even_biases(classes: int, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Return the weight of OrderedBiases that gives all classes the same probability at a score of 0."""
    import numpy as np

    above = np.arange(classes - 1, 0, -1) / classes  # [C - 1]: P(y > k)
    biases = np.log(above / (1 - above))
    return np.concatenate([biases[:1], np.log(np.expm1(-np.diff(biases)))]).astype(np.float32)


def _uniform_attention() -> Stage:
    """Build the attention of "logits" pooling: features [n, D] -> 0, [n, 1]."""
    from keras import layers

    zero: Stage = layers.Dense(
        1, use_bias=False, kernel_initializer="zeros", trainable=False, dtype=FLOAT32, name="attention_0"
    )
    return zero


def _attention(units: int) -> Stage:
    """Build the attention of "attention" pooling: features [n, D] -> its logit [n, 1], see build_network."""
    from keras import layers

    content = layers.Dense(units, activation="tanh", name="attention_v")
    gate = layers.Dense(units, activation="sigmoid", name="attention_u")
    gated = layers.Multiply(name="attention_gated")
    weight = layers.Dense(1, use_bias=False, dtype=FLOAT32, name="attention_w")  # a bias would cancel in the softmax
    return lambda x: weight(gated([content(x), gate(x)]))  # from [n, units]
