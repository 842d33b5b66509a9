"""Which tiles a network is trained on, which choose its epoch, and which it is judged by: always whole patients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import DataConfig, TrainingConfig
from clotkit.data.tiles import TEST, TRAIN, VAL, TileSet
from clotkit.errors import ConfigError

HOLDOUT = 0.15  # share of the patients of each class that is held, and as many are watched

Mask = npt.NDArray[np.bool_]
Groups = npt.NDArray[Any]


@dataclass(frozen=True)
class Fold:
    """One way to part the tiles, bool[n] each: every tile is in one of the three. `watch` may be empty."""

    train: Mask
    watch: Mask
    held: Mask


def make_folds(tiles: TileSet, data: DataConfig, training: TrainingConfig, folds: int | None) -> list[Fold]:
    """The folds of `data.split`, the same ones for the same seed; `folds` comes before the recipe's number.

    given: one fold of the source's parts, which stay as they are, whatever patients they share. holdout: one of
    70/15/15 % of the patients. folds: every patient is held once, stratified by class. centres: the same with whole
    centres, at most one fold a centre; centres that share a patient stay together. In the last two, and where parts are
    given without val, `training.validation_share` of the training patients of each class are watched. Raises
    ConfigError when the data do not give what the split needs.
    """
    wanted = training.folds if folds is None else folds
    made = RULES[data.split](tiles, training, wanted)
    for number, fold in enumerate(made, 1):
        _check_train(fold, tiles, f"fold {number} of split {data.split}")
    return made


def _given(tiles: TileSet, training: TrainingConfig, folds: int) -> list[Fold]:
    train, watch, held = (tiles.parts == part for part in (TRAIN, VAL, TEST))
    if not train.any() or not held.any() or not (train | watch | held).all():
        counts = {str(name) or "none": np.count_nonzero(tiles.parts == name) for name in np.unique(tiles.parts)}
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"data.split is 'given', but the tiles by part are: {found}; every tile needs one of {TRAIN}, {VAL}, "
            f"{TEST}, and only {VAL} may be empty; or set data.split"
        )
    if not watch.any():
        watch = _watched(tiles, train, training, 0)
    return [Fold(train & ~watch, watch, held)]


def _holdout(tiles: TileSet, training: TrainingConfig, folds: int) -> list[Fold]:
    _check_patients(tiles, 3, "data.split is 'holdout'", "at least 3 are needed; set data.split")
    patients, rows, labels = _patients(tiles)
    rng = np.random.default_rng(training.seed)
    held = _share(labels, np.ones(len(patients), bool), HOLDOUT, rng)
    # what is left is 85 %: the share of all patients stays the same
    watch = _share(labels, ~held, HOLDOUT / (1 - HOLDOUT), rng)
    return [Fold(~(held | watch)[rows], watch[rows], held[rows])]


def _by_patient(tiles: TileSet, training: TrainingConfig, folds: int) -> list[Fold]:
    return _grouped(tiles, tiles.patients, training, folds)


def _by_centre(tiles: TileSet, training: TrainingConfig, folds: int) -> list[Fold]:
    centres = np.unique(tiles.centres)
    if "" in centres or len(centres) < 2:
        without, known = np.count_nonzero(tiles.centres == ""), np.count_nonzero(centres != "")
        raise ConfigError(
            f"data.split is 'centres', but {without} of {len(tiles)} tiles have no centre, and centres are {known}; "
            "every tile needs one, of at least 2; or set data.split"
        )
    groups = _shared_centres(tiles)
    possible = len(np.unique(groups))
    if possible < 2:
        raise ConfigError(
            f"data.split is 'centres', but all {len(centres)} centres share patients and make 1 group, at least 2 are "
            "needed; set data.split"
        )
    return _grouped(tiles, groups, training, min(folds, possible))


def _shared_centres(tiles: TileSet) -> Groups:
    """A group for each tile, int[n]: its centre, with those that have a patient in common with it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, centre = np.unique(tiles.centres, return_inverse=True)
    patients, patient = np.unique(tiles.patients, return_inverse=True)
    size = len(names) + len(patients)
    graph = coo_array((np.ones(len(tiles), bool), (centre, len(names) + patient)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][centre])


def _grouped(tiles: TileSet, groups: Groups, training: TrainingConfig, folds: int) -> list[Fold]:
    """Stratified folds of whole groups; of each training side a share of the patients is watched."""
    from sklearn.model_selection import StratifiedGroupKFold

    if folds < 2:
        raise ConfigError(f"--folds is {folds}; at least 2")
    _check_patients(tiles, folds, f"--folds is {folds}", "at most that many folds, at least 2")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=training.seed)
    made = []
    for number, (_, chosen) in enumerate(splitter.split(np.zeros(len(tiles)), tiles.labels, groups)):
        held = np.zeros(len(tiles), bool)
        held[chosen] = True
        watch = _watched(tiles, ~held, training, number)
        made.append(Fold(~held & ~watch, watch, held))
    return made


def _watched(tiles: TileSet, allowed: Mask, training: TrainingConfig, number: int) -> Mask:
    """Tiles of `training.validation_share` of the patients of each class among the allowed tiles."""
    if training.validation_share <= 0:
        return np.zeros(len(tiles), bool)
    patients, rows, labels = _patients(tiles)
    free = np.zeros(len(patients), bool)
    free[rows[allowed]] = True
    return _share(labels, free, training.validation_share, np.random.default_rng([training.seed, number]))[rows]


def _patients(tiles: TileSet) -> tuple[Groups, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The patients' names, each tile's patient, and each patient's class: that of most of its tiles."""
    names, rows = np.unique(tiles.patients, return_inverse=True)
    counts = np.zeros((len(names), len(tiles.classes)), np.int64)
    np.add.at(counts, (rows, tiles.labels), 1)
    return names, rows, counts.argmax(1)


def _share(labels: npt.NDArray[np.int64], allowed: Mask, share: float, rng: np.random.Generator) -> Mask:
    """About `share` of the allowed patients of each class, bool[patients], of all of them exact to a patient.

    Rounding carries over from class to class. Of each class at least one is taken, and at least one left.
    """
    chosen = np.zeros(len(labels), bool)
    seen = 0
    for label in np.unique(labels[allowed]):
        members = np.flatnonzero(allowed & (labels == label))
        seen += len(members)
        wanted = int(seen * share + 0.5) - np.count_nonzero(chosen)
        count = min(max(wanted, 1), len(members) - 1)
        chosen[rng.permutation(members)[:count]] = True
    return chosen


def _check_patients(tiles: TileSet, least: int, what: str, allowed: str) -> None:
    """Raise ConfigError where a class has fewer patients than there have to be."""
    pairs = np.unique(np.stack([tiles.labels, np.unique(tiles.patients, return_inverse=True)[1]], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(tiles.classes))
    rarest = int(counts.argmin())
    if counts[rarest] < least:
        raise ConfigError(f"{what}, but class {tiles.classes[rarest]} has only {counts[rarest]} patients; {allowed}")


def _check_train(fold: Fold, tiles: TileSet, where: str) -> None:
    found = set(tiles.labels[fold.train].tolist())
    empty = [name for index, name in enumerate(tiles.classes) if index not in found]
    if empty:
        raise ConfigError(
            f"{where}: 0 tiles of class {', '.join(empty)} to train on, at least 1 is needed; "
            "take another split, seed or number of folds"
        )


RULES: dict[str, Callable[[TileSet, TrainingConfig, int], list[Fold]]] = {
    "given": _given,
    "holdout": _holdout,
    "folds": _by_patient,
    "centres": _by_centre,
}
