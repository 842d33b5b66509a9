"""Cut one slide to its shard, in a process with limits, on whichever machine gets the request.

No TensorFlow here.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

from clotkit.aliases import RECIPE_KEYS, renamed
from clotkit.config import Recipe, TilingConfig, tiling_for
from clotkit.errors import ConfigError
from clotkit.files import sha256
from clotkit.reasons import Reason
from clotkit.scratch import scratch
from clotkit.shards.shard import ShardFile, metadata_in, write_shard
from clotkit.stores import Store, local_copy
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.versions import CUTTING, Versions, versions_here
from clotkit.workers import Ended, Limits, Task, Work, fetch, stream

TILING = "tiling"  # the fact of a shard that holds the tiling it was cut with
# Keys of a tiling that shards of earlier versions lack, with their defaults.
NEWER_KEYS = {key: getattr(TilingConfig, key) for key in ("levels", "mpp", "mpp_default")}
ROW = "row"  # the fact of a shard that holds the cells of its slide's row that tiling.downsample_if names


def tiling_in(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tiling that a shard was cut with; old keys have their new names.

    It is empty if the facts have no tiling. Its downsample is the one that was used, so it has no downsample_if.
    """
    tiling = renamed(facts.get(TILING, {}), RECIPE_KEYS[TILING])
    return tiling and {**NEWER_KEYS, **tiling, "downsample_if": ()}


def tiling_facts(tiling: TilingConfig, row: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts of a shard on its tiling: the slide's own one, and the cells that chose it.

    A tiling that depends on no cell gives what it gave before recipes had downsample_if.
    """
    used = {key: value for key, value in asdict(tiling).items() if key != "downsample_if"}
    return {TILING: used, **({ROW: dict(row)} if row else {})}


def tiling_wanted(tiling: TilingConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tiling that a recipe's has to be for the slide of a shard with these facts."""
    return asdict(tiling_for(tiling, facts.get(ROW, {})))


def check_tiling(facts: Mapping[str, Any], name: str, recipe: Recipe) -> None:
    """Raise ConfigError, with the differences, if a shard was not cut with the recipe's tiling."""
    was, wanted = tiling_in(facts), tiling_wanted(recipe.tiling, facts)
    differing = [key for key in wanted if was.get(key) != wanted[key]]
    if differing:
        there, here = (", ".join(f"{key} {one.get(key)}" for key in differing) for one in (was, wanted))
        raise ConfigError(
            f"{name}: was cut with {there}, but recipe {recipe.name} has {here}; run clotkit tile with this recipe"
        )


@dataclass(frozen=True, kw_only=True)
class ShardTask(Task):
    """A slide to cut, and the files that its process writes."""

    store: Store
    shard: str  # file in the store
    key: str  # of the shard, see shard_key
    preview: str | None = None  # file in the store; None: no preview is drawn
    row: Mapping[str, str] = field(default_factory=dict, hash=False)  # see ROW


@dataclass(frozen=True)
class CutRequest:
    """A request to a worker to cut one slide."""

    task: ShardTask
    slide_s: float  # time limit of the slide's process
    memory_mb: int  # its address space
    left_s: float  # until the run's deadline; a duration, because the clocks of machines differ
    work: Work  # the slide's process runs it
    is_full: Callable[[], bool]  # True: the output has reached its size limit
    # The versions of the client; with others, a worker could cut other tiles.
    versions: Versions = field(default_factory=lambda: versions_here(CUTTING))


@dataclass(frozen=True)
class CutResult:
    """The result of a request: a shard, or the reason why there is none."""

    code: Reason | None  # None: the shard is written
    reason: str  # a sentence for people, "" if the shard is written
    seconds: float = 0.0
    peak_mb: float = 0.0  # of the slide's process
    shard: ShardFile | None = None


OUTPUT_FULL = CutResult(Reason.OUTPUT_FULL, "the shards have reached --max-output, so the slide was not started")
PAST_DEADLINE = CutResult(Reason.DEADLINE, "the run's deadline came before its turn")


def cut(request: CutRequest) -> CutResult:
    """Cut a slide in a process of its own; whatever that process does costs only this slide.

    Raises ClusterError if this machine's kit or packages differ from the client's: it could cut other tiles.
    """
    request.versions.check()
    limits = Limits(request.slide_s, request.memory_mb, time.monotonic() + request.left_s)
    with ExitStack() as stack:
        task = request.task
        if task.stored is not None:
            task = replace(task, path=stack.enter_context(scratch()) / task.path.name)
        for event in stream([task], limits, 1, request.work, stopped=request.is_full):
            if isinstance(event, Ended):
                return _result(event)
    return OUTPUT_FULL


def shard_task(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Cut a slide, and write its shard and its preview; the work of a slide's process.

    Only facts go to the parent, no tiles.

    Raises:
        SlideError: The slide gives no tiles.
        StoreError: The slide cannot be fetched, or the shard cannot be written.
    """
    assert isinstance(task, ShardTask)
    metadata = metadata_in(task.store, task.shard)
    is_current = metadata is not None and metadata.key == task.key
    if not is_current or task.preview is not None:
        fetch(task)
    if metadata is None or not is_current:
        pieces = chain([tiling_facts(task.tilings[0], task.row)], tile_slide(task.path, task.tilings[0]))
        yield 0, asdict(write_shard(task.store, task.shard, pieces, task.key))
    else:  # an earlier process wrote it, but was killed before it could report it
        yield 0, asdict(ShardFile(metadata.count, *size_and_sha256(task.store, task.shard)))
    if task.preview is not None:
        _draw_preview(task, task.preview)


def size_and_sha256(store: Store, name: str) -> tuple[int, str]:
    """Return the bytes and the sha256 of a file, which is fetched from an object store.

    Raises OSError or StoreError.
    """
    with local_copy(store, name) as path:
        return path.stat().st_size, sha256(path)


def is_current_preview(store: Store, name: str, key: str) -> bool:
    """Return True if the file `name` is the preview of the shard with this key."""
    from clotkit.tiling.preview import preview_key, preview_key_of

    try:
        with store.open(name) as file:
            return preview_key_of(io.BytesIO(file.read())) == preview_key(key)
    except OSError:
        return False


def _draw_preview(task: ShardTask, name: str) -> None:
    from clotkit.tiling.preview import write_preview

    metadata = metadata_in(task.store, task.shard)
    if metadata is not None and not is_current_preview(task.store, name, task.key):
        with task.store.atomic_write(name) as temporary:
            write_preview(temporary, task.path, task.tilings[0], metadata.xy, task.key)


def _result(ended: Ended) -> CutResult:
    """Return the result of a slide's process; without a sha256 among its facts there is no shard."""
    facts = ended.facts
    shard = ShardFile(facts["tiles"], facts["size_bytes"], facts["sha256"]) if "sha256" in facts else None
    code, reason = ended.code, ended.reason
    if code is None and shard is None:
        code, reason = Reason.CRASHED, "its process ended without a shard"
    return CutResult(code, reason, ended.seconds, ended.peak_mb, shard)
