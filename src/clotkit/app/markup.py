"""Fill the templates of the pages, with every value escaped."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

HERE = Path(__file__).parent
STATIC = HERE / "static"  # what pages load: scripts, styles, pictures


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Return a page made of a template in `templates/`."""
    return HTMLResponse(_templates().get_template(template).render(values), status)


@cache
def _templates() -> Environment:
    # Starlette's own would not escape in files that end with .j2.
    return Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
