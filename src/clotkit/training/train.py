"""Training a member: labelled tiles, folds, networks for each, the calibration, and what ships."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import ModelConfig, Recipe, load_recipe, recipe_path
from clotkit.data.folds import Fold, make_folds
from clotkit.data.grouped import read_grouped
from clotkit.data.sources import CACHE, is_tiled
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError
from clotkit.evaluation.scores import (
    Aim,
    aim_of,
    calibrated_on,
    constant,
    cross_calibrated,
    log_loss,
    predicted_images,
    score,
    units_of,
)
from clotkit.files import atomic_write_text
from clotkit.members.folder import SPLIT_TRAIN, SPLIT_VALIDATION
from clotkit.members.networks import Network, build_network, expanded
from clotkit.members.predict import predict_committee
from clotkit.progress import Log
from clotkit.shards.reading import ShardTiles
from clotkit.splits import SYNTHETIC
from clotkit.stores import Place, store_of
from clotkit.synthetic.contours import MARKER
from clotkit.training import devices
from clotkit.training.fit import Features, Told, features_of, fit, forget, is_frozen
from clotkit.training.member_folder import Trained, write_member

DESCRIBED = ("seed", "size", "separation", "pictures")  # of what a synthetic split's marker says
LINE_S = 20.0
STATE = ".training"  # in the member's folder: what a killed run goes on from
ESTIMATES = {  # what the figures are of, by the split's rule
    "folds": "out of fold, by patient",
    "centres": "out of fold, by centre",
    "holdout": "patients held out",
    "given": "the test part",
}


@dataclass(frozen=True)
class TrainSettings:
    """What `clotkit train` is asked for; `folds` None takes the recipe's, `limit` None takes all images."""

    recipe: str
    data: Place
    out: Path
    folds: int | None = None
    limit: int | None = None
    backbones: Path | None = None
    cache: Path = CACHE  # of shards that `data`, a URL, names
    wait_s: float = devices.WAIT_S  # for the other workers, where there are several


def train(settings: TrainSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Train a recipe on its data; write the member folder `out` and return its metrics.

    Patients are on one side of every split; the figures are of those that no network had seen, calibrated on others.
    A run that was killed goes on where it stood when the same command is given again. Where training.strategy is
    "multi_worker" every worker calls this alike; the chief alone writes the member, and the others return {}.
    Raises ConfigError, SplitError, StoreError or UsageError, before a file is written, for wrong input; ClusterError
    where another worker is gone, or did not come.
    """
    started = time.monotonic()
    recipe, source = load_recipe(settings.recipe), recipe_path(settings.recipe).read_text(encoding="utf-8")
    _check_feed(recipe, settings.data, competition)
    if recipe.training.strategy == "multi_worker":
        devices.read_cluster(os.environ.get(devices.CLUSTER))  # what is wrong with it is told before data are read
    tiles = read_grouped(recipe, settings.data, competition, settings.limit, log, settings.cache)
    aim = aim_of(recipe, tiles.labels, tiles.classes, competition)
    folds = make_folds(tiles, recipe.data, recipe.training, settings.folds)
    team = devices.gather_team(recipe.training.strategy, log, settings.wait_s)
    key = _key(source, tiles, folds)
    with team.together():
        _check_alike(team, key)
        state = _state(settings.out, key, team, log)
        run = _Run(recipe, tiles, aim, settings.backbones, state, log if team.is_chief else lambda _: None, team)
        if team.is_chief:
            trained = run.on_folds(folds)
            metrics = _metrics(trained, recipe, tiles, aim, settings.data, competition, len(folds))
            write_member(settings.out, recipe, source, trained, metrics)
        else:
            run.with_the_chief(folds)
        team.gathered([0])  # what is needed to go on stays until the member is there
    forget(state)
    if not team.is_chief:
        with suppress(OSError):  # the chief's, with the member in it
            settings.out.rmdir()
        return {}
    log(f"{settings.out}: {summary(metrics)}; {time.monotonic() - started:.0f} s")
    return metrics


def _check_feed(recipe: Recipe, data: Place, competition: Competition) -> None:
    if recipe.training.feed == "shards" and not is_tiled(data, competition):
        raise ConfigError(
            f'{data}: no shards there, but recipe {recipe.name} has training.feed = "shards"; clotkit tile it first, '
            'or set feed = "memory"'
        )


def summary(metrics: dict[str, Any]) -> str:
    """The figures that matter, on one line."""
    shown = ("accuracy", "balanced_accuracy", "auc", "weighted_log_loss")
    said = [
        f"{name.replace('_', ' ')} {metrics[name]:.4f} ({metrics[f'{name}_low']:.3f} to {metrics[f'{name}_high']:.3f})"
        for name in shown
        if metrics.get(name) is not None and metrics.get(f"{name}_low") is not None
    ]
    return ", ".join(said) + f"; {metrics['estimate']}, {metrics['n']} {metrics['unit']}s"


def _key(source: str, tiles: TileSet, folds: Sequence[Fold]) -> str:
    """A sha256 of the recipe, the tiles and the folds; of tiles that are in shards their keys stand for the pixels."""
    digest = hashlib.sha256(source.encode())
    pixels: Any = tiles.tiles
    digest.update(pixels.fingerprint() if isinstance(pixels, ShardTiles) else np.ascontiguousarray(pixels).data)
    for array in (tiles.labels, *(mask for fold in folds for mask in (fold.train, fold.validation))):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check_alike(team: devices.Team, key: str) -> None:
    """Raise ConfigError where the workers do not all train the same on the same."""
    keys = team.gathered([int(key[start : start + 15], 16) for start in range(0, 60, 15)])  # [workers, 4]
    others = np.flatnonzero((keys != keys[0]).any(axis=1))
    if len(others):
        raise ConfigError(
            f"worker {others[0]} of {team.workers} has another recipe, other tiles or other folds than worker 0; "
            "give all of them the same recipe, data and options"
        )


def _state(out: Path, key: str, team: devices.Team, log: Log) -> Path:
    """The folder of what this worker has done so far; an earlier one stays if it is of the same recipe, data, folds."""
    state = out / (STATE if team.is_chief else f"{STATE}-{team.worker}")
    named = state / "key"
    if named.is_file() and named.read_text(encoding="utf-8") == key:
        log(f"{out}: goes on from where an earlier run stood")
        return state
    forget(state)
    state.mkdir(parents=True)
    atomic_write_text(named, key)
    return state


@dataclass(frozen=True)
class _Run:
    """One recipe on one set of tiles; what a frozen backbone makes of them is computed once for all folds."""

    recipe: Recipe
    tiles: TileSet
    aim: Aim
    backbones: Path | None
    state: Path
    log: Log
    team: devices.Team
    bases: dict[ModelConfig, tuple[Network, Features]] = field(default_factory=dict)

    def on_folds(self, folds: Sequence[Fold]) -> Trained:
        """Train on every fold, and on everything where the recipe wants that to ship; calibrate what ships."""
        networks: list[list[Network]] = []
        histories, held, watched = [], [], []
        ships_folds = len(folds) == 1 or self.recipe.training.final == "folds"
        for number, fold in enumerate(folds):
            found, history = self._committee(str(number), fold.train, fold.validation)
            networks += [found] if ships_folds else []
            histories.append(history.assign(fold=number))
            held.append(self._predicted(found, fold.held_out).assign(fold=number))
            watched.append(self._predicted(found, fold.validation))
            self.log(_said(f"fold {number + 1} of {len(folds)}", fold, history))
        out_of_fold = pd.concat(held, ignore_index=True)
        units = units_of(out_of_fold, self.aim)
        if len(folds) == 1:
            calibration = calibrated_on(units_of(watched[0], self.aim), self.aim)  # none to speak of without any
            crossed = [calibration]
        else:
            calibration = calibrated_on(units, self.aim)
            crossed = [calibrated_on(units[units["fold"] != number], self.aim) for number in range(len(folds))]
        scored = cross_calibrated(units, dict(enumerate(crossed)), self.aim)
        if not ships_folds:
            watch = folds[0].validation
            found, history = self._committee("all", ~watch, watch)
            networks, histories = [found], [*histories, history.assign(fold="all")]
        history = pd.concat(histories, ignore_index=True)
        return Trained(networks, history, out_of_fold, scored, calibration, crossed, _split(self.tiles, folds))

    def with_the_chief(self, folds: Sequence[Fold]) -> None:
        """Take part in every fit of `on_folds`, in the same order, and in nothing else."""
        for number, fold in enumerate(folds):
            self._committee(str(number), fold.train, fold.validation)
        if len(folds) > 1 and self.recipe.training.final != "folds":
            self._committee("all", ~folds[0].validation, folds[0].validation)

    def _committee(
        self, name: str, train: npt.NDArray[np.bool_], watch: npt.NDArray[np.bool_]
    ) -> tuple[list[Network], pd.DataFrame]:
        """The recipe's networks, trained on some of the tiles, and their histories."""
        networks, histories = [], []
        for number, config in enumerate(expanded(self.recipe.model)):
            seed = self.recipe.training.seed + 1000 * number + (0 if name == "all" else int(name) + 1)
            base, features = self._base(config)
            with devices.training(team=self.team):
                network = self._network(config, seed, base)
                parts = None if features is None else (features.where(train), features.where(watch))
                seen, watched = self.tiles.where(train), self.tiles.where(watch)
                title, state = f"{config.name}, fold {name}", self.state / f"{name}-{number}"
                with _epochs(title, self.recipe.training.epochs, self.log) as told:
                    history = fit(network, seen, watched, self.recipe, seed, state, parts, told, self.team)
            networks.append(self._alone(network, config, seed, base))
            histories.append(history.assign(network=number))
        return networks, pd.concat(histories, ignore_index=True)

    def _network(self, config: ModelConfig, seed: int, base: Network | None) -> Network:
        import keras

        keras.utils.set_random_seed(seed)
        recipe, classes = self.recipe, len(self.tiles.classes)
        return build_network(config, recipe.tiling.tile_px, classes, recipe.inference.pooling, self.backbones, base)

    def _alone(self, network: Network, config: ModelConfig, seed: int, base: Network | None) -> Network:
        """The network outside of the team: one that predicts without the other replicas."""
        if self.team.strategy is None:
            return network
        alone = self._network(replace(config, weights="none"), seed, base)
        alone.model.set_weights(network.model.get_weights())
        return alone

    def _base(self, config: ModelConfig) -> tuple[Network | None, Features | None]:
        """A frozen backbone, the same for all folds, and its features of all tiles; nothing where it learns."""
        if not is_frozen(config, self.recipe):
            return None, None
        if config not in self.bases:
            network = self._network(config, self.recipe.training.seed, None)
            self.log(f"{config.name} is frozen: its features of {len(self.tiles)} tiles are computed once")
            self.bases[config] = network, features_of(network, self.tiles.tiles, self.recipe)
        return self.bases[config]

    def _predicted(self, networks: Sequence[Network], chosen: npt.NDArray[np.bool_]) -> pd.DataFrame:
        """One row an image of the chosen tiles."""
        tiles, recipe = self.tiles.where(chosen), self.recipe
        rows = predict_committee(networks, tiles.tiles, recipe, recipe.training.batch_tiles)
        return predicted_images(rows, tiles, recipe.inference)


@contextmanager
def _epochs(title: str, total: int, log: Log) -> Iterator[Told]:
    """A tqdm bar of epochs on a terminal; elsewhere a line, at most one in LINE_S seconds."""
    from tqdm import tqdm

    last = time.monotonic()
    with tqdm(total=total, desc=title, unit="epoch", disable=not sys.stderr.isatty()) as bar:

        def told(epoch: int, row: dict[str, float]) -> None:
            nonlocal last
            losses = ", ".join(f"{name} {row[name]:.3f}" for name in ("loss", "val_loss") if name in row)
            bar.set_postfix_str(losses, refresh=False)
            bar.update(epoch - bar.n)
            if bar.disable and time.monotonic() - last > LINE_S:
                last = time.monotonic()
                log(f"{title}: epoch {epoch} of {total}, {losses}")

        yield told


def _said(name: str, fold: Fold, history: pd.DataFrame) -> str:
    last = history.iloc[-1]
    return (
        f"{name}: {int(fold.train.sum())} tiles to train, {int(fold.held_out.sum())} held out, "
        f"{int(last['epoch'])} epochs, last loss {last['loss']:.3f}"
    )


def _split(tiles: TileSet, folds: Sequence[Fold]) -> pd.DataFrame:
    """A row an image, and its fold: the number of the one that held it; with one fold also train and watch."""
    table = pd.DataFrame({"image": tiles.images, "fold": ""})
    for number, fold in enumerate(folds):
        if len(folds) == 1:
            table.loc[fold.train, "fold"] = SPLIT_TRAIN
            table.loc[fold.validation, "fold"] = SPLIT_VALIDATION
        table.loc[fold.held_out, "fold"] = str(number)
    return table.drop_duplicates()


def _describe(data: Place, competition: Competition) -> str:
    """What the member was trained on: drawn slides and pictures say so, and how to make them again."""
    marker = _marker(data)
    if marker is None:
        return competition.slug if is_tiled(data, competition) else Path(data).name
    facts = json.loads(marker)
    facts = facts["splits"]["train"] if "splits" in facts else facts
    return "synthetic, " + ", ".join(f"{name} {value}" for name, value in facts.items() if name in DESCRIBED)


def _marker(data: Place) -> str | None:
    store = store_of(data)
    for name in (SYNTHETIC, MARKER):
        with suppress(OSError):
            return store.read_text(name)
    return None


def _metrics(
    trained: Trained, recipe: Recipe, tiles: TileSet, aim: Aim, data: Place, competition: Competition, folds: int
) -> dict[str, Any]:
    raw = units_of(trained.out_of_fold, aim)
    slides = {}
    if aim.by_patient:
        by_slide = replace(aim, by_patient=False)
        slides = {
            "per_slide": score(
                cross_calibrated(trained.out_of_fold, dict(enumerate(trained.crossed)), by_slide), by_slide
            )
        }
    return {
        "classes": list(tiles.classes),
        "positive": aim.positive,
        "competition": competition.slug if recipe.data.source == "slides" else None,
        "data": _describe(data, competition),
        "recipe": recipe.name,
        "seed": recipe.training.seed,
        "folds": folds,
        "networks_of_folds": len(trained.networks),
        "material": {
            "patients": len(set(tiles.patients)),
            "images": len(set(tiles.images)),
            "tiles": len(tiles),
        },
        "unit": "patient" if aim.by_patient else "image",
        "estimate": ESTIMATES[recipe.data.split],
        "class_weights": list(aim.weights),
        "clip": aim.clip,
        "constant": round(constant(aim), 6),
        "weighted_log_loss_uncalibrated": round(log_loss(raw, aim), 6),
        **score(trained.scored, aim),
        **slides,
    }
