"""Page of the viewer: one slide, or two side by side."""

from itertools import islice
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from clotkit.app.deepzoom.ids import id_of, path_of
from clotkit.app.escaping import printable
from clotkit.app.roots import Roots, allowed, children
from clotkit.app.viewer import open_folder
from clotkit.app.web.rendering import page
from clotkit.app.web.shared import Shared, shared_of
from clotkit.errors import ClotkitError, UsageError

HERE = "/slides"  # in the navigation
SUFFIXES = {".tif", ".tiff", ".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".png", ".jpg", ".jpeg"}
MOST_OTHERS = 500  # slides of the same folder to choose a second one from


def show(request: Request) -> Response:
    """Draw the page of a slide; `beside` in the query is the id of a second one.

    `run` is the id of a run's folder, whose tiles are drawn, and `image` the name of the slide in it.
    """
    shared, query = shared_of(request), request.query_params
    roots, run = shared.roots, query.get("run", "")
    try:
        path = _slide_of(request.path_params["id"], roots)
        panes = [_pane(path, roots, run, query.get("image", ""))]
        if query.get("beside"):
            beside = _slide_of(query["beside"], roots)
            panes.append(_pane(beside, roots, run, _image_of(beside, run, shared) if run else ""))
    except UsageError as error:
        return _page(request, "No slide", 404, panes=[], others=[], error=str(error))
    others = [{"id": id_of(one, roots), "name": printable(one.name)} for one in _others(path)]
    return _page(request, " and ".join(pane["name"] for pane in panes), panes=panes, others=others, error="")


def _page(request: Request, title: str, status: int = 200, **values: Any) -> Response:
    return page(request, "viewer", title, status, here=HERE, **values)


def _pane(path: Path, roots: Roots, run: str, image: str) -> dict[str, Any]:
    return {"id": id_of(path, roots), "name": printable(path.name), "run": run, "image": image}


def _slide_of(text: str, roots: Roots) -> Path:
    """Return the file of an id.

    Raises UsageError for a folder: files beside a root, which would be listed as its neighbours, are outside the roots.
    """
    path = path_of(text, roots)
    if not allowed(path.is_file):
        raise UsageError("that is no file; choose a slide of the list")
    return path


def _image_of(path: Path, run: str, shared: Shared) -> str:
    """Return the name of a slide in a run; empty if the run has no line of it."""
    try:
        opened = open_folder(path_of(run, shared.roots), shared.roots, shared.competition)
    except ClotkitError:
        return ""  # the slide is shown all the same
    return next((one for one in opened.lines if one in opened.rows and opened.rows[one].path.resolve() == path), "")


def _others(path: Path) -> list[Path]:
    """Return the slides in the folder of a slide, without links: they may lead out of the roots."""
    slides = (one for one in children(path.parent) if one.suffix.lower() in SUFFIXES)
    return list(islice((one for one in slides if allowed(one.is_file) and not one.is_symlink()), MOST_OTHERS))
