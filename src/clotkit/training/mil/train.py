"""Train a head over features: on folds, calibrated, written as a member that names its encoder."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import Recipe, load_recipe, recipe_path
from clotkit.data.folds import Fold, check_folds, make_folds
from clotkit.data.tiles import TileSet
from clotkit.evaluation.scores import EvaluationTarget, target_of
from clotkit.files import atomic_write
from clotkit.locks import exclusive_folder
from clotkit.members.encoders.heads import Head, build_heads
from clotkit.members.loading import start_keras
from clotkit.members.weights import check_weights
from clotkit.progress import Log
from clotkit.training.checkpoints import delete_checkpoints
from clotkit.training.cross_validation import FoldTraining, Mask
from clotkit.training.devices import DistributedContext
from clotkit.training.epochs import epoch_progress
from clotkit.training.member_folder import write_member
from clotkit.training.mil.bags import features_of
from clotkit.training.mil.fit import Compiled, fit_head, predict_slide
from clotkit.training.mil.sources import read_features
from clotkit.training.train import TrainSettings, data_facts, fingerprint_of, open_checkpoints, summary, train


def train_any(settings: TrainSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Train a recipe, of networks that see tiles or of a head over features; see training.train.train."""
    if load_recipe(settings.recipe).encoder is None:
        return train(settings, competition, log)
    return train_head(settings, competition, log)


def train_head(settings: TrainSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Train a head over features, write the member folder and return its metrics.

    As training.train.train does: every patient is on one side of each split, and the same command resumes a run that
    was killed.

    Raises:
        ConfigError, SplitError, StoreError, UsageError: the input is wrong; no file is written.
        SlideUnreadable: A file of features is damaged.
    """
    started = time.monotonic()
    recipe, source = load_recipe(settings.recipe), recipe_path(settings.recipe).read_text(encoding="utf-8")
    check_folds(settings.folds, recipe.data)
    slides = read_features(recipe, settings.data, settings.split, competition, settings.limit, settings.cache, log)
    target = target_of(recipe, slides.labels, slides.classes, competition)
    folds = make_folds(slides, recipe.data, recipe.training, settings.folds)
    start_keras()
    context = DistributedContext()
    with exclusive_folder(settings.out, "training"):
        checkpoints_dir = open_checkpoints(settings.out, fingerprint_of(source, slides, folds), context, log)
        trained = HeadTraining(recipe, slides, target, checkpoints_dir, log).train_folds(folds)
        metrics = trained.metrics(recipe, target, data_facts(slides, recipe, settings.data, competition))
        metrics = metrics | {"encoder": encoder_facts(recipe, slides), "familiarity": None}
        metrics["material"]["tiles"] = features_of(slides).tiles
        write_member(settings.out, recipe, source, trained, metrics, write_heads)
        delete_checkpoints(checkpoints_dir)
    log(f"{settings.out}: {summary(metrics)}; {time.monotonic() - started:.0f} s")
    return metrics


@dataclass(frozen=True)
class HeadTraining(FoldTraining):
    """A head over features on one set of slides."""

    recipe: Recipe
    tiles: TileSet  # one row a slide, with SlideFeatures as its tiles
    target: EvaluationTarget
    checkpoints_dir: Path | None  # holds a folder for each fit; None: a fit that is killed begins again
    log: Log
    compiled: Compiled = field(default_factory=dict)  # models that fits share
    items: ClassVar[str] = "slides"

    def train_networks(self, name: str, fold: Fold) -> tuple[list[Head], pd.DataFrame]:
        """See FoldTraining: one head for each of the recipe's copies."""
        heads, histories = [], []
        recipe, (config,) = self.recipe, self.recipe.model
        for number in range(config.copies):
            seed = self.fit_seed(name, number)
            with epoch_progress(f"{config.name}, fold {name}", recipe.training.epochs, self.log) as shown:
                head, history = fit_head(
                    recipe,
                    self.tiles.where(fold.train),
                    self.tiles.where(fold.validation),
                    seed,
                    self.checkpoints_dir and self.checkpoints_dir / f"{name}-{number}",
                    shown,
                    self.compiled,
                )
            heads.append(head)
            histories.append(history.assign(network=number))
        return heads, pd.concat(histories, ignore_index=True)

    def predict(self, networks: Sequence[Sequence[Head]], mask: Mask) -> pd.DataFrame:
        """See FoldTraining: every tile of a slide counts."""
        slides = self.tiles.where(mask)
        heads = [head for fit in networks for head in fit]
        p = [predict_slide(heads, self.recipe, file) for file in features_of(slides).files]
        facts = {"image": slides.images, "patient": slides.patients, "centre": slides.centres, "label": slides.labels}
        values = np.array(p).reshape(len(slides), len(slides.classes))
        return pd.DataFrame(facts).assign(**dict(zip(slides.classes, values.T, strict=True)))


def encoder_facts(recipe: Recipe, slides: TileSet) -> dict[str, Any]:
    """Return what metrics.json says of the encoder: name, sha256 if the features state it, width."""
    assert recipe.encoder is not None
    features = features_of(slides)
    stated = next((file.encoder_sha256 for file in features.files if file.encoder_sha256), recipe.encoder.sha256)
    return {"name": recipe.encoder.name, "sha256": stated, "width": features.width}


def write_heads(path: Path, recipe: Recipe, folds: Sequence[Sequence[Head]], classes: int) -> None:
    """Save the weights of all heads. Raises WeightsError if one is not finite: the training has diverged."""
    trained = [head for fold in folds for head in fold]
    width = trained[0].bag.input["features"].shape[-1]
    heads, model = build_heads(recipe, width, classes, len(trained))
    for target, head in zip(heads, trained, strict=True):
        target.model.set_weights(head.model.get_weights())
    with atomic_write(path) as temporary:
        model.save_weights(temporary, overwrite=True)
        check_weights(temporary)
