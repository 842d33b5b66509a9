"""Run trials: train a recipe with a trial's values on inner folds, and judge what they hold out.

A process reads the data once, and keeps the features of a frozen backbone for all trials that share them.
"""

import copy
import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from clotkit.competitions import Competition, load_competition
from clotkit.config import ModelConfig, Recipe, read_recipe, recipe_of
from clotkit.data.grouped import read_grouped
from clotkit.data.pictures import check_out_of_data
from clotkit.data.tiles import TileSet
from clotkit.errors import (
    ConfigError,
    SlideError,
    StoreError,
    UsageError,
    WeightsError,
    described,
    one_line,
)
from clotkit.evaluation.scores import EvaluationTarget, log_loss, target_of
from clotkit.members.networks import check_networks
from clotkit.progress import Log
from clotkit.reasons import TrialEnd
from clotkit.stores import Place
from clotkit.training import devices
from clotkit.training.cross_validation import TrainingRun
from clotkit.training.frozen import FeatureCache, changes_features
from clotkit.training.train import check_trainable, fingerprint_of
from clotkit.tuning.folds import OuterFold, outer_folds
from clotkit.tuning.search import Tables, Value, read_search
from clotkit.tuning.study import StudySettings, TuningStudy, number_of

THREADS = "TF_NUM_INTRAOP_THREADS"
_benches: dict["TuneSettings", "Workbench"] = {}  # at most one
# Errors of the data, the disk or the installation: they would end every trial, so none is settled by them.
NOT_OF_A_TRIAL = (OSError, SlideError, StoreError, UsageError, WeightsError)
_ONE_TRIAL = threading.Lock()  # in a process: Keras's seeds and settings are those of the process


@dataclass(frozen=True)
class TuneSettings:
    """The options of one `clotkit tune`; workers of a cluster get them as they are, so paths are absolute."""

    recipe: str  # name or path
    data: Place
    out: Path
    trials: int
    search: Path | None = None  # None: the one that ships
    outer: int | None = None  # outer folds, each with a study of its own; None: one part of the patients is held out
    inner: int = 3  # folds of the patients that are left, which judge the trials
    limit: int | None = None  # images of each class; None: all
    backbones: Path | None = None  # folder of ImageNet weights
    cache: Path = Path("build/cache")  # of shards, when `data` is a URL
    competition: str = ""  # name or path; empty: the default one
    jobs: int = 1  # processes on this machine


@dataclass(frozen=True)
class TrialRequest:
    """One trial that a process may run, of the study of an outer fold."""

    settings: TuneSettings
    study: int


@dataclass(frozen=True)
class TrialResult:
    """A settled trial, for the log."""

    number: int
    loss: float | None  # None: `reason` says why
    seconds: float
    values: dict[str, Value]
    epochs: int  # of the first fit
    note: str = ""  # the reason as a sentence
    reason: TrialEnd | None = None


class Workbench:
    """The data, the folds and the studies of one `clotkit tune` in one process."""

    def __init__(self, settings: TuneSettings, log: Log) -> None:
        """Read the recipe, the search and the data. Raises what these raise."""
        self.settings, self.log = settings, log
        self.tables, self._where = read_recipe(settings.recipe)
        self.recipe = recipe_of(self.tables, self._where)
        if self.recipe.training.strategy == "multi_worker":
            raise ConfigError(
                f"{self._where}: training.strategy is 'multi_worker'; a trial is trained by one process: it takes "
                '"auto" or "mirrored", and --jobs or --backend for several trials at a time'
            )
        self.search = read_search(settings.search)
        competition = load_competition(settings.competition)
        check_trainable(self.recipe, settings.data, competition, settings.backbones)
        self.search.check_models(self.recipe, partial(self._check_networks, competition))
        check_out_of_data(settings.out, settings.data, self.recipe.data)
        self.tiles: TileSet = read_grouped(self.recipe, settings.data, competition, settings.limit, log, settings.cache)
        self.target: EvaluationTarget = target_of(self.recipe, self.tiles.labels, self.tiles.classes, competition)
        self.folds: list[OuterFold] = outer_folds(self.tiles, self.recipe, settings.outer, settings.inner)
        settings.out.mkdir(parents=True, exist_ok=True)
        self.first = self.search.labels_of(self.recipe)  # of trial 0; None: the search lacks a value of the recipe
        self._features = FeatureCache(settings.out, self.material["data or split"])
        self.context = devices.create_context(self.recipe.training.strategy, log)

    @cached_property
    def studies(self) -> list[TuningStudy]:
        """The study of each outer fold."""
        search, recipe = self.search, self.recipe
        fingerprints = {
            "recipe": _sha256(json.dumps(self.tables, sort_keys=True)),
            "search": _sha256(search.text()),
            **self.material,
        }
        return [
            TuningStudy(
                StudySettings(
                    folder=self.settings.out,
                    name=f"outer-{number}",
                    search=search,
                    first=self.first,
                    fingerprints=fingerprints,
                    seed=recipe.training.seed % 2**31,
                    epochs=recipe.training.epochs,
                    prunes=not search.scales_loss,
                )
            )
            for number in range(len(self.folds))
        ]

    @cached_property
    def material(self) -> dict[str, str]:
        """Hashes of all that the predictions of a recipe depend on, and of what their tables name."""
        tiles, target = self.tiles, self.target
        folds = [part for fold in self.folds for part in fold.all_folds]
        names = [column.tolist() for column in (tiles.images, tiles.patients, tiles.centres)]
        # The weights of pictures are shares of their labels, which are among the data.
        scored_by = target.competition and [target.competition.slug, target.weights, target.clip, target.by_patient]
        return {
            "data or split": _sha256(json.dumps([fingerprint_of("", tiles, folds), names])),
            "classes or competition": _sha256(json.dumps([target.classes, target.positive, scored_by])),
        }

    def _check_networks(self, competition: Competition, models: tuple[ModelConfig, ...]) -> None:
        recipe = self.recipe
        names = competition.classes.names if recipe.data.source == "slides" else recipe.data.classes
        classes = len(names) or 2  # those of folders are not read yet
        check_networks(models, recipe.tiling.tile_px, classes, recipe.inference.pooling, self.settings.backbones)

    def recipe_with(self, values: dict[str, Value]) -> Recipe:
        """Return the recipe with the values of a trial. Raises ConfigError if they do not go together."""
        return recipe_of(self.tables_with(values), self._where)

    def tables_with(self, values: dict[str, Value]) -> Tables:
        """Return the recipe's tables with the values of a trial; as they are for the recipe's own values."""
        return copy.deepcopy(self.tables) if values == self.first else self.search.apply(self.tables, values)

    def values_of(self, values: dict[str, Value]) -> dict[str, Any]:
        """Return the recipe's values for those of a trial: its own are exact, others are rounded."""
        if values == self.first:
            return self.search.values_of(self.recipe)
        return {name: self.search.entries[name].value(label) for name, label in values.items()}

    def run(self, recipe: Recipe, checkpoints_dir: Path | None, watch: Any = None) -> TrainingRun:
        """Return the training of a recipe on these tiles."""
        return TrainingRun(
            recipe=recipe,
            tiles=self.tiles,
            target=self.target,
            backbones=self.settings.backbones,
            checkpoints_dir=checkpoints_dir,
            log=lambda _: None,
            context=self.context,
            features=self._features if self._shares_features else FeatureCache(),
            watch=watch,
        )

    @property
    def _shares_features(self) -> bool:
        """Tell if all trials have the same backbone and augmentation."""
        return not any(changes_features(name) for name in self.search.entries)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def workbench(settings: TuneSettings, log: Log = lambda _: None) -> Workbench:
    """Return this process's workbench for these settings; close_workbench ends it."""
    if settings not in _benches:
        _benches.clear()
        _benches[settings] = Workbench(settings, log)
    return _benches[settings]


def close_workbench() -> None:
    """Let go of the data that `workbench` holds."""
    _benches.clear()


def run_trial(request: TrialRequest) -> TrialResult | None:
    """Run the next trial of a study in this process; None if none is left that does not run elsewhere."""
    if request.settings.jobs > 1:
        os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // request.settings.jobs)))
    with _ONE_TRIAL:
        bench = workbench(request.settings)
        study, fold = bench.studies[request.study], bench.folds[request.study]
        with study.claim(request.settings.trials) as trial:
            return None if trial is None else _run(bench, study, fold, trial)


@dataclass
class _Watch:
    """Reports the epochs of a trial's first fit, and ends it when it is pruned."""

    trial: optuna.Trial
    epochs: int = 0

    def __call__(self, epoch: int, logs: dict[str, float]) -> None:
        """Report the validation loss. Raises TrialPruned."""
        loss = logs["val_loss"] if "val_loss" in logs else logs["held_out_loss"]
        self.epochs = epoch
        if not np.isfinite(loss):
            raise _Ended(TrialEnd.DIVERGED, f"in epoch {epoch}")
        self.trial.report(loss, epoch)
        if self.trial.should_prune():
            raise _Ended(TrialEnd.PRUNED, f"after epoch {epoch}")


class _Ended(optuna.TrialPruned):  # type: ignore[misc]  # optuna exports it without a type
    """A trial that ends without a loss."""

    def __init__(self, reason: TrialEnd, note: str) -> None:
        super().__init__(note)
        self.reason = reason


def _run(bench: Workbench, study: TuningStudy, fold: OuterFold, trial: optuna.Trial) -> TrialResult:
    """Train and judge one trial, and settle it."""
    started, watch = time.monotonic(), _Watch(trial)
    loss: float | None = None
    losses: list[float] = []
    reason: TrialEnd | None = None
    note = ""
    try:
        loss, losses = _judged(bench, fold, trial, watch)
    except _Ended as ended:
        reason, note = ended.reason, str(ended)
    seconds = time.monotonic() - started
    facts = {"losses": losses, "seconds": round(seconds, 2), "epochs": watch.epochs, "reason": reason, "note": note}
    study.tell(trial, loss, facts)
    return TrialResult(number_of(trial), loss, seconds, dict(trial.params), watch.epochs, note, reason)


def _judged(bench: Workbench, fold: OuterFold, trial: optuna.Trial, watch: _Watch) -> tuple[float, list[float]]:
    """Train a trial on the inner folds, and return its loss and that of each fold.

    An error of the training ends this trial alone: raised, it would come again with the same values, for good.

    Raises _Ended for a trial without a loss, and errors that would end every trial.
    """
    try:
        scored = bench.run(bench.recipe_with(trial.params), None, watch).cross_validate(fold.inner).fit.scored
        loss, losses = log_loss(scored, bench.target), _losses(scored, bench.target)
    except (_Ended, *NOT_OF_A_TRIAL):
        raise
    except ConfigError as error:
        raise _Ended(TrialEnd.UNFIT, one_line(error)) from error
    except Exception as error:  # TensorFlow, Keras and NumPy raise many types, as for too little memory
        raise _Ended(TrialEnd.FAILED, described(error)) from error
    if not np.isfinite(loss):
        raise _Ended(TrialEnd.DIVERGED, "the loss of the inner folds is not finite")
    return loss, losses


def _losses(scored: pd.DataFrame, target: EvaluationTarget) -> list[float]:
    """Return the loss of each inner fold."""
    return [round(log_loss(rows, target), 6) for _, rows in scored.groupby("fold", sort=True)]
