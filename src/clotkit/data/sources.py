"""Labelled tiles from where a recipe says they come: a competition's slides, a MedMNIST file, folders, a table."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.config import DataConfig, Recipe
from clotkit.data.images import IMAGE_TILERS, read_image
from clotkit.data.tiles import TEST, TRAIN, VAL, TileSet
from clotkit.errors import ConfigError, SlideError, SplitError, one_line
from clotkit.progress import Log
from clotkit.shards.cache import ShardOpener
from clotkit.shards.cut import TILING
from clotkit.shards.reading import ShardSet, ShardTiles
from clotkit.shards.shard import Shard
from clotkit.shards.table import TABLE, ShardRow, read_shard_rows
from clotkit.slides.pixels import Pixels
from clotkit.splits import SlideRow, read_slides, read_table
from clotkit.stores import Place, Store, is_url, store_of
from clotkit.tiling.tilers import TILERS
from clotkit.workers import Ended, Limits, Task, Tiles, stream

CACHE = Path("build/cache")  # where shards of a URL are kept
PARTS = (TRAIN, VAL, TEST)
PART_COLUMN = "part"  # of a table; what it may say are the PARTS
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Picture:
    """One labelled picture before it is cut: where its pixels are, or they themselves; `label` is a class index."""

    image: str
    pixels: Path | Pixels
    label: int
    patient: str
    centre: str = ""
    part: str = ""


def read_source(
    recipe: Recipe, data: Place, competition: Competition, limit: int | None, log: Log, cache: Path = CACHE
) -> TileSet:
    """The labelled tiles that `recipe.data` names, in `data`: a split folder, an .npz, a folder of folders, a table.

    For slides it may be a folder that `clotkit tile` has filled, or the URL of one, whose shards are kept in `cache`:
    the same tiles, bit for bit, without cutting again. Where training.feed is "shards" they are not read before they
    are needed (ShardTiles).
    `limit` takes the first so many slides or pictures of each class, in each part where parts are given. What cannot be
    read is left out, and `log` gets its name. Slides have the competition's classes, pictures those of the recipe.
    Raises ConfigError for a recipe that does not fit its source or its shards, SplitError for data that do not fit the
    recipe or have nothing of a class, SlideUnreadable for a damaged shard, StoreError where a store cannot be asked.
    """
    _check_tiling(recipe)
    if recipe.data.source == "slides" and is_tiled(data, competition):
        return _shard_tiles(store_of(data), recipe, competition, limit, cache, log)
    if not isinstance(data, Path):
        raise SplitError(f"{data}: no {TABLE} there; of URLs only what clotkit tile has written is trained on")
    if recipe.data.source == "slides":
        slides = _limited_slides(read_slides(data, TRAIN, competition, log), limit)
        return _slide_tiles(slides, recipe, competition, data, log)
    _check_recipe_classes(recipe)
    pictures = _limited(PICTURES[recipe.data.source](data, recipe.data, log), limit)
    _check_found(pictures, recipe.data.classes, "pictures", data)
    _tell_shared_patients(pictures, log)
    return _picture_tiles(pictures, recipe, data, log)


def _check_tiling(recipe: Recipe) -> None:
    known: Sequence[str] = sorted(TILERS if recipe.data.source == "slides" else IMAGE_TILERS)
    if recipe.tiling.name not in known:
        raise ConfigError(
            f"recipe {recipe.name}: tiling.name is {recipe.tiling.name!r}; "
            f"of source {recipe.data.source} allowed: {', '.join(known)}"
        )


def _check_recipe_classes(recipe: Recipe) -> None:
    classes = recipe.data.classes
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ConfigError(
            f"recipe {recipe.name}: data.classes has {len(set(classes))} different names; of source "
            f"{recipe.data.source} at least 2 are needed, each once; name them by class index"
        )


def _check_found(rows: Sequence[Picture], classes: Sequence[str], kind: str, data: Place) -> None:
    found = {row.label for row in rows}
    empty = [name for index, name in enumerate(classes) if index not in found]
    if empty:
        raise SplitError(
            f"{data}: class {', '.join(empty)} has 0 {kind}, at least 1 is needed; classes: {_list(classes)}"
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


# -- slides


def _limited_slides(slides: list[SlideRow], limit: int | None) -> list[SlideRow]:
    if limit is None:
        return slides
    labels = sorted({slide.label or 0 for slide in slides})
    return [slide for label in labels for slide in [row for row in slides if row.label == label][:limit]]


def _slide_tiles(slides: Sequence[SlideRow], recipe: Recipe, competition: Competition, data: Path, log: Log) -> TileSet:
    """The tiles of every slide, each slide in a process of its own; a slide that fails is left out by name."""
    by_id = {slide.image_id: slide for slide in slides}
    tasks = [Task(slide.image_id, slide.path, (recipe.tiling,)) for slide in slides]
    found: dict[str, list[Pixels]] = {image_id: [] for image_id in by_id}
    limits = Limits(competition.limits.slide_s, competition.limits.slide_memory_mb)
    for event in stream(tasks, limits, os.cpu_count() or 1):
        if isinstance(event, Tiles):
            found[event.image_id].append(event.batch.tiles)
        elif isinstance(event, Ended) and event.reason:
            log(f"{event.image_id} is left out: {event.reason}")
            found[event.image_id] = []
    kept = [(by_id[image_id], np.concatenate(batches)) for image_id, batches in found.items() if batches]
    if not kept:
        raise SplitError(f"none of the {len(slides)} slides gave a tile; the lines above say why")
    rows = [Picture(slide.image_id, slide.path, slide.label or 0, slide.patient_id, slide.centre) for slide, _ in kept]
    _check_found(rows, competition.classes.names, "slides", data)
    return _tile_set(rows, [tiles for _, tiles in kept], competition.classes.names, "slides", log)


# -- slides that are cut already


def is_tiled(data: Place, competition: Competition) -> bool:
    """Whether a folder or URL is one of `clotkit tile`: it has the table of shards, and is no split itself."""
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
    """The tiles of shards, in the order of their table; a slide that gave none is left out by name."""
    listed, table = read_shard_rows(store, competition), store.url(TABLE)
    if any(row.label is None for row in listed):
        raise SplitError(f"{table}: no column {competition.columns.label}; clotkit tile takes a train split too")
    shards = {row.image_id: row for row in listed}
    slides = [SlideRow(row.image_id, row.patient_id, Path(), row.label, row.centre) for row in listed]
    rows = [shards[slide.image_id] for slide in _limited_slides(slides, limit)]
    for row in rows:
        if not row.file:
            log(f"{row.image_id} is left out: {row.reason}")
    kept = [row for row in rows if row.file]
    if not kept:
        raise SplitError(f"{table}: 0 of {len(listed)} slides have a shard, at least 1 is needed; it says why")
    pictures = [Picture(row.image_id, Path(row.file), row.label or 0, row.patient_id, row.centre) for row in kept]
    _check_found(pictures, competition.classes.names, "slides", table)
    opener = ShardOpener(store, cache, lambda shard, name: _check_cut_alike(shard, name, recipe))
    if recipe.training.feed == "shards":
        return _lazy_tile_set(pictures, kept, opener, recipe, competition.classes.names, log)
    cut: list[Pixels] = [opener.open(row).tiles for row in kept]  # memory-mapped: read as they are stacked
    return _tile_set(pictures, cut, competition.classes.names, "slides", log)


def _lazy_tile_set(
    pictures: Sequence[Picture],
    rows: Sequence[ShardRow],
    opener: ShardOpener,
    recipe: Recipe,
    classes: tuple[str, ...],
    log: Log,
) -> TileSet:
    """The same without the pixels; one shard is opened, so that a wrong recipe is told at once."""
    opener.open(rows[0], verify=False)
    tiles = ShardTiles(ShardSet([opener.lazy(row) for row in rows], recipe.tiling.tile_px))
    log(f"{len(tiles)} tiles of {len(rows)} slides, to be read from their shards")
    return _labelled(tiles.as_array(), pictures, [row.tiles for row in rows], classes)


def _check_cut_alike(shard: Shard, name: str, recipe: Recipe) -> None:
    """Raise ConfigError, with what differs, where a shard was not cut with the recipe's tiling."""
    was, wanted = dict(shard.facts.get(TILING, {})), asdict(recipe.tiling)
    differing = [key for key in wanted if was.get(key) != wanted[key]]
    if differing:
        there, here = (", ".join(f"{key} {one.get(key)}" for key in differing) for one in (was, wanted))
        raise ConfigError(
            f"{name}: cut with {there}; recipe {recipe.name} has {here}: clotkit tile a split with this recipe"
        )


def _tile_set(rows: Sequence[Picture], cut: list[Pixels], classes: tuple[str, ...], kind: str, log: Log) -> TileSet:
    """Tiles of pictures and what is known of each, one row a tile. `cut` is used up: tiles are not in memory twice."""
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
    """Tiles, so many of each picture, with what is known of the pictures."""

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


# -- pictures


def _limited(pictures: Sequence[Picture], limit: int | None) -> list[Picture]:
    seen: Counter[tuple[str, int]] = Counter()
    kept = []
    for picture in pictures:
        kind = picture.part, picture.label
        seen[kind] += 1
        if limit is None or seen[kind] <= limit:
            kept.append(picture)
    return kept


def _picture_tiles(pictures: Sequence[Picture], recipe: Recipe, data: Path, log: Log) -> TileSet:
    """The tiles of every picture; one that cannot be read is left out by name."""
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
        raise SplitError(f"{data}: none of the {len(pictures)} pictures can be read; the lines above say why")
    _check_found(rows, recipe.data.classes, "readable pictures", data)
    return _tile_set(rows, cut, recipe.data.classes, "pictures", log)


def _tell_shared_patients(pictures: Sequence[Picture], log: Log) -> None:
    places = {(picture.patient, picture.part) for picture in pictures}
    shared = sorted(patient for patient, count in Counter(patient for patient, _ in places).items() if count > 1)
    if shared:
        log(f"{len(shared)} patients have pictures in more than one of the given parts, {shared[0]} first")


def _npz_pictures(data: Path, config: DataConfig, log: Log) -> list[Picture]:
    """The pictures of a MedMNIST file; which picture is whose it does not say, so each is a patient."""
    path = _npz_path(data)
    return [picture for part in PARTS for picture in _npz_part(path, part, config)]


def _npz_path(data: Path) -> Path:
    if data.is_file():
        return data
    found = sorted(data.glob("*.npz"))
    if len(found) != 1:
        raise SplitError(f"{data}: {len(found)} .npz files, exactly 1 is needed; name the file itself")
    return found[0]


def _npz_part(path: Path, part: str, config: DataConfig) -> Iterator[Picture]:
    images, labels = (_npz_array(path, f"{part}_{name}") for name in ("images", "labels"))
    images, labels = _npz_images(images, path, part), _npz_labels(labels, len(images), config, path, part)
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{part}_{index}"
        yield Picture(name, pixels, int(label), name, "", part)


def _npz_array(path: Path, name: str) -> Any:
    try:
        # opened here: numpy leaves the file open where it is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive[name]
    except KeyError as error:
        raise SplitError(f"{path}: no array {name}; a MedMNIST file has images and labels of {_list(PARTS)}") from error
    except Exception as error:  # numpy and zipfile raise what they like: BadZipFile, zlib.error, NotImplementedError
        raise SplitError(f"{path}: not a sound .npz: {one_line(error, path)}") from error


def _npz_images(images: Any, path: Path, part: str) -> Any:
    """Pictures uint8[n, H, W, 3] of grey or coloured ones."""
    if images.dtype != np.uint8 or images.ndim not in {3, 4} or (images.ndim == 4 and images.shape[3] != 3):
        raise SplitError(
            f"{path}: {part}_images is {images.dtype}{list(images.shape)}; allowed: uint8[n, H, W] or uint8[n, H, W, 3]"
        )
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)


def _npz_labels(labels: Any, pictures: int, config: DataConfig, path: Path, part: str) -> Any:
    """Class indices int[n]."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.size != pictures or len(labels) != pictures:
        raise SplitError(
            f"{path}: {part}_labels is {labels.dtype}{list(labels.shape)}; allowed: one class index for each of "
            f"{pictures} pictures"
        )
    wrong = labels[(labels < 0) | (labels >= len(config.classes))]
    if wrong.size:
        raise SplitError(
            f"{path}: {part}_labels has {wrong.ravel()[0]}; allowed: 0 to {len(config.classes) - 1}, "
            f"the index in data.classes: {_list(config.classes)}"
        )
    return labels.reshape(-1)


def _folder_pictures(data: Path, config: DataConfig, log: Log) -> list[Picture]:
    """The pictures of DIR/<class>/, however deep; a table in DIR says whose they are."""
    if not data.is_dir():
        raise SplitError(f"{data}: no such folder; it holds a folder of pictures for each of {_list(config.classes)}")
    pictures = [
        Picture(path.relative_to(data).as_posix(), path, label, path.relative_to(data).as_posix())
        for label, name in enumerate(config.classes)
        for path in _image_files(data / name)
    ]
    others = sorted(path.name for path in data.iterdir() if path.is_dir() and path.name not in config.classes)
    if others:
        log(f"{data}: folder {', '.join(others)} is no class and is left out; classes: {_list(config.classes)}")
    table = data / config.table
    return _with_table(pictures, table, config, log) if table.is_file() else pictures


def _image_files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _with_table(pictures: Sequence[Picture], table: Path, config: DataConfig, log: Log) -> list[Picture]:
    """The same pictures with the patients, centres and parts of a table."""
    rows = _table_rows(table, [config.file_column], config, log)
    unknown = [picture.image for picture in pictures if picture.image not in rows]
    if unknown:
        raise SplitError(f"{table}: {len(unknown)} of {len(pictures)} pictures have no row; add {unknown[0]} and so on")
    return [
        Picture(
            picture.image, picture.pixels, picture.label, **_facts(rows[picture.image], picture.image, table, config)
        )
        for picture in pictures
    ]


def _table_pictures(data: Path, config: DataConfig, log: Log) -> list[Picture]:
    """The pictures that a CSV lists: the file `data`, or the recipe's table in the folder `data`."""
    table = data if data.is_file() else data / config.table
    rows = _table_rows(table, [config.file_column, config.label_column], config, log)
    missing = [file for file in rows if not (table.parent / file).is_file()]
    if missing:
        first = table.parent / missing[0]
        raise SplitError(f"{table}: {len(missing)} of {len(rows)} files are missing, {first} first; put them there")
    return [
        Picture(file, table.parent / file, _label(row, file, table, config), **_facts(row, file, table, config))
        for file, row in rows.items()
    ]


def _table_rows(table: Path, columns: list[str], config: DataConfig, log: Log) -> dict[str, dict[str, str]]:
    """The rows by file, as paths from the table's folder."""
    standard = DataConfig()
    # a column that the recipe names itself has to be there: one misspelt would let patients leak between folds
    named = [
        name for key in ("patient_column", "centre_column") if (name := getattr(config, key)) != getattr(standard, key)
    ]
    found = read_table(table, [*columns, *named])
    if config.patient_column not in found[0]:
        log(f"{table}: no column {config.patient_column}; every file counts as a patient")
    files = [os.path.normpath(row[config.file_column]) for row in found]
    for file, count in Counter(files).items():
        if count > 1 or file == ".":
            raise SplitError(
                f"{table}: {config.file_column} {'(empty)' if file == '.' else file} stands {count} times, "
                "allowed is one row a file; remove the others"
            )
    return dict(zip(files, found, strict=True))


def _label(row: dict[str, str], file: str, table: Path, config: DataConfig) -> int:
    label = row[config.label_column]
    if label not in config.classes:
        raise SplitError(f"{table}: {file} has {config.label_column} {label!r}; data.classes: {_list(config.classes)}")
    return config.classes.index(label)


def _facts(row: dict[str, str], file: str, table: Path, config: DataConfig) -> dict[str, str]:
    """Patient, centre and part of a row; a table without patients makes every file one."""
    patient, part = row.get(config.patient_column, file), row.get(PART_COLUMN, "")
    if not patient:
        raise SplitError(f"{table}: {file} has an empty {config.patient_column}; name one, a file alone has its own")
    if PART_COLUMN in row and part not in PARTS:
        raise SplitError(f"{table}: {file} has {PART_COLUMN} {part!r}; allowed: {_list(PARTS)}")
    return {"patient": patient, "centre": row.get(config.centre_column, ""), "part": part}


PICTURES: dict[str, Callable[[Path, DataConfig, Log], list[Picture]]] = {
    "npz": _npz_pictures,
    "folders": _folder_pictures,
    "table": _table_pictures,
}
