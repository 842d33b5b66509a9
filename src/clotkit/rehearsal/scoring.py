"""Rehearse the scoring kernel: run its bundle over a test split, and check its submission."""

import csv
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clotkit.bundle.places import build_path
from clotkit.competitions import Competition
from clotkit.errors import RehearsalError
from clotkit.files import atomic_write_json
from clotkit.kaggle.datasets import weights_files, wheels_files
from clotkit.kaggle.kernels import datasets_attached, models_attached
from clotkit.members.encoders.folder import check_encoders
from clotkit.members.folder import check_members
from clotkit.progress import Log
from clotkit.reasons import RehearsalKind
from clotkit.rehearsal.sandbox import (
    REHEARSAL,
    Outcome,
    Rehearsal,
    attached_facts,
    cost_line,
    costs_of,
    make_sandbox,
    run_layouts,
)
from clotkit.report import records
from clotkit.splits import read_slides
from clotkit.submission.checking import check_submission
from clotkit.submission.writing import PROBABILITIES

TOLERANCE = 1e-6  # of a probability, between the layouts


def rehearse(split: str, weights: Path, rehearsal: Rehearsal) -> bool:
    """Build the bundle, run it in one or both layouts, and return whether every slide is done.

    Leaves the submission, rehearsal.json and the working folders in the rehearsal's folder.

    Args:
        split: A split folder, or "public" for the competition's public test slides.
        weights: A member, or a folder of members.
        rehearsal: The kernel, and how to rehearse it.

    Raises:
        RehearsalError: The kernel fails, leaves other files, changes its inputs, passes a limit, or the layouts differ.
        ClotkitError: The split, the weights or the wheels are wrong.
    """
    started = time.monotonic()
    competition, out, log = rehearsal.competition, rehearsal.out, rehearsal.log
    split_dir = split_folder(split, competition, log)
    read_slides(split_dir, "test", competition)
    check_members(weights, competition.slug)  # raises if the kernel would not find one, or leave one out
    check_encoders(weights)
    sandbox = make_sandbox(rehearsal)
    allowed = {competition.files.submission, PROBABILITIES, *records.FILES}
    attached = datasets_of(rehearsal, weights)
    outcomes = run_layouts(sandbox, rehearsal.layouts, attached, split_dir, competition, allowed, log)
    check_agreement([outcome.working / competition.files.submission for outcome in outcomes])
    facts = sandbox.facts | attached_facts(attached)
    return _conclude(outcomes, competition, split_dir, facts, out, time.monotonic() - started, log)


def split_folder(split: str, competition: Competition, log: Log) -> Path:
    """Return the folder of a split; "public" is the public test split, which is fetched."""
    if split != "public":
        return Path(split)
    from clotkit.kaggle.public import fetch_public_split

    return fetch_public_split(competition, build_path("public", str(competition.source)), log=log)


def datasets_of(rehearsal: Rehearsal, weights: Path) -> dict[str, dict[str, Path]]:
    """Return the datasets and models of a kernel's metadata, with the files that a push would give them."""
    where = rehearsal.kernel, rehearsal.competition, rehearsal.inputs
    names, wheels = [*datasets_attached(*where), *models_attached(*where)], rehearsal.wheels
    return {name: wheels_files(wheels) if name.endswith("wheels") else weights_files(weights) for name in names}


def check_agreement(submissions: Sequence[Path]) -> None:
    """Raise RehearsalError if the layouts gave different submissions."""
    tables = []
    for path in submissions:
        with path.open(encoding="utf-8", newline="") as file:
            tables.append(list(csv.reader(file)))
    for table in tables[1:]:
        for row, other in zip(tables[0], table, strict=True):
            if row[0] != other[0] or not all(map(_close, row[1:], other[1:])):
                raise RehearsalError(
                    f"the layouts disagree: {','.join(row)} against {','.join(other)}", RehearsalKind.LAYOUTS
                )


def _close(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return abs(float(one) - float(other)) <= TOLERANCE + 1e-12  # the sum of rounding errors
    except ValueError:  # two labels
        return False


def _conclude(
    outcomes: Sequence[Outcome],
    competition: Competition,
    split_dir: Path,
    facts: dict[str, Any],
    out: Path,
    seconds: float,
    log: Log,
) -> bool:
    """Check the last run's submission, publish rehearsal.json, and return whether every slide is done."""
    working, status = outcomes[-1].working, outcomes[-1].status
    lines = records.read_report(working / records.REPORT) if (working / records.REPORT).exists() else []
    submission = working / competition.files.submission
    verdict = check_submission(submission, competition.sample_path(split_dir), competition)
    if not verdict.valid:
        raise RehearsalError(f"the kernel's submission is not valid: {verdict.problems[0]}", RehearsalKind.OUTPUT)
    for row in [*records.table(lines), *verdict.notes]:
        log(row)
    slides = len(read_slides(split_dir, "test", competition))
    done = status.slides.get("done", 0)
    facts = facts | {
        "split": str(split_dir),
        "state": status.state,
        "codes": status.codes,
        "slides": status.slides,
        "layouts": costs_of(outcomes),
    }
    shutil.copyfile(submission, out / submission.name)
    atomic_write_json(out / REHEARSAL, facts)
    log(f"{out / submission.name}: valid; {cost_line(outcomes)}")
    verdict_line = "passed" if done == slides else "passed with fallbacks"
    log(f"rehearsal {verdict_line}: {done} of {slides} slides done, {seconds:.0f} s in all")
    return done == slides
