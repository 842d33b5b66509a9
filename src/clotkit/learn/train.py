"""Training a member: tiles of a train split, out-of-fold predictions by patient, calibration, the final network."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import Recipe, TrainingConfig, load_recipe
from clotkit.errors import ConfigError, SplitError
from clotkit.files import publish_json, publish_text, publishing
from clotkit.infer.workers import Ended, Limits, Task, Tiles, stream
from clotkit.learn import models
from clotkit.learn.calibrate import fit_calibration
from clotkit.metric import balanced_log_loss
from clotkit.splits import SYNTHETIC, SlideRow, read_slides

Log = Callable[[str], None]


@dataclass(frozen=True)
class TileSet:
    """Tiles in memory: `tiles` uint8[n, H, W, 3], and for each its class index, patient and slide."""

    tiles: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.str_]
    images: npt.NDArray[np.str_]

    def where(self, chosen: npt.NDArray[np.bool_]) -> "TileSet":
        """The tiles that a boolean mask [n] picks."""
        return TileSet(self.tiles[chosen], self.labels[chosen], self.patients[chosen], self.images[chosen])


def train(
    recipe_name: str, data: Path, out: Path, competition: Competition, folds: int | None, limit: int | None, log: Log
) -> dict[str, Any]:
    """Train `recipe_name` on the train split `data`; write the member folder `out` and return its metrics.

    Folds are stratified and by patient (a split by tile leaks patients); the calibration is fitted on their
    out-of-fold predictions; the network that ships is trained on everything. Raises ConfigError or SplitError.
    """
    started = time.monotonic()
    recipe, source = load_recipe(recipe_name), _recipe_path(recipe_name)
    slides = _limited(read_slides(data, "train", competition), limit)
    tiles = _read_tiles(slides, recipe, competition, log)
    folds = _possible_folds(folds or recipe.training.folds, tiles, competition)

    oof, history = _out_of_fold(tiles, recipe, competition, folds, log)
    labels = oof["label"].to_numpy(np.int64)
    raw = oof[list(competition.classes.names)].to_numpy(np.float64)
    calibration = fit_calibration(raw, labels, competition)
    model, final = _fit(tiles, recipe, len(competition.classes.names), recipe.training.seed)
    history.append(final.assign(fold="all"))

    metrics = {
        "classes": list(competition.classes.names),
        "competition": competition.slug,
        "data": _describe(data),
        "recipe": recipe.name,
        "patients": len(oof),
        "slides": len(np.unique(tiles.images)),
        "tiles": len(tiles.tiles),
        "folds": folds,
        "seed": recipe.training.seed,
        "out_of_fold": _scores(raw, calibration.apply(raw), labels, competition),
        "constant": round(float(np.log(len(competition.classes.names))), 4),
    }
    _write_member(out, recipe, source, model, calibration.to_json(), metrics, pd.concat(history), oof)
    log(f"{out}: {metrics['out_of_fold']} on {len(oof)} patients, {time.monotonic() - started:.0f} s")
    return metrics


def _describe(data: Path) -> str:
    """What the member was trained on: a synthetic split says so, and how to make it again."""
    marker = data / SYNTHETIC
    if not marker.is_file():
        return data.name
    facts = json.loads(marker.read_text(encoding="utf-8"))["splits"]["train"]
    return f"synthetic, seed {facts['seed']}, size {facts['size']}, separation {facts['separation']:g}"


def _recipe_path(name: str) -> Path:
    from clotkit.config import RECIPES

    return Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"


def _limited(slides: list[SlideRow], limit: int | None) -> list[SlideRow]:
    if limit is None:
        return slides
    return [
        slide
        for label in sorted({slide.label or 0 for slide in slides})
        for slide in [row for row in slides if row.label == label][:limit]
    ]


def _read_tiles(slides: Sequence[SlideRow], recipe: Recipe, competition: Competition, log: Log) -> TileSet:
    """The tiles of every slide, each slide in a process of its own; a slide that fails is left out by name."""
    by_id = {slide.image_id: slide for slide in slides}
    tasks = [Task(slide.image_id, slide.path, (recipe.tiling,)) for slide in slides]
    found: dict[str, list[npt.NDArray[np.uint8]]] = {image_id: [] for image_id in by_id}
    limits = Limits(competition.limits.slide_s, competition.limits.slide_memory_mb)
    for event in stream(tasks, limits, os.cpu_count() or 1):
        if isinstance(event, Tiles):
            found[event.image_id].append(event.batch.tiles)
        elif isinstance(event, Ended) and event.reason:
            log(f"{event.image_id} is left out: {event.reason}")
            found[event.image_id] = []
    kept = [(by_id[image_id], np.concatenate(batches)) for image_id, batches in found.items() if batches]
    if not kept:
        raise SplitError(f"none of the {len(slides)} slides gave a tile; the lines above say why")
    log(f"{sum(len(tiles) for _, tiles in kept)} tiles of {len(kept)} slides")
    return TileSet(
        tiles=np.concatenate([tiles for _, tiles in kept]),
        labels=np.concatenate([np.full(len(tiles), slide.label, np.int64) for slide, tiles in kept]),
        patients=np.concatenate([np.full(len(tiles), slide.patient_id) for slide, tiles in kept]),
        images=np.concatenate([np.full(len(tiles), slide.image_id) for slide, tiles in kept]),
    )


def _possible_folds(folds: int, tiles: TileSet, competition: Competition) -> int:
    patients = pd.DataFrame({"patient": tiles.patients, "label": tiles.labels}).drop_duplicates()
    counts = np.bincount(patients["label"], minlength=len(competition.classes.names))
    rarest = int(counts.argmin())
    if counts[rarest] < folds:
        raise ConfigError(
            f"--folds is {folds}, but class {competition.classes.names[rarest]} has only "
            f"{counts[rarest]} patients; at most that many folds, at least 2"
        )
    return folds


def _out_of_fold(
    tiles: TileSet, recipe: Recipe, competition: Competition, folds: int, log: Log
) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """Predictions for patients that the network has not seen: one row a patient (label, p a class), and histories."""
    names, parts, histories = list(competition.classes.names), [], []
    for fold, (seen, held) in enumerate(out_of_fold_parts(tiles, folds, recipe.training.seed)):
        model, history = _fit(seen, recipe, len(names), recipe.training.seed + fold + 1)
        predict = models.predictor(model, recipe.training.batch_tiles)
        frame = pd.DataFrame(predict(held.tiles), columns=names)
        parts.append(frame.assign(patient=held.patients, image=held.images, label=held.labels))
        histories.append(history.assign(fold=fold))
        log(
            f"fold {fold + 1} of {folds}: {len(seen.tiles)} tiles to train, {len(held.tiles)} held out, "
            f"last loss {history['loss'].iloc[-1]:.3f}"
        )
    by_slide = pd.concat(parts).groupby(["patient", "image"], as_index=False).mean()
    return by_slide.drop(columns="image").groupby("patient", as_index=False).mean(), histories


def out_of_fold_parts(tiles: TileSet, folds: int, seed: int) -> Iterator[tuple[TileSet, TileSet]]:
    """Tiles to train on and tiles held out, fold by fold: stratified, and every patient on one side only."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for seen, _ in splitter.split(tiles.tiles, tiles.labels, tiles.patients):
        chosen = np.zeros(len(tiles.tiles), bool)
        chosen[seen] = True
        yield tiles.where(chosen), tiles.where(~chosen)


def _fit(tiles: TileSet, recipe: Recipe, classes: int, seed: int) -> tuple[Any, pd.DataFrame]:
    """Train a fresh network; classes are weighted equally, however many tiles each has."""
    models.start_keras()
    import keras

    config = recipe.training
    keras.utils.set_random_seed(seed)
    model = models.build_model(recipe.model, recipe.tiling.tile_px, classes)
    batches = math.ceil(len(tiles.tiles) / config.batch_tiles)
    schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, batches * config.epochs)
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    history = model.fit(_feed(tiles, config, classes, seed), epochs=config.epochs, verbose=0)
    frame = pd.DataFrame(history.history).round(5)
    frame.insert(0, "epoch", range(1, len(frame) + 1))
    return model, frame


def _feed(tiles: TileSet, config: TrainingConfig, classes: int, seed: int) -> Any:
    """Shuffled, augmented, class-weighted batches as a keras.utils.PyDataset, the same ones for the same seed."""
    import keras

    counts = np.bincount(tiles.labels, minlength=classes)
    weights = (len(tiles.labels) / (classes * counts))[tiles.labels].astype(np.float32)

    class Feed(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.epoch = 0
            self.on_epoch_end()

        def __len__(self) -> int:
            return math.ceil(len(tiles.labels) / config.batch_tiles)

        def on_epoch_end(self) -> None:
            self.order = np.random.default_rng([seed, self.epoch]).permutation(len(tiles.labels))
            self.epoch += 1

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            chosen = self.order[index * config.batch_tiles : (index + 1) * config.batch_tiles]
            rng = np.random.default_rng([seed, self.epoch, index])
            return augment(tiles.tiles[chosen], rng), tiles.labels[chosen], weights[chosen]

    return Feed()


def augment(tiles: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """One of the eight turns and mirrors a tile, and a gain a channel of up to 10 %: uint8 -> float32 [n, H, W, 3].

    Outside the model, because Keras applies a random layer inside it whenever the model is called or exported.
    """
    turned = [np.rot90(tile, int(rng.integers(4)))[:, :: int(rng.choice((-1, 1)))] for tile in tiles]
    gains = rng.uniform(0.9, 1.1, (len(tiles), 1, 1, 3)).astype(np.float32)
    return np.asarray(np.clip(np.stack(turned).astype(np.float32) * gains, 0, 255), np.float32)


def _scores(
    raw: npt.NDArray[np.float64],
    calibrated: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    competition: Competition,
) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    weights, clip = competition.classes.weights, competition.metric.clip
    auc = roc_auc_score(labels, raw[:, 1]) if raw.shape[1] == 2 else roc_auc_score(labels, raw, multi_class="ovr")
    return {
        "log_loss_raw": round(balanced_log_loss(raw.tolist(), labels.tolist(), weights, clip), 4),
        "log_loss_calibrated_in_sample": round(
            balanced_log_loss(calibrated.tolist(), labels.tolist(), weights, clip), 4
        ),
        "auc": round(float(auc), 4),
    }


def _write_member(
    out: Path,
    recipe: Recipe,
    source: Path,
    model: Any,
    calibration: dict[str, Any],
    metrics: dict[str, Any],
    history: pd.DataFrame,
    oof: pd.DataFrame,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    # A fresh network with the same weights: a compiled one would save its optimizer's state too.
    bare = models.build_model(recipe.model, recipe.tiling.tile_px, len(metrics["classes"]))
    bare.set_weights(model.get_weights())
    with publishing(out / models.WEIGHTS) as temporary:
        bare.save_weights(temporary, overwrite=True)
    publish_text(out / models.RECIPE, source.read_text(encoding="utf-8"))
    publish_json(out / models.CALIBRATION, calibration)
    publish_json(out / models.METRICS, metrics)
    publish_text(out / "history.csv", history.to_csv(index=False, lineterminator="\n"))
    publish_text(out / "oof.csv", oof.round(6).to_csv(index=False, lineterminator="\n"))
