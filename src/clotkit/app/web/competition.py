"""Page Competition: draft a competition's TOML from a data folder, fill it in, and see what fits."""

from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from clotkit.app import untrusted
from clotkit.app.deepzoom.ids import id_of, path_of
from clotkit.app.processes import run_one
from clotkit.app.web.rendering import page
from clotkit.app.web.shared import Shared, shared_of
from clotkit.app.web.slides import short
from clotkit.errors import UsageError
from clotkit.workers import Limits, Task

LIMITS = Limits(slide_s=120.0, memory_mb=1024)  # of reading a data folder
MOST_CHARACTERS = 200_000  # of a TOML
NAME = "competition.toml"  # of the file that is downloaded


def show(request: Request) -> Response:
    """Draw the page with its form alone."""
    return _page(request, shared_of(request))


async def checked(request: Request) -> Response:
    """Draft a TOML, check the one of the form, or return it as a file."""
    shared = shared_of(request)
    async with request.form() as form:
        folder, text, action = (str(form.get(key, "")) for key in ("folder", "text", "action"))
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"{len(text):,} characters are too many for a TOML; at most {MOST_CHARACTERS:,} are accepted")
    if action == "download":
        headers = {"Content-Disposition": f'attachment; filename="{NAME}"'}
        return Response(text, media_type="application/toml; charset=utf-8", headers=headers)
    work = _drafted if action == "draft" else _checked
    context = await run_in_threadpool(work, shared, folder, text)
    return _page(request, shared, folder=folder, **context)


def _page(request: Request, shared: Shared, **context: object) -> Response:
    folders = {id_of(one, shared.roots): short(one, shared) for one in shared.roots.with_tables()}
    values: dict[str, object] = {"folder": "", "text": "", "lines": [], "findings": None, "summary": [], "fits": False}
    return page(request, "competition", "Competition", folders=folders, **{**values, **context})  # type: ignore[arg-type]


def _drafted(shared: Shared, folder: str, _: str) -> dict[str, object]:
    data = shared.roots.closed(path_of(folder, shared.roots))
    return run_one(Task("draft", data, ()), untrusted.draft, LIMITS).facts


def _checked(shared: Shared, folder: str, text: str) -> dict[str, object]:
    data = path_of(folder, shared.roots)
    result = run_one(Task("check", data, ()), partial(untrusted.fits, text=text, roots=shared.roots), LIMITS)
    return {**result.facts, "text": text}
