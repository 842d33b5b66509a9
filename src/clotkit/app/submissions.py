"""A submission that somebody drops: what is wrong with it, how it is spread, how it differs from another one."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from clotkit.app import decode
from clotkit.app.text import shown
from clotkit.app.work import read_one, written
from clotkit.competitions import Competition
from clotkit.errors import ClotkitError, SubmissionError
from clotkit.metric import normalised
from clotkit.scoring.submission import Verdict
from clotkit.units import MB
from clotkit.workers import Limits, Task

LIMITS = Limits(slide_s=20.0, memory_mb=512)
MOST_MB = 8  # of one file
WORST = 20  # rows of the difference that are shown
Data = bytes | memoryview


@dataclass(frozen=True)
class Difference:
    """Two files beside each other: patients in both, the mean and largest change of a probability, the worst rows."""

    patients: int
    only_one: int
    mean: float
    largest: float
    worst: list[dict[str, Any]]


def check(
    given: Data, sample: Data | None, other: Data | None, competition: Competition
) -> tuple[Verdict, Verdict | None]:
    """Check a submission, and another one. Raises SubmissionError where a file is too large or cannot be read."""
    for data in (given, sample, other):
        if data is not None and len(data) > MOST_MB * MB:
            raise SubmissionError(f"{len(data) / MB:,.0f} MB are no submission; at most {MOST_MB} MB are read")
    with written({decode.SUBMISSION: given, decode.SAMPLE: sample, decode.OTHER: other}) as folder:
        try:
            read = read_one(Task("submission", folder, ()), partial(decode.submission, competition=competition), LIMITS)
        except ClotkitError as error:
            raise SubmissionError(shown(str(error).replace(f"{folder}/", "").replace("the file/", ""), 400)) from error
    found = {name: _checked(raw, competition) for name, raw in read.facts.items()}
    return found[decode.SUBMISSION], found.get(decode.OTHER)


def _checked(raw: Any, competition: Competition) -> Verdict:
    clip = competition.metric.clip
    rows = {patient: normalised(row, clip) for patient, row in raw["rows"].items()} if not raw["problems"] else {}
    problems = [replace(problem, text=shown(problem.text, 300)) for problem in raw["problems"]]
    return Verdict(problems, raw["notes"], {k: list(v) for k, v in rows.items()})


def spread(checked: Verdict, index: int, bins: int = 20) -> list[tuple[str, int]]:
    """How many patients have which probability of a class: (from, patients) for each of `bins` steps of 0 to 1."""
    counts, edges = np.histogram([row[index] for row in checked.rows.values()], bins=bins, range=(0.0, 1.0))
    return [(f"{edge:.2f}", int(count)) for edge, count in zip(edges, counts, strict=False)]


def difference(one: Verdict, other: Verdict, competition: Competition) -> Difference:
    """How two valid files differ. Raises SubmissionError where they have no patient in common."""
    both = [patient for patient in one.rows if patient in other.rows]
    if not both:
        raise SubmissionError("the two files have no patient in common; give files for the same sample")
    first, second = (np.array([checked.rows[patient] for patient in both]) for checked in (one, other))  # [n, C]
    gaps = np.abs(first - second).max(axis=1)  # [n]
    worst = [_row(both[at], first[at], second[at], competition) for at in np.argsort(-gaps, kind="stable")[:WORST]]
    only_one = len(set(one.rows) ^ set(other.rows))
    return Difference(len(both), only_one, float(gaps.mean()), float(gaps.max()), worst)


def _row(patient: str, first: Any, second: Any, competition: Competition) -> dict[str, Any]:
    named: dict[str, Any] = {"patient": patient}
    for name, a, b in zip(competition.classes.names, first, second, strict=True):
        named |= {name: round(float(a), 4), f"{name}, other file": round(float(b), 4)}
    return named
