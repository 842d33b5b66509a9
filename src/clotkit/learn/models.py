"""Networks, built from their recipe: one of the two places with Keras (the other trains them).

A member ships its weights and its recipe, not a saved model: a .keras file of a newer Keras does not load in Kaggle's.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import ModelConfig, Recipe, load_recipe
from clotkit.errors import ConfigError, one_line
from clotkit.files import sha256
from clotkit.infer.ensemble import Calibration

RECIPE, WEIGHTS, CALIBRATION, METRICS = "recipe.toml", "model.weights.h5", "calibration.json", "metrics.json"
MANIFEST = "MANIFEST.json"  # beside the member folders
BN_MOMENTUM = 0.9  # Keras's 0.99 needs some 500 steps to forget its start; small recipes train for fewer
Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Member:
    """One trained network, ready to predict: uint8[n, H, W, 3] -> float32[n, C], each row summing to 1."""

    name: str
    recipe: Recipe
    calibration: Calibration
    weights_sha256: str
    predict: Predict


def find_members(weights_dir: Path) -> list[Path]:
    """The member folders of `weights_dir`: itself, or those right inside it, sorted by name.

    Raises ConfigError when there is none, or when a folder lacks one of the files that a member needs.
    """
    if (weights_dir / RECIPE).is_file():
        folders = [weights_dir]
    else:
        folders = sorted(path.parent for path in weights_dir.glob(f"*/{RECIPE}"))
    if not folders:
        raise ConfigError(f"{weights_dir}: no member here; a member folder has {RECIPE}, {WEIGHTS} and {CALIBRATION}")
    for folder in folders:
        for name in (WEIGHTS, CALIBRATION):
            if not (folder / name).is_file():
                raise ConfigError(f"{folder}: {name} is missing; train the member again or attach the whole folder")
    return folders


def load_member(folder: Path, classes: tuple[str, ...]) -> Member:
    """Build a member's network from its recipe and load its weights.

    Raises ConfigError when a file is missing or damaged, when its classes are not `classes`, or when its hash is not
    the one in MANIFEST.json beside the folder (where there is such a file).
    """
    recipe = load_recipe(folder / RECIPE)
    trained = tuple(_json(folder / METRICS).get("classes", ()))
    if trained != classes:
        raise ConfigError(f"{folder}: trained for the classes {', '.join(trained)}; wanted: {', '.join(classes)}")
    calibration = Calibration.from_json(_json(folder / CALIBRATION), str(folder / CALIBRATION))
    digest = _checked_hash(folder)
    model = build_model(recipe.model, recipe.tiling.tile_px, len(classes))
    try:
        model.load_weights(folder / WEIGHTS)
    except Exception as error:
        raise ConfigError(f"{folder / WEIGHTS}: does not fit the network of its recipe: {one_line(error)}") from error
    return Member(folder.name, recipe, calibration, digest, predictor(model, recipe.tiling.batch_tiles))


def build_model(config: ModelConfig, tile_px: int, classes: int) -> Any:
    """The network of a recipe: uint8 or float tiles [n, tile_px, tile_px, 3] in, softmax probabilities [n, C] out.

    Pixels are scaled inside the model, so that no caller can forget it or do it twice. Raises ConfigError for an
    unknown name.
    """
    builder = BUILDERS.get(config.name)
    if builder is None:
        raise ConfigError(f"model.name is {config.name!r}; known: {', '.join(sorted(BUILDERS))}")
    start_keras()
    return builder(config, tile_px, classes)


@cache
def start_keras() -> None:
    """Import Keras and its backend, and touch the device, without the dozen lines that TensorFlow greets with."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _quiet():
        import keras

        keras.ops.zeros(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what native code writes to stderr; let it out when an exception passes through."""
    sys.stderr.flush()
    plain = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(plain, held.read())
            raise
        finally:
            os.dup2(plain, 2)
            os.close(plain)


def _cnn(config: ModelConfig, tile_px: int, classes: int) -> Any:
    """Convolution, batch normalisation, ReLU and max pooling, once per entry of `filters`; then one dense layer."""
    from keras import Sequential, layers

    blocks: list[Any] = [layers.Input((tile_px, tile_px, 3)), layers.Rescaling(1 / 127.5, offset=-1)]
    for filters in config.filters:  # [n, h, w, c] -> [n, h / 2, w / 2, filters]
        blocks += [
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=BN_MOMENTUM),
            layers.ReLU(),
            layers.MaxPooling2D(),
        ]
    blocks += [
        layers.GlobalAveragePooling2D(),  # [n, h, w, c] -> [n, c]
        layers.Dropout(config.dropout),
        layers.Dense(classes, activation="softmax"),
    ]
    return Sequential(blocks)


BUILDERS: dict[str, Callable[[ModelConfig, int, int], Any]] = {"cnn": _cnn}


def predictor(model: Any, batch: int) -> Predict:
    """Predict in batches of one size: the last is padded, because every new shape costs a trace."""

    def predict(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        parts = []
        for start in range(0, len(tiles), batch):
            part = tiles[start : start + batch]
            padded = np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])
            parts.append(np.asarray(model.predict_on_batch(padded), np.float32)[: len(part)])
        return np.concatenate(parts)

    return predict


def _checked_hash(folder: Path) -> str:
    digest, manifest = sha256(folder / WEIGHTS), folder.parent / MANIFEST
    if manifest.is_file():
        wanted = _json(manifest).get(f"{folder.name}/{WEIGHTS}", {}).get("sha256", digest)
        if wanted != digest:
            raise ConfigError(
                f"{folder / WEIGHTS}: sha256 is {digest[:12]}…, {MANIFEST} says {wanted[:12]}…; "
                "fetch the weights again or run make weights-demo"
            )
    return digest


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
