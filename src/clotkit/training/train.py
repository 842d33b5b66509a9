"""Train a member from a recipe: read tiles, fit networks on folds, calibrate, write the folder."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition
from clotkit.config import Recipe, load_recipe, recipe_path
from clotkit.data.familiarity import fit_familiarity
from clotkit.data.folds import Fold, check_folds, make_folds
from clotkit.data.grouped import read_grouped
from clotkit.data.pictures import check_out_of_data
from clotkit.data.sources import CACHE, is_tiled
from clotkit.data.tiles import TRAIN, VAL, TileSet
from clotkit.errors import ConfigError
from clotkit.evaluation.scores import metric_line, target_of
from clotkit.files import atomic_write_text
from clotkit.locks import exclusive_folder
from clotkit.members.networks import check_networks
from clotkit.metric import METRICS
from clotkit.progress import Log
from clotkit.splits import SYNTHETIC
from clotkit.stores import Place, store_of
from clotkit.synthetic.contours import MARKER
from clotkit.training import devices
from clotkit.training.checkpoints import delete_checkpoints
from clotkit.training.cross_validation import TrainingRun
from clotkit.training.member_folder import TrainedMember, write_member

DESCRIBED = ("seed", "size", "separation", "pictures")  # facts of a synthetic split's marker that metrics.json repeats
CHECKPOINTS_DIR = ".training"  # folder of checkpoints in the member folder, until the member is written
ESTIMATES = {  # what the figures estimate, by data.split
    "folds": "out of fold, by patient",
    "centres": "out of fold, by centre",
    "holdout": "patients held out",
    "given": "the test part",
}


@dataclass(frozen=True)
class TrainSettings:
    """The options of one `clotkit train`."""

    recipe: str  # name or path
    data: Place
    out: Path  # the member folder
    folds: int | None = None  # None: as many as the recipe says
    limit: int | None = None  # images of each class; None: all
    backbones: Path | None = None  # folder of ImageNet weights
    cache: Path = CACHE  # of shards, when `data` is a URL
    wait_s: float = devices.WAIT_S  # seconds for the other workers, when there are several
    split: Path | None = None  # the split with the table of slides, if `data` are features that lie without one


def train(settings: TrainSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Train a recipe on its data, write the member folder and return its metrics.

    Every patient is on one side of each split. The metrics are of held-out patients, calibrated on others. If a run is
    killed, the same command resumes it. With training.strategy "multi_worker" every worker calls this alike; only the
    chief writes the member, and the others return {}.

    Raises:
        ConfigError, SplitError, StoreError, UsageError: the input is wrong; no file is written.
        ClusterError: another worker is gone, or did not come.
    """
    started = time.monotonic()
    recipe, source = load_recipe(settings.recipe), recipe_path(settings.recipe).read_text(encoding="utf-8")
    check_trainable(recipe, settings.data, competition, settings.backbones)
    check_out_of_data(settings.out, settings.data, recipe.data)
    check_folds(settings.folds, recipe.data)
    if recipe.training.strategy == "multi_worker":
        devices.read_cluster(os.environ.get(devices.CLUSTER))  # fail on a wrong one before reading data
    tiles = read_grouped(recipe, settings.data, competition, settings.limit, log, settings.cache)
    target = target_of(recipe, tiles.labels, tiles.classes, competition)
    folds = make_folds(tiles, recipe.data, recipe.training, settings.folds)
    context = devices.create_context(recipe.training.strategy, log, settings.wait_s)
    fingerprint = fingerprint_of(source, tiles, folds)
    # Two trainings would take each other's checkpoints.
    alone = exclusive_folder(settings.out, "training") if context.is_chief else nullcontext()
    with context.cluster_errors(), alone:
        _check_same_fingerprint(context, fingerprint)
        checkpoints_dir = open_checkpoints(settings.out, fingerprint, context, log)
        progress = log if context.is_chief else lambda _: None
        run = TrainingRun(recipe, tiles, target, settings.backbones, checkpoints_dir, progress, context)
        if context.is_chief:
            trained = run.train_folds(folds)
            metrics = trained.metrics(recipe, target, data_facts(tiles, recipe, settings.data, competition))
            trained, metrics = with_familiarity(trained, metrics, recipe, tiles, folds)
            write_member(settings.out, recipe, source, trained, metrics)
        else:
            run.follow_chief(folds)
        context.all_gather([0])  # no worker deletes its checkpoints before the member is written
    delete_checkpoints(checkpoints_dir)
    if not context.is_chief:
        with suppress(OSError):  # not empty: the chief has written the member into it
            settings.out.rmdir()
        return {}
    log(f"{settings.out}: {summary(metrics)}; {time.monotonic() - started:.0f} s")
    return metrics


def with_familiarity(
    trained: TrainedMember, metrics: dict[str, Any], recipe: Recipe, tiles: TileSet, folds: Sequence[Fold]
) -> tuple[TrainedMember, dict[str, Any]]:
    """Add the statistics of the training pictures to a member and its metrics.

    `familiarity` of the metrics is None for slides, and for too few pictures.
    """
    held_out = folds[0].held_out if len(folds) == 1 else np.zeros(len(tiles), np.bool_)
    fitted = None if recipe.data.source == "slides" else fit_familiarity(tiles, held_out)
    familiarity, facts = fitted or (None, None)
    return replace(trained, familiarity=familiarity), {**metrics, "familiarity": facts}


def summary(metrics: dict[str, Any]) -> str:
    """Return the main figures of a member, with their intervals, on one line."""
    shown = [
        f"{name.replace('_', ' ')} {metrics[name]:.4f}{_interval(metrics, name)}"
        for name in ("accuracy", "balanced_accuracy", "auc", "weighted_log_loss")
        if metrics.get(name) is not None
    ]
    if (metric := metrics["competition_metric"]) and METRICS[metric["name"]].of_table is not None:
        shown.append(metric_line(metric))
    return ", ".join(shown) + f"; {metrics['estimate']}, {metrics['n']} {metrics['unit']}s"


def _interval(metrics: dict[str, Any], name: str) -> str:
    """Return a figure's interval in brackets; nothing for a single patient, who has none."""
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return "" if low is None else f" ({low:.3f} to {high:.3f})"


def check_trainable(recipe: Recipe, data: Place, competition: Competition, backbones: Path | None) -> None:
    """Raise ConfigError for a recipe that its data or its networks make impossible to train."""
    if recipe.encoder is not None:
        raise ConfigError(
            f"recipe {recipe.name}: {recipe.model[0].name} is a head over features; clotkit train takes it, with the "
            "folder of features as --data"
        )
    _check_feed(recipe, data, competition)
    _check_networks(recipe, competition, backbones)


def _check_feed(recipe: Recipe, data: Place, competition: Competition) -> None:
    if recipe.training.feed == "shards" and not is_tiled(data, competition):
        raise ConfigError(
            f'{data}: no shards there, but recipe {recipe.name} has training.feed = "shards"; run clotkit tile first, '
            'or set feed = "memory"'
        )


def _check_networks(recipe: Recipe, competition: Competition, backbones: Path | None) -> None:
    """Raise ConfigError for networks that cannot be built: reading the data may take hours."""
    classes = competition.classes.names if recipe.data.source == "slides" else recipe.data.classes
    count = len(classes) or 2  # of folders without named classes it is not known before they are read
    check_networks(recipe.model, recipe.tiling.tile_px, count, recipe.inference.pooling, backbones)


def fingerprint_of(source: str, tiles: TileSet, folds: Sequence[Fold]) -> str:
    """Return a sha256 of the recipe, the tiles and the folds; what is read lazily stands for itself."""
    digest = hashlib.sha256(source.encode())
    pixels: Any = tiles.tiles
    lazy = hasattr(pixels, "fingerprint")
    digest.update(pixels.fingerprint() if lazy else np.ascontiguousarray(pixels).data)
    for array in (tiles.labels, *(mask for fold in folds for mask in (fold.train, fold.validation))):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check_same_fingerprint(context: devices.DistributedContext, fingerprint: str) -> None:
    """Raise ConfigError when a worker has another recipe, other tiles or other folds."""
    digits = [int(fingerprint[start : start + 15], 16) for start in range(0, 60, 15)]
    gathered = context.all_gather(digits)  # [world_size, 4]
    others = np.flatnonzero((gathered != gathered[0]).any(axis=1))
    if len(others):
        raise ConfigError(
            f"worker {others[0]} of {context.world_size} has another recipe, other tiles or other folds than worker 0; "
            "give all of them the same recipe, data and options"
        )


def open_checkpoints(out: Path, fingerprint: str, context: devices.DistributedContext, log: Log) -> Path:
    """Return this worker's folder of checkpoints, emptied unless it has the same fingerprint."""
    checkpoints_dir = out / (CHECKPOINTS_DIR if context.is_chief else f"{CHECKPOINTS_DIR}-{context.rank}")
    fingerprint_file = checkpoints_dir / "key"
    if fingerprint_file.is_file() and fingerprint_file.read_text(encoding="utf-8") == fingerprint:
        log(f"{out}: resumes an earlier run")
        return checkpoints_dir
    if fingerprint_file.is_file():
        log(f"{out}: an earlier run had another recipe, other data or other folds; its checkpoints are deleted")
    delete_checkpoints(checkpoints_dir)
    checkpoints_dir.mkdir(parents=True)
    atomic_write_text(fingerprint_file, fingerprint)
    return checkpoints_dir


def data_facts(tiles: TileSet, recipe: Recipe, data: Place, competition: Competition) -> dict[str, Any]:
    """Return the entries of metrics.json on what the recipe was trained on, and what its figures estimate."""
    return {
        "data": _describe(data, competition),
        "material": _material(tiles, recipe),
        "estimate": ESTIMATES[recipe.data.split],
    }


def _material(tiles: TileSet, recipe: Recipe) -> dict[str, Any]:
    """Return the numbers of patients, images and tiles, and of the images that were left out by part."""
    counts = {"patients": len(set(tiles.patients)), "images": len(set(tiles.images)), "tiles": len(tiles)}
    if recipe.data.near_duplicates != "drop":
        return counts
    parts = list(tiles.dropped.values())
    return counts | {"dropped_near_duplicates": {part: parts.count(part) for part in (TRAIN, VAL)}}


def _describe(data: Place, competition: Competition) -> str:
    """Return the name of the data; for synthetic data the facts that it takes to draw them again."""
    marker = _marker(data)
    if marker is None:
        return competition.slug if is_tiled(data, competition) else Path(data).name
    facts = json.loads(marker)
    facts = facts["splits"]["train"] if "splits" in facts else facts
    return "synthetic, " + ", ".join(f"{name} {value}" for name, value in facts.items() if name in DESCRIBED)


def _marker(data: Place) -> str | None:
    """Return the text of the file that marks synthetic data, or None if there is none."""
    store = store_of(data)
    for name in (SYNTHETIC, MARKER):
        with suppress(OSError):
            return store.read_text(name)
    return None
