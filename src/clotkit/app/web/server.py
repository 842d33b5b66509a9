"""The server of `clotkit app`: its settings, its routes, and one line for every error."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from clotkit.app.deepzoom.routes import DeepZoom
from clotkit.app.roots import Roots
from clotkit.app.security import Door, guarded
from clotkit.app.submissions import MOST_MB
from clotkit.app.uploads import MOST_BATCH_MB
from clotkit.app.web import classify, competition, home, runs, slides, submission, training, view, watching
from clotkit.app.web.rendering import error_page, theme
from clotkit.app.web.shared import Shared, ordered
from clotkit.competitions import load_competition
from clotkit.errors import UsageError
from clotkit.locks import ignore_lease_breaks
from clotkit.members.folder import find_members
from clotkit.units import MB

LOOPBACK = "127.0.0.1"
PORTS = (1024, 65535)
GRACE_S = 2  # for requests in progress when the server ends
BODIES = {"/classify": 2 * MOST_BATCH_MB * MB, "/submission": 4 * MOST_MB * MB}  # limits of forms with files, in bytes
Handler = Callable[[Request, Exception], Awaitable[Response]]


@dataclass(frozen=True)
class AppSettings:
    """The settings of `clotkit app`. No folder but `weights` and `roots` is opened."""

    weights: Path  # a member, or a folder of members
    roots: tuple[Path, ...]  # folders whose splits and runs may be opened
    competition: str  # name, or path of a .toml
    port: int = 8501
    address: str = LOOPBACK  # address to listen on


def build_app(settings: AppSettings) -> Starlette:
    """Return the application. Raises UsageError or ConfigError for a wrong setting."""
    members = {folder.name: folder for folder in find_members(settings.weights)}
    roots, competition = Roots.of(settings.roots), load_competition(settings.competition)
    deepzoom = DeepZoom(roots, competition)
    ignore_lease_breaks()  # of watched folders
    shared = Shared(ordered(members), roots, competition)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        shared.jobs.stop()
        deepzoom.close()

    door = Door(settings.address, settings.port, body_bytes=BODIES)
    app = guarded([*deepzoom.routes(), *_routes()], door, lifespan)
    app.exception_handlers |= {kind: _page_of(handler) for kind, handler in app.exception_handlers.items()}
    app.state.shared, app.state.door = shared, door
    return app


def serve(settings: AppSettings) -> None:
    """Serve the pages until interrupted. Raises UsageError or ConfigError for a wrong setting."""
    if not PORTS[0] <= settings.port <= PORTS[1]:
        raise UsageError(f"--port is {settings.port}; allowed: {PORTS[0]} to {PORTS[1]}")
    app = build_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.address,
        port=settings.port,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    try:
        with suppress(KeyboardInterrupt):
            Announced(config, app.state.door.url).run()
    except SystemExit as error:
        if error.code:
            raise UsageError(
                f"cannot listen on {settings.address}, port {settings.port}; try another: clotkit app --port N"
            ) from error


class Announced(uvicorn.Server):
    """A server that prints its address, with the session's token, once it listens."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: Any = None) -> None:
        """Start to listen, then print the address."""
        await super().startup(sockets)
        if self.started:
            print(f"clotkit app: open {self._url} (Ctrl-C ends it)", flush=True)


class Count(IntegerConvertor):
    """A number in a path, of few digits: int() raises for one of thousands."""

    regex = "[0-9]{1,6}"


register_url_convertor("count", Count())


def _routes() -> list[BaseRoute]:
    post = ["POST"]
    return [
        Route("/theme.css", theme),
        Route("/", home.show),
        Route("/classify", classify.show),
        Route("/classify", classify.start, methods=post),
        Route("/classify/{job}", classify.answers),
        Route("/classify/{job}/answers.csv", classify.table),
        Route("/classify/{job}/{number:count}/{kind}.png", classify.picture),
        Route("/watch", watching.start, methods=post),
        Route("/watch/{job}", watching.show),
        Route("/watch/{job}", watching.stop, methods=post),
        Route("/slides", slides.show),
        Route("/view/{id}", view.show),
        Route("/slide", slides.one_slide),
        Route("/slide/tissue.png", slides.tissue),
        Route("/slide/score", slides.start_score, methods=post),
        Route("/slide/score/{job}", slides.score),
        Route("/slide/score/{job}/tiles.png", slides.score_picture),
        Route("/runs", runs.show),
        Route("/runs/one", runs.one),
        Route("/runs/report", runs.report),
        Route("/runs/compare", runs.compared),
        Route("/runs/plan", runs.start_plan, methods=post),
        Route("/runs/plan/{job}", runs.plan),
        Route("/runs/start", runs.start_run, methods=post),
        Route("/runs/started/{job}", runs.begun),
        Route("/runs/started/{job}", runs.stop, methods=post),
        Route("/submission", submission.show),
        Route("/submission", submission.checked, methods=post),
        Route("/training", training.show),
        Route("/competition", competition.show),
        Route("/competition", competition.checked, methods=post),
        Route("/training/{member}/{number:count}.png", training.plot),
    ]


def _page_of(handler: Handler) -> Handler:
    """Return a handler of errors that shows a browser a page with the line that `handler` answers."""

    async def shown(request: Request, error: Exception) -> Response:
        answer = await handler(request, error)
        if "text/html" not in request.headers.get("accept", ""):
            return answer
        line = json.loads(bytes(answer.body))
        return error_page(request, line["error"], line["code"], answer.status_code)

    return shown
