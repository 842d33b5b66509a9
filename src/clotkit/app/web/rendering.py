"""Draw the pages from templates that escape every text, and pictures."""

import io
from functools import cache
from importlib.resources import files

import jinja2
import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from clotkit.app.escaping import LONGEST_REASON, printable
from clotkit.app.model_card import card
from clotkit.report.page import THEME
from clotkit.slides.pixels import Pixels
from clotkit.units import many


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("clotkit.app").joinpath("templates"))),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": printable, "reason": reason, "many": many, "cell": cell, "card": card}
    return environment


def page(request: Request, template: str, title: str, status: int = 200, **context: object) -> Response:
    """Return a page with the navigation; `template` is the name of a file without its endings."""
    here = "/" + request.url.path.split("/")[1]
    shared = {"title": printable(title), "here": here}
    text = _environment().get_template(f"{template}.html.j2").render(shared | context)
    return HTMLResponse(text, status)


def theme(_: Request) -> Response:
    """Return the style of sizes and colours, which the report of a run has too."""
    text = files("clotkit.report").joinpath(THEME).read_text(encoding="utf-8")
    return Response(text, media_type="text/css", headers={"cache-control": "private, max-age=3600"})


def error_page(request: Request, sentence: str, code: str, status: int) -> Response:
    """Return a page with one line that says what is wrong."""
    return page(request, "error", "This did not work", status, sentence=sentence, code=code)


def reason(value: object) -> str:
    """Return an error, or the sentence of a reason, on one line."""
    return printable(str(value), LONGEST_REASON)


def cell(value: float | str | None) -> str:
    """Return the text of a table's cell."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else reason(value)


def png(pixels: Pixels) -> Response:
    """Return a picture as a response that the browser need not ask for again."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return Response(file.getvalue(), media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})
