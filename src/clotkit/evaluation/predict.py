"""Predict single images with one member, and answer whether one shows a double contour."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.data.images import IMAGE_TILERS, read_image
from clotkit.errors import SlideUnreadable
from clotkit.evaluation.evaluate import UNKNOWN, LoadedMember, load_for_evaluation
from clotkit.members.pooling import pooled
from clotkit.workers import Ended, Limits, Task, TileBatch, stream


@dataclass(frozen=True)
class Prediction:
    """A member's prediction of one image."""

    image: Path
    label: str  # the predicted class
    probabilities: dict[str, float]  # calibrated, by class


def predict(member: Path, images: Sequence[Path], competition: Competition) -> list[Prediction]:
    """Return the predictions of a member for images: slides or pictures, as its recipe says.

    Args:
        member: The member's folder.
        images: The files of the images.
        competition: It sets the time and memory limits of a slide.

    Raises:
        ConfigError: The folder has no member, or a damaged one.
        SlideUnreadable: An image cannot be read.
    """
    loaded = load_for_evaluation(member)
    return [_predict_image(loaded, image, _read_tiles(loaded, image, competition)) for image in images]


def has_double_contour(image: Path, member: Path, competition: Competition) -> bool:
    """Return True if a picture shows a double contour, by a member trained for it, such as double_contour.

    Raises ConfigError or SlideUnreadable, as `predict` does.

    Example:
        >>> from pathlib import Path
        >>> from clotkit.competitions import load_competition
        >>> from clotkit.evaluation.predict import has_double_contour
        >>> has_double_contour(Path("picture.png"), Path("weights/double_contour"), load_competition())
        True
    """
    return predict(member, [image], competition)[0].label == "yes"


def _predict_image(member: LoadedMember, image: Path, tiles: npt.NDArray[np.uint8]) -> Prediction:
    outputs = member.predict(tiles, np.full(len(tiles), UNKNOWN))
    p = member.calibration.apply(pooled(outputs, member.recipe.inference.pooling))  # [C]
    by_class = dict(zip(member.target.classes, map(float, p.round(6)), strict=True))
    return Prediction(image, member.target.predicted_class(p), by_class)


def _read_tiles(member: LoadedMember, image: Path, competition: Competition) -> npt.NDArray[np.uint8]:
    tiling = member.recipe.tiling
    if member.recipe.data.source != "slides":
        return IMAGE_TILERS[tiling.name](read_image(image), tiling)
    batches = []
    limits = Limits(competition.limits.slide_s, competition.limits.slide_memory_mb)
    for event in stream([Task(image.name, image, (tiling,))], limits, 1):
        if isinstance(event, TileBatch):
            batches.append(event.batch.tiles)
        elif isinstance(event, Ended) and event.code is not None:
            raise SlideUnreadable(f"{image}: {event.reason}")
    return np.concatenate(batches)
