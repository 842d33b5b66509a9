"""Calibrate and score out-of-fold predictions that another program made."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import Recipe
from clotkit.data.folds import make_folds
from clotkit.data.tiles import TileSet
from clotkit.ensembling.data import FOLD, read_predictions
from clotkit.errors import ConfigError
from clotkit.evaluation.member_metrics import member_metrics
from clotkit.evaluation.scores import EvaluationTarget, HeldOutFit, fit_by_fold, rows_to_score, target_of
from clotkit.progress import Log
from clotkit.splits import read_table
from clotkit.splits.identity import without_suffix

ESTIMATE = "out of fold, by patient, as the imported table says"


@dataclass(frozen=True)
class ForeignPredictions:
    """Out-of-fold predictions of labelled slides, calibrated as those of a trained member."""

    target: EvaluationTarget
    out_of_fold: pd.DataFrame  # one row per slide: image, patient, centre, label, the classes, fold
    unpredicted: pd.DataFrame  # image and patient of the labelled slides without a prediction
    fit: HeldOutFit  # to these predictions

    def metrics(self, recipe: Recipe, name: str) -> dict[str, Any]:
        """Return the contents of metrics.json, as training writes them; `name` is that of the table."""
        facts = {
            "data": f"predictions of {name}",
            "networks_of_folds": 1,
            "material": {"patients": self.out_of_fold["patient"].nunique(), "images": len(self.out_of_fold)},
            "estimate": ESTIMATE,
        }
        return member_metrics(recipe, self.target, self.out_of_fold, self.fit, facts)


def read_foreign(oof: Path, labels: Path, recipe: Recipe, competition: Competition, log: Log) -> ForeignPredictions:
    """Read a table of out-of-fold predictions, and fit the calibration of its member.

    A column `fold` names the folds; without one, patients are dealt to folds as the recipe says, for the calibration.

    Raises:
        ConfigError: the table is malformed, or its predictions are not out of fold, or too few.
        SplitError: the table of labels cannot be read.
    """
    if recipe.data.source != "slides":
        raise ConfigError(
            f"recipe {recipe.name}: data.source is {recipe.data.source!r}; a member of slides is imported"
        )
    read = read_predictions([oof], labels, competition)
    for note in read.notes:
        log(note)
    if not read.members:
        raise ConfigError(f"{oof}: its predictions are all the same")
    classes = competition.classes.names
    rows = read.labels.drop(columns="unit").rename_axis("image").reset_index()
    table = rows[["image", "patient", "centre", "label"]].assign(**dict(zip(classes, read.p[:, 0].T, strict=True)))
    table["fold"] = _folds(oof, table, read.groups, recipe, competition)
    target = target_of(recipe, table["label"].to_numpy(np.int64), classes, competition)
    fit = fit_by_fold(rows_to_score(table, target), int(table["fold"].max()) + 1, target)
    if fit.calibration.slope <= 0:
        raise ConfigError(
            f"{oof}: its predictions are no better than the constant, however they are calibrated; are the columns of "
            "the classes exchanged?"
        )
    labelled = read.labelled.rename_axis("image").reset_index()
    unpredicted = labelled[~labelled["image"].isin(table["image"])][["image", "patient"]]
    return ForeignPredictions(target, table, unpredicted, fit)


def _folds(
    oof: Path, table: pd.DataFrame, groups: Mapping[str, str], recipe: Recipe, competition: Competition
) -> npt.NDArray[np.int64]:
    """Return the number of each slide's fold: the table's own, or else one drawn by patient."""
    raw = pd.DataFrame(read_table(oof, [], [competition.columns.image, "image", FOLD]))
    if FOLD in raw:
        image = competition.columns.image if competition.columns.image in raw else "image"
        of_image = dict(zip(raw[image].map(without_suffix), raw[FOLD], strict=True))
        numbers = np.unique(table["image"].map(of_image).astype(str), return_inverse=True)[1]
        if numbers.max() > 0:
            return np.asarray(numbers, np.int64)
    patients = table["patient"].map(lambda name: groups.get(name, name)).to_numpy(str)
    labels, centres = table["label"].to_numpy(np.int64), table["centre"].to_numpy(str)
    none = np.zeros((len(table), 1, 1, 3), np.uint8)
    parts = np.full(len(table), "")
    slides = TileSet(none, labels, patients, table["image"].to_numpy(str), centres, parts, competition.classes.names)
    count = _count(table, oof, recipe, competition)
    folds = make_folds(slides, replace(recipe.data, split="folds"), recipe.training, count)
    return np.asarray(sum(number * fold.held_out for number, fold in enumerate(folds)), np.int64)


def _count(table: pd.DataFrame, oof: Path, recipe: Recipe, competition: Competition) -> int:
    """Return the number of folds: the recipe's, or fewer, so that each has a patient of every class."""
    patients = table.groupby("label")["patient"].nunique().reindex(range(len(competition.classes.names)), fill_value=0)
    if patients.min() < 2:
        name = competition.classes.names[int(patients.argmin())]
        raise ConfigError(f"{oof}: predicts {patients.min()} patients of class {name}; at least 2 are needed")
    return min(recipe.training.folds, int(patients.min()))
