"""Check an uploaded submission, count its probabilities, and compare it with another one."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from clotkit.app import untrusted
from clotkit.app.escaping import LONGEST_REASON, printable
from clotkit.app.processes import NAME_OF_FILE, run_one, temporary_files
from clotkit.competitions import Competition, Form
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

    patients: int  # ids in both
    only_one: int  # ids in one of them only
    mean: float  # mean over the ids of the largest difference of a probability; of labels, the share that differs
    largest: float  # largest difference of a probability; 1 if labels differ
    worst: list[dict[str, Any]]  # rows with the largest differences, without those that are equal


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
    rows, labels = ({}, {}) if raw["problems"] else (dict(raw["rows"]), dict(raw["labels"]))
    if competition.submission.form is Form.PROBABILITIES:
        rows = {one: normalised(row, competition.metric.clip) for one, row in rows.items()}
    problems = [replace(problem, text=printable(problem.text, LONGEST_PROBLEM)) for problem in raw["problems"]]
    return Verdict(problems, raw["notes"], {one: list(row) for one, row in rows.items()}, labels)


def histogram(verdict: Verdict, index: int, bins: int = 20) -> list[tuple[str, int]]:
    """Return the histogram of one class's probability, (lower edge, rows) for each bin.

    It goes from 0 to 1, and further if a metric of ranks took numbers beyond.
    """
    values = [row[index] for row in verdict.rows.values()]
    counts, edges = np.histogram(values, bins=bins, range=(min(0.0, *values), max(1.0, *values)))
    return [(f"{edge:.2f}", int(count)) for edge, count in zip(edges, counts, strict=False)]


def difference(one: Verdict, other: Verdict, competition: Competition) -> Difference:
    """Compare two valid submissions. Raises SubmissionError if they have no id in common."""
    both = [patient for patient in one.rows if patient in other.rows]
    if not both:
        column = competition.submission.id
        raise SubmissionError(f"the two files have no {column} in common; give files for the same sample")
    first, second = (np.array([verdict.rows[patient] for patient in both]) for verdict in (one, other))  # [n, C]
    gaps = np.abs(first - second).max(axis=1)  # [n]
    order = [at for at in np.argsort(-gaps, kind="stable")[:MOST_ROWS] if gaps[at] > 0 or not one.labels]
    if one.labels:
        worst = [_labels(both[at], one, other, competition) for at in order]
    else:
        worst = [_row(both[at], first[at], second[at], competition) for at in order]
    only_one = len(set(one.rows) ^ set(other.rows))
    return Difference(len(both), only_one, float(gaps.mean()), float(gaps.max()), worst)


def label_counts(verdict: Verdict, competition: Competition) -> dict[str, int]:
    """Return the number of rows of each label."""
    labels = list(verdict.labels.values())
    return {name: labels.count(index) for index, name in enumerate(competition.answers)}


def _labels(one: str, first: Verdict, second: Verdict, competition: Competition) -> dict[str, Any]:
    answers, column = competition.answers, competition.submission.columns[0]
    labels = {column: answers[first.labels[one]], f"{column}, other file": answers[second.labels[one]]}
    return {competition.unit.value: one, **labels}


def _row(patient: str, first: Any, second: Any, competition: Competition) -> dict[str, Any]:
    named: dict[str, Any] = {competition.unit.value: patient}
    for name, a, b in zip(competition.classes.names, first, second, strict=True):
        named |= {name: round(float(a), 4), f"{name}, other file": round(float(b), 4)}
    return named
