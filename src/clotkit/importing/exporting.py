"""Export a member's Keras networks as one ONNX file, in a member folder of its own."""

import shutil
import warnings
from pathlib import Path
from typing import Any

from clotkit.batching import noise
from clotkit.config import load_recipe, read_recipe, recipe_of
from clotkit.errors import ConfigError, needs_extra
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.importing.checking import check_network
from clotkit.importing.importer import facts_line, facts_of, new_folder
from clotkit.members import folder as files
from clotkit.members.loading import load_networks, quiet, start_keras
from clotkit.members.onnx.header import NAME
from clotkit.members.onnx.network import load_onnx_network
from clotkit.progress import Log
from clotkit.typed_toml import recipe_text

TABLE = {"layout": "nhwc", "scale": 1.0}  # the kit's networks scale pixels inside, and return probabilities
NOISE_TILES = 8
TOLERANCE = 1e-4  # of a probability
NOT_COPIED = (files.WEIGHTS, files.RECIPE, files.METRICS)


def export_member(folder: Path, out: Path, log: Log = print) -> float:
    """Write the member folder `out` with a Keras member's networks as model.onnx; all else is copied.

    Returns the largest difference of a probability on noise tiles.

    Raises:
        ConfigError: there is no member of Keras networks that pools by the mean, or the files differ.
        UsageError: `out` exists, or tf2onnx is not installed.
    """
    read = files.read_member(folder)
    recipe = read.recipe
    if recipe.is_onnx or recipe.encoder is not None or recipe.inference.pooling != "mean":
        raise ConfigError(
            f"{folder}: model.name is {recipe.model[0].name!r}, inference.pooling {recipe.inference.pooling!r}; what "
            'can be exported are Keras networks of tiles with pooling = "mean"'
        )
    start_keras()
    with needs_extra("onnx"):
        import tf2onnx  # noqa: F401 - Keras calls it
    classes = len(read.metrics["classes"])
    _, model = load_networks(folder, recipe, classes, read.folds)
    with new_folder(out) as made:
        text = _recipe_text(folder / files.RECIPE)
        atomic_write_text(made / files.RECIPE, text)
        difference = _export(model, made, recipe.tiling.tile_px, classes, read.metrics, log)
        for path in folder.iterdir():
            if path.is_file() and path.name not in NOT_COPIED:
                shutil.copyfile(path, made / path.name)
        files.check_member(made)
    log(f"{out}: differs from {folder} by at most {difference:.1e} of a probability")
    return difference


def _recipe_text(path: Path) -> str:
    """Return a recipe's file with an ONNX file in the place of its networks."""
    tables, where = read_recipe(path)
    tables |= {"model": {"name": "onnx"}, "onnx": TABLE}
    recipe_of(tables, where)
    return recipe_text(tables)


def _export(model: Any, out: Path, tile_px: int, classes: int, metrics: dict[str, Any], log: Log) -> float:
    """Write model.onnx and metrics.json, and return the largest difference of a probability."""
    tiles = noise(tile_px, NOISE_TILES)
    wanted = model.predict_on_batch(tiles)  # Keras exports what has been called
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # of numpy, for tf2onnx; its answers are compared below
        model.export(str(out / NAME), format="onnx", verbose=False)
    network = load_onnx_network(out / NAME, load_recipe(out / files.RECIPE), classes)
    check_network(network, tiles, out / NAME)
    difference = float(abs(network.predict_on_batch(tiles) - wanted).max())
    if difference > TOLERANCE:
        raise ConfigError(f"{out.name}: differs by {difference:.1e} of a probability, {TOLERANCE:.0e} is allowed")
    log(f"{NAME}: {facts_line(network.model)}")
    atomic_write_json(out / files.METRICS, {**metrics, "networks_of_folds": 1, "onnx": facts_of(network.model)})
    return difference
