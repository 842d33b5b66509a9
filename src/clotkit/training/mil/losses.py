"""The instance loss of CLAM: the tiles with most attention are of the bag's class.

Those with least attention are not.

Source: Lu et al. 2021, "Data-efficient and weakly supervised computational pathology on whole-slide images", of the
single-branch network, for classes that exclude each other. Its smooth top-1 SVM loss is a cross-entropy here.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any


def instance_loss(logits: Any, attention: Any, mask: Any, classes: Any, tiles: int) -> Any:
    """Return the instance loss of each bag, [b].

    The `tiles` tiles with most attention have the bag's class and no other one; those with least do not have it. A bag
    with fewer than 2 * tiles tiles gives half of its tiles to each side, so one of a single tile has a loss of 0.

    Args:
        logits: of "the tile is of this class", [b, T, C].
        attention: attention logits, [b, T].
        mask: 1 for a tile, 0 for padding, [b, T].
        classes: one-hot class of each bag, [b, C].
        tiles: most tiles of each side.
    """
    from keras import ops

    # A bag may have fewer tiles than a side: the batch is padded, and what is padded is not counted.
    logits = ops.pad(logits, [[0, 0], [0, tiles], [0, 0]])
    attention, mask = (ops.pad(values, [[0, 0], [0, tiles]]) for values in (attention, mask))
    hidden = (1 - mask) * -1e9
    most = ops.top_k(attention * mask + hidden, tiles)[1]  # [b, k]
    least = ops.top_k(-attention * mask + hidden, tiles)[1]
    half = ops.floor(ops.sum(mask, axis=1, keepdims=True) / 2)  # [b, 1]
    counted = ops.cast(ops.arange(tiles, dtype="float32")[None] < half, "float32")[..., None]  # [b, k, 1]
    high, low = (ops.take_along_axis(logits, rows[..., None], axis=1) for rows in (most, least))  # [b, k, C]
    own = classes[:, None, :]  # [b, 1, C]
    # Of the bag's class: the mean over both sides. Of the others: over the side that would be taken for it.
    losses = own * (ops.softplus(-high) + ops.softplus(low)) / 2 + (1 - own) * ops.softplus(high)
    totals = ops.sum(losses * counted, axis=(1, 2)) / classes.shape[-1]
    return totals / ops.maximum(ops.sum(counted, axis=(1, 2)), 1.0)


@cache
def instance_loss_layer() -> Any:
    """Return the class of the layer that adds the instance loss of a batch of bags to the model's losses.

    Its inputs are logits [b, T, C], attention [b, T], mask [b, T] and classes [b, C] as those of instance_loss, and the
    bags' probabilities [b, C], which it returns.
    """
    from keras import layers, ops

    class InstanceLoss(layers.Layer):  # type: ignore[misc]
        def __init__(self, weight: float, tiles: int, **settings: Any) -> None:
            super().__init__(**settings)
            self.weight, self.tiles = weight, tiles

        def call(self, inputs: Sequence[Any]) -> Any:
            logits, attention, mask, classes, probabilities = inputs
            losses = instance_loss(logits, attention, mask, classes, self.tiles)
            real = ops.cast(ops.sum(mask, axis=1) > 0, "float32")  # bags that are no padding
            self.add_loss(self.weight * ops.sum(losses * real) / ops.maximum(ops.sum(real), 1.0))
            return probabilities

        def compute_output_shape(self, input_shape: Sequence[Any]) -> Any:
            return input_shape[-1]

    return InstanceLoss
