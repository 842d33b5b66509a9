"""Print the one JSON object of a verb that has --json, and nothing else on standard output.

While the verb works, whatever it or a process of it prints goes to standard error. Standard library only.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NoReturn, TextIO

from clotkit.console import guarded
from clotkit.errors import ClotkitError, without_secrets
from clotkit.files import ESCAPED
from clotkit.options import WRONG, Result
from clotkit.reasons import Reason

SCHEMA = 1  # rises when a field is removed or means something else; new fields may come at any time
OPTION = "--json"


class WrongUsage(SystemExit):
    """The end of a command line that argparse refuses; the code is WRONG."""

    def __init__(self, verb: str, message: str) -> None:
        super().__init__(WRONG)
        self.verb, self.message = verb, message


class Parser(argparse.ArgumentParser):
    """A parser whose refusal is a WrongUsage, after the usual lines on standard error.

    A ClotkitError that the type of an option raises has one line of its own, without the usage.
    """

    _is_mixed = False  # while argparse parses options and positional arguments in turn

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does. Raises WrongUsage."""
        takes_any = any(not action.option_strings and action.nargs == "*" for action in self._actions)
        try:
            if takes_any and not self._is_mixed:  # or options before its values would end them: MEMBER --json IMAGE
                self._is_mixed = True  # argparse calls this method again
                try:
                    return self.parse_known_intermixed_args(args, namespace)
                finally:
                    self._is_mixed = False
            return super().parse_known_args(args, namespace)
        except ClotkitError as error:
            print(f"clotkit: {error}", file=sys.stderr)
            raise WrongUsage(self.prog.partition(" ")[2], str(error)) from error

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message on standard error. Raises WrongUsage."""
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise WrongUsage(self.prog.partition(" ")[2], message)


def add_json(verb: argparse.ArgumentParser, words: str) -> None:
    """Add the option --json to a verb, whose words are like "run" or "kaggle submit"."""
    verb.add_argument(OPTION, action="store_true", help="print one JSON object and nothing else")
    verb.set_defaults(words=words)


def answer(arguments: argparse.Namespace, folder: Path | None) -> int:
    """Run the verb of a command line and return its exit code; with --json print its object.

    `folder` is that of its output, where the traceback of an unforeseen error is kept.
    """
    facts, errors = dict[str, Any](), list[dict[str, str]]()

    def work() -> int:
        result: Result = arguments.verb(arguments)
        facts.update(result.facts)
        return result.code

    arguments.emit = lambda _: None
    if not arguments.json:
        return guarded(work, folder)
    with stdout_is_stderr() as write:
        arguments.emit = lambda found: write(_text(arguments.words, None, found))
        code = guarded(work, folder, lambda error, line: errors.append(error_facts(error, line)))
    print(_text(arguments.words, code, {"error": errors[0]} if errors else facts))
    return code


def refused(usage: WrongUsage, argv: Sequence[str]) -> None:
    """Print the JSON object of a command line that argparse refused, if it has --json."""
    if OPTION in argv:
        error = {"code": "usage", "type": type(usage).__name__, "message": usage.message}
        print(_text(usage.verb, WRONG, {"error": error}))


def error_facts(error: BaseException, line: str) -> dict[str, str]:
    """Return an error as the object has it: its code, its type, and the line for people."""
    return {"code": _error_code(error), "type": type(error).__name__, "message": line}


def _error_code(error: BaseException) -> str:
    """Return a code: that of the error, or if it has none the name of its class: `split` of SplitError."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if not isinstance(error, ClotkitError):
        return "file_system" if isinstance(error, OSError) else "unforeseen"
    known = getattr(error, "kind", error.reason)
    return type(error).__name__.removesuffix("Error").lower() if known is Reason.FAILED else str(known)


@contextmanager
def stdout_is_stderr() -> Iterator[Callable[[str], None]]:
    """Send what this process, and any that it starts, prints on standard output to standard error.

    Yields a function that prints a line on standard output all the same.
    """
    sys.stdout.flush()
    before, copy = sys.stdout, -1
    with suppress(OSError):
        copy = os.dup(1)
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield partial(_print_on, before, copy)
    finally:
        sys.stdout.flush()
        sys.stdout = before
        if copy >= 0:
            os.dup2(copy, 1)
            os.close(copy)


def _print_on(stdout: TextIO, copy: int, line: str) -> None:
    """Print a line on standard output at once: on the copy of its descriptor if it has one."""
    try:
        stdout.fileno()
    except (OSError, ValueError, AttributeError):  # a stream without a file, or no stream
        print(line, file=stdout, flush=True)
    else:
        with open(copy, "w", encoding="utf-8", errors=ESCAPED, closefd=False) as file:
            print(line, file=file)


def _text(verb: str, code: int | None, facts: Mapping[str, Any]) -> str:
    """Return the object of a verb as text; one of several, of a verb that goes on, has no exit code."""
    ended = {} if code is None else {"exit_code": code}
    frame = {"schema": SCHEMA, "verb": verb, **ended}
    return json.dumps(_plain({**frame, **facts, **frame}), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: paths as text, NaN and infinity as null, secrets of URLs left out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return without_secrets(str(value)) if isinstance(value, str | PurePath) else value
