"""Apply a fitted blend: several members' slide probabilities become one probability a patient.

`clotkit blend` fits it and `clotkit run` applies it. There are two classes, and every number is the probability of the
positive one. This module needs numpy only.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError, WeightsError
from clotkit.members.pooling import TINY

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
METHOD = "shrunken_platt"
SUM_TOLERANCE = 1e-3  # of the members' weights
BOUNDS = (0.01, 0.99)  # of a blended probability: one wrong patient costs at most -ln 0.01 = 4.6


def logit(p: Floats) -> Floats:
    """Return ln(p / (1 - p)), with p clipped to [TINY, 1 - TINY]."""
    clipped = np.clip(p, TINY, 1 - TINY)
    log_odds: Floats = np.log(clipped / (1 - clipped))
    return log_odds


def expit(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), the inverse of logit."""
    p: Floats = 1 / (1 + np.exp(-np.clip(x, -50, 50)))
    return p


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
        weights = np.array(numbers.pop("weights"))
        values = {"means": self.imputer.means, "covariance": self.imputer.covariance, "weights": weights, **numbers}
        for name, value in values.items():
            if not np.isfinite(value).all():
                return f"{name} has NaN or infinity"
        if weights.min() < 0 or abs(weights.sum() - 1) > SUM_TOLERANCE:
            return f"the members' weights are {weights.tolist()}; none below 0 and a sum of 1 are needed"
        if len(set(self.members)) != len(self.members):
            return f"a member is listed twice: {', '.join(self.members)}"
        return ""
