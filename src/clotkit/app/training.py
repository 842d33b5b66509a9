"""What a member's folder says of its training: figures with intervals, plots, the images that it got most wrong."""

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
from clotkit.evaluation.evaluate import Asked
from clotkit.evaluation.figures import NAMES
from clotkit.evaluation.scores import calibrated, scored_of, units_of
from clotkit.members.folder import CARD, HISTORY, OUT_OF_FOLD, read_member

WORST = 30
_drawing = threading.Lock()  # matplotlib's settings are of the whole process


@dataclass(frozen=True)
class Training:
    """Figures (name, value, low, high), PNG pictures by name, and the worst images, as tables for a page."""

    about: str
    figures: list[dict[str, Any]]
    pictures: dict[str, bytes]
    worst: list[dict[str, Any]]
    wrong: int
    units: int


def card_of(folder: Path) -> str:
    """The member's card, Markdown; empty where it has none."""
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def training_of(folder: Path, asked: Asked) -> Training:
    """All that is shown of a member's training. Raises ConfigError where a table of it is missing or damaged."""
    metrics = read_member(folder).metrics
    units = _units(_table(folder / OUT_OF_FOLD), asked)
    rows = _rows(units, asked)
    wrong = [row for row in rows if asked.aim.decide(row.probabilities) != asked.aim.classes[row.label]]
    return Training(
        about=f"{metrics['estimate'].capitalize()}: {metrics['n']} {metrics['unit']}s, data {metrics['data']}",
        figures=[_figure(name, metrics) for name in NAMES if metrics.get(name) is not None],
        pictures=_pictures(_table(folder / HISTORY), units, asked),
        worst=[_shown(wrong[index], asked) for index in worst_first(wrong, WORST)],
        wrong=len(wrong),
        units=len(rows),
    )


def _units(images: pd.DataFrame, asked: Asked) -> pd.DataFrame:
    """The units that are scored, each calibrated by what the other folds gave, where the member has that."""
    units = units_of(images, asked.aim)
    if len(asked.crossed) > 1:
        return asked.calibrated(units)
    return calibrated(units, asked.crossed[0] if asked.crossed else asked.calibration, asked.aim)


def _rows(units: pd.DataFrame, asked: Asked) -> list[ErrorRow]:
    said = units[list(asked.aim.classes)].to_numpy(np.float64)  # [units, C]
    about = units[["image", "patient", "centre", "label"]].astype({"image": str, "patient": str}).to_dict("records")
    return [
        ErrorRow(row["image"], row["patient"], str(row["centre"]), int(row["label"]), p)
        for row, p in zip(about, said, strict=True)
    ]


def _shown(row: ErrorRow, asked: Asked) -> dict[str, Any]:
    return {
        "image": row.image,
        "patient": row.patient,
        "true": asked.aim.classes[row.label],
        "said": asked.aim.decide(row.probabilities),
        "probability of the true class": round(float(row.probabilities[row.label]), 4),
        "log loss": round(loss_of(row), 3),
    }


def _figure(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    values = {"value": metrics[name], "low": metrics.get(f"{name}_low"), "high": metrics.get(f"{name}_high")}
    return {"figure": name.replace("_", " ")} | {key: None if v is None else round(v, 4) for key, v in values.items()}


def _pictures(history: pd.DataFrame, units: pd.DataFrame, asked: Asked) -> dict[str, bytes]:
    scored, aim = scored_of(units, asked.aim), asked.aim
    return {
        "Curves": _drawn(lambda path: plots.draw_curves(path, history)),
        "Confusion matrix": _drawn(lambda path: plots.draw_confusion(path, scored, aim.classes, aim.positive)),
        "ROC": _drawn(lambda path: plots.draw_roc(path, scored, aim.classes, aim.positive)),
        "Calibration": _drawn(lambda path: plots.draw_calibration(path, scored, aim.classes, aim.positive)),
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
