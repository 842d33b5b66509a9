"""From networks to figures: rows of tiles, images, patients, calibrated on others, scored."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import InferenceConfig, Recipe
from clotkit.data.tiles import TileSet
from clotkit.evaluation.figures import Scored, figures
from clotkit.members.calibration import fit_calibration
from clotkit.members.ensemble import Calibration
from clotkit.members.pooling import pooled
from clotkit.metric import balanced_log_loss

Floats = npt.NDArray[np.float64]
CLIP = 1e-15  # of the log loss, where no competition says otherwise


@dataclass(frozen=True)
class Aim:
    """What predictions are scored for: classes and their weights, the positive one, and who is the unit.

    `by_patient`: a patient's images are averaged and count once; else every image counts. No calibrated probability
    goes below `floor`.
    """

    classes: tuple[str, ...]
    weights: tuple[float, ...]
    positive: str
    clip: float
    floor: float
    by_patient: bool

    def decide(self, probabilities: Floats) -> str:
        """The class that probabilities [C] stand for: of two the positive one from 0.5 up, else the likeliest."""
        if len(self.classes) > 2:
            return self.classes[int(probabilities.argmax())]
        at = self.classes.index(self.positive)
        return self.classes[at if probabilities[at] >= 0.5 else 1 - at]


def aim_of(recipe: Recipe, labels: npt.NDArray[np.int64], classes: tuple[str, ...], competition: Competition) -> Aim:
    """For slides, what the competition scores. For pictures, plain log loss: a class weighs what its share is."""
    positive = recipe.data.positive_class or classes[-1]
    if recipe.data.source == "slides":
        weights, clip = competition.classes.weights, competition.metric.clip
        return Aim(classes, weights, positive, clip, recipe.inference.floor, by_patient=True)
    shares = np.bincount(labels, minlength=len(classes)) / len(labels)
    return Aim(classes, tuple(map(float, shares)), positive, CLIP, recipe.inference.floor, by_patient=False)


def predicted_images(rows: Floats, tiles: TileSet, inference: InferenceConfig) -> pd.DataFrame:
    """One row an image, in the order of the tiles: image, patient, centre, label, and its probability of each class.

    `rows` [n, C], or [n, C + 1] under attention, are what the networks say of the tiles.
    """
    found = []
    for image in dict.fromkeys(tiles.images.tolist()):
        its = np.flatnonzero(tiles.images == image)
        first = its[0]
        about = {
            "image": image,
            "patient": tiles.patients[first],
            "centre": tiles.centres[first],
            "label": int(tiles.labels[first]),
        }
        found.append(about | dict(zip(tiles.classes, pooled(rows[its], inference.pooling), strict=True)))
    return pd.DataFrame(found, columns=["image", "patient", "centre", "label", *tiles.classes])


def units_of(images: pd.DataFrame, aim: Aim) -> pd.DataFrame:
    """The rows that are scored: the images, or the mean over each patient's."""
    if not aim.by_patient or images.empty:
        return images
    kept = {name: "first" for name in images.columns if name not in {"patient", *aim.classes}}
    return images.groupby("patient", as_index=False, sort=True).agg({**kept, **dict.fromkeys(aim.classes, "mean")})


def calibrated_on(units: pd.DataFrame, aim: Aim) -> Calibration:
    """The calibration fitted on these rows; none to speak of where a class is missing."""
    labels = units["label"].to_numpy(np.int64)
    if len(np.unique(labels)) < len(aim.classes):
        return Calibration(slope=1.0, offsets=(0.0,) * len(aim.classes), floor=aim.floor)
    return fit_calibration(_probabilities(units, aim), labels, aim.weights, aim.floor)


def calibrated(units: pd.DataFrame, calibration: Calibration, aim: Aim) -> pd.DataFrame:
    """The same rows with calibrated probabilities."""
    changed = units.copy()
    changed[list(aim.classes)] = calibration.apply(_probabilities(units, aim))
    return changed


def cross_calibrated(units: pd.DataFrame, of_fold: Mapping[int, Calibration], aim: Aim) -> pd.DataFrame:
    """The same rows, those of fold k (their column `fold`) calibrated by `of_fold[k]`, fitted on the other folds."""
    parts = [calibrated(units[units["fold"] == fold], of_fold[fold], aim) for fold in units["fold"].unique()]
    return pd.concat(parts).loc[units.index]


def score(units: pd.DataFrame, aim: Aim, resamples: int = 1000) -> dict[str, float | None]:
    """The figures of these rows, with their intervals, rounded to six digits."""
    found = figures(scored_of(units, aim), aim.classes, aim.positive, aim.weights, aim.clip, resamples=resamples)
    return {name: None if value is None else round(value, 6) for name, value in found.items()}


def scored_of(units: pd.DataFrame, aim: Aim) -> Scored:
    """The rows as `figures` takes them."""
    patients = units["patient"].to_numpy().astype(np.str_)
    return Scored(units["label"].to_numpy(np.int64), _probabilities(units, aim), patients)


def log_loss(units: pd.DataFrame, aim: Aim) -> float:
    """The weighted log loss alone."""
    labels = units["label"].tolist()
    return balanced_log_loss(_probabilities(units, aim).tolist(), labels, aim.weights, aim.clip)


def constant(aim: Aim) -> float:
    """The weighted log loss of the best constant: the weights themselves as probabilities."""
    weights = np.array(aim.weights) / np.sum(aim.weights)
    return float(-(weights * np.log(np.clip(weights, aim.clip, 1))).sum())


def _probabilities(units: pd.DataFrame, aim: Aim) -> Floats:
    return units[list(aim.classes)].to_numpy(np.float64)
