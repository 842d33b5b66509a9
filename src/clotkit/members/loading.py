"""Load a member: build its networks from the recipe and load the weights onto every device.

A member ships its weights and its recipe instead of a saved model, because a .keras file of a newer Keras does not load
in Kaggle's.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clotkit.batching import MAX_DIFFERENCE, Forward, Predict, Predictor, TileArray, largest_difference, with_tta
from clotkit.config import ModelConfig, Recipe
from clotkit.errors import ConfigError, UsageError, WeightsError, one_line
from clotkit.members.calibration import Calibration
from clotkit.members.decision import Decision
from clotkit.members.folder import CALIBRATION, WEIGHTS, MemberFiles, network_file, read_decision, read_member
from clotkit.members.heads import FLOAT32
from clotkit.members.networks import Network, build_committee, build_encoder
from clotkit.members.onnx.network import load_onnx_network
from clotkit.members.pooling import SlidePooling, pooling_of
from clotkit.members.predict import predictor
from clotkit.members.weights import check_loaded

ENVIRONMENT = {  # read when the backend is imported or first touches a GPU
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
BACKENDS = ("tensorflow", "jax")  # of Keras: the first one that is installed, unless CLOTKIT_BACKEND names one
MIXED_FLOAT16 = "mixed_float16"  # Keras's name of the dtype policy; weights stay float32


@dataclass(frozen=True)
class Member:
    """A loaded member: one calibrated model that is ready to predict."""

    name: str
    recipe: Recipe
    calibration: Calibration
    weights_sha256: str
    predict: Predict  # uint8[n, H, W, 3] -> rows [n, K], which `pooling` takes
    notes: list[str] = field(default_factory=list)  # lines for the report; predicting may add one
    decision: Decision | None = None  # from its probabilities to a label; None: it was trained without
    own_pooling: SlidePooling | None = None  # None: the one that its recipe names

    @property
    def pooling(self) -> SlidePooling:
        """Return what turns its rows into a slide's probabilities."""
        return self.own_pooling or pooling_of(self.recipe)


def load_member(folder: Path, classes: tuple[str, ...], slug: str | None = None) -> Member:
    """Build a member's network and load its weights, once per GPU, or on the CPU when there is no GPU.

    Raises ConfigError when a file is missing or damaged, when the member was trained for other classes than `classes`
    or for another competition than `slug` (None: any), or when a hash differs from the one that MANIFEST.json beside
    the folder lists.
    """
    files = read_checked(folder, classes, slug)
    return member_of(folder, files, len(classes), *_load_predict(folder, files, len(classes)))


def read_checked(folder: Path, classes: tuple[str, ...], slug: str | None) -> MemberFiles:
    """Read a member's files. Raises ConfigError as load_member does."""
    files = read_member(folder)
    trained_on = files.metrics.get("competition")
    if slug and trained_on not in {None, slug}:
        raise ConfigError(f"{folder}: trained for the competition {trained_on}; wanted: {slug}")
    trained = tuple(files.metrics.get("classes", ()))
    if trained != classes:
        raise ConfigError(f"{folder}: trained for the classes {', '.join(trained)}; wanted: {', '.join(classes)}")
    return files


def member_of(
    folder: Path,
    files: MemberFiles,
    classes: int,
    predict: Predict,
    notes: list[str],
    own_pooling: SlidePooling | None = None,
) -> Member:
    """Return a member whose network is loaded. Raises ConfigError for a calibration that does not fit."""
    where = str(folder / CALIBRATION)
    calibration = Calibration.from_json(files.calibration, where, classes)
    decision = read_decision(files.calibration, where, classes)
    return Member(folder.name, files.recipe, calibration, files.weights_sha256, predict, notes, decision, own_pooling)


def _load_predict(folder: Path, files: MemberFiles, classes: int) -> tuple[Predict, list[str]]:
    """Load the network of a member as a function of tiles, and the list of notes that it adds to."""
    recipe = files.recipe
    if recipe.is_onnx:
        network = load_onnx_network(network_file(folder), recipe, classes)
        return predictor(network, recipe.tiling.batch_tiles, recipe.inference.tta), network.model.notes
    start_keras()
    predict = _load_on_all_devices(folder, recipe, classes, files.folds)
    return predict, predict.notes


def build_member(recipe: Recipe, classes: int, folds: int = 1) -> tuple[list[Network], Any]:
    """Build a recipe's networks with fresh weights, `folds` times, and one model that averages them.

    The model maps tiles [n, tile_px, tile_px, 3] in 0..255 to the mean of the networks' probabilities [n, C], or for a
    recipe that pools by attention or logits to rows [n, C + 1]. Raises ConfigError for a recipe without a network.
    """
    start_keras()
    configs = [replace(config, weights="none") for config in recipe.model] * folds
    return build_committee(configs, recipe.tiling.tile_px, classes, recipe.inference.pooling)


@cache
def start_keras() -> None:
    """Import Keras and its backend and touch the device, without TensorFlow's start-up messages.

    GPU memory is allocated as needed: by default one process takes all of it, and no other process can use the GPU.
    The user's own settings of Keras (keras.json, KERAS_* variables) do not apply: members are built for these ones.

    Raises:
        UsageError: The backend that CLOTKIT_BACKEND names is not one of BACKENDS, or the program that called the kit
            has loaded Keras with another one before.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # otherwise it warns about retracing for each network
    with quiet(), _own_settings():
        import keras

        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        keras.config.set_epsilon(1e-7)
        loaded = keras.config.backend()
        if loaded not in BACKENDS:
            raise UsageError(f"Keras was loaded with the backend {loaded} before; allowed: {', '.join(BACKENDS)}")
        keras.ops.zeros(1)


@contextmanager
def _own_settings() -> Iterator[None]:
    """Let Keras, while it is imported, see the kit's backend and no keras.json, which may be anything."""
    wanted = os.environ.get("CLOTKIT_BACKEND") or next(filter(find_spec, BACKENDS), BACKENDS[0])
    if wanted not in BACKENDS:
        raise UsageError(f"CLOTKIT_BACKEND is {wanted!r}; allowed: {', '.join(BACKENDS)}")
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("KERAS_")}
    os.environ.update(KERAS_BACKEND=wanted, KERAS_HOME=os.devnull)  # in which no keras.json can be
    try:
        yield
    finally:
        del os.environ["KERAS_BACKEND"], os.environ["KERAS_HOME"]
        os.environ.update(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what native code writes to stderr; print it when an exception passes through."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            with suppress(OSError):  # what cannot be printed must not hide the exception
                os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def list_devices() -> list[str]:
    """Return the GPUs, or else the CPU, by the names that keras.device takes: gpu:0, gpu:1."""
    import keras

    return list(keras.distribution.list_devices())


def load_networks(folder: Path, recipe: Recipe, classes: int, folds: int) -> tuple[list[Network], Any]:
    """Build a member's networks and the model that averages them, and load their weights.

    Raises WeightsError when the weights do not fit the recipe: no array may keep its initial values.
    """
    networks, model = build_member(recipe, classes, folds)
    try:
        model.load_weights(folder / WEIGHTS)
    except Exception as error:
        raise WeightsError(f"{folder / WEIGHTS}: does not fit the network of its recipe: {one_line(error)}") from error
    parts = [part for network in networks for part in (network.features, network.head)]
    check_loaded(folder / WEIGHTS, model, parts)
    return networks, model


def load_on_device(folder: Path, recipe: Recipe, classes: int, folds: int, device: str, precision: str) -> Forward:
    """Load a member's network on one device and return it as a function of one batch.

    Raises ConfigError when the weights do not fit the recipe.
    """
    import keras

    with keras.device(device), _dtype_policy(precision):
        _, model = load_networks(folder, recipe, classes, folds)
    return with_tta(_on_device(model, device), recipe.inference.tta)


def _on_device(model: Any, device: str) -> Forward:
    """Return a Keras model as a function of one batch on a device."""
    import keras

    if keras.backend.backend() == "tensorflow":
        model.jit_compile = False  # on a GPU Keras turns XLA on, which compiles anew for every shape

    def forward(tiles: TileArray) -> Any:
        with keras.device(device):  # per thread: where the weights are does not decide where the layers run
            return model.predict_on_batch(tiles)

    return forward


def choose_precision(full: Forward, half: Forward, recipe: Recipe) -> tuple[str, list[str]]:
    """Return MIXED_FLOAT16 if it changes no probability by MAX_DIFFERENCE, else FLOAT32, and notes."""
    tiling = recipe.tiling
    one, other = (Predictor([forward], tiling.batch_tiles) for forward in (full, half))
    difference = largest_difference(one, other, tiling.tile_px, tiling.batch_tiles)
    if difference < MAX_DIFFERENCE:
        return MIXED_FLOAT16, []
    return FLOAT32, [f"computes in {FLOAT32}: {MIXED_FLOAT16} would change a probability by {difference:.1g}"]


def _load_on_all_devices(folder: Path, recipe: Recipe, classes: int, folds: int) -> Predictor:
    """Load the network on every device, in half precision when these are GPUs and it is exact enough."""
    devices, load = list_devices(), partial(load_on_device, folder, recipe, classes, folds)
    forward, precision, notes = load(devices[0], FLOAT32), FLOAT32, list[str]()
    if devices[0].startswith("gpu"):
        try:
            half = load(devices[0], MIXED_FLOAT16)
            precision, notes = choose_precision(forward, half, recipe)
            forward = half if precision == MIXED_FLOAT16 else forward
        except Exception as error:  # noqa: BLE001 - half precision only saves time: its failure must not cost the member
            notes = [f"computes in {FLOAT32}: {MIXED_FLOAT16} failed: {one_line(error)}"]
    others = [load(device, precision) for device in devices[1:]]
    return Predictor([forward, *others], recipe.tiling.batch_tiles, notes)


def load_backbone_encoder(config: ModelConfig, tile_px: int, weights: Path, batch_tiles: int) -> Predictor:
    """Load a frozen backbone on every device as a function of tiles.

    It maps uint8[n, S, S, 3] to features float32[n, D]. Raises ConfigError when the weights do not fit.
    """
    import keras

    def load(device: str) -> Forward:
        with keras.device(device):
            model = build_encoder(config, tile_px, weights)
        return _on_device(model, device)

    return Predictor([load(device) for device in list_devices()], batch_tiles)


@contextmanager
def _dtype_policy(precision: str) -> Iterator[None]:
    """Set Keras's dtype policy for the layers that are built inside; their weights stay float32."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
