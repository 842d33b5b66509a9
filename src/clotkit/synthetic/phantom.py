"""Write a synthetic split in the exact shape of a competition's: tables, sample submission and slides.

The slides have the statistics of real ones. Nothing here names a competition, a class or a column: they come from the
`Competition`. Every slide is drawn from its own name alone, so the same arguments give the same bytes.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import UNKNOWN, Competition
from clotkit.errors import UsageError
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.progress import Log
from clotkit.splits import SYNTHETIC as MARKER
from clotkit.synthetic.folder import make_folder, remove_inside
from clotkit.synthetic.phantom_files import check_suffix, write_companion, write_slide
from clotkit.synthetic.phantom_patients import SPLITS, Patient, draw_patients
from clotkit.synthetic.phantom_sizes import DEFAULT_SIZES, SCALES, fixed_size, slide_sizes
from clotkit.synthetic.phantom_tables import PhantomRow, draw_rows, named_by_id, table_files, write_tables
from clotkit.synthetic.phantom_tissue import SlidePlan, generator, slide_plan, tissue_mask

__all__ = ["SlidePlan", "read_plans", "slide_plan", "tissue_mask", "write_split"]

README = (
    "A synthetic split made by `clotkit phantom`: no patient's data, no real slide. Tables and files have the shape of "
    'the competition "{title}"; {marker} has the ground truth of each slide.\n'
)
MAX_SEPARATION = 4.0
MAX_SLIDES = 10_000

CLASS_SHIFT = 0.18  # of the red share, at separation 1, from the middle to the outermost of two classes
MOST_SHIFT = 0.42  # of more than two; a larger separation has less spread within a class instead
PATIENT_SD, SLIDE_SD = 0.18, 0.05  # of the red share; at separation 1 it separates two classes with AUC 0.91


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
    check_suffix(competition.files.slide[0], competition.source)
    patients = draw_patients(split, slides, seed, competition)
    real = DEFAULT_SIZES if competition.sizes == UNKNOWN else competition.sizes
    sizes = slide_sizes(size, slides, generator(seed, split, "sizes"), real)
    rows = draw_rows(split, patients, competition)
    plans = {
        row.image_id: _plan(seed, split, row, sides, separation, len(competition.classes.names))
        for row, sides in zip(rows, sizes, strict=True)
    }
    splits = _prepare_folder(out, split, competition)
    settings = {"seed": seed, "size": size, "separation": separation, "linear_scale": SCALES.get(size, 1.0)}
    splits[split] = settings | _truth(patients, rows, plans, competition)
    # The marker comes first: the next run may replace the folder that an interrupted run leaves.
    atomic_write_json(out / MARKER, {"synthetic": True, "competition": competition.slug, "splits": splits})
    atomic_write_text(out / "README.txt", README.format(title=competition.title, marker=MARKER))
    for row in rows:
        _write_files(out, row, plans[row.image_id], log)
    write_tables(out, split, rows, competition)
    log(f"{out}: a synthetic {split} split, {len(rows)} slides of {len(patients)} patients")


def read_plans(out: Path) -> dict[str, SlidePlan]:
    """Return the plans of a phantom's slides by image id, from its phantom.json, for `tissue_mask`."""
    splits = json.loads((out / MARKER).read_text(encoding="utf-8"))["splits"]
    return {
        image_id: slide_plan(
            truth["seed"],
            split,
            image_id,
            entry["width_px"],
            entry["height_px"],
            red_share=entry["red_share"],
            is_outlier=entry.get("is_outlier", False),
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


def _plan(seed: int, split: str, row: PhantomRow, sides: tuple[int, int], separation: float, classes: int) -> SlidePlan:
    """Draw a slide of a row's class."""
    share = _red_share(seed, split, separation, row, classes)
    return slide_plan(seed, split, row.image_id, *sides, red_share=share, is_outlier=row.patient.label == classes)


def _red_share(seed: int, split: str, separation: float, row: PhantomRow, classes: int) -> float:
    """Draw the share of red cells in a slide's tissue, from its class, its patient and itself.

    The classes are evenly spaced, and those next to each other are as far apart as two classes alone.
    """
    along = row.patient.label / (classes - 1)  # 0: the first class, red; 1: the last, fibrin
    along = along if along <= 1 else 0.5  # the class that train lacks differs in its stain
    shift, spread = separation * CLASS_SHIFT, 1.0
    if classes > 2:
        wanted = 2 * shift
        shift = min(wanted, MOST_SHIFT)
        spread = 2 / (classes - 1) * (shift / wanted if wanted else 1.0)
    share = 0.5 + shift * (1 - 2 * along)
    share += generator(seed, split, row.patient.id, "red").normal(0, PATIENT_SD * spread)
    share += generator(seed, split, row.image_id, "red").normal(0, SLIDE_SD * spread)
    return round(float(np.clip(share, 0.05, 0.95)), 6)


def _truth(
    patients: list[Patient], rows: list[PhantomRow], plans: dict[str, SlidePlan], competition: Competition
) -> dict[str, Any]:
    return {
        "labels": {patient.id: competition.answers[patient.label] for patient in patients},
        "slides": {row.image_id: _slide_truth(row, plans[row.image_id], competition) for row in rows},
    }


def _slide_truth(row: PhantomRow, plan: SlidePlan, competition: Competition) -> dict[str, Any]:
    more: dict[str, Any] = {"facts": row.facts} if row.facts else {}
    more |= {} if named_by_id(competition) else {"files": [row.name, *row.fact_files]}
    more |= {"is_outlier": True} if plan.is_outlier else {}
    return {
        "width_px": plan.width_px,
        "height_px": plan.height_px,
        "background": list(plan.background),
        "tissue_share": plan.tissue_share,
        "sections": plan.sections,
        "red_share": plan.red_share,
        **more,
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
        slides = [
            Path(name)
            for image_id, entry in splits.pop(split, {"slides": {}})["slides"].items()
            for name in entry.get("files") or [competition.slide_path(Path(), split, str(image_id))]
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{out} is not empty and holds no phantom split of {competition.slug} ({MARKER}); name another folder"
        ) from error
    tables = map(Path, filter(None, table_files(split, competition)))
    remove_inside(out, [out / name for name in (*tables, *slides)])
    return splits


def _write_files(out: Path, row: PhantomRow, plan: SlidePlan, log: Log) -> None:
    """Write a slide and the files beside it."""
    path, began = out / row.name, time.monotonic()
    write_slide(path, plan)
    for name in row.fact_files:
        write_companion(out / name, plan)
    log(
        f"{path.name}: {plan.width_px} x {plan.height_px} px, tissue {plan.tissue_share:.1%}, "
        f"{path.stat().st_size / 1e6:.1f} MB, {time.monotonic() - began:.1f} s"
    )
