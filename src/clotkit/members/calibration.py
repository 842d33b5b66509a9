"""Fitting the calibration of a member on its out-of-fold predictions, patient by patient."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clotkit.members.ensemble import Calibration
from clotkit.members.pooling import TINY

# Before the first patient: no change, give or take so much (standard deviations of a Gaussian prior). Of hundreds of
# patients it moves nothing; of a few dozen it keeps the fit from following them.
SLOPE_PRIOR, OFFSET_PRIOR = 0.5, 1.0
SLOPES = (0.0, 4.0)


def fit_calibration(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], weights: Sequence[float], floor: float
) -> Calibration:
    """Fit slope and offsets to the metric itself: `probabilities` [n, C] of n patients, `labels` [n] class indices.

    `weights` [C] are the metric's, and no class's calibrated probability goes below `floor`. Every class needs a row.

    For two classes this is the balanced Platt scaling that takes the published out-of-fold predictions of this
    competition from 0.747 to 0.644: every class has its weight whatever its number of patients.
    """
    from scipy.optimize import minimize

    classes = len(weights)
    logs = np.log(np.clip(probabilities, TINY, 1 - TINY))  # [n, C]
    share = np.bincount(labels, minlength=classes)[labels]
    weight = np.array(weights)[labels] / share  # [n], each class sums to its metric weight
    weight /= weight.sum()

    def loss(parameters: npt.NDArray[np.float64]) -> float:
        slope, offsets = parameters[0], np.append(parameters[1:], 0.0)
        scores = slope * logs + offsets  # [n, C]
        chosen = scores[np.arange(len(labels)), labels] - np.logaddexp.reduce(scores, axis=1)
        doubt = float(((slope - 1) / SLOPE_PRIOR) ** 2) + float(((offsets / OFFSET_PRIOR) ** 2).sum())
        return float(-(weight * chosen).sum()) + doubt / (2 * len(labels))

    start = np.append(1.0, np.zeros(classes - 1))
    fitted = minimize(loss, start, method="L-BFGS-B", bounds=[SLOPES, *[(-10.0, 10.0)] * (classes - 1)])
    offsets = (*(round(float(value), 6) for value in fitted.x[1:]), 0.0)
    return Calibration(slope=round(float(fitted.x[0]), 6), offsets=offsets, floor=floor)
