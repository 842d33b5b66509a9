"""Asking a member about single images: the answer of `clotkit predict`, and of a yes or no."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.data.images import IMAGE_TILERS, read_image
from clotkit.errors import SlideUnreadable
from clotkit.evaluation.evaluate import UNKNOWN, Asked, load_asked
from clotkit.members.pooling import pooled
from clotkit.workers import Ended, Limits, Task, Tiles, stream


@dataclass(frozen=True)
class Answer:
    """What a member says of one image: the likeliest class, and the calibrated probability of each."""

    image: Path
    label: str
    probabilities: dict[str, float]


def ask(member: Path, images: Sequence[Path], competition: Competition) -> list[Answer]:
    """What the member in a folder says of each image: a slide or a picture, as its recipe has it.

    Raises ConfigError for a folder that is no member, SlideUnreadable for an image that cannot be read.
    """
    asked = load_asked(member)
    return [_answer(asked, image, _tiles_of(asked, image, competition)) for image in images]


def has_double_contour(image: Path, member: Path, competition: Competition) -> bool:
    """Whether a picture shows a double contour, by the member of that name: yes or no. Raises as `ask` does."""
    return ask(member, [image], competition)[0].label == "yes"


def _answer(asked: Asked, image: Path, tiles: npt.NDArray[np.uint8]) -> Answer:
    rows = asked.rows_of(tiles, np.full(len(tiles), UNKNOWN))
    said = asked.calibration.apply(pooled(rows, asked.recipe.inference.pooling))  # [C]
    return Answer(image, asked.aim.decide(said), dict(zip(asked.aim.classes, map(float, said.round(6)), strict=True)))


def _tiles_of(asked: Asked, image: Path, competition: Competition) -> npt.NDArray[np.uint8]:
    tiling = asked.recipe.tiling
    if asked.recipe.data.source != "slides":
        return IMAGE_TILERS[tiling.name](read_image(image), tiling)
    batches = []
    limits = Limits(competition.limits.slide_s, competition.limits.slide_memory_mb)
    for event in stream([Task(image.name, image, (tiling,))], limits, 1):
        if isinstance(event, Tiles):
            batches.append(event.batch.tiles)
        elif isinstance(event, Ended) and event.reason:
            raise SlideUnreadable(f"{image}: {event.reason}")
    return np.concatenate(batches)
