"""Draw the figures of bench.curves as two plots, and write them as tables in Markdown."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from clotkit.evaluation.plots import GREY, PALETTE, figure_at
from clotkit.files import sha256

CURVE, ABLATIONS = "learning-curve.png", "ablations.png"
SOURCE = "Source"  # PNG text with the sha256 of the figures that a plot was drawn from
OUT_OF_FOLD, TEST = PALETTE[0], PALETTE[1]
LOSS_LABEL = "Weighted log loss (nats per patient)"

Figures = Mapping[str, Any]


def draw(figures: Figures, source: Path, images: Path) -> None:
    """Draw both plots into a folder; their PNG texts name the file of figures by its hash."""
    images.mkdir(parents=True, exist_ok=True)
    texts = {SOURCE: f"{source.name} sha256 {sha256(source)}"}
    if figures["curve"]:
        with figure_at(images / CURVE, 8.0, 4.6, **texts) as figure:
            _draw_curve(figure.subplots(), figures)
    if parts := figures["ablations"]:
        _draw_parts(images / ABLATIONS, parts, texts)


def _draw_parts(path: Path, parts: Mapping[str, Sequence[Figures]], texts: Mapping[str, str]) -> None:
    heights = [len(rows) for rows in parts.values()]
    with figure_at(path, 7.0, 0.22 * sum(heights) + 1.1 * len(parts), **texts) as figure:
        panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, rows) in zip(panels, parts.items(), strict=True):
            _draw_ablations(axes, name, rows)


def tables(figures: Figures) -> str:
    """Return the learning curve and the ablations as tables in Markdown."""
    parts = [_ablation_table(name, rows) for name, rows in figures["ablations"].items()]
    return "\n\n".join([*([_curve_table(figures)] if figures["curve"] else []), *parts])


def by_slides(figures: Figures) -> list[tuple[int, list[Figures]]]:
    """Return the points of the learning curve with their number of slides, the first slides first."""
    counts = dict.fromkeys(point["slides"] for point in figures["curve"])
    return [(count, [point for point in figures["curve"] if point["slides"] == count]) for count in counts]


def mean(rows: Sequence[Figures], key: str) -> float:
    """Return the mean of a figure."""
    return float(np.mean([row[key] for row in rows]))


def _draw_curve(axes: Axes, figures: Figures) -> None:
    groups = by_slides(figures)
    slides = [count for count, _ in groups]
    for key, colour, text, away in (
        ("loss", OUT_OF_FOLD, "out of fold", 0.97),
        ("test_loss", TEST, f"{figures['test']['slides']} test slides", 1.03),
    ):
        points = [(point["slides"] * away, point[key]) for point in figures["curve"]]
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=3.5, alpha=0.45)
        means = [mean(points, key) for _, points in groups]
        axes.plot(slides, means, "-", color=colour, linewidth=2)
        _label(axes, slides[-1], means[-1], text, colour)
    for count, (first, *_) in groups:
        axes.plot([count * 0.97] * 2, [first["low"], first["high"]], color=OUT_OF_FOLD, linewidth=1.2, alpha=0.6)
    best = [mean(points, "possible") for _, points in groups]
    axes.plot(slides, best, color=OUT_OF_FOLD, linewidth=1.2, linestyle=(0, (5, 2)))
    _label(axes, slides[-1], best[-1], "possible on these slides", OUT_OF_FOLD)
    ends = [slides[0], slides[-1]]
    for value, text, colour, dashes in (
        (figures["test"]["possible"], "possible on the test slides", TEST, (0, (5, 2))),
        (figures["constant"], "a constant", GREY, (0, (2, 2))),
    ):
        axes.plot(ends, [value] * 2, color=colour, linewidth=1.2, linestyle=dashes)
        _label(axes, slides[-1], value, text, colour)
    _spread(axes)
    axes.set_xscale("log")
    axes.set_xticks(slides, [f"{count:,}" for count in slides])
    axes.minorticks_off()
    axes.set(xlabel="Training slides (logarithmic)", ylabel=LOSS_LABEL)
    axes.set_title(
        "Recipe phantom: slides against loss. Bars: 95 % interval by patient; points: trainings", fontsize=10
    )


def _label(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Write a line's label to the right of its end."""
    axes.annotate(f"{text} {y:.3f}", (x, y), (10, 0), "data", "offset points", color=colour, fontsize=9, va="center")


def _spread(axes: Axes) -> None:
    """Move labels apart that would be written over each other, in the order of their values."""
    low, high = axes.get_ylim()
    least = (high - low) / 19
    labels = sorted((text for text in axes.texts), key=lambda text: text.xy[1])  # type: ignore[attr-defined]
    below = -math.inf
    for text in labels:
        wanted = max(text.xy[1], below + least)  # type: ignore[attr-defined]
        points = (wanted - text.xy[1]) / (high - low) * axes.bbox.height * 72 / axes.figure.dpi  # type: ignore[attr-defined]
        text.set_position((10, points))
        below = wanted


def _draw_ablations(axes: Axes, name: str, rows: Sequence[Figures]) -> None:
    """Draw the change of the loss by each step that is taken away, the largest at the top."""
    shown = sorted((row for row in rows if "changes" in row and row["name"] != "whole recipe"), key=_change)
    for at, row in enumerate(shown):
        _draw_change(axes, at + (0.13 if "test_change" in row else 0), row, "", OUT_OF_FOLD)
        if "test_change" in row:
            _draw_change(axes, at - 0.17, row, "test_", TEST)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(shown)), [row["name"] for row in shown])
    axes.tick_params(labelsize=8)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xscale("symlog", linthresh=0.02, linscale=1.2)
    axes.margins(x=0.05)
    axes.grid(visible=False, axis="y")
    ticks = [-0.1, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4]
    low, high = axes.get_xlim()
    axes.set_xticks(
        [tick for tick in ticks if low <= tick <= high], [f"{t:+g}" if t else "0" for t in ticks if low <= t <= high]
    )
    axes.minorticks_off()
    axes.set_xlabel(
        "Change of the log loss without it (nats; linear to 0.02, logarithmic beyond; right is worse)", fontsize=9
    )
    whole = next(row for row in rows if row["name"] == "whole recipe")
    unit = f"{whole['images']} {'slides' if 'test_loss' in whole else 'pictures'}"
    axes.set_title(f"Recipe {name}, {unit}: whole recipe {whole['loss']:.3f} out of fold", fontsize=9, loc="left")
    if "test_loss" in whole:
        for x, text, colour in ((0.68, "out of fold", OUT_OF_FOLD), (0.84, "test slides", TEST)):
            axes.text(x, 0.04, text, color=colour, transform=axes.transAxes, fontsize=8)


def _draw_change(axes: Axes, y: float, row: Figures, prefix: str, colour: str) -> None:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    axes.plot([low, high], [y, y], color=colour, linewidth=1.4, alpha=0.7)
    axes.plot(row[f"{prefix}changes"], [y] * len(row[f"{prefix}changes"]), "|", color=colour, markersize=5)
    axes.plot(row[f"{prefix}change"], y, "o", color=colour, markersize=4)


def _change(row: Figures) -> float:
    return float(row["change"])


def _curve_table(figures: Figures) -> str:
    lines = [
        "| slides | patients | folds | out of fold (95 %) | possible on these | above it | other slides, above | "
        f"{figures['test']['slides']} test slides | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for count, (first, *others) in by_slides(figures):
        tested = ", ".join(f"{one['test_loss']:.4f}" for one in (first, *others))
        above = ", ".join(f"{one['loss'] - one['possible']:+.4f}" for one in others) or "-"
        lines.append(
            f"| {count} | {first['patients']} | {first['folds']} "
            f"| {first['loss']:.4f} ({first['low']:.3f} to {first['high']:.3f}) "
            f"| {first['possible']:.4f} | {first['loss'] - first['possible']:+.4f} | {above} "
            f"| {tested} | {first['cpu_s']:.0f} |"
        )
    return "\n".join(lines)


def _ablation_table(name: str, rows: Sequence[Figures]) -> str:
    with_test = "test_loss" in rows[0]
    head = f"| `{name}`, without a step | out of fold | change (95 %) | by seed |"
    lines = [head + (" test slides | change (95 %) |" if with_test else ""), "|---" * (6 if with_test else 4) + "|"]
    for row in (rows[0], *sorted(rows[1:], key=_change, reverse=True)):
        cells = [row["name"], *_cells(row, ""), _seeds(row), *(_cells(row, "test_") if with_test else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: Figures, prefix: str) -> list[str]:
    loss = f"{row[f'{prefix}loss']:.4f}"
    if row["name"] == "whole recipe":
        return [loss, ""]
    return [loss, f"{row[f'{prefix}change']:+.4f} ({row[f'{prefix}low']:+.3f} to {row[f'{prefix}high']:+.3f})"]


def _seeds(row: Figures) -> str:
    return "" if row["name"] == "whole recipe" else ", ".join(f"{change:+.4f}" for change in row["changes"])
