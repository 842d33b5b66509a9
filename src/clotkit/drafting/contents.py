"""List what a downloaded data folder holds: its tables, and the names of its slides."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from clotkit.errors import SplitError, UsageError
from clotkit.splits import Row, read_table
from clotkit.splits.identity import SLIDE_SUFFIXES, without_suffix

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
TABLE_DEPTH = 2  # a table lies in the folder itself, or one folder below
MOST_TABLES, MOST_TABLE_BYTES = 100, 2**28


@dataclass(frozen=True)
class Table:
    """One table of the folder."""

    name: str  # its path in the folder
    rows: Sequence[Row]

    @property
    def columns(self) -> list[str]:
        """Return the names of its columns, in order."""
        return list(self.rows[0])

    def cells(self, column: str) -> list[str]:
        """Return the cell of each row, empty where the table lacks the column."""
        return [row.get(column, "") for row in self.rows]


@dataclass(frozen=True)
class Contents:
    """The tables of a folder and the names of its slides; no slide is opened."""

    root: Path
    tables: Mapping[str, Table]
    slides: Sequence[str]  # paths in the folder of files with a slide's extension

    @cached_property
    def by_stem(self) -> Mapping[str, Sequence[str]]:
        """Return the slides of each file name without its extension."""
        found: dict[str, list[str]] = {}
        for name in self.slides:
            found.setdefault(without_suffix(PurePosixPath(name).name), []).append(name)
        return found

    def named_after(self, image_id: str) -> list[str]:
        """Return the slides with this name; if there are none, those with the id as a word in their path."""
        if image_id in self.by_stem:
            return list(self.by_stem[image_id])
        return with_word(self.slides, image_id)


def with_word(names: Iterable[str], word: str) -> list[str]:
    """Return the names that have a text in them, with no letter or digit beside it."""
    whole = as_word(word)
    return [name for name in names if word and word in name and whole.search(name)]


def as_word(text: str) -> re.Pattern[str]:
    """Return the pattern of a text with no letter or digit beside it."""
    return re.compile(rf"(?<![0-9A-Za-z]){re.escape(text)}(?![0-9A-Za-z])")


def read_contents(root: Path) -> Contents:
    """List a folder and read its tables. Raises UsageError if it is no folder."""
    if not root.is_dir():
        raise UsageError(f"{root}: is not a folder; give the folder that the competition's data was unpacked into")
    names = sorted(files_below(root), key=lambda name: (name.count("/"), name))
    slides = [name for name in names if PurePosixPath(name).suffix.casefold() in SLIDE_SUFFIXES]
    candidates = [
        name
        for name in names
        if PurePosixPath(name).suffix.casefold() in TABLE_SUFFIXES and name.count("/") < TABLE_DEPTH
    ]
    tables: dict[str, Table] = {}
    for name in candidates[:MOST_TABLES]:
        with suppress(SplitError, OSError):
            if (root / name).stat().st_size <= MOST_TABLE_BYTES:
                tables[name] = Table(name, read_table(root / name, []))
    return Contents(root, {name: table for name, table in tables.items() if table.columns}, slides)


def files_below(root: Path) -> Iterator[str]:
    """Yield the path of each file below a folder; links are followed once, hidden names are left out."""
    entered: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in entered else sorted(name for name in below if not name.startswith("."))
        if real not in entered:
            inside = Path(folder).relative_to(root)
            yield from ((inside / name).as_posix() for name in names if not name.startswith("."))
        entered.add(real)
