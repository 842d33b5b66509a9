"""Fit a linear model of mean features in closed form or by L-BFGS: no epochs, and no chance in it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import Recipe
from clotkit.data.tiles import TileSet
from clotkit.members.encoders.heads import Head
from clotkit.members.networks import STANDARDISE
from clotkit.members.pooling import TINY, linked
from clotkit.training.mil.bags import Bag, bags_of, features_of
from clotkit.training.resampling import sample_weights
from clotkit.training.trainers import Logs

CLASSES = "classes"  # name of the dense layer, see members.heads
MOST_ITERATIONS = 5000

Floats = npt.NDArray[np.float64]


def fit_linear(head: Head, recipe: Recipe, train: TileSet) -> Logs:
    """Fit the dense layer of mean_pool to the mean features of training bags; return its figures on these."""
    from keras import ops

    slides, bags = bags_of(train, recipe.mil)
    means = _means(train, bags)
    if recipe.model[0].standardise:
        means = np.asarray(ops.convert_to_numpy(head.model.get_layer(STANDARDISE)(means)), np.float64)
    weights = sample_weights(slides, recipe.training).astype(np.float64)
    solve = {"logistic": solve_logistic, "ridge": solve_ridge}[recipe.mil.fit]
    kernel, bias = solve(means, slides.labels, weights, recipe.model[0].l2)
    head.model.get_layer(CLASSES).set_weights([kernel, bias])
    p = linked(means @ kernel + bias, "softmax")
    return {
        "accuracy": float(np.average(p.argmax(axis=1) == slides.labels, weights=weights)),
        "loss": float(np.average(-np.log(np.maximum(p[np.arange(len(p)), slides.labels], TINY)), weights=weights)),
        "learning_rate": 0.0,
    }


def solve_logistic(means: Floats, labels: npt.NDArray[np.int64], weights: Floats, l2: float) -> tuple[Floats, Floats]:
    """Return the kernel [D, C] and bias [C] of least mean cross-entropy plus an L2 penalty.

    The penalty is l2 times the kernel's squared norm, and the bias has none. Of two classes each has half of the logit
    between them.
    """
    from sklearn.linear_model import LogisticRegression

    model: Any = LogisticRegression(C=1 / (2 * l2 * weights.sum()), max_iter=MOST_ITERATIONS)
    model.fit(means, labels, sample_weight=weights)
    kernel, bias = np.asarray(model.coef_.T, np.float64), np.asarray(model.intercept_, np.float64)
    if kernel.shape[1] == 1:
        return np.concatenate([-kernel, kernel], axis=1) / 2, np.concatenate([-bias, bias]) / 2
    return kernel, bias


def solve_ridge(means: Floats, labels: npt.NDArray[np.int64], weights: Floats, l2: float) -> tuple[Floats, Floats]:
    """Return the kernel [D, C] and bias [C] of least mean squared error plus the same penalty.

    Targets are 1 for the class and -1 for others.
    """
    from sklearn.linear_model import Ridge

    targets = 2.0 * np.eye(labels.max() + 1)[labels] - 1.0
    model: Any = Ridge(alpha=l2 * weights.sum()).fit(means, targets, sample_weight=weights)
    return np.asarray(model.coef_.T, np.float64), np.asarray(model.intercept_, np.float64)


def _means(train: TileSet, bags: list[Bag]) -> Floats:
    """Return the mean feature of each bag's tiles, [bags, D]."""
    features = features_of(train)
    by_path = dict(zip((file.path for file in features.files), features.moments()[:, 0], strict=True))
    of_bags = [
        np.average([by_path[file.path] for file in bag.files], axis=0, weights=[file.count for file in bag.files])
        for bag in bags
    ]
    return np.stack(of_bags).astype(np.float64)
