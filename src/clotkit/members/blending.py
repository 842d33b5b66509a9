"""Apply a fitted blend: several members' slide probabilities become those of each patient.

`clotkit blend` fits it and `clotkit run` applies it. There are two kinds. `Blend` is for two classes, and every number
is the probability of the positive one. `ClassBlend` is for any number of classes, may have columns of the slides' rows
as further inputs, and a decision for answers that are labels.
It needs numpy and scipy only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from clotkit.errors import ConfigError, WeightsError
from clotkit.members.calibration import Calibration
from clotkit.members.decision import Decision
from clotkit.members.pooling import TINY
from clotkit.splits.tables import spelled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
METHOD, CLASS_METHOD = "shrunken_platt", "slope_and_offsets"
SUM_TOLERANCE = 1e-3  # of the members' weights
BOUNDS = (0.01, 0.99)  # of a blended probability: one wrong patient costs at most -ln 0.01 = 4.6


def logit(p: Floats) -> Floats:
    """Return ln(p / (1 - p)), the inverse of expit, with p clipped to [TINY, 1 - TINY]."""
    clipped = np.clip(p, TINY, 1 - TINY)
    log_odds: Floats = np.log(clipped / (1 - clipped))
    return log_odds


@dataclass(frozen=True)
class Imputer:
    """The joint Gaussian of the members' probabilities, from which missing ones are imputed."""

    means: Floats  # [M]
    covariance: Floats  # [M, M]

    def fill(self, p: Floats) -> Floats:
        """Return `p` [slides, M], each NaN replaced by its conditional mean given the row's others."""
        filled = p.copy()
        missing = np.isnan(p)
        for pattern in np.unique(missing[missing.any(axis=1)], axis=0):
            rows = (missing == pattern).all(axis=1)
            present = ~pattern
            weights = np.linalg.lstsq(
                self.covariance[np.ix_(present, present)], self.covariance[np.ix_(present, pattern)], rcond=None
            )[0]  # [present, missing]
            imputed = self.means[pattern] + (p[np.ix_(rows, present)] - self.means[present]) @ weights
            filled[np.ix_(rows, pattern)] = np.clip(imputed, TINY, 1 - TINY)
        return filled


def patient_means(slides: Floats, owner: Ints, pseudo_slides: float = 0.0, prior: float = 0.0) -> Floats:
    """Return the mean over each patient's slides, shrunk towards `prior`: float64[patients].

    `slides` has one probability a slide and `owner` the index of each slide's patient; every patient has a slide.
    `pseudo_slides` slides with the probability `prior` join a patient's own before the mean, so that one slide moves it
    less than five that agree.
    """
    means: Floats = (np.bincount(owner, slides) + pseudo_slides * prior) / (np.bincount(owner) + pseudo_slides)
    return means


@dataclass(frozen=True)
class Calibrator:
    """A mean over members and slides, shrunk, followed by Platt scaling above a floor."""

    weights: tuple[float, ...]  # of the members; they sum to 1
    pseudo_slides: float
    prior: float  # probability of a pseudo-slide
    floor: float  # a smaller mean counts as this one
    slope: float
    intercept: float

    def apply(self, p: Floats, owner: Ints) -> Floats:
        """Return the calibrated probabilities of the patients, within BOUNDS: float64[patients].

        `p` [slides, M] has the members' probabilities, none of them NaN; `owner` [slides] the index of each slide's
        patient.
        """
        means = patient_means(p @ np.array(self.weights), owner, self.pseudo_slides, self.prior)
        log_odds = self.slope * logit(np.maximum(means, self.floor)) + self.intercept
        bounded: Floats = np.clip(expit(log_odds), *BOUNDS)
        return bounded


@dataclass(frozen=True)
class Blend:
    """A fitted blend: its members, the imputation of missing ones, and the calibration of their mean."""

    members: tuple[str, ...]
    imputer: Imputer
    calibrator: Calibrator
    classes: ClassVar[int] = 2
    columns: ClassVar[tuple[str, ...]] = ()
    decision: ClassVar[None] = None

    def probabilities(self, p: Floats, owner: Ints, _facts: Sequence[Mapping[str, str]]) -> Floats:
        """Return the probabilities [patients, 2]; `p` [slides, M, 2] has NaN where a member is missing."""
        positive = self.apply(p[:, :, 1], owner)
        return np.column_stack([1 - positive, positive])

    def apply(self, p: Floats, owner: Ints) -> Floats:
        """Return the probabilities of the patients; as Calibrator.apply, but `p` may have NaN."""
        return self.calibrator.apply(self.imputer.fill(p), owner)

    def to_json(self) -> dict[str, Any]:
        """Return the content of an ensemble's calibration.json."""
        return {
            "method": METHOD,
            "members": list(self.members),
            "means": self.imputer.means.round(8).tolist(),
            "covariance": self.imputer.covariance.round(10).tolist(),
            "calibrator": asdict(self.calibrator),
        }

    @classmethod
    def from_json(cls, raw: Any, where: str) -> "Blend":
        """Read the content of an ensemble's calibration.json, which errors call `where`.

        Raises ConfigError for any other content, a file of an older clotkit among them.
        """
        try:
            if raw["method"] != METHOD:
                raise ConfigError(f"{where}: method is {raw['method']!r}, allowed: {METHOD!r}; run clotkit blend again")
            means, covariance = (np.array(raw[name], np.float64) for name in ("means", "covariance"))
            numbers = dict(raw["calibrator"])
            weights = tuple(map(float, numbers.pop("weights")))
            calibrator = Calibrator(weights, **{name: float(value) for name, value in numbers.items()})
            members, count = tuple(map(str, raw["members"])), len(raw["members"])
            shapes = (len(weights),), means.shape, covariance.shape
            if not count or shapes != ((count,), (count,), (count, count)):
                raise ValueError(f"{count} members, but weights, means and covariance of shapes {shapes}")
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: not an ensemble's calibration: {error!r}; run clotkit blend again") from error
        found = cls(members, Imputer(means, covariance), calibrator)
        if problem := found.problem():
            raise WeightsError(f"{where}: {problem}; run clotkit blend again")
        return found

    def problem(self) -> str:
        """Return what is wrong with the numbers, empty for nothing."""
        numbers = asdict(self.calibrator)
        weights = numbers.pop("weights")
        found = not_finite({"means": self.imputer.means, "covariance": self.imputer.covariance, **numbers})
        return found or problem_of_weights(self.members, weights)


@dataclass(frozen=True)
class Covariates:
    """Columns of the slides' rows as inputs of a calibration: standardised numbers, and texts by category."""

    numbers: Mapping[str, tuple[float, float]]  # mean and standard deviation of a column of numbers
    texts: Mapping[str, tuple[str, ...]]  # categories of a column of texts; another text has none of them

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns."""
        return (*self.numbers, *self.texts)

    def inputs(self, facts: Sequence[Mapping[str, str]]) -> Floats:
        """Return the inputs of slides [slides, K] from their rows; what is missing or no number is 0.

        Columns may be spelled otherwise than where the blend was fitted, as `Age` for `age`.
        """
        rows = [[*self._numbers_of(row), *self._categories_of(row)] for row in facts]
        return np.array(rows, np.float64).reshape(len(rows), -1)

    def _numbers_of(self, row: Mapping[str, str]) -> list[float]:
        values = [(number_of(cell_of(row, name) or ""), mean, sd) for name, (mean, sd) in self.numbers.items()]
        return [0.0 if math.isnan(value) else (value - mean) / sd for value, mean, sd in values]

    def _categories_of(self, row: Mapping[str, str]) -> list[float]:
        cells = [(cell_of(row, name), texts) for name, texts in self.texts.items()]
        return [float(cell == text) for cell, texts in cells for text in texts]


NO_COVARIATES = Covariates({}, {})


def cell_of(row: Mapping[str, str], name: str) -> str | None:
    """Return the cell of a column, or of the only one whose name differs in spelling alone.

    None if there is no such column.
    """
    if name in row:
        return row[name]
    wanted = spelled(name)
    alike = [cell for other, cell in row.items() if wanted and spelled(other) == wanted]
    return alike[0] if len(alike) == 1 else None


def number_of(cell: str) -> float:
    """Return the finite number in a cell, else NaN."""
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def class_means(
    slides: Floats, owner: Ints, pseudo_slides: float = 0.0, prior: Sequence[float] | None = None
) -> Floats:
    """Return the means [patients, K] over each patient's slides [slides, K], as patient_means does."""
    towards = [0.0] * slides.shape[1] if prior is None else prior
    columns = [patient_means(column, owner, pseudo_slides, p) for column, p in zip(slides.T, towards, strict=True)]
    return np.array(columns).reshape(slides.shape[1], -1).T


@dataclass(frozen=True)
class ClassCalibrator:
    """A mean over members and slides, shrunk, followed by a calibration that may also take covariates."""

    weights: tuple[float, ...]  # of the members; they sum to 1
    pseudo_slides: float
    prior: tuple[float, ...]  # probabilities [C] of a pseudo-slide
    calibration: Calibration
    coefficients: tuple[tuple[float, ...], ...] = ()  # [K, C]

    def apply(self, p: Floats, owner: Ints, inputs: Floats) -> Floats:
        """Return the calibrated probabilities of the patients, [patients, C].

        Args:
            p: the members' probabilities [slides, M, C], none of them NaN.
            owner: the index of each slide's patient [slides].
            inputs: the covariates of each slide [slides, K].
        """
        means = class_means(np.tensordot(p, np.array(self.weights), axes=(1, 0)), owner, self.pseudo_slides, self.prior)
        shift = class_means(inputs, owner) @ np.array(self.coefficients) if self.coefficients else 0.0
        return self.calibration.apply(means, shift)


@dataclass(frozen=True)
class ClassBlend:
    """A fitted blend for any number of classes."""

    members: tuple[str, ...]
    imputer: Imputer  # of the members' probabilities side by side, [M * C]
    calibrator: ClassCalibrator
    covariates: Covariates = NO_COVARIATES
    decision: Decision | None = None  # None: answers are probabilities

    @cached_property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.calibrator.prior)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of slides' rows that it uses."""
        return self.covariates.columns

    def probabilities(self, p: Floats, owner: Ints, facts: Sequence[Mapping[str, str]]) -> Floats:
        """Return the probabilities [patients, C]; `p` [slides, M, C] has NaN where a member is missing."""
        return self.calibrator.apply(fill_classes(self.imputer, p), owner, self.covariates.inputs(facts))

    def to_json(self) -> dict[str, Any]:
        """Return the content of an ensemble's calibration.json."""
        fitted = self.calibrator
        return {
            "method": CLASS_METHOD,
            "members": list(self.members),
            "means": self.imputer.means.round(8).tolist(),
            "covariance": self.imputer.covariance.round(10).tolist(),
            "weights": list(fitted.weights),
            "pseudo_slides": fitted.pseudo_slides,
            "prior": list(fitted.prior),
            "calibration": fitted.calibration.to_json(),
            "coefficients": [list(row) for row in fitted.coefficients],
            "numbers": {name: list(pair) for name, pair in self.covariates.numbers.items()},
            "texts": {name: list(texts) for name, texts in self.covariates.texts.items()},
            "decision": self.decision and self.decision.to_json(),
        }

    @classmethod
    def from_json(cls, raw: Any, where: str) -> "ClassBlend":
        """Read the content of an ensemble's calibration.json, which errors call `where`.

        Raises ConfigError for any other content, WeightsError for numbers that cannot be used.
        """
        try:
            prior = tuple(map(float, raw["prior"]))
            calibration = Calibration.from_json(raw["calibration"], where, len(prior))
            coefficients = tuple(tuple(map(float, row)) for row in raw["coefficients"])
            weights = tuple(map(float, raw["weights"]))
            numbers = {str(name): (float(mean), float(sd)) for name, (mean, sd) in raw["numbers"].items()}
            texts = {str(name): tuple(map(str, some)) for name, some in raw["texts"].items()}
            found = cls(
                tuple(map(str, raw["members"])),
                Imputer(*(np.array(raw[name], np.float64) for name in ("means", "covariance"))),
                ClassCalibrator(weights, float(raw["pseudo_slides"]), prior, calibration, coefficients),
                Covariates(numbers, texts),
                None if raw["decision"] is None else Decision.from_json(raw["decision"], where, len(prior)),
            )
            if wrong := found._wrong_shape():
                raise ValueError(wrong)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{where}: not an ensemble's calibration: {error!r}; run clotkit blend again") from error
        if problem := found.problem():
            raise WeightsError(f"{where}: {problem}; run clotkit blend again")
        return found

    def _wrong_shape(self) -> str:
        """Return which numbers are too few or too many, empty for none."""
        members, classes, fitted = len(self.members), self.classes, self.calibrator
        size, inputs = members * classes, self.covariates.inputs([{}]).shape[1]
        shapes = {
            "weights": ((len(fitted.weights),), (members,)),
            "means": (self.imputer.means.shape, (size,)),
            "covariance": (self.imputer.covariance.shape, (size, size)),
            "coefficients": (np.array(fitted.coefficients).reshape(-1, classes).shape, (inputs, classes)),
        }
        if not members:
            return "no members"
        return next((f"{name} {got}, needed: {wanted}" for name, (got, wanted) in shapes.items() if got != wanted), "")

    def problem(self) -> str:
        """Return what is wrong with the numbers, empty for nothing."""
        fitted = self.calibrator
        values = {
            "means": self.imputer.means,
            "covariance": self.imputer.covariance,
            "prior": fitted.prior,
            "coefficients": [value for row in fitted.coefficients for value in row],
            "numbers": [value for pair in self.covariates.numbers.values() for value in pair],
            "pseudo_slides": fitted.pseudo_slides,
        }
        if any(sd <= 0 for _, sd in self.covariates.numbers.values()):
            return "a standard deviation is not above 0"
        return not_finite(values) or problem_of_weights(self.members, fitted.weights)


def fill_classes(imputer: Imputer, p: Floats) -> Floats:
    """Return `p` [slides, M, C] with missing members imputed, each member's row summing to 1."""
    filled = imputer.fill(p.reshape(len(p), -1)).reshape(p.shape)
    whole: Floats = filled / filled.sum(axis=2, keepdims=True)
    return whole


def not_finite(values: Mapping[str, Any]) -> str:
    """Return which of the named numbers has NaN or infinity, empty for none."""
    return next((f"{name} has NaN or infinity" for name, value in values.items() if not np.isfinite(value).all()), "")


def problem_of_weights(members: Sequence[str], weights: Sequence[float]) -> str:
    """Return what is wrong with the members and their weights, empty for nothing."""
    if bad := not_finite({"weights": weights}):
        return bad
    if min(weights) < 0 or abs(sum(weights) - 1) > SUM_TOLERANCE:
        return f"the members' weights are {list(weights)}; none below 0 and a sum of 1 are needed"
    return f"a member is listed twice: {', '.join(members)}" if len(set(members)) != len(members) else ""


def read_blend(raw: Any, where: str) -> Blend | ClassBlend:
    """Read either kind of blend from an ensemble's calibration.json; raises as their from_json."""
    other = isinstance(raw, dict) and raw.get("method") == CLASS_METHOD
    return ClassBlend.from_json(raw, where) if other else Blend.from_json(raw, where)
