"""Run trials: train a recipe with a trial's values on inner folds, and judge what they hold out.

A process reads the data once, and keeps the features of a frozen backbone for all trials that share them.
"""

import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from clotkit.competitions import load_competition
from clotkit.config import Recipe, read_recipe, recipe_of
from clotkit.data.grouped import read_grouped
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError
from clotkit.evaluation.scores import EvaluationTarget, log_loss, target_of
from clotkit.progress import Log
from clotkit.stores import Place
from clotkit.training import devices
from clotkit.training.frozen import FeatureCache, changes_features
from clotkit.training.train import TrainingRun, check_trainable, fingerprint_of
from clotkit.tuning.folds import OuterFold, outer_folds
from clotkit.tuning.search import Tables, Value, read_search
from clotkit.tuning.study import StudySettings, TuningStudy, number_of

THREADS = "TF_NUM_INTRAOP_THREADS"
_benches: dict["TuneSettings", "Workbench"] = {}  # at most one
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
    loss: float | None  # None: pruned
    seconds: float
    values: dict[str, Value]
    epochs: int  # of the first fit
    note: str = ""


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
        self.tiles: TileSet = read_grouped(self.recipe, settings.data, competition, settings.limit, log, settings.cache)
        self.target: EvaluationTarget = target_of(self.recipe, self.tiles.labels, self.tiles.classes, competition)
        self.folds: list[OuterFold] = outer_folds(self.tiles, self.recipe, settings.outer, settings.inner)
        settings.out.mkdir(parents=True, exist_ok=True)
        self._features = FeatureCache(settings.out)
        self.context = devices.create_context(self.recipe.training.strategy, log)

    @cached_property
    def studies(self) -> list[TuningStudy]:
        """The study of each outer fold."""
        search, recipe = self.search, self.recipe
        fingerprints = {
            "recipe": _sha256(json.dumps(self.tables, sort_keys=True)),
            "search": _sha256(search.text()),
            "data or split": fingerprint_of("", self.tiles, [part for fold in self.folds for part in fold.all_folds]),
        }
        return [
            TuningStudy(
                StudySettings(
                    folder=self.settings.out,
                    name=f"outer-{number}",
                    search=search,
                    first=search.labels_of(recipe),
                    fingerprints=fingerprints,
                    seed=recipe.training.seed % 2**31,
                    epochs=recipe.training.epochs,
                    prunes=not search.scales_loss,
                )
            )
            for number in range(len(self.folds))
        ]

    def recipe_with(self, values: dict[str, Value]) -> Recipe:
        """Return the recipe with the values of a trial. Raises ConfigError if they do not go together."""
        return recipe_of(self.tables_with(values), self._where)

    def tables_with(self, values: dict[str, Value]) -> Tables:
        """Return the recipe's tables with the values of a trial."""
        return self.search.apply(self.tables, values)

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
            raise optuna.TrialPruned("diverged")
        self.trial.report(loss, epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"after epoch {epoch}")


def _run(bench: Workbench, study: TuningStudy, fold: OuterFold, trial: optuna.Trial) -> TrialResult:
    """Train and judge one trial, and settle it."""
    started, watch, note = time.monotonic(), _Watch(trial), ""
    loss: float | None = None
    losses: list[float] = []
    try:
        done = bench.run(_recipe_of(bench, trial), None, watch).cross_validate(fold.inner)
        losses = _losses(done.fitted.scored, bench.target)
        loss = log_loss(done.fitted.scored, bench.target)
    except optuna.TrialPruned as pruned:
        note = str(pruned)
    seconds = time.monotonic() - started
    if loss is not None and not np.isfinite(loss):
        loss, note = None, "diverged"
    study.tell(trial, loss, {"losses": losses, "seconds": round(seconds, 2), "epochs": watch.epochs, "note": note})
    return TrialResult(number_of(trial), loss, seconds, dict(trial.params), watch.epochs, note)


def _recipe_of(bench: Workbench, trial: optuna.Trial) -> Recipe:
    """Return the recipe of a trial. Raises TrialPruned for values that do not go together."""
    try:
        return bench.recipe_with(trial.params)
    except ConfigError as error:
        raise optuna.TrialPruned(str(error)) from error


def _losses(scored: pd.DataFrame, target: EvaluationTarget) -> list[float]:
    """Return the loss of each inner fold."""
    return [round(log_loss(rows, target), 6) for _, rows in scored.groupby("fold", sort=True)]
