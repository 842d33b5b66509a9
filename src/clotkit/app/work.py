"""Uploads to answers: each file in a process of its own, each prediction in its turn. Knows no Streamlit."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from clotkit.app import decode
from clotkit.app.text import shown
from clotkit.competitions import Competition
from clotkit.errors import ClotkitError, SlideUnreadable, one_line
from clotkit.evaluation.evaluate import UNKNOWN, Asked, heat_of, load_asked
from clotkit.members.heat import overlay
from clotkit.members.pooling import pooled, tile_probabilities
from clotkit.slides.pixels import Pixels
from clotkit.tiling.tilers import Batch
from clotkit.units import MB
from clotkit.workers import Ended, Limits, Task, Tiles, Work, stream

JOBS = 2  # files of one batch that are decoded at a time
STREAMS = 2  # batches, of all who use the application, that are at work at a time
MOST_UPLOADS = 64  # of one batch
MOST_UPLOAD_MB = 64  # of one file; larger slides are opened from a folder
MOST_BATCH_MB = 256
PICTURE_LIMITS = Limits(slide_s=20.0, memory_mb=1024)
BATCH_S = 300.0  # for all uploads of a batch: those whose turn has not come by then are refused
SLIDE_S = 120.0  # for an upload, or for a look at a slide: somebody is waiting
STRETCHED = 1.25  # a side to the other: from here on a picture that is made square looks different

_slots = threading.BoundedSemaphore(STREAMS)
_predicting = threading.Lock()


@dataclass(frozen=True)
class Upload:
    """One file as it was given: its name is for showing only."""

    name: str
    data: bytes | memoryview


@dataclass(frozen=True)
class Finding:
    """What came of one upload: why it was refused, or its label, calibrated probabilities and two pictures of it."""

    name: str
    refused: str = ""
    label: str = ""
    probabilities: dict[str, float] = field(default_factory=dict)
    picture: Pixels | None = None  # itself, made small
    heat: Pixels | None = None  # the tile that spoke loudest, with where the network looked
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_mb: float = 0.0  # of the process that decoded it, MB (2**20 bytes)


@dataclass
class Read:
    """What a child process gave: batches by index, and facts."""

    batches: dict[int, list[Batch]] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)

    def add(self, event: Tiles) -> None:
        """Keep a batch."""
        self.batches.setdefault(event.tiling, []).append(event.batch)

    def tiles(self) -> Pixels:
        """All tiles, uint8[n, S, S, 3]. Raises SlideUnreadable without one."""
        found = [batch.tiles for batch in self.batches.get(decode.TILES, [])]
        if not found:
            raise SlideUnreadable("no tile came of it")
        return np.concatenate(found)

    def picture(self) -> Pixels:
        """The picture to look at, uint8[h, w, 3]. Raises SlideUnreadable without one."""
        found = self.batches.get(decode.SHOWN, [])
        if not found:
            raise SlideUnreadable("no picture came of it")
        return np.asarray(found[-1].tiles[0])


def nothing(done: int, total: int) -> None:
    """Take no notice of progress."""


def load(folder: Path) -> Asked:
    """A member for single images: its batches are no larger than what one image gives. Raises ConfigError."""
    asked = load_asked(folder)
    tiling = asked.recipe.tiling
    small = replace(tiling, batch_tiles=min(tiling.batch_tiles, tiling.max_tiles))
    return replace(asked, recipe=replace(asked.recipe, tiling=small))


def classify(
    asked: Asked,
    uploads: Sequence[Upload],
    competition: Competition,
    advance: Callable[[int, int], None] = nothing,
) -> list[Finding]:
    """What a member says of each upload, in their order; one that cannot be read costs itself alone.

    `advance` is told how many of how many are done. Files are decoded in limited processes, JOBS at a time, and stay
    in a temporary folder, under names of ours, until the last answer is there.
    """
    refused = _too_much(uploads)
    found = {number: Finding(uploads[number].name, refused=why) for number, why in refused.items()}
    with TemporaryDirectory(prefix="clotkit-app-") as folder:
        tasks = [
            Task(str(number), _kept(Path(folder), number, upload), (asked.recipe.tiling,))
            for number, upload in enumerate(uploads)
            if number not in refused
        ]
        work, limits = _how(asked, competition)
        with closing(ends(tasks, work, replace(limits, deadline=time.monotonic() + BATCH_S))) as running:
            for ended, read in running:
                number = int(ended.image_id)
                found[number] = _finding(asked, uploads[number].name, ended, read, folder)
                advance(len(found), len(uploads))
    return [found[number] for number in range(len(uploads))]


def ends(tasks: Sequence[Task], work: Work, limits: Limits) -> Generator[tuple[Ended, Read], None, None]:
    """Each task's end with what came of it, as they end; at most STREAMS of these are at work at a time."""
    reads: dict[str, Read] = {}
    with closing(events(tasks, work, limits)) as running:
        for event in running:
            if isinstance(event, Tiles):
                reads.setdefault(event.image_id, Read()).add(event)
                continue
            read = reads.pop(event.image_id, Read())
            read.facts = dict(event.facts)
            yield event, read


def events(tasks: Sequence[Task], work: Work, limits: Limits) -> Generator[Tiles | Ended, None, None]:
    """The events of workers.stream, in one of the STREAMS places; leaving it early ends the processes."""
    with _slots, closing(stream(tasks, limits, JOBS, work)) as running:
        yield from running


def read_one(task: Task, work: Work, limits: Limits) -> Read:
    """What one process gave. Raises SlideUnreadable with its reason where it did not come to an end."""
    ((ended, read),) = list(ends([task], work, limits))
    if ended.reason:
        raise SlideUnreadable(shown(ended.reason.replace(str(task.path), "the file"), 400))
    return read


def slide_limits(competition: Competition) -> Limits:
    """What a slide's process may cost here: the memory as in a run, the time as somebody waits."""
    return Limits(min(SLIDE_S, competition.limits.slide_s), competition.limits.slide_memory_mb)


def rows_of(asked: Asked, tiles: Pixels) -> npt.NDArray[np.float64]:
    """What the networks say of tiles, one caller at a time: [n, C], under attention [n, C + 1]."""
    with _predicting:
        return asked.rows_of(tiles, np.full(len(tiles), UNKNOWN))


def said_of(asked: Asked, rows: npt.NDArray[np.float64]) -> tuple[str, dict[str, float]]:
    """The label and the calibrated probabilities of an image by the rows of its tiles."""
    said = asked.calibration.apply(pooled(rows, asked.recipe.inference.pooling))  # [C]
    return asked.aim.decide(said), dict(zip(asked.aim.classes, map(float, said.round(6)), strict=True))


def looked_at(asked: Asked, tiles: Pixels, rows: npt.NDArray[np.float64], label: str) -> Pixels:
    """The tile that speaks loudest for the label under its Grad-CAM, uint8[S, S, 3]."""
    target = asked.aim.classes.index(label)
    loudest = int(tile_probabilities(rows, asked.recipe.inference.pooling)[:, target].argmax())
    with _predicting:
        heat = heat_of(asked.network(UNKNOWN), tiles[loudest], target)
    return overlay(tiles[loudest], heat)


def _how(asked: Asked, competition: Competition) -> tuple[Work, Limits]:
    if asked.recipe.data.source == "slides":
        return decode.slide, slide_limits(competition)
    return decode.picture, PICTURE_LIMITS


def _too_much(uploads: Sequence[Upload]) -> dict[int, str]:
    """The uploads that are not looked at, each with why."""
    refused, total = dict[int, str](), 0
    for number, upload in enumerate(uploads):
        size = len(upload.data)
        if number >= MOST_UPLOADS:
            refused[number] = f"file {number + 1} of this batch; at most {MOST_UPLOADS} are taken at a time"
        elif size > MOST_UPLOAD_MB * MB:
            refused[number] = f"{size / MB:,.0f} MB; at most {MOST_UPLOAD_MB} MB are taken; open it from a folder"
        elif total + size > MOST_BATCH_MB * MB:
            refused[number] = f"this batch has {MOST_BATCH_MB} MB without it, which is the most; give it alone"
        else:
            total += size
    return refused


def _kept(folder: Path, number: int, upload: Upload) -> Path:
    path = folder / f"{number:04d}"  # nothing of the given name: neither its folders nor its suffix
    path.write_bytes(upload.data)
    return path


def _finding(asked: Asked, name: str, ended: Ended, read: Read, folder: str) -> Finding:
    if ended.reason:
        return Finding(name, _why(ended, folder), seconds=ended.seconds, peak_mb=ended.peak_mb)
    try:
        tiles = read.tiles()
        rows = rows_of(asked, tiles)
        label, probabilities = said_of(asked, rows)
        heat = looked_at(asked, tiles, rows, label)
        notes = tuple(_notes(asked, ended))
        return Finding(name, "", label, probabilities, read.picture(), heat, notes, ended.seconds, ended.peak_mb)
    except ClotkitError as error:
        return Finding(name, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it costs this upload alone and is named
        return Finding(name, f"the member failed on it: {type(error).__name__}: {one_line(error)}")


def _why(ended: Ended, folder: str) -> str:
    """Why an upload gave no answer, without the name that its file has here."""
    reason = ended.reason.replace(str(ended.task.path), "the file").replace(f"{folder}/", "")
    return shown(reason.removeprefix("the file: "), 400)


def _notes(asked: Asked, ended: Ended) -> Iterator[str]:
    """What of the picture's size makes its answer doubtful."""
    tiling, facts = asked.recipe.tiling, ended.facts
    width, height = int(facts["width_px"]), int(facts["height_px"])
    if tiling.name != "whole":
        return
    if min(width, height) * 2 < tiling.tile_px:
        yield f"{width} x {height} px are few: the member sees {tiling.tile_px} x {tiling.tile_px}, so it was enlarged"
    if max(width, height) > STRETCHED * min(width, height):
        yield f"{width} x {height} px were squeezed to a square: the member was trained on pictures cut as its data are"


@contextmanager
def written(files: dict[str, bytes | memoryview | None]) -> Iterator[Path]:
    """A temporary folder with these files, under names of ours; None is none. It is gone afterwards."""
    with TemporaryDirectory(prefix="clotkit-app-") as folder:
        for name, data in files.items():
            if data is not None:
                (Path(folder) / name).write_bytes(data)
        yield Path(folder)
