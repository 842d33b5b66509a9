"""Score the images of one job as the slides of one patient, in a process of its own.

The process is `python -m clotkit.containers.case CONFIG SPLIT WEIGHTS RUN_DIR DEADLINE [resume]`, the deadline by
the system's monotonic clock. It may die: the entry point starts it once more, and answers from what it left.
"""

import csv
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clotkit.competitions import Classes, Columns, Competition, Files, Form, Ids, Unit
from clotkit.console import guarded
from clotkit.containers.config import ContainerConfig
from clotkit.containers.sockets import JobImage
from clotkit.errors import SplitError
from clotkit.splits import read_table
from clotkit.submission.writing import read_probabilities

if TYPE_CHECKING:
    from clotkit.workers import Limits

CASE, IMAGE, LABEL = "case", "image", "label"  # columns; the first is also the id of the only patient
SPLIT_NAME = "test"
SLIDES = ("{split}/{image_id}.tif", "{split}/{image_id}.tiff")
BASE_MB = 4_096  # of a container's memory, for TensorFlow and the members
LEAST_S = 0.1  # the deadline of a run that comes too late
MOST_JOBS = 4  # slides at a time: more processes and threads than the platform allows would not start
MOST_THREADS = 8  # of TensorFlow, whatever cores the machine has: they count as processes


def as_case(competition: Competition) -> Competition:
    """Return the competition for a split that is one patient, whatever its own files are like."""
    submission, names = competition.submission, competition.classes.names
    columns = (LABEL,) if submission.form is Form.LABEL else names
    form = Form.LABEL if submission.form is Form.LABEL else Form.PROBABILITIES
    return replace(
        competition,
        files=Files("sample_submission.csv", "submission.csv", "{split}.csv", SLIDES),
        columns=Columns(image=IMAGE, label=LABEL, patient=CASE),
        ids=Ids(),
        submission=replace(submission, form=form, id=CASE, unit=Unit.PATIENT, columns=columns),
        facts=(),
    )  # fmt: skip


def write_split(folder: Path, images: Sequence[JobImage], competition: Competition) -> None:
    """Write the split of a job: links to its images, a table, a sample submission."""
    (folder / SPLIT_NAME).mkdir(parents=True)
    for image in images:
        (folder / SPLIT_NAME / f"{image.name}{image.path.suffix.lower()}").symlink_to(image.path)
    _write(folder / f"{SPLIT_NAME}.csv", [(IMAGE, CASE), *((image.name, CASE) for image in images)])
    _, label = fallback_of(competition)
    row = [label] if competition.submission.form is Form.LABEL else list(map(str, competition.classes.fallback))
    _write(competition.sample_path(folder), [competition.header, (CASE, *row)])


def fallback_of(competition: Competition) -> tuple[Sequence[float], str]:
    """Return the probabilities and the label of a job without a slide that can be scored."""
    fallback = competition.classes.fallback
    return fallback, competition.submission.fallback or likeliest(fallback, competition.classes)


def likeliest(probabilities: Sequence[float], classes: Classes) -> str:
    """Return the name of the likeliest class."""
    return max(zip(probabilities, classes.names, strict=True))[1]


def read_answer(run_dir: Path, competition: Competition) -> tuple[Sequence[float], str]:
    """Return the probabilities and the label that a run has left so far, or the fallback."""
    path, names = run_dir / competition.submission_csv, competition.classes.names
    fallback = fallback_of(competition)
    with suppress(SplitError, ValueError, StopIteration):
        row = next(iter(read_table(path, list(competition.header))))
        if competition.submission.form is Form.LABEL:
            return read_probabilities(path, CASE, names).get(CASE, fallback[0]), row[LABEL]
        probabilities = [float(row[name]) for name in names]
        # Equal to the constant answer: no slide was scored, or they say nothing.
        return probabilities, fallback[1] if probabilities == list(fallback[0]) else likeliest(
            probabilities, competition.classes
        )
    return fallback


def jobs_of(config: ContainerConfig, slide_mb: int) -> int:
    """Return how many slides may be read at a time within the container's memory and number of processes."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, MOST_JOBS, (config.memory_mb - BASE_MB) // slide_mb))


def main(config_path: str, split: str, weights: str, run_dir: str, deadline: str, *resume: str) -> int:
    """Run the pipeline over the split of a job, and return 0."""
    from clotkit.competitions import load_competition
    from clotkit.containers.config import read_config
    from clotkit.scoring.pipeline import run
    from clotkit.scoring.settings import RunSettings
    from clotkit.workers import Limits

    config = read_config(Path(config_path))
    competition = as_case(load_competition(config.competition))
    limits, jobs = competition.limits, jobs_of(config, competition.limits.slide_memory_mb)
    now = time.monotonic()
    half = now + (float(deadline) - now) / 2
    convert(Path(split) / SPLIT_NAME, Limits(limits.slide_s, limits.slide_memory_mb, half), jobs)
    settings = RunSettings(
        split_dir=Path(split),
        weights_dir=Path(weights),
        run_dir=Path(run_dir),
        deadline_s=max(float(deadline) - time.monotonic(), LEAST_S),
        memory_mb=limits.slide_memory_mb,
        jobs=jobs,
        resume=bool(resume),
        without_missing=True,
    )
    run(settings, competition)
    return 0


def convert(folder: Path, limits: "Limits", jobs: int) -> None:
    """Make a TIFF of each MetaImage, each in a process of its own under the limits of a slide.

    One that cannot be read within them gets its TIFF's name, for the reader to refuse.
    """
    from clotkit.containers.mha import PART, convert_task
    from clotkit.workers import Ended, Task, stream

    tasks = [Task(path.stem, path, ()) for path in sorted(folder.glob("*.mha"))]
    waiting = [task for task in tasks if not os.path.lexists(task.path.with_suffix(".tif"))]
    for end in stream(waiting, limits, jobs, convert_task):
        if isinstance(end, Ended) and end.code is not None:
            path = end.task.path
            print(f"{path.name}: {end.code}: {end.reason}", flush=True)
            path.with_suffix(PART).unlink(missing_ok=True)
            path.with_suffix(".tif").symlink_to(path.resolve())


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
