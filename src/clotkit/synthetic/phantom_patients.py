"""Draw the patients of a synthetic split: ids, labels, centres and numbers of slides."""

import hashlib
import re
import string
import zlib
from dataclasses import dataclass

import numpy as np

from clotkit.competitions import Competition
from clotkit.errors import ConfigError
from clotkit.synthetic.phantom_tissue import generator

SPLITS = ("train", "test")
SLIDES_OF_PATIENT = (543, 68, 13, 4, 4)  # numbers of patients with 1, 2, 3, 4, 5 slides
SLIDES_OF_CENTER = (54, 29, 49, 114, 38, 38, 99, 16, 16, 44, 257)  # slides of centres 1 to 11
PATIENT_ID, IMAGE_ID = "[0-9a-f]{6}", "[0-9a-f]{8}"  # ids of a competition that has no form of them
OUTLIER_SHARE = 0.15  # of the patients of a test split whose class train lacks


@dataclass(frozen=True)
class Patient:
    """One synthetic patient."""

    id: str
    center: int  # from 1
    label: int  # index in the competition's classes; their number for the class that train lacks
    slides: int  # number of slides


def draw_patients(split: str, slides: int, seed: int, competition: Competition) -> list[Patient]:
    """Return the patients of a split, sorted by id, with `slides` slides in all.

    In a competition without patients each slide is one of its own, and their ids are the slides'.
    """
    rng = generator(seed, split, "patients")
    has_patients = bool(competition.columns.patient or competition.ids.image)
    counts = _slide_counts(slides, rng) if has_patients else [1] * slides
    labels = rng.permutation(stratified_labels(len(counts), _shares(split, competition)))
    share = np.array(SLIDES_OF_CENTER) / sum(SLIDES_OF_CENTER)
    centers = 1 + rng.choice(len(share), len(counts), p=share)
    pattern = competition.ids.patient or PATIENT_ID if has_patients else IMAGE_ID
    names = patient_ids(split, len(counts), rng, pattern)
    return [
        Patient(name, int(center), int(label), count)
        for name, center, label, count in zip(names, centers, labels, counts, strict=True)
    ]


def _slide_counts(slides: int, rng: np.random.Generator) -> list[int]:
    """Draw the number of slides of each patient."""
    share = np.array(SLIDES_OF_PATIENT) / sum(SLIDES_OF_PATIENT)
    counts: list[int] = []
    while sum(counts) < slides:
        counts.append(min(1 + int(rng.choice(len(share), p=share)), slides - sum(counts)))
    return counts


def _shares(split: str, competition: Competition) -> tuple[float, ...]:
    """Return the share of each class in a split, in a test split with that of the class that train lacks."""
    priors = competition.classes.priors
    if split == "train" or not competition.submission.outlier:
        return priors
    return (*priors, sum(priors) * OUTLIER_SHARE / (1 - OUTLIER_SHARE))


def stratified_labels(patients: int, priors: tuple[float, ...]) -> list[int]:
    """Return one class index per patient: the priors, rounded to whole patients.

    Each class has at least 1 patient, or 2 from 8 patients on. With fewer patients than classes, the likeliest classes
    come first.
    """
    expected = np.array(priors) / sum(priors) * patients
    counts = np.floor(expected).astype(int)
    for index in np.argsort(counts - expected, kind="stable")[: patients - counts.sum()]:
        counts[index] += 1
    least = 2 if patients >= 8 and patients >= 2 * len(priors) else 1
    for index in np.argsort(-expected, kind="stable"):
        while counts[index] < least and counts.max() > least:
            counts[counts.argmax()] -= 1
            counts[index] += 1
    return [index for index, count in enumerate(counts) for _ in range(count)]


def patient_ids(split: str, count: int, rng: np.random.Generator, pattern: str) -> list[str]:
    """Return `count` ids that match `pattern`, sorted.

    The first id drawn has digits only and leading zeros, if the pattern allows that. A checksum of an id decides its
    split, so that no seed gives train and test an id in common.

    Raises:
        ConfigError: The pattern is not of a supported form, or allows too few ids.
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
    for attempt in range(100 + 50 * count):
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
        if len(names) == count:
            return sorted(names)
    raise ConfigError(f"ids.patient is {pattern!r}: only {len(names)} of {count} different ids found; allow more")


def image_id_of(competition: Competition, patient: Patient, number: int) -> str:
    """Return the id of a patient's slide `number`, invented if the competition has no form of it."""
    if competition.ids.image:
        return competition.ids.image.format(patient=patient.id, number=number)
    if not competition.columns.patient:
        return patient.id
    return hashlib.sha256(f"{patient.id}/{number}".encode()).hexdigest()[:12]
