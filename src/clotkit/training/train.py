"""Train a member from a recipe: read tiles, fit networks on folds, calibrate, write the folder."""

import hashlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import ModelConfig, Recipe, load_recipe, recipe_path
from clotkit.data.familiarity import fit_familiarity
from clotkit.data.folds import Fold, check_folds, make_folds
from clotkit.data.grouped import read_grouped
from clotkit.data.pictures import check_out_of_data
from clotkit.data.sources import CACHE, is_tiled
from clotkit.data.tiles import TRAIN, VAL, TileSet
from clotkit.errors import ConfigError
from clotkit.evaluation.scores import (
    EvaluationTarget,
    HeldOutFit,
    calibrated_on,
    competition_figures,
    constant,
    cross_calibrated,
    decision_on,
    fit_by_fold,
    log_loss,
    metric_line,
    predicted_images,
    rows_to_score,
    score,
    target_of,
)
from clotkit.files import atomic_write_text
from clotkit.locks import exclusive_folder
from clotkit.members.folder import SPLIT_DROPPED, SPLIT_PATIENT, SPLIT_PIXELS, SPLIT_TRAIN, SPLIT_VALIDATION
from clotkit.members.networks import Network, build_network, check_networks, expanded
from clotkit.members.pooling import pooling_of
from clotkit.members.predict import mean_by_share, predictor
from clotkit.metric import METRICS
from clotkit.progress import Log
from clotkit.splits import SYNTHETIC
from clotkit.stores import Place, store_of
from clotkit.synthetic.contours import MARKER
from clotkit.training import devices
from clotkit.training.checkpoints import delete_checkpoints
from clotkit.training.epochs import EpochCallback
from clotkit.training.fit import fit
from clotkit.training.frozen import FeatureCache, FrozenFeatures, is_frozen, predict_features
from clotkit.training.member_folder import TrainedMember, write_member

Mask = npt.NDArray[np.bool_]

DESCRIBED = ("seed", "size", "separation", "pictures")  # facts of a synthetic split's marker that metrics.json repeats
LOG_EVERY_S = 20.0  # least time between two lines of one fit
CHECKPOINTS_DIR = ".training"  # folder of checkpoints in the member folder, until the member is written
FINAL = "all"  # name of the fit on all patients; a fold's fit is named by its number
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
            metrics = member_metrics(trained, recipe, tiles, target, settings.data, competition, len(folds))
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


@dataclass(frozen=True)
class CrossValidation:
    """The networks of every fold, and their predictions of the tiles that they did not see."""

    networks: list[list[Any]]  # of each fold; empty unless they ship
    histories: list[pd.DataFrame]  # of each fold
    out_of_fold: pd.DataFrame  # one row per image: raw predictions, and its fold
    fitted: HeldOutFit  # to these predictions


class FoldTraining(ABC):
    """One recipe on one set of items: trained on every fold, and calibrated on what the folds hold out.

    Items that no fold has take no part.
    """

    recipe: Recipe
    tiles: TileSet  # one row an item
    target: EvaluationTarget
    log: Log
    items: ClassVar[str] = "tiles"

    @abstractmethod
    def train_networks(self, name: str, fold: Fold) -> tuple[list[Any], pd.DataFrame]:
        """Train the recipe's networks on a fold's items, and return them with their histories.

        `name` is the fold's number, or FINAL.
        """

    @abstractmethod
    def predict(self, networks: Sequence[Sequence[Any]], mask: Mask) -> pd.DataFrame:
        """Return the mean predictions of one or more fits for the items of a mask, a row per image."""

    def fit_seed(self, name: str, number: int) -> int:
        """Return the seed of a network on the fold `name`; `number` counts the recipe's networks."""
        return self.recipe.training.seed + 1000 * number + (0 if name == FINAL else int(name) + 1)

    def train_folds(self, folds: Sequence[Fold]) -> TrainedMember:
        """Train on every fold, and on all patients if such a network is to ship; calibrate what ships."""
        done = self.cross_validate(folds)
        networks, histories = done.networks, done.histories
        if not self.fold_networks_ship(folds):
            trained, history = self.train_networks(FINAL, self.final_fold(folds))
            networks, histories = [trained], [*histories, history.assign(fold=FINAL)]
        history = pd.concat(histories, ignore_index=True)
        split = _split_table(self.tiles, folds, with_pixels=self.recipe.data.source != "slides")
        return TrainedMember(networks, history, done.out_of_fold, split=split, **vars(done.fitted))

    def cross_validate(self, folds: Sequence[Fold]) -> CrossValidation:
        """Train on every fold, predict what it holds out, and calibrate these predictions on other folds'."""
        networks: list[list[Any]] = []
        histories, held_out = [], []
        for number, fold in enumerate(folds):
            trained, history = self.train_networks(str(number), fold)
            networks += [trained] if self.fold_networks_ship(folds) else []
            histories.append(history.assign(fold=number))
            held_out.append(self.predict([trained], fold.held_out).assign(fold=number))
            self.log(_fold_summary(f"fold {number + 1} of {len(folds)}", fold, history, self.items))
        out_of_fold = pd.concat(held_out, ignore_index=True)
        units = rows_to_score(out_of_fold, self.target)
        fitted = fit_by_fold(units, len(folds), self.target) if len(folds) > 1 else self._fit(units, networks, folds[0])
        if fitted.calibration.is_identity:
            self.log("the rows that calibrate lack a class: the member's probabilities are not calibrated")
        return CrossValidation(networks, histories, out_of_fold, fitted)

    def fold_networks_ship(self, folds: Sequence[Fold]) -> bool:
        """Tell if the networks of the folds ship; else one more fit does, and these estimate and calibrate."""
        return len(folds) == 1 or self.recipe.training.final == "folds"

    def final_fold(self, folds: Sequence[Fold]) -> Fold:
        """Return the fold that trains on the patients of all folds, but for the validation part of the first."""
        first = folds[0]
        return Fold(first.train | first.held_out, first.validation, np.zeros_like(first.train))

    def _fit(self, units: pd.DataFrame, networks: Sequence[Sequence[Any]], fold: Fold) -> HeldOutFit:
        """Return what is fitted to the validation part of the only fold, for the rows that it holds out."""
        target = self.target
        validation = rows_to_score(self.predict(networks, fold.validation).assign(fold=0), target)
        calibration = calibrated_on(validation, target)  # identity if it lacks a class
        decision = decision_on(validation, {0: calibration}, target)
        scored = cross_calibrated(units, {0: calibration}, target)
        answers = None if decision is None else decision.apply(scored[list(target.classes)])
        return HeldOutFit(scored, calibration, [calibration], decision, answers)


@dataclass(frozen=True)
class TrainingRun(FoldTraining):
    """A recipe whose networks see tiles.

    The features of a frozen backbone are computed once for all folds.
    """

    recipe: Recipe
    tiles: TileSet
    target: EvaluationTarget
    backbones: Path | None
    checkpoints_dir: Path | None  # holds a folder for each fit; None: a fit that is killed begins again
    log: Log
    context: devices.DistributedContext
    features: FeatureCache = field(default_factory=FeatureCache)  # of these tiles
    # Called with the row of the history after every epoch of the first network of the first fold. That fit then has a
    # held_out_loss if it has no validation part.
    watch: EpochCallback | None = None

    def predict(self, networks: Sequence[Sequence[Network]], mask: Mask) -> pd.DataFrame:
        """See FoldTraining."""
        rows = np.mean([self._tile_rows(fit_networks, mask) for fit_networks in networks], axis=0)
        return predicted_images(rows, self.tiles.where(mask), pooling_of(self.recipe))  # rows: [n, C] or [n, C + 1]

    def follow_chief(self, folds: Sequence[Fold]) -> None:
        """Take part in every fit of `train_folds`, in the same order, and in nothing else."""
        for number, fold in enumerate(folds):
            self.train_networks(str(number), fold)
        if not self.fold_networks_ship(folds):
            self.train_networks(FINAL, self.final_fold(folds))

    def train_networks(self, name: str, fold: Fold) -> tuple[list[Network], pd.DataFrame]:
        """See FoldTraining."""
        networks, histories = [], []
        for number, config in enumerate(expanded(self.recipe.model)):
            seed = self.fit_seed(name, number)
            base, features = self._frozen_base(config)
            watch = self.watch if (name, number) == ("0", 0) else None
            decides = watch is None or bool(fold.validation.any())
            train, validation = fold.train, fold.validation if decides else fold.held_out
            with devices.training_scope(context=self.context):
                network = self._build(config, seed, base)
                frozen_features = None if features is None else (features.where(train), features.where(validation))
                with epoch_progress(f"{config.name}, fold {name}", self.recipe.training.epochs, self.log) as shown:
                    history = fit(
                        network,
                        train=self.tiles.where(train),
                        validation=self.tiles.where(validation),
                        recipe=self.recipe,
                        seed=seed,
                        checkpoints_dir=self.checkpoints_dir and self.checkpoints_dir / f"{name}-{number}",
                        frozen_features=frozen_features,
                        decides=decides,
                        on_epoch=_both(shown, watch),
                        context=self.context,
                    )
            networks.append(self._without_strategy(network, config, seed, base))
            histories.append(history.assign(network=number))
        return networks, pd.concat(histories, ignore_index=True)

    def _build(self, config: ModelConfig, seed: int, base: Network | None) -> Network:
        import keras

        keras.utils.set_random_seed(seed)
        recipe, classes = self.recipe, len(self.tiles.classes)
        return build_network(config, recipe.tiling.tile_px, classes, recipe.inference.pooling, self.backbones, base)

    def _without_strategy(self, network: Network, config: ModelConfig, seed: int, base: Network | None) -> Network:
        """Return the network, rebuilt outside a strategy's scope, so that it predicts on its own."""
        if self.context.strategy is None:
            return network
        rebuilt = self._build(replace(config, weights="none"), seed, base)
        rebuilt.model.set_weights(network.model.get_weights())
        return rebuilt

    def _frozen_base(self, config: ModelConfig) -> tuple[Network | None, FrozenFeatures | None]:
        """Return a network whose frozen backbone all folds share, and its features; or None twice."""
        if not is_frozen(config, self.recipe):
            return None, None
        recipe, seed = self.recipe, self.recipe.training.seed
        return self.features.get(config, recipe, self.tiles.tiles, lambda: self._build(config, seed, None), self.log)

    def _tile_rows(self, networks: Sequence[Network], mask: Mask) -> npt.NDArray[np.float64]:
        """Return the mean of the networks by share for a mask's tiles, by their features if there are any."""
        recipe, batch_tiles = self.recipe, self.recipe.training.batch_tiles
        rows = []
        for network, config in zip(networks, expanded(recipe.model), strict=True):
            features = self._frozen_base(config)[1]
            if features is None:
                rows.append(predictor(network.model, batch_tiles, recipe.inference.tta)(self.tiles.tiles[mask]))
            else:
                rows.append(predict_features(network, features.where(mask), batch_tiles))
        return mean_by_share(rows, recipe)


def _both(one: EpochCallback, other: EpochCallback | None) -> EpochCallback:
    """Return a callback that calls one, and the other if there is one."""
    if other is None:
        return one

    def call(epoch: int, logs: dict[str, float]) -> None:
        one(epoch, logs)
        other(epoch, logs)

    return call


@contextmanager
def epoch_progress(title: str, total: int, log: Log) -> Iterator[EpochCallback]:
    """Show a tqdm bar of epochs on a terminal, and elsewhere a line every LOG_EVERY_S seconds at most."""
    from tqdm import tqdm

    last = time.monotonic()
    with tqdm(total=total, desc=title, unit="epoch", disable=not sys.stderr.isatty()) as bar:

        def on_epoch(epoch: int, logs: dict[str, float]) -> None:
            nonlocal last
            losses = ", ".join(f"{name} {logs[name]:.3f}" for name in ("loss", "val_loss") if name in logs)
            bar.set_postfix_str(losses, refresh=False)
            bar.update(epoch - bar.n)
            if bar.disable and time.monotonic() - last > LOG_EVERY_S:
                last = time.monotonic()
                log(f"{title}: epoch {epoch} of {total}, {losses}")

        yield on_epoch


def _fold_summary(name: str, fold: Fold, history: pd.DataFrame, items: str) -> str:
    last = history.iloc[-1]
    return (
        f"{name}: {int(fold.train.sum())} training {items}, {int(fold.held_out.sum())} held out, "
        f"{int(last['epoch'])} epochs, last loss {last['loss']:.3f}"
    )


def _split_table(tiles: TileSet, folds: Sequence[Fold], with_pixels: bool) -> pd.DataFrame:
    """Return one row per image with its fold: the number of the one that held it out.

    With a single fold, the rows of the other images say SPLIT_TRAIN, SPLIT_VALIDATION or SPLIT_DROPPED. The
    digests of pixels tell pictures whose names have changed; slides are too large for that.
    """
    table = pd.DataFrame({"image": tiles.images, "fold": "", SPLIT_PATIENT: tiles.patients})
    for number, fold in enumerate(folds):
        if len(folds) == 1:
            table.loc[fold.train, "fold"] = SPLIT_TRAIN
            table.loc[fold.validation, "fold"] = SPLIT_VALIDATION
        table.loc[fold.held_out, "fold"] = str(number)
    dropped = pd.DataFrame({"image": list(tiles.dropped), "fold": SPLIT_DROPPED, SPLIT_PATIENT: ""})
    table = pd.concat([table.drop_duplicates(), dropped], ignore_index=True)
    return table.assign(**{SPLIT_PIXELS: table["image"].map(tiles.digests()).fillna("")}) if with_pixels else table


def member_metrics(
    trained: TrainedMember,
    recipe: Recipe,
    tiles: TileSet,
    target: EvaluationTarget,
    data: Place,
    competition: Competition,
    folds: int,
) -> dict[str, Any]:
    """Return the contents of metrics.json."""
    raw = rows_to_score(trained.out_of_fold, target)
    return {
        "classes": list(tiles.classes),
        "positive": target.positive,
        "competition": competition.slug if recipe.data.source == "slides" else None,
        "data": _describe(data, competition),
        "recipe": recipe.name,
        "seed": recipe.training.seed,
        "folds": folds,
        "networks_of_folds": len(trained.networks),
        "material": _material(tiles, recipe),
        "unit": "patient" if target.by_patient else "image",
        "estimate": ESTIMATES[recipe.data.split],
        "class_weights": list(target.weights),
        "clip": target.clip,
        "constant": round(constant(target), 6),
        "calibrated": not any(one.is_identity for one in (trained.calibration, *trained.fold_calibrations)),
        "weighted_log_loss_uncalibrated": round(log_loss(raw, target), 6),
        **score(trained.scored, target),
        "competition_metric": competition_figures(trained.scored, trained.answers, target),
        **_metrics_per_slide(trained, target),
    }


def _material(tiles: TileSet, recipe: Recipe) -> dict[str, Any]:
    """Return the numbers of patients, images and tiles, and of the images that were left out by part."""
    counts = {"patients": len(set(tiles.patients)), "images": len(set(tiles.images)), "tiles": len(tiles)}
    if recipe.data.near_duplicates != "drop":
        return counts
    parts = list(tiles.dropped.values())
    return counts | {"dropped_near_duplicates": {part: parts.count(part) for part in (TRAIN, VAL)}}


def _metrics_per_slide(trained: TrainedMember, target: EvaluationTarget) -> dict[str, Any]:
    """Return the figures by slide for a member that is scored by patient, and nothing for others."""
    if not target.by_patient:
        return {}
    by_slide = replace(target, by_patient=False)
    calibrations = dict(enumerate(trained.fold_calibrations))
    return {"per_slide": score(cross_calibrated(trained.out_of_fold, calibrations, by_slide), by_slide)}


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
