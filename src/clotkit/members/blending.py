"""Several members' probabilities of a patient's slides into one: pooled, calibrated in many ways, averaged. numpy only.

`clotkit blend` fits what is here, `clotkit run` applies it. Everything is about two classes: a number is the
probability of the positive one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError
from clotkit.members.pooling import TINY

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
COVARIATES = ("width_px", "height_px")  # of a slide, known before its pixels
TRIM = 0.2  # of the members, at either end, in a trimmed mean


def logit(p: Floats) -> Floats:
    """ln(p / (1 - p)), of p clipped to [TINY, 1 - TINY]."""
    clipped = np.clip(p, TINY, 1 - TINY)
    odds: Floats = np.log(clipped / (1 - clipped))
    return odds


def expit(x: Floats) -> Floats:
    """The inverse of logit: 1 / (1 + exp(-x))."""
    p: Floats = 1 / (1 + np.exp(-np.clip(x, -50, 50)))
    return p


LINKS: dict[str, Callable[[Floats], Floats]] = {  # what of a pooled probability a log odds is a straight line in
    "logit": logit,  # Platt scaling
    "complement": lambda p: -np.log1p(-np.clip(p, TINY, 1 - TINY)),  # the other half of beta calibration
    "linear": lambda p: p,
}


@dataclass(frozen=True)
class Expectation:
    """What members say on average, and how they vary together: it stands in for one that says nothing."""

    means: Floats  # [M]
    covariance: Floats  # [M, M]

    def filled(self, p: Floats) -> Floats:
        """`p` [slides, M] with every NaN replaced by its expectation given the row's other members.

        The conditional mean of a Gaussian: the fewer members there are, the nearer to what they say on average.
        """
        filled = p.copy()
        missing = np.isnan(p)
        for pattern in np.unique(missing[missing.any(axis=1)], axis=0):
            rows = (missing == pattern).all(axis=1)
            there = ~pattern
            weights = np.linalg.lstsq(
                self.covariance[np.ix_(there, there)], self.covariance[np.ix_(there, pattern)], rcond=None
            )[0]  # [present, missing]
            guess = self.means[pattern] + (p[np.ix_(rows, there)] - self.means[there]) @ weights
            filled[np.ix_(rows, pattern)] = np.clip(guess, TINY, 1 - TINY)
        return filled


@dataclass(frozen=True)
class Pool:
    """From members' probabilities of slides to one number a patient.

    `members` and `slides` name how; `weights` [M] are the members', summing to 1. `pseudo_slides` with the probability
    `prior` join a patient's own before the mean: of one slide alone less is believed than of five that agree.
    """

    members: str = "mean"
    slides: str = "mean"
    weights: tuple[float, ...] = ()
    pseudo_slides: float = 0.0
    prior: float = 0.5

    def apply(self, p: Floats, owner: Ints, patients: int) -> Floats:
        """`p` [slides, M] without NaN and each slide's patient [slides] to float64[patients]; each has a slide."""
        return SLIDE_POOLS[self.slides](MEMBER_POOLS[self.members](p, np.array(self.weights)), owner, patients, self)


def _trimmed(p: Floats, _weights: Floats) -> Floats:
    cut = int(TRIM * p.shape[1])
    mean: Floats = np.sort(p, axis=1)[:, cut : p.shape[1] - cut].mean(axis=1)
    return mean


def _mean_of_slides(x: Floats, owner: Ints, patients: int, pool: Pool) -> Floats:
    count = np.bincount(owner, minlength=patients)
    total = np.bincount(owner, x, patients) + pool.pseudo_slides * pool.prior
    mean: Floats = total / (count + pool.pseudo_slides)
    return mean


def _sum_of_slides(x: Floats, owner: Ints, patients: int, pool: Pool) -> Floats:
    summed: Floats = np.clip(pool.prior + np.bincount(owner, x - pool.prior, patients), TINY, 1 - TINY)
    return summed


def _largest(x: Floats, owner: Ints, patients: int, _pool: Pool) -> Floats:
    found = np.zeros(patients)
    np.maximum.at(found, owner, x)
    return found


def _median_of_slides(x: Floats, owner: Ints, patients: int, _pool: Pool) -> Floats:
    order = np.argsort(owner, kind="stable")
    parts = np.split(x[order], np.cumsum(np.bincount(owner, minlength=patients))[:-1])
    return np.array([np.median(part) for part in parts])


def _noisy_or(x: Floats, owner: Ints, patients: int, _pool: Pool) -> Floats:
    found: Floats = 1 - np.exp(np.bincount(owner, np.log1p(-np.clip(x, 0, 1 - TINY)), patients))
    return found


MEMBER_POOLS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "mean": lambda p, w: p @ w,
    "logit_mean": lambda p, w: expit(logit(p) @ w),
    "median": lambda p, _w: np.median(p, axis=1),
    "trimmed": _trimmed,
}
SLIDE_POOLS: dict[str, Callable[[Floats, Ints, int, "Pool"], Floats]] = {
    "mean": _mean_of_slides,
    "sum": _sum_of_slides,
    "max": _largest,
    "median": _median_of_slides,
    "noisy_or": _noisy_or,
}


@dataclass(frozen=True)
class Logistic:
    """A pooled probability to log odds: intercept + slopes . links, of the probability or of `floor` if that is more.

    One slope is Platt scaling in one of the links; "logit" and "complement" together are beta calibration (Kull, Silva
    Filho and Flach 2017).
    """

    slopes: Mapping[str, float]
    intercept: float
    floor: float = 0.0

    def log_odds(self, x: Floats) -> Floats:
        """float64[n] of float64[n]."""
        bounded = np.maximum(x, self.floor)
        odds = np.full(len(x), self.intercept)
        for link, slope in self.slopes.items():
            odds = odds + slope * LINKS[link](bounded)
        return odds


@dataclass(frozen=True)
class Steps:
    """A pooled probability to log odds through a line of straight pieces between probabilities: isotonic, clipped."""

    at: tuple[float, ...]
    p: tuple[float, ...]

    def log_odds(self, x: Floats) -> Floats:
        """float64[n] of float64[n]."""
        return logit(np.interp(x, self.at, self.p))


def covariates_of(owner: Ints, patients: int, sizes: Mapping[str, Sequence[float]]) -> Floats:
    """Covariates [patients, K]: the mean over a patient's slides of the logarithm of each of K `sizes` [slides].

    NaN where a slide's size is not known: NaN or 0.
    """
    count = np.bincount(owner, minlength=patients)
    found = np.zeros((patients, len(sizes)))
    for at, values in enumerate(sizes.values()):
        numbers = np.array(values, np.float64)
        found[:, at] = np.bincount(owner, np.log(np.where(numbers > 0, numbers, np.nan)), patients) / count
    return found


@dataclass(frozen=True)
class Covariate:
    """What a covariate adds to log odds: `slope` for every `scale` that it is above its `mean`."""

    name: str
    mean: float
    scale: float
    slope: float


@dataclass(frozen=True)
class Candidate:
    """One way from members to a calibrated probability: a pool, a calibration, and what slide sizes add to log odds."""

    name: str
    pool: Pool
    calibration: Logistic | Steps
    covariates: tuple[Covariate, ...] = ()  # one that is not known adds nothing

    def apply(self, p: Floats, owner: Ints, covariates: Floats) -> Floats:
        """`p` [slides, M] without NaN, each slide's patient [slides], covariates [patients, K] to float64[patients]."""
        log_odds = self.calibration.log_odds(self.pool.apply(p, owner, len(covariates)))
        for one, values in zip(self.covariates, covariates.T, strict=True):
            log_odds = log_odds + np.nan_to_num(one.slope * (values - one.mean) / one.scale)
        return expit(log_odds)


@dataclass(frozen=True)
class Committee:
    """Candidates that the data could not tell apart, averaged, and bounded to what the data has shown."""

    members: tuple[str, ...]
    expectation: Expectation
    candidates: tuple[Candidate, ...]
    bounds: tuple[float, float]

    @property
    def covariates(self) -> tuple[str, ...]:
        """The names of the covariates that it asks for."""
        return tuple(one.name for one in self.candidates[0].covariates)

    def apply(self, p: Floats, owner: Ints, covariates: Floats) -> Floats:
        """Probabilities float64[patients] of the positive class.

        `p` [slides, M] has a column for each of `members`, NaN where one says nothing (not all of a row), `owner`
        [slides] is each slide's index among the patients, `covariates` [patients, K] those that `covariates` names.
        """
        filled = self.expectation.filled(p)
        mean = np.mean([candidate.apply(filled, owner, covariates) for candidate in self.candidates], axis=0)
        bounded: Floats = np.clip(mean, *self.bounds)
        return bounded

    def to_json(self) -> dict[str, Any]:
        """As calibration.json of an ensemble has it."""
        return {
            "method": METHOD,
            "members": list(self.members),
            "means": self.expectation.means.round(8).tolist(),
            "covariance": self.expectation.covariance.round(10).tolist(),
            "bounds": list(self.bounds),
            "candidates": [_candidate_json(candidate) for candidate in self.candidates],
        }

    @classmethod
    def from_json(cls, raw: Any, where: str) -> "Committee":
        """Of what calibration.json says; raises ConfigError when it says something else."""
        try:
            if raw["method"] != METHOD:
                raise ConfigError(f"{where}: method is {raw['method']!r}; of an ensemble it is {METHOD!r}")
            expectation = Expectation(np.array(raw["means"], np.float64), np.array(raw["covariance"], np.float64))
            low, high = (float(value) for value in raw["bounds"])
            found = cls(
                tuple(map(str, raw["members"])),
                expectation,
                tuple(_candidate_of(candidate) for candidate in raw["candidates"]),
                (low, high),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{where}: is no calibration of an ensemble: {error!r}; run clotkit blend again"
            ) from error
        many = len(found.members)
        if not (many and found.candidates and expectation.means.shape == (many,)):
            raise ConfigError(f"{where}: {many} members, {len(found.candidates)} candidates; run clotkit blend again")
        return found


METHOD = "committee"


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    pool, calibration = candidate.pool, candidate.calibration
    return {
        "name": candidate.name,
        "pool": {name: getattr(pool, name) for name in Pool.__dataclass_fields__},
        "calibration": {name: getattr(calibration, name) for name in calibration.__dataclass_fields__},
        "covariates": [vars(one) for one in candidate.covariates],
    }


def _candidate_of(raw: dict[str, Any]) -> Candidate:
    pool = Pool(**{**raw["pool"], "weights": tuple(map(float, raw["pool"]["weights"]))})
    if pool.members not in MEMBER_POOLS or pool.slides not in SLIDE_POOLS:
        raise ValueError(f"pool {pool.members}, {pool.slides}")
    how = raw["calibration"]
    if "at" in how:
        calibration: Logistic | Steps = Steps(tuple(map(float, how["at"])), tuple(map(float, how["p"])))
    else:
        slopes = {link: float(slope) for link, slope in how["slopes"].items() if link in LINKS}
        calibration = Logistic(slopes, float(how["intercept"]), float(how["floor"]))
    covariates = tuple(Covariate(**one) for one in raw["covariates"])
    return Candidate(str(raw["name"]), pool, calibration, covariates)
