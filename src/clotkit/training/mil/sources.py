"""Find the features of a competition's labelled slides: files by image id, in a folder or at a URL."""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from clotkit.competitions import Competition
from clotkit.config import Recipe
from clotkit.data.tiles import TRAIN, TileSet
from clotkit.errors import ConfigError, SlideError, SplitError, UsageError
from clotkit.features.files import FeatureFile, open_features
from clotkit.progress import Log
from clotkit.splits import SlideRow, read_slides
from clotkit.stores import Place, Store, store_of
from clotkit.training.mil.bags import SlideFeatures

SUFFIXES = (".h5", ".hdf5")


def read_features(
    recipe: Recipe, data: Place, split: Path | None, competition: Competition, limit: int | None, cache: Path, log: Log
) -> TileSet:
    """Return the labelled slides of a recipe's features: one row a slide, with SlideFeatures as its tiles.

    Args:
        recipe: a recipe with a table `encoder`.
        data: a folder or URL of HDF5 files, one a slide, named by its image id, at any depth.
        split: the split whose train table lists the slides; None: the table lies in `data` itself.
        competition: has the table's columns and the classes.
        limit: slides of each class; None: all.
        cache: folder for the files of a URL.
        log: gets a line for each slide that is left out.

    Raises:
        SplitError: The table is missing or malformed, or a class has no slide.
        ConfigError: The features are of several encoders, or of another one than the recipe's.
        StoreError: An object store does not answer.
    """
    where = split or (data if isinstance(data, Path) else None)
    if where is None or not competition.table_path(where, TRAIN).is_file():
        raise SplitError(
            f"{data}: no {competition.table_path(Path(), TRAIN).name} there, which has the labels; give --split with "
            "the folder of the train split"
        )
    slides = _limited(read_slides(where, TRAIN, competition, lambda _: None), limit)
    files, kept = _open_each(slides, store_of(data), cache, log)
    _check_classes(kept, competition, data)
    _check_one_encoder(recipe, files, data)
    log(f"{sum(file.count for file in files)} tiles of {len(files)} slides, {files[0].width} features each")
    return _labelled(kept, SlideFeatures(tuple(files)), competition.classes.names)


def _open_each(
    slides: Sequence[SlideRow], store: Store, cache: Path, log: Log
) -> tuple[list[FeatureFile], list[SlideRow]]:
    """Return the file of each slide that has one, and these slides."""
    names = {PurePosixPath(name).stem: name for name in sorted(store.entries()) if name.endswith(SUFFIXES)}
    files, kept = list[FeatureFile](), list[SlideRow]()
    for slide in slides:
        if slide.image_id not in names:
            log(f"{slide.image_id} is left out: no {slide.image_id}.h5 in {store.url()}")
            continue
        try:
            files.append(open_features(_local(store, names[slide.image_id], cache)))
            kept.append(slide)
        except SlideError as error:
            log(f"{slide.image_id} is left out: {error}")
    return files, kept


def _local(store: Store, name: str, cache: Path) -> Path:
    """Return the local path of a file, which is fetched to the cache unless it is there."""
    if (path := store.local(name)) is not None:
        return path
    entry = store.entries()[name]
    key = hashlib.sha256(f"{store.url(name)} {entry.size_bytes} {entry.version}".encode()).hexdigest()[:16]
    path = cache / key / PurePosixPath(name).name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(name, path)
        except OSError as error:
            raise UsageError(f"--cache {cache}: cannot be written: {error.strerror or error}") from error
    return path


def _limited(slides: Sequence[SlideRow], limit: int | None) -> list[SlideRow]:
    if limit is None:
        return list(slides)
    if limit < 1:
        raise UsageError(f"--limit is {limit}; at least 1 slide per class is needed")
    labels = sorted({slide.label or 0 for slide in slides})
    return [slide for label in labels for slide in [one for one in slides if one.label == label][:limit]]


def _check_classes(slides: Sequence[SlideRow], competition: Competition, data: Place) -> None:
    found = {slide.label for slide in slides}
    if empty := [name for index, name in enumerate(competition.classes.names) if index not in found]:
        raise SplitError(f"{data}: class {', '.join(empty)} has 0 slides with features; at least 1 is needed")


def _check_one_encoder(recipe: Recipe, files: Sequence[FeatureFile], data: Place) -> None:
    """Raise ConfigError for features of several encoders, or of another one than the recipe names."""
    assert recipe.encoder is not None
    by_width = {file.width: file for file in files}
    if len(by_width) > 1:
        texts = ", ".join(f"{width} in {file.path.name}" for width, file in sorted(by_width.items()))
        raise ConfigError(f"{data}: features a tile: {texts}; all files must be of one encoder")
    by_hash = {file.encoder_sha256: file for file in files if file.encoder_sha256}
    wanted = recipe.encoder.sha256
    if len(by_hash) > 1 or (wanted and set(by_hash) - {wanted}):
        texts = ", ".join(f"{digest[:12]}… in {file.path.name}" for digest, file in sorted(by_hash.items()))
        raise ConfigError(
            f"{data}: features of the encoders {texts}; {f'wanted: {wanted[:12]}…' if wanted else '1 is needed'}; run "
            "clotkit features again"
        )


def _labelled(slides: Sequence[SlideRow], features: SlideFeatures, classes: tuple[str, ...]) -> TileSet:
    return TileSet(
        tiles=features.as_array(),
        labels=np.array([slide.label for slide in slides], np.int64),
        patients=np.array([slide.patient_id for slide in slides], np.str_),
        images=np.array([slide.image_id for slide in slides], np.str_),
        centres=np.array([slide.centre for slide in slides], np.str_),
        parts=np.full(len(slides), "", np.str_),
        classes=classes,
    )
