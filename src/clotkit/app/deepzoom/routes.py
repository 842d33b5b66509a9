"""Answer requests for a slide's facts, tiles and overlays."""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from clotkit import forking
from clotkit.app.deepzoom.grid import Grid
from clotkit.app.deepzoom.ids import path_of
from clotkit.app.deepzoom.overlay import OVERLAY, overlay
from clotkit.app.deepzoom.picture import Tile
from clotkit.app.deepzoom.readers import OPEN_SLIDES, ReaderLimits, Readers, SlideFile
from clotkit.app.escaping import printable
from clotkit.app.processes import run_one, slide_limits
from clotkit.app.roots import Roots
from clotkit.app.security import RequestRefused
from clotkit.competitions import Competition
from clotkit.errors import SlideUnreadable, UsageError
from clotkit.reasons import Reason, Refusal
from clotkit.workers import Task

STATIC = Path(__file__).parents[1] / "static"  # what pages load: scripts, styles, pictures
MOST_WAITING = 256  # requests that wait for slides; a page asks for at most 6 at a time
MOST_GRIDS = 1024  # slides whose size is remembered
NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
VERSION = re.compile(r"[0-9a-f.]{1,40}", re.ASCII)  # of a tile's address: it changes with the slide's file
KEPT = "private, max-age=3600, immutable"
Value = TypeVar("Value")


class DeepZoom:
    """The slides below the roots, for a viewer."""

    def __init__(self, roots: Roots, competition: Competition) -> None:
        """Open nothing yet."""
        self.roots, self._competition = roots, competition
        self.readers = Readers(ReaderLimits(competition.limits.slide_memory_mb))
        # Processes of slides end with the thread that started them, so threads of our own that stay.
        self._threads = ThreadPoolExecutor(OPEN_SLIDES, "slides")
        self._threads.submit(forking.prepare)  # so that the first slide does not wait for it
        self._turns: WeakValueDictionary[SlideFile, asyncio.Lock] = WeakValueDictionary()
        self._grids: OrderedDict[SlideFile, Grid] = OrderedDict()
        self._waiting = 0

    def routes(self) -> list[BaseRoute]:
        """Return the routes of slides, and of what pages load."""
        return [
            Route("/slides/{id}/info.json", self._info),
            Route("/slides/{id}/overview.jpg", self._overview),
            Route("/slides/{id}/overlay.json", self._overlay),
            Route("/slides/{id}/tiles/{level}/{column}_{row}.jpg", self._tile),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    def close(self) -> None:
        """End all processes of slides."""
        self.readers.close()
        self._threads.shutdown(cancel_futures=True)

    async def _info(self, request: Request) -> Response:
        _check_query(request)
        file = await self._file(request)
        facts = await self._in_turn(request, file, partial(self.readers.info, file))
        self._remember(file, facts)
        return JSONResponse({"name": printable(file.path.name), "version": file.version, **facts})

    async def _tile(self, request: Request) -> Response:
        _check_query(request, v=VERSION)
        level, column, row = (_number(request, name) for name in ("level", "column", "row"))
        file = await self._file(request)
        if not (await self._grid(request, file)).has(level, column, row):
            raise _not_found("the slide has no such tile")
        return _jpeg(await self._read_tile(request, file, level, column, row), _is_of(request, file))

    async def _overview(self, request: Request) -> Response:
        _check_query(request, v=VERSION)
        file = await self._file(request)
        first = (await self._grid(request, file)).first
        return _jpeg(await self._read_tile(request, file, first, 0, 0), _is_of(request, file))

    async def _overlay(self, request: Request) -> Response:
        """Answer with what a run says of a slide, or with the tissue of the slide itself.

        The answer has `missing`, a code and a sentence, if a run is named that has nothing of the slide.
        """
        _check_query(request, run=None, image=None)
        file = await self._file(request)
        run, image = request.query_params.get("run"), request.query_params.get("image")
        missing: dict[str, str] | None = None
        if run is not None and image is not None:
            folder = await _found(self._run_folder, run)
            task, work = Task(image, folder, ()), partial(overlay, image_id=image)
            try:
                result = await to_thread.run_sync(run_one, task, work, slide_limits(self._competition))
                return JSONResponse(result.facts[OVERLAY])
            except SlideUnreadable as error:
                if error.reason is not Reason.MISSING:
                    raise
                missing = {"code": error.reason, "error": str(error)}
        tissue = await self._in_turn(request, file, partial(self.readers.tissue, file))
        return JSONResponse({"slide_px": None, "tissue": tissue, "tiles": [], "legend": None, "missing": missing})

    def _run_folder(self, text: str) -> Path:
        """Return the folder of a run's id. Raises UsageError if a link in it leads out of the roots."""
        path = path_of(text, self.roots)
        return self.roots.closed(path) if path.is_dir() else path

    async def _file(self, request: Request) -> SlideFile:
        def opened(text: str) -> SlideFile:
            return SlideFile.of(path_of(text, self.roots))

        return await _found(opened, request.path_params["id"])

    async def _grid(self, request: Request, file: SlideFile) -> Grid:
        if file not in self._grids:
            self._remember(file, await self._in_turn(request, file, partial(self.readers.info, file)))
        return self._grids[file]

    def _remember(self, file: SlideFile, facts: dict[str, Any]) -> None:
        self._grids[file] = Grid(facts["width_px"], facts["height_px"])
        self._grids.move_to_end(file)
        while len(self._grids) > MOST_GRIDS:
            self._grids.popitem(last=False)

    async def _read_tile(self, request: Request, file: SlideFile, level: int, column: int, row: int) -> Tile:
        known = self.readers.known_tile(file, level, column, row)
        if known is not None:
            return known
        return await self._in_turn(request, file, partial(self.readers.tile, file, level, column, row))

    async def _in_turn(self, request: Request, file: SlideFile, work: Callable[[], Value]) -> Value:
        """Read from a slide, one request after the other: a slide that is slow keeps one thread, not all."""
        if self._waiting >= MOST_WAITING:
            raise RequestRefused(Refusal.BUSY, "too many requests are waiting; try again", 503)
        self._waiting += 1
        try:
            turn = self._turns.setdefault(file, asyncio.Lock())
            async with turn:
                if await request.is_disconnected():  # the viewer has moved on while this waited
                    raise RequestRefused(Refusal.GONE, "the request was given up", 408)
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


async def _found(find: Callable[[str], Value], text: str) -> Value:
    """Return what an id names; a disk that does not answer delays this request alone."""
    try:
        return await to_thread.run_sync(find, text)
    except UsageError as error:
        raise _not_found(str(error)) from error


def _is_of(request: Request, file: SlideFile) -> bool:
    """Return whether an address is that of the file as it is now.

    The viewer adds a dot and a number to a version, to load blurred tiles anew.
    """
    return request.query_params.get("v", "").partition(".")[0] == file.version


def _jpeg(tile: Tile, is_named: bool) -> Response:
    kept = KEPT if tile.sharp and is_named else "no-store"
    headers = {"cache-control": kept, "x-clotkit-sharp": str(int(tile.sharp))}
    return Response(tile.jpeg, media_type="image/jpeg", headers=headers)


def _number(request: Request, name: str) -> int:
    text = request.path_params[name]
    if not NUMBER.fullmatch(text):
        raise RequestRefused(Refusal.BAD_REQUEST, f"{name} is not a number of at most 9 digits", 400)
    return int(text)


def _check_query(request: Request, **known: re.Pattern[str] | None) -> None:
    """Raise RequestRefused for a parameter that is unknown, repeated, or of another form than its pattern."""
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    forms = [pattern for name, value in given if (pattern := known.get(name)) and not pattern.fullmatch(value)]
    if not set(names) <= known.keys() or len(names) != len(set(names)) or forms:
        allowed = ", ".join(known) or "none"
        raise RequestRefused(Refusal.BAD_REQUEST, f"wrong parameters; allowed: {allowed}, each once", 400)


def _not_found(sentence: str) -> RequestRefused:
    return RequestRefused(Refusal.NOT_FOUND, sentence, 404)
