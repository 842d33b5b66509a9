"""Fit the calibration of a member on its out-of-fold predictions, one row per patient."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clotkit.members.ensemble import Calibration
from clotkit.members.pooling import TINY

# Standard deviations of a Gaussian prior around the identity (slope 1, offsets 0). With hundreds of patients it has no
# effect; with a few dozen it keeps the fit from following single patients.
SLOPE_PRIOR, OFFSET_PRIOR = 0.5, 1.0
SLOPES = (0.0, 4.0)  # bounds of the slope
OFFSETS = (-10.0, 10.0)  # bounds of each offset


def fit_calibration(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], weights: Sequence[float], floor: float
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
    from scipy.optimize import minimize

    classes = len(weights)
    logs = np.log(np.clip(probabilities, TINY, 1 - TINY))  # [n, C]
    class_size = np.bincount(labels, minlength=classes)[labels]  # [n]
    weight = np.array(weights)[labels] / class_size  # [n], each class sums to its weight in the metric
    weight /= weight.sum()

    def loss(parameters: npt.NDArray[np.float64]) -> float:
        slope, offsets = parameters[0], np.append(parameters[1:], 0.0)
        scores = slope * logs + offsets  # [n, C]
        log_likelihood = scores[np.arange(len(labels)), labels] - np.logaddexp.reduce(scores, axis=1)  # [n]
        prior = float(((slope - 1) / SLOPE_PRIOR) ** 2) + float(((offsets / OFFSET_PRIOR) ** 2).sum())
        return float(-(weight * log_likelihood).sum()) + prior / (2 * len(labels))

    start = np.append(1.0, np.zeros(classes - 1))
    fitted = minimize(loss, start, method="L-BFGS-B", bounds=[SLOPES, *[OFFSETS] * (classes - 1)])
    offsets = (*(round(float(value), 6) for value in fitted.x[1:]), 0.0)
    return Calibration(slope=round(float(fitted.x[0]), 6), offsets=offsets, floor=floor)
