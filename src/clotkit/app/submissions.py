"""Check an uploaded submission, count its probabilities, and compare it with another one."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from clotkit.app import untrusted
from clotkit.app.escaping import LONGEST_REASON, printable
from clotkit.app.processes import NAME_OF_FILE, run_one, temporary_files
from clotkit.competitions import Competition
from clotkit.errors import ClotkitError, SubmissionError
from clotkit.metric import normalised
from clotkit.submission.checking import Verdict
from clotkit.units import MB
from clotkit.workers import Limits, Task

LIMITS = Limits(slide_s=20.0, memory_mb=512)
MOST_MB = 8  # size of one file
MOST_ROWS = 20  # rows of the difference that are shown
LONGEST_PROBLEM = 300  # characters of a problem
Data = bytes | memoryview


@dataclass(frozen=True)
class Difference:
    """The difference of two valid submissions."""

    patients: int  # patients in both
    only_one: int  # patients in one of them only
    mean: float  # mean over the patients of the largest difference of a probability
    largest: float  # largest difference of a probability
    worst: list[dict[str, Any]]  # rows with the largest differences


def check(
    submission: Data, sample: Data | None, other: Data | None, competition: Competition
) -> tuple[Verdict, Verdict | None]:
    """Check a submission and an optional second one. Raises SubmissionError for a file it cannot read."""
    for data in (submission, sample, other):
        if data is not None and len(data) > MOST_MB * MB:
            raise SubmissionError(
                f"{len(data) / MB:,.0f} MB is too large for a submission; at most {MOST_MB} MB are accepted"
            )
    files = {untrusted.SUBMISSION: submission, untrusted.SAMPLE: sample, untrusted.OTHER: other}
    with temporary_files(files) as folder:
        task = Task("submission", folder, ())
        try:
            result = run_one(task, partial(untrusted.submission, competition=competition), LIMITS)
        except ClotkitError as error:
            sentence = str(error).replace(f"{folder}/", "").replace(f"{NAME_OF_FILE}/", "")
            raise SubmissionError(printable(sentence, LONGEST_REASON)) from error
    verdicts = {name: _verdict(raw, competition) for name, raw in result.facts.items()}
    return verdicts[untrusted.SUBMISSION], verdicts.get(untrusted.OTHER)


def _verdict(raw: Any, competition: Competition) -> Verdict:
    clip = competition.metric.clip
    rows = {patient: normalised(row, clip) for patient, row in raw["rows"].items()} if not raw["problems"] else {}
    problems = [replace(problem, text=printable(problem.text, LONGEST_PROBLEM)) for problem in raw["problems"]]
    return Verdict(problems, raw["notes"], {k: list(v) for k, v in rows.items()})


def histogram(verdict: Verdict, index: int, bins: int = 20) -> list[tuple[str, int]]:
    """Return the histogram of one class's probability, (lower edge, patients) for each bin from 0 to 1."""
    counts, edges = np.histogram([row[index] for row in verdict.rows.values()], bins=bins, range=(0.0, 1.0))
    return [(f"{edge:.2f}", int(count)) for edge, count in zip(edges, counts, strict=False)]


def difference(one: Verdict, other: Verdict, competition: Competition) -> Difference:
    """Compare two valid submissions. Raises SubmissionError if they have no patient in common."""
    both = [patient for patient in one.rows if patient in other.rows]
    if not both:
        raise SubmissionError("the two files have no patient in common; give files for the same sample")
    first, second = (np.array([verdict.rows[patient] for patient in both]) for verdict in (one, other))  # [n, C]
    gaps = np.abs(first - second).max(axis=1)  # [n]
    worst = [_row(both[at], first[at], second[at], competition) for at in np.argsort(-gaps, kind="stable")[:MOST_ROWS]]
    only_one = len(set(one.rows) ^ set(other.rows))
    return Difference(len(both), only_one, float(gaps.mean()), float(gaps.max()), worst)


def _row(patient: str, first: Any, second: Any, competition: Competition) -> dict[str, Any]:
    named: dict[str, Any] = {"patient": patient}
    for name, a, b in zip(competition.classes.names, first, second, strict=True):
        named |= {name: round(float(a), 4), f"{name}, other file": round(float(b), 4)}
    return named
