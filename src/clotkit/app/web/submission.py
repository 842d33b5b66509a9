"""Page Submission: check an uploaded submission.csv as Kaggle does, and compare it with another one."""

from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from clotkit.app.submissions import check, difference, histogram, label_counts
from clotkit.app.web.rendering import page
from clotkit.app.web.shared import Shared, shared_of
from clotkit.competitions import Competition
from clotkit.errors import UsageError
from clotkit.submission.checking import Verdict

MOST_LINES = 50  # problems that are shown
FILES = {  # fields of the form
    "submission": "Submission to check (CSV)",
    "sample": "Sample submission, to check the ids against (CSV, optional)",
    "other": "Another submission, to compare with (CSV, optional)",
}


def show(request: Request) -> Response:
    """Draw the page with its form alone."""
    return page(request, "submission", "Submission", fields=FILES, files={})


async def checked(request: Request) -> Response:
    """Draw the page with the verdict on the files of the form."""
    async with request.form(max_files=len(FILES)) as form:
        given = {name: file for name in FILES if isinstance(file := form.get(name), UploadFile) and file.filename}
        data = {name: await file.read() for name, file in given.items()}
        names = {name: file.filename or "" for name, file in given.items()}
    if "submission" not in data:
        raise UsageError("no submission was chosen; choose a file, then press Check")
    context = await run_in_threadpool(_verdicts, data, shared_of(request))
    return page(request, "submission", "Submission", fields=FILES, files=names, **context)


def _verdicts(data: Mapping[str, bytes], shared: Shared) -> dict[str, Any]:
    competition = shared.competition
    first, second = check(data["submission"], data.get("sample"), data.get("other"), competition)
    compared = difference(first, second, competition) if second and first.valid and second.valid else None
    return {
        "verdict": first,
        "other": second,
        "difference": compared,
        "unit": competition.unit.value,
        "most": MOST_LINES,
        "plots": _plots(first, competition) if first.valid else [],
    }


def _plots(verdict: Verdict, competition: Competition) -> list[dict[str, Any]]:
    """Return the numbers of rows by label, or by probability of each class; of two, the last one's."""
    if verdict.labels:
        return [_plot("Rows by label", list(label_counts(verdict, competition).items()))]
    names = competition.classes.names
    indices = range(len(names)) if len(names) > 2 else [len(names) - 1]
    return [_plot(f"Probability of {names[index]}", histogram(verdict, index)) for index in indices]


def _plot(name: str, bins: list[tuple[str, int]]) -> dict[str, Any]:
    return {"name": name, "bins": bins, "most": max(count for _, count in bins) or 1}
