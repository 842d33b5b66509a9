"""Balance the classes of the training tiles: by weights, by repeating tiles, or by synthetic tiles."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from clotkit.config import TrainingConfig
from clotkit.data.tiles import TileSet

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
SMOTE_NEIGHBOURS = 5


def sample_weights(tiles: TileSet, config: TrainingConfig) -> Floats:
    """Return the weight of each tile in the loss, float32[n].

    The recipe's training.class_weights come first. Otherwise training.balance decides: "weights" gives every class
    the same sum, "patients" also every patient of a class, and the rest give each tile 1.
    """
    if config.class_weights:
        return np.array(config.class_weights, np.float32)[tiles.labels]
    weights = np.ones(len(tiles))
    if config.balance == "patients":
        _, patient_of_tile, counts = np.unique(tiles.patients, return_inverse=True, return_counts=True)
        weights = 1 / counts[patient_of_tile]
    if config.balance in {"weights", "patients"}:
        of_class = np.bincount(tiles.labels, weights, len(tiles.classes))  # [C]
        weights = weights * (len(tiles) / (len(tiles.classes) * np.maximum(of_class, 1e-9)))[tiles.labels]
    return weights.astype(np.float32)


def epoch_order(labels: Rows, config: TrainingConfig, classes: int, seed: int, epoch: int) -> Rows:
    """Return the items of an epoch, shuffled; with balance "oversample" all classes equally often."""
    rng = np.random.default_rng([seed, epoch])
    if config.balance != "oversample":
        return rng.permutation(len(labels))
    largest = int(np.bincount(labels, minlength=classes).max())
    of_class = [np.flatnonzero(labels == label) for label in range(classes)]
    return rng.permutation(np.concatenate([draw_evenly(rows, largest, rng) for rows in of_class if len(rows)]))


def draw_evenly(rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    """Draw `count` of `rows`, none a second time before all were drawn once: int64[count]."""
    rounds = [rng.permutation(rows) for _ in range(math.ceil(count / len(rows)))]
    return np.concatenate(rounds)[:count]


def add_synthetic(tiles: TileSet, config: TrainingConfig, seed: int) -> TileSet:
    """Return the tiles, with balance "synthetic" filled up so that every class has as many as the largest.

    Each synthetic tile lies between a tile and one of its nearest neighbours of the same class (Chawla et al. 2002,
    "SMOTE: synthetic minority over-sampling technique").
    """
    counts = np.bincount(tiles.labels, minlength=len(tiles.classes))
    smallest = int(counts[counts > 0].min())
    if config.balance != "synthetic" or smallest < 2 or smallest == counts.max():
        return tiles
    from imblearn.over_sampling import SMOTE

    flat = tiles.tiles.reshape(len(tiles), -1).astype(np.float32)  # [n, S * S * 3]
    smote = SMOTE(random_state=seed, k_neighbors=min(SMOTE_NEIGHBOURS, smallest - 1))
    filled, labels = smote.fit_resample(flat, tiles.labels)  # [m, S * S * 3], [m]: the n tiles, then new ones
    count = len(filled) - len(tiles)
    new = np.clip(np.rint(filled[len(tiles) :]), 0, 255).astype(np.uint8).reshape(count, *tiles.tiles.shape[1:])
    names = np.array([f"synthetic_{number}" for number in range(count)])
    blank = np.full(count, "")
    return replace(
        tiles,
        tiles=np.concatenate([tiles.tiles, new]),
        labels=labels.astype(np.int64),
        patients=np.concatenate([tiles.patients, names]),
        images=np.concatenate([tiles.images, names]),
        centres=np.concatenate([tiles.centres, blank]),
        parts=np.concatenate([tiles.parts, blank]),
    )
