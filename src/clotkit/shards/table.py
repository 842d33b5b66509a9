"""The table of a folder of shards, shards.csv: a row a slide, with the size and sha256 of its shard."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.reasons import Reason
from clotkit.splits import SlideRow, rows_of
from clotkit.stores import Store

TABLE = "shards.csv"
DONE, FAILED, UNFINISHED = "done", "failed", "unfinished"
PATIENT = "patient"  # column of the table where the competition has none
FILE_COLUMNS = ("file", "tiles", "key", "bytes", "sha256", "state", "reason", "code")
NEW_COLUMNS = ("code",)  # earlier versions wrote a table without them


@dataclass(frozen=True)
class ShardRow:
    """A row of shards.csv: one slide, with its shard or the reason why it has none."""

    image_id: str
    patient_id: str
    label: int | None  # class index; None in a test split
    centre: str = ""
    file: str = ""  # of the shard, in the folder; "" without one
    tiles: int = 0
    key: str = ""  # see shard_key
    size_bytes: int = 0
    sha256: str = ""
    code: Reason | None = None  # None: the slide has its shard, or no turn yet
    reason: str = ""  # a sentence for people

    @property
    def state(self) -> str:
        """The state of the slide: DONE, FAILED, or UNFINISHED if it has had no turn yet."""
        if self.file:
            return DONE
        return UNFINISHED if self.code is None else FAILED


def row_without_shard(slide: SlideRow) -> ShardRow:
    """Return the row of a slide that has no shard yet."""
    return ShardRow(slide.image_id, slide.patient_id, slide.label, slide.centre)


def read_shard_rows(
    store: Store, competition: Competition, table: str = TABLE, verb: str = "clotkit tile"
) -> list[ShardRow]:
    """Read the shards.csv of a folder that `clotkit tile` has finished, including the slides that failed.

    `table` and `verb` name another table of the same columns, and what writes it.

    Raises SplitError if the table is missing or malformed, or if some slides are unfinished.
    """
    rows = parse_table(_text(store, table, verb), store.url(table), competition, verb)
    left = [row.image_id for row in rows if row.state == UNFINISHED]
    if left:
        raise SplitError(
            f"{store.url(table)}: {len(left)} of {len(rows)} slides are unfinished, the first is {left[0]}; "
            f"run the same {verb} command again"
        )
    return rows


def previous_rows(store: Store, competition: Competition, table: str = TABLE) -> dict[str, ShardRow]:
    """Return the rows of an earlier run by image id, or none if there is no readable table."""
    try:
        rows = parse_table(store.read_text(table), table, competition)
    except (FileNotFoundError, UnicodeDecodeError, SplitError):
        return {}
    return {row.image_id: row for row in rows}


def write_shard_rows(store: Store, rows: Sequence[ShardRow], competition: Competition, table: str = TABLE) -> None:
    """Write shards.csv, or another table of the same columns, unless its text is the same already."""
    text = table_text(rows, competition)
    try:
        if store.read_text(table) == text:
            return
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    store.atomic_write_text(table, text)


def table_text(rows: Sequence[ShardRow], competition: Competition) -> str:
    """Return the text of shards.csv, with columns for label and centre if the split knows them."""
    columns, names = competition.columns, competition.classes.names
    label = [columns.label] if any(row.label is not None for row in rows) else []
    centre = [columns.center] if any(row.centre for row in rows) else []
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([columns.image, _patient_column(competition), *label, *centre, *FILE_COLUMNS])
    for row in rows:
        label_cells = [names[row.label]] if label and row.label is not None else [""] * len(label)
        slide_cells = [row.image_id, row.patient_id, *label_cells, *([row.centre] if centre else [])]
        size = row.size_bytes if row.file else ""
        table.writerow(
            [*slide_cells, row.file, row.tiles, row.key, size, row.sha256, row.state, row.reason, row.code or ""]
        )
    return text.getvalue()


def _patient_column(competition: Competition) -> str:
    return competition.columns.patient or PATIENT


def parse_table(text: str, where: str, competition: Competition, verb: str = "clotkit tile") -> list[ShardRow]:
    """Parse the text of a shards.csv. Raises SplitError, naming `where` and `verb`, if it is malformed."""
    columns = [competition.columns.image, _patient_column(competition), *FILE_COLUMNS]
    required = [column for column in columns if column not in NEW_COLUMNS]
    return [_parse_row(row, where, competition, verb) for row in rows_of(text, where, required)]


def _parse_row(row: dict[str, str], where: str, competition: Competition, verb: str) -> ShardRow:
    columns, names = competition.columns, competition.classes.names
    label = row.get(columns.label)
    tiles, size_bytes = row["tiles"], row["bytes"] or "0"
    if not (tiles.isdecimal() and size_bytes.isdecimal()) or (label is not None and label not in names):
        raise SplitError(
            f"{where}: {row[columns.image]} has {tiles!r} tiles, {row['bytes']!r} bytes and label {label!r}; "
            f"whole numbers and a label of {', '.join(names)} are needed; run {verb} again"
        )
    return ShardRow(
        row[columns.image],
        row[_patient_column(competition)],
        None if label is None else names.index(label),
        row.get(columns.center, ""),
        row["file"],
        int(tiles),
        row["key"],
        int(size_bytes),
        row["sha256"],
        _parse_code(row),
        row["reason"],
    )


def _parse_code(row: dict[str, str]) -> Reason | None:
    """Return the reason code of a row: FAILED if it has none that this version knows, but has failed."""
    code = row.get("code", "")
    if code in set(Reason):
        return Reason(code)
    return Reason.FAILED if row["state"] == FAILED else None


def _text(store: Store, table: str, verb: str) -> str:
    try:
        return store.read_text(table)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise SplitError(f"{store.url(table)}: cannot be read: {why}; {verb} writes it") from error
