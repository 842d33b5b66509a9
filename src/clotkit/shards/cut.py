"""Cutting one slide to its shard on whatever machine has its turn: in a process of its own, with its limits there.

No TensorFlow here.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

from clotkit.files import sha256
from clotkit.scratch import scratch
from clotkit.shards.shard import Written, frame_in, write_shard
from clotkit.stores import Store, at_hand
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.versions import CUTTING, Versions, versions_here
from clotkit.workers import Ended, Limits, Task, Work, fetch, stream

TILING = "tiling"  # among a shard's facts: what it was cut with
FULL = "the shards take up all the room they may; no slide was begun any more"
NOTHING = "its process ended without a shard"


@dataclass(frozen=True, kw_only=True)
class ShardTask(Task):
    """A slide whose tiles go to the file `shard` of `store` under `key`, and its picture to `preview` if wanted."""

    store: Store
    shard: str
    key: str
    preview: str | None = None


@dataclass(frozen=True)
class Order:
    """What a worker is asked for: a slide's shard, within the limits, and in `left_s` seconds: clocks differ.

    `work` is what the slide's process does; `full` says that there is no room. `versions` are the asking side's:
    others could cut other tiles.
    """

    task: ShardTask
    slide_s: float
    memory_mb: int
    left_s: float
    work: Work
    full: Callable[[], bool]
    versions: Versions = field(default_factory=lambda: versions_here(CUTTING))


@dataclass(frozen=True)
class Outcome:
    """What came of an order: the shard that stands now, or the reason why there is none."""

    reason: str
    seconds: float = 0.0
    peak_mb: float = 0.0
    written: Written | None = None


def cut(order: Order) -> Outcome:
    """Carry an order out. Whatever the slide does, it costs itself alone.

    Raises ClusterError where this machine's kit would cut other tiles than those asked for.
    """
    order.versions.check()
    limits = Limits(order.slide_s, order.memory_mb, time.monotonic() + order.left_s)
    with ExitStack() as stack:
        task = order.task
        if task.stored is not None:
            task = replace(task, path=stack.enter_context(scratch()) / task.path.name)
        for event in stream([task], limits, 1, order.work, stopped=order.full):
            if isinstance(event, Ended):
                return _outcome(event)
    return Outcome(FULL)


def shard_task(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """The work of a slide's process: cut, write and publish its shard and its preview; only facts go to the parent.

    Raises SlideError when the slide gives no tiles, and StoreError where it cannot be fetched or the shard not written.
    """
    assert isinstance(task, ShardTask)
    frame = frame_in(task.store, task.shard)
    stands = frame is not None and frame.key == task.key
    if not stands or task.preview is not None:
        fetch(task)
    if frame is None or not stands:
        pieces = chain([{TILING: asdict(task.tilings[0])}], tile_slide(task.path, task.tilings[0]))
        yield 0, asdict(write_shard(task.store, task.shard, pieces, task.key))
    else:  # whoever was to tell of it was killed
        yield 0, asdict(Written(frame.count, *digest(task.store, task.shard)))
    if task.preview is not None:
        _draw(task, task.preview)


def digest(store: Store, name: str) -> tuple[int, str]:
    """The bytes of a file, and their sha256; from an object store it is fetched. Raises OSError or StoreError."""
    with at_hand(store, name) as path:
        return path.stat().st_size, sha256(path)


def is_drawn(store: Store, name: str, key: str) -> bool:
    """Whether the file `name` is the preview of the shard with this key."""
    from clotkit.tiling.preview import preview_key, preview_key_of

    try:
        with store.open(name) as file:
            return preview_key_of(io.BytesIO(file.read())) == preview_key(key)
    except OSError:
        return False


def _draw(task: ShardTask, name: str) -> None:
    from clotkit.tiling.preview import write_preview

    frame = frame_in(task.store, task.shard)
    if frame is not None and not is_drawn(task.store, name, task.key):
        with task.store.atomic_write(name) as temporary:
            write_preview(temporary, task.path, task.tilings[0], frame.xy, task.key)


def _outcome(ended: Ended) -> Outcome:
    """What a slide's process has left: no message of it makes a shard without its hash."""
    facts = ended.facts
    written = Written(facts["tiles"], facts["size_bytes"], facts["sha256"]) if "sha256" in facts else None
    reason = ended.reason or ("" if written else NOTHING)
    return Outcome(reason, ended.seconds, ended.peak_mb, written)
