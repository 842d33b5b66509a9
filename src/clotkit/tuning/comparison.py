"""Compare the winner of a study with the untuned recipe, on the patients of the outer part."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from clotkit.evaluation.figures import NAMES, loss_difference
from clotkit.evaluation.scores import EvaluationTarget, constant, score, scored_of
from clotkit.reasons import TuningVerdict

TUNED, UNTUNED = "tuned", "untuned"
NO_GAIN: dict[str, float | None] = {"value": None, "low": None, "high": None}


def compared(
    tuned: pd.DataFrame,
    untuned: pd.DataFrame,
    target: EvaluationTarget,
    inner: float,
    inner_untuned: float | None,
    is_same: bool,
) -> dict[str, Any]:
    """Return the losses of the winner and of the untuned recipe, their difference, and the verdict.

    A loss, and what follows from it, is None where predictions are not finite; `diverged` names these recipes.

    Args:
        tuned: the winner's predictions of the outer part, a row a unit.
        untuned: the untuned recipe's predictions of the same units.
        target: what they are scored by.
        inner: the winner's loss on the inner folds.
        inner_untuned: the untuned recipe's; None if no trial has its values, or that trial has no loss.
        is_same: whether the winner has the values of the untuned recipe.
    """
    rows = {TUNED: tuned, UNTUNED: untuned}
    diverged = [name for name, one in rows.items() if not _is_finite(one, target)]
    figures = {name: _figures(one, target, name not in diverged) for name, one in rows.items()}
    gain = NO_GAIN if diverged else _gain(tuned, untuned, target)
    outer, outer_untuned = (figures[name]["weighted_log_loss"] for name in (TUNED, UNTUNED))
    return {
        "constant": round(constant(target), 6),
        "inner_loss": round(inner, 6),
        "inner_loss_untuned": None if inner_untuned is None else round(inner_untuned, 6),
        "inner_gain": None if inner_untuned is None else round(inner_untuned - inner, 6),
        "outer_loss": outer,
        "outer_loss_untuned": outer_untuned,
        "optimism": None if outer is None else round(outer - inner, 6),
        "gain": gain,
        "verdict": TuningVerdict.DIVERGED if diverged else verdict_on(gain, is_same),
        "diverged": diverged,
        "outer": figures,
    }


def verdict_on(gain: Mapping[str, float | None], is_same: bool) -> TuningVerdict:
    """Return what the interval of a gain says."""
    low, high = gain["low"], gain["high"]
    if is_same:
        return TuningVerdict.SAME
    if low is not None and low > 0:
        return TuningVerdict.BETTER
    return TuningVerdict.WORSE if high is not None and high < 0 else TuningVerdict.UNCLEAR


def _gain(tuned: pd.DataFrame, untuned: pd.DataFrame, target: EvaluationTarget) -> dict[str, float | None]:
    return loss_difference(scored_of(untuned, target), scored_of(tuned, target), target.weights, target.clip)


def _is_finite(rows: pd.DataFrame, target: EvaluationTarget) -> bool:
    return bool(np.isfinite(rows[list(target.classes)].to_numpy(np.float64)).all())


def _figures(rows: pd.DataFrame, target: EvaluationTarget, is_finite: bool) -> dict[str, float | None]:
    """Return the figures of evaluation.scores.score; without finite rows, the counts alone."""
    if is_finite:
        return score(rows, target)
    names = [f"{name}{end}" for name in NAMES for end in ("", "_low", "_high")]
    return {"n": len(rows), "patients": rows["patient"].nunique(), **dict.fromkeys(names)}
