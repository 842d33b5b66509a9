"""A switch of the page Classify: answer each new picture of a folder once it is complete."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import cast

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clotkit.app.prediction import predict_tiles
from clotkit.app.uploads import Answer, classify_files
from clotkit.app.web.jobs import Job, Kind
from clotkit.app.web.rendering import page
from clotkit.app.web.shared import Shared, job_of, shared_of
from clotkit.data.pictures import SUFFIXES
from clotkit.errors import UsageError
from clotkit.evaluation.loaded_member import LoadedMember
from clotkit.evaluation.watch import POLL_S, NewPictures, warm_up
from clotkit.reasons import Cause, Reason
from clotkit.splits.identity import SLIDE_SUFFIXES

KEPT = 100  # answers that are shown, the newest first
AT_A_TIME = 8  # files that are answered before other visitors get a turn
STOP_S = 5.0  # for the end of a watch that was stopped; its page follows one that takes longer
HERE = "/classify"
OUT_OF_REACH = Cause(Reason.DAMAGED, "the file is gone, or a link that leads out of the folders of --root")


@dataclass
class Watched:
    """The newest answers of a folder, each with its time."""

    answers: deque[tuple[datetime, Answer]] = field(default_factory=lambda: deque(maxlen=KEPT))
    count: int = 0

    def add(self, answer: Answer) -> None:
        """Keep an answer, without its pictures."""
        self.count += 1
        self.answers.appendleft((datetime.now().astimezone(), replace(answer, picture=None, heat=None)))

    def snapshot(self) -> "Watched":
        """Return a copy for a page, while answers are added."""
        return replace(self, answers=self.answers.copy())


async def start(request: Request) -> Response:
    """Begin to watch a folder, and lead to the page of its answers."""
    shared = shared_of(request)
    async with request.form() as form:
        name, folder = shared.chosen(str(form.get("member", ""))), str(form.get("folder", ""))
    path = shared.roots.inside(folder)
    if not path.is_dir():
        raise UsageError("that is a file; give a folder below --root")
    about = {"member": name, "folder": folder}
    job = shared.jobs.start(Kind.WATCH, shared.title(name), lambda job: _watch(shared, name, path, job), about)
    return RedirectResponse(f"/watch/{job.key}", 303)


def show(request: Request) -> Response:
    """Draw the answers so far."""
    job = job_of(request, Kind.WATCH)
    watched = None if job.result is None else cast(Watched, job.result).snapshot()
    return page(request, "watch", "Watched folder", here=HERE, job=job, watched=watched)


def stop(request: Request) -> Response:
    """End the watch."""
    job = job_of(request, Kind.WATCH)
    job.stop.set()
    job.over.wait(STOP_S)
    return RedirectResponse(f"/watch/{job.key}", 303)


def _watch(shared: Shared, name: str, folder: Path, job: Job) -> Watched:
    """Answer each new picture of a folder until the job is stopped. Raises UsageError if the folder goes."""
    watched, is_slides = Watched(), shared.source(name) == "slides"
    try:
        new = NewPictures(folder, SLIDE_SUFFIXES if is_slides else SUFFIXES)
        member = shared.member(name)
        warm_up(member, partial(predict_tiles, member))
        job.result = watched
        while not job.stop.wait(POLL_S):
            for path, one in _answers(shared, member, new.poll(), job.stop):
                if one.refused is None or new.failed(path):
                    watched.add(one)
    except OSError as error:
        raise UsageError(f"the folder cannot be read: {error.strerror}; choose it again") from error
    return watched


def _answers(
    shared: Shared, member: LoadedMember, paths: Sequence[Path], stop: threading.Event
) -> Iterator[tuple[Path, Answer]]:
    """Yield the answer for each file until `stop` is set.

    A file's path is resolved, and must be inside the roots, when its turn comes.
    """
    for start in range(0, len(paths), AT_A_TIME):
        inside = dict[Path, Path]()
        for path in paths[start : start + AT_A_TIME]:
            try:
                inside[path] = shared.roots.inside(path)
            except UsageError:
                yield path, Answer(path.name, OUT_OF_REACH)
        with closing(classify_files(member, inside, shared.competition)) as running:
            for one in running:
                if stop.is_set():
                    return
                yield one
        if stop.is_set():
            return
