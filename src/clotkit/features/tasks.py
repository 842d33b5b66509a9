"""The work of a slide's process: cut its tiles, or read them from its shard. Nothing heavy here."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.shards.cut import CutResult, ShardTask, tiling_facts
from clotkit.shards.shard import read_shard
from clotkit.slides.reader import open_slide
from clotkit.stores import Store, local_copy
from clotkit.tiling.tilers import Batch, check_tiler, cut_slide
from clotkit.workers import Task, fetch

FORMAT = 1  # of the kit's feature files


@dataclass(frozen=True, kw_only=True)
class FeatureTask(ShardTask):
    """A slide whose tiles are to be encoded; `shard` is the file of its features."""

    tiles: Store | None = None  # where its tiles are a shard already; None: they are cut
    tiles_file: str = ""  # that shard
    failed: CutResult | None = None  # why there is no such shard; None: there is one, or the tiles are cut


def feature_task(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Yield a slide's tiles in batches, and facts; the work of its process.

    Raises:
        SlideError: The slide gives no tiles.
        StoreError: The slide or its shard cannot be fetched.
    """
    assert isinstance(task, FeatureTask)
    if task.tiles is not None:
        yield from _tiles_of_shard(task, task.tiles)
        return
    (tiling,) = task.tilings
    check_tiler(tiling)
    fetch(task)
    yield 0, tiling_facts(tiling, task.row)
    for piece in cut_slide(open_slide(task.path, tiling.levels, True), tiling):
        yield 0, piece


def _tiles_of_shard(task: FeatureTask, store: Store) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Yield the tiles of a shard in batches. Raises SlideUnreadable for a damaged one."""
    (tiling,) = task.tilings
    with local_copy(store, task.tiles_file) as path:
        shard = read_shard(Path(path))
        yield 0, shard.facts
        for start in range(0, len(shard.tiles), tiling.batch_tiles):
            end = start + tiling.batch_tiles
            yield 0, Batch(shard.tiles[start:end], shard.xy[start:end])


def feature_key(tiles_key: str, encoder_sha256: str, layout: str) -> str:
    """Return a sha256 of all that a file of features depends on.

    `tiles_key` is that of its tiles, see shard_key.
    """
    parts = [tiles_key, encoder_sha256, layout, FORMAT]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
