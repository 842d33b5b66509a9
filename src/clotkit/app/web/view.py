"""Page of the viewer: one slide, or two side by side."""

from itertools import islice
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from clotkit.app.deepzoom.ids import id_of, path_of
from clotkit.app.escaping import printable
from clotkit.app.roots import Roots
from clotkit.app.web.rendering import page
from clotkit.app.web.shared import shared_of
from clotkit.errors import UsageError

HERE = "/slides"  # in the navigation
SUFFIXES = {".tif", ".tiff", ".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".png", ".jpg", ".jpeg"}
MOST_OTHERS = 500  # slides of the same folder to choose a second one from


def show(request: Request) -> Response:
    """Draw the page of a slide; `beside` in the query is the id of a second one.

    `run` and `image`, for the second one `beside_image`, name a run's folder and the slide in it: its tiles are drawn.
    """
    query, identity, roots = request.query_params, request.path_params["id"], shared_of(request).roots
    try:
        path = path_of(identity, roots)
        panes = [_pane(path, roots, query.get("run"), query.get("image"))]
        if query.get("beside"):
            panes.append(_pane(path_of(query["beside"], roots), roots, query.get("run"), query.get("beside_image")))
    except UsageError as error:
        return _page(request, "No slide", 404, panes=[], others=[], error=str(error))
    others = [{"id": id_of(one, roots), "name": printable(one.name)} for one in _others(path)]
    return _page(request, " and ".join(pane["name"] for pane in panes), panes=panes, others=others, error="")


def _page(request: Request, title: str, status: int = 200, **values: Any) -> Response:
    return page(request, "viewer", title, status, here=HERE, **values)


def _pane(path: Path, roots: Roots, run: str | None, image: str | None) -> dict[str, Any]:
    return {"id": id_of(path, roots), "name": printable(path.name), "run": run or "", "image": image or ""}


def _others(path: Path) -> list[Path]:
    """Return the slides in the folder of a slide, without links: they may lead out of the roots."""
    slides = (one for one in sorted(path.parent.iterdir()) if one.suffix.lower() in SUFFIXES)
    return list(islice((one for one in slides if one.is_file() and not one.is_symlink()), MOST_OTHERS))
