"""Calibrate probabilities, and fit a calibration to out-of-fold predictions, one row per unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError, WeightsError
from clotkit.members.pooling import TINY

Floats = npt.NDArray[np.float64]

# Standard deviations of a Gaussian prior around the identity (slope 1, offsets 0). With hundreds of patients it has no
# effect; with a few dozen it keeps the fit from following single patients.
SLOPE_PRIOR, OFFSET_PRIOR = 0.5, 1.0
COEFFICIENT_PRIOR = 1.0  # the same of a standardised covariate, around 0
SLOPES = (0.0, 4.0)  # bounds of the slope
OFFSETS = (-10.0, 10.0)  # bounds of each offset


@dataclass(frozen=True)
class Calibration:
    """A calibration of probabilities: p_c -> softmax(slope * ln p_c + offset_c), clipped.

    The clipped probabilities are rescaled to sum to 1. For two classes this is Platt scaling on the logit; for more,
    temperature scaling with a bias (Guo et al. 2017, "On calibration of modern neural networks"). It is fitted for the
    metric's class weights, not for the class shares.
    """

    slope: float
    offsets: tuple[float, ...]  # one per class
    floor: float  # probabilities are clipped to [floor, 1 - floor]

    def apply(self, probabilities: npt.ArrayLike, shift: npt.ArrayLike = 0.0) -> Floats:
        """Return the calibrated probabilities [..., C] of raw ones [..., C].

        `shift` [..., C] is added to the scores before the softmax: what other inputs than the probabilities say.
        """
        logs = np.log(np.clip(np.asarray(probabilities, np.float64), TINY, 1 - TINY))
        scores = self.slope * logs + np.array(self.offsets) + np.asarray(shift)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        clipped = np.clip(scores / scores.sum(axis=-1, keepdims=True), self.floor, 1 - self.floor)
        calibrated: Floats = clipped / clipped.sum(axis=-1, keepdims=True)
        return calibrated

    @property
    def is_identity(self) -> bool:
        """Tell if it only clips: it was not fitted, for want of a class."""
        return self.slope == 1 and not any(self.offsets)

    def to_json(self) -> dict[str, Any]:
        """Return the contents of calibration.json."""
        return {"method": "platt", "slope": self.slope, "offsets": list(self.offsets), "floor": self.floor}

    @classmethod
    def from_json(cls, raw: Any, where: str, classes: int | None = None) -> "Calibration":
        """Read the contents of calibration.json, `where` in messages. Raises ConfigError for others.

        Raises WeightsError for a NaN or an infinity, a negative slope, another number of offsets than `classes`, or a
        floor that leaves no probability; None: any number of offsets.
        """
        try:
            if raw["method"] != "platt":
                raise ConfigError(f"{where}: method is {raw['method']!r}; known: platt")
            found = cls(float(raw["slope"]), tuple(float(value) for value in raw["offsets"]), float(raw["floor"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{where}: needs method, slope, offsets and floor: {error!r}") from error
        classes = max(len(found.offsets), 1) if classes is None else classes
        finite = np.isfinite([found.slope, found.floor, *found.offsets]).all()
        if not finite or found.slope < 0 or len(found.offsets) != classes or not 0 <= found.floor < 1 / classes:
            raise WeightsError(
                f"{where}: slope {found.slope}, offsets {found.offsets}, floor {found.floor}; needed: finite numbers, "
                f"a slope of at least 0, {classes} offsets, a floor from 0 to below {1 / classes:.3g}"
            )
        return found


def fit_calibration(
    probabilities: Floats, labels: npt.NDArray[np.int64], weights: Sequence[float], floor: float
) -> Calibration:
    """Fit slope and offsets so that they minimise the metric, a weighted log loss.

    Every class has its weight whatever its number of patients. For two classes this is balanced Platt scaling; it
    improves the published out-of-fold predictions of the STRIP AI competition from 0.747 to 0.644.

    Args:
        probabilities: raw ones of n patients, [n, C].
        labels: class indices, [n]. Every class needs at least one row.
        weights: the metric's weight of each class, [C].
        floor: smallest calibrated probability of a class.
    """
    none = np.empty((len(labels), 0))
    return fit_with_covariates(probabilities, none, labels, weights, floor)[0]


def fit_with_covariates(
    probabilities: Floats,
    covariates: Floats,
    labels: npt.NDArray[np.int64],
    weights: Sequence[float],
    floor: float,
) -> tuple[Calibration, Floats]:
    """Fit slope, offsets and coefficients [K, C] of standardised covariates [n, K].

    Otherwise as fit_calibration. The coefficients have a Gaussian prior around 0; those of the last class are 0.
    """
    from scipy.optimize import minimize

    classes, count, rows = len(weights), covariates.shape[1], len(labels)
    weight, truth = row_weights(labels, weights), np.eye(classes)[labels]
    logs = np.log(np.clip(probabilities, TINY, 1 - TINY))  # [n, C]
    design = np.column_stack([covariates, np.ones(rows)])  # [n, K + 1], the offsets last
    spread = np.append(np.full(count, COEFFICIENT_PRIOR), OFFSET_PRIOR)[:, None]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, free = parameters[0], parameters[1:].reshape(count + 1, classes - 1)
        scores = slope * logs + np.column_stack([design @ free, np.zeros(rows)])  # [n, C]
        log_p = scores - np.logaddexp.reduce(scores, axis=1)[:, None]
        excess = weight[:, None] * (np.exp(log_p) - truth)  # [n, C], the gradient by the scores
        prior = ((slope - 1) / SLOPE_PRIOR) ** 2 + ((free / spread) ** 2).sum()
        gradient = design.T @ excess[:, :-1] + free / spread**2 / rows
        by_slope = (excess * logs).sum() + (slope - 1) / SLOPE_PRIOR**2 / rows
        value = -(weight * log_p[np.arange(rows), labels]).sum() + prior / (2 * rows)
        return float(value), np.append(by_slope, gradient.ravel())

    size = (count + 1) * (classes - 1)
    bounds = [SLOPES, *[OFFSETS] * size]
    fitted = minimize(loss, np.append(1.0, np.zeros(size)), jac=True, method="L-BFGS-B", bounds=bounds)
    free = np.column_stack([fitted.x[1:].reshape(count + 1, classes - 1), np.zeros(count + 1)]).round(6)
    return Calibration(round(float(fitted.x[0]), 6), tuple(free[-1].tolist()), floor), free[:-1]


def row_weights(labels: npt.NDArray[np.int64], weights: Sequence[float]) -> Floats:
    """Return the weight of each row [n] in a log loss that weighs classes, whatever their rows."""
    weight = np.array(weights)[labels] / np.bincount(labels, minlength=len(weights))[labels]
    share: Floats = weight / weight.sum()
    return share
