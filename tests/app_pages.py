"""The whole application served from this process, on loopback, for the tests of its pages."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import requests
import uvicorn

from clotkit.app.web.jobs import Job
from clotkit.app.web.server import AppSettings, build_app
from clotkit.competitions import Competition
from clotkit.report.records import REPORT, RUN, ReportFile, SlideReport
from clotkit.synthetic.phantom import write_split

WAIT_S = 120.0  # for a job, on a busy machine


class Client(requests.Session):
    """A visitor with the session's cookie: addresses are paths, and jobs are waited for."""

    def __init__(self, base: str, app: Any) -> None:
        super().__init__()
        self.base, self.app, self.door = base, app, app.state.door
        self.headers.update({"Origin": base, "Accept": "text/html"})
        self.cookies.set(self.door.cookie, self.door.token)

    def request(self, method: Any, url: Any, *args: Any, **more: Any) -> requests.Response:
        """Ask for a path of the server."""
        return super().request(method, f"{self.base}{url}", *args, **more)

    def job(self, response: requests.Response) -> Job:
        """Return the job whose page a form has led to, once it is over."""
        found: Job = self.app.state.shared.jobs.find(response.url.rpartition("/")[2])
        assert found.over.wait(WAIT_S)
        return found

    def after(self, response: requests.Response) -> requests.Response:
        """Return the page of a job once it is over."""
        self.job(response)
        return self.get(response.url.removeprefix(self.base))


@contextmanager
def serving(weights: Path, roots: tuple[Path, ...], competition: str = "strip_ai") -> Iterator[Client]:
    """Serve until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        app = build_app(AppSettings(weights, roots, competition, port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{port}", app) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def make_root(folder: Path, competition: Competition, size: str = "1280x1920") -> Path:
    """Make a folder with a split of three synthetic slides, one of them damaged, and a run over it."""
    split = folder / "split"
    write_split(split, "test", 3, 5, competition, size=size, log=lambda _: None)
    paths = sorted((split / "test").glob("*.tif"))
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    (folder / "run").mkdir()
    with ReportFile(folder / "run" / REPORT) as file:
        file.add(SlideReport(paths[0].stem, "a", "done", "", 6, 0.4, 41.0))
        file.add(SlideReport(paths[1].stem, "b", "fallback", "its first <b>directory</b> is cut short", 0, 0.1, 30.0))
    (folder / "run" / RUN).write_text(json.dumps({"arguments": {"split": str(split)}}))
    return folder


class Elements(HTMLParser):
    """The elements of a page: names and attributes, and the text of all."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep text."""
        self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        """Return the attributes of the elements with a name and with attributes."""
        return [found for name, found in self.found if name == tag and wanted.items() <= found.items()]

    def codes(self) -> list[str]:
        """Return the codes of reasons, doubts and problems on the page."""
        return [str(found["data-code"]) for _, found in self.found if "data-code" in found]


def spaced(text: str) -> str:
    """Return text with single spaces."""
    return re.sub(r"\s+", " ", text)
