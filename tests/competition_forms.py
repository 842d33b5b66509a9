"""Write tiny data folders in the forms of slide competitions: tables, a sample and tiny slides.

`FORMS` has the writers by name, and what a TOML of each must say; other tests may write a form and read it.
"""

import csv
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

TRAIN, TEST = 12, 6  # slides


@dataclass(frozen=True)
class FormOfData:
    """One form: how to write it, and what its TOML must say."""

    write: Callable[[Path], None]
    keys: dict[str, Any]  # {key with its table: value}
    counts: tuple[int, int] = (TRAIN, TEST)  # slides of train and test
    absent: Sequence[str] = field(default=())  # keys that it has not


@cache
def tiff() -> bytes:
    """Return the bytes of a TIFF of 48 x 64 pixels."""
    import tifffile

    file = BytesIO()
    tifffile.imwrite(file, np.full((64, 48, 3), 200, np.uint8), photometric="rgb", tile=(16, 16))
    return file.getvalue()


@cache
def png(width: int = 48, height: int = 64) -> bytes:
    """Return the bytes of a white PNG."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress((b"\0" + b"\xff" * 3 * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def slide(path: Path) -> None:
    """Write a slide of a few pixels in the format of its extension, a PNG or a TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if path.suffix == ".png" else tiff())


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = ",") -> None:
    """Write a table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])


def hexadecimal(text: str, length: int) -> str:
    """Return hex digits that look random and follow from a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def counted(split: str) -> range:
    """Return the numbers of a split's slides."""
    return range(TRAIN if split == "train" else TEST)


def grades(out: Path) -> None:
    """Write ids of 32 hex digits with an ordinal integer, centres, and masks beside the slides."""
    for split in ("train", "test"):
        rows = [
            [hexadecimal(f"{split}{k}", 32), ("left", "right")[k % 2], k % 6, f"{k % 6}+{k % 3}"]
            for k in counted(split)
        ]
        for row in rows:
            slide(out / f"{split}_images" / f"{row[0]}.tiff")
        if split == "train":
            table(out / "train.csv", ["image_id", "data_provider", "isup_grade", "gleason_score"], rows)
            slide(out / "train_label_masks" / f"{rows[0][0]}_mask.tiff")
        else:
            table(out / "test.csv", ["image_id", "data_provider"], [row[:2] for row in rows])
            table(out / "sample_submission.csv", ["image_id", "isup_grade"], [[row[0], 0] for row in rows])


def outliers(out: Path) -> None:
    """Write integer ids, PNGs with thumbnails but for cores, and a label of test that train lacks."""
    names = ["CC", "EC", "MC"]
    for split in ("train", "test"):
        core = [k % 3 == 2 for k in counted(split)]
        ids = [4 + 907 * k + 13 * (split == "test") for k in counted(split)]
        for one, is_core in zip(ids, core, strict=True):
            slide(out / f"{split}_images" / f"{one}.png")
            if not is_core:
                slide(out / f"{split}_thumbnails" / f"{one}_thumbnail.png")
        if split == "train":
            rows = [[one, names[k % 3], 48, 64, core[k]] for k, one in enumerate(ids)]
            table(out / "train.csv", ["image_id", "label", "image_width", "image_height", "is_tma"], rows)
        else:
            table(out / "test.csv", ["image_id", "image_width", "image_height"], [[one, 48, 64] for one in ids])
            table(out / "sample_submission.csv", ["image_id", "label"], [[one, "MC"] for one in ids])
            table(
                out / "truth.csv", ["image_id", "label"], [[one, [*names, "Other"][k % 4]] for k, one in enumerate(ids)]
            )


def clinical(out: Path) -> None:
    """Write file names as ids, one flat folder, labels in a table of their own, clinical columns."""
    for split in ("train", "test"):
        ids = [f"{hexadecimal(f'{split}{k}', 8)}.tif" for k in counted(split)]
        for one in ids:
            slide(out / "images" / one)
        rows = [[one, f"[{k}0:{k}2[", k % 2 + 1, ("trunk", "arm", "leg")[k % 3]] for k, one in enumerate(ids)]
        table(out / f"{split}_metadata.csv", ["filename", "age", "sex", "body_site"], rows)
        if split == "train":
            table(
                out / "train_labels.csv", ["filename", "relapse"], [[one, int(k % 4 == 3)] for k, one in enumerate(ids)]
            )
        else:
            table(out / "submission_format.csv", ["filename", "relapse"], [[one, 0.5] for one in ids])


def columns(out: Path) -> None:
    """Write a probability column a class, with other names than the labels, and one slide a case."""
    names = ["benign", "atypical", "malignant"]
    header = ["case", *(f"prob_{name}" for name in names)]
    for split in ("train", "test"):
        ids = [f"case_{k + 90 * (split == 'test'):04d}" for k in counted(split)]
        for one in ids:
            slide(out / split / f"{one}.svs")
        if split == "train":
            table(out / "train.csv", ["case", "diagnosis"], [[one, names[k % 3]] for k, one in enumerate(ids)])
        else:
            table(out / "test.csv", ["case"], [[one] for one in ids])
            table(out / "sample_submission.csv", header, [[one, 0.3, 0.3, 0.4] for one in ids])


def nodes(out: Path) -> None:
    """Write a train table only: the sample lists the test slides, and its one column is named p."""
    for split in ("train", "test"):
        ids = [f"{split}_{k:03d}" for k in counted(split)]
        for one in ids:
            slide(out / split / f"{one}.tif")
        if split == "train":
            table(
                out / "train.csv", ["image", "label"], [[one, ("tumor", "normal")[k % 2]] for k, one in enumerate(ids)]
            )
        else:
            table(out / "sample_submission.csv", ["image", "p"], [[one, 0.5] for one in ids])


def patients(out: Path) -> None:
    """Write a folder a patient, two slides each, and a sample of patients."""
    names = ["luminal", "basal"]
    for split in ("train", "test"):
        rows = [
            [f"{split[:2]}{k}s", f"P{k // 2 + 50 * (split == 'test'):03d}", names[k // 2 % 2]] for k in counted(split)
        ]
        for image, patient, _ in rows:
            slide(out / split / patient / f"{image}.tif")
        if split == "train":
            table(out / "train.csv", ["slide", "patient", "subtype"], rows)
        else:
            table(out / "test.csv", ["slide", "patient"], [row[:2] for row in rows])
            ids = dict.fromkeys(row[1] for row in rows)
            table(out / "sample_submission.csv", ["patient", *names], [[one, 0.5, 0.5] for one in ids])


def scanners(out: Path) -> None:
    """Write integer ids whose slides are .svs in one folder and .ndpi in another."""
    for split in ("train", "test"):
        ids = [k + 1 + 40 * (split == "test") for k in counted(split)]
        for k, one in enumerate(ids):
            slide(out / ("aperio" if k % 3 else "hamamatsu") / f"{one}.{'svs' if k % 3 else 'ndpi'}")
        if split == "train":
            table(out / "train.csv", ["id", "stage"], [[one, k % 4 + 1] for k, one in enumerate(ids)])
        else:
            table(out / "test.csv", ["id"], [[one] for one in ids])
            table(out / "sample_submission.csv", ["id", "stage"], [[one, 1] for one in ids])


def apart(out: Path) -> None:
    """Write text labels in a table of their own, and centres as folders of slides."""
    for split in ("train", "test"):
        rows = [[f"{split[0]}x{k}", ("north", "south", "west")[k % 3], 40 + k] for k in counted(split)]
        for image, center, _ in rows:
            slide(out / "slides" / str(center) / f"{image}.tif")
        table(out / f"{split}.csv", ["slide_id", "hospital", "age"], rows)
        if split == "train":
            labels = [[row[0], ("lung", "colon", "skin")[k % 3]] for k, row in enumerate(rows)]
            table(out / "train_labels.csv", ["slide_id", "organ_label"], reversed(labels))
        else:
            table(out / "sample_submission.csv", ["slide_id", "organ_label"], [[row[0], "lung"] for row in rows])


def semicolons(out: Path) -> None:
    """Write tables with semicolons, and slides with a word before the id."""
    for split in ("train", "test"):
        ids = [f"{chr(97 + k)}{k}{split[1]}" for k in counted(split)]
        for one in ids:
            slide(out / f"{split}_slides" / f"wsi_{one}.tif")
        if split == "train":
            table(
                out / "train.csv", ["image", "outcome"], [[one, ("yes", "no")[k % 2]] for k, one in enumerate(ids)], ";"
            )
        else:
            table(out / "test.csv", ["image"], [[one] for one in ids], ";")
            table(out / "sample_submission.csv", ["image", "risk"], [[one, 0.1] for one in ids], ";")


def folders(out: Path) -> None:
    """Write train slides in a folder a class, and test slides in one folder."""
    names = ["b", "a", "c"]
    for k in counted("train"):
        slide(out / "train" / names[k % 3] / f"im{k}.png")
    for k in counted("test"):
        slide(out / "test" / f"im{k + 70}.png")
    table(out / "train.csv", ["image", "class"], [[f"im{k}", names[k % 3]] for k in counted("train")])
    table(out / "sample_submission.csv", ["image", *sorted(names)], [[f"im{k + 70}", 0, 0, 1] for k in counted("test")])


def listed(out: Path) -> None:
    """Write patients and centres of train slides only: the sample lists the test slides by themselves."""
    names = ["A", "B"]
    rows = [[f"TCGA-{k:02d}-DX{k % 2}", f"TCGA-{k // 2:02d}", "xy"[k % 2], names[k // 2 % 2]] for k in counted("train")]
    ids = [f"TCGA-{k + 80}-DX1" for k in counted("test")]
    for one in [*(row[0] for row in rows), *ids]:
        slide(out / "slides" / f"{one}.svs")
    table(out / "train.csv", ["slide_id", "case_id", "site", "label"], rows)
    table(out / "sample_submission.csv", ["slide_id", *names], [[one, 0.5, 0.5] for one in ids])


FORMS = {
    "grades": FormOfData(
        grades,
        {
            "files.slide": "{split}_images/{image_id}.tiff", "files.table": "{split}.csv", "columns.image": "image_id",
            "columns.center": "data_provider", "columns.label": "isup_grade", "classes.names": [0, 1, 2, 3, 4, 5],
            "submission.form": "label", "submission.rule": "cut_points", "submission.unit": "image",
            "metric.name": "quadratic_weighted_kappa",
        },
        absent=["columns.patient", "ids.has_extension", "files.labels"],
    ),
    "outliers": FormOfData(
        outliers,
        {
            "files.slide": "{split}_images/{image_id}.png", "classes.names": ["CC", "EC", "MC"],
            "submission.form": "label", "submission.rule": "outlier", "submission.outlier": "Other",
            "facts.name": "is_tma", "facts.missing_file": "{split}_thumbnails/{image_id}_thumbnail.png",
        },
        absent=["columns.center", "columns.patient"],
    ),
    "clinical": FormOfData(
        clinical,
        {
            "files.sample": "submission_format.csv", "files.table": "{split}_metadata.csv",
            "files.labels": "train_labels.csv", "files.slide": "images/{image_id}.tif", "columns.image": "filename",
            "columns.label": "relapse", "ids.has_extension": True, "classes.names": [0, 1],
            "classes.priors": [0.75, 0.25], "submission.form": "probability", "submission.columns": ["relapse"],
        },
        absent=["columns.center"],
    ),
    "columns": FormOfData(
        columns,
        {
            "files.slide": "{split}/{image_id}.svs", "columns.image": "case", "columns.label": "diagnosis",
            "classes.names": ["benign", "atypical", "malignant"], "submission.form": "probabilities",
            "submission.columns": ["prob_benign", "prob_atypical", "prob_malignant"], "submission.unit": "image",
        },
        absent=["columns.patient"],
    ),
    "nodes": FormOfData(
        nodes,
        {
            "files.slide": "{split}/{image_id}.tif", "classes.names": ["normal", "tumor"], "columns.label": "label",
            "submission.form": "probability", "submission.columns": ["p"], "submission.id": "image",
        },
    ),
    "patients": FormOfData(
        patients,
        {
            "files.slide": "{split}/{patient_id}/{image_id}.tif", "columns.image": "slide",
            "columns.patient": "patient", "columns.label": "subtype", "submission.id": "patient",
            "submission.unit": "patient",
            "classes.names": ["luminal", "basal"], "submission.form": "probabilities",
        },
    ),
    "scanners": FormOfData(
        scanners,
        {
            "files.slide": ["aperio/{image_id}.svs", "hamamatsu/{image_id}.ndpi"], "columns.label": "stage",
            "classes.names": [1, 2, 3, 4], "submission.rule": "cut_points",
        },
    ),
    "apart": FormOfData(
        apart,
        {
            "files.labels": "train_labels.csv", "files.slide": "slides/{hospital}/{image_id}.tif",
            "columns.center": "hospital", "columns.label": "organ_label", "classes.names": ["colon", "lung", "skin"],
            "submission.form": "label", "submission.rule": "argmax",
        },
    ),
    "semicolons": FormOfData(
        semicolons,
        {
            "files.slide": "{split}_slides/wsi_{image_id}.tif", "columns.label": "outcome",
            "classes.names": ["no", "yes"], "submission.form": "probability", "submission.columns": ["risk"],
        },
    ),
    "listed": FormOfData(
        listed,
        {
            "files.slide": "slides/{image_id}.svs", "columns.image": "slide_id", "columns.patient": "case_id",
            "columns.center": "site", "submission.unit": "image", "submission.form": "probabilities",
        },
    ),
    "folders": FormOfData(
        folders,
        {
            "columns.label": "class", "classes.names": ["a", "b", "c"], "submission.form": "probabilities",
            "submission.unit": "image",
        },
    ),
}  # fmt: skip
