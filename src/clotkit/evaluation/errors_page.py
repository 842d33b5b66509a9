"""Write the error analysis of an evaluation: one HTML page with its figures and its worst errors.

The page is a single file: pictures are embedded, and it has no script. Its template is `errors.html.j2`.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import SplitError
from clotkit.evaluation.scores import EvaluationTarget
from clotkit.files import atomic_write_text
from clotkit.members.heat import overlay

TEMPLATE = "errors.html.j2"
MOST = 48
PICTURE_PX = 320  # longer side of an embedded picture; larger ones are downsampled
JPEG_QUALITY = 88
UNKNOWN = "not known"  # the centre of an image without one
LABELS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1",
    "auc": "AUC",
    "weighted_log_loss": "Weighted log loss",
}


@dataclass(frozen=True)
class ErrorRow:
    """One scored image, with a picture if it is among the worst (see `worst_first`)."""

    image: str
    patient: str
    centre: str  # empty if unknown
    label: int  # index of the true class
    probabilities: npt.NDArray[np.float64]  # [C]
    tile: npt.NDArray[np.uint8] | None = None  # [S, S, 3], the picture to show
    heat: npt.NDArray[np.float32] | None = None  # [S, S], 0 to 1, the heat map of the predicted class


def worst_first(rows: Sequence[ErrorRow], clip: float, most: int = MOST) -> list[int]:
    """Return the indices of the `most` worst rows: the highest log loss first, equal ones by image id.

    `clip` is as in loss_of.
    """
    order = sorted(range(len(rows)), key=lambda index: (-loss_of(rows[index], clip), rows[index].image))
    return order[:most]


def loss_of(row: ErrorRow, clip: float) -> float:
    """Return the log loss of a row: -ln of the true class's share, clipped to [clip, 1 - clip]."""
    share = row.probabilities[row.label] / row.probabilities.sum()
    return float(-np.log(np.clip(share, clip, 1 - clip)))


def write_errors(
    path: Path,
    title: str,
    figures: Mapping[str, float | None],
    target: EvaluationTarget,
    rows: Sequence[ErrorRow],
    most: int = MOST,
) -> None:
    """Write the page: the figures, tables by class and by centre, and the worst images.

    Images are grouped by true class: the class with the worst image first, and the worst image first in each. A list by
    centre links to them.

    Args:
        path: The page.
        title: Its title.
        figures: See evaluation.figures.
        target: It has the classes, the one that is positive, and the clip of the log loss.
        rows: All scored images. The tables count each of them as right if its label is the predicted class.
        most: The number of worst images to show.

    Raises:
        SplitError: There is no row, or a row does not fit the classes.
    """
    _check(target.classes, rows)
    cards = [_card(rank, rows[index], target) for rank, index in enumerate(worst_first(rows, target.clip, most), 1)]
    text = _template().render(
        title=title,
        headline=[_headline(name, figures) for name in LABELS if name in figures],
        rows=len(rows),
        patients=len({row.patient for row in rows}),
        by_class=_table(rows, target.classes, lambda row: target.classes[row.label], target),
        by_centre=_table(rows, _centres(rows), _centre, target),
        groups=_grouped(cards, "label"),
        centres=sorted(_grouped(cards, "centre"), key=lambda group: (group["name"] == UNKNOWN, group["name"])),
        cards=cards,
    )
    atomic_write_text(path, text)


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("clotkit.evaluation").joinpath(TEMPLATE).read_text(encoding="utf-8"))


def _headline(name: str, figures: Mapping[str, float | None]) -> dict[str, str]:
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return {"name": LABELS[name], "value": _number(figures[name]), "interval": interval}


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _centre(row: ErrorRow) -> str:
    return row.centre or UNKNOWN


def _centres(rows: Sequence[ErrorRow]) -> list[str]:
    """Return the centres of the rows by name, unknown last."""
    return sorted({_centre(row) for row in rows}, key=lambda name: (name == UNKNOWN, name))


def _table(
    rows: Sequence[ErrorRow], names: Sequence[str], group: Callable[[ErrorRow], str], target: EvaluationTarget
) -> list[dict[str, Any]]:
    """Return one table row per name: its images and patients, accuracy and mean log loss."""
    inside: dict[str, list[ErrorRow]] = {name: [] for name in names}
    for row in rows:
        inside[group(row)].append(row)
    return [{"name": name, **_summary(some, target)} for name, some in inside.items()]


def _summary(rows: Sequence[ErrorRow], target: EvaluationTarget) -> dict[str, Any]:
    right = [target.predicted_index(row.probabilities) == row.label for row in rows]
    return {
        "n": len(rows),
        "patients": len({row.patient for row in rows}),
        "accuracy": f"{np.mean(right):.1%}" if rows else "",
        "loss": f"{np.mean([loss_of(row, target.clip) for row in rows]):.3f}" if rows else "",
    }


def _card(rank: int, row: ErrorRow, target: EvaluationTarget) -> dict[str, Any]:
    """Return the card of one image. Its anchor is its rank: an image id may have any character."""
    shares = row.probabilities / row.probabilities.sum()
    predicted = target.predicted_index(row.probabilities)
    return {
        "anchor": f"image-{rank}",
        "rank": rank,
        "image": row.image,
        "patient": row.patient,
        "centre": _centre(row),
        "label": target.classes[row.label],
        "predicted": target.classes[predicted],
        "right": predicted == row.label,
        "loss": f"{loss_of(row, target.clip):.2f}",
        "bars": [
            {"name": name, "share": f"{100 * share:.1f}", "true": index == row.label, "predicted": index == predicted}
            for index, (name, share) in enumerate(zip(target.classes, shares, strict=True))
        ],
        "picture": None if row.tile is None else _embedded(row.tile),
        "heat": None if row.tile is None or row.heat is None else _embedded(overlay(row.tile, row.heat)),
    }


def _grouped(cards: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the cards grouped by the value of `key`, in the order of each group's first card."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for card in cards:
        groups.setdefault(card[key], []).append(card)
    return [
        {"anchor": f"{key}-{number}", "name": name, "cards": some} for number, (name, some) in enumerate(groups.items())
    ]


def _embedded(pixels: npt.NDArray[np.uint8]) -> str:
    """Return a picture uint8[H, W, 3] as a data URL with a JPEG, downsampled if it is large."""
    from PIL import Image

    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _check(classes: Sequence[str], rows: Sequence[ErrorRow]) -> None:
    if not rows:
        raise SplitError("error analysis: no scored image; at least 1 is needed; evaluate on other data")
    for row in rows:
        values = row.probabilities
        sound = values.shape == (len(classes),) and bool((values >= 0).all()) and 0 < values.sum() < np.inf
        if not sound or not 0 <= row.label < len(classes):
            actual = f"class {row.label}, probabilities {np.array2string(values, threshold=8, max_line_width=10_000)}"
            raise SplitError(
                f"error analysis: image {row.image!r} has {actual}; "
                f"allowed: a class from 0 to {len(classes) - 1} and one probability for each; predict again"
            )
