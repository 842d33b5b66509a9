"""Split labelled tiles into training, validation and held-out parts, always by whole patients.

A network is trained on the first part, its epoch is chosen on the second, and it is scored on the third.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import DataConfig, TrainingConfig
from clotkit.data.groups import connected_groups
from clotkit.data.tiles import TEST, TRAIN, VAL, TileSet
from clotkit.errors import ConfigError, UsageError

HOLDOUT = 0.15  # share of the patients of each class that is held out; as many go to validation

ONE_FOLD = ("given", "holdout")  # values of data.split

Mask = npt.NDArray[np.bool_]
Groups = npt.NDArray[Any]


@dataclass(frozen=True)
class Fold:
    """Three masks, bool[n]: training, validation, held out. Every tile is in exactly one of them."""

    train: Mask
    validation: Mask  # chooses the epoch; may be empty
    held_out: Mask  # scores the network


def check_folds(folds: int | None, data: DataConfig) -> None:
    """Raise UsageError for a number of folds that `data.split` would ignore."""
    if folds is not None and data.split in ONE_FOLD:
        raise UsageError(f"--folds is {folds}, but data.split is {data.split!r}, which has 1 fold; leave --folds out")


def make_folds(tiles: TileSet, data: DataConfig, training: TrainingConfig, folds: int | None) -> list[Fold]:
    """Return the folds of `data.split`, the same for the same seed.

    - `given`: one fold with the parts that the source gives, even if they share patients.
    - `holdout`: one fold with 70/15/15 % of the patients.
    - `folds`: every patient is held out once, stratified by class.
    - `centres`: as `folds`, but whole centres are held out, at most one fold a centre. Centres that share a patient
      stay together.

    In `folds` and `centres`, and in `given` without val, validation takes `training.validation_share` of the training
    patients of each class.

    Args:
        tiles: The labelled tiles.
        data: The recipe's [data] table.
        training: The recipe's [training] table: its seed, number of folds and validation share.
        folds: The number of folds, or None for the recipe's.

    Raises:
        ConfigError: The data do not have what the split needs.
    """
    wanted = training.folds if folds is None else folds
    made = SPLITTERS[data.split](tiles, training, wanted)
    for number, fold in enumerate(made, 1):
        _check_train(fold, tiles, f"fold {number} of split {data.split}")
    return made


def _given(tiles: TileSet, training: TrainingConfig, folds: int) -> list[Fold]:
    train, validation, held_out = (tiles.parts == part for part in (TRAIN, VAL, TEST))
    if not train.any() or not held_out.any() or not (train | validation | held_out).all():
        counts = {str(name) or "none": np.count_nonzero(tiles.parts == name) for name in np.unique(tiles.parts)}
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"data.split is 'given', but the tiles by part are: {found}; every tile needs one of {TRAIN}, {VAL}, "
            f"{TEST}, and only {VAL} may be empty; or choose another data.split"
        )
    if not validation.any():
        validation = _validation(tiles, train, training, 0)
    return [Fold(train & ~validation, validation, held_out)]


def _holdout(tiles: TileSet, training: TrainingConfig, folds: int) -> list[Fold]:
    _check_patients(tiles, 3, "data.split is 'holdout'", "at least 3 are needed; choose another data.split")
    patients, rows, labels = _patients(tiles)
    rng = np.random.default_rng(training.seed)
    held_out = _share(labels, np.ones(len(patients), bool), HOLDOUT, rng)
    # 85 % are left, so this is HOLDOUT of all patients again
    validation = _share(labels, ~held_out, HOLDOUT / (1 - HOLDOUT), rng)
    return [Fold(~(held_out | validation)[rows], validation[rows], held_out[rows])]


def _by_patient(tiles: TileSet, training: TrainingConfig, folds: int) -> list[Fold]:
    return _grouped(tiles, tiles.patients, training, folds)


def _by_centre(tiles: TileSet, training: TrainingConfig, folds: int) -> list[Fold]:
    centres = np.unique(tiles.centres)
    if "" in centres or len(centres) < 2:
        without, known = np.count_nonzero(tiles.centres == ""), np.count_nonzero(centres != "")
        raise ConfigError(
            f"data.split is 'centres', but {without} of {len(tiles)} tiles have no centre, and centres are {known}; "
            "every tile needs a centre, and at least 2 centres are needed; or choose another data.split"
        )
    groups = _shared_centres(tiles)
    possible = len(np.unique(groups))
    if possible < 2:
        raise ConfigError(
            f"data.split is 'centres', but all {len(centres)} centres share patients and make 1 group; at least 2 are "
            "needed; choose another data.split"
        )
    return _grouped(tiles, groups, training, min(folds, possible))


def _shared_centres(tiles: TileSet) -> Groups:
    """Return the group of each tile, int[n]: centres that share a patient are one group."""
    names, centre = np.unique(tiles.centres, return_inverse=True)
    patients, patient = np.unique(tiles.patients, return_inverse=True)
    pairs = np.stack([centre, len(names) + patient], axis=1)
    return connected_groups(len(names) + len(patients), pairs)[centre]


def _grouped(tiles: TileSet, groups: Groups, training: TrainingConfig, folds: int) -> list[Fold]:
    """Return stratified folds of whole groups, each with validation patients from its training side."""
    from sklearn.model_selection import StratifiedGroupKFold

    if folds < 2:
        raise ConfigError(f"the number of folds is {folds}; at least 2 are needed")
    _check_patients(
        tiles, folds, f"the number of folds is {folds}", "give it more, or take fewer folds; 2 are the fewest"
    )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=training.seed)
    made = []
    for number, (_, chosen) in enumerate(splitter.split(np.zeros(len(tiles)), tiles.labels, groups)):
        held_out = np.zeros(len(tiles), bool)
        held_out[chosen] = True
        validation = _validation(tiles, ~held_out, training, number)
        made.append(Fold(~held_out & ~validation, validation, held_out))
    return made


def _validation(tiles: TileSet, allowed: Mask, training: TrainingConfig, number: int) -> Mask:
    """Choose the tiles of `training.validation_share` of the patients of each class, of the allowed tiles."""
    if training.validation_share <= 0:
        return np.zeros(len(tiles), bool)
    patients, rows, labels = _patients(tiles)
    free = np.zeros(len(patients), bool)
    free[rows[allowed]] = True
    chosen = _share(labels, free, training.validation_share, np.random.default_rng([training.seed, number]))
    return chosen[rows] & allowed  # a patient of given parts may have tiles on both sides


def _patients(tiles: TileSet) -> tuple[Groups, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the patients' names, each tile's patient, and each patient's class (of most of its tiles)."""
    names, rows = np.unique(tiles.patients, return_inverse=True)
    counts = np.zeros((len(names), len(tiles.classes)), np.int64)
    np.add.at(counts, (rows, tiles.labels), 1)
    return names, rows, counts.argmax(1)


def _share(labels: npt.NDArray[np.int64], allowed: Mask, share: float, rng: np.random.Generator) -> Mask:
    """Choose about `share` of the allowed patients of each class, bool[patients].

    Rounding carries over from class to class, so that the total is exact to one patient. Of each class at least one
    patient is chosen and at least one is left; of a class with a single patient none is chosen.
    """
    chosen = np.zeros(len(labels), bool)
    candidates = 0  # patients of the classes so far
    for label in np.unique(labels[allowed]):
        members = np.flatnonzero(allowed & (labels == label))
        candidates += len(members)
        wanted = int(candidates * share + 0.5) - np.count_nonzero(chosen)
        count = min(max(wanted, 1), len(members) - 1)
        chosen[rng.permutation(members)[:count]] = True
    return chosen


def _check_patients(tiles: TileSet, least: int, setting: str, advice: str) -> None:
    """Raise ConfigError if a class has fewer than `least` patients."""
    pairs = np.unique(np.stack([tiles.labels, np.unique(tiles.patients, return_inverse=True)[1]], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=len(tiles.classes))
    rarest = int(counts.argmin())
    if counts[rarest] < least:
        raise ConfigError(f"{setting}, but class {tiles.classes[rarest]} has only {counts[rarest]} patients; {advice}")


def _check_train(fold: Fold, tiles: TileSet, where: str) -> None:
    found = set(tiles.labels[fold.train].tolist())
    empty = [name for index, name in enumerate(tiles.classes) if index not in found]
    if empty:
        raise ConfigError(
            f"{where}: 0 tiles of class {', '.join(empty)} to train on, at least 1 is needed; "
            "choose another split, seed or number of folds"
        )


SPLITTERS: dict[str, Callable[[TileSet, TrainingConfig, int], list[Fold]]] = {
    "given": _given,
    "holdout": _holdout,
    "folds": _by_patient,
    "centres": _by_centre,
}
