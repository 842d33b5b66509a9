"""Labelled pictures by the source of a recipe: a MedMNIST file, a folder for each class, or a table.

A mistake in the data raises SplitError, which names the file, what it has, and what is allowed.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.config import DataConfig
from clotkit.data.tiles import TEST, TRAIN, VAL
from clotkit.errors import ConfigError, SplitError, UsageError, one_line
from clotkit.progress import Log
from clotkit.slides.pixels import Pixels
from clotkit.splits import read_table
from clotkit.splits.identity import BLANK, composed
from clotkit.stores import Place
from clotkit.units import many

PARTS = (TRAIN, VAL, TEST)
PART_COLUMN = "part"  # of a table; its values are PARTS
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
LEFT_BY_ARCHIVES = "__MACOSX"  # folder beside the real ones, after a zip of macOS is unpacked
# Names that folders of a split have, and classes hardly.
PART_FOLDERS = frozenset(
    {TRAIN, VAL, TEST, "training", "valid", "validation", "testing", "eval", "evaluation", "dev", "holdout"}
)
MOST_PARTS = 1  # of these names among the classes: one alone may be a class, as `test` beside `control`


@dataclass(frozen=True)
class Picture:
    """A labelled picture that is not cut into tiles yet."""

    image: str  # its name
    pixels: Path | Pixels  # its file, or its pixels
    label: int  # class index
    patient: str
    centre: str = ""  # "" if none is known
    part: str = ""  # "" if the source gives none


def listed(names: Sequence[str]) -> str:
    """Join names for a message."""
    return ", ".join(names) or "none"


def _npz_pictures(data: Path, config: DataConfig, log: Log) -> list[Picture]:
    """Read the pictures of a MedMNIST file, which names no patients, so that each picture is a patient."""
    path = _npz_path(data)
    return [picture for part in PARTS for picture in _npz_part(path, part, config)]


def _npz_path(data: Path) -> Path:
    if data.is_file():
        return data
    found = sorted(data.glob("*.npz"))
    if len(found) != 1:
        raise SplitError(f"{data}: {len(found)} .npz files, exactly 1 is needed; give the path of the file itself")
    return found[0]


def _npz_part(path: Path, part: str, config: DataConfig) -> Iterator[Picture]:
    images, labels = (_npz_array(path, f"{part}_{name}") for name in ("images", "labels"))
    images, labels = _npz_images(images, path, part), _npz_labels(labels, len(images), config, path, part)
    for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{part}_{index}"
        yield Picture(name, pixels, int(label), name, "", part)


def _npz_array(path: Path, name: str) -> Any:
    try:
        # The file is opened here because numpy does not close a damaged one.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive[name]
    except KeyError as error:
        raise SplitError(
            f"{path}: no array {name}; a MedMNIST file has images and labels of {listed(PARTS)}"
        ) from error
    except Exception as error:  # numpy and zipfile raise many types: BadZipFile, zlib.error, NotImplementedError
        raise SplitError(f"{path}: not a sound .npz: {one_line(error, path)}") from error


def _npz_images(images: Any, path: Path, part: str) -> Any:
    """Return grey or coloured pictures as uint8[n, H, W, 3]."""
    if images.dtype != np.uint8 or images.ndim not in {3, 4} or (images.ndim == 4 and images.shape[3] != 3):
        raise SplitError(
            f"{path}: {part}_images is {images.dtype}{list(images.shape)}; allowed: uint8[n, H, W] or uint8[n, H, W, 3]"
        )
    if 0 in images.shape[1:]:
        raise SplitError(f"{path}: {part}_images is {list(images.shape)}; its pictures have no pixels")
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)


def _npz_labels(labels: Any, pictures: int, config: DataConfig, path: Path, part: str) -> Any:
    """Return class indices, int[n]."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.size != pictures or len(labels) != pictures:
        raise SplitError(
            f"{path}: {part}_labels is {labels.dtype}{list(labels.shape)}; allowed: one class index for each of "
            f"{pictures} pictures"
        )
    wrong = labels[(labels < 0) | (labels >= len(config.classes))]
    if wrong.size:
        raise SplitError(
            f"{path}: {part}_labels has {wrong.ravel()[0]}; allowed: 0 to {len(config.classes) - 1}, "
            f"the index in data.classes: {listed(config.classes)}"
        )
    return labels.reshape(-1)


def with_folder_classes(data: Path, config: DataConfig) -> DataConfig:
    """Return the config with the sub-folders of `data` as classes, sorted, if it lists none.

    Hidden folders are no classes. Other sources keep their config.

    Raises:
        SplitError: `data` is no folder, has fewer than 2 sub-folders, or those of a split's parts, or one whose name is
            not UTF-8.
        ConfigError: `positive_class` is none of the classes.
    """
    if config.source != "folders" or config.classes:
        return config
    if not data.is_dir():
        raise SplitError(f"{data}: no such folder; it must hold a folder of pictures for each class")
    names = _folder_names(data)
    if odd := [name for name in names if not _is_utf8(name)]:  # tables and plots could not name the class
        raise SplitError(
            f"{data}: the name of the folder {os.fsencode(odd[0])!r} is not UTF-8, and a class has its name; rename it"
        )
    if len(names) < 2:
        raise SplitError(
            f"{data}: {len(names)} folders of pictures ({listed(names)}), at least 2 are needed, one for each class; "
            "give the folder that holds them directly"
        )
    parts = [name for name in names if name.casefold() in PART_FOLDERS]
    if len(parts) > MOST_PARTS:
        raise SplitError(
            f"{data}: its folders {listed(parts)} are parts of a split, no classes; give one that holds the classes, "
            f"such as {data / parts[0]}; if they are classes after all, list them in data.classes of a recipe"
        )
    if config.positive_class and config.positive_class not in names:
        raise ConfigError(f"data.positive_class is {config.positive_class!r}; folders of {data}: {listed(names)}")
    return replace(config, classes=tuple(names))


def check_out_of_data(out: Path, data: Place, config: DataConfig) -> None:
    """Raise UsageError for results among class folders: the next run would take them for a class."""
    if config.source != "folders" or not isinstance(data, Path):
        return
    if out.resolve().is_relative_to(data.resolve()):
        raise UsageError(
            f"--out {out}: it is in {data}, whose folders are classes: the next run would take it for one; choose a "
            "folder elsewhere"
        )


def _folder_names(data: Path) -> list[str]:
    return sorted(path.name for path in data.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == LEFT_BY_ARCHIVES


def _folder_pictures(data: Path, config: DataConfig, log: Log) -> list[Picture]:
    """Find the pictures below DIR/<class>/; a table in DIR may name patients, centres and parts."""
    if not data.is_dir():
        raise SplitError(
            f"{data}: no such folder; it must hold a folder of pictures for each of {listed(config.classes)}"
        )
    files = [_shown_files(data / name) for name in config.classes]
    pictures = [
        Picture(path.relative_to(data).as_posix(), path, label, path.relative_to(data).as_posix())
        for label, of_class in enumerate(files)
        for path in of_class
        if _is_picture(path)
    ]
    others = [name for name in _folder_names(data) if name not in config.classes]
    if others:
        log(f"{data}: folder {', '.join(others)} is skipped, it is no class; classes: {listed(config.classes)}")
    _log_skipped(data, [path for of_class in files for path in of_class], log)
    table = table_of(data, config)
    return pictures if table is None else _with_table(pictures, table, config, log)


def _shown_files(folder: Path) -> list[Path]:
    """Return the files and the links to folders below a folder, sorted, without hidden ones."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path for path in found if not any(map(_is_hidden, path.relative_to(folder).parts)))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _log_skipped(data: Path, files: Sequence[Path], log: Log) -> None:
    """Log one line with the counts of what lies in the class folders, or beside them, and is not read."""
    kinds = Counter(_kind_of(path) for path in files if not _is_picture(path))
    counts = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
    loose = sum(_is_picture(path) for path in data.iterdir() if not _is_hidden(path.name))
    counts += [f"{many(loose, 'picture')} beside the class folders"] if loose else []
    if counts:
        skipped = many(sum(kinds.values()) + loose, "file")
        log(f"{data}: {skipped} skipped: {', '.join(counts)}; pictures end with {listed(sorted(SUFFIXES))}")


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "links to folders"
    return path.suffix.lower() or "without a suffix" if path.exists() else "broken links"


def table_of(data: Path, config: DataConfig) -> Path | None:
    """Return the recipe's table in a folder, whatever its capitals; None if there is none.

    Raises SplitError if two files have its name.
    """
    wanted = data / config.table
    if not wanted.parent.is_dir():
        return None
    found = [path for path in wanted.parent.iterdir() if path.name.casefold() == wanted.name.casefold()]
    tables = sorted(path for path in found if path.is_file())
    if len(tables) > 1:
        names = listed([path.name for path in tables])
        raise SplitError(f"{wanted.parent}: {len(tables)} tables {names}, at most 1 is read; remove the others")
    return tables[0] if tables else None


def _with_table(pictures: Sequence[Picture], table: Path, config: DataConfig, log: Log) -> list[Picture]:
    """Return the pictures with the patients, centres and parts of a table."""
    written = _table_rows(table, [config.file_column], config, log)
    rows = {_name(file): row for file, row in written.items()}
    _check_one_row(list(map(_name, written)), table, config)
    unknown = [picture.image for picture in pictures if _name(picture.image) not in rows]
    if unknown:
        raise SplitError(
            f"{table}: {len(unknown)} of {len(pictures)} pictures have no row, the first is {unknown[0]}; add them"
        )
    return [
        Picture(one.image, one.pixels, one.label, *_row_facts(rows[_name(one.image)], one.image, table, config))
        for one in pictures
    ]


def _name(file: str) -> str:
    """Return a path as tables of macOS and Windows may write it otherwise: composed, and with slashes."""
    return composed(file).replace("\\", "/")


def _table_pictures(data: Path, config: DataConfig, log: Log) -> list[Picture]:
    """Read the pictures that a CSV lists: the file `data`, or the recipe's table in the folder `data`."""
    table = data if data.is_file() else table_of(data, config) or data / config.table
    rows = _table_rows(table, [config.file_column, config.label_column], config, log)
    missing = [file for file in rows if not (table.parent / file).is_file()]
    if missing:
        first = table.parent / missing[0]
        raise SplitError(
            f"{table}: {len(missing)} of {len(rows)} files are missing, the first is {first}; add them, or remove "
            "their rows"
        )
    return [
        Picture(file, table.parent / file, _row_label(row, file, table, config), *_row_facts(row, file, table, config))
        for file, row in rows.items()
    ]


def _table_rows(table: Path, columns: list[str], config: DataConfig, log: Log) -> dict[str, dict[str, str]]:
    """Return the rows of a table by file; files are paths relative to the table's folder."""
    default = DataConfig()
    # A column that the recipe sets itself is required: a misspelt one would let patients leak between folds.
    required = [
        name for key in ("patient_column", "centre_column") if (name := getattr(config, key)) != getattr(default, key)
    ]
    found = read_table(table, [*columns, *required], [config.patient_column, config.centre_column, PART_COLUMN], log)
    if config.patient_column not in found[0]:
        log(f"{table}: no column {config.patient_column}; each file counts as a patient of its own")
    files = [os.path.normpath(row[config.file_column]) for row in found]
    _check_one_row(files, table, config)
    return dict(zip(files, found, strict=True))


def _check_one_row(files: Sequence[str], table: Path, config: DataConfig) -> None:
    for file, count in Counter(files).items():
        if count > 1 or file == ".":
            raise SplitError(
                f"{table}: {config.file_column} {'(empty)' if file == '.' else file} has {count} rows; "
                "each file may have one; remove the others"
            )


def _row_label(row: dict[str, str], file: str, table: Path, config: DataConfig) -> int:
    label = row[config.label_column]
    if label not in config.classes:
        raise SplitError(
            f"{table}: {file} has {config.label_column} {label!r}; allowed are data.classes: {listed(config.classes)}"
        )
    return config.classes.index(label)


def _row_facts(row: dict[str, str], file: str, table: Path, config: DataConfig) -> tuple[str, str, str]:
    """Return the patient, centre and part of a row; without a column of patients the file is the patient."""
    patient, part = row.get(config.patient_column, file), row.get(PART_COLUMN, "")
    if patient.casefold() in BLANK:
        raise SplitError(
            f"{table}: {file} has {config.patient_column} {patient or '(empty)'}; name a patient, one of its own if "
            "none is known"
        )
    if PART_COLUMN in row and part not in PARTS:
        raise SplitError(f"{table}: {file} has {PART_COLUMN} {part!r}; allowed: {listed(PARTS)}")
    return composed(patient), composed(row.get(config.centre_column, "")), part


PICTURE_READERS: dict[str, Callable[[Path, DataConfig, Log], list[Picture]]] = {
    "npz": _npz_pictures,
    "folders": _folder_pictures,
    "table": _table_pictures,
}
