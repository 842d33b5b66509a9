"""Lay out jobs as Grand Challenge does: the input folder of each, from the slides of a split."""

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clotkit.containers.sockets import IMAGES, INPUTS
from clotkit.errors import UsageError
from clotkit.files import atomic_write_json
from clotkit.splits import SlideRow

SOCKET = "whole-slide-image"  # of the inputs here, if the container takes those of any socket
SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "clotkit")


@dataclass(frozen=True)
class Job:
    """A job: the slides of one case."""

    name: str
    slides: Sequence[SlideRow]


def jobs_of(slides: Sequence[SlideRow], per_job: int = 0) -> list[Job]:
    """Return a job for each patient, or for every `per_job` slides. Raises UsageError if that is negative."""
    if per_job < 0:
        raise UsageError(f"--per-job {per_job}: 1 or more is needed; 0 is a patient's slides")
    if per_job:
        starts = range(0, len(slides), per_job)
        return [Job(f"job-{start // per_job:03d}", slides[start : start + per_job]) for start in starts]
    patients = dict.fromkeys(slide.patient_id for slide in slides)
    return [Job(one, [slide for slide in slides if slide.patient_id == one]) for one in patients]


def uuid_of(slide: SlideRow) -> str:
    """Return the name that the platform gives a slide: the same for the same slide."""
    return str(uuid.uuid5(SPACE, slide.image_id))


def write_input(folder: Path, job: Job, socket: str) -> None:
    """Write a job's input folder: inputs.json, and its images, hard links where the file system allows it.

    Each image of a case has a socket of its own, SOCKET, SOCKET-1 and so on. A slide whose file is missing leaves an
    empty one, of a kind that the platform carries: it always provides a file.
    """
    listed = []
    for number, slide in enumerate(job.slides):
        slug = f"{socket}-{number}" if number else socket
        relative = f"{IMAGES}/{slug}"
        suffix = slide.path.suffix if slide.path.is_file() else ".tif"
        target = folder / relative / f"{uuid_of(slide)}{suffix or '.tif'}"
        target.parent.mkdir(parents=True)
        _link(slide.path, target)
        image = {"pk": uuid_of(slide), "name": slide.path.name}
        description = {"slug": slug, "kind": "Image", "super_kind": "Image", "relative_path": relative}
        listed.append({"file": None, "value": None, "image": image, "socket": description})
    atomic_write_json(folder / INPUTS, listed)


def _link(source: Path, target: Path) -> None:
    if not source.is_file():
        target.touch()
        return
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
