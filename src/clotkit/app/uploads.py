"""Classify uploads and files of a folder, each in a process of its own: a bad one costs only itself."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from clotkit.app import untrusted
from clotkit.app.escaping import LONGEST_REASON, printable
from clotkit.app.prediction import decide, heat_map, predict_tiles
from clotkit.app.processes import Result, results, slide_limits, without_path
from clotkit.competitions import Competition
from clotkit.errors import ClotkitError, one_line
from clotkit.evaluation.loaded_member import LoadedMember
from clotkit.evaluation.predict import unlike_note, unlikeness
from clotkit.reasons import Cause, Reason
from clotkit.slides.pixels import Pixels
from clotkit.units import MB
from clotkit.workers import Ended, Limits, Task, Work

MOST_UPLOADS = 64  # files of one batch
MOST_UPLOAD_MB = 64  # size of one file; larger slides are opened from a folder
MOST_BATCH_MB = 256  # size of all files of a batch
PICTURE_LIMITS = Limits(slide_s=20.0, memory_mb=1024)
BATCH_S = 300.0  # time limit of a batch: files that have not started by then are refused
NEAR = 0.2  # lead of the likeliest class, in probability, below which an answer is unsure
STRETCHED = 1.25  # ratio of the sides from which a picture that is made square looks different


class Doubt(StrEnum):
    """Why an answer is unsure, beside its sentence."""

    NEAR_THRESHOLD = "near_threshold"  # another class is nearly as likely
    UNLIKE_TRAINING = "unlike_training"  # the picture is unlike those that the member was trained on
    SMALL = "small"  # the picture was enlarged
    SQUEEZED = "squeezed"  # the picture was made square


@dataclass(frozen=True)
class Upload:
    """One uploaded file."""

    name: str  # as the visitor's browser gives it; shown, never used as a path
    data: bytes | memoryview


@dataclass(frozen=True)
class Answer:
    """A member's answer for one upload, or the reason why there is none."""

    name: str
    refused: Cause | None = None
    label: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)  # calibrated, by class
    picture: Pixels | None = None  # the picture itself, reduced
    heat: Pixels | None = None  # the tile with the highest probability, under its Grad-CAM
    doubts: dict[Doubt, str] = field(default_factory=dict)  # a sentence for each
    seconds: float = 0.0  # to read the file
    unlike_training: bool | None = None  # as a Prediction's
    peak_mb: float = 0.0  # peak memory of the process that read it, in MB (2**20 bytes)


def classify(
    member: LoadedMember,
    uploads: Sequence[Upload],
    competition: Competition,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """Return the answer for each upload, in their order.

    The files stay in a temporary folder, under names of ours, until the last answer is there.

    Args:
        member: the member that predicts.
        uploads: the files.
        competition: has the limits of a slide's process, and the labels.
        advance: called with the number of uploads that are done, and of all.
    """
    refused = _above_limits(uploads)
    answers = {number: Answer(uploads[number].name, cause) for number, cause in refused.items()}
    with TemporaryDirectory(prefix="clotkit-app-") as folder:
        files = {
            number: (upload.name, _written(Path(folder), number, upload))
            for number, upload in enumerate(uploads)
            if number not in refused
        }
        with closing(_each(member, files, competition, BATCH_S)) as running:
            for number, answer in running:
                answers[number] = answer
                advance(len(answers), len(uploads))
    return [answers[number] for number in range(len(uploads))]


def classify_files(
    member: LoadedMember, files: Mapping[Path, Path], competition: Competition
) -> Generator[tuple[Path, Answer], None, None]:
    """Yield the answer for each file of a folder, as they come.

    The processes read the files where they lie, so the limits of uploads do not apply: those of one file's process do.
    Closing the generator ends the processes.

    Args:
        member: the member that predicts.
        files: by the path that an answer is named after and yielded with, the file to read.
        competition: has the limits of a slide's process, and the labels.
    """
    named = list(files)
    numbered = {number: (path.name, files[path]) for number, path in enumerate(named)}
    with closing(_each(member, numbered, competition)) as running:
        for number, answer in running:
            yield named[number], answer


def _each(
    member: LoadedMember,
    files: Mapping[int, tuple[str, Path]],
    competition: Competition,
    within_s: float = float("inf"),
) -> Generator[tuple[int, Answer], None, None]:
    """Yield the number and the answer of each file, which has a name and a path.

    After `within_s` seconds of work on all of them, those that have not started are refused, and those that run ended.
    """
    tasks = [Task(str(number), path, (member.recipe.tiling,)) for number, (_, path) in files.items()]
    work, limits = _work_for(member, competition)
    with closing(results(tasks, work, limits, within_s)) as running:
        for ended, result in running:
            number = int(ended.image_id)
            yield number, _answer(member, files[number][0], ended, result, competition)


def _work_for(member: LoadedMember, competition: Competition) -> tuple[Work, Limits]:
    if member.recipe.data.source == "slides":
        return untrusted.slide, slide_limits(competition)
    return untrusted.picture, PICTURE_LIMITS


def _above_limits(uploads: Sequence[Upload]) -> dict[int, Cause]:
    """Return the uploads that are above a limit, by index, with the limit."""
    refused, total = dict[int, str](), 0
    for number, upload in enumerate(uploads):
        size = len(upload.data)
        if number >= MOST_UPLOADS:
            refused[number] = f"file {number + 1} of this batch; at most {MOST_UPLOADS} are accepted at a time"
        elif size > MOST_UPLOAD_MB * MB:
            refused[number] = f"{size / MB:,.0f} MB; at most {MOST_UPLOAD_MB} MB are accepted; open it from a folder"
        elif total + size > MOST_BATCH_MB * MB:
            refused[number] = f"the batch would be above {MOST_BATCH_MB} MB with this file; upload it alone"
        else:
            total += size
    return {number: Cause(Reason.ABOVE_LIMIT, sentence) for number, sentence in refused.items()}


def _written(folder: Path, number: int, upload: Upload) -> Path:
    path = folder / f"{number:04d}"  # neither the folders nor the suffix of the upload's own name
    path.write_bytes(upload.data)
    return path


def _answer(member: LoadedMember, name: str, ended: Ended, result: Result, competition: Competition) -> Answer:
    if ended.code is not None:
        cause = Cause(ended.code, _sentence(ended))
        return Answer(name, cause, seconds=ended.seconds, peak_mb=ended.peak_mb)
    try:
        tiles = result.tiles()
        rows = predict_tiles(member, tiles)
        label, probabilities = decide(member, rows, competition)
        heat = heat_map(member, tiles, rows, label)
        unlike = unlikeness(member, tiles)
        return Answer(
            name=name,
            label=label,
            probabilities=probabilities,
            picture=result.picture(),
            heat=heat,
            doubts=dict(_doubts(member, ended, probabilities, unlike_note(*unlike))),
            seconds=ended.seconds,
            unlike_training=unlike[0],
            peak_mb=ended.peak_mb,
        )
    except ClotkitError as error:
        return Answer(name, Cause(error.reason, str(error)))
    except Exception as error:  # noqa: BLE001 - any error of the network costs this upload alone, and is named
        return Answer(
            name, Cause(Reason.MEMBER_FAILED, f"the member failed: {type(error).__name__}: {one_line(error)}")
        )


def _sentence(ended: Ended) -> str:
    """Return the reason of a task's end without the paths of this machine."""
    path = ended.task.path
    sentence = without_path(ended.reason, path).replace(f"{path.parent}/", "")
    return printable(sentence.removeprefix("the file: "), LONGEST_REASON)


def _doubts(
    member: LoadedMember, ended: Ended, probabilities: dict[str, float], unlike: str
) -> Iterator[tuple[Doubt, str]]:
    """Yield what makes an answer unsure: near another one, unlike the training pictures, of another size."""
    (first, most), (second, next_most) = sorted(probabilities.items(), key=lambda one: -one[1])[:2]
    if most - next_most < NEAR:
        yield Doubt.NEAR_THRESHOLD, f"{first} at {most:.1%} is hardly likelier than {second} at {next_most:.1%}"
    if unlike:
        yield Doubt.UNLIKE_TRAINING, unlike
    tiling, facts = member.recipe.tiling, ended.facts
    width, height = int(facts["width_px"]), int(facts["height_px"])
    if tiling.name != "whole":
        return
    if min(width, height) * 2 < tiling.tile_px:
        side = tiling.tile_px
        yield Doubt.SMALL, f"{width} x {height} px is small: the picture was enlarged to {side} x {side} px"
    if max(width, height) > STRETCHED * min(width, height):
        hint = "crop the picture as the member's training data are"
        yield Doubt.SQUEEZED, f"{width} x {height} px was squeezed to a square; {hint}"
