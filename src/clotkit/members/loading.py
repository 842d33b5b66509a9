"""Members: a trained committee of networks, built from its recipe, its weights loaded onto every device.

A member ships its weights and its recipe, not a saved model: a .keras file of a newer Keras does not load in Kaggle's.
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import Recipe, load_recipe
from clotkit.errors import ConfigError, one_line
from clotkit.files import sha256
from clotkit.members.ensemble import Calibration
from clotkit.members.networks import Network, build_committee, expanded
from clotkit.members.predict import MOST_DIFFERENCE, Forward, Predict, Predictor, Tiles, in_views, largest_difference

RECIPE, WEIGHTS, CALIBRATION, METRICS = "recipe.toml", "model.weights.h5", "calibration.json", "metrics.json"
OUT_OF_FOLD = "oof.csv"  # a row an image: what networks that had not seen it said of it
SPLIT = "split.csv"  # a row an image: the fold that held it out, TRAINED or WATCHED
TRAINED, WATCHED = "train", "watch"  # of SPLIT: images that weights, that the epoch was fitted to
MANIFEST = "MANIFEST.json"  # beside the member folders
ENVIRONMENT = {  # read when the backend is imported or first touches a GPU
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
FULL, HALF = "float32", "mixed_float16"  # as Keras names its policies


@dataclass(frozen=True)
class Member:
    """One trained network, ready to predict: uint8[n, H, W, 3] -> float32[n, C], each row summing to 1.

    `notes` are lines for the report, empty when all is well; predicting may add one.
    """

    name: str
    recipe: Recipe
    calibration: Calibration
    weights_sha256: str
    predict: Predict
    notes: list[str] = field(default_factory=list)
    tile_pool: str = ""  # of an ensemble's, where it is not the mean


def find_members(weights_dir: Path) -> list[Path]:
    """The member folders of `weights_dir`: itself, or those right inside it, sorted by name.

    Raises ConfigError when there is none.
    """
    if (weights_dir / RECIPE).is_file():
        folders = [weights_dir]
    else:
        folders = sorted(path.parent for path in weights_dir.glob(f"*/{RECIPE}"))
    if not folders:
        raise ConfigError(f"{weights_dir}: no member here; a member folder has {RECIPE}, {WEIGHTS} and {CALIBRATION}")
    return folders


def load_member(folder: Path, classes: tuple[str, ...]) -> Member:
    """Build a member's network from its recipe and load its weights, once on every GPU, or on the CPU without one.

    Raises ConfigError when a file is missing or damaged, when its classes are not `classes`, or when its hash is not
    the one in MANIFEST.json beside the folder (where there is such a file).
    """
    (recipe, metrics, calibration), digest = _checked_parts(folder)
    trained = tuple(metrics.get("classes", ()))
    if trained != classes:
        raise ConfigError(f"{folder}: trained for the classes {', '.join(trained)}; wanted: {', '.join(classes)}")
    start_keras()
    predict = _on_all_devices(folder, recipe, len(classes), int(metrics.get("networks_of_folds", 1)))
    fitted = Calibration.from_json(calibration, str(folder / CALIBRATION))
    return Member(folder.name, recipe, fitted, digest, predict, predict.notes)


def build_member(recipe: Recipe, classes: int, folds: int = 1) -> tuple[list[Network], Any]:
    """A recipe's networks with fresh weights, `folds` times, and the model of them all.

    The model takes tiles [n, tile_px, tile_px, 3] in 0..255 and gives the mean of the networks' probabilities [n, C],
    or under attention logits [n, C + 1]. Raises ConfigError for a recipe that makes no network.
    """
    start_keras()
    configs = [replace(config, weights="none") for config in recipe.model] * folds
    return build_committee(configs, recipe.tiling.tile_px, classes, recipe.inference.pooling)


@cache
def start_keras() -> None:
    """Import Keras and its backend, and touch the device, without the dozen lines that TensorFlow greets with.

    A GPU's memory is taken as it is needed: by default a process takes all of it, and nothing beside it can run.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # else it warns that several networks are several functions
    with quiet():
        import keras

        keras.ops.zeros(1)


@contextmanager
def quiet() -> Iterator[None]:
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


def predictor(model: Any, batch: int, views: int = 1) -> Predictor:
    """Predict with one model, wherever its weights are, in batches of one size: the mean over views; see Predictor."""
    return Predictor([in_views(model.predict_on_batch, views)], batch)


def read_parts(folder: Path) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """A member's recipe, metrics and calibration as their files have them, once all files are there and unchanged.

    Raises ConfigError when one is missing, cannot be read, or has not the hash of MANIFEST.json beside the folder.
    """
    return _checked_parts(folder)[0]


def _checked_parts(folder: Path) -> tuple[tuple[Recipe, dict[str, Any], dict[str, Any]], str]:
    """What read_parts gives, and the sha256 of the weights."""
    for name in (WEIGHTS, CALIBRATION):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: {name} is missing; train the member again or attach the whole folder")
    digest = _checked_hash(folder)
    return (load_recipe(folder / RECIPE), _json(folder / METRICS), _json(folder / CALIBRATION)), digest


def _on_all_devices(folder: Path, recipe: Recipe, classes: int, folds: int) -> Predictor:
    """The member's network on every device, in half precision where that is a GPU and exact enough."""
    devices, load = list_devices(), partial(_load, folder, recipe, classes, folds)
    forward, precision, notes = load(devices[0], FULL), FULL, list[str]()
    if devices[0].startswith("gpu"):
        try:
            half = load(devices[0], HALF)
            precision, notes = _precision(forward, half, recipe)
            forward = half if precision == HALF else forward
        except Exception as error:  # noqa: BLE001 - what only makes it faster may not cost the member
            notes = [f"computes in {FULL}: {HALF} failed: {one_line(error)}"]
    others = [load(device, precision) for device in devices[1:]]
    return Predictor([forward, *others], recipe.tiling.batch_tiles, notes)


def list_devices() -> list[str]:
    """The GPUs, or else the CPU, as keras.device takes them: gpu:0, gpu:1."""
    import keras

    return list(keras.distribution.list_devices())


def _precision(full: Forward, half: Forward, recipe: Recipe) -> tuple[str, list[str]]:
    """HALF where it changes no probability by MOST_DIFFERENCE; else FULL, and a note with the difference."""
    tiling = recipe.tiling
    one, other = (Predictor([forward], tiling.batch_tiles) for forward in (full, half))
    difference = largest_difference(one, other, tiling.tile_px, tiling.batch_tiles)
    if difference < MOST_DIFFERENCE:
        return HALF, []
    return FULL, [f"computes in {FULL}: {HALF} would change a probability by {difference:.1g}"]


def load_networks(folder: Path, recipe: Recipe, classes: int, folds: int) -> tuple[list[Network], Any]:
    """A member's networks with their weights, and the model of them all. Raises ConfigError for weights of another."""
    networks, model = build_member(recipe, classes, folds)
    try:
        model.load_weights(folder / WEIGHTS)
    except Exception as error:
        raise ConfigError(f"{folder / WEIGHTS}: does not fit the network of its recipe: {one_line(error)}") from error
    return networks, model


def _load(folder: Path, recipe: Recipe, classes: int, folds: int, device: str, precision: str) -> Forward:
    """The member's network on one device, as a function of one batch. Raises ConfigError for weights of another."""
    import keras

    with keras.device(device), _computing_in(precision):
        _, model = load_networks(folder, recipe, classes, folds)
    if keras.backend.backend() == "tensorflow":
        model.jit_compile = False  # Keras turns XLA on by itself where there is a GPU: a compilation for every shape

    def forward(tiles: Tiles) -> Any:
        with keras.device(device):  # the scope of a thread: weights alone do not decide where it runs
            return model.predict_on_batch(tiles)

    return in_views(forward, recipe.inference.tta)


@contextmanager
def _computing_in(precision: str) -> Iterator[None]:
    """Layers made inside compute in `precision`; the weights are float32 in each."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _checked_hash(folder: Path) -> str:
    """The sha256 of the weights, once no file's differs from what MANIFEST.json says."""
    digests, manifest = (
        {name: sha256(folder / name) for name in (WEIGHTS, RECIPE, CALIBRATION)},
        folder.parent / MANIFEST,
    )
    listed = _json(manifest) if manifest.is_file() else {}
    for name, found in digests.items():
        wanted = listed.get(f"{folder.name}/{name}", {}).get("sha256", found)
        if wanted != found:
            raise ConfigError(
                f"{folder / name}: sha256 is {found[:12]}…, {MANIFEST} says {wanted[:12]}…; "
                "fetch the weights again or run make weights-demo"
            )
    return digests[WEIGHTS]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def committee_rows(
    networks: Sequence[Network], tiles: npt.NDArray[np.uint8], recipe: Recipe, batch_tiles: int
) -> npt.NDArray[np.float64]:
    """What a recipe's networks say of tiles uint8 [n, S, S, 3], averaged by their shares: [n, C], or [n, C + 1]."""
    rows = [predictor(network.model, batch_tiles, recipe.inference.tta)(tiles) for network in networks]
    shares = [config.share for config in expanded(recipe.model)]
    return np.average(np.stack(rows).astype(np.float64), axis=0, weights=shares)
