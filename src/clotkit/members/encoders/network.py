"""An encoder and the heads of a member over its features, as one network of tiles.

Members of one encoder share it in memory, and the features of the batch in hand: each batch is encoded once.
"""

import threading
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from clotkit.batching import Predictor, TileArray
from clotkit.config import Recipe
from clotkit.errors import ConfigError, WeightsError, one_line
from clotkit.members.encoders.encoder import Encoder, load_encoder
from clotkit.members.encoders.folder import encoder_place
from clotkit.members.encoders.heads import TRANSFORMER, build_heads, join_heads, pooling_of_heads
from clotkit.members.folder import WEIGHTS, MemberFiles
from clotkit.members.loading import start_keras
from clotkit.members.weights import check_loaded

Features = npt.NDArray[np.float16]


class SharedEncoder:
    """An encoder that keeps the features of the last batch of tiles."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._last: tuple[TileArray, Features] | None = None
        self._lock = threading.Lock()

    def features(self, tiles: TileArray) -> Features:
        """Return the features float16[n, D] of tiles, rounded as in the files that heads are trained on.

        The same array, and not an equal one, is encoded once.
        """
        with self._lock:
            if self._last is None or self._last[0] is not tiles:
                with np.errstate(over="ignore"):  # infinity, for which the member is refused
                    self._last = tiles, np.asarray(self.encoder.encode(tiles)).astype(np.float16)
            return self._last[1]


class EncodedHeads:
    """An encoder and some heads over its features: uint8[n, S, S, 3] -> rows [n, K], for its `pooling`."""

    def __init__(self, encoder: SharedEncoder, recipe: Recipe, model: Any, classes: int) -> None:
        """Put heads, whose model is that of build_heads, on an encoder."""
        self.pooling = pooling_of_heads(recipe, model, classes)
        self.notes = encoder.encoder.notes
        self._encoder, self._is_transformer = encoder, recipe.model[0].name == TRANSFORMER
        self._rows = Predictor([model.predict_on_batch], recipe.tiling.batch_tiles)

    def predict_on_batch(self, tiles: TileArray) -> npt.NDArray[Any]:
        """Return the rows of tiles; Keras's models have this method too."""
        features = self._encoder.features(tiles)
        return features if self._is_transformer else self._rows(features.astype(np.float32))


_SHARED: WeakValueDictionary[tuple[Any, ...], SharedEncoder] = WeakValueDictionary()  # while a member uses it
_LOADING = threading.Lock()


def load_encoded_heads(folder: Path, files: MemberFiles, classes: int) -> tuple[list[EncodedHeads], EncodedHeads]:
    """Load the heads of each fold of a member on their encoder, and all of its heads together.

    The encoder lies beside the member's folder.

    Raises:
        ConfigError: The encoder is missing, or another one than that of the training features.
        WeightsError: The weights do not fit the recipe.
    """
    start_keras()
    recipe, folds, facts = files.recipe, files.folds, dict(files.metrics.get("encoder") or {})
    encoder, copies = _shared(folder, recipe), recipe.model[0].copies
    _check_encoder(folder, encoder.encoder, recipe, facts)
    heads, model = build_heads(recipe, encoder.encoder.width, classes, folds * copies)
    path = folder / WEIGHTS
    try:
        model.load_weights(path)
    except Exception as error:
        raise WeightsError(f"{path}: does not fit the head of its recipe: {one_line(error)}") from error
    check_loaded(path, model, [head.model for head in heads])
    everything = EncodedHeads(encoder, recipe, model, classes)
    if folds == 1:
        return [everything], everything
    of_folds = [heads[start : start + copies] for start in range(0, len(heads), copies)]
    return [EncodedHeads(encoder, recipe, join_heads(one), classes) for one in of_folds], everything


def _shared(folder: Path, recipe: Recipe) -> SharedEncoder:
    """Return the encoder of a member, loaded once for all members that use it."""
    assert recipe.encoder is not None
    tile_px, batch_tiles = recipe.tiling.tile_px, recipe.tiling.batch_tiles
    place = encoder_place(folder, recipe.encoder.name)
    key = place, tile_px, batch_tiles
    with _LOADING:
        found = _SHARED.get(key)
        if found is None:
            found = SharedEncoder(load_encoder(place, tile_px, batch_tiles=batch_tiles))
            _SHARED[key] = found
        return found


def _check_encoder(folder: Path, encoder: Encoder, recipe: Recipe, facts: dict[str, Any]) -> None:
    """Raise ConfigError for another encoder than that of the training features."""
    assert recipe.encoder is not None
    for wanted in {str(facts.get("sha256", "")), recipe.encoder.sha256} - {"", encoder.sha256}:
        raise ConfigError(
            f"{folder}: its head takes the features of the encoder {wanted[:12]}…; {encoder.name} beside it is "
            f"{encoder.sha256[:12]}…; put the encoder there that made the features"
        )
    if facts.get("width", encoder.width) != encoder.width:
        raise ConfigError(
            f"{folder}: its head takes {facts['width']} features a tile; {encoder.name} gives {encoder.width}"
        )
