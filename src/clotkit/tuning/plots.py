"""Draw a study: the losses by trial, how much each key mattered, and all values side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clotkit.evaluation.plots import GREY, PALETTE, figure_at
from clotkit.tuning.search import Entry

COMPLETE = "complete"
MAP = "viridis_r"  # from light, the highest loss, to dark, the lowest


def draw_history(path: Path, trials: pd.DataFrame) -> None:
    """Write each inner loss and the lowest so far, with marks for trials without a loss.

    `trials` has the columns outer, number, state and loss; each outer fold has its colour.
    """
    with figure_at(path, 6.4, 4.2) as figure:
        axes = figure.subplots()
        for index, (outer, rows) in enumerate(trials.groupby("outer")):
            colour = PALETTE[index % len(PALETTE)]
            done = rows[rows["state"] == COMPLETE]
            axes.plot(done["number"], done["loss"], "o", markersize=4, color=colour, alpha=0.6)
            name = "Lowest so far" if trials["outer"].nunique() == 1 else f"Lowest so far, outer fold {outer}"
            axes.step(done["number"], done["loss"].cummin(), where="post", color=colour, linewidth=1.8, label=name)
        pruned = trials.loc[trials["state"] != COMPLETE, "number"]
        if len(pruned):
            bottom = axes.get_xaxis_transform()
            axes.plot(pruned, [0.02] * len(pruned), "|", color=GREY, transform=bottom, label="Without a loss")
        axes.set(xlabel="Trial", ylabel="Inner weighted log loss", title="Trials")
        axes.legend(fontsize=9)


def draw_importances(path: Path, importances: Mapping[str, float]) -> None:
    """Write a bar for each key: its share of what made losses low (PED-ANOVA)."""
    names = sorted(importances, key=lambda name: importances[name])
    with figure_at(path, 6.4, 1.6 + 0.4 * len(names)) as figure:
        axes = figure.subplots()
        axes.barh(range(len(names)), [importances[name] for name in names], color=PALETTE[0])
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="Importance, as a share", title="Importance of each key" if names else "Too few trials")


def draw_parallel(path: Path, trials: pd.DataFrame, entries: Mapping[str, Entry]) -> None:
    """Write each complete trial as a line over one axis a key, the lowest losses dark and on top.

    `trials` has the columns state, loss and a key of the search each.
    """
    from matplotlib import colormaps

    done = trials[trials["state"] == COMPLETE].sort_values("loss", ascending=False)
    names = list(entries)
    heights = np.stack([_heights(entries[name], done[name].tolist()) for name in names], axis=1)  # [trials, keys]
    ranks = np.linspace(0, 1, max(len(done), 2))  # in place of the losses, which have outliers
    with figure_at(path, 2.2 + 1.7 * len(names), 4.6) as figure:
        axes = figure.subplots()
        for row, colour in zip(heights, colormaps[MAP](ranks), strict=False):
            axes.plot(range(len(names)), row, color=colour, linewidth=1.4, alpha=0.8)
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axes.set_yticks([])
        axes.set_ylim(-0.08, 1.08)
        axes.set_title("Values of the complete trials; the darker, the lower the loss")
        for at, name in enumerate(names):
            for height, text in _ticks(entries[name]):
                axes.annotate(text, (at, height), xytext=(4, 0), textcoords="offset points", fontsize=8, color=GREY)


def _heights(entry: Entry, values: Sequence[Any]) -> np.ndarray:
    """Return the place of each value on its axis, 0 to 1."""
    if entry.choices:
        labels = [json.dumps(label) for label in entry.labels]
        return np.array([labels.index(json.dumps(value)) for value in values], float) / (len(labels) - 1)
    low, high, numbers = float(entry.low or 0), float(entry.high or 0), np.array(values, float)
    if entry.log:
        low, high, numbers = np.log(low), np.log(high), np.log(numbers)
    return (numbers - low) / (high - low)


def _ticks(entry: Entry) -> list[tuple[float, str]]:
    if entry.choices:
        return [(at / (len(entry.labels) - 1), str(label)) for at, label in enumerate(entry.labels)]
    return [(0.0, f"{entry.low:g}"), (1.0, f"{entry.high:g}")]
