"""shards.csv: what a folder of shards has of each slide, with the bytes and hashes of its files; the manifest of it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from clotkit.competitions import Competition
from clotkit.errors import SplitError
from clotkit.splits import SlideRow, rows_of
from clotkit.stores import Store

TABLE = "shards.csv"
DONE, FAILED, UNFINISHED = "done", "failed", "unfinished"
FILE_COLUMNS = ("file", "tiles", "key", "bytes", "sha256", "state", "reason")


@dataclass(frozen=True)
class ShardRow:
    """A row of shards.csv: `file` is "" and `tiles` 0 where the slide gave no shard, and `reason` says why."""

    image_id: str
    patient_id: str
    label: int | None  # a class index; None in a test split
    file: str  # in the folder of shards
    tiles: int
    key: str
    reason: str
    centre: str = ""
    size_bytes: int = 0
    sha256: str = ""

    @property
    def state(self) -> str:
        """Whether the slide has its shard, failed, or has had no turn yet."""
        if self.file:
            return DONE
        return FAILED if self.reason else UNFINISHED


def bare_row(slide: SlideRow, reason: str = "") -> ShardRow:
    """The row of a slide without a shard."""
    return ShardRow(slide.image_id, slide.patient_id, slide.label, "", 0, "", reason, slide.centre)


def read_shard_rows(store: Store, competition: Competition) -> list[ShardRow]:
    """The rows of the shards.csv in a folder that `clotkit tile` has filled, failed slides too.

    Raises SplitError when it is missing or malformed, or when the folder's last run did not come to its end.
    """
    rows = parse_table(_text(store), store.url(TABLE), competition)
    left = [row.image_id for row in rows if row.state == UNFINISHED]
    if left:
        raise SplitError(
            f"{store.url(TABLE)}: {len(left)} of {len(rows)} slides are unfinished, {left[0]} first; "
            "clotkit tile with the same arguments goes on"
        )
    return rows


def earlier_rows(store: Store, competition: Competition) -> dict[str, ShardRow]:
    """The same by image id, unfinished ones too; none where the table is missing or cannot be understood."""
    try:
        rows = parse_table(store.read_text(TABLE), TABLE, competition)
    except (FileNotFoundError, UnicodeDecodeError, SplitError):
        return {}
    return {row.image_id: row for row in rows}


def publish_rows(store: Store, rows: Sequence[ShardRow], competition: Competition) -> None:
    """Write shards.csv, unless it stands there as it must be."""
    text = table_text(rows, competition)
    try:
        if store.read_text(TABLE) == text:
            return
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    store.atomic_write_text(TABLE, text)


def table_text(rows: Sequence[ShardRow], competition: Competition) -> str:
    """The text of shards.csv; label and centre have columns where the split knows them."""
    columns, names = competition.columns, competition.classes.names
    label = [columns.label] if any(row.label is not None for row in rows) else []
    centre = [columns.center] if any(row.centre for row in rows) else []
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([columns.image, columns.patient, *label, *centre, *FILE_COLUMNS])
    for row in rows:
        named = [names[row.label]] if label and row.label is not None else [""] * len(label)
        known = [row.image_id, row.patient_id, *named, *([row.centre] if centre else [])]
        size = row.size_bytes if row.file else ""
        table.writerow([*known, row.file, row.tiles, row.key, size, row.sha256, row.state, row.reason])
    return text.getvalue()


def parse_table(text: str, where: str, competition: Competition) -> list[ShardRow]:
    """The rows of a shards.csv's text. Raises SplitError, with the name `where`, for one that is malformed."""
    columns, names = competition.columns, competition.classes.names
    found = []
    for row in rows_of(text, where, [columns.image, columns.patient, *FILE_COLUMNS]):
        label = row.get(columns.label)
        counts = row["tiles"], row["bytes"] or "0"
        if not all(count.isdecimal() for count in counts) or (label is not None and label not in names):
            raise SplitError(
                f"{where}: {row[columns.image]} has {row['tiles']!r} tiles, {row['bytes']!r} bytes and label {label!r}"
            )
        found.append(
            ShardRow(
                row[columns.image],
                row[columns.patient],
                None if label is None else names.index(label),
                row["file"],
                int(counts[0]),
                row["key"],
                row["reason"],
                row.get(columns.center, ""),
                int(counts[1]),
                row["sha256"],
            )
        )
    return found


def _text(store: Store) -> str:
    try:
        return store.read_text(TABLE)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise SplitError(f"{store.url(TABLE)}: cannot be read: {why}; clotkit tile writes it") from error
