"""Page Classify: upload pictures or slides; see each one's label, probabilities, heat map and doubts."""

import csv
import io
from collections.abc import Sequence
from typing import cast

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clotkit.app.escaping import printable
from clotkit.app.training import card_of
from clotkit.app.uploads import MOST_BATCH_MB, MOST_UPLOAD_MB, MOST_UPLOADS, Answer, Upload, classify
from clotkit.app.web.jobs import Job, Kind
from clotkit.app.web.rendering import page, png
from clotkit.app.web.shared import Shared, job_of, shared_of
from clotkit.errors import UsageError
from clotkit.units import MB

MOST_FILES = 1000  # of a form: those above MOST_UPLOADS are refused one by one, with a line each
RETRY_S = 30.0  # after which a member's sample that failed is tried again
FORMULA = ("=", "+", "-", "@")  # with which a spreadsheet takes a cell for a formula


def show(request: Request) -> Response:
    """Draw the page: the choice of a member, the form, and the member's first sample worked."""
    shared = shared_of(request)
    name = shared.chosen(request.query_params.get("member"))
    return page(
        request,
        "classify",
        "Classify",
        members=shared.titles(),
        member=name,
        worked=_worked(shared, name),
        card_text=card_of(shared.members[name]),
        samples=list(shared.samples(name)),
        is_slides=shared.source(name) == "slides",
        has_roots=bool(shared.roots.folders),
        limits=(MOST_UPLOADS, MOST_UPLOAD_MB, MOST_BATCH_MB),
    )


async def start(request: Request) -> Response:
    """Take files and samples, and lead to the page of their answers."""
    shared = shared_of(request)
    async with request.form(max_files=MOST_FILES, max_fields=MOST_FILES) as form:
        name = shared.chosen(str(form.get("member", "")))
        uploads = await _uploads([one for one in form.getlist("files") if isinstance(one, UploadFile) and one.filename])
        chosen = [str(one) for one in form.getlist("samples")]
    return _started(shared, name, uploads, chosen)


def answers(request: Request) -> Response:
    """Draw the answers of a batch, or how far it is."""
    job = job_of(request, Kind.CLASSIFY)
    shown, refused = _counted(job)
    return page(request, "answers", "Answers", job=job, answers=_answers(job), answered=shown, refused=refused)


def picture(request: Request) -> Response:
    """Return a picture of an answer: the upload itself, or its heat map."""
    found = _answers(job_of(request, Kind.CLASSIFY))
    number = request.path_params["number"]
    if number >= len(found):
        raise HTTPException(404)
    pixels = found[number].heat if request.path_params["kind"] == "heat" else found[number].picture
    if pixels is None:
        raise HTTPException(404)
    return png(pixels)


def table(request: Request) -> Response:
    """Return the answers of a batch as a CSV file."""
    job = job_of(request, Kind.CLASSIFY)
    text = csv_of(_answers(job))
    headers = {"Content-Disposition": 'attachment; filename="answers.csv"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


def csv_of(found: Sequence[Answer]) -> str:
    """Return answers as CSV: a row each, with the codes of its doubts or of its refusal."""
    classes = list(dict.fromkeys(name for one in found for name in one.probabilities))
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["file", "answer", *(f"p({name})" for name in classes), "doubts", "refused", "reason"])
    for one in found:
        name = printable(one.name)
        cause = ("", "") if one.refused is None else (one.refused.code.value, printable(one.refused.sentence))
        numbers = [one.probabilities.get(name, "") for name in classes]
        rows.writerow([_cell(name), one.label, *numbers, " ".join(one.doubts), *cause])
    return file.getvalue()


def _cell(text: str) -> str:
    """Return a file's name so that no spreadsheet calculates it."""
    return f"'{text}" if text.startswith(FORMULA) else text


async def _uploads(files: Sequence[UploadFile]) -> list[Upload]:
    """Return uploads with their bytes; one above a limit with as many zeros: it is refused unread."""
    found, total = list[Upload](), 0
    for number, file in enumerate(files):
        size = file.size or 0
        is_read = number < MOST_UPLOADS and size <= MOST_UPLOAD_MB * MB and total + size <= MOST_BATCH_MB * MB
        total += size if is_read else 0
        found.append(Upload(file.filename or "a file", await file.read() if is_read else memoryview(bytes(size))))
    return found


def _started(shared: Shared, name: str, uploads: Sequence[Upload], chosen: Sequence[str]) -> Response:
    samples = shared.samples(name) if chosen else {}
    every = [*uploads, *(Upload(one, samples[one]) for one in chosen if one in samples)]
    if not every:
        raise UsageError("no file and no sample was chosen; choose at least one, then press Classify")
    job = _start(shared, name, every)
    return RedirectResponse(f"/classify/{job.key}", 303)


def _start(shared: Shared, name: str, uploads: Sequence[Upload], only: str = "") -> Job:
    def work(job: Job) -> list[Answer]:
        job.advance(0, len(uploads))
        found = classify(shared.member(name), uploads, shared.competition, job.advance)
        pictures = [picture for one in found for picture in (one.picture, one.heat) if picture is not None]
        job.result_bytes = sum(picture.nbytes for picture in pictures)
        return found

    return shared.jobs.start(Kind.CLASSIFY, shared.title(name), work, {"member": name}, only, RETRY_S)


def _worked(shared: Shared, name: str) -> Job | None:
    """Return a snapshot of the job of a member's first sample; None if it has none, or too many jobs run."""
    samples = shared.samples(name)
    if not samples:
        return None
    upload = Upload(*next(iter(samples.items())))
    try:
        return _start(shared, name, [upload], only=f"sample of {name}").snapshot()
    except UsageError:
        return None


def _answers(job: Job) -> list[Answer]:
    return cast(list[Answer], job.result or [])


def _counted(job: Job) -> tuple[int, int]:
    refused = sum(one.refused is not None for one in _answers(job))
    return len(_answers(job)) - refused, refused
