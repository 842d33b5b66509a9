"""The calibrations that `clotkit blend` compares for any number of classes, and their fit.

Both average members and slides and end in a calibration by slope and offsets; the shrunken one believes a single slide
less than many.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from clotkit.ensembling.candidates import FOLDS, MIN_TO_CHOOSE, Split, auc_error, aucs, folds_of, rarest
from clotkit.evaluation.scores import CLIP
from clotkit.members.blending import BOUNDS, ClassCalibrator, Floats, Ints, class_means
from clotkit.members.calibration import fit_with_covariates, row_weights
from clotkit.members.decision import leave_class_out

MIN_UNITS = 3  # of each class, so that two are left to fit on when one is scored


@dataclass(frozen=True)
class Units:
    """Labelled units, patients or slides, with the members' probabilities of their slides."""

    p: Floats  # [slides, M, C], without NaN
    owner: Ints  # [slides], the index of each slide's unit
    label: Ints  # [n], class indices
    weights: tuple[float, ...]  # of the classes in the log loss, [C]
    inputs: Floats  # [slides, K], covariates

    def part(self, chosen: Ints) -> "Units":
        """Return the units with the indices `chosen`, in that order, with their slides."""
        new = np.full(len(self.label), -1)
        new[chosen] = np.arange(len(chosen))
        kept = new[self.owner] >= 0
        owner, label = new[self.owner[kept]], self.label[chosen]
        return replace(self, p=self.p[kept], owner=owner, label=label, inputs=self.inputs[kept])

    def strangers(self) -> "Units":
        """Return the units as networks that never learnt their class would predict them."""
        of_slide = self.label[self.owner]
        left = [leave_class_out(self.p[:, member], of_slide) for member in range(self.p.shape[1])]
        return replace(self, p=np.stack(left, axis=1))

    @cached_property
    def balance(self) -> Floats:
        """Return each unit's weight in the log loss: float64[n], with the sum 1."""
        return row_weights(self.label, self.weights)

    @cached_property
    def means(self) -> Floats:
        """Return each member's mean over each unit's slides: float64[n, M, C]."""
        return class_means(self.p.reshape(len(self.p), -1), self.owner).reshape(-1, *self.p.shape[1:])

    @cached_property
    def member_weights(self) -> Floats:
        """Return equal weights of the members better than chance, 0 for the others: float64[M], sum 1.

        Better than chance: the macro AUC exceeds 0.5 by more than its standard error. If no member is, all count.
        """
        good = (macro_aucs(self.means, self.label) > 0.5 + macro_auc_error(self.label)).astype(np.float64)
        weights: Floats = good / good.sum() if good.any() else np.full(len(good), 1 / len(good))
        return weights


def macro_aucs(p: Floats, label: Ints) -> Floats:
    """Return the macro AUC of each member [M] over the classes that there are, for `p` [n, M, C]."""
    areas = [aucs(p[:, :, index], (label == index).astype(np.int64)) for index in np.unique(label)]
    return np.asarray(np.mean(areas, axis=0), np.float64)


def macro_auc_error(label: Ints) -> float:
    """Return the standard error of a macro AUC of uninformative scores, as if its areas were alike."""
    classes = np.unique(label)
    return float(np.mean([auc_error((label == one).astype(np.int64)) for one in classes])) if len(classes) > 1 else 0.0


def class_loss(p: Floats, units: Units) -> float:
    """Return the weighted log loss of probabilities [n, C]."""
    of_label = p[np.arange(len(p)), units.label]
    return float(-(units.balance * np.log(np.clip(of_label, CLIP, 1))).sum())


@dataclass(frozen=True)
class ClassCandidate:
    """A calibration before its fit."""

    name: str
    pseudo_slides: float = 0.0  # slides at the mean of all slides that join each unit's own

    def fit(self, units: Units) -> ClassCalibrator:
        """Fit slope, offsets and coefficients of the units' means at the class weights."""
        slides = np.tensordot(units.p, units.member_weights, axes=(1, 0))  # [slides, C]
        prior = slides.mean(axis=0)
        means = class_means(slides, units.owner, self.pseudo_slides, prior.tolist())
        inputs = np.zeros((len(means), 0))
        if units.inputs.shape[1]:
            inputs = class_means(units.inputs, units.owner)
        floor = min(BOUNDS[0], 0.5 / len(prior))
        calibration, coefficients = fit_with_covariates(means, inputs, units.label, units.weights, floor)
        weights = tuple(units.member_weights.tolist())
        rows = tuple(tuple(row) for row in coefficients.tolist())
        return ClassCalibrator(weights, self.pseudo_slides, tuple(prior.tolist()), calibration, rows)

    def cross_fit(self, units: Units, splits: Sequence[Split]) -> Floats:
        """Return each unit's probabilities, and those as a stranger, from fits without it: float64[2, n, C]."""
        p = np.zeros((2, len(units.label), units.p.shape[2]))
        for train, test in splits:
            fitted, new = self.fit(units.part(train)), units.part(test)
            p[0, test], p[1, test] = (fitted.apply(one.p, one.owner, one.inputs) for one in (new, new.strangers()))
        return p


CLASS_CANDIDATES = (
    ClassCandidate("mean + slope and offsets"),
    ClassCandidate("shrunken mean + slope and offsets", pseudo_slides=2.0),
)


def fold_count(label: Ints, groups: Ints) -> int:
    """Return the number of folds: FOLDS, or as many as the rarest class has groups."""
    return min(FOLDS, rarest(label, groups))


def choose_class(units: Units, groups: Ints, seed: int) -> int:
    """Return the index of the candidate with the lowest cross-fitted loss on these units.

    With fewer than MIN_TO_CHOOSE units of a class that is the first: the difference could not be measured.
    """
    if rarest(units.label, groups) < MIN_TO_CHOOSE:
        return 0
    splits = list(folds_of(units, groups, seed + 1))
    return int(np.argmin([class_loss(one.cross_fit(units, splits)[0], units) for one in CLASS_CANDIDATES]))
