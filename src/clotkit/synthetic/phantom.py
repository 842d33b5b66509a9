"""Write a synthetic split in the exact shape of a competition's: tables, sample submission and slides.

The slides have the statistics of real ones. Nothing here names a competition, a class or a column: they come from the
`Competition`. Every slide is drawn from its own name alone, so the same arguments give the same bytes.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from clotkit.competitions import UNKNOWN, Competition, load_competition
from clotkit.errors import UsageError
from clotkit.files import atomic_write, atomic_write_json, atomic_write_text
from clotkit.progress import Log
from clotkit.splits import SYNTHETIC as MARKER
from clotkit.synthetic.folder import make_folder, remove_inside, write_table
from clotkit.synthetic.phantom_patients import SPLITS, Patient, draw_patients, image_id_of
from clotkit.synthetic.phantom_pixels import Painter
from clotkit.synthetic.phantom_sizes import SCALES, fixed_size, slide_sizes
from clotkit.synthetic.phantom_tissue import TILE_PX, SlidePlan, generator, slide_plan, tissue_mask

__all__ = ["SlidePlan", "read_plans", "slide_plan", "tissue_mask", "write_split"]

SOFTWARE = "clotkit phantom, synthetic"  # the TIFF tag of every slide
README = (
    "A synthetic split made by `clotkit phantom`: no patient's data, no real slide. Tables and files have the shape of "
    'the competition "{title}"; {marker} has the ground truth of each slide.\n'
)
MAX_SEPARATION = 4.0
MAX_SLIDES = 10_000

CLASS_SHIFT = 0.18  # of the red share, at separation 1, from the middle to the outermost class
PATIENT_SD, SLIDE_SD = 0.18, 0.05  # of the red share; at separation 1 it separates two classes with AUC 0.91
BYTES_OF_TILE = 40_000  # of a tissue tile, 49,152 raw; the largest seen has 36,099
CLASSIC_BYTES = 2**32 - 2**25  # maximum expected size of a classic TIFF; larger files are BigTIFF


def write_split(
    out: Path,
    split: str,
    slides: int,
    seed: int,
    competition: Competition,
    *,
    size: str = "small",
    separation: float = 1.0,
    log: Log,
) -> None:
    """Write a synthetic split into the folder `out`, file by file, the table last.

    If `out` holds the same split of a phantom, it is replaced; its other split stays.

    Args:
        out: The folder to write.
        split: train or test.
        slides: Number of slides.
        seed: Seed of every random draw.
        competition: Names the tables, columns, classes and ids.
        size: small (an eighth of the real sides), real, or WxH in px for all slides.
        separation: 0 makes the classes alike, 1 separates patients with AUC 0.9; MAX_SEPARATION is the maximum.
        log: Called with one line per slide.

    Raises:
        UsageError: An argument is out of its bounds, or the folder holds something else.
        ConfigError: No ids can be made for the competition.
    """
    _check(split, slides, size, separation)
    patients = draw_patients(split, slides, seed, competition)
    real = load_competition().sizes if competition.sizes == UNKNOWN else competition.sizes
    sizes = iter(slide_sizes(size, slides, generator(seed, split, "sizes"), real))
    rows = [(patient, number) for patient in patients for number in range(patient.slides)]
    plans = {}
    for patient, number in rows:
        image_id = image_id_of(competition, patient, number)
        red_share = _red_share(seed, split, separation, patient, image_id, len(competition.classes.names))
        plans[image_id] = slide_plan(seed, split, image_id, *next(sizes), red_share=red_share)
    splits = _prepare_folder(out, split, competition)
    settings = {"seed": seed, "size": size, "separation": separation, "linear_scale": SCALES.get(size, 1.0)}
    splits[split] = settings | _truth(patients, plans, competition)
    # The marker comes first: the next run may replace the folder that an interrupted run leaves.
    atomic_write_json(out / MARKER, {"synthetic": True, "competition": competition.slug, "splits": splits})
    atomic_write_text(out / "README.txt", README.format(title=competition.title, marker=MARKER))
    for image_id, plan in plans.items():
        _write_slide(competition.slide_path(out, split, image_id), plan, log)
    _write_tables(out, split, rows, competition)
    log(f"{out}: a synthetic {split} split, {len(rows)} slides of {len(patients)} patients")


def read_plans(out: Path) -> dict[str, SlidePlan]:
    """Return the plans of a phantom's slides by image id, from its phantom.json, for `tissue_mask`."""
    splits = json.loads((out / MARKER).read_text(encoding="utf-8"))["splits"]
    return {
        image_id: slide_plan(
            truth["seed"], split, image_id, entry["width_px"], entry["height_px"], red_share=entry["red_share"]
        )
        for split, truth in splits.items()
        for image_id, entry in truth["slides"].items()
    }


def _check(split: str, slides: int, size: str, separation: float) -> None:
    if split not in SPLITS:
        raise UsageError(f"split is {split!r}; known: {', '.join(SPLITS)}")
    if not 1 <= slides <= MAX_SLIDES:
        raise UsageError(f"slides is {slides}; allowed: 1 to {MAX_SLIDES}")
    if not 0 <= separation <= MAX_SEPARATION:
        raise UsageError(f"separation is {separation}; allowed: 0 (classes alike) to {MAX_SEPARATION:g}")
    if size not in SCALES:
        fixed_size(size)


def _red_share(seed: int, split: str, separation: float, patient: Patient, image_id: str, classes: int) -> float:
    """Draw the share of red cells in a slide's tissue, from its class, its patient and itself."""
    along = patient.label / (classes - 1)  # 0: the first class, red; 1: the last, fibrin
    share = 0.5 + separation * CLASS_SHIFT * (1 - 2 * along)
    share += generator(seed, split, patient.id, "red").normal(0, PATIENT_SD)
    share += generator(seed, split, image_id, "red").normal(0, SLIDE_SD)
    return round(float(np.clip(share, 0.05, 0.95)), 6)


def _truth(patients: list[Patient], plans: dict[str, SlidePlan], competition: Competition) -> dict[str, Any]:
    return {
        "labels": {patient.id: competition.classes.names[patient.label] for patient in patients},
        "slides": {
            image_id: {
                "width_px": plan.width_px,
                "height_px": plan.height_px,
                "background": list(plan.background),
                "tissue_share": plan.tissue_share,
                "sections": plan.sections,
                "red_share": plan.red_share,
            }
            for image_id, plan in plans.items()
        },
    }


def _prepare_folder(out: Path, split: str, competition: Competition) -> dict[str, Any]:
    """Create the folder `out`, or remove `split` from the phantom in it; return the marker's other splits.

    Raises:
        UsageError: The folder holds anything but a phantom of this competition.
    """
    if not make_folder(out):
        return {}
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        if (marker["synthetic"], marker["competition"]) != (True, competition.slug):
            raise ValueError("not a phantom of this competition")
        splits = {str(name): dict(truth) for name, truth in marker["splits"].items()}
        images = [str(image_id) for image_id in splits.pop(split, {"slides": {}})["slides"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{out} is not empty and holds no phantom split of {competition.slug} ({MARKER}); name another folder"
        ) from error
    sample = [out / competition.files.sample] if split == "test" else []
    slides = [competition.slide_path(out, split, image_id) for image_id in images]
    remove_inside(out, [competition.table_path(out, split), *sample, *slides])
    return splits


def _write_slide(path: Path, plan: SlidePlan, log: Log) -> None:
    """Write one slide as a tiled TIFF: one level, deflate with predictor, one tile in memory at a time."""
    began = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    painter = Painter(plan)
    busy = int(np.count_nonzero(painter.kind))
    big = busy * BYTES_OF_TILE + painter.kind.size * 400 > CLASSIC_BYTES
    with atomic_write(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=big, byteorder="<") as tiff:
        tiff.write(
            painter.tiles(),
            shape=(plan.height_px, plan.width_px, 3),
            dtype=np.uint8,
            tile=(TILE_PX, TILE_PX),
            photometric="rgb",
            compression="adobe_deflate",
            predictor=2,
            resolution=(10, 10),  # px per cm: as meaningless as in the real slides
            resolutionunit="CENTIMETER",
            software=SOFTWARE,
            metadata=None,
        )
    log(
        f"{path.name}: {plan.width_px} x {plan.height_px} px, tissue {plan.tissue_share:.1%}, "
        f"{path.stat().st_size / 1e6:.1f} MB, {time.monotonic() - began:.1f} s"
    )


def _write_tables(out: Path, split: str, rows: list[tuple[Patient, int]], competition: Competition) -> None:
    columns, classes = competition.columns, competition.classes
    header = [columns.image, columns.center, columns.patient, columns.number]
    body = [[image_id_of(competition, patient, number), patient.center, patient.id, number] for patient, number in rows]
    if split == "train":
        header.append(columns.label)
        body = [[*line, classes.names[patient.label]] for line, (patient, _) in zip(body, rows, strict=True)]
    else:
        sample = [[name, *classes.fallback] for name in sorted({patient.id for patient, _ in rows})]
        write_table(out / competition.files.sample, competition.header, sample)
    write_table(competition.table_path(out, split), header, sorted(body, key=lambda line: str(line[0])))
