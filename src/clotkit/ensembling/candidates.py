"""The two calibrations that `clotkit blend` compares, their fit, and the choice between them.

Both average members and slides and end in balanced Platt scaling. The shrunken one also believes a single slide less
than many, and lets the lowest quarter of patients count alike. docs/explanation/decisions.md has the measurements
behind it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from clotkit.evaluation.figures import weighted_auc
from clotkit.evaluation.scores import CLIP
from clotkit.members.blending import Calibrator, Floats, Ints, logit, patient_means

FOLDS = 5
PENALTY = 1.0  # inverse strength of the ridge penalty on a standardised slope; it matters for a few dozen patients only
MIN_TO_CHOOSE = 50  # patients of the rarer class, below which plain Platt scaling is not challenged
Split = tuple[Ints, Ints]  # indices of the patients to fit on, and of those to score


@dataclass(frozen=True)
class Patients:
    """Labelled patients, with the members' probabilities of their slides."""

    p: Floats  # [slides, M], without NaN
    owner: Ints  # [slides], the index of each slide's patient
    label: Ints  # [n], 1 for the positive class, else 0
    odds: float  # ratio of the metric's class weights, positive to negative

    def part(self, chosen: Ints) -> "Patients":
        """Return the patients with the indices `chosen`, in that order, with their slides."""
        new = np.full(len(self.label), -1)
        new[chosen] = np.arange(len(chosen))
        kept = new[self.owner] >= 0
        return replace(self, p=self.p[kept], owner=new[self.owner[kept]], label=self.label[chosen])

    @cached_property
    def balance(self) -> Floats:
        """Return each patient's weight in the metric: float64[n], with the sum 1."""
        counts = np.bincount(self.label, minlength=2)
        weights = np.where(self.label == 1, self.odds / counts[1], 1 / counts[0])
        balance: Floats = weights / weights.sum()
        return balance

    @cached_property
    def means(self) -> Floats:
        """Return each member's mean over each patient's slides: float64[n, M]."""
        return np.column_stack([patient_means(column, self.owner) for column in self.p.T])

    @cached_property
    def member_weights(self) -> Floats:
        """Return equal weights of the members better than chance, 0 for the others: float64[M], sum 1.

        Better than chance: the AUC exceeds 0.5 by more than its standard error. If no member is, all count.
        """
        good = (aucs(self.means, self.label) > 0.5 + auc_error(self.label)).astype(np.float64)
        weights: Floats = good / good.sum() if good.any() else np.full(len(good), 1 / len(good))
        return weights


def aucs(p: Floats, label: Ints) -> Floats:
    """Return the area under the ROC curve of each column of `p` [n, M]: float64[M]."""
    return np.array([weighted_auc(label == 1, column, np.ones((1, len(label))))[0] for column in p.T])


def auc_error(label: Ints) -> float:
    """Return the standard error of the AUC of uninformative scores (Mann and Whitney 1947)."""
    negatives, positives = np.bincount(label, minlength=2).tolist()
    return float(np.sqrt((negatives + positives + 1) / (12 * negatives * positives)))


def loss_terms(p: Floats, patients: Patients) -> Floats:
    """Return the terms of the weighted log loss of `p` [n], one a patient: their sum is the metric."""
    of_label = np.where(patients.label == 1, p, 1 - p)
    terms: Floats = -patients.balance * np.log(np.clip(of_label, CLIP, 1))
    return terms


@dataclass(frozen=True)
class Candidate:
    """A calibration before its fit: how far patients are shrunk, and where the floor of their means lies."""

    name: str
    pseudo_slides: float = 0.0  # slides at the mean of all slides that join each patient's own
    floor_quantile: float = 0.0  # of the patients' means: smaller means count as this one

    def fit(self, patients: Patients) -> Calibrator:
        """Fit Platt scaling of the patients' means by logistic regression at the metric's class weights."""
        from sklearn.linear_model import LogisticRegression

        slides = patients.p @ patients.member_weights
        prior = float(slides.mean())
        means = patient_means(slides, patients.owner, self.pseudo_slides, prior)
        floor = float(np.quantile(means, self.floor_quantile))
        values = logit(np.maximum(means, floor))
        centre, scale = values.mean(), values.std() + 1e-9
        regression = LogisticRegression(C=PENALTY, solver="newton-cholesky", tol=1e-8)
        standardised, weights = ((values - centre) / scale)[:, None], patients.balance * len(patients.label)
        regression.fit(standardised, patients.label, weights)
        slope = float(regression.coef_[0, 0] / scale)
        intercept = float(regression.intercept_[0] - slope * centre)
        return Calibrator(tuple(patients.member_weights.tolist()), self.pseudo_slides, prior, floor, slope, intercept)

    def cross_fit(self, patients: Patients, splits: Iterable[Split]) -> Floats:
        """Return each patient's probability from the fit that it had no part in: float64[n]."""
        p = np.zeros(len(patients.label))
        for train, test in splits:
            new = patients.part(test)
            p[test] = self.fit(patients.part(train)).apply(new.p, new.owner)
        return p


PLATT = Candidate("mean + Platt")
SHRUNKEN = Candidate("shrunken mean + Platt above the 25 % quantile", pseudo_slides=2.0, floor_quantile=0.25)
CANDIDATES = (PLATT, SHRUNKEN)


def choose(patients: Patients, groups: Ints, seed: int) -> int:
    """Return the index of the candidate with the lowest cross-fitted loss on these patients.

    With fewer than MIN_TO_CHOOSE patients of a class that is PLATT: the difference could not be measured.
    """
    if rarest(patients.label, groups) < MIN_TO_CHOOSE:
        return CANDIDATES.index(PLATT)
    splits = list(folds_of(patients, groups, seed + 1))
    return int(np.argmin([loss_terms(one.cross_fit(patients, splits), patients).sum() for one in CANDIDATES]))


def rarest(label: Ints, groups: Ints) -> int:
    """Return how many groups have units of the class that fewest groups have."""
    return min(_groups_of_classes(label, groups).values(), default=0)


def _groups_of_classes(label: Ints, groups: Ints) -> dict[int, int]:
    """Return the number of groups that have units of each class."""
    return {int(one): len(np.unique(groups[label == one])) for one in np.unique(label)}


def class_of_groups(label: Ints, groups: Ints) -> Ints:
    """Return the class of each group, in ascending order of groups.

    Of several it is the one that fewest groups have.
    """
    names, group = np.unique(groups, return_inverse=True)
    counts = _groups_of_classes(label, groups)
    classes = np.full(len(names), -1)
    for one in sorted(counts, key=lambda one: -counts[one]):
        classes[group[label == one]] = one
    return classes


class Labelled(Protocol):
    """Units with a class each."""

    @property
    def label(self) -> Ints:
        """Return the class index of each unit."""


def folds_of(patients: Labelled, groups: Ints, seed: int, folds: int = FOLDS) -> Iterator[Split]:
    """Yield splits of the patients, stratified by class; patients of one group stay together."""
    from sklearn.model_selection import StratifiedKFold

    names, group = np.unique(groups, return_inverse=True)
    label = class_of_groups(patients.label, groups)
    for _, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(names, label):
        is_test = np.isin(group, test)
        yield np.flatnonzero(~is_test), np.flatnonzero(is_test)
