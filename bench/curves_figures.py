"""The figures of bench.curves: losses with their intervals, paired changes, and the file of all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.separation import best_probabilities
from clotkit.errors import ConfigError
from clotkit.evaluation.figures import unit_losses, weighted_mean
from clotkit.evaluation.scores import (
    EvaluationTarget,
    score,
    scored_of,
)
from clotkit.metric import balanced_log_loss

RESAMPLES = 2000
LOSS = "weighted_log_loss"


def read_figures(path: Path) -> dict[str, Any]:
    """Return a file of figures; an empty one if there is none. Raises ConfigError for another file."""
    if not path.is_file():
        return {"curve": [], "ablations": {}}
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return figures | {"curve": list(figures["curve"]), "ablations": dict(figures["ablations"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no file of figures: {error!r}; delete it, or restore it") from error


def merged(figures: dict[str, Any], measured: dict[str, Any], keep_steps: bool = False) -> dict[str, Any]:
    """Return the figures with those that were measured in place of earlier ones; other parts stay.

    With `keep_steps` the steps of a part that were not measured stay as well.
    """
    parts = dict(figures["ablations"])
    for name, rows in measured["ablations"].items():
        kept = {row["name"]: row for row in parts.get(name, [])} if keep_steps else {}
        parts[name] = list((kept | {row["name"]: row for row in rows}).values())
    return figures | measured | {"ablations": dict(sorted(parts.items(), reverse=True))}


def possible(drawn: Path, images: set[str], target: EvaluationTarget) -> float:
    """Return the loss of the exact probabilities of the patients of some drawn slides."""
    best = best_probabilities(drawn, images)
    rows = [[1 - p, p] for p in best["p"]]
    return round(balanced_log_loss(rows, best["label"].tolist(), target.weights, target.clip), 6)


def figures(units: pd.DataFrame, target: EvaluationTarget) -> dict[str, Any]:
    """Return the loss with its interval, and each unit's -ln p of its class, to pair it with another's."""
    found, units = score(units, target), units.sort_values(["patient", "image"])
    return {
        "loss": found[LOSS],
        "low": found[f"{LOSS}_low"],
        "high": found[f"{LOSS}_high"],
        "patients": found["patients"],
        "units": {
            "patient": units["patient"].astype(str).tolist(),
            "label": units["label"].tolist(),
            "loss": unit_losses(scored_of(units, target), target.clip).round(6).tolist(),
        },
    }


def changed(
    name: str, rows: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]], target: EvaluationTarget
) -> dict[str, Any]:
    """Return the mean loss of a variant over its seeds, and how it differs from that of the whole recipe."""
    result: dict[str, Any] = {"name": name, "cpu_s": round(float(np.mean([row["cpu_s"] for row in rows])), 1)}
    for prefix in ("", "test_"):
        if f"{prefix}loss" not in rows[0]:
            continue
        losses = [row[f"{prefix}loss"] for row in rows]
        before = [row[f"{prefix}loss"] for row in whole]
        low, high = paired_interval(rows, whole, f"{prefix}units", target)
        result |= {
            f"{prefix}loss": round(float(np.mean(losses)), 6),
            f"{prefix}whole": round(float(np.mean(before)), 6),
            f"{prefix}change": round(float(np.mean(losses) - np.mean(before)), 6),
            f"{prefix}low": low,
            f"{prefix}high": high,
            f"{prefix}changes": [round(one - other, 6) for one, other in zip(losses, before, strict=True)],
        }
    return result


def paired_interval(
    rows: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]], key: str, target: EvaluationTarget
) -> tuple[float, float]:
    """Return the 95 % interval of the mean change over the seeds, in bootstrap samples of the patients."""
    units = rows[0][key]
    change = np.mean([row[key]["loss"] for row in rows], axis=0) - np.mean([row[key]["loss"] for row in whole], axis=0)
    found = weighted_mean(
        change, np.array(units["label"]), np.array(units["patient"]), target.weights, resamples=RESAMPLES
    )
    low, high = (float("nan") if end is None else round(end, 6) for end in (found["low"], found["high"]))
    return low, high
