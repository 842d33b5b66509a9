"""Make metrics.json: the figures of a member on what it was not trained on."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from clotkit.config import Recipe
from clotkit.evaluation.scores import (
    EvaluationTarget,
    HeldOutFit,
    competition_figures,
    constant,
    cross_calibrated,
    log_loss,
    rows_to_score,
    score,
)


def member_metrics(
    recipe: Recipe, target: EvaluationTarget, out_of_fold: pd.DataFrame, fit: HeldOutFit, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the entries of metrics.json that all members share.

    Args:
        recipe: The member's recipe.
        target: What its predictions are scored by.
        out_of_fold: One row per image: the raw prediction of networks that were not trained on it.
        fit: What was fitted to these predictions or, of a single fold, to those of its validation part.
        facts: The entries that only the maker of the member knows: `data`, `networks_of_folds`, `material` (at least
            the number of patients and of images) and `estimate` (what the figures estimate).
    """
    competition = target.competition
    return {
        "classes": list(target.classes),
        "positive": target.positive,
        "competition": None if competition is None else competition.slug,
        "recipe": recipe.name,
        "seed": recipe.training.seed,
        "folds": len(fit.fold_calibrations),
        **facts,
        "unit": "patient" if target.by_patient else "image",
        "class_weights": list(target.weights),
        "clip": target.clip,
        "constant": round(constant(target), 6),
        "calibrated": not any(one.is_identity for one in (fit.calibration, *fit.fold_calibrations)),
        "weighted_log_loss_uncalibrated": round(log_loss(rows_to_score(out_of_fold, target), target), 6),
        **score(fit.scored, target),
        "competition_metric": competition_figures(fit.scored, fit.answers, target),
        **_figures_per_slide(out_of_fold, fit, target),
    }


def _figures_per_slide(out_of_fold: pd.DataFrame, fit: HeldOutFit, target: EvaluationTarget) -> dict[str, Any]:
    """Return the figures by slide for a member that is scored by patient, and nothing for others."""
    if not target.by_patient:
        return {}
    by_slide = replace(target, by_patient=False)
    return {
        "per_slide": score(cross_calibrated(out_of_fold, dict(enumerate(fit.fold_calibrations)), by_slide), by_slide)
    }
