"""Read the labelled tiles of a recipe: of a competition's slides or shards, or of pictures."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition, check_class_names
from clotkit.config import Recipe, check_facts, tiling_for
from clotkit.data.images import IMAGE_TILERS, read_image
from clotkit.data.pictures import PICTURE_READERS, SUFFIXES, Picture, listed, with_folder_classes
from clotkit.data.tiles import TRAIN, TileSet
from clotkit.errors import ConfigError, SlideError, SplitError
from clotkit.progress import Log
from clotkit.shards.cache import ShardOpener
from clotkit.shards.cut import check_tiling
from clotkit.shards.reading import ShardSet, ShardTiles
from clotkit.shards.table import TABLE, ShardRow, read_shard_rows
from clotkit.slides.pixels import Pixels
from clotkit.splits import SlideRow, first_of_each_class, read_slides
from clotkit.stores import Place, Store, is_url, store_of
from clotkit.tiling.tilers import TILERS
from clotkit.workers import Ended, Limits, Task, TileBatch, stream

CACHE = Path("build/cache")  # of shards that were fetched from an object store


def read_source(
    recipe: Recipe, data: Place, competition: Competition, limit: int | None, log: Log, cache: Path = CACHE
) -> TileSet:
    """Read the labelled tiles of the recipe's source.

    Slides have the competition's classes, pictures those of the recipe, or of its folders where it lists none. Shards
    give the same tiles as their slides, bit for bit; if training.feed is "shards", a shard is read when its tiles are
    needed (ShardTiles). Slides and pictures that cannot be read are skipped, and the log names them.

    Args:
        recipe: The recipe; `recipe.data.source` names the kind of source.
        data: A split folder, a folder or URL that `clotkit tile` has written, an .npz file, a folder of class folders,
            or a table.
        competition: The competition of the slides.
        limit: The number of slides or pictures to read of each class, in each given part; None: all.
        log: Gets a line for each skipped slide or picture, and a summary.
        cache: The folder for shards of a URL.

    Raises:
        ConfigError: The recipe does not fit its source or its shards.
        SplitError: The data do not fit the recipe, or have nothing of a class.
        SlideUnreadable: A shard is damaged.
        StoreError: An object store does not answer.
    """
    _check_tiler(recipe)
    if recipe.data.source == "slides" and is_tiled(data, competition):
        return _shard_tiles(store_of(data), recipe, competition, limit, cache, log)
    if not isinstance(data, Path):
        raise SplitError(f"{data}: no {TABLE} there; a URL must be a folder that clotkit tile has written")
    if recipe.data.source == "slides":
        slides = first_of_each_class(read_slides(data, TRAIN, competition, log), limit)
        return _slide_tiles(slides, recipe, competition, data, log)
    recipe = replace(recipe, data=with_folder_classes(data, recipe.data))
    _check_recipe_classes(recipe)
    pictures = _limited_pictures(PICTURE_READERS[recipe.data.source](data, recipe.data, log), limit)
    _check_every_class(pictures, recipe.data.classes, "pictures", data)
    _warn_of_shared_patients(pictures, log)
    return _picture_tiles(pictures, recipe, data, log)


def _check_tiler(recipe: Recipe) -> None:
    known: Sequence[str] = sorted(TILERS if recipe.data.source == "slides" else IMAGE_TILERS)
    if recipe.tiling.name not in known:
        raise ConfigError(
            f"recipe {recipe.name}: tiling.name is {recipe.tiling.name!r}; "
            f"allowed for source {recipe.data.source}: {', '.join(known)}"
        )


def _check_recipe_classes(recipe: Recipe) -> None:
    classes = recipe.data.classes
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ConfigError(
            f"recipe {recipe.name}: data.classes has {len(set(classes))} different names; source "
            f"{recipe.data.source} needs at least 2, each once, in the order of the class indices"
        )
    check_class_names(classes, f"recipe {recipe.name}: data.classes")


def _check_every_class(rows: Sequence[Picture], classes: Sequence[str], kind: str, data: Place) -> None:
    found = {row.label for row in rows}
    empty = [name for index, name in enumerate(classes) if index not in found]
    if empty:
        forms = "" if kind == "slides" else f"; pictures end with {listed(sorted(SUFFIXES))}"
        raise SplitError(
            f"{data}: class {', '.join(empty)} has 0 {kind}, at least 1 is needed; classes: {listed(classes)}{forms}"
        )


# -- slides


def _slide_tiles(slides: Sequence[SlideRow], recipe: Recipe, competition: Competition, data: Path, log: Log) -> TileSet:
    """Cut every slide in a process of its own; a slide that fails is skipped, and the log names it."""
    by_id = {slide.image_id: slide for slide in slides}
    check_facts(recipe, {slide.image_id: slide.facts for slide in slides})
    tasks = [Task(slide.image_id, slide.path, (tiling_for(recipe.tiling, slide.facts),)) for slide in slides]
    found: dict[str, list[Pixels]] = {image_id: [] for image_id in by_id}
    limits = Limits(competition.limits.slide_s, competition.limits.slide_memory_mb)
    for event in stream(tasks, limits, os.cpu_count() or 1):
        if isinstance(event, TileBatch):
            found[event.image_id].append(event.batch.tiles)
        elif isinstance(event, Ended) and event.code is not None:
            log(f"{event.image_id} is left out: {event.reason}")
            found[event.image_id] = []
    kept = [(by_id[image_id], np.concatenate(batches)) for image_id, batches in found.items() if batches]
    if not kept:
        raise SplitError(f"none of the {len(slides)} slides gave a tile; the lines above name the reasons")
    rows = [Picture(slide.image_id, slide.path, slide.label or 0, slide.patient_id, slide.centre) for slide, _ in kept]
    _check_every_class(rows, competition.classes.names, "slides", data)
    return _stacked(rows, [tiles for _, tiles in kept], competition.classes.names, "slides", log)


# -- shards


def is_tiled(data: Place, competition: Competition) -> bool:
    """Return True for a folder or URL that `clotkit tile` has written: it has shards.csv, and is no split."""
    if is_url(data):
        return _has(store_of(data), TABLE)
    path = Path(data)
    return (path / TABLE).is_file() and not competition.table_path(path, TRAIN).is_file()


def _has(store: Store, name: str) -> bool:
    try:
        store.read_text(name)
    except FileNotFoundError:
        return False
    return True


def _shard_tiles(
    store: Store, recipe: Recipe, competition: Competition, limit: int | None, cache: Path, log: Log
) -> TileSet:
    """Read shards in the order of their table; a slide without a shard is skipped, and the log names it."""
    table_rows, table = read_shard_rows(store, competition), store.url(TABLE)
    if any(row.label is None for row in table_rows):
        raise SplitError(f"{table}: no column {competition.columns.label}; run clotkit tile on a train split")
    shards = {row.image_id: row for row in table_rows}
    slides = [SlideRow(row.image_id, row.patient_id, Path(), row.label, row.centre) for row in table_rows]
    rows = [shards[slide.image_id] for slide in first_of_each_class(slides, limit)]
    for row in rows:
        if not row.file:
            log(f"{row.image_id} is left out: {row.reason}")
    kept = [row for row in rows if row.file]
    if not kept:
        raise SplitError(
            f"{table}: 0 of {len(table_rows)} slides have a shard, at least 1 is needed; its column reason says why"
        )
    pictures = [Picture(row.image_id, Path(row.file), row.label or 0, row.patient_id, row.centre) for row in kept]
    _check_every_class(pictures, competition.classes.names, "slides", table)
    opener = ShardOpener(store, cache, lambda shard, name: check_tiling(shard.facts, name, recipe))
    if recipe.training.feed == "shards":
        return _lazy_tile_set(pictures, kept, opener, recipe, competition.classes.names, log)
    cut: list[Pixels] = [opener.open(row).tiles for row in kept]  # memory-mapped, read as they are stacked
    return _stacked(pictures, cut, competition.classes.names, "slides", log)


def _lazy_tile_set(
    pictures: Sequence[Picture],
    rows: Sequence[ShardRow],
    opener: ShardOpener,
    recipe: Recipe,
    classes: tuple[str, ...],
    log: Log,
) -> TileSet:
    """Return a TileSet that reads from shards; the first is opened now, to check the recipe at once."""
    opener.open(rows[0], verify=False)
    tiles = ShardTiles(ShardSet([opener.lazy(row) for row in rows], recipe.tiling.tile_px))
    log(f"{len(tiles)} tiles of {len(rows)} slides, to be read from their shards")
    return _labelled(tiles.as_array(), pictures, [row.tiles for row in rows], classes)


# -- pictures


def _limited_pictures(pictures: Sequence[Picture], limit: int | None) -> list[Picture]:
    counts: Counter[tuple[str, int]] = Counter()
    kept = []
    for picture in pictures:
        stratum = picture.part, picture.label
        counts[stratum] += 1
        if limit is None or counts[stratum] <= limit:
            kept.append(picture)
    return kept


def _picture_tiles(pictures: Sequence[Picture], recipe: Recipe, data: Path, log: Log) -> TileSet:
    """Cut every picture; one that cannot be read is skipped, and the log names it."""
    rows, cut = [], []
    tiler = IMAGE_TILERS[recipe.tiling.name]
    for picture in pictures:
        try:
            pixels = read_image(picture.pixels) if isinstance(picture.pixels, Path) else picture.pixels
        except SlideError as error:
            log(f"{picture.image} is left out: {error}")
            continue
        cut.append(tiler(pixels, recipe.tiling))
        rows.append(picture)
    if not rows:
        raise SplitError(f"{data}: none of the {len(pictures)} pictures can be read; the lines above name the reasons")
    _check_every_class(rows, recipe.data.classes, "readable pictures", data)
    return _stacked(rows, cut, recipe.data.classes, "pictures", log)


def _warn_of_shared_patients(pictures: Sequence[Picture], log: Log) -> None:
    parts = {(picture.patient, picture.part) for picture in pictures}
    shared = sorted(patient for patient, count in Counter(patient for patient, _ in parts).items() if count > 1)
    if shared:
        log(f"{len(shared)} patients have pictures in more than one given part, the first is {shared[0]}")


# -- both


def _stacked(rows: Sequence[Picture], cut: list[Pixels], classes: tuple[str, ...], kind: str, log: Log) -> TileSet:
    """Stack the tiles of pictures into a TileSet; `cut` is emptied, so that tiles are not in memory twice."""
    counts = [len(tiles) for tiles in cut]
    stacked = np.empty((sum(counts), *cut[0].shape[1:]), np.uint8)
    end = len(stacked)
    while cut:
        tiles = cut.pop()
        stacked[end - len(tiles) : end] = tiles
        end -= len(tiles)
    log(f"{len(stacked)} tiles of {len(rows)} {kind}")
    return _labelled(stacked, rows, counts, classes)


def _labelled(
    tiles: npt.NDArray[np.uint8], rows: Sequence[Picture], counts: Sequence[int], classes: tuple[str, ...]
) -> TileSet:
    """Return a TileSet of tiles of which each picture has `counts`."""

    def column(values: list[str]) -> Any:
        return np.repeat(np.array(values, np.str_), counts)

    return TileSet(
        tiles=tiles,
        labels=np.repeat(np.array([row.label for row in rows], np.int64), counts),
        patients=column([row.patient for row in rows]),
        images=column([row.image for row in rows]),
        centres=column([row.centre for row in rows]),
        parts=column([row.part for row in rows]),
        classes=classes,
    )
