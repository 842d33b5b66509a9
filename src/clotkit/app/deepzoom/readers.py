"""Keep the slides that are looked at open, a limited process each, and the tiles that were read last."""

import hashlib
import stat
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clotkit.app.deepzoom.cache import BytesCache
from clotkit.app.deepzoom.picture import Tile
from clotkit.app.deepzoom.process import INFO, TILES, TISSUE, Reply, SlideProcess
from clotkit.app.escaping import LONGEST_REASON, printable
from clotkit.app.processes import without_path
from clotkit.errors import SlideUnreadable, UsageError
from clotkit.reasons import Cause

OPEN_SLIDES = 8  # at a time; the one not used for longest is closed
FAILED_S = 30.0  # how long a slide that could not be opened is not tried again
MOST_FAILED = 256  # such slides that are remembered


@dataclass(frozen=True)
class SlideFile:
    """A slide's file as it is now: a changed file is another one."""

    path: Path
    mtime_ns: int
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> "SlideFile":
        """Return the file at a path. Raises UsageError if it is not a regular file."""
        try:
            status = path.stat()
        except OSError as error:
            raise UsageError("no such slide; choose one of the list") from error
        if not stat.S_ISREG(status.st_mode):
            raise UsageError("that is not a file; choose a slide of the list")
        return cls(path, status.st_mtime_ns, status.st_size)

    @property
    def version(self) -> str:
        """A word that changes with the file."""
        return hashlib.sha256(f"{self.mtime_ns} {self.size_bytes}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ReaderLimits:
    """The limits of all slides that are open."""

    memory_mb: int  # address space of each slide's process
    request_s: float = 30.0  # for one request
    cache_mb: float = 64.0  # of encoded tiles


@dataclass
class _Open:
    process: SlideProcess
    lock: threading.Lock = field(default_factory=threading.Lock)  # one request at a time
    users: int = 0  # threads that wait for it or use it


class Readers:
    """The open slides. Threads may share it; at most OPEN_SLIDES of them may ask at a time."""

    def __init__(self, limits: ReaderLimits) -> None:
        """Open nothing yet."""
        self._limits, self._lock = limits, threading.Lock()
        self._open: OrderedDict[SlideFile, _Open] = OrderedDict()
        self._failed: OrderedDict[SlideFile, tuple[float, Cause]] = OrderedDict()
        self.tiles = BytesCache[tuple[SlideFile, int, int, int]](limits.cache_mb)

    def info(self, file: SlideFile) -> dict[str, Any]:
        """Return the facts of a slide; see `SlidePicture.info`. Raises SlideUnreadable."""
        facts: dict[str, Any] = self._ask(file, INFO)
        return facts

    def tissue(self, file: SlideFile) -> dict[str, Any]:
        """Return the outlines of its tissue; see `SlidePicture.tissue`. Raises SlideUnreadable."""
        found: dict[str, Any] = self._ask(file, TISSUE)
        return found

    def tile(self, file: SlideFile, level: int, column: int, row: int) -> Tile:
        """Return a tile, from the cache if it is there. Raises SlideUnreadable."""
        if (known := self.known_tile(file, level, column, row)) is not None:
            return known
        tiles: list[Tile] = self._ask(file, TILES, level, column, row)
        for tile in tiles:
            if tile.sharp:
                self.tiles.put((file, level, tile.column, tile.row), tile.jpeg)
        return next(tile for tile in tiles if (tile.column, tile.row) == (column, row))

    def known_tile(self, file: SlideFile, level: int, column: int, row: int) -> Tile | None:
        """Return a tile if it is in the cache."""
        data = self.tiles.get((file, level, column, row))
        return None if data is None else Tile(column, row, data, True)

    def processes(self) -> int:
        """Return the number of slides that are open."""
        with self._lock:
            return sum(one.process.is_running for one in self._open.values())

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            for one in self._open.values():
                one.process.end()
            self._open.clear()

    def _ask(self, file: SlideFile, *request: Any) -> Any:
        slide = self._taken(file)
        try:
            with slide.lock:
                reply = self._reply(file, slide, *request)
        finally:
            with self._lock:
                slide.users -= 1
        if reply.failed is None:
            return reply.value
        cause = Cause(reply.failed.code, _shown(reply.failed.sentence, file.path))
        if not reply.is_open:
            self._remember(file, cause)
        raise _unreadable(cause)

    def _reply(self, file: SlideFile, slide: _Open, *request: Any) -> Reply:
        if not slide.process.is_running:  # it ended because nobody asked, or with the last request
            slide.process.end()
            slide.process = SlideProcess(file.path, self._limits.memory_mb)
        reply = slide.process.ask(self._limits.request_s, *request)
        return reply

    def _taken(self, file: SlideFile) -> _Open:
        """Return the open slide of a file, marked as used. Raises SlideUnreadable if it failed just now."""
        with self._lock:
            if file in self._failed:
                since, cause = self._failed[file]
                if time.monotonic() < since + FAILED_S:
                    raise _unreadable(cause)
                del self._failed[file]
            if file not in self._open:
                self._make_room()
                self._open[file] = _Open(SlideProcess(file.path, self._limits.memory_mb))
            self._open.move_to_end(file)
            self._open[file].users += 1
            return self._open[file]

    def _make_room(self) -> None:
        unused = [file for file, one in self._open.items() if not one.users]
        for file in unused[: max(0, len(self._open) + 1 - OPEN_SLIDES)]:
            self._open.pop(file).process.end()

    def _remember(self, file: SlideFile, cause: Cause) -> None:
        with self._lock:
            self._failed[file] = (time.monotonic(), cause)
            while len(self._failed) > MOST_FAILED:
                self._failed.popitem(last=False)
            slide = self._open.get(file)
            if slide is not None and not slide.users:
                self._open.pop(file).process.end()


def _shown(sentence: str, path: Path) -> str:
    """Return a sentence without the paths of this machine."""
    return printable(without_path(sentence, path).replace(f"{path.parent}/", ""), LONGEST_REASON)


def _unreadable(cause: Cause) -> SlideUnreadable:
    error = SlideUnreadable(cause.sentence)
    error.reason = cause.code
    return error
