"""The error analysis of an evaluation: one HTML page with the figures, and the images that were most wrong.

The page stands alone: its pictures are inside it, and it has no script. It is made from `errors.html.j2`.
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
from clotkit.files import atomic_write_text
from clotkit.members.heat import overlay

TEMPLATE = "errors.html.j2"
MOST = 48
CLIP = 1e-15  # of a probability before its logarithm, as in the metric's usual setting
PICTURE_PX = 320  # the longer side of an embedded picture: larger ones are shrunk
JPEG_QUALITY = 88
UNKNOWN = "not known"  # the centre of an image that has none
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
    """One scored image: its id, patient, centre ("" if not known), true class index and probabilities float64[C].

    `tile` uint8[S, S, 3] is the picture to show, `heat` float32[S, S] in 0..1 the heat map over it for the decided
    class, the likeliest; either may be None. Only the worst images are shown: `worst_first` says which need theirs.
    """

    image: str
    patient: str
    centre: str
    label: int
    probabilities: npt.NDArray[np.float64]
    tile: npt.NDArray[np.uint8] | None = None
    heat: npt.NDArray[np.float32] | None = None


def worst_first(rows: Sequence[ErrorRow], most: int = MOST) -> list[int]:
    """The indices of at most `most` rows that the page shows: the highest log loss first, equal ones by image id."""
    order = sorted(range(len(rows)), key=lambda index: (-loss_of(rows[index]), rows[index].image))
    return order[:most]


def loss_of(row: ErrorRow) -> float:
    """Minus the logarithm of the true class's share of the probabilities, clipped as in the metric."""
    share = row.probabilities[row.label] / row.probabilities.sum()
    return float(-np.log(np.clip(share, CLIP, 1 - CLIP)))


def write_errors(
    path: Path,
    title: str,
    figures: Mapping[str, float | None],
    classes: Sequence[str],
    rows: Sequence[ErrorRow],
    most: int = MOST,
) -> None:
    """Write the page: `figures` (see evaluation.figures), tables by class and by centre, the `most` worst images.

    `rows` are all the scored images; the tables count each of them, right being the likeliest class. The images are
    grouped by true class, the class with the worst image first, the worst image first in each; a list by centre links
    to them. Raises SplitError without a row, or for one that does not fit the classes.
    """
    _check(classes, rows)
    cards = [_card(rank, rows[index], classes) for rank, index in enumerate(worst_first(rows, most), 1)]
    text = _template().render(
        title=title,
        headline=[_headline(name, figures) for name in LABELS if name in figures],
        rows=len(rows),
        patients=len({row.patient for row in rows}),
        by_class=_table(rows, list(classes), lambda row: classes[row.label]),
        by_centre=_table(rows, _centres(rows), _centre),
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
    """The centres of the rows by name, what is not known last."""
    return sorted({_centre(row) for row in rows}, key=lambda name: (name == UNKNOWN, name))


def _table(rows: Sequence[ErrorRow], names: Sequence[str], group: Callable[[ErrorRow], str]) -> list[dict[str, Any]]:
    """For each name: how many rows and patients, the accuracy and the mean log loss."""
    inside: dict[str, list[ErrorRow]] = {name: [] for name in names}
    for row in rows:
        inside[group(row)].append(row)
    return [{"name": name, **_summary(some)} for name, some in inside.items()]


def _summary(rows: Sequence[ErrorRow]) -> dict[str, Any]:
    right = [int(row.probabilities.argmax()) == row.label for row in rows]
    return {
        "n": len(rows),
        "patients": len({row.patient for row in rows}),
        "accuracy": f"{np.mean(right):.1%}" if rows else "",
        "loss": f"{np.mean([loss_of(row) for row in rows]):.3f}" if rows else "",
    }


def _card(rank: int, row: ErrorRow, classes: Sequence[str]) -> dict[str, Any]:
    """What the page says of one image; its anchor is its rank, as an id may hold any character."""
    shares = row.probabilities / row.probabilities.sum()
    decided = int(shares.argmax())
    return {
        "anchor": f"image-{rank}",
        "rank": rank,
        "image": row.image,
        "patient": row.patient,
        "centre": _centre(row),
        "label": classes[row.label],
        "decided": classes[decided],
        "right": decided == row.label,
        "loss": f"{loss_of(row):.2f}",
        "bars": [
            {"name": name, "share": f"{100 * share:.1f}", "true": index == row.label, "decided": index == decided}
            for index, (name, share) in enumerate(zip(classes, shares, strict=True))
        ],
        "picture": None if row.tile is None else _embedded(row.tile),
        "heat": None if row.tile is None or row.heat is None else _embedded(overlay(row.tile, row.heat)),
    }


def _grouped(cards: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The cards by what they have at `key`, in the order of each group's first; anchors are numbers."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for card in cards:
        groups.setdefault(card[key], []).append(card)
    return [
        {"anchor": f"{key}-{number}", "name": name, "cards": some} for number, (name, some) in enumerate(groups.items())
    ]


def _embedded(pixels: npt.NDArray[np.uint8]) -> str:
    """uint8[H, W, 3] as a data URL with a JPEG, shrunk where it is large."""
    from PIL import Image

    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((PICTURE_PX, PICTURE_PX))
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _check(classes: Sequence[str], rows: Sequence[ErrorRow]) -> None:
    if not rows:
        raise SplitError("error analysis: no scored image; allowed: 1 and more; evaluate on a split that has some")
    for row in rows:
        values = row.probabilities
        sound = values.shape == (len(classes),) and bool((values >= 0).all()) and 0 < values.sum() < np.inf
        if not sound or not 0 <= row.label < len(classes):
            seen = f"class {row.label}, probabilities {np.array2string(values, threshold=8, max_line_width=10_000)}"
            raise SplitError(
                f"error analysis: image {row.image!r} has {seen}; "
                f"allowed: a class from 0 to {len(classes) - 1} and one probability for each; predict again"
            )
