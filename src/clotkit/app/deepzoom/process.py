"""Keep a slide open in a limited process, which answers one request after the other.

A process for each tile would open the slide anew each time. This one reads what is still blurred while nobody waits,
and ends when nobody has asked for a while. Whatever it does, it costs this slide alone.
"""

import multiprocessing
import os
import select
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from clotkit.app.deepzoom.picture import SlidePicture
from clotkit.forking import start, wait_for_exit
from clotkit.pipes import Inbox, receive, send
from clotkit.reasons import Cause, Reason
from clotkit.workers import KILL_S, cause_of, confine

ATTENTION_S = 15.0  # after the last request, how long it goes on to read what is still blurred
IDLE_S = 300.0  # after the last request, when it ends
INFO, TILES, TISSUE = "info", "tiles", "tissue"  # requests


@dataclass(frozen=True)
class Reply:
    """The answer of the process."""

    value: Any = None
    failed: Cause | None = None
    is_open: bool = True  # False: the slide could not be opened, and the process has ended


class SlideProcess:
    """This side of a slide's process."""

    def __init__(self, path: Path, memory_mb: int) -> None:
        """Start the process; the slide is opened by the first request."""
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = start(_serve, (path, memory_mb), theirs)
        theirs.close()
        self._inbox = Inbox(self._pipe.fileno())

    @property
    def is_running(self) -> bool:
        """True while it can be asked."""
        return not self._pipe.closed and self._process.exitcode is None

    def ask(self, limit_s: float, *request: Any) -> Reply:
        """Return the answer to a request. A process that gives none within `limit_s` is ended."""
        until = time.monotonic() + limit_s
        try:
            send(self._pipe.fileno(), request)
            while (left := until - time.monotonic()) > 0:
                wait([self._pipe], left)
                reply = self._inbox.receive()
                if isinstance(reply, Reply):
                    return reply
        except Exception:  # noqa: BLE001 - the pipe has ended, or its process sent what is no message
            self.end()
            return Reply(failed=Cause(Reason.CRASHED, f"its process ended, exit code {self._process.exitcode}"))
        self.end()
        return Reply(failed=Cause(Reason.TIMEOUT, f"time limit: not done after {limit_s:.0f} s"))

    def end(self) -> None:
        """End the process with SIGKILL, as native code ignores SIGTERM."""
        self._process.kill()
        wait_for_exit(self._process, time.monotonic() + KILL_S)
        self._pipe.close()


def _serve(path: Path, memory_mb: int, pipe: int) -> None:
    """Be a slide's process: answer requests until nobody asks."""
    confine(memory_mb)
    picture: SlidePicture | None = None
    while (request := _next_request(pipe, picture)) is not None:
        try:
            picture = SlidePicture(path) if picture is None else picture
            reply = Reply(_answer(picture, *request))
        except Exception as error:  # noqa: BLE001 - any error affects this request only, and its answer names it
            cause = cause_of(error, memory_mb)
            reply = Reply(failed=cause, is_open=picture is not None and cause.code is not Reason.OUT_OF_MEMORY)
        send(pipe, reply)
        if not reply.is_open:
            break
    os._exit(0)  # native libraries may hang or crash in their clean-up


def _answer(picture: SlidePicture, name: str, *arguments: int) -> Any:
    if name == TILES:
        return picture.tiles(*arguments)
    return picture.tissue() if name == TISSUE else picture.info()


def _next_request(pipe: int, picture: SlidePicture | None) -> tuple[Any, ...] | None:
    """Read on until a request comes, and return it; None if the application has gone, or is done."""
    since = time.monotonic()
    busy = picture is not None
    while True:
        attentive = busy and time.monotonic() < since + ATTENTION_S
        if select.select([pipe], [], [], 0 if attentive else max(0.0, since + IDLE_S - time.monotonic()))[0]:
            try:
                request: tuple[Any, ...] = receive(pipe)
            except (EOFError, OSError):
                return None
            return request
        if not attentive:
            return None
        busy = _step(picture)


def _step(picture: SlidePicture | None) -> bool:
    """Read a part of what is still blurred; return whether more is."""
    try:
        return picture is not None and picture.step()
    except Exception:  # noqa: BLE001 - the requests that need this part will name the error
        return False
