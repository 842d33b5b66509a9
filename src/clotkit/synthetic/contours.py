"""Draw synthetic double contours: pictures like an ultrasound of a joint, of no patient.

In an ultrasound picture of cartilage the surface of the bone is one bright line. If crystals lie on the cartilage,
there is a second line above it, weaker and nearly parallel: the double contour sign of gout (Grassi et al., Semin
Arthritis Rheum 36, 2006). Class `yes` has the second line; class `no` has other bright structures in its place.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import UsageError
from clotkit.files import atomic_write, atomic_write_json
from clotkit.progress import Log
from clotkit.synthetic.folder import make_folder, remove_inside, write_table

SIDE_PX = 192
CLASSES = ("no", "yes")
SHARE = 1 / 6  # of the pictures that are yes
PICTURES = (12, 100_000)  # allowed numbers
MAX_PICTURES_OF_PATIENT = 4
MARKER = "contours.json"  # marks a folder whose pictures are drawn
TABLE = "metadata.csv"

Grey = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Patient:
    """The parameters that the pictures of one patient share; lengths in px, intensities from 0 to 1."""

    id: str
    double: bool  # has the second line: class yes
    depth: float  # of the bone, at the middle column
    tilt: float  # of the bone, px down per px across
    bow: float  # of the bone's arc, px at the sides
    thickness: float  # standard deviation of the line's profile
    level: float  # intensity of the line
    decay: float  # of the light with depth, over the picture's height
    grain: float  # size of the speckle
    gap: float  # between the two lines
    second: float  # intensity of the second line over the first one's


def write_contours(out: Path, pictures: int, seed: int, log: Log) -> None:
    """Write drawn pictures into the folder `out`: no/*.png, yes/*.png (grey, 192 x 192), TABLE and MARKER.

    About one in six is yes. A patient has one to four pictures of one class and parameters of its own. The table has
    the columns file and patient. The same arguments give the same bytes; earlier pictures in `out` are replaced.

    Args:
        out: The folder to write.
        pictures: Number of pictures.
        seed: Seed of every random draw, 0 or more.
        log: Called with a summary line.

    Raises:
        UsageError: A number is out of its bounds, or the folder holds something else.
    """
    if not PICTURES[0] <= pictures <= PICTURES[1]:
        raise UsageError(f"{pictures} pictures; allowed: {PICTURES[0]} to {PICTURES[1]}")
    if seed < 0:
        raise UsageError(f"the seed is {seed}; allowed: 0 and above")
    _prepare_folder(out)
    plan = list(_plan(pictures, seed))
    files = [f"{CLASSES[patient.double]}/{patient.id}_{number}.png" for patient, number in plan]
    # The marker comes first: the next run may replace the folder that an interrupted run leaves.
    atomic_write_json(out / MARKER, {"synthetic": True, "seed": seed, "pictures": pictures, "files": files})
    for name in CLASSES:
        (out / name).mkdir(exist_ok=True)
    for file, (patient, number) in zip(files, plan, strict=True):
        _write_png(out / file, _draw(patient, _generator(seed, "picture", patient.id, number)))
    rows = [(file, patient.id) for file, (patient, _) in zip(files, plan, strict=True)]
    write_table(out / TABLE, ("file", "patient"), rows)
    double = sum(patient.double for patient, _ in plan)
    patients = len({patient.id for patient, _ in plan})
    log(f"{out}: {pictures} synthetic pictures of {patients} patients, {double} of them yes")


def _prepare_folder(out: Path) -> None:
    """Create the folder `out`, or remove the pictures drawn there before."""
    if not make_folder(out):
        return
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        pictures = [out / str(file) for file in marker["files"] if marker["synthetic"] is True]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{out} is not empty and holds no synthetic contours ({MARKER}); name another folder"
        ) from error
    remove_inside(out, [*pictures, out / TABLE])


def _generator(*words: Any) -> np.random.Generator:
    """Return a random generator for a name made of `words`."""
    return np.random.default_rng([*" ".join(map(str, words)).encode()])


def _plan(pictures: int, seed: int) -> Iterator[tuple[Patient, int]]:
    """Yield each picture's patient and its number among the patient's pictures.

    A patient is yes when the share of yes has fallen behind SHARE.
    """
    rng = _generator(seed, "patients")
    done, double, patients = 0, 0, 0
    while done < pictures:
        count = min(int(rng.integers(1, MAX_PICTURES_OF_PATIENT + 1)), pictures - done)
        # Halfway through a patient's pictures, the share of yes is closest to SHARE.
        is_double = double + count / 2 < (done + count) * SHARE
        patient = _patient(f"p{patients:04d}", is_double, rng)
        yield from ((patient, number) for number in range(count))
        done, double, patients = done + count, double + count * is_double, patients + 1


def _patient(name: str, is_double: bool, rng: np.random.Generator) -> Patient:
    return Patient(
        id=name,
        double=is_double,
        depth=rng.uniform(0.45, 0.75) * SIDE_PX,
        tilt=rng.normal(0, 0.08),
        bow=rng.uniform(-6, 30),
        thickness=rng.uniform(1.2, 2.4),
        level=rng.uniform(0.75, 1.05),
        decay=rng.uniform(0.6, 1.6),
        grain=rng.uniform(0.8, 1.6),
        gap=rng.uniform(8, 16),
        second=rng.uniform(0.5, 0.9),
    )


def _draw(patient: Patient, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one picture, uint8[SIDE_PX, SIDE_PX]: light times speckle, compressed as a display does."""
    bone = _arc(patient, rng)
    light = _tissue(patient, bone, rng)
    light += _line(bone, patient.thickness, patient.level * _along(rng, 0.75, 1.05))
    if patient.double:
        above = bone - patient.gap * rng.uniform(0.85, 1.15) + _waves(rng, 1.5)
        strength = patient.level * patient.second * _along(rng, 0.7, 1.1) * _broken(rng, 0.6)
        light += _line(above, patient.thickness * rng.uniform(0.7, 1.0), strength)
    else:
        light += DISTRACTORS[int(rng.integers(len(DISTRACTORS)))](patient, bone, rng)
    intensity = light * _speckle(patient, rng) * rng.uniform(0.85, 1.15)
    return np.rint(255 * np.clip(intensity, 0, 1) ** 0.8).astype(np.uint8)


def _arc(patient: Patient, rng: np.random.Generator) -> Grey:
    """Return the bone's depth in px for each column, [SIDE_PX]."""
    across = np.linspace(-1, 1, SIDE_PX)
    middle = rng.normal(0, 0.15)
    tilt = patient.tilt + rng.normal(0, 0.03)
    arc = patient.depth + rng.normal(0, 5) + tilt * SIDE_PX / 2 * across + patient.bow * (across - middle) ** 2
    return np.asarray(arc + _waves(rng, 2.0), np.float64)


def _waves(rng: np.random.Generator, height_px: float) -> Grey:
    """Return a smooth random curve, [SIDE_PX], with a standard deviation of about `height_px`."""
    from scipy.ndimage import gaussian_filter1d

    course = gaussian_filter1d(rng.normal(size=SIDE_PX + 120), 20)[60:-60]
    return np.asarray(height_px * course / max(float(course.std()), 1e-6), np.float64)


def _along(rng: np.random.Generator, low: float, high: float) -> Grey:
    """Return a strength that changes smoothly along a line, [SIDE_PX]."""
    return np.clip((low + high) / 2 + _waves(rng, (high - low) / 2), low, high)


def _broken(rng: np.random.Generator, share: float) -> Grey:
    """Return 1 along a line and 0 in a gap or two, [SIDE_PX]; about `share` of the lines have gaps."""
    from scipy.ndimage import gaussian_filter1d

    whole = np.ones(SIDE_PX)
    if rng.random() < share:
        for _ in range(int(rng.integers(1, 3))):
            start = int(rng.integers(0, SIDE_PX - 40))
            whole[start : start + int(rng.integers(12, 40))] = 0
    return np.asarray(gaussian_filter1d(whole, 2), np.float64)


def _line(course: Grey, thickness: float, strength: Grey | float) -> Grey:
    """Return a bright line along a curve, [SIDE_PX, SIDE_PX]."""
    rows = np.arange(SIDE_PX)[:, None]
    return np.asarray(strength * np.exp(-(((rows - course) / thickness) ** 2) / 2), np.float64)


def _tissue(patient: Patient, bone: Grey, rng: np.random.Generator) -> Grey:
    """Return soft tissue that dims with depth, dark cartilage and the bone's shadow, [SIDE_PX, SIDE_PX]."""
    from scipy.ndimage import gaussian_filter

    rows = np.arange(SIDE_PX)[:, None]
    layers = gaussian_filter(rng.normal(size=(SIDE_PX, SIDE_PX)), (3, 25))
    tissue = (0.28 + 0.1 * layers / layers.std()) * np.exp(-patient.decay * rows / SIDE_PX)
    tissue *= 1 - 0.6 / (1 + np.exp(-(rows - bone + 1.3 * patient.gap) / 2))
    tissue *= 1 - 0.8 / (1 + np.exp(-(rows - bone - 3) / 2))
    skin = _line(np.full(SIDE_PX, 5.0) + _waves(rng, 1.0), 2.0, 0.7)
    return np.asarray(np.clip(tissue, 0.02, None) + skin, np.float64)


def _speckle(patient: Patient, rng: np.random.Generator) -> Grey:
    """Return multiplicative speckle of mean 1, [SIDE_PX, SIDE_PX].

    It is the length of a sum of random phases (Rayleigh).
    """
    from scipy.ndimage import gaussian_filter

    real, imaginary = (gaussian_filter(rng.normal(size=(SIDE_PX, SIDE_PX)), patient.grain) for _ in range(2))
    length = np.hypot(real, imaginary)
    return np.asarray(0.45 + 0.55 * length / length.mean(), np.float64)


def _nothing(patient: Patient, bone: Grey, rng: np.random.Generator) -> Grey:
    return np.zeros((SIDE_PX, SIDE_PX))


def _band(patient: Patient, bone: Grey, rng: np.random.Generator) -> Grey:
    """Return a short bright band near the bone that is not parallel to it."""
    across = np.arange(SIDE_PX) - rng.uniform(0.2, 0.8) * SIDE_PX
    slope = rng.choice((-1, 1)) * rng.uniform(0.35, 0.8)
    course = bone.mean() - rng.uniform(14, 30) + slope * across
    length = rng.uniform(12, 25)
    return _line(course, patient.thickness, patient.level * np.exp(-((across / length) ** 4)))


def _blob(patient: Patient, bone: Grey, rng: np.random.Generator) -> Grey:
    """Return a bright spot above the bone."""
    column = int(rng.uniform(0.2, 0.8) * SIDE_PX)
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    row, width, height = bone[column] - rng.uniform(9, 30), rng.uniform(4, 9), rng.uniform(3, 6)
    distance = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2
    return np.asarray(patient.level * np.exp(-distance / 2), np.float64)


def _layer(patient: Patient, bone: Grey, rng: np.random.Generator) -> Grey:
    """Return a bright layer that approaches the bone at one side."""
    across = np.linspace(0, 1, SIDE_PX)[:: int(rng.choice((-1, 1)))]
    course = bone - rng.uniform(6, 10) - rng.uniform(45, 90) * across**0.8
    return _line(course + _waves(rng, 1.5), patient.thickness, patient.level * patient.second * _along(rng, 0.7, 1.1))


DISTRACTORS: tuple[Callable[[Patient, Grey, np.random.Generator], Grey], ...] = (_nothing, _band, _blob, _layer)


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    from PIL import Image

    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=6)
