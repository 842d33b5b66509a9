"""Keep the process that has the members, `clotkit serve`, and give it the slides of each batch.

The server stays up whatever that process does: it loads while the server answers already, it is killed if it does not
end a batch in time, and started again if it dies. Standard library only.
"""

import json
import os
import queue
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clotkit.console import unforeseen
from clotkit.errors import one_line
from clotkit.reasons import Reason
from clotkit.report.records import IMAGE_ID
from clotkit.supervise import WORKING, kill_group, name_of, say

MOST_STARTS = 3  # in a row of a process that never becomes ready
MOST_TRIES = 2  # of a slide, if the process dies while it is read
EXIT_S = 1.0  # the longest wait for the end of a process that has closed its output
CLOSING_S, CLOSING_SHARE = 1.0, 0.05  # kept of the time for a batch, for its last message
Message = dict[str, Any]
READY, LINE, ANSWERS, END, ERROR = "ready", "line", "answers", "end", "error"  # keys of messages


class Backend:
    """The process that has the members."""

    def __init__(self, prepare: Callable[[], list[str] | None], folder: Path = WORKING) -> None:
        """Start the process in the background by the command that `prepare` returns; None: there is no member."""
        self.reason: Reason | None = None  # why it will never answer
        self.starts = 0
        self.why_left = Reason.NOT_READY  # why slides of the last batch have no message
        self._prepare, self._folder = prepare, folder
        self._command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.SimpleQueue[tuple[int, Message | None]] = queue.SimpleQueue()
        self._is_ready, self._unready = False, 0
        threading.Thread(target=self._begin, name="members", daemon=True).start()

    def score(self, slides: Sequence[Message], until: float) -> Iterator[Message]:
        """Yield a message for each slide as it is scored, until `until`, a time.monotonic() value.

        Its keys are LINE, the slide's line of the report, and ANSWERS, the cells of the answer by id of the submission.
        Then no process reads a slide of this batch any more. `why_left` says why slides have none.
        """
        left = {slide["image"]: slide for slide in slides}
        self.why_left = Reason.NOT_READY
        for _ in range(MOST_TRIES):
            if not left or not self.is_ready(until):
                return
            try:
                if not self._send(list(left.values()), until):
                    return
                while (message := self._next(until)) is not None and END not in message:
                    left.pop(message[LINE][IMAGE_ID], None)
                    yield message
            except BaseException:  # whoever asked has given up: what is left of the batch must not be in the next one
                self._start()
                raise
            if message is not None:
                self.why_left = _code_of(message)
                return
            if self._is_ready:  # it is alive, and late
                say("the members' process did not end a batch in time: killed, and started again")
                self._start()
                return
            self.why_left = Reason.LOST

    def is_ready(self, until: float) -> bool:
        """Wait for the members, at most until `until`; return whether they are loaded."""
        while not self._is_ready and self.reason is None:
            if (message := self._next(until)) is None and time.monotonic() >= until:
                return False
            if message is not None and READY in message:
                say(f"members: {', '.join(message['members']) or 'none'}, loaded in {message[READY]:.0f} s")
                self._is_ready, self._unready = True, 0
        return self._is_ready

    def close(self) -> None:
        """End the process for good."""
        self.reason = self.reason or Reason.STOPPED
        self._end()

    def _end(self) -> None:
        """Kill the process, and with it those of slides."""
        if self._process is not None and self._process.stdin is not None:
            kill_group(self._process)
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def _begin(self) -> None:
        try:
            command = self._prepare()
        except Exception as error:  # noqa: BLE001 - the server goes on without members
            self._give_up(Reason.FAILED, f"the members could not be prepared: {unforeseen(error, self._folder)}")
            return
        if command is None:
            self._give_up(Reason.NO_MEMBER, "no member: every answer is the fallback")
            return
        self._command = command
        self._start()

    def _give_up(self, reason: Reason, sentence: str) -> None:
        """Note that no process will answer; whoever waits for one looks again."""
        self.reason = self.reason or reason
        say(sentence)
        self._messages.put((self.starts, {}))

    def _start(self) -> None:
        """Start the process, and kill the one before; not after the end."""
        self._end()
        self._is_ready = False
        if self.reason is not None:
            return
        self.starts += 1
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd=self._folder
            )
        except OSError as error:
            self._give_up(Reason.NOT_STARTED, f"the members' process cannot be started: {one_line(error)}")
            return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)  # a pipe holds 64 KiB, and the process may not read
        reader = threading.Thread(target=self._read, args=(self._process, self.starts), name="replies", daemon=True)
        reader.start()

    def _read(self, process: "subprocess.Popen[bytes]", start: int) -> None:
        """Queue the messages of a process, and None at its end."""
        assert process.stdout is not None
        with process.stdout as lines, suppress(ValueError):  # a line that is not JSON ends it too
            for line in lines:
                self._messages.put((start, json.loads(line)))
        self._messages.put((start, None))

    def _send(self, slides: list[Message], until: float) -> bool:
        """Ask for slides; return whether there was time for them.

        A process that has died, or that has not read the whole request by `until`, is noticed later.
        """
        left_s = until - time.monotonic()
        left_s -= min(CLOSING_S, CLOSING_SHARE * left_s)
        if left_s <= 0 or self._process is None or self._process.stdin is None:
            return False
        self.why_left = Reason.DEADLINE
        with suppress(OSError):
            write_until(
                self._process.stdin.fileno(), json.dumps({"left_s": left_s, "slides": slides}).encode() + b"\n", until
            )
        return True

    def _next(self, until: float) -> Message | None:
        """Return the next message; None if none came in time, or the process has died and another is started."""
        while (left_s := until - time.monotonic()) > 0:
            try:
                start, message = self._messages.get(timeout=left_s)
            except queue.Empty:
                return None
            if start != self.starts:
                continue  # of an earlier process
            if message is None:
                self._died()
            return message
        return None

    def _died(self) -> None:
        """Start the process again, unless it never becomes ready."""
        assert self._process is not None
        self._unready += not self._is_ready
        self._is_ready = False
        with suppress(subprocess.TimeoutExpired):  # it has closed its output, and ends
            self._process.wait(EXIT_S)
        kill_group(self._process)
        say(f"the members' process ended with {name_of(self._process.wait())}")
        if self._unready < MOST_STARTS:
            self._start()
        else:
            self._give_up(
                Reason.FAILED, f"it did so {self._unready} times before they were loaded: every answer is the fallback"
            )


def _code_of(message: Message) -> Reason:
    """Return the code of the error in a last message; FAILED for none, or none of the kit's."""
    with suppress(KeyError, TypeError, ValueError):
        return Reason(message[ERROR]["code"])
    return Reason.FAILED


def write_until(pipe: int, content: bytes, until: float) -> None:
    """Write to a pipe that does not block, as far as it is read by `until`.

    Raises OSError if nobody can read it any more.
    """
    left, poll = memoryview(content), select.poll()
    poll.register(pipe, select.POLLOUT)
    while left and (left_s := until - time.monotonic()) > 0:
        if poll.poll(left_s * 1000):
            with suppress(BlockingIOError):
                left = left[os.write(pipe, left) :]
