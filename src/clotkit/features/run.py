"""`clotkit features`: encode the tiles of every slide of a split, and list the files in features.csv.

Slides and features are in local folders or in object stores. Files that are up to date are kept, a slide that fails
costs only itself, and a killed run leaves no partly written file: the same command goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.config import Recipe, TilingConfig, load_recipe, rule_facts, tiling_for
from clotkit.engines import DASK, Backend, Lost, engine
from clotkit.errors import ClusterError, ConfigError, NoTissue, SlideUnreadable, UsageError
from clotkit.features.extract import EncodeRequest, encode_request, encode_slides
from clotkit.features.files import FeatureFile, Layout, open_features
from clotkit.features.folder import TABLE, VERB
from clotkit.features.probe import (
    EncoderTiming,
    EncoderUse,
    described_timing,
    read_use,
    time_encoder,
    write_use,
)
from clotkit.features.tasks import FeatureTask, feature_key, feature_task
from clotkit.members.encoders.encoder import Encoder, FoundEncoder, find_encoder
from clotkit.progress import Log, progress
from clotkit.scratch import scratch
from clotkit.shards.cut import ROW, CutResult, check_tiling, size_and_sha256
from clotkit.shards.folder import exclusive
from clotkit.shards.inventory import PARALLEL_REQUESTS, Inventory, take_inventory
from clotkit.shards.shard import metadata_in, shard_key
from clotkit.shards.table import FAILED, ShardRow, read_shard_rows
from clotkit.shards.table import TABLE as SHARDS
from clotkit.shards.tile import slides_to_cut
from clotkit.splits import SlideRow, split_of, tables_of
from clotkit.stores import Place, Store, local_copy, store_of
from clotkit.tiling.tilers import check_tiler
from clotkit.units import many
from clotkit.workers import Limits, Work, check_limits

MPP_TOLERANCE = 0.05  # of an encoder's micrometres per pixel


@dataclass(frozen=True)
class FeatureSettings:
    """The settings of one `clotkit features` run."""

    split_dir: Place  # a split, or a folder of tile shards
    out: Place  # folder of the features
    recipe: str  # name, or path of a .toml
    encoder: str | None  # name, folder, or path of an .onnx file; None: the recipe's
    search: tuple[Path, ...]  # folders of encoders and of backbones' weights
    split: str | None = None  # train or test; None: train if there is one, else test
    jobs: int = 1  # slides that are cut at a time
    memory_mb: int = 4096  # address space of a slide's process
    encoder_memory_mb: int = 4096  # of the process with the encoder: batches are halved until they fit
    batch_tiles: int | None = None  # tiles that the encoder gets at a time; None: as the memory allows
    layout: Layout = Layout.CLOTKIT
    use_mtime: bool = True  # encode a slide again if its modification time has changed
    backend: Backend = field(default_factory=Backend)


@dataclass(frozen=True)
class Job:
    """A run whose input is checked."""

    settings: FeatureSettings
    competition: Competition
    recipe: Recipe
    encoder: FoundEncoder
    slides: Sequence[SlideRow]
    tasks: Mapping[str, FeatureTask]  # by image id
    store: Store

    @property
    def failed(self) -> dict[str, CutResult]:
        """The slides that have no shard, and why; by image id."""
        return {image_id: task.failed for image_id, task in self.tasks.items() if task.failed is not None}


def extract_split(
    settings: FeatureSettings, competition: Competition, log: Log = print, work: Work = feature_task
) -> dict[str, int]:
    """Encode the tiles of every slide of a split, and list the files in features.csv.

    Args:
        settings: The settings of the run.
        competition: The competition of the split.
        log: Gets a line a slide on a log file, and a summary.
        work: The work of a slide's process.

    Returns:
        The number of slides by state: `new`, `up_to_date` and `failed`.

    Raises:
        UsageError, ConfigError, SplitError: The input is wrong; no file has been touched.
        StoreError, ClusterError: A store or a cluster was lost on the way. Finished slides are listed, and the same
            command continues.
    """
    with prepared(settings, competition, log) as job, exclusive(job.store, job.slides, VERB):
        inventory = take_inventory(job.store, job.slides, job.tasks, competition, TABLE, feature_metadata)
        kept, left = len(inventory.kept), len(_to_encode(inventory))
        if kept:
            log(f"{many(kept, 'slide')} up to date")
        if left:
            log(f"{left} of {many(len(job.slides), 'slide')} to encode, encoder {job.encoder.name}")
        _encode_and_list(job, inventory, work, log)
        inventory.discard_outdated()
    rows = list(inventory.rows.values())
    failed = sum(row.state == FAILED for row in rows)
    tiles = sum(row.tiles for row in rows)
    done = sum(bool(row.file) for row in rows)
    log(f"{job.store.url()}: {done} of {len(rows)} slides, {tiles} tiles, {failed} failed")
    return {"new": len(rows) - kept - failed, "up_to_date": kept, "failed": failed}


@contextmanager
def prepared(
    settings: FeatureSettings, competition: Competition, log: Log, splits: Sequence[str] = ("train", "test")
) -> Iterator[Job]:
    """Read the recipe, the encoder and the slides, and give the job.

    The split is the one of the settings, or the first of `splits` that has a table.

    Raises UsageError, ConfigError or SplitError.
    """
    if settings.batch_tiles is not None and settings.batch_tiles < 1:
        raise UsageError(f"--batch is {settings.batch_tiles}; at least 1 is needed")
    recipe = load_recipe(settings.recipe)
    check_tiler(recipe.tiling, settings.recipe)
    check_limits(settings.jobs, settings.memory_mb)
    encoder = wanted_encoder(settings, recipe).absolute()
    if unlike_mpp(recipe.tiling, encoder):
        log(f"encoder {encoder.name}: made for {encoder.mpp} um a pixel; tiling.mpp is {recipe.tiling.mpp}")
    source, store = store_of(settings.split_dir), store_of(settings.out)
    with scratch() as downloads:
        if is_shards(source):
            slides, tasks = _of_shards(source, recipe, settings, competition, encoder, store)
            yield Job(settings, competition, recipe, encoder, slides, tasks, store)
            return
        with tables_of(settings.split_dir, competition) as split_dir:
            split = settings.split or split_of(split_dir, competition, splits)
            slides = slides_to_cut(split_dir, split, settings.split_dir, recipe, competition, log)
            tasks = {
                slide.image_id: _task(slide, recipe.tiling, settings, encoder, store, downloads) for slide in slides
            }
            yield Job(settings, competition, recipe, encoder, slides, tasks, store)


def wanted_encoder(settings: FeatureSettings, recipe: Recipe) -> FoundEncoder:
    """Return the encoder that the settings or else the recipe name.

    Raises UsageError if neither does, ConfigError if there is no such encoder, or the recipe's has another hash.
    """
    if settings.encoder is not None:
        return find_encoder(settings.encoder, settings.search, recipe.onnx)
    if recipe.encoder is None:
        raise UsageError(f"{VERB}: no --encoder, and the recipe {recipe.name} has no table [encoder]; name one")
    found = find_encoder(recipe.encoder.name, settings.search, recipe.onnx)
    if recipe.encoder.sha256 not in {"", found.sha256}:
        raise ConfigError(
            f"encoder {found.name}: its sha256 is {found.sha256[:12]}…, the recipe's {recipe.encoder.sha256[:12]}…; "
            "put that encoder there, or name this one with --encoder"
        )
    return found


def is_shards(source: Store) -> bool:
    """Tell whether a folder is one of tile shards. Raises StoreError if an object store does not answer."""
    try:
        with source.open(SHARDS):
            return True
    except OSError:
        return False


def unlike_mpp(tiling: TilingConfig, encoder: FoundEncoder) -> bool:
    """Tell whether a recipe cuts tiles at another resolution than an encoder was made for."""
    return bool(tiling.mpp and encoder.mpp and abs(tiling.mpp - encoder.mpp) > MPP_TOLERANCE * encoder.mpp)


def _task(
    slide: SlideRow, tiling: TilingConfig, settings: FeatureSettings, encoder: FoundEncoder, store: Store, folder: Path
) -> FeatureTask:
    try:
        key = feature_key(shard_key(slide, tiling, settings.use_mtime), encoder.sha256, settings.layout)
    except OSError:
        key = ""  # matches no file, so that the slide's process runs and reports the error
    return FeatureTask(
        slide.image_id,
        slide.path.absolute() if slide.stored is None else folder / slide.path.name,
        (tiling_for(tiling, slide.facts),),
        stored=slide.stored,
        store=store.absolute(),
        shard=f"{slide.image_id}.h5",
        key=key,
        row=rule_facts(tiling, slide.facts),
    )


def _of_shards(
    source: Store,
    recipe: Recipe,
    settings: FeatureSettings,
    competition: Competition,
    encoder: FoundEncoder,
    store: Store,
) -> tuple[list[SlideRow], dict[str, FeatureTask]]:
    """Return the slides of a folder of tile shards, and their tasks.

    Raises ConfigError if a shard was cut with another tiling than the recipe's.
    """
    rows, tasks = read_shard_rows(source, competition), dict[str, FeatureTask]()
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        found = pool.map(lambda row: metadata_in(source, row.file) if row.file else None, rows)
        for row, metadata in zip(rows, found, strict=True):
            if metadata is not None:  # else its process reports that it is damaged
                check_tiling(metadata.facts, source.url(row.file), recipe)
            cells = metadata.facts.get(ROW, {}) if metadata is not None else {}
            tasks[row.image_id] = FeatureTask(
                row.image_id,
                Path(row.file),
                (tiling_for(recipe.tiling, cells),),
                store=store.absolute(),
                shard=f"{row.image_id}.h5",
                key=feature_key(row.key, encoder.sha256, settings.layout) if row.file else "",
                row=cells,
                tiles=source.absolute(),
                tiles_file=row.file,
                failed=CutResult(row.code, row.reason) if row.code is not None else None,
            )
    return [_slide_of(row, source) for row in rows], tasks


def _slide_of(row: ShardRow, source: Store) -> SlideRow:
    path, size = Path(source.url(row.file)), (row.size_bytes, 0)
    return SlideRow(row.image_id, row.patient_id, path, row.label, row.centre, size_and_mtime=size)


def feature_metadata(store: Store, name: str) -> FeatureFile | None:
    """Open a file of features; None if it is missing or not whole. Raises StoreError."""
    try:
        with local_copy(store, name) as path:
            return open_features(path)
    except (OSError, SlideUnreadable, NoTissue):
        return None


def _encode_and_list(job: Job, inventory: Inventory, work: Work, log: Log) -> None:
    """Encode the slides that are not up to date, and write features.csv whatever happens."""
    try:
        for image_id, failed in job.failed.items():
            inventory.add(job.tasks[image_id], failed)
            log(f"{image_id} has no shard: {failed.reason}")
        if tasks := _to_encode(inventory):
            batch_tiles = chosen_batch(job, log)
            inventory.write_table()  # slides that have had no turn are listed as unfinished
            with progress(len(tasks), log) as advance:
                for task, result in _results(job, tasks, batch_tiles, work, log):
                    inventory.add(task, result)
                    done = f"{result.shard.tiles} tiles, {result.seconds:.1f} s" if result.shard else ""
                    advance(f"{task.image_id} {done or f'failed: {result.reason}'}", result.code is not None)
        for listed in inventory.to_hash:
            inventory.add_hash(listed, *size_and_sha256(listed.store, listed.shard))
    except ClusterError as error:
        raise ClusterError(f"{error}; finished slides are kept, run the same command again to continue") from error
    finally:
        inventory.write_table()


def _to_encode(inventory: Inventory) -> list[FeatureTask]:
    """Return the tasks of slides that are not up to date, without those that have no shard."""
    return [task for task in inventory.to_cut if isinstance(task, FeatureTask) and task.failed is None]


def chosen_batch(job: Job, log: Log, timing: EncoderTiming | None = None) -> int:
    """Return the number of tiles of the encoder's batches.

    It is the one given, that of the folder's last run, or what fits the memory. A folder keeps its batch: with another
    one the last bits of features may differ.
    """
    use, given = read_use(job.store), job.settings.batch_tiles
    if use is not None and use.sha256 == job.encoder.sha256 and given in {None, use.batch_tiles}:
        return use.batch_tiles
    timing = timing or time_encoder(job.encoder, job.recipe.tiling.tile_px)
    batch_tiles = given or timing.batch_within(job.settings.encoder_memory_mb)
    log(f"encoder {job.encoder.name}: {described_timing(timing, batch_tiles)}")
    write_use(job.store, EncoderUse(job.encoder.name, job.encoder.sha256, timing.width, batch_tiles))
    return batch_tiles


def _results(
    job: Job, tasks: Sequence[FeatureTask], batch_tiles: int, work: Work, log: Log
) -> Iterator[tuple[FeatureTask, CutResult]]:
    """Yield how the slides ended that are not up to date, on this machine or on a cluster."""
    settings, tile_px = job.settings, job.recipe.tiling.tile_px
    slide_s = job.competition.limits.slide_s
    if settings.backend.name == DASK:
        yield from _results_of_cluster(job, tasks, batch_tiles, work, log)
        return
    encoder: Encoder = job.encoder.load(tile_px, batch_tiles)
    # A slide may wait long for the encoder, so what is limited is the time between two of its batches.
    limits = Limits(float("inf"), settings.memory_mb, stall_s=slide_s)
    with closing(encode_slides(tasks, encoder, limits, settings.jobs, settings.layout, work)) as results:
        yield from results
    for note in encoder.notes:
        log(f"encoder {encoder.name}: {note}")


def _results_of_cluster(
    job: Job, tasks: Sequence[FeatureTask], batch_tiles: int, work: Work, log: Log
) -> Iterator[tuple[FeatureTask, CutResult]]:
    settings = job.settings
    requests = [
        EncodeRequest(
            task,
            job.encoder,
            job.encoder.sha256,
            job.recipe.tiling.tile_px,
            batch_tiles,
            settings.layout,
            job.competition.limits.slide_s,
            settings.memory_mb,
            work,
        )
        for task in tasks
    ]
    with engine(settings.backend, log) as workers:
        for request, found in workers.unordered(encode_request, requests):
            yield request.task, CutResult(found.code, found.reason) if isinstance(found, Lost) else found
