"""Write a member folder, and the manifest of a folder of members."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from clotkit.config import Recipe
from clotkit.console import TRACEBACK
from clotkit.data.familiarity import Familiarity
from clotkit.errors import ConfigError
from clotkit.evaluation import plots
from clotkit.evaluation.figures import NAMES
from clotkit.evaluation.member_metrics import member_metrics
from clotkit.evaluation.scores import EvaluationTarget, HeldOutFit, metric_line
from clotkit.files import atomic_write, atomic_write_json, atomic_write_text, remove_temporaries, sha256
from clotkit.members import folder as files
from clotkit.members.encoders.folder import ENCODER, encoder_file
from clotkit.members.loading import build_member
from clotkit.members.networks import Network
from clotkit.members.weights import check_weights, pack_weights

WRITTEN = (
    files.WEIGHTS, files.RECIPE, files.CALIBRATION, files.FAMILIARITY, files.HISTORY, files.OUT_OF_FOLD, files.SPLIT,
    files.CURVES, files.CARD, files.METRICS,
)  # fmt: skip
SaveWeights = Callable[[Path, Recipe, Sequence[Sequence[Any]], int], None]  # as write_weights


@dataclass(frozen=True)
class TrainedMember:
    """The result of training a recipe."""

    networks: list[list[Any]]  # that ship: those of each fold, or one list of those trained on all patients
    history: pd.DataFrame  # one row per epoch of every network
    out_of_fold: pd.DataFrame  # one row per image: the raw prediction of networks that were not trained on it
    fit: HeldOutFit  # to them or, of a single fold, to its validation part
    split: pd.DataFrame  # one row per image: image, and fold as in split.csv
    familiarity: Familiarity | None = None  # of pictures; None: too few, or slides

    def metrics(self, recipe: Recipe, target: EvaluationTarget, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of metrics.json that all members share; see evaluation.member_metrics.

        `facts` are those of that function without `networks_of_folds`.
        """
        facts = {**facts, "networks_of_folds": len(self.networks)}
        return member_metrics(recipe, target, self.out_of_fold, self.fit, facts)


def write_member(
    out: Path,
    recipe: Recipe,
    source: str,
    trained: TrainedMember,
    metrics: dict[str, Any],
    save: SaveWeights | None = None,
) -> None:
    """Write the member folder `out`, the metrics last: a folder without them is not a complete member.

    `source` is the text of the recipe. `save` writes the weights; None: write_weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / files.METRICS).unlink(missing_ok=True)  # of an earlier member: half of each would answer, and be wrong
    for name in WRITTEN:
        remove_temporaries(out / name)
    (save or write_weights)(out / files.WEIGHTS, recipe, trained.networks, len(metrics["classes"]))
    atomic_write_text(out / files.RECIPE, source)
    atomic_write_json(out / files.CALIBRATION, trained.fit.to_json())
    _write_familiarity(out / files.FAMILIARITY, trained.familiarity)
    _write_table(out / files.HISTORY, trained.history.round(6))
    _write_table(out / files.OUT_OF_FOLD, trained.out_of_fold.round(6))
    _write_table(out / files.SPLIT, trained.split)
    plots.draw_curves(out / files.CURVES, trained.history)
    atomic_write_text(out / files.CARD, card(recipe, metrics))
    atomic_write_json(out / files.METRICS, metrics)


def card(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """Return the model card in Markdown (Mitchell et al. 2019, "Model cards for model reporting")."""
    texts = recipe.card
    networks = " + ".join(
        f"{model.copies} x {model.name}" if model.copies > 1 else model.name for model in recipe.model
    )
    if recipe.encoder is not None:
        networks += f" over the features of the encoder {recipe.encoder.name}"
    folds = metrics["networks_of_folds"]
    parts = [
        f"# {recipe.name}",
        texts.use or f"Tells {', '.join(metrics['classes'])} apart.",
        "**Not for clinical use.** It was never tested for that.",
        "## Network",
        f"{networks}{f', trained once for each of {folds} folds and averaged' if folds > 1 else ''}. "
        f"Tiles: {recipe.tiling.name}, {recipe.tiling.tile_px} px. recipe.toml has all other settings.",
        "## Data",
        f"{texts.data or metrics['data']}\n\nLicence of the data: {texts.licence or 'not stated'}.\n\n"
        + _material_line(metrics["material"]),
        _dropped_line(metrics["material"]),
        "## Figures",
        f"Estimate: {metrics['estimate']}; {metrics['n']} {metrics['unit']}s. The intervals are 95 % bootstrap "
        f"intervals, resampled by patient. Seed: {metrics['seed']}. A constant prediction has a weighted log loss of "
        f"{metrics['constant']:.4f}.",
        f"By the metric of the competition: {metric_line(judged)}."
        if (judged := metrics.get("competition_metric"))  # members of earlier versions have none
        else "",
        _figures_table(metrics),
        "## Limits",
        texts.limits or "The figures hold for data like the training data; other scanners and stains were not tried.",
        _familiarity_line(metrics),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _material_line(material: dict[str, Any]) -> str:
    """Return how much the member was made of; an imported one does not know its tiles."""
    tiles = f"{material['tiles']} tiles of " if "tiles" in material else ""
    return f"{tiles}{material['images']} images of {material['patients']} patients."


def _dropped_line(material: dict[str, Any]) -> str:
    """Return a sentence for images that were left out as near-duplicates, or nothing."""
    dropped = material.get("dropped_near_duplicates", {})
    if not sum(dropped.values()):
        return ""
    counts = " and ".join(f"{count} of {part}" for part, count in dropped.items())
    return f"Left out, because they are near-identical to images of test: {counts}."


def _familiarity_line(metrics: dict[str, Any]) -> str:
    """Return what the card says about pictures unlike the training pictures, or nothing."""
    facts = metrics.get("familiarity")  # members of earlier versions have none
    if facts is None:
        return ""
    alarms = (
        f" Of {facts['held_out']} held-out pictures {100 * facts['unlike_share']:.1f} % were called so by mistake."
        if facts["held_out"]
        else ""
    )
    return (
        "It says of many pictures of another kind that they are unlike its training pictures, and answers all the "
        f"same; others pass unnoticed.{alarms}"
    )


def write_manifest(folder: Path) -> int:
    """Write MANIFEST.json for the members directly inside `folder`, and return how many there are.

    It lists every file of a member, and of the encoders beside them: {"member/file": {"sha256", "bytes",
    "provenance"}}. Raises ConfigError when there is no member, or an encoder.toml is wrong, and WeightsError when the
    weights or the calibration of a member cannot be used.
    """
    members = [path for path in files.find_members(folder) if path != folder]
    if not members:
        raise ConfigError(f"{folder}: is a member itself; give the folder that holds members")
    entries: dict[str, Any] = {}
    for member in members:
        files.check_member(member)
        entries |= _entries_of(member, _provenance(member))
    for encoder in sorted(path.parent for path in folder.glob(f"*/{ENCODER}")):
        found = encoder_file(encoder)
        entries |= _entries_of(
            encoder, f"Encoder: {found.title or encoder.name}; licence {found.licence or 'unknown'}."
        )
    atomic_write_json(folder / files.MANIFEST, entries)
    return len(members)


def _entries_of(folder: Path, provenance: str) -> dict[str, Any]:
    """Return the entries of the manifest for every file of a member or an encoder."""
    return {
        f"{folder.name}/{path.name}": {
            "sha256": sha256(path), "bytes": path.stat().st_size, "provenance": provenance
        }
        for path in sorted(folder.iterdir()) if path.is_file() and path.name != TRACEBACK
    }  # fmt: skip


def _provenance(member: Path) -> str:
    """Return one line that says how a member was made."""
    metrics = json.loads((member / files.METRICS).read_text(encoding="utf-8"))
    images = metrics["material"]["images"]
    return f"recipe {metrics['recipe']}, seed {metrics['seed']}, {images} images: {metrics['data']}"


def _figures_table(metrics: dict[str, Any]) -> str:
    rows = ["| figure | value | low | high |", "|---|---|---|---|"]
    for name in NAMES:
        values = [metrics.get(key) for key in (name, f"{name}_low", f"{name}_high")]
        shown = " | ".join("-" if value is None else f"{value:.4f}" for value in values)
        rows.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join(rows)


def write_weights(path: Path, recipe: Recipe, folds: Sequence[Sequence[Network]], classes: int) -> None:
    """Save the weights of all networks, through a model without an optimizer, whose state is not needed.

    Raises WeightsError if one is not finite: the training has diverged.
    """
    uncompiled, model = build_member(recipe, classes, len(folds))
    for target, network in zip(uncompiled, [network for fold in folds for network in fold], strict=True):
        target.features.set_weights(network.features.get_weights())
        target.head.set_weights(network.head.get_weights())
    with atomic_write(path) as temporary:
        model.save_weights(temporary, overwrite=True)
        if any(config.half_weights for config in recipe.model):
            pack_weights(temporary)
        check_weights(temporary)


def _write_familiarity(path: Path, familiarity: Familiarity | None) -> None:
    """Write the statistics of the training pictures, or remove those of an earlier training."""
    if familiarity is None:
        path.unlink(missing_ok=True)
    else:
        atomic_write_json(path, familiarity.to_json())


def _write_table(path: Path, table: pd.DataFrame) -> None:
    atomic_write_text(path, table.to_csv(index=False, lineterminator="\n"))
