"""The inventory of a folder of shards: slides that are up to date, slides to cut, and their table."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from clotkit.competitions import Competition
from clotkit.errors import UsageError
from clotkit.shards.cut import CutResult, ShardTask, is_current_preview
from clotkit.shards.folder import PREVIEWS
from clotkit.shards.shard import metadata_in
from clotkit.shards.table import TABLE, ShardRow, previous_rows, row_without_shard, write_shard_rows
from clotkit.splits import SlideRow
from clotkit.stores import Entry, Folder, Store

TABLE_INTERVAL_S = 30.0  # shards.csv is written at least this often while slides are cut
PARALLEL_REQUESTS = 16  # to an object store


class Metadata(Protocol):
    """The metadata of a file in an inventory."""

    @property
    def key(self) -> str:
        """The key of all that it depends on."""

    @property
    def count(self) -> int:
        """Its number of tiles."""


ReadMetadata = Callable[[Store, str], Metadata | None]  # None: missing or not whole


@dataclass
class Inventory:
    """The slides of a run, their tasks and their rows of shards.csv; dicts are by image id."""

    store: Store
    competition: Competition
    slides: Sequence[SlideRow]
    tasks: Mapping[str, ShardTask]
    kept: Mapping[str, ShardRow]  # shards that were up to date at the start
    rows: dict[str, ShardRow]
    listed: Mapping[str, Entry]  # files of the store at the start, by name
    table: str = TABLE  # name of the table of these rows
    written_at: float = field(default_factory=time.monotonic)  # when the table was last written

    @cached_property
    def to_cut(self) -> list[ShardTask]:
        """The tasks of slides that are not up to date, the largest first, so that none of them starts last."""
        size_of = {slide.image_id: slide.size_bytes for slide in self.slides}
        left = [task for task in self.tasks.values() if task.image_id not in self.kept]
        return sorted(left, key=lambda task: -size_of[task.image_id])

    @property
    def to_hash(self) -> list[ShardTask]:
        """The tasks of shards that are up to date but in no table, because the run that wrote them was killed."""
        return [self.tasks[image_id] for image_id, row in self.kept.items() if not row.sha256]

    def add_hash(self, task: ShardTask, size_bytes: int, sha256: str) -> None:
        """Add the size and the sha256 of a shard to its row."""
        self.rows[task.image_id] = replace(self.rows[task.image_id], size_bytes=size_bytes, sha256=sha256)

    def add(self, task: ShardTask, result: CutResult) -> None:
        """Add the result of a slide to its row, and write shards.csv if it is older than TABLE_INTERVAL_S."""
        row = replace(self.rows[task.image_id], code=result.code, reason=result.reason)
        if result.shard is not None:
            shard = result.shard
            row = replace(
                row,
                file=task.shard,
                tiles=shard.tiles,
                key=task.key,
                size_bytes=shard.size_bytes,
                sha256=shard.sha256,
            )
        self.rows[task.image_id] = row
        if time.monotonic() > self.written_at + TABLE_INTERVAL_S:
            self.write_table()

    def write_table(self) -> None:
        """Write the table."""
        rows = [self.rows[slide.image_id] for slide in self.slides]
        write_shard_rows(self.store, rows, self.competition, self.table)
        self.written_at = time.monotonic()

    def discard_outdated(self) -> None:
        """Delete the old shards and previews of slides that changed and then failed.

        Those of a slide that is missing stay, because its disk may only be unmounted; shards.csv does not list them.
        """
        for task in (task for task in self.tasks.values() if task.key):
            if task.shard in self.listed and not self.rows[task.image_id].file:
                self.store.remove(task.shard)
            preview = preview_name(task.image_id)  # of shards; files of features have none
            is_listed = self.table == TABLE and preview in self.listed
            if is_listed and not is_current_preview(self.store, preview, task.key):
                self.store.remove(preview)


def preview_name(image_id: str) -> str:
    """Return the name of a slide's preview in the folder of shards."""
    return f"{PREVIEWS}/{image_id}.jpg"


def take_inventory(
    store: Store,
    slides: Sequence[SlideRow],
    tasks: Mapping[str, ShardTask],
    competition: Competition,
    table: str = TABLE,
    metadata: ReadMetadata = metadata_in,
) -> Inventory:
    """Compare the shards in a store with the tasks of the slides, which are by image id.

    `table` is the name of their table, and `metadata` reads the metadata of one, for files that are no shards.

    Raises UsageError for a file that another program has written where a shard would go.
    """
    previous, listed = previous_rows(store, competition, table), store.entries()

    def kept_row(slide: SlideRow) -> ShardRow | None:
        return _up_to_date_row(slide, tasks[slide.image_id], previous.get(slide.image_id), listed, metadata)

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        found = list(pool.map(kept_row, slides))
    kept = {row.image_id: row for row in found if row is not None}
    rows = {slide.image_id: kept.get(slide.image_id, row_without_shard(slide)) for slide in slides}
    return Inventory(store, competition, slides, tasks, kept, rows, listed, table)


def _up_to_date_row(
    slide: SlideRow,
    task: ShardTask,
    previous: ShardRow | None,
    listed: Mapping[str, Entry],
    read_metadata: ReadMetadata,
) -> ShardRow | None:
    """Return the row of a shard that is up to date, or None if it must be cut.

    The sha256 is "" if no table has it. The metadata of a local shard is always read. That of one in an object store is
    read only if shards.csv does not list it: an object is never partly written, and each request takes time.
    """
    entry = listed.get(task.shard)
    if entry is None or not task.key:
        return None
    known = previous is not None and (previous.key, previous.size_bytes) == (task.key, entry.size_bytes)
    tiles = previous.tiles if previous and known and previous.sha256 else 0
    if not tiles or isinstance(task.store, Folder):
        metadata = read_metadata(task.store, task.shard)
        if metadata is not None and not metadata.key:
            raise UsageError(
                f"{task.store.url(task.shard)}: a sound file of another program, which would be replaced; give another "
                "folder for the output"
            )
        if metadata is None or metadata.key != task.key:
            return None
        tiles = metadata.count
    if task.preview is not None and not (
        task.preview in listed and is_current_preview(task.store, task.preview, task.key)
    ):
        return None
    sha256 = previous.sha256 if previous and known else ""
    bare = row_without_shard(slide)
    return replace(bare, file=task.shard, tiles=tiles, key=task.key, size_bytes=entry.size_bytes, sha256=sha256)
