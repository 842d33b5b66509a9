"""The pictures of an evaluation, as PNG: confusion, ROC, calibration, training curves.

The same input gives the same bytes with the same matplotlib: no date, no user's settings, no window. Colours are those
of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers can tell apart; past eight, and where
a line is printed grey, the dashes tell.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import SplitError
from clotkit.evaluation.figures import Floats, Scored, decided, positive_index
from clotkit.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
GREY = "#767676"
DPI = 150
STYLE = {
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


def draw_confusion(path: Path, scored: Scored, classes: Sequence[str], positive: str | None = None) -> None:
    """Write the confusion matrix: true classes down, decided ones across, each cell with its count and row share.

    Two classes are decided at a probability of 0.5 of `positive` (None: the second), more by the likeliest.
    """
    width, said = len(classes), decided(scored, positive_index(classes, positive))
    table = np.bincount(scored.labels * width + said, minlength=width * width).reshape(width, width)  # [true, decided]
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    with _figure(path, 3.8 + 0.8 * width, 2.4 + 0.8 * width) as figure:
        axes = figure.subplots()
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for true, other in np.ndindex(width, width):
            text = f"{table[true, other]:,}\n{_percent(table[true], other)}"
            colour = "white" if shares[true, other] > 0.55 else "black"
            axes.text(other, true, text, ha="center", va="center", color=colour, fontsize=9)
        _name_cells(axes, classes, table.sum(axis=1))
        axes.set_title(f"{len(said):,} rows, {float((said == scored.labels).mean()):.1%} right")
        bar = figure.colorbar(picture, ax=axes, shrink=0.75, format=_percent_ticks(), label="Share of the true class")
        bar.outline.set_visible(False)


def draw_roc(path: Path, scored: Scored, classes: Sequence[str], positive: str | None = None) -> None:
    """Write the ROC curves with their areas: one a class against the rest; of two classes that of `positive`.

    `positive` None is the second class. A class that no row, or every row, has gets no curve; the legend says so.
    """
    at, shares = positive_index(classes, positive), scored.shares()
    which = range(len(classes)) if at is None else [at]
    with _figure(path, 5.4 if len(which) == 1 else 8.4, 5.4) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)), label="Chance, AUC 0.500")
        for number, index in enumerate(which):
            look = {"color": PALETTE[number % len(PALETTE)], "linestyle": DASHES[number % len(DASHES)]}
            _draw_one_roc(axes, scored.labels == index, shares[:, index], _short(classes[index]), look)
        axes.set(xlabel="False positive rate (1 - specificity)", ylabel="True positive rate (sensitivity)")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_title("ROC" if at is not None else "ROC, each class against the rest")
        figure.legend(loc="outside lower center" if len(which) == 1 else "outside right upper", fontsize=9)


def draw_calibration(path: Path, scored: Scored, classes: Sequence[str], positive: str | None = None) -> None:
    """Write the reliability diagram, a histogram of the probabilities under it, the calibration error in the title.

    Two classes: the probability of `positive` (None: the second) against how often it is true. More: the probability
    of the likeliest class against how often that is right (Guo et al., ICML 2017). Rows are in ten groups of equal
    size, equal probabilities together; bars are Wilson's 95 % intervals, as if rows were independent of each other.
    """
    at = positive_index(classes, positive)
    said, right, what, how_often = _to_calibrate(scored, classes, at)
    groups = reliability(said, right)
    with _figure(path, 5.4, 6.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)), label="Perfect calibration")
        mean, share, low, high = groups[:, 1], groups[:, 2], groups[:, 3], groups[:, 4]
        spread = np.clip([share - low, high - share], 0, None)
        label = "Groups of equal size, 95 % interval"
        upper.errorbar(mean, share, yerr=spread, fmt="o-", color=PALETTE[0], capsize=3, linewidth=1.4, label=label)
        upper.set(ylabel=how_often, ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
        upper.set_title(f"Expected calibration error {expected_calibration_error(groups):.3f}, {len(said):,} rows")
        upper.legend(loc="upper left", fontsize=9)
        lower.hist(said, bins=np.linspace(0, 1, 21).tolist(), color=PALETTE[0], edgecolor="white", linewidth=0.6)
        lower.set(xlabel=what, ylabel="Rows")


def draw_curves(path: Path, history: "pd.DataFrame") -> None:
    """Write loss, and accuracy where there is one, by epoch: a colour a fold, solid validation, dashed training.

    `history` has the columns epoch and fold, and of loss, accuracy, val_loss, val_accuracy those that were measured;
    nan where a fold has none. With a column network, each network of a fold has its own line in the fold's colour.
    Raises SplitError without an epoch, a fold, or anything to draw.
    """
    panels = [name for name in ("loss", "accuracy") if {name, f"val_{name}"} & set(history.columns)]
    if not {"epoch", "fold"} <= set(history.columns) or not panels or not len(history):
        seen = f"{len(history)} rows with the columns {', '.join(map(str, history.columns)) or 'none'}"
        raise SplitError(f"training history: {seen}; give epoch, fold and loss or accuracy; train again")
    with _figure(path, 4.6 * len(panels) + 0.8, 4.4) as figure:
        for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_folds(axes, history, name)
        handles, labels = _curve_legend(history, panels)
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=9)


def reliability(said: Floats, right: npt.NDArray[np.bool_]) -> Floats:
    """Ten groups of rows by probability: float64[at most 10, 5] of rows, mean probability, share right, its interval.

    `said` float64[n] are probabilities, `right` bool[n] whether it was so. A row's group is the tenth in which its
    rank falls; equal probabilities share the middle of their ranks, so that they stay together.
    """
    _, which, counts = np.unique(said, return_inverse=True, return_counts=True)
    group = ((np.cumsum(counts) - counts / 2) * BINS / len(said)).astype(np.int64)[which]  # [n]
    rows = []
    for index in np.unique(group):
        inside = group == index
        count, share = int(inside.sum()), float(right[inside].mean())
        rows.append((count, float(said[inside].mean()), share, *wilson(share, count)))
    return np.array(rows, dtype=np.float64)


def expected_calibration_error(groups: Floats) -> float:
    """The mean gap between probability and share right in the groups of `reliability`, weighted by their rows.

    Naeini et al., AAAI 2015, with groups of equal size (Nguyen and O'Connor, EMNLP 2015).
    """
    return float(np.average(np.abs(groups[:, 1] - groups[:, 2]), weights=groups[:, 0]))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` >= 1 rows (Wilson, JASA 22, 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return middle - half, middle + half


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """A figure of so many inches to draw on; without an exception it becomes the PNG `path` in one step."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_write(path) as temporary:
            # the version of matplotlib would be in the metadata
            figure.savefig(temporary, format="png", metadata={"Software": None}, bbox_inches="tight", pad_inches=0.15)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _percent(row: npt.NDArray[np.int64], index: int) -> str:
    return f"{row[index] / row.sum():.0%}" if row.sum() else "-"


def _percent_ticks() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(xmax=1, decimals=0)


def _name_cells(axes: "Axes", classes: Sequence[str], counts: npt.NDArray[np.int64]) -> None:
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(classes) > 3 else {}
    axes.set_xticks(range(len(classes)), [_short(name) for name in classes], **turned)
    axes.set_yticks(range(len(classes)), [f"{_short(name)} ({n:,})" for name, n in zip(classes, counts, strict=True)])
    axes.set(xlabel="Decided class", ylabel="True class (rows)")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_one_roc(axes: "Axes", truth: npt.NDArray[np.bool_], scores: Floats, name: str, look: dict[str, Any]) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    if truth.all() or not truth.any():
        axes.plot([], [], label=f"{name}: {'every' if truth.all() else 'no'} row has it", **look)
        return
    false, true, _ = roc_curve(truth, scores)
    label = f"{name}, AUC {roc_auc_score(truth, scores):.3f} ({int(truth.sum()):,} rows)"
    axes.plot(false, true, linewidth=1.8, label=label, **look)


def _to_calibrate(
    scored: Scored, classes: Sequence[str], positive: int | None
) -> tuple[Floats, npt.NDArray[np.bool_], str, str]:
    """Probabilities [n], whether each was right [n], and what the two axes show."""
    shares = scored.shares()
    if positive is not None:
        name = _short(classes[positive])
        return shares[:, positive], scored.labels == positive, f"Probability of {name}", f"Share that is {name}"
    right = shares.argmax(axis=1) == scored.labels
    return shares.max(axis=1), right, "Probability of the likeliest class", "Share where that class is right"


def _draw_folds(axes: "Axes", history: "pd.DataFrame", name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = "o" if history["epoch"].nunique() < 20 else ""  # a single epoch would be no line at all
    for index, fold in enumerate(_folds(history)):
        look: dict[str, Any] = {"marker": marker, "markersize": 3, "color": PALETTE[index % len(PALETTE)]}
        for rows in _runs(history[history["fold"].astype(str) == fold]):
            _draw_run(axes, rows, name, look)
    axes.set(xlabel="Epoch", title=name.capitalize())
    if history["epoch"].nunique() == 1:
        axes.set_xlim(history["epoch"].min() - 1, history["epoch"].max() + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _runs(rows: "pd.DataFrame") -> "list[pd.DataFrame]":
    """The rows of each network of a fold, or all of them where the table knows no networks."""
    return [one for _, one in rows.groupby("network", dropna=False)] if "network" in rows else [rows]


def _draw_run(axes: "Axes", rows: "pd.DataFrame", name: str, look: dict[str, Any]) -> None:
    rows = rows.sort_values("epoch")
    for column, dashes, width in ((name, DASHES[1], 1.1), (f"val_{name}", DASHES[0], 1.8)):
        if column in rows and rows[column].notna().any():
            axes.plot(rows["epoch"], rows[column], linestyle=dashes, linewidth=width, **look)


def _folds(history: "pd.DataFrame") -> list[str]:
    return list(dict.fromkeys(history["fold"].astype(str)))


def _curve_legend(history: "pd.DataFrame", panels: Sequence[str]) -> tuple[list[Any], list[str]]:
    """What the line styles and the colours of the curves mean."""
    from matplotlib.lines import Line2D

    entries: list[tuple[Any, str]] = []
    if any(name in history for name in panels):
        entries.append((Line2D([], [], color=GREY, linestyle=DASHES[1], linewidth=1.1), "training"))
    if any(f"val_{name}" in history for name in panels):
        entries.append((Line2D([], [], color=GREY, linewidth=1.8), "validation"))
    for index, fold in enumerate(_folds(history)[:MOST_FOLDS_IN_LEGEND]):
        entries.append((Line2D([], [], color=PALETTE[index % len(PALETTE)], linewidth=3), f"fold {fold}"))
    return [handle for handle, _ in entries], [label for _, label in entries]
