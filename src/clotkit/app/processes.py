"""Run `untrusted` work in limited child processes and collect the results."""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clotkit.app import untrusted
from clotkit.app.escaping import LONGEST_REASON, printable
from clotkit.competitions import Competition
from clotkit.errors import SlideUnreadable
from clotkit.slides.pixels import Pixels
from clotkit.tiling.tilers import Batch
from clotkit.workers import Ended, Limits, Task, TileBatch, Work, stream

REQUESTS = 2  # visitors' requests whose processes run at a time; more wait
JOBS = 2  # processes of one request at a time
SLIDE_S = 120.0  # time limit of one slide: somebody is waiting
NAME_OF_FILE = "the file"  # stands for a path of this machine in messages

_slots = threading.BoundedSemaphore(REQUESTS)


@dataclass
class Result:
    """The pieces that came from one child process."""

    batches: dict[int, list[Batch]] = field(default_factory=dict)  # of tiles, by untrusted.TILES or SHOWN
    facts: dict[str, object] = field(default_factory=dict)

    def add(self, event: TileBatch) -> None:
        """Add a batch of tiles."""
        self.batches.setdefault(event.tiling, []).append(event.batch)

    def tiles(self) -> Pixels:
        """Return all tiles, uint8[n, S, S, 3]. Raises SlideUnreadable if there is none."""
        batches = [batch.tiles for batch in self.batches.get(untrusted.TILES, [])]
        if not batches:
            raise SlideUnreadable("the file has no tile")
        return np.concatenate(batches)

    def picture(self) -> Pixels:
        """Return the picture to show, uint8[h, w, 3]. Raises SlideUnreadable if there is none."""
        batches = self.batches.get(untrusted.SHOWN, [])
        if not batches:
            raise SlideUnreadable("the file has no picture")
        return np.asarray(batches[-1].tiles[0])


def events(
    tasks: Sequence[Task], work: Work, limits: Limits, within_s: float = float("inf")
) -> Generator[TileBatch | Ended, None, None]:
    """Yield the events of workers.stream, after waiting while REQUESTS other requests run.

    `within_s` seconds after that wait, tasks that have not started are refused, and those that run are ended. Closing
    the generator ends the processes.
    """
    with _slots:
        limits = replace(limits, deadline=time.monotonic() + within_s)
        with closing(stream(tasks, limits, JOBS, work)) as running:
            yield from running


def results(
    tasks: Sequence[Task], work: Work, limits: Limits, within_s: float = float("inf")
) -> Generator[tuple[Ended, Result], None, None]:
    """Yield the end and the result of each task, as they end; `within_s` as in events."""
    unfinished: dict[str, Result] = {}
    with closing(events(tasks, work, limits, within_s)) as running:
        for event in running:
            if isinstance(event, TileBatch):
                unfinished.setdefault(event.image_id, Result()).add(event)
                continue
            result = unfinished.pop(event.image_id, Result())
            result.facts = dict(event.facts)
            yield event, result


def run_one(task: Task, work: Work, limits: Limits) -> Result:
    """Return the result of one task. Raises SlideUnreadable, with the reason code, if it did not finish."""
    ((ended, result),) = list(results([task], work, limits))
    if ended.code is not None:
        error = SlideUnreadable(printable(without_path(ended.reason, task.path), LONGEST_REASON))
        error.reason = ended.code
        raise error
    return result


def without_path(sentence: str, path: Path) -> str:
    """Return a message without the path that the file has on this machine."""
    return sentence.replace(str(path), NAME_OF_FILE)


def slide_limits(competition: Competition) -> Limits:
    """Return the limits of a slide's process: the memory of a run, the time that a visitor waits."""
    return Limits(min(SLIDE_S, competition.limits.slide_s), competition.limits.slide_memory_mb)


@contextmanager
def temporary_files(files: dict[str, bytes | memoryview | None]) -> Iterator[Path]:
    """Give a temporary folder with the files that are not None, and remove it afterwards."""
    with TemporaryDirectory(prefix="clotkit-app-") as folder:
        for name, data in files.items():
            if data is not None:
                (Path(folder) / name).write_bytes(data)
        yield Path(folder)
