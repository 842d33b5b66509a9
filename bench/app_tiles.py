"""Measure the viewer's server: `python -m bench.app_tiles [FILE ...]`.

For each slide: seconds to the first view and to the sharp one, of a window of 1,440 x 900 px with six connections, as a
browser has them. Then several sessions pan and zoom by a script for some minutes: latency of a tile, memory of the
server and of the processes of slides. Writes build/app_tiles.json.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

from clotkit.app.deepzoom.grid import TILE_PX, Grid
from clotkit.app.deepzoom.ids import id_of
from clotkit.app.roots import Roots
from clotkit.competitions import load_competition
from clotkit.units import MB

ROOT = Path(__file__).resolve().parents[1]
SIDE_PX, LAYOUTS = 30_000, ["deflate", "jpeg", "strips", "svs"]  # of the slides that are drawn
WINDOW_PX = (1440, 900)
CONNECTIONS = 6  # that a browser opens to one server
START_S = 3.0  # after the server's start, what a person needs at least to reach a slide
STEP_S = 0.5  # between two movements of a session
SHARP_S = 300.0  # the longest wait for a sharp view
Box = tuple[int, int, int, int, int]  # level, first column, first row, last column, last row


@dataclass
class Session:
    """A browser at the server: its connections, and the milliseconds that each tile took."""

    port: int
    cookie: str
    latencies_ms: list[float] = field(default_factory=list)
    failures: int = 0

    def __post_init__(self) -> None:
        self._local, self._connections = threading.local(), list[HTTPConnection]()
        self._threads = ThreadPoolExecutor(CONNECTIONS)

    def get(self, path: str) -> bytes:
        """Return the body of an answer, over one of the connections."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
            self._connections.append(connection)
        connection.request("GET", path, headers={"Cookie": self.cookie})
        response = connection.getresponse()
        body: bytes = response.read()
        if response.status != 200:
            self.failures += 1
        return body

    def close(self) -> None:
        """Close all connections."""
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()

    def info(self, slide: str) -> dict[str, Any]:
        """Return the facts of a slide."""
        facts: dict[str, Any] = json.loads(self._threads.submit(self.get, f"/slides/{slide}/info.json").result())
        return facts

    def load(self, slide: str, box: Box) -> None:
        """Get all tiles of a window."""
        level, left, top, right, bottom = box
        places = [(column, row) for row in range(top, bottom + 1) for column in range(left, right + 1)]
        list(self._threads.map(lambda place: self._tile(slide, level, *place), places))

    def _tile(self, slide: str, level: int, column: int, row: int) -> None:
        start = time.perf_counter()
        self.get(f"/slides/{slide}/tiles/{level}/{column}_{row}.jpg")
        self.latencies_ms.append((time.perf_counter() - start) * 1000)


def window(grid: Grid, level: int, x_px: float, y_px: float) -> Box:
    """Return the tiles of a window whose middle is at a place of a level, in its own pixels."""
    columns, rows = grid.counts(level)
    (left, right), (top, bottom) = (
        (
            max(0, min(count - 1, int(middle - side / 2) // TILE_PX)),
            max(0, min(count - 1, int(middle + side / 2) // TILE_PX)),
        )
        for middle, side, count in zip((x_px, y_px), WINDOW_PX, (columns, rows), strict=True)
    )
    return level, left, top, right, bottom


def whole(grid: Grid) -> Box:
    """Return the tiles with which a browser shows the whole slide."""
    fit = max(grid.width_px / WINDOW_PX[0], grid.height_px / WINDOW_PX[1])
    level = max(grid.first, min(grid.last, grid.last - (max(1, int(fit)).bit_length() - 1)))
    width, height = grid.size_px(level)
    return window(grid, level, width / 2, height / 2)


def first_views(session: Session, slide: str) -> dict[str, float]:
    """Return the seconds until a slide that was not open is seen, and until it is sharp."""
    start = time.perf_counter()
    info = session.info(slide)
    grid = Grid(info["width_px"], info["height_px"])
    session.load(slide, (grid.first, 0, 0, 0, 0))
    first = time.perf_counter() - start
    session.load(slide, whole(grid))
    full = time.perf_counter() - start
    while not info["sharp"] and time.perf_counter() < start + SHARP_S:
        time.sleep(0.2)
        info = session.info(slide)
    if info["sharp"]:
        session.load(slide, whole(grid))
    took = {"first_s": first, "window_s": full, "sharp_s": time.perf_counter() - start}
    return {"width_px": grid.width_px, "height_px": grid.height_px, **took}


def wander(session: Session, slide: str, until: float, seed: int) -> None:
    """Pan and zoom over a slide, a movement every STEP_S."""
    draw, info = random.Random(seed), session.info(slide)
    grid = Grid(info["width_px"], info["height_px"])
    level, x, y = grid.first, 0.5, 0.5  # the middle of the window, as a share of the slide
    while time.perf_counter() < until:
        level = max(grid.first, min(grid.last, level + draw.choice((-1, 0, 0, 1, 1))))
        width, height = grid.size_px(level)
        x = min(1.0, max(0.0, x + draw.uniform(-0.5, 0.5) * WINDOW_PX[0] / width))
        y = min(1.0, max(0.0, y + draw.uniform(-0.5, 0.5) * WINDOW_PX[1] / height))
        session.load(slide, window(grid, level, x * width, y * height))
        time.sleep(STEP_S)


def memory_mb(server: psutil.Process) -> dict[str, float]:
    """Return the memory of the server, and of it with all of its processes: shared pages count once."""
    processes = [server, *server.children(recursive=True)]
    total = 0.0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return {"server": server.memory_info().rss / MB, "all": total / MB}


def pan(sessions: Sequence[Session], slides: Sequence[str], minutes: float, server: psutil.Process) -> dict[str, Any]:
    """Let all sessions wander, and return latencies and memory."""
    for session in sessions:
        session.latencies_ms.clear()
    until = time.perf_counter() + minutes * 60
    threads = [
        threading.Thread(target=wander, args=(session, slides[number % len(slides)], until, number))
        for number, session in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    samples = []
    while time.perf_counter() < until:
        time.sleep(min(5.0, max(0.1, until - time.perf_counter())))
        samples.append(memory_mb(server))
    for thread in threads:
        thread.join()
    took = [latency for session in sessions for latency in session.latencies_ms]
    cuts, every = quantiles(took, n=20), max(1, round(len(samples) / max(1.0, minutes)))
    minutes_of = samples[every - 1 :: every]
    return {
        "sessions": len(sessions),
        "minutes": minutes,
        "tiles": len(took),
        "failures": sum(session.failures for session in sessions),
        "p50_ms": median(took),
        "p95_ms": cuts[18],
        "server_mb": [round(sample["server"], 1) for sample in minutes_of],  # one a minute
        "all_mb": [round(sample["all"], 1) for sample in minutes_of],
        "load": os.getloadavg()[0],
    }


@contextmanager
def serving(folders: Sequence[Path]) -> Iterator[tuple[Session, psutil.Process]]:
    """Run a server in a process of its own, and give a session and the process."""
    command = [sys.executable, "-m", "bench.app_tiles", "--serve", *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            port, cookie = json.loads(process.stdout.readline())
            time.sleep(START_S)
            yield Session(port, cookie), psutil.Process(process.pid)
        finally:
            process.terminate()


def serve(folders: Sequence[Path]) -> None:
    """Serve the slides below folders until SIGTERM; print the port and the cookie."""
    import socket

    import uvicorn

    from clotkit.app.deepzoom.routes import DeepZoom
    from clotkit.app.security import Door, guarded

    with socket.create_server(("127.0.0.1", 0)) as listening:
        door = Door("127.0.0.1", listening.getsockname()[1])
        deepzoom = DeepZoom(Roots.of(folders), load_competition("strip_ai"))
        print(json.dumps([door.port, f"{door.cookie}={door.token}"]), flush=True)
        application = guarded(deepzoom.routes(), door)
        uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False)).run(sockets=[listening])
        deepzoom.close()


def main() -> int:
    """Measure, print the figures and write them."""
    options = _options()
    if options.serve:
        serve(options.files)
        return 0
    files = [path.resolve() for path in options.files or _drawn(options.folder)]
    folders = sorted({path.parent for path in files})
    roots = Roots.of(folders)
    slides = {id_of(path, roots): path for path in files}
    with serving(folders) as (session, server):
        views = []
        for slide, path in slides.items():
            views.append({"file": path.name, "mb": path.stat().st_size / MB} | first_views(session, slide))
            print(views[-1], flush=True)
        sessions = [Session(session.port, session.cookie) for _ in range(options.sessions)]
        panned = pan(sessions, list(slides), options.minutes, server)
    print(json.dumps(panned, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"views": views, "panning": panned}, indent=2) + "\n", encoding="utf-8")
    return 0


def _drawn(folder: Path) -> list[Path]:
    from bench.layouts import slides

    return list(slides(folder, SIDE_PX, LAYOUTS, lambda line: print(line, file=sys.stderr)).values())


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.app_tiles", description=__doc__)
    line.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="slides (default: drawn ones, 30,000 px a side)"
    )
    line.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "bench", help="folder of drawn slides, kept for the next run"
    )
    line.add_argument("--minutes", type=float, default=10.0, help="of panning (default: 10; 1: a short measurement)")
    line.add_argument("--sessions", type=int, default=5, help="that pan at a time (default: 5)")
    line.add_argument("--out", type=Path, default=ROOT / "build" / "app_tiles.json", help="the JSON file to write")
    line.add_argument("--serve", action="store_true", help="only serve the slides of the folders FILE")
    return line.parse_args()


if __name__ == "__main__":
    sys.exit(main())
