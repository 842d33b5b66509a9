"""Summarise a member's training: figures with intervals, plots, the images with the largest errors."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from clotkit.errors import ConfigError
from clotkit.evaluation import plots
from clotkit.evaluation.errors_page import ErrorRow, loss_of, worst_first
from clotkit.evaluation.figures import NAMES
from clotkit.evaluation.loaded_member import LoadedMember
from clotkit.evaluation.scores import calibrated, rows_to_score, scored_of
from clotkit.members.folder import CARD, HISTORY, OUT_OF_FOLD, read_member

MOST_ROWS = 30  # images with the largest errors that are shown
_drawing = threading.Lock()  # matplotlib's settings are shared by the whole process


@dataclass(frozen=True)
class Training:
    """The summary of a member's training, as tables and plots of a page."""

    about: str  # how the figures were estimated, one line
    figures: list[dict[str, Any]]  # name, value and 95 % interval of each figure
    plots: dict[str, bytes]  # PNG files by title
    worst: list[dict[str, Any]]  # the units with the largest errors
    wrong: int  # units with a wrong label
    units: int  # units that are scored: patients or images


def card_of(folder: Path) -> str:
    """Return the member's card as Markdown; empty if it has none."""
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def training_of(folder: Path, member: LoadedMember) -> Training:
    """Summarise a member's training. Raises ConfigError if one of its tables is missing or damaged."""
    metrics = read_member(folder).metrics
    units = _units(_table(folder / OUT_OF_FOLD), member)
    rows = _rows(units, member)
    wrong = [row for row in rows if member.target.predicted_index(row.probabilities) != row.label]
    return Training(
        about=f"{metrics['estimate'].capitalize()}: {metrics['n']} {metrics['unit']}s, data {metrics['data']}",
        figures=[_figure(name, metrics) for name in NAMES if metrics.get(name) is not None],
        plots=_curves(folder / HISTORY) | _plots(units, member),
        worst=[_table_row(wrong[index], member) for index in worst_first(wrong, member.target.clip, MOST_ROWS)],
        wrong=len(wrong),
        units=len(rows),
    )


def _units(images: pd.DataFrame, member: LoadedMember) -> pd.DataFrame:
    """Return the scored units, each calibrated by the other folds' calibration if the member has one."""
    units = rows_to_score(images, member.target)
    if len(member.fold_calibrations) > 1:
        return member.calibrated(units)
    return calibrated(
        units, member.fold_calibrations[0] if member.fold_calibrations else member.calibration, member.target
    )


def _rows(units: pd.DataFrame, member: LoadedMember) -> list[ErrorRow]:
    probabilities = units[list(member.target.classes)].to_numpy(np.float64)  # [units, C]
    about = units[["image", "patient", "centre", "label"]].astype({"image": str, "patient": str}).to_dict("records")
    return [
        ErrorRow(row["image"], row["patient"], str(row["centre"]), int(row["label"]), p)
        for row, p in zip(about, probabilities, strict=True)
    ]


def _table_row(row: ErrorRow, member: LoadedMember) -> dict[str, Any]:
    return {
        "image": row.image,
        "patient": row.patient,
        "true": member.target.classes[row.label],
        "predicted": member.target.predicted_class(row.probabilities),
        "probability of the true class": round(float(row.probabilities[row.label]), 4),
        "log loss": round(loss_of(row, member.target.clip), 3),
    }


def _figure(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    values = {"value": metrics[name], "low": metrics.get(f"{name}_low"), "high": metrics.get(f"{name}_high")}
    return {"figure": name.replace("_", " ")} | {key: None if v is None else round(v, 4) for key, v in values.items()}


def _curves(path: Path) -> dict[str, bytes]:
    """Return the plot of the losses by epoch, and none of an imported member, which has no history."""
    if not path.exists():
        return {}
    history = _table(path)
    return {"Curves": _drawn(lambda picture: plots.draw_curves(picture, history))}


def _plots(units: pd.DataFrame, member: LoadedMember) -> dict[str, bytes]:
    scored, target = scored_of(units, member.target), member.target
    return {
        "Confusion matrix": _drawn(lambda path: plots.draw_confusion(path, scored, target.classes, target.positive)),
        "ROC": _drawn(lambda path: plots.draw_roc(path, scored, target.classes, target.positive)),
        "Calibration": _drawn(lambda path: plots.draw_calibration(path, scored, target.classes, target.positive)),
    }


def _drawn(draw: Callable[[Path], None]) -> bytes:
    with _drawing, TemporaryDirectory(prefix="clotkit-app-") as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return path.read_bytes()


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(
            path, dtype={"image": str, "patient": str, "centre": str}, keep_default_na=False, na_values=[""]
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.parent.name}/{path.name}: cannot be read; train the member again") from error
