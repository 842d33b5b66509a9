"""A synthetic split in the exact shape of a competition's: tables, sample, and slides of the real statistics.

Nothing here names a competition, a class or a column: they come from the `Competition`. Every slide is drawn from its
own name alone, so the same arguments give the same bytes.
"""

import csv
import io
import json
import re
import string
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from clotkit.competitions import UNKNOWN, Competition, Sizes, load_competition
from clotkit.errors import ConfigError, UsageError
from clotkit.files import atomic_write, atomic_write_json, atomic_write_text
from clotkit.splits import SYNTHETIC as MARKER
from clotkit.synthetic.phantom_pixels import Painter
from clotkit.synthetic.phantom_sizes import draw_sides
from clotkit.synthetic.phantom_tissue import TILE_PX, SlidePlan, generator, slide_plan, tissue_mask

__all__ = ["SlidePlan", "read_plans", "slide_plan", "tissue_mask", "write_split"]  # the rest is for this room alone

SPLITS = ("train", "test")
SOFTWARE = "clotkit phantom, synthetic"
README = (
    "A synthetic split made by `clotkit phantom`: no patient's data, no real slide. Tables and files have the shape of "
    'the competition "{title}"; {marker} tells the truth about each slide.\n'
)
SCALES = {"small": 1 / 8, "real": 1.0}
SIDE_PX = (256, 120_000)  # allowed in WxH
SEPARATION = 4.0  # at most
MAX_SLIDES = 10_000

SLIDES_OF_PATIENT = (543, 68, 13, 4, 4)  # patients with 1, 2, 3, 4, 5 slides
SLIDES_OF_CENTER = (54, 29, 49, 114, 38, 38, 99, 16, 16, 44, 257)  # centres 1 to 11

CLASS_SHIFT = 0.18  # of the red share, at separation 1, from the middle to the outermost class
PATIENT_SD, SLIDE_SD = 0.18, 0.05  # of the red share: at separation 1 it tells two classes apart with AUC 0.91
BYTES_OF_TILE = 40_000  # of tissue, 49,152 raw: above the largest seen (36,099)
CLASSIC_BYTES = 2**32 - 2**25  # above it BigTIFF


@dataclass(frozen=True)
class Patient:
    """One synthetic patient; `label` is an index into the competition's classes."""

    id: str
    center: int
    label: int
    slides: int


def write_split(
    out: Path,
    split: str,
    slides: int,
    seed: int,
    competition: Competition,
    *,
    size: str = "small",
    separation: float = 1.0,
    log: Callable[[str], None],
) -> None:
    """Write a synthetic split into the folder `out`, one file at a time, the table last; `log` gets a line a slide.

    `split` is train or test; `size` is small (an eighth of the real sides), real, or WxH in px for all slides.
    `separation` 0 makes the classes alike, 1 tells patients apart with AUC 0.9, 4 is the most.
    The same split of a phantom that stands in `out` is replaced, the other one stays. Raises UsageError for an argument
    out of its bounds or a folder that holds something else, ConfigError for a competition whose ids cannot be made.
    """
    _check(split, slides, size, separation)
    people = _draw_patients(split, slides, seed, competition)
    real = load_competition().sizes if competition.sizes == UNKNOWN else competition.sizes
    sizes = iter(_sizes(size, slides, generator(seed, split, "sizes"), real))
    rows = [(person, number) for person in people for number in range(person.slides)]
    plans = {}
    for person, number in rows:
        image_id = _image_id(competition, person, number)
        red_share = _red_share(seed, split, separation, person, image_id, len(competition.classes.names))
        plans[image_id] = slide_plan(seed, split, image_id, *next(sizes), red_share=red_share)
    splits = _take(out, split, competition)
    settings = {"seed": seed, "size": size, "separation": separation, "linear_scale": SCALES.get(size, 1.0)}
    splits[split] = settings | _truth(people, plans, competition)
    # The marker comes first: a run cut short leaves a folder that the next one may replace.
    atomic_write_json(out / MARKER, {"synthetic": True, "competition": competition.slug, "splits": splits})
    atomic_write_text(out / "README.txt", README.format(title=competition.title, marker=MARKER))
    for image_id, plan in plans.items():
        _write_slide(competition.slide_path(out, split, image_id), plan, log)
    _write_tables(out, split, rows, competition)
    log(f"{out}: a synthetic {split} split, {len(rows)} slides of {len(people)} patients")


def read_plans(out: Path) -> dict[str, SlidePlan]:
    """The plans of a phantom's slides by image id, from its phantom.json: for `tissue_mask`."""
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
    if not 0 <= separation <= SEPARATION:
        raise UsageError(f"separation is {separation}; allowed: 0 (classes alike) to {SEPARATION:g}")
    if size not in SCALES:
        _fixed_size(size)


def _fixed_size(size: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", size)
    sides = tuple(map(int, found.groups())) if found else ()
    low, high = SIDE_PX
    if not sides or not all(low <= side <= high for side in sides):
        raise UsageError(f"size is {size!r}; allowed: {', '.join(SCALES)}, or WIDTHxHEIGHT of {low} to {high} px each")
    return sides[0], sides[1]


def _sizes(size: str, slides: int, rng: np.random.Generator, real: Sizes) -> list[tuple[int, int]]:
    """Width and height of each slide, px: stratified quantiles of the real slides in random order."""
    if size not in SCALES:
        return [_fixed_size(size)] * slides
    scale = SCALES[size]
    return [(round(width * scale), round(height * scale)) for width, height in draw_sides(real, slides, rng)]


def _draw_patients(split: str, slides: int, seed: int, competition: Competition) -> list[Patient]:
    """The patients of a split, sorted by id, with `slides` slides in all."""
    rng = generator(seed, split, "patients")
    share = np.array(SLIDES_OF_PATIENT) / sum(SLIDES_OF_PATIENT)
    counts: list[int] = []
    while sum(counts) < slides:
        counts.append(min(1 + int(rng.choice(len(share), p=share)), slides - sum(counts)))
    labels = rng.permutation(_labels(len(counts), competition.classes.priors))
    share = np.array(SLIDES_OF_CENTER) / sum(SLIDES_OF_CENTER)
    centers = 1 + rng.choice(len(share), len(counts), p=share)
    names = _patient_ids(split, len(counts), rng, competition.ids.patient)
    return [
        Patient(name, int(center), int(label), count)
        for name, center, label, count in zip(names, centers, labels, counts, strict=True)
    ]


def _labels(patients: int, priors: tuple[float, ...]) -> list[int]:
    """A class index a patient: the priors, rounded to whole patients, each class at least 1, or 2 from 8 patients on.

    With fewer patients than classes the likeliest classes come first.
    """
    wanted = np.array(priors) / sum(priors) * patients
    counts = np.floor(wanted).astype(int)
    for index in np.argsort(counts - wanted, kind="stable")[: patients - counts.sum()]:
        counts[index] += 1
    least = 2 if patients >= 8 and patients >= 2 * len(priors) else 1
    for index in np.argsort(-wanted, kind="stable"):
        while counts[index] < least and counts.max() > least:
            counts[counts.argmax()] -= 1
            counts[index] += 1
    return [index for index, count in enumerate(counts) for _ in range(count)]


def _patient_ids(split: str, wanted: int, rng: np.random.Generator, pattern: str) -> list[str]:
    """`wanted` ids that match `pattern`, sorted; the first drawn has digits only and leading zeros, if that can be.

    A checksum of the id decides its split: no seed gives train and test an id in common.
    Raises ConfigError when the pattern is too strange or too narrow.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"ids.patient is {pattern!r}: not a regular expression: {error}") from error
    simple = re.fullmatch(r"(\[[^\]]+\])\{([0-9]+)\}", pattern)
    letters = [letter for letter in string.ascii_letters + string.digits if simple and re.fullmatch(simple[1], letter)]
    length = int(simple[2]) if simple and letters else 6
    digits = [letter for letter in letters if letter.isdigit()] or list(string.digits)
    names: list[str] = []
    for attempt in range(100 + 50 * wanted):
        if not names and "0" in digits and attempt < 50:
            drawn = rng.choice(digits, length)
            drawn[: min(2, length - 1)] = "0"
        else:
            drawn = rng.choice(letters or list("0123456789abcdef"), length)
        name = "".join(drawn)
        if not re.fullmatch(pattern, name):
            if simple and letters:
                continue
            raise ConfigError(f"ids.patient is {pattern!r}: no id for it can be made; use [characters]{{count}}")
        if zlib.crc32(name.encode()) % len(SPLITS) == SPLITS.index(split) and name not in names:
            names.append(name)
        if len(names) == wanted:
            return sorted(names)
    raise ConfigError(f"ids.patient is {pattern!r}: only {len(names)} of {wanted} different ids found; widen it")


def _image_id(competition: Competition, person: Patient, number: int) -> str:
    return competition.ids.image.format(patient=person.id, number=number)


def _red_share(seed: int, split: str, separation: float, person: Patient, image_id: str, classes: int) -> float:
    """How much of a slide's tissue is red cells: of its class, its patient and itself."""
    along = person.label / (classes - 1)  # 0: the first class, red; 1: the last, fibrin
    share = 0.5 + separation * CLASS_SHIFT * (1 - 2 * along)
    share += generator(seed, split, person.id, "red").normal(0, PATIENT_SD)
    share += generator(seed, split, image_id, "red").normal(0, SLIDE_SD)
    return round(float(np.clip(share, 0.05, 0.95)), 6)


def _truth(people: list[Patient], plans: dict[str, SlidePlan], competition: Competition) -> dict[str, Any]:
    return {
        "labels": {person.id: competition.classes.names[person.label] for person in people},
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


def _take(out: Path, split: str, competition: Competition) -> dict[str, Any]:
    """Make the folder `out`, or drop `split` from the phantom that stands there; what its marker says of other splits.

    Raises UsageError when it holds anything but a phantom of this competition.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; a phantom split needs a folder")
    out.mkdir(parents=True, exist_ok=True)
    if not any(out.iterdir()):
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
    stale = [competition.slide_path(out, split, image_id) for image_id in images]
    for path in (competition.table_path(out, split), *sample, *stale):
        if path.resolve().is_relative_to(out.resolve()):  # a marker that was tampered with reaches nothing outside
            path.unlink(missing_ok=True)
    return splits


def _write_slide(path: Path, plan: SlidePlan, log: Callable[[str], None]) -> None:
    """Paint one slide into a tiled TIFF: one level, deflate with predictor, never more than a tile in memory."""
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
            resolution=(10, 10),  # px per cm: what the real slides have, and as meaningless
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
    body = [[_image_id(competition, person, number), person.center, person.id, number] for person, number in rows]
    if split == "train":
        header.append(columns.label)
        body = [[*line, classes.names[person.label]] for line, (person, _) in zip(body, rows, strict=True)]
    else:
        sample = [[name, *classes.fallback] for name in sorted({person.id for person, _ in rows})]
        _publish_csv(out / competition.files.sample, competition.header, sample)
    _publish_csv(competition.table_path(out, split), header, sorted(body, key=lambda line: str(line[0])))


def _publish_csv(path: Path, header: Sequence[str], body: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *body])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text.getvalue())
