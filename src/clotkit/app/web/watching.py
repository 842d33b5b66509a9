"""A switch of the page Classify: answer each new picture of a folder once it is complete."""

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import cast

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clotkit.app.uploads import MOST_UPLOAD_MB, Answer, Upload, classify
from clotkit.app.web.jobs import Job, Kind
from clotkit.app.web.rendering import page
from clotkit.app.web.shared import Shared, job_of, shared_of
from clotkit.data.pictures import SUFFIXES
from clotkit.errors import UsageError
from clotkit.evaluation.watch import POLL_S, NewPictures, warm_up
from clotkit.splits.identity import SLIDE_SUFFIXES
from clotkit.units import MB

KEPT = 100  # answers that are shown, the newest first
HERE = "/classify"


@dataclass
class Watched:
    """The newest answers of a folder, each with its time."""

    answers: deque[tuple[datetime, Answer]] = field(default_factory=lambda: deque(maxlen=KEPT))
    count: int = 0

    def add(self, answer: Answer) -> None:
        """Keep an answer, without its pictures."""
        self.count += 1
        self.answers.appendleft((datetime.now().astimezone(), replace(answer, picture=None, heat=None)))


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
    return page(request, "watch", "Watched folder", here=HERE, job=job, watched=cast(Watched | None, job.result))


def stop(request: Request) -> Response:
    """End the watch."""
    job = job_of(request, Kind.WATCH)
    job.stop.set()
    job.over.wait()
    return RedirectResponse(f"/watch/{job.key}", 303)


def _watch(shared: Shared, name: str, folder: Path, job: Job) -> Watched:
    """Answer each new picture of a folder until the job is stopped. Raises UsageError if the folder goes."""
    watched, is_slides = Watched(), shared.source(name) == "slides"
    try:
        new = NewPictures(folder, SLIDE_SUFFIXES if is_slides else SUFFIXES)
        member = shared.member(name)
        warm_up(member)
        job.result = watched
        while not job.stop.wait(POLL_S):
            found = {path: upload for path in new.poll() if (upload := _upload(shared, path)) is not None}
            answers = classify(member, list(found.values()), shared.competition) if found else []
            for path, one in zip(found, answers, strict=True):
                if one.refused is None or new.failed(path):
                    watched.add(one)
    except OSError as error:
        raise UsageError(f"the folder cannot be read: {error.strerror}; choose it again") from error
    return watched


def _upload(shared: Shared, path: Path) -> Upload | None:
    """Return a file as an upload; one that is too large as many zeros: it is refused unread.

    None of one that went meanwhile, cannot be read, or is a link that leads out of the roots.
    """
    try:
        inside = shared.roots.inside(path)
        size = inside.stat().st_size
        return Upload(path.name, memoryview(bytes(size)) if size > MOST_UPLOAD_MB * MB else inside.read_bytes())
    except (OSError, UsageError):
        return None
