"""Fitting the calibration of a member on its out-of-fold predictions, patient by patient."""

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.infer.ensemble import TINY, Calibration

FLOOR = 0.02  # no patient may cost more than -ln 0.02 = 3.9 by one wrong answer
RIDGE = 1e-3  # pulls the slope towards 1, so that a few separable patients do not give the steepest one
SLOPES = (0.0, 4.0)


def fit_calibration(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], competition: Competition
) -> Calibration:
    """Fit slope and offsets to the metric itself: `probabilities` [n, C] of n patients, `labels` [n] class indices.

    For two classes this is the balanced Platt scaling that takes the published out-of-fold predictions of this
    competition from 0.747 to 0.644: every class has its weight whatever its number of patients.
    """
    from scipy.optimize import minimize

    classes = len(competition.classes.names)
    logs = np.log(np.clip(probabilities, TINY, 1 - TINY))  # [n, C]
    share = np.bincount(labels, minlength=classes)[labels]
    weight = np.array(competition.classes.weights)[labels] / share  # [n], each class sums to its metric weight
    weight /= weight.sum()

    def loss(parameters: npt.NDArray[np.float64]) -> float:
        slope, offsets = parameters[0], np.append(parameters[1:], 0.0)
        scores = slope * logs + offsets  # [n, C]
        chosen = scores[np.arange(len(labels)), labels] - np.logaddexp.reduce(scores, axis=1)
        penalty = RIDGE * float((slope - 1) ** 2)
        return float(-(weight * chosen).sum()) + penalty

    start = np.append(1.0, np.zeros(classes - 1))
    fitted = minimize(loss, start, method="L-BFGS-B", bounds=[SLOPES, *[(-10.0, 10.0)] * (classes - 1)])
    offsets = (*(round(float(value), 6) for value in fitted.x[1:]), 0.0)
    return Calibration(slope=round(float(fitted.x[0]), 6), offsets=offsets, floor=FLOOR)
