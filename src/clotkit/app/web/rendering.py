"""Draw the pages from templates that escape every text; pictures, and the text of model cards."""

import html
import io
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import jinja2
import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from clotkit.app.escaping import LONGEST_REASON, printable
from clotkit.report.page import THEME
from clotkit.slides.pixels import Pixels
from clotkit.units import many

BOLD, CODE = re.compile(r"\*\*(.+?)\*\*"), re.compile(r"`(.+?)`")  # in a model card


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


def card(markdown: str) -> str:
    """Return a model card as HTML: headings, paragraphs, lists, tables, bold and code; all else is text.

    Every text of it is escaped; it has no links and no images, so that nothing in it can be fetched.
    """
    return "\n".join(_blocks(re.split(r"\n\s*\n", markdown.strip())))


def _blocks(blocks: list[str]) -> Iterator[str]:
    for block in blocks:
        lines = block.splitlines()
        heading = re.fullmatch(r"(#{1,4})\s+(.*)", lines[0]) if lines else None
        if heading:
            level = min(len(heading[1]) + 2, 6)
            yield f"<h{level}>{_inline(heading[2])}</h{level}>"
            lines = lines[1:]
        if lines and all(line.startswith("|") for line in lines):
            yield _table([[part.strip() for part in line.strip("|").split("|")] for line in lines])
        elif lines and all(re.match(r"[-*] ", line) for line in lines):
            yield "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>"
        elif lines:
            yield f"<p>{_inline(' '.join(lines))}</p>"


def _table(rows: list[list[str]]) -> str:
    rows = [row for row in rows if not all(re.fullmatch(r":?-+:?", part) for part in row)]
    if not rows:
        return ""
    head, *body = rows
    drawn = _row("th", head) + "".join(_row("td", row) for row in body)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Figures"><table>{drawn}</table></div>'


def _row(name: str, parts: list[str]) -> str:
    return "<tr>" + "".join(f"<{name}>{_inline(part)}</{name}>" for part in parts) + "</tr>"


def _inline(text: str) -> str:
    return CODE.sub(r"<code>\1</code>", BOLD.sub(r"<strong>\1</strong>", html.escape(text)))
