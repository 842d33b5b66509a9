"""Train a recipe's networks on every fold, and calibrate and score them on what the folds hold out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.config import ModelConfig, Recipe
from clotkit.data.folds import Fold
from clotkit.data.tiles import TileSet
from clotkit.evaluation.scores import (
    EvaluationTarget,
    HeldOutFit,
    calibrated_on,
    cross_calibrated,
    decision_on,
    fit_by_fold,
    predicted_images,
    rows_to_score,
)
from clotkit.members.folder import SPLIT_DROPPED, SPLIT_PATIENT, SPLIT_PIXELS, SPLIT_TRAIN, SPLIT_VALIDATION
from clotkit.members.networks import Network, build_network, expanded
from clotkit.members.pooling import pooling_of
from clotkit.members.predict import mean_by_share, predictor
from clotkit.progress import Log
from clotkit.training import devices
from clotkit.training.epochs import EpochCallback, epoch_progress
from clotkit.training.fit import fit
from clotkit.training.frozen import FeatureCache, FrozenFeatures, is_frozen, predict_features
from clotkit.training.member_folder import TrainedMember

Mask = npt.NDArray[np.bool_]

FINAL = "all"  # name of the fit on all patients; a fold's fit is named by its number


@dataclass(frozen=True)
class CrossValidation:
    """The networks of every fold, and their predictions of the tiles that they did not see."""

    networks: list[list[Any]]  # of each fold; empty unless they ship
    histories: list[pd.DataFrame]  # of each fold
    out_of_fold: pd.DataFrame  # one row per image: raw predictions, and its fold
    fit: HeldOutFit  # to these predictions or, of a single fold, to those of its validation part


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
        return TrainedMember(networks, history, done.out_of_fold, done.fit, split)

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
        several = len(folds) > 1
        held_out_fit = fit_by_fold(units, len(folds), self.target) if several else self._fit(units, networks, folds[0])
        if held_out_fit.calibration.is_identity:
            self.log("the rows that calibrate lack a class: the member's probabilities are not calibrated")
        return CrossValidation(networks, histories, out_of_fold, held_out_fit)

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
    table = pd.DataFrame({"image": tiles.images, "fold": "", SPLIT_PATIENT: tiles.own_patients})
    for number, fold in enumerate(folds):
        if len(folds) == 1:
            table.loc[fold.train, "fold"] = SPLIT_TRAIN
            table.loc[fold.validation, "fold"] = SPLIT_VALIDATION
        table.loc[fold.held_out, "fold"] = str(number)
    dropped = pd.DataFrame({"image": list(tiles.dropped), "fold": SPLIT_DROPPED, SPLIT_PATIENT: ""})
    table = pd.concat([table.drop_duplicates(), dropped], ignore_index=True)
    return table.assign(**{SPLIT_PIXELS: table["image"].map(tiles.digests()).fillna("")}) if with_pixels else table
