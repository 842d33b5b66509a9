"""Networks, built from their recipe: one of the two places with Keras (the other trains them).

A member ships its weights and its recipe, not a saved model: a .keras file of a newer Keras does not load in Kaggle's.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from clotkit.config import ModelConfig, Recipe, load_recipe
from clotkit.errors import ConfigError, one_line
from clotkit.files import sha256
from clotkit.infer.ensemble import Calibration
from clotkit.learn.predict import MOST_DIFFERENCE, Forward, Predict, Predictor, Tiles, largest_difference

RECIPE, WEIGHTS, CALIBRATION, METRICS = "recipe.toml", "model.weights.h5", "calibration.json", "metrics.json"
MANIFEST = "MANIFEST.json"  # beside the member folders
BN_MOMENTUM = 0.9  # Keras's 0.99 needs some 500 steps to forget its start; small recipes train for fewer
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
    for name in (WEIGHTS, CALIBRATION):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: {name} is missing; train the member again or attach the whole folder")
    recipe = load_recipe(folder / RECIPE)
    trained = tuple(_json(folder / METRICS).get("classes", ()))
    if trained != classes:
        raise ConfigError(f"{folder}: trained for the classes {', '.join(trained)}; wanted: {', '.join(classes)}")
    calibration = Calibration.from_json(_json(folder / CALIBRATION), str(folder / CALIBRATION))
    digest = _checked_hash(folder)
    start_keras()
    predict = _on_all_devices(folder, recipe, len(classes))
    return Member(folder.name, recipe, calibration, digest, predict, predict.notes)


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
    """Import Keras and its backend, and touch the device, without the dozen lines that TensorFlow greets with.

    A GPU's memory is taken as it is needed: by default a process takes all of it, and nothing beside it can run.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
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
        layers.Dense(classes, activation="softmax", dtype=FULL),  # in half precision rows would not sum to 1
    ]
    return Sequential(blocks)


BUILDERS: dict[str, Callable[[ModelConfig, int, int], Any]] = {"cnn": _cnn}


def predictor(model: Any, batch: int) -> Predictor:
    """Predict with one model, wherever its weights are, in batches of one size; see Predictor."""
    return Predictor([model.predict_on_batch], batch)


def _on_all_devices(folder: Path, recipe: Recipe, classes: int) -> Predictor:
    """The member's network on every device, in half precision where that is a GPU and exact enough."""
    devices, load = list_devices(), partial(_load, folder, recipe, classes)
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


def _load(folder: Path, recipe: Recipe, classes: int, device: str, precision: str) -> Forward:
    """The member's network on one device, as a function of one batch. Raises ConfigError for weights of another."""
    import keras

    with keras.device(device), _computing_in(precision):
        model = build_model(recipe.model, recipe.tiling.tile_px, classes)
        try:
            model.load_weights(folder / WEIGHTS)
        except Exception as error:
            raise ConfigError(
                f"{folder / WEIGHTS}: does not fit the network of its recipe: {one_line(error)}"
            ) from error
    if keras.backend.backend() == "tensorflow":
        model.jit_compile = False  # Keras turns XLA on by itself where there is a GPU: a compilation for every shape

    def forward(tiles: Tiles) -> Any:
        with keras.device(device):  # the scope of a thread: weights alone do not decide where it runs
            return model.predict_on_batch(tiles)

    return forward


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
    digest, manifest = sha256(folder / WEIGHTS), folder.parent / MANIFEST
    listed = _json(manifest) if manifest.is_file() else {}
    for name in (WEIGHTS, RECIPE, CALIBRATION):
        found = sha256(folder / name)
        wanted = listed.get(f"{folder.name}/{name}", {}).get("sha256", found)
        if wanted != found:
            raise ConfigError(
                f"{folder / name}: sha256 is {found[:12]}…, {MANIFEST} says {wanted[:12]}…; "
                "fetch the weights again or run make weights-demo"
            )
    return digest


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
