"""The application on a free port of loopback, in a thread, and requests to it as they are written."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route

from clotkit.app.deepzoom.routes import DeepZoom
from clotkit.app.roots import Roots
from clotkit.app.security import Door, guarded
from clotkit.app.web import view
from clotkit.app.web.rendering import theme
from clotkit.app.web.shared import Shared
from clotkit.competitions import Competition


@dataclass
class Answer:
    """The answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class AppServer:
    """A running application."""

    door: Door
    deepzoom: DeepZoom

    @property
    def url(self) -> str:
        """Its address, without the token."""
        return f"http://{self.door.address}:{self.door.port}"

    def own_headers(self) -> dict[str, str]:
        """Return the headers that a page of this session sends."""
        return {"Cookie": f"{self.door.cookie}={self.door.token}"}

    def ask(
        self, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: bytes | None = None
    ) -> Answer:
        """Send a request, its path as it is; without `headers` it is one of this session's."""
        connection = HTTPConnection(self.door.address, self.door.port, timeout=120)
        try:
            connection.request(method, path, body, self.own_headers() if headers is None else headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


@contextmanager
def app_server(
    folders: Sequence[Path], competition: Competition, more: Sequence[BaseRoute] = ()
) -> Iterator[AppServer]:
    """Serve slides below folders, and `more` routes, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        door = Door("127.0.0.1", listening.getsockname()[1])
        deepzoom = DeepZoom(Roots.of(folders), competition)

        @asynccontextmanager
        async def lifespan(_: Starlette) -> Any:
            yield
            deepzoom.close()

        pages = [Route("/theme.css", theme), Route("/view/{id}", view.show)]
        app = guarded([*deepzoom.routes(), *pages, *more], door, lifespan)
        app.state.shared = Shared({}, deepzoom.roots, competition)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield AppServer(door, deepzoom)
        finally:
            server.should_exit = True
            thread.join()
