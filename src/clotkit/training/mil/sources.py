"""Find the features of a competition's labelled slides: files by image id, in a folder or at a URL."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clotkit.competitions import Competition
from clotkit.config import Recipe
from clotkit.data.tiles import TRAIN, TileSet
from clotkit.errors import ConfigError, SlideError, SplitError
from clotkit.features.files import FeatureFile
from clotkit.features.folder import TABLE, VERB, FeatureFolder
from clotkit.progress import Log
from clotkit.shards.table import previous_rows, read_shard_rows
from clotkit.splits import SlideRow, first_of_each_class, read_slides
from clotkit.stores import Place, store_of
from clotkit.training.mil.bags import SlideFeatures
from clotkit.training.mil.tilings import check_tilings
from clotkit.units import many


def read_features(
    recipe: Recipe, data: Place, split: Path | None, competition: Competition, limit: int | None, cache: Path, log: Log
) -> TileSet:
    """Return the labelled slides of a recipe's features: one row a slide, with SlideFeatures as its tiles.

    Args:
        recipe: a recipe with a table `encoder`.
        data: a folder or URL of HDF5 files, one a slide, named by its image id, at any depth.
        split: the split whose train table lists the slides; None: features.csv or the train table in `data` does.
        competition: has the table's columns and the classes.
        limit: slides of each class; None: all.
        cache: folder for the files of a URL.
        log: gets a line for each slide that is left out.

    Raises:
        SplitError: The table is missing or malformed, or a class has no slide.
        ConfigError: There are no features, or they are of several encoders, or of another one or another tiling than
            the recipe's.
        StoreError: An object store does not answer.
    """
    slides = first_of_each_class(_without_failed(_slides(data, split, competition), data, competition, log), limit)
    ids = {slide.image_id for slide in slides}
    files, kept = _open_each(slides, FeatureFolder(data, cache, ids), log)
    _check_classes(kept, competition, data)
    _check_encoder(recipe, files, data)
    check_tilings(recipe, kept, files, log)
    log(f"{sum(file.count for file in files)} tiles of {len(files)} slides, {files[0].width} features each")
    return _labelled(kept, SlideFeatures(tuple(files)), competition.classes.names)


def _slides(data: Place, split: Path | None, competition: Competition) -> list[SlideRow]:
    """Return the labelled slides: of the split, of features.csv, or of a train table beside the features."""
    store = store_of(data)
    beside = data if isinstance(data, Path) and competition.table_path(data, TRAIN).is_file() else None
    if split is None and TABLE in store.entries():
        rows = read_shard_rows(store, competition, TABLE, VERB)
        slides = [SlideRow(row.image_id, row.patient_id, Path(), row.label, row.centre) for row in rows]
        if all(slide.label is not None for slide in slides):
            return slides
    if (folder := split or beside) is None:
        raise SplitError(
            f"{data}: no {TABLE} with the column {competition.columns.label} there, nor "
            f"{competition.table_path(Path(), TRAIN).name}; give --split with the folder of the train split"
        )
    return read_slides(folder, TRAIN, competition, lambda _: None)


def _without_failed(slides: Sequence[SlideRow], data: Place, competition: Competition, log: Log) -> list[SlideRow]:
    """Return the slides but those that features.csv lists without a file: theirs is an old one."""
    rows = previous_rows(store_of(data), competition, TABLE).values()
    failed = {row.image_id for row in rows if not row.file or row.code is not None}
    if left_out := [slide.image_id for slide in slides if slide.image_id in failed]:
        log(f"{many(len(left_out), 'slide')} left out, the first is {left_out[0]}: {TABLE} lists no file of theirs")
    return [slide for slide in slides if slide.image_id not in failed]


def _open_each(slides: Sequence[SlideRow], folder: FeatureFolder, log: Log) -> tuple[list[FeatureFile], list[SlideRow]]:
    """Return the file of each slide that has a sound one, and these slides. Each is read once."""
    files, kept = list[FeatureFile](), list[SlideRow]()
    for slide in slides:
        try:
            file = folder.open(slide.image_id)
            file.read()  # damage in the middle costs this slide now, not the training later
        except SlideError as error:
            log(f"{slide.image_id} is left out: {error}")
            continue
        files.append(file)
        kept.append(slide)
    return files, kept


def _check_classes(slides: Sequence[SlideRow], competition: Competition, data: Place) -> None:
    found = {slide.label for slide in slides}
    if empty := [name for index, name in enumerate(competition.classes.names) if index not in found]:
        raise SplitError(f"{data}: class {', '.join(empty)} has 0 slides with features; at least 1 is needed")


def _check_encoder(recipe: Recipe, files: Sequence[FeatureFile], data: Place) -> None:
    """Raise ConfigError for features of another encoder than the recipe's, if both state its sha256."""
    assert recipe.encoder is not None
    found, wanted = files[0].encoder_sha256, recipe.encoder.sha256
    if found and wanted and found != wanted:
        raise ConfigError(
            f"{data}: features of the encoder {found[:12]}…; recipe {recipe.name} has encoder.sha256 {wanted[:12]}…; "
            "run clotkit features with that encoder"
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
