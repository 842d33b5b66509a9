"""`clotkit tile`: a shard a slide, each cut in the slide's own process, and shards.csv, which lists them.

The slides and the shards are in local folders or in object stores, the processes on this machine or on those of a
cluster. What is up to date is left alone, a slide that fails costs itself alone, and a run that is killed, or any part
of it, leaves nothing that passes for whole. No TensorFlow here.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.config import TilingConfig, load_recipe
from clotkit.engines import Backend, Engine, Lost, engine
from clotkit.errors import ClusterError, UsageError
from clotkit.progress import Log, progress
from clotkit.shards.cut import FULL, Order, Outcome, ShardTask, cut, digest, is_drawn, shard_task
from clotkit.shards.folder import PREVIEWS, alone, full, taken_mb
from clotkit.shards.shard import frame_in, shard_key
from clotkit.shards.table import ShardRow, bare_row, earlier_rows, publish_rows
from clotkit.splits import SYNTHETIC, SlideRow, in_store, kind_of, read_slides, split_of, tables_of
from clotkit.stores import Entry, Folder, Place, Store, store_of
from clotkit.tiling.tilers import check_tiler
from clotkit.workers import Work, check_limits, never

TABLE_S = 30.0  # how old shards.csv may be while a run is at work
ASKING = 16  # requests to an object store at a time
LATE = "the run's deadline came before its turn"


@dataclass(frozen=True)
class TileSettings:
    """What `clotkit tile` is asked for; `split` None takes train where there is one, else test.

    Without `dated` a slide's time of change does not matter. After `deadline_s` seconds, or once the folder holds
    `most_mb` of shards, no slide is begun any more; None: never.
    """

    split_dir: Place
    out: Place
    recipe: str
    split: str | None
    jobs: int
    memory_mb: int  # address space of a slide's process
    preview: bool
    dated: bool = True
    deadline_s: float | None = None
    most_mb: float | None = None
    backend: Backend | None = None  # None: loky, `jobs` at a time


def tile_split(
    settings: TileSettings, competition: Competition, log: Log = print, work: Work | None = None
) -> dict[str, int]:
    """Write a shard a slide into the folder `out`, and shards.csv; return how many are new, up to date, and failed.

    What training needs to know is in shards.csv (labels, patients, centres), and in each shard (its tiling).

    Shards that are whole and have the key that they must have are left alone; without other work no process is started.
    A slide that fails costs itself alone and is named to `log`. `work` is what a slide's process does (shard_task).
    Raises UsageError, ConfigError or SplitError, before a shard is touched, for wrong input; StoreError or ClusterError
    where a store or a cluster is lost on the way: what is done is listed, and the same command goes on.
    """
    until = float("inf") if settings.deadline_s is None else time.monotonic() + settings.deadline_s
    tiling = load_recipe(settings.recipe).tiling
    check_tiler(tiling, settings.recipe)
    _check(settings)
    store = store_of(settings.out)
    with tables_of(settings.split_dir, competition) as split_dir:
        split = settings.split or split_of(split_dir, competition, ("train", "test"))
        slides = in_store(read_slides(split_dir, split, competition, log), split_dir, settings.split_dir)
        with alone(store, slides):
            shelf = _take_stock(store, slides, tiling, settings, competition)
            if len(shelf.kept):
                log(f"{len(shelf.kept)} {'shard is' if len(shelf.kept) == 1 else 'shards are'} up to date")
            if shelf.fresh:
                kind = kind_of(split_dir)
                log(f"{len(shelf.fresh)} of {len(slides)} {kind}slides to tile, recipe {settings.recipe}")
            try:
                _work(shelf, settings, competition, until, work or shard_task, log)
            except ClusterError as error:
                done = sum(bool(row.file) for row in shelf.rows.values())
                raise ClusterError(
                    f"{error}; {done} of {len(slides)} slides are done, the same command goes on"
                ) from error
            finally:
                shelf.publish()
            _discard_others(shelf)
            _copy_marker(split_dir, store)
    return _close(shelf, settings, log)


@dataclass
class _Shelf:
    """The slides, their tasks, and what is known of their shards; shards.csv follows from it."""

    store: Store
    competition: Competition
    slides: Sequence[SlideRow]
    tasks: dict[str, ShardTask]  # by image id, as all that follows
    kept: dict[str, ShardRow]  # up to date from the start
    rows: dict[str, ShardRow]
    listed: dict[str, Entry]
    published: float = field(default_factory=time.monotonic)

    @cached_property
    def fresh(self) -> list[ShardTask]:
        """The tasks of what is not up to date, the largest slide first: no core waits for the longest at the end."""
        size_of = {slide.image_id: slide.size_bytes for slide in self.slides}
        left = [task for task in self.tasks.values() if task.image_id not in self.kept]
        return sorted(left, key=lambda task: -size_of[task.image_id])

    @property
    def unhashed(self) -> list[ShardTask]:
        """The tasks of shards that stand, of which no table tells the hash: their run was killed."""
        return [self.tasks[image_id] for image_id, row in self.kept.items() if not row.sha256]

    def take(self, task: ShardTask, outcome: Outcome) -> None:
        """What came of a slide; now and then it is written down."""
        row = replace(self.rows[task.image_id], reason=outcome.reason)
        if outcome.written is not None:
            done = outcome.written
            row = replace(
                row,
                file=task.shard,
                tiles=done.tiles,
                key=task.key,
                size_bytes=done.size_bytes,
                sha256=done.sha256,
            )
        self.rows[task.image_id] = row
        if time.monotonic() > self.published + TABLE_S:
            self.publish()

    def publish(self) -> None:
        """Write shards.csv."""
        publish_rows(self.store, [self.rows[slide.image_id] for slide in self.slides], self.competition)
        self.published = time.monotonic()


def _check(settings: TileSettings) -> None:
    check_limits(settings.jobs, settings.memory_mb)
    if settings.most_mb is not None and not isinstance(settings.out, Path):
        raise UsageError(f"--most guards a disk; {settings.out} is an object store: leave it out")


def _take_stock(
    store: Store, slides: Sequence[SlideRow], tiling: TilingConfig, settings: TileSettings, competition: Competition
) -> _Shelf:
    """What there is to do, and what is there already."""
    tasks = {slide.image_id: _task(slide, tiling, store, settings) for slide in slides}
    earlier, listed = earlier_rows(store, competition), store.entries()

    def kept_row(slide: SlideRow) -> ShardRow | None:
        return _kept_row(bare_row(slide), tasks[slide.image_id], earlier.get(slide.image_id), listed)

    with ThreadPoolExecutor(ASKING) as asking:
        found = list(asking.map(kept_row, slides))
    kept = {row.image_id: row for row in found if row is not None}
    rows = {slide.image_id: kept.get(slide.image_id, bare_row(slide)) for slide in slides}
    return _Shelf(store, competition, slides, tasks, kept, rows, listed)


def _task(slide: SlideRow, tiling: TilingConfig, store: Store, settings: TileSettings) -> ShardTask:
    try:
        key = shard_key(slide, tiling, settings.dated)
    except OSError:
        key = ""  # no shard has it: the slide's process will say what is wrong
    return ShardTask(
        slide.image_id,
        slide.path.absolute(),
        (tiling,),
        stored=slide.stored,
        store=store.absolute(),
        shard=f"{slide.image_id}.npy",
        key=key,
        preview=f"{PREVIEWS}/{slide.image_id}.jpg" if settings.preview else None,
    )


def _kept_row(bare: ShardRow, task: ShardTask, earlier: ShardRow | None, listed: dict[str, Entry]) -> ShardRow | None:
    """The row of a shard that is up to date, without a hash where no table tells it; None where it must be cut.

    A local shard's frame is always looked at; one in an object store only where shards.csv does not know it: objects do
    not change by halves, and a request takes its time.
    """
    entry = listed.get(task.shard)
    if entry is None or not task.key:
        return None
    known = earlier is not None and (earlier.key, earlier.size_bytes) == (task.key, entry.size_bytes)
    tiles = earlier.tiles if earlier and known and earlier.sha256 else 0
    if not tiles or isinstance(task.store, Folder):
        frame = frame_in(task.store, task.shard)
        if frame is None or frame.key != task.key:
            return None
        tiles = frame.count
    if task.preview is not None and not (task.preview in listed and is_drawn(task.store, task.preview, task.key)):
        return None
    hashed = earlier.sha256 if earlier and known else ""
    return replace(bare, file=task.shard, tiles=tiles, key=task.key, size_bytes=entry.size_bytes, sha256=hashed)


def _work(shelf: _Shelf, settings: TileSettings, competition: Competition, until: float, work: Work, log: Log) -> None:
    """Have all that is left done, as far as there is time and room."""
    fresh, unhashed = shelf.fresh, shelf.unhashed
    if not fresh and not unhashed:
        return
    shelf.publish()  # as it is now: a slide without its shard is unfinished
    with engine(settings.backend or Backend(jobs=settings.jobs), log) as workers:
        for task, found in workers.unordered(_hashed, unhashed):
            size_bytes, sha256 = (0, "") if isinstance(found, Lost) else found
            shelf.rows[task.image_id] = replace(shelf.rows[task.image_id], size_bytes=size_bytes, sha256=sha256)
        no_room = never if settings.most_mb is None else partial(full, Path(settings.out), settings.most_mb)
        most_s = competition.limits.slide_s
        orders = [Order(task, most_s, settings.memory_mb, most_s, work, no_room) for task in fresh]
        _cut(shelf, workers, orders, until, log)


def _hashed(task: ShardTask) -> tuple[int, str]:
    return digest(task.store, task.shard)


def _cut(shelf: _Shelf, workers: Engine, orders: Sequence[Order], until: float, log: Log) -> None:
    """Cut the slides; those that have no turn before the deadline, or before there is no room, say so."""
    begun = set()

    def in_turn() -> Iterator[Order]:
        for order in orders:
            left_s = until - time.monotonic()
            if left_s <= 0 or order.full():
                return
            begun.add(order.task.image_id)
            yield replace(order, left_s=left_s)

    with progress(len(orders), log) as advance:
        for order, found in workers.unordered(cut, in_turn(), until):
            outcome = Outcome(found.reason) if isinstance(found, Lost) else found
            shelf.take(order.task, outcome)
            tiles = f"{outcome.written.tiles if outcome.written else 0} tiles, {outcome.seconds:.1f} s"
            said = f"failed: {outcome.reason}" if outcome.reason else tiles
            advance(f"{order.task.image_id} {said}", bool(outcome.reason))
        for order in orders:
            if order.task.image_id not in begun:
                reason = LATE if time.monotonic() >= until else FULL
                shelf.take(order.task, Outcome(reason))
                advance(f"{order.task.image_id} failed: {reason}", True)


def _close(shelf: _Shelf, settings: TileSettings, log: Log) -> dict[str, int]:
    """Say what came of it, and count."""
    rows, out = list(shelf.rows.values()), shelf.store.url()
    if any(row.reason == FULL for row in rows):
        most_mb = settings.most_mb or 0
        log(f"{out}: {taken_mb(Path(settings.out)):,.0f} MB of shards, --most is {most_mb:,.0f} MB; allow more")
    failed = sum(bool(row.reason) for row in rows)
    tiles = sum(row.tiles for row in rows)
    log(f"{out}: {sum(bool(row.file) for row in rows)} of {len(rows)} slides, {tiles} tiles, {failed} failed")
    return {"new": len(rows) - len(shelf.kept) - failed, "up_to_date": len(shelf.kept), "failed": failed}


def _discard_others(shelf: _Shelf) -> None:
    """Remove shards and previews of these slides that have another key: the old ones of slides that failed now.

    Those of a slide that is not there stay: its disk may only be away, and shards.csv does not name them.
    """
    for task in (task for task in shelf.tasks.values() if task.key):
        if task.shard in shelf.listed and not shelf.rows[task.image_id].file:
            shelf.store.remove(task.shard)
        picture = f"{PREVIEWS}/{task.image_id}.jpg"
        if picture in shelf.listed and not is_drawn(shelf.store, picture, task.key):
            shelf.store.remove(picture)


def _copy_marker(split_dir: Path, store: Store) -> None:
    """Let the folder say that its tiles are of drawn slides, as the split does; what is trained on it says so too."""
    marker = split_dir / SYNTHETIC
    try:
        there: str | None = store.read_text(SYNTHETIC)
    except (OSError, UnicodeDecodeError):
        there = None
    wanted = marker.read_text(encoding="utf-8") if marker.is_file() else None
    if wanted is None and there is not None:
        store.remove(SYNTHETIC)
    elif wanted is not None and wanted != there:
        store.atomic_write_text(SYNTHETIC, wanted)
