"""Predict tiles with a recipe's Keras networks, averaged by their shares."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.batching import Predictor, TileArray, with_tta
from clotkit.config import Recipe
from clotkit.members.networks import Network, expanded
from clotkit.members.onnx.network import OnnxNetwork


def predictor(model: Any, batch_tiles: int, tta: int = 1) -> Predictor:
    """Return a Predictor of a Keras model or an OnnxNetwork, averaged over `tta` augmentations."""
    return Predictor([with_tta(model.predict_on_batch, tta)], batch_tiles, pads=not isinstance(model, OnnxNetwork))


def predict_committee(
    networks: Sequence[Network], tiles: TileArray, recipe: Recipe, batch_tiles: int
) -> npt.NDArray[np.float64]:
    """Return the mean of a recipe's networks by share for tiles uint8[n, S, S, 3].

    It is [n, C], or rows [n, C + 1] for a recipe that pools by attention or logits.
    """
    return mean_by_share(
        [predictor(network.model, batch_tiles, recipe.inference.tta)(tiles) for network in networks], recipe
    )


def mean_by_share(rows: Sequence[npt.NDArray[np.float32]], recipe: Recipe) -> npt.NDArray[np.float64]:
    """Return the mean of the rows [n, C] that each of a recipe's networks gave, weighted by its share."""
    shares = [config.share for config in expanded(recipe.model)]
    return np.average(np.stack(rows).astype(np.float64), axis=0, weights=shares)
