"""Write the lines of a drafted TOML, and find those that a person must still fill in."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from clotkit.errors import on_one_line
from clotkit.typed_toml import toml_value

BESIDE = 44  # column of the comments


class Mark(StrEnum):
    """The origin of a key's value: the word before its comment."""

    GUESSED = "guessed"  # it follows from the files
    MEASURED = "measured"  # of the slides that are here
    FILL_IN = "FILL IN"  # no file has it
    DEFAULT = "default"  # the kit's own


@dataclass(frozen=True)
class Line:
    """One key of the draft."""

    key: str  # with its table: files.sample
    value: object
    mark: Mark
    why: str

    @property
    def entry(self) -> str:
        """Return the key without its table, and the value, as TOML writes them."""
        return f"{self.key.rpartition('.')[2]} = {toml_value(self.value)}"


ARRAYS = frozenset({"facts"})  # tables that may be there several times
OPEN = re.compile(rf"#\s*{Mark.FILL_IN.value}:?\s*(.*)")
KEY = re.compile(r"\s*([A-Za-z_]+)\s*=")
HEADING = re.compile(r"\s*\[+([A-Za-z_]+)\]+")


def toml_text(lines: Sequence[Line], heading: str) -> str:
    """Return the text of a TOML with a comment beside each key, below a comment of its own."""
    parts = [f"# {line}" for line in heading.splitlines()]
    for table, of_table in groupby(lines, key=lambda line: line.key.rpartition(".")[0]):
        parts += ["", f"[[{table}]]" if table in ARRAYS else f"[{table}]"] if table else [""]
        parts += map(_written, of_table)
    return "\n".join(parts) + "\n"


def _written(line: Line) -> str:
    return f"{line.entry:<{BESIDE}} # {line.mark.value}: {on_one_line(line.why)}"


def open_keys(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the row (from 1), the key and the comment of each line that says FILL IN."""
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if match := HEADING.match(line):
            table = f"{match[1]}."
        key = KEY.match(line)
        if key and (match := OPEN.search(line)):
            yield number, f"{table}{key[1]}", match[1]


def described(lines: Iterable[Line], mark: Mark) -> list[str]:
    """Return a line for people for each key with a mark."""
    tables = ((line, line.key.rpartition(".")[0]) for line in lines if line.mark is mark)
    return [f"  {table}{'.' * bool(table)}{line.entry}: {on_one_line(line.why)}" for line, table in tables]
