"""Draw the plots of an evaluation as PNG: confusion, ROC, calibration, training curves.

The same input gives the same bytes with the same matplotlib: no date, no user settings, no window. The colours are
those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers can tell apart. Beyond eight lines,
and in grey prints, dashes tell them apart.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import SplitError
from clotkit.evaluation.figures import Floats, ScoredUnits, positive_index, predicted
from clotkit.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
GREY = "#767676"
DPI = 150
FONT = "DejaVu Sans"  # matplotlib brings it: the same input gives the same bytes wherever it is drawn
STYLE = {
    "font.family": FONT,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may have a dollar sign in its name
}
BINS = 10
MOST_FOLDS_IN_LEGEND = 12
LONGEST_NAME = 28  # of a class, in characters, before it is cut in a label


def draw_confusion(path: Path, scored: ScoredUnits, classes: Sequence[str], positive: str | None = None) -> None:
    """Write the confusion matrix: true classes down, predicted ones across.

    Each cell has its count and its share of the row. Of two classes, `positive` (None: the second) is predicted from a
    probability of 0.5; of more, the likeliest.
    """
    width, guesses = len(classes), predicted(scored, positive_index(classes, positive))
    table = np.bincount(scored.labels * width + guesses, minlength=width * width).reshape(
        width, width
    )  # [true, predicted]
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    with figure_at(path, 3.8 + 0.8 * width, 2.4 + 0.8 * width) as figure:
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for true, other in np.ndindex(width, width):
            text = f"{table[true, other]:,}\n{_percent(table[true], other)}"
            colour = "white" if shares[true, other] > 0.55 else "black"
            axes.text(other, true, text, ha="center", va="center", color=colour, fontsize=9)
        _name_cells(axes, classes, table.sum(axis=1))
        axes.set_title(f"{len(guesses):,} rows, {float((guesses == scored.labels).mean()):.1%} right")
        bar = figure.colorbar(picture, ax=axes, shrink=0.75, format=_percent_ticks(), label="Share of the true class")
        bar.outline.set_visible(False)


def draw_roc(path: Path, scored: ScoredUnits, classes: Sequence[str], positive: str | None = None) -> None:
    """Write the ROC curves with their areas: each class against the rest, or only the positive one of two.

    `positive` None is the second class. A class that no row or every row has gets no curve; the legend says so.
    """
    at, shares = positive_index(classes, positive), scored.shares()
    which, names = range(len(classes)) if at is None else [at], _labels(classes)
    with figure_at(path, 5.4 if len(which) == 1 else 8.4, 5.4) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)), label="Chance, AUC 0.500")
        for number, index in enumerate(which):
            style = {"color": PALETTE[number % len(PALETTE)], "linestyle": DASHES[number % len(DASHES)]}
            _draw_one_roc(axes, scored.labels == index, shares[:, index], names[index], style)
        axes.set(xlabel="False positive rate (1 - specificity)", ylabel="True positive rate (sensitivity)")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_title("ROC" if at is not None else "ROC, each class against the rest")
        figure.legend(loc="outside lower center" if len(which) == 1 else "outside right upper", fontsize=9)


def draw_calibration(path: Path, scored: ScoredUnits, classes: Sequence[str], positive: str | None = None) -> None:
    """Write the reliability diagram above a histogram of the probabilities.

    The title has the expected calibration error. Of two classes, the probability of `positive` (None: the second) is
    plotted against how often it is true; of more, that of the likeliest class against how often it is right (Guo et
    al., ICML 2017). Rows are in ten groups of equal size, with equal probabilities in one group. Bars are Wilson's 95 %
    intervals, as if rows were independent.
    """
    at = positive_index(classes, positive)
    p, right, p_label, share_label = _to_calibrate(scored, classes, at)
    groups = reliability(p, right)
    with figure_at(path, 5.4, 6.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)), label="Perfect calibration")
        mean, share, low, high = groups[:, 1], groups[:, 2], groups[:, 3], groups[:, 4]
        spread = np.clip([share - low, high - share], 0, None)
        label = "Groups of equal size, 95 % interval"
        upper.errorbar(mean, share, yerr=spread, fmt="o-", color=PALETTE[0], capsize=3, linewidth=1.4, label=label)
        upper.set(ylabel=share_label, ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
        upper.set_title(f"Expected calibration error {expected_calibration_error(groups):.3f}, {len(p):,} rows")
        upper.legend(loc="upper left", fontsize=9)
        lower.hist(p, bins=np.linspace(0, 1, 21).tolist(), color=PALETTE[0], edgecolor="white", linewidth=0.6)
        lower.set(xlabel=p_label, ylabel="Rows")


def draw_curves(path: Path, history: "pd.DataFrame") -> None:
    """Write loss and accuracy by epoch: one colour per fold, validation solid, training dashed.

    `history` has the columns epoch and fold, and those of loss, accuracy, val_loss and val_accuracy that were measured;
    NaN where a fold has no value. With a column network, each network of a fold has its own line in the fold's colour.
    Raises SplitError without rows, without epoch or fold, or without a measured column.
    """
    panels = [name for name in ("loss", "accuracy") if {name, f"val_{name}"} & set(history.columns)]
    if not {"epoch", "fold"} <= set(history.columns) or not panels or not len(history):
        actual = f"{len(history)} rows with the columns {', '.join(map(str, history.columns)) or 'none'}"
        raise SplitError(f"training history: {actual}; give epoch, fold and loss or accuracy; train again")
    with figure_at(path, 4.6 * len(panels) + 0.8, 4.4) as figure:
        for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_folds(axes, history, name)
        handles, labels = _curve_legend(history, panels)
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=9)


def reliability(p: Floats, right: npt.NDArray[np.bool_]) -> Floats:
    """Group rows by probability into tenths of equal size: float64[at most 10, 5].

    A group has its number of rows, mean probability, share that is right, and the low and high end of the share's
    interval. A row's group is the tenth in which its rank falls; equal probabilities share the middle of their ranks,
    so they stay together.

    Args:
        p: Probabilities, float64[n].
        right: True where the outcome occurred, bool[n].
    """
    _, which, counts = np.unique(p, return_inverse=True, return_counts=True)
    group = ((np.cumsum(counts) - counts / 2) * BINS / len(p)).astype(np.int64)[which]  # [n]
    rows = []
    for index in np.unique(group):
        inside = group == index
        count, share = int(inside.sum()), float(right[inside].mean())
        rows.append((count, float(p[inside].mean()), share, *wilson(share, count)))
    return np.array(rows, dtype=np.float64)


def expected_calibration_error(groups: Floats) -> float:
    """Return the mean gap between probability and share right in the groups of `reliability`.

    Groups are weighted by their rows (Naeini et al., AAAI 2015) and of equal size (Nguyen and O'Connor, EMNLP 2015).
    """
    return float(np.average(np.abs(groups[:, 1] - groups[:, 2]), weights=groups[:, 0]))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` >= 1 rows (Wilson, JASA 22, 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return middle - half, middle + half


@contextmanager
def figure_at(path: Path, width: float, height: float, **texts: str) -> Iterator["Figure"]:
    """Yield a figure of that size in inches; if nothing is raised, write it to `path` atomically.

    `texts` are written into the file as PNG texts.
    """
    from matplotlib import style as styles
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with styles.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_write(path) as temporary:
            # Software None: the metadata would name the version of matplotlib
            facts = {"Software": None, **texts}
            figure.savefig(temporary, format="png", metadata=facts, bbox_inches="tight", pad_inches=0.15)


def _labels(classes: Sequence[str]) -> list[str]:
    """Return the classes' names, cut to LONGEST_NAME; "class 0" for one that the font cannot draw."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(FONT))
    return [
        (name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…")
        if all(font.get_char_index(ord(letter)) for letter in name)
        else f"class {index}"
        for index, name in enumerate(classes)
    ]


def _percent(row: npt.NDArray[np.int64], index: int) -> str:
    return f"{row[index] / row.sum():.0%}" if row.sum() else "-"


def _percent_ticks() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1, decimals=0)


def _name_cells(axes: "Axes", classes: Sequence[str], counts: npt.NDArray[np.int64]) -> None:
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(classes) > 3 else {}
    labels = _labels(classes)
    axes.set_xticks(range(len(classes)), labels, **turned)
    axes.set_yticks(range(len(classes)), [f"{name} ({n:,})" for name, n in zip(labels, counts, strict=True)])
    axes.set(xlabel="Predicted class", ylabel="True class (rows)")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_one_roc(axes: "Axes", truth: npt.NDArray[np.bool_], scores: Floats, name: str, style: dict[str, Any]) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    if truth.all() or not truth.any():
        axes.plot([], [], label=f"{name}: {'every' if truth.all() else 'no'} row has it", **style)
        return
    false, true, _ = roc_curve(truth, scores)
    label = f"{name}, AUC {roc_auc_score(truth, scores):.3f} ({int(truth.sum()):,} rows)"
    axes.plot(false, true, linewidth=1.8, label=label, **style)


def _to_calibrate(
    scored: ScoredUnits, classes: Sequence[str], positive: int | None
) -> tuple[Floats, npt.NDArray[np.bool_], str, str]:
    """Return probabilities [n], a mask of those that were right [n], and the labels of the two axes."""
    shares = scored.shares()
    if positive is not None:
        name = _labels(classes)[positive]
        return shares[:, positive], scored.labels == positive, f"Probability of {name}", f"Share that is {name}"
    right = shares.argmax(axis=1) == scored.labels
    return shares.max(axis=1), right, "Probability of the likeliest class", "Share where that class is right"


def _draw_folds(axes: "Axes", history: "pd.DataFrame", name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = "o" if history["epoch"].nunique() < 20 else ""  # a single epoch has no line to draw
    for index, fold in enumerate(_folds(history)):
        style: dict[str, Any] = {"marker": marker, "markersize": 3, "color": PALETTE[index % len(PALETTE)]}
        for rows in _runs(history[history["fold"].astype(str) == fold]):
            _draw_run(axes, rows, name, style)
    axes.set(xlabel="Epoch", title=name.capitalize())
    if history["epoch"].nunique() == 1:
        axes.set_xlim(history["epoch"].min() - 1, history["epoch"].max() + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _runs(rows: "pd.DataFrame") -> "list[pd.DataFrame]":
    """Return the rows of each network of a fold; all rows together if no network is named."""
    return [one for _, one in rows.groupby("network", dropna=False)] if "network" in rows else [rows]


def _draw_run(axes: "Axes", rows: "pd.DataFrame", name: str, style: dict[str, Any]) -> None:
    rows = rows.sort_values("epoch")
    for column, dashes, width in ((name, DASHES[1], 1.1), (f"val_{name}", DASHES[0], 1.8)):
        if column in rows and rows[column].notna().any():
            axes.plot(rows["epoch"], rows[column], linestyle=dashes, linewidth=width, **style)


def _folds(history: "pd.DataFrame") -> list[str]:
    return list(dict.fromkeys(history["fold"].astype(str)))


def _curve_legend(history: "pd.DataFrame", panels: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Return the legend of the curves: their line styles and colours."""
    from matplotlib.lines import Line2D

    entries: list[tuple[Any, str]] = []
    if any(name in history for name in panels):
        entries.append((Line2D([], [], color=GREY, linestyle=DASHES[1], linewidth=1.1), "training"))
    if any(f"val_{name}" in history for name in panels):
        entries.append((Line2D([], [], color=GREY, linewidth=1.8), "validation"))
    for index, fold in enumerate(_folds(history)[:MOST_FOLDS_IN_LEGEND]):
        entries.append((Line2D([], [], color=PALETTE[index % len(PALETTE)], linewidth=3), f"fold {fold}"))
    return [handle for handle, _ in entries], [label for _, label in entries]
