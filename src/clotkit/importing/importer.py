"""Make a member folder of an ONNX file, its recipe and its out-of-fold predictions."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.batching import noise
from clotkit.competitions import Competition
from clotkit.config import Recipe, load_recipe, recipe_path
from clotkit.data.grouped import read_grouped
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, UsageError
from clotkit.files import sha256
from clotkit.importing.checking import check_network
from clotkit.importing.foreign import ForeignPredictions, read_foreign
from clotkit.members import folder as files
from clotkit.members.onnx.header import NAME, external_files
from clotkit.members.onnx.network import load_onnx_network
from clotkit.members.onnx.session import OnnxModel
from clotkit.progress import Log
from clotkit.training.member_folder import card

NOISE_TILES, SLIDES_OF_CLASS = 24, 2  # that the network is checked on


@dataclass(frozen=True)
class ImportSettings:
    """The settings of one `clotkit member import`."""

    model: Path
    recipe: str  # name or path
    oof: Path
    labels: Path
    out: Path  # the member folder, which must not exist
    data: Path | None = None  # a train split, whose tiles check the network; None: noise does


def import_member(settings: ImportSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Check an ONNX network, fit its calibration, write its member folder and return the metrics.

    The folder appears when it is complete.

    Raises:
        ConfigError, SplitError, UsageError: the input is wrong, in one line; no file is written.
    """
    recipe = load_recipe(settings.recipe)
    if not recipe.is_onnx:
        raise ConfigError(f'recipe {recipe.name}: model.name is {recipe.model[0].name!r}; to import it is "onnx"')
    with new_folder(settings.out) as made:
        network = load_onnx_network(settings.model, recipe, len(competition.classes.names))
        found = read_foreign(settings.oof, settings.labels, recipe, competition, log)
        tiles = _tiles(settings.data, recipe, competition, log)
        check_network(network, tiles, settings.model)
        log(f"{settings.model}: sound on {len(tiles)} tiles of {settings.data or 'noise'}; {facts_line(network.model)}")
        metrics = found.metrics(recipe, settings.oof.name)
        metrics |= {"onnx": facts_of(network.model), "oof_sha256": sha256(settings.oof)}
        metrics["onnx"] |= {"checked_tiles": len(tiles), "checked_on": settings.data.name if settings.data else "noise"}
        copy_model(settings.model, made)
        _write(made, recipe, recipe_path(settings.recipe).read_text(encoding="utf-8"), found, metrics)
        files.check_member(made)
    log(f"{settings.out}: {metrics['n']} {metrics['unit']}s, weighted log loss {metrics['weighted_log_loss']:.4f}")
    return metrics


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`, and rename it to `out` on success; on an error nothing is left.

    Raises UsageError if `out` exists or cannot be made.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already; remove it, or give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UsageError(f"{out}: cannot be made: {error.strerror}; give another --out") from error
    try:
        yield made
        made.chmod(0o755)
        made.rename(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def copy_model(model: Path, folder: Path) -> None:
    """Copy an ONNX file and its external data into a member folder.

    Raises ConfigError for external data with the name of another file of a member.
    """
    external = external_files(model)
    if taken := [path.name for path in external if path.name in files.OWN]:
        raise ConfigError(
            f"{model}: its external data {taken[0]} has the name of a member's own file; save the model again with "
            "another location of its data"
        )
    shutil.copyfile(model, folder / NAME)
    for path in external:
        shutil.copyfile(path, folder / path.name)


def facts_of(model: OnnxModel) -> dict[str, Any]:
    """Return the entries of metrics.json on where an ONNX file is from and what it takes."""
    header = model.header
    return {
        "sha256": model.sha256,
        "files": {path.name: sha256(path) for path in external_files(model.path)},
        "producer": header.producer,
        "opset": header.opset,
        "ir_version": header.ir_version,
        "operators": len(header.operators),
        **model.shapes,
        "onnxruntime": model.runtime,
    }


def facts_line(model: OnnxModel) -> str:
    """Return where an ONNX file is from and what it takes, as one line."""
    inputs, outputs = (json.dumps(model.shapes[key]) for key in ("input", "output"))
    return f"{model.header.producer or 'unknown producer'}, opset {model.header.opset}, {inputs} to {outputs}"


def _tiles(data: Path | None, recipe: Recipe, competition: Competition, log: Log) -> npt.NDArray[np.uint8]:
    """Return the tiles to check a network on: of two slides a class, or noise."""
    if data is None:
        return noise(recipe.tiling.tile_px, NOISE_TILES)
    found: TileSet = read_grouped(recipe, data, competition, SLIDES_OF_CLASS, log)
    return np.asarray(found.tiles)


def _write(out: Path, recipe: Recipe, source: str, found: ForeignPredictions, metrics: dict[str, Any]) -> None:
    """Write the files of a member beside its network."""
    calibration = found.fit.to_json()
    (out / files.RECIPE).write_text(source, encoding="utf-8")
    (out / files.CALIBRATION).write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")
    # The network that is imported was trained on all labelled slides, predicted or not.
    split = pd.concat([found.out_of_fold, found.unpredicted.assign(fold=files.SPLIT_TRAIN)], ignore_index=True)
    for name, table in (
        (files.OUT_OF_FOLD, found.out_of_fold.round(6)),
        (files.SPLIT, split[["image", "fold", files.SPLIT_PATIENT]]),
    ):
        (out / name).write_text(table.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
    (out / files.CARD).write_text(card(recipe, metrics), encoding="utf-8")
    (out / files.METRICS).write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
