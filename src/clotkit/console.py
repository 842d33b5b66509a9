"""Keep the work going when its log cannot be written, and end without a traceback whatever happens.

A log's disk fills up, a reader closes the pipe, a terminal goes away: none of that may cost a slide. What cannot be
printed is dropped, and one line says so at the end. Standard library only.
"""

import errno
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from clotkit.errors import ClotkitError, one_line, without_secrets
from clotkit.files import ESCAPED
from clotkit.options import INTERRUPTED, UNFORESEEN, WRONG

TRACEBACK = "traceback.txt"


class Output:
    """A text stream that drops what it cannot write, and keeps the error."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.error = None if stream is not None else OSError(errno.EBADF, os.strerror(errno.EBADF))
        with suppress(OSError, ValueError, AttributeError):  # a stream without a file, or no stream
            os.set_blocking(self.fileno(), True)  # a reader that is slow for a moment is no error
        if hasattr(stream, "reconfigure"):
            self.reconfigure(errors=ESCAPED)  # names of files need not be text of the locale

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text, line by line; return its length, also if it is dropped.

        Raises:
            TypeError: It is not text. Libraries try bytes to learn what a stream takes.
        """
        if not isinstance(text, str):
            raise TypeError(f"write() takes str, not {type(text).__name__}")
        if self.error is None and self.stream is not None:
            try:
                self._write(text)
                if "\n" in text:
                    self.stream.flush()
            except Exception as error:  # noqa: BLE001 - a notebook's stream may raise anything
                self._give_up(error)
        return len(text)

    def _write(self, text: str) -> None:
        assert self.stream is not None
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:
            self.stream.write(text.encode(error.encoding, ESCAPED).decode(error.encoding))

    def flush(self) -> None:
        """Flush the stream."""
        if self.error is None and self.stream is not None:
            try:
                self.stream.flush()
            except Exception as error:  # noqa: BLE001 - as above
                self._give_up(error)

    def close(self) -> None:
        """Leave the stream open, as it is the process's own: absl's log handler closes what it was given."""
        self.flush()

    def isatty(self) -> bool:
        """Return whether somebody sees the text on a terminal."""
        return self.error is None and bool(getattr(self.stream, "isatty", bool)())

    def _give_up(self, error: Exception) -> None:
        """Keep the error, and let what is still in the stream's buffer go nowhere."""
        self.error = error if isinstance(error, OSError) else OSError(errno.EBADF, one_line(error))
        with suppress(Exception):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            self.stream and self.stream.flush()


def keep_going() -> None:
    """Let this process go on when its standard output or error cannot be written, from now on."""
    for number in range(3):  # the next files that are opened must not take the place of a closed one
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Output):
            setattr(sys, name, cast(TextIO, Output(getattr(sys, name))))


@contextmanager
def kept_going() -> Iterator[None]:
    """Do what `keep_going` does, as long as the context lasts."""
    before = sys.stdout, sys.stderr
    keep_going()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def lost() -> str:
    """Return why part of the log was not written, empty if all of it was."""
    for name, words in (("stdout", "standard output"), ("stderr", "standard error")):
        error = getattr(getattr(sys, name), "error", None)
        if isinstance(error, OSError):
            return f"{words}: {error.strerror or error}"
    return ""


def guarded(
    work: Callable[[], int], folder: Path | None = None, tell: Callable[[BaseException, str], None] = lambda *_: None
) -> int:
    """Do the work and return its exit code; end every error with one line on stderr.

    Args:
        work: Returns an exit code.
        folder: The folder of its output, where the traceback of an unforeseen error is kept.
        tell: Called with the error and its line.

    Returns:
        The work's own code, WRONG for an error that the user can act on, UNFORESEEN for any other one, and INTERRUPTED
        after Ctrl-C.
    """
    caught: BaseException
    try:
        return work()
    except ClotkitError as error:
        caught, line, code = error, str(error), WRONG
    except KeyboardInterrupt as error:
        caught, line, code = error, "interrupted; files that were already written are complete", INTERRUPTED
    except Exception as error:  # noqa: BLE001 - nothing ends with a traceback on the terminal
        caught, line, code = error, unforeseen(error, folder), WRONG if isinstance(error, OSError) else UNFORESEEN
    line = without_secrets(line)
    print(f"clotkit: {line}", file=sys.stderr)
    tell(caught, line)
    return code


def unforeseen(error: BaseException, folder: Path | None = None) -> str:
    """Keep an error's traceback in a file, and return a line with the error's kind and the file's name.

    Both are without secrets. In the temporary folder, which others use too, the file has a name that nobody
    can foresee, and only its owner can read it.
    """
    line = f"{type(error).__name__}: {one_line(error)}"
    text = without_secrets("".join(traceback.format_exception(error)))
    try:
        if folder is not None and folder.is_dir():
            path = folder / TRACEBACK
            path.write_text(text, encoding="utf-8", errors=ESCAPED)
        else:
            descriptor, name = tempfile.mkstemp(f"-{TRACEBACK}", f"clotkit-{os.getpid()}-")
            path = Path(name)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors=ESCAPED) as file:
                file.write(text)
    except OSError as refused:
        return f"{line}; its traceback could not be kept: {refused.strerror}"
    return f"{line}; the traceback is in {path}"


@contextmanager
def one_line_a_thread() -> Iterator[None]:
    """End an error of any thread with one line, and a traceback in the temporary folder."""

    def ended(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None:
            name = arguments.thread.name if arguments.thread else "a thread"
            print(f"clotkit: {name}: {unforeseen(arguments.exc_value)}", file=sys.stderr)

    before, threading.excepthook = threading.excepthook, ended
    try:
        yield
    finally:
        threading.excepthook = before
