"""`clotkit tile`: cut every slide of a split into a shard, and list the shards in shards.csv.

Slides and shards are in local folders or in object stores; the slides' processes run on this machine or on the workers
of a cluster. Shards that are up to date are kept, a slide that fails costs only itself, and a killed run leaves no
partly written shard. No TensorFlow here.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.config import Recipe, TilingConfig, check_facts, load_recipe, rule_facts, tiling_for
from clotkit.engines import Backend, Engine, Lost, engine
from clotkit.errors import ClusterError, UsageError
from clotkit.looking import with_sizes
from clotkit.progress import Log, progress
from clotkit.reasons import Reason
from clotkit.shards.cut import (
    OUTPUT_FULL,
    PAST_DEADLINE,
    CutRequest,
    CutResult,
    ShardTask,
    cut,
    shard_task,
    size_and_sha256,
)
from clotkit.shards.folder import exclusive, is_full, used_mb
from clotkit.shards.inventory import Inventory, preview_name, take_inventory
from clotkit.shards.shard import shard_key
from clotkit.shards.table import FAILED
from clotkit.splits import SYNTHETIC, SlideRow, in_store, kind_of, read_slides, split_of, tables_of
from clotkit.stores import Place, Store, store_of
from clotkit.tiling.tilers import check_tiler
from clotkit.workers import Work, check_limits, never


@dataclass(frozen=True)
class TileSettings:
    """The settings of one `clotkit tile` run."""

    split_dir: Place
    out: Place  # folder of the shards
    recipe: str  # name, or path of a .toml
    split: str | None  # train or test; None: train if there is one, else test
    jobs: int  # slides at a time with the backend loky
    memory_mb: int  # address space of a slide's process
    preview: bool  # draw previews
    use_mtime: bool = True  # cut a slide again if its modification time has changed
    deadline_s: float | None = None  # no slide starts later than this after the start; None: no deadline
    max_output_mb: float | None = None  # no slide starts once the shards have this size; None: no limit
    backend: Backend | None = None  # None: loky


def tile_split(
    settings: TileSettings, competition: Competition, log: Log = print, work: Work | None = None
) -> dict[str, int]:
    """Cut every slide of a split into a shard, and list the shards in shards.csv.

    Together they hold all that training needs: labels, patients and centres in shards.csv, the tiling in each shard.
    A shard that is whole and has the right key is kept; if all are, no process is started. A slide that fails costs
    only itself, and the log names it.

    Args:
        settings: The settings of the run.
        competition: The competition of the split.
        log: Gets a line a slide on a log file, and a summary.
        work: The work of a slide's process; None: shard_task.

    Returns:
        The number of slides by state: `new`, `up_to_date` and `failed`.

    Raises:
        UsageError, ConfigError, SplitError: The input is wrong; no shard has been touched.
        StoreError, ClusterError: A store or a cluster was lost on the way. Finished slides are listed, and the same
            command continues.
    """
    until = float("inf") if settings.deadline_s is None else time.monotonic() + settings.deadline_s
    recipe = load_recipe(settings.recipe)
    tiling = recipe.tiling
    check_tiler(tiling, settings.recipe)
    _check(settings)
    store = store_of(settings.out)
    with tables_of(settings.split_dir, competition) as split_dir:
        split = settings.split or split_of(split_dir, competition, ("train", "test"))
        slides = slides_to_cut(split_dir, split, settings.split_dir, recipe, competition, log)
        with exclusive(store, slides):
            tasks = {slide.image_id: _task(slide, tiling, store, settings) for slide in slides}
            inventory = take_inventory(store, slides, tasks, competition)
            _log_start(inventory, settings, kind_of(split_dir), log)
            _cut_and_list(inventory, settings, until, work or shard_task, log)
            inventory.discard_outdated()
            _copy_synthetic_marker(split_dir, store)
    return _summarise(inventory, settings, log)


def slides_to_cut(
    split_dir: Path, split: str, place: Place, recipe: Recipe, competition: Competition, log: Log
) -> list[SlideRow]:
    """Return the slides of a split with their sizes, as they lie at `place`; `split_dir` has the tables.

    Raises SplitError for a table that cannot be read, ConfigError if it lacks a column that the recipe's tiling names.
    """
    slides = in_store(read_slides(split_dir, split, competition, log), split_dir, place, competition)
    slides = with_sizes(slides, log)
    check_facts(recipe, {slide.image_id: slide.facts for slide in slides})
    return slides


def _check(settings: TileSettings) -> None:
    check_limits(settings.jobs, settings.memory_mb)
    if settings.max_output_mb is not None and not isinstance(settings.out, Path):
        raise UsageError(f"--max-output limits a local folder, but {settings.out} is an object store; leave it out")


def _task(slide: SlideRow, tiling: TilingConfig, store: Store, settings: TileSettings) -> ShardTask:
    try:
        key = shard_key(slide, tiling, settings.use_mtime)
    except OSError:
        key = ""  # matches no shard, so that the slide's process runs and reports the error
    return ShardTask(
        slide.image_id,
        slide.path.absolute(),
        (tiling_for(tiling, slide.facts),),
        stored=slide.stored,
        store=store.absolute(),
        shard=f"{slide.image_id}.npy",
        key=key,
        preview=preview_name(slide.image_id) if settings.preview else None,
        row=rule_facts(tiling, slide.facts),
    )


def _log_start(inventory: Inventory, settings: TileSettings, kind: str, log: Log) -> None:
    kept, left = len(inventory.kept), len(inventory.to_cut)
    if kept:
        log(f"{kept} {'shard is' if kept == 1 else 'shards are'} up to date")
    if left:
        log(f"{left} of {len(inventory.slides)} {kind}slides to tile, recipe {settings.recipe}")


def _cut_and_list(inventory: Inventory, settings: TileSettings, until: float, work: Work, log: Log) -> None:
    """Cut the slides that are not up to date, and write shards.csv whatever happens."""
    try:
        _run_tasks(inventory, settings, until, work, log)
    except ClusterError as error:
        done = sum(bool(row.file) for row in inventory.rows.values())
        raise ClusterError(
            f"{error}; {done} of {len(inventory.slides)} slides are done; run the same command again to continue"
        ) from error
    finally:
        inventory.write_table()


def _run_tasks(inventory: Inventory, settings: TileSettings, until: float, work: Work, log: Log) -> None:
    """Hash the shards that no table lists, then cut slides until the deadline or the size limit."""
    to_cut, to_hash = inventory.to_cut, inventory.to_hash
    if not to_cut and not to_hash:
        return
    inventory.write_table()  # slides that are not cut yet are listed as unfinished
    with engine(settings.backend or Backend(jobs=settings.jobs), log) as workers:
        for task, found in workers.unordered(_size_and_sha256, to_hash):
            inventory.add_hash(task, *((0, "") if isinstance(found, Lost) else found))
        max_mb = settings.max_output_mb
        full = never if max_mb is None else partial(is_full, Path(settings.out), max_mb)
        slide_s = inventory.competition.limits.slide_s
        requests = [CutRequest(task, slide_s, settings.memory_mb, slide_s, work, full) for task in to_cut]
        _cut(inventory, workers, requests, until, log)


def _size_and_sha256(task: ShardTask) -> tuple[int, str]:
    return size_and_sha256(task.store, task.shard)


def _cut(inventory: Inventory, workers: Engine, requests: Sequence[CutRequest], until: float, log: Log) -> None:
    """Cut the slides; those that the deadline or the size limit keeps from starting fail with its code."""
    started = set()

    def due_requests() -> Iterator[CutRequest]:
        for request in requests:
            left_s = until - time.monotonic()
            if left_s <= 0 or request.is_full():
                return
            started.add(request.task.image_id)
            yield replace(request, left_s=left_s)

    with progress(len(requests), log) as advance:

        def finish(task: ShardTask, result: CutResult) -> None:
            inventory.add(task, result)
            tiles = f"{result.shard.tiles if result.shard else 0} tiles, {result.seconds:.1f} s"
            failed = result.code is not None
            advance(f"{task.image_id} {f'failed: {result.reason}' if failed else tiles}", failed)

        for request, found in workers.unordered(cut, due_requests(), until):
            result = CutResult(found.code, found.reason) if isinstance(found, Lost) else found
            finish(request.task, result)
        for request in requests:
            if request.task.image_id not in started:
                finish(request.task, PAST_DEADLINE if time.monotonic() >= until else OUTPUT_FULL)


def _summarise(inventory: Inventory, settings: TileSettings, log: Log) -> dict[str, int]:
    """Log a summary, and return the number of slides by state."""
    rows, out = list(inventory.rows.values()), inventory.store.url()
    if settings.max_output_mb is not None and any(row.code is Reason.OUTPUT_FULL for row in rows):
        log(
            f"{out}: {used_mb(Path(settings.out)):,.0f} MB of shards, and --max-output is "
            f"{settings.max_output_mb:,.0f} MB; raise it to cut the other slides"
        )
    failed = sum(row.state == FAILED for row in rows)
    tiles = sum(row.tiles for row in rows)
    log(f"{out}: {sum(bool(row.file) for row in rows)} of {len(rows)} slides, {tiles} tiles, {failed} failed")
    return {"new": len(rows) - len(inventory.kept) - failed, "up_to_date": len(inventory.kept), "failed": failed}


def _copy_synthetic_marker(split_dir: Path, store: Store) -> None:
    """Mark the folder as synthetic exactly if the split is, so that a member trained on it is marked too."""
    marker = split_dir / SYNTHETIC
    try:
        current: str | None = store.read_text(SYNTHETIC)
    except (OSError, UnicodeDecodeError):
        current = None
    wanted = marker.read_text(encoding="utf-8") if marker.is_file() else None
    if wanted is None and current is not None:
        store.remove(SYNTHETIC)
    elif wanted is not None and wanted != current:
        store.atomic_write_text(SYNTHETIC, wanted)
