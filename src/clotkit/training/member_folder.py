"""What a member folder holds, and writing it: weights, recipe, calibration, metrics, history, predictions, card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clotkit.config import Recipe
from clotkit.evaluation import plots
from clotkit.evaluation.figures import NAMES
from clotkit.files import atomic_write, atomic_write_json, atomic_write_text
from clotkit.members import folder, loading
from clotkit.members.ensemble import Calibration
from clotkit.members.networks import Network


@dataclass(frozen=True)
class Trained:
    """What training came to: the networks that ship, fold by fold or those trained on everything; how they were made.

    `out_of_fold` has a row an image that its networks had not seen, raw; `scored` a row a unit, calibrated on others;
    `crossed` are the calibrations of the folds, each fitted on the others; `split` has a row an image: image, and the
    fold that held it, TRAINED or WATCHED.
    """

    networks: list[list[Network]]
    history: pd.DataFrame
    out_of_fold: pd.DataFrame
    scored: pd.DataFrame
    calibration: Calibration
    crossed: list[Calibration]
    split: pd.DataFrame


def write_member(out: Path, recipe: Recipe, source: str, trained: Trained, metrics: dict[str, Any]) -> None:
    """Write the member folder `out`, file by file, the metrics last: without them it is no member."""
    out.mkdir(parents=True, exist_ok=True)
    _write_weights(out / folder.WEIGHTS, recipe, trained.networks, len(metrics["classes"]))
    atomic_write_text(out / folder.RECIPE, source)
    crossed = [calibration.to_json() for calibration in trained.crossed]
    atomic_write_json(out / folder.CALIBRATION, trained.calibration.to_json() | {"folds": crossed})
    _write_table(out / folder.HISTORY, trained.history.round(6))
    _write_table(out / folder.OUT_OF_FOLD, trained.out_of_fold.round(6))
    _write_table(out / folder.SPLIT, trained.split)
    plots.draw_curves(out / folder.CURVES, trained.history)
    atomic_write_text(out / folder.CARD, card(recipe, metrics))
    atomic_write_json(out / folder.METRICS, metrics)


def card(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """The model card, in Markdown (Mitchell et al. 2019, "Model cards for model reporting")."""
    said = recipe.card
    networks = " + ".join(
        f"{model.copies} x {model.name}" if model.copies > 1 else model.name for model in recipe.model
    )
    many = metrics["networks_of_folds"]
    parts = [
        f"# {recipe.name}",
        said.use or f"Tells {', '.join(metrics['classes'])} apart.",
        "**Not for clinical use.** Nothing here was tested for it.",
        "## Network",
        f"{networks}{f', once for each of {many} folds, averaged' if many > 1 else ''}; "
        f"{recipe.tiling.name} of {recipe.tiling.tile_px} px. Everything else is in recipe.toml.",
        "## Data",
        f"{said.data or metrics['data']}\n\nLicence of the data: {said.licence or 'not stated'}.\n\n"
        "{tiles} tiles of {images} images of {patients} patients.".format(**metrics["material"]),
        "## Figures",
        f"{metrics['estimate'].capitalize()}: {metrics['n']} {metrics['unit']}s; with 95 % intervals of a bootstrap by "
        f"patient. Seed {metrics['seed']}. A constant has a weighted log loss of {metrics['constant']:.4f}.",
        _figures_table(metrics),
        "## Limits",
        said.limits or "The figures are of data like the training data; other scanners and stains were not tried.",
    ]
    return "\n\n".join(parts) + "\n"


def _figures_table(metrics: dict[str, Any]) -> str:
    rows = ["| figure | value | low | high |", "|---|---|---|---|"]
    for name in NAMES:
        values = [metrics.get(key) for key in (name, f"{name}_low", f"{name}_high")]
        shown = " | ".join("-" if value is None else f"{value:.4f}" for value in values)
        rows.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join(rows)


def _write_weights(path: Path, recipe: Recipe, folds: Sequence[Sequence[Network]], classes: int) -> None:
    """Save the weights of all networks in a committee that was never compiled: no optimizer's state in the file."""
    bare, model = loading.build_member(recipe, classes, len(folds))
    for target, network in zip(bare, [network for fold in folds for network in fold], strict=True):
        target.features.set_weights(network.features.get_weights())
        target.head.set_weights(network.head.get_weights())
    with atomic_write(path) as temporary:
        model.save_weights(temporary, overwrite=True)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    atomic_write_text(path, table.to_csv(index=False, lineterminator="\n"))
