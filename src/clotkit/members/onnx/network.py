"""The network of an ONNX member: its outputs as the rows of a Keras network of the kit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from clotkit.batching import TileArray
from clotkit.config import Recipe
from clotkit.errors import ConfigError
from clotkit.members.onnx.session import OnnxModel


@dataclass(frozen=True)
class OnnxNetwork:
    """An ONNX file whose outputs are rows: probabilities [n, C], or with logits pooling [n, C + 1]."""

    model: OnnxModel
    are_logits: bool
    pools_logits: bool

    def predict_on_batch(self, tiles: TileArray) -> npt.NDArray[np.float32]:
        """Return the rows of tiles uint8[n, S, S, 3]; Keras's models have this method too."""
        values = self.model(tiles)
        if self.model.width == 1:  # of two classes, the value of the second
            values = np.concatenate([np.zeros_like(values) if self.are_logits else 1 - values, values], axis=1)
        if self.pools_logits:  # the same attention for every tile
            return np.concatenate([values, np.zeros_like(values[:, :1])], axis=1)
        return np.asarray(softmax(values, axis=1)) if self.are_logits else values


def load_onnx_network(path: Path, recipe: Recipe, classes: int) -> OnnxNetwork:
    """Load the network of an ONNX member.

    Raises ConfigError as OnnxModel does, and for features or another number of outputs than classes.
    """
    config = recipe.onnx
    if config is None or config.output == "features":
        raise ConfigError(
            f"{path}: the recipe's onnx.output is features; a member has probabilities or logits, features need a head"
        )
    model = OnnxModel(path, config, recipe.tiling.tile_px, batch_tiles=recipe.tiling.batch_tiles)
    if model.width != classes and (model.width, classes) != (1, 2):
        raise ConfigError(f"{path}: returns {model.width} values a tile; there are {classes} classes")
    return OnnxNetwork(model, config.output == "logits", recipe.inference.pooling == "logits")
