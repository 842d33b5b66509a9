"""Read a CSV table in the encoding, with the delimiter and below the header that a program gave it.

Whatever has one reading only is read; anything else ends in one line that names the file, the row and the cell.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from clotkit.errors import SplitError
from clotkit.progress import Log

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEADER_LINES = 20  # a header is looked for in so many lines: comments, a title or Excel's sep=; may come first
MOST_SHOWN = 200  # characters of a table in a message
BOMS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32-LE"),
    (codecs.BOM_UTF32_BE, "UTF-32-BE"),
    (codecs.BOM_UTF16_LE, "UTF-16-LE"),
    (codecs.BOM_UTF16_BE, "UTF-16-BE"),
)
OTHER_FILES = {  # by their first bytes
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"PAR1": "a Parquet file",
    b"SQLite": "an SQLite database",
    b"%PDF": "a PDF",
    b"{\\rtf": "an RTF document",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"version https://git-lfs": "a Git LFS pointer",
    b"<": "HTML or XML",
    b"{": "JSON",
    b"[": "JSON",
}
INVISIBLE = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060\u00ad"  # that a cell may begin or end with
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Row(dict[str, str]):
    """The cells of a row by column; `number` is its line in the file, from 1."""

    def __init__(self, cells: Iterable[tuple[str, str]], number: int) -> None:
        super().__init__(cells)
        self.number = number


@dataclass(frozen=True)
class _Header:
    """The header of a table: its columns, the line it is on, and what separates its cells."""

    columns: Sequence[str]
    line: int  # from 1
    delimiter: str
    checked: frozenset[str]  # columns whose cells must not have control characters


def read_table(path: Path, columns: Sequence[str], also: Sequence[str] = (), log: Log | None = None) -> list[Row]:
    """Read a CSV file into one dict of strings per row.

    Args:
        path: the table.
        columns: names of columns that it must have, in any spelling of case, spaces and underscores; none: the first
            line is the header, with the delimiter that gives most columns.
        also: names of columns that it may have, in any spelling too.
        log: gets a line if the encoding or the delimiter is unusual, or lines come before the header.

    Raises:
        SplitError: the file is missing, is no CSV table, lacks one of `columns`, or has no rows.
    """
    text, encoding = _text_of(path)
    header = _header(text, str(path), columns, also)
    unusual = [] if encoding == "UTF-8" else [f"as {encoding}"]
    unusual += [] if header.delimiter == "," else [f"with {DELIMITERS[header.delimiter]} between cells"]
    unusual += [] if header.line == 1 else [f"with its header in row {header.line}"]
    if unusual and log is not None:
        log(f"{path}: read {', '.join(unusual)}")
    return _rows(text, str(path), header)


def read_with_header(path: Path, columns: Sequence[str]) -> tuple[list[Row], list[str], list[str]]:
    """Return the rows of a table and its columns: as the table spells them, and as `columns` do.

    Raises SplitError as read_table does.
    """
    text, _ = _text_of(path)
    header = _header(text, str(path), columns, ())
    line = next(islice(io.StringIO(text, newline=""), header.line - 1, None)).rstrip("\r\n")
    cells = next(csv.reader([line.lstrip("#")], delimiter=header.delimiter, skipinitialspace=True), [])
    return _rows(text, str(path), header), [clean(cell) for cell in cells], list(header.columns)


def _text_of(path: Path) -> tuple[str, str]:
    """Return the text of a table and its encoding. Raises SplitError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = _hint(path) if isinstance(error, FileNotFoundError) else ""
        raise SplitError(f"{path}: cannot be read: {error.strerror}; a split folder needs this table{hint}") from error
    return decoded(data, str(path))


def rows_of(text: str, where: str, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a CSV text that the kit wrote as dicts of strings; `where` names it in errors.

    Raises SplitError if it is malformed, lacks one of `columns`, or has no rows.
    """
    return _rows(text, where, replace(_header(text, where, columns, ()), checked=frozenset()))


def decoded(data: bytes, where: str) -> tuple[str, str]:
    """Return the text of a table and the name of its encoding: UTF-8, UTF-16, UTF-32 or cp1252.

    Raises SplitError for a file that is no text, and names what it is.
    """
    start = data.lstrip()[:64]
    kind = next((kind for magic, kind in OTHER_FILES.items() if start.startswith(magic)), None)
    if kind is not None:
        raise SplitError(f"{where}: is {kind}, not a CSV table; save it as CSV, in UTF-8, and unpacked")
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return _strictly(data[len(mark) :], encoding, where), encoding
    bare = _without_bom(data)
    if bare is not None:
        return _strictly(data, bare, where), bare
    if b"\0" in data:
        at = data.index(b"\0")
        row = len(re.findall(rb"\r\n|\r|\n", data[:at])) + 1
        raise SplitError(f"{where}: row {row} has a NUL byte; the file is damaged or no text: write it again")
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), "cp1252, as its bytes are not UTF-8"


def _without_bom(data: bytes) -> str | None:
    """Return which UTF-16 the bytes are if every other one is 0, which a Latin header always is."""
    head = data[:32]
    if len(head) < 8 or len(head) % 2:
        return None
    zeros = [not any(head[start::2]) for start in (0, 1)]
    return None if zeros[0] == zeros[1] else "UTF-16-LE" if zeros[1] else "UTF-16-BE"


def _strictly(data: bytes, encoding: str, where: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise SplitError(
            f"{where}: byte {error.start} is not {encoding}, which its first bytes announce; save it as UTF-8"
        ) from error
    if "\0" in text:
        row = len(re.findall(r"\r\n|\r|\n", text[: text.index("\0")])) + 1
        raise SplitError(f"{where}: row {row} has a NUL character; the file is damaged: write it again")
    return text


def _hint(path: Path) -> str:
    """Return a hint at files in the folder that may be the one that is missing."""
    try:
        names = sorted(one.name for one in path.parent.iterdir() if one.is_file())
    except OSError:
        return ""
    stem = path.stem.casefold()
    similar = [name for name in names if name.casefold().startswith(stem) and name != path.name]
    return f"; the folder has {', '.join(similar[:3])}: rename, unpack or save it" if similar else ""


def _header(text: str, where: str, columns: Sequence[str], also: Sequence[str]) -> _Header:
    """Return the first line with all of `columns`. Raises SplitError if none of the first ones has them."""
    names = {spelled(name): name for name in (*also, *columns)}
    known = frozenset(names.values())
    first: _Header | None = None
    lines = ((number, line) for number, line in enumerate(io.StringIO(text, newline=""), start=1) if line.strip())
    for number, line in islice(lines, HEADER_LINES):
        found = [_Header(_columns(line, one, names), number, one, known) for one in DELIMITERS]
        best = max(found, key=lambda header: _fit(header, set(columns), known))
        if set(columns) <= set(best.columns):
            _check_unique(best, where)
            return best
        first = first or (None if line.startswith("#") else best)
    has = [] if first is None else [column for column in first.columns if column]
    missing = ", ".join(column for column in columns if column not in has)
    shown = ", ".join(column if column.isprintable() else repr(column) for column in has) or "no columns"
    raise SplitError(f"{where}: no column {missing}; it has: {shown[:MOST_SHOWN]}")


def _fit(header: _Header, columns: Set[str], known: Set[str]) -> list[int]:
    """Return how well a header fits: how many needed columns it has, how many known ones, and in all."""
    found = set(header.columns)
    return [len(columns & found), len(known & found), len(found)]


def _columns(line: str, delimiter: str, names: dict[str, str]) -> list[str]:
    """Return the cells of a header line, known names as the kit spells them."""
    try:
        cells = next(csv.reader([line.rstrip("\r\n").lstrip("#")], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []
    bare = [clean(cell) for cell in cells]
    return [cell if (name := names.get(spelled(cell), cell)) in bare else name for cell in bare]  # exact names first


def spelled(name: str) -> str:
    """Return a column's name without what programs change in it: case, spaces, underscores, dots."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _check_unique(header: _Header, where: str) -> None:
    """Raise SplitError if a column that counts is there twice."""
    for name in sorted(header.checked):
        if header.columns.count(name) > 1:
            raise SplitError(
                f"{where}: row {header.line} has {header.columns.count(name)} columns {name}; 1 is allowed: remove "
                "the others"
            )


def _rows(text: str, where: str, header: _Header) -> list[Row]:
    rows = list(_parsed(text, where, header))
    if not rows:
        raise SplitError(f"{where}: 0 rows under the header; at least 1 is needed")
    return rows


def _parsed(text: str, where: str, header: _Header) -> Iterator[Row]:
    """Yield the rows below the header, without blank lines and repeated headers."""
    lines = io.StringIO(text, newline="")
    for _ in range(header.line):
        next(lines)
    reader = csv.reader(lines, delimiter=header.delimiter, skipinitialspace=True, strict=True)
    before = header.line
    try:
        for cells in reader:
            number, before = before + 1, header.line + reader.line_num
            row = [clean(cell) for cell in cells]
            if any(row) and [spelled(cell) for cell in row] != [spelled(name) for name in header.columns]:
                yield _row(row, number, where, header)
    except csv.Error as error:
        raise SplitError(f"{where}: row {before + 1} is not CSV: {error}; check its quotes") from error


def _row(cells: Sequence[str], number: int, where: str, header: _Header) -> Row:
    """Return a row; cells that are missing at its end are empty. Raises SplitError for one with too many."""
    width = len(header.columns)
    if any(cells[width:]):
        raise SplitError(
            f"{where}: row {number} has {len(cells)} cells, the header has {width}; quote a cell that has a "
            f"{header.delimiter!r} in it"
        )
    row = Row(zip(header.columns, [*cells, *[""] * (width - len(cells))], strict=False), number)
    row.pop("", None)  # columns without a name
    for name in header.checked & row.keys():
        if CONTROL.search(row[name]):
            raise SplitError(f"{where}: row {number}: {name} {row[name][:80]!r} has a control character; retype it")
    return row


def clean(cell: str) -> str:
    """Return a cell without the spaces and invisible characters around it, and without Excel's ="…"."""
    bare = cell.strip().strip(INVISIBLE).strip()
    return bare[2:-1].strip() if bare.startswith('="') and bare.endswith('"') and len(bare) > 3 else bare
