"""Turn the networks' outputs for tiles into the figures of images or patients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit import metric
from clotkit.competitions import Competition, Form, Rule
from clotkit.config import Recipe
from clotkit.data.tiles import TileSet
from clotkit.evaluation.figures import ScoredUnits, figures, positive_index, predicted_indices
from clotkit.members.calibration import Calibration, fit_calibration
from clotkit.members.decision import Decision, Ints, default_decision, fit_decision, leave_class_out, nested_answers
from clotkit.members.folder import DECISION
from clotkit.members.pooling import SlidePooling
from clotkit.metric import balanced_log_loss

Floats = npt.NDArray[np.float64]
CLIP = 1e-15  # of a probability in the log loss, for data without a competition


@dataclass(frozen=True)
class EvaluationTarget:
    """The classes, weights and units that predictions are scored by."""

    classes: tuple[str, ...]
    weights: tuple[float, ...]  # of the classes in the log loss
    positive: str  # the class that precision, recall and AUC are of
    clip: float  # of a probability in the log loss
    floor: float  # no calibrated probability is below it
    by_patient: bool  # average a patient's images and count it once; else every image counts
    competition: Competition | None = None  # whose metric and answers are computed as well; None: these are pictures

    @property
    def asked_for_labels(self) -> Competition | None:
        """Return the competition if its answers are labels, for which a decision is fitted."""
        return self.competition if self.competition and self.competition.submission.form is Form.LABEL else None

    def predicted_class(self, probabilities: Floats) -> str:
        """Return the name of the predicted class for probabilities [C]."""
        return self.classes[self.predicted_index(probabilities)]

    def predicted_index(self, probabilities: Floats) -> int:
        """Return the index of the predicted class for probabilities [C].

        Of two classes it is the positive one from a probability of 0.5 on, of more the likeliest.
        """
        return int(predicted_indices(probabilities[None], positive_index(self.classes, self.positive))[0])


def target_of(
    recipe: Recipe, labels: npt.NDArray[np.int64], classes: tuple[str, ...], competition: Competition
) -> EvaluationTarget:
    """Return what a recipe's predictions are scored by.

    Slides are scored as the competition does, and the classes weigh in the log loss as its metric needs. Pictures get
    the plain log loss: a class weighs its share of `labels`.
    """
    positive, floor = recipe.data.positive_class or classes[-1], recipe.inference.floor
    if recipe.data.source == "slides":
        known, scored_by = competition.classes, competition.metric
        weights = metric.calibration_weights(scored_by.name, known.weights, known.priors)
        by_patient = not competition.by_image
        return EvaluationTarget(classes, weights, positive, scored_by.clip, floor, by_patient, competition)
    shares = np.bincount(labels, minlength=len(classes)) / len(labels)
    return EvaluationTarget(classes, tuple(map(float, shares)), positive, CLIP, floor, by_patient=False)


def predicted_images(outputs: Floats, tiles: TileSet, pooling: SlidePooling) -> pd.DataFrame:
    """Return one row per image: image, patient, centre, label, and the probability of each class.

    The rows are in the order of the tiles. `outputs` [n, K] are those of the networks for the tiles.
    """
    rows = []
    for of_image in tiles.rows_by_image():
        first = of_image[0]
        facts = {
            "image": tiles.images[first],
            "patient": tiles.patients[first],
            "centre": tiles.centres[first],
            "label": int(tiles.labels[first]),
        }
        probabilities = pooling.pool(outputs[of_image])  # [C]
        rows.append(facts | dict(zip(tiles.classes, probabilities, strict=True)))
    return pd.DataFrame(rows, columns=["image", "patient", "centre", "label", *tiles.classes])


def rows_to_score(images: pd.DataFrame, target: EvaluationTarget) -> pd.DataFrame:
    """Return the rows that are scored: the images, or the mean over each patient's images."""
    if not target.by_patient or images.empty:
        return images
    kept = {name: "first" for name in images.columns if name not in {"patient", *target.classes}}
    return images.groupby("patient", as_index=False, sort=True).agg({**kept, **dict.fromkeys(target.classes, "mean")})


def calibrated_on(units: pd.DataFrame, target: EvaluationTarget) -> Calibration:
    """Return the calibration fitted on these rows; the identity if a class is missing."""
    labels = units["label"].to_numpy(np.int64)
    if len(np.unique(labels)) < len(target.classes):
        return Calibration(slope=1.0, offsets=(0.0,) * len(target.classes), floor=target.floor)
    return fit_calibration(_probabilities(units, target), labels, target.weights, target.floor)


def calibrated(units: pd.DataFrame, calibration: Calibration, target: EvaluationTarget) -> pd.DataFrame:
    """Return the rows with calibrated probabilities."""
    changed = units.copy()
    changed[list(target.classes)] = calibration.apply(_probabilities(units, target))
    return changed


def cross_calibrated(units: pd.DataFrame, of_fold: Mapping[int, Calibration], target: EvaluationTarget) -> pd.DataFrame:
    """Return the rows calibrated by fold: those with `fold` k by `of_fold[k]`, fitted on other folds."""
    parts = [calibrated(units[units["fold"] == fold], of_fold[fold], target) for fold in units["fold"].unique()]
    return pd.concat(parts).loc[units.index]


def decision_on(units: pd.DataFrame, of_fold: Mapping[int, Calibration], target: EvaluationTarget) -> Decision | None:
    """Return the decision fitted on raw rows, once calibrated by fold; None if answers are no labels."""
    if (asked := target.asked_for_labels) is None:
        return None
    if units.empty:
        return default_decision(asked.submission.rule, len(target.classes))
    return fit_decision(*_to_decide(units, of_fold, target, asked))


def nested_answers_on(units: pd.DataFrame, of_fold: Mapping[int, Calibration], target: EvaluationTarget) -> Ints | None:
    """Return the answer to each raw row, by a calibration and a decision fitted on other folds."""
    if (asked := target.asked_for_labels) is None:
        return None
    rule, p, labels, name, outliers = _to_decide(units, of_fold, target, asked)
    return nested_answers(rule, p, labels, units["fold"].to_numpy(np.int64), name, outliers)


@dataclass(frozen=True)
class HeldOutFit:
    """Calibration and decision of held-out rows, and the rows scored by fits to other folds."""

    scored: pd.DataFrame  # calibrated
    calibration: Calibration  # that ships
    fold_calibrations: list[Calibration]  # of each fold, fitted on the other folds
    decision: Decision | None  # None: answers are probabilities
    answers: Ints | None  # one per row of `scored`, by decisions fitted on the other folds

    def to_json(self) -> dict[str, Any]:
        """Return the contents of calibration.json."""
        decision = {} if self.decision is None else {DECISION: self.decision.to_json()}
        return self.calibration.to_json() | {"folds": [one.to_json() for one in self.fold_calibrations], **decision}


def fit_by_fold(units: pd.DataFrame, folds: int, target: EvaluationTarget) -> HeldOutFit:
    """Fit calibration and decision to the raw rows of all folds, and those of each fold to the others'."""
    of_fold = {number: calibrated_on(units[units["fold"] != number], target) for number in range(folds)}
    return HeldOutFit(
        cross_calibrated(units, of_fold, target),
        calibrated_on(units, target),
        list(of_fold.values()),
        decision_on(units, of_fold, target),
        nested_answers_on(units, of_fold, target),
    )


def _to_decide(
    units: pd.DataFrame, of_fold: Mapping[int, Calibration], target: EvaluationTarget, competition: Competition
) -> tuple[Rule, Floats, Ints, str, Floats]:
    """Return the arguments of fit_decision for raw rows.

    A class is left out before a calibration clips it.
    """
    labels, without = units["label"].to_numpy(np.int64), units.copy()
    without[list(target.classes)] = leave_class_out(_probabilities(units, target), labels)
    p, outliers = (_probabilities(cross_calibrated(rows, of_fold, target), target) for rows in (units, without))
    return competition.submission.rule, p, labels, competition.metric.name, leave_class_out(outliers, labels)


def competition_figures(units: pd.DataFrame, answers: Ints | None, target: EvaluationTarget) -> dict[str, Any] | None:
    """Return the competition's metric of calibrated rows, as metric_figures; None for pictures.

    `answers` are those of decisions; None: the likeliest class of each row.
    """
    if target.competition is None or units.empty:
        return None
    p, labels = _probabilities(units, target), units["label"].to_numpy(np.int64)
    return metric_figures(p, p.argmax(axis=1) if answers is None else answers, labels, target.competition)


def metric_figures(p: Floats, answers: Ints, labels: Ints, competition: Competition) -> dict[str, Any]:
    """Return the competition's metric: name, value, direction, and the value of the best constant.

    `p` [n, C] are probabilities and `answers` [n] class indices; the constant is the best one for these labels.
    """
    name, clip, weights = competition.metric.name, competition.metric.clip, competition.classes.weights
    shares = (np.bincount(labels, minlength=len(weights)) / len(labels)).tolist()
    value = metric.score(name, p.tolist(), answers.tolist(), labels.tolist(), weights, clip)
    best = metric.constant_score(name, weights, shares, clip)
    numbers = {key: None if np.isnan(one) else round(one, 6) for key, one in (("value", value), ("constant", best))}
    return {"name": name, **numbers, "higher_is_better": metric.METRICS[name].higher_is_better}


def metric_line(figures: Mapping[str, Any]) -> str:
    """Return the competition's metric, as metric_figures has it, in words."""
    value, best = ("undefined" if figures[key] is None else f"{figures[key]:.4f}" for key in ("value", "constant"))
    return f"{figures['name'].replace('_', ' ')} {value} (best constant {best})"


def score(units: pd.DataFrame, target: EvaluationTarget, resamples: int = 1000) -> dict[str, float | None]:
    """Return the figures of these rows, with their intervals, rounded to six digits."""
    values = figures(
        scored_of(units, target), target.classes, target.positive, target.weights, target.clip, resamples=resamples
    )
    return {name: None if value is None else round(value, 6) for name, value in values.items()}


def scored_of(units: pd.DataFrame, target: EvaluationTarget) -> ScoredUnits:
    """Return the rows in the form that `figures` takes."""
    patients = units["patient"].to_numpy().astype(np.str_)
    return ScoredUnits(units["label"].to_numpy(np.int64), _probabilities(units, target), patients)


def log_loss(units: pd.DataFrame, target: EvaluationTarget) -> float:
    """Return the weighted log loss of these rows."""
    labels = units["label"].tolist()
    return balanced_log_loss(_probabilities(units, target).tolist(), labels, target.weights, target.clip)


def constant(target: EvaluationTarget) -> float:
    """Return the weighted log loss of the best constant prediction: the class weights."""
    weights = np.array(target.weights) / np.sum(target.weights)
    return float(-(weights * np.log(np.clip(weights, target.clip, 1))).sum())


def _probabilities(units: pd.DataFrame, target: EvaluationTarget) -> Floats:
    return units[list(target.classes)].to_numpy(np.float64)
