"""Predict single images with one member, and answer whether one shows a double contour."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.data.images import IMAGE_TILERS, read_image
from clotkit.errors import SlideError, SlideUnreadable, described
from clotkit.evaluation.loaded_member import LoadedMember, load_for_evaluation
from clotkit.file_state import READ
from clotkit.looking import look_at
from clotkit.progress import Log
from clotkit.reasons import Cause, Reason
from clotkit.workers import Ended, Limits, Task, TileBatch, stream

NO_ANSWER = Cause(Reason.STALLED, "its disk does not answer")
NO_TILES = Cause(Reason.NO_TILES, "no tiles were cut")
Tiles = npt.NDArray[np.uint8]  # [n, H, W, 3]


@dataclass(frozen=True)
class Prediction:
    """A member's prediction of one image."""

    image: Path
    label: str  # the predicted class
    probabilities: dict[str, float]  # calibrated, by class
    unlike_training: bool | None = None  # the distance is above its threshold; None: the member has no statistics
    distance: float | None = None  # of the picture from the member's training pictures
    distance_threshold: float | None = None


@dataclass(frozen=True)
class Unpredicted:
    """An image that could not be predicted."""

    image: Path
    code: Reason
    reason: str  # a sentence for people


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
    predictions = list[Prediction]()
    for one in predict_each(member, images, competition, log=lambda _: None):
        if isinstance(one, Unpredicted):
            raise SlideUnreadable(f"{one.image}: {one.reason}")
        predictions.append(one)
    return predictions


def predict_each(
    member: Path | LoadedMember, images: Sequence[Path], competition: Competition, log: Log
) -> list[Prediction | Unpredicted]:
    """Return the prediction of each image, as `predict` does; one that cannot be read costs only itself.

    `log` gets a line if a process was left behind, because a disk does not answer.

    Raises ConfigError if the folder has no member, or a damaged one.
    """
    loaded = load_for_evaluation(member) if isinstance(member, Path) else member
    found = dict[int, Prediction | Unpredicted]()
    tiling = loaded.recipe.tiling
    if tiling.downsample_if:
        log(f"files have no row of a table, which tiling.downsample_if reads: the downsample is {tiling.downsample}")
    answers = look_at([(image, READ) for image in images], log)
    silent = {number for number in range(len(images)) if number not in answers}
    numbered = {number: image for number, image in enumerate(images) if number not in silent}
    cut = _slide_tiles if loaded.recipe.data.source == "slides" else _picture_tiles
    for number, tiles in cut(loaded, numbered, answers, competition):
        found[number] = _predicted(loaded, images[number], tiles, competition)
    return [found.get(number) or Unpredicted(image, *NO_ANSWER) for number, image in enumerate(images)]


def has_double_contour(image: Path, member: Path, competition: Competition) -> bool | None:
    """Return whether a picture shows a double contour, by a member trained for it, such as double_contour.

    None is no answer: the picture is unlike those that the member was trained on.

    Raises ConfigError or SlideUnreadable, as `predict` does.

    Example:
        >>> from pathlib import Path
        >>> from clotkit.competitions import load_competition
        >>> from clotkit.evaluation.predict import has_double_contour
        >>> has_double_contour(Path("picture.png"), Path("weights/double_contour"), load_competition())
        True
    """
    found = predict(member, [image], competition)[0]
    return None if found.unlike_training else found.label == "yes"


def _predicted(
    member: LoadedMember, image: Path, tiles: Tiles | Cause, competition: Competition
) -> Prediction | Unpredicted:
    if isinstance(tiles, Cause):
        return Unpredicted(image, *tiles)
    outputs = member.predict_new(tiles)
    p = member.calibration.apply(member.pooling.pool(outputs))  # [C]
    by_class = dict(zip(member.target.classes, map(float, p.round(6)), strict=True))
    return Prediction(image, member.label(p, competition), by_class, *unlikeness(member, tiles))


def unlikeness(member: LoadedMember, tiles: Tiles) -> tuple[bool, float, float] | tuple[None, None, None]:
    """Return whether an image is unlike the member's training pictures, its distance and the threshold.

    Three times None if the member has no statistics of them.
    """
    if member.familiarity is None:
        return None, None, None
    distance, threshold = member.familiarity.distance(tiles), member.familiarity.threshold
    return bool(member.familiarity.unlike(np.array(distance))), round(distance, 6), round(threshold, 6)


def unlike_note(unlike: bool | None, distance: float | None, threshold: float | None) -> str:
    """Return the remark on a picture, by what `unlikeness` returns; empty unless it is unlike."""
    return f"unlike its training pictures: distance {distance:.2f}, threshold {threshold:.2f}" if unlike else ""


def _picture_tiles(
    member: LoadedMember, images: Mapping[int, Path], can_be_read: Mapping[int, bool], competition: Competition
) -> Iterator[tuple[int, Tiles | Cause]]:
    """Yield the tiles of each picture, or why there are none."""
    tiling = member.recipe.tiling
    for number, image in images.items():
        try:
            if image.exists() and not can_be_read[number]:  # a pipe would be waited for
                raise SlideUnreadable("not a file that can be read")
            yield number, IMAGE_TILERS[tiling.name](read_image(image), tiling)
        except SlideError as error:
            yield number, Cause(error.reason, str(error).removeprefix(f"{image}: "))
        except Exception as error:  # noqa: BLE001 - whatever a library raises costs this picture only
            yield number, Cause(Reason.FAILED, described(error))


def _slide_tiles(
    member: LoadedMember, images: Mapping[int, Path], can_be_read: Mapping[int, bool], competition: Competition
) -> Iterator[tuple[int, Tiles | Cause]]:
    """Yield the tiles of each slide, or why there are none; each is read in a process of its own."""
    batches = defaultdict[str, list[Tiles]](list)
    limits = Limits(competition.limits.slide_s, competition.limits.slide_memory_mb)
    tasks = [Task(str(number), image, (member.recipe.tiling,)) for number, image in images.items()]
    for event in stream(tasks, limits, os.cpu_count() or 1):
        if isinstance(event, TileBatch):
            batches[event.image_id].append(event.batch.tiles)
        elif isinstance(event, Ended):
            tiles, failed = batches.pop(event.image_id, []), event.code
            cause = NO_TILES if failed is None else Cause(failed, event.reason)
            yield int(event.image_id), np.concatenate(tiles) if tiles and failed is None else cause
