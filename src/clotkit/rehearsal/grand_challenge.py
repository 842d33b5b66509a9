"""Rehearse a container for Grand Challenge: jobs in a row under the platform's limits."""

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clotkit.bundle.checkout import locks
from clotkit.competitions import Competition, load_competition
from clotkit.containers.build import Image, write_container
from clotkit.containers.config import FACTS, ContainerConfig
from clotkit.containers.jobs import SOCKET, Job, jobs_of, uuid_of, write_input
from clotkit.containers.sockets import SUFFIXES
from clotkit.errors import RehearsalError, SplitError, UsageError
from clotkit.files import atomic_write_json
from clotkit.progress import Log
from clotkit.reasons import Enforcement, JobLimit, NotRehearsed, Reason, RehearsalKind
from clotkit.rehearsal import environment
from clotkit.rehearsal.confined.container import Container, Peaks, engine_here, jails_work, run_job
from clotkit.rehearsal.sandbox import REHEARSAL
from clotkit.report.records import IMAGE_ID
from clotkit.splits import read_slides

TAG = "clotkit-rehearsal"


def rehearse_container(
    split: Path, weights: Path, config: ContainerConfig, out: Path, log: Log, per_job: int = 0
) -> bool:
    """Make the container, do a job for each patient of a split; return whether every slide is done.

    Leaves rehearsal.json, the container's folder, and the input and output of every job in `out`.

    Args:
        split: A split folder.
        weights: A member, or a folder of members.
        config: The container's settings.
        out: The folder for everything that the rehearsal writes.
        log: Takes the lines of the rehearsal and of the jobs.
        per_job: Slides in a job; 0: those of a patient.

    Raises:
        RehearsalError: A job fails, passes a limit, or leaves an answer that is not valid.
        SplitError: The split has no slide.
        UsageError: A slide is of a kind that the platform's image sockets do not carry.
        ClotkitError: The split, the weights or the settings are wrong.
    """
    started = time.monotonic()
    competition = load_competition(config.competition)
    jobs = jobs_of(read_slides(split, "test", competition), per_job)
    if not jobs:
        raise SplitError(f"{split}: no slide, so that there is no job")
    check_suffixes(split, jobs)
    out.mkdir(parents=True, exist_ok=True)
    (out / REHEARSAL).unlink(missing_ok=True)
    shutil.rmtree(out / "jobs", ignore_errors=True)
    write_container(weights, config, Image(TAG), out / "container", log)
    container = _container(out, config, log)
    # A patient's id may be no name of a folder.
    places = [out / "jobs" / f"{number:03d}" for number in range(len(jobs))]
    results = [_job(container, job, place, competition, log) for job, place in zip(jobs, places, strict=True)]
    facts = _facts(results, container, split, competition)
    if facts["not_rehearsed"]:
        log("not rehearsed: image: the container's own; here its locked packages, in this machine's Python")
    atomic_write_json(out / REHEARSAL, facts)
    for line in _summary(facts):
        log(line)
    done, slides = facts["slides"].get("done", 0), sum(len(job.slides) for job in jobs)
    words = "passed" if done == slides else "passed with fallbacks"
    log(f"rehearsal {words}: {done} of {slides} slides done in {len(jobs)} jobs, {time.monotonic() - started:.0f} s")
    return bool(done == slides)


def check_suffixes(split: Path, jobs: Sequence[Job]) -> None:
    """Raise UsageError if slides of a split are of a kind that no image socket carries."""
    slides = [slide for job in jobs for slide in job.slides]
    kinds = [slide.path.suffix.lower() for slide in slides if slide.path.suffix and slide.path.is_file()]
    others = [kind for kind in kinds if kind not in SUFFIXES]
    if others:
        raise UsageError(
            f"{split}: {len(others)} of {len(slides)} slides are {', '.join(sorted(set(others)))}; an image socket of "
            f"Grand Challenge carries {', '.join(SUFFIXES)}: convert them, or give another --split"
        )


def _container(out: Path, config: ContainerConfig, log: Log) -> Container:
    """Return what runs the jobs: an engine with the image, or this system with a Python like the image's."""
    lock = locks()
    if lock is None:
        raise UsageError("the locked requirements are in a checkout of the repository: run this in one (git clone)")
    engine = engine_here()
    if engine:
        log(f"{engine}: building the image")
        script = str((out / "container" / "do_build.sh").resolve())
        built = subprocess.run([script], env={**os.environ, "ENGINE": engine}, check=False)
        if built.returncode:
            raise RehearsalError(f"{engine} build ended with {built.returncode}", RehearsalKind.ENVIRONMENT)
        return Container(out / "container", config, Path("python"), True, engine)
    python = environment.make_of(out / "env", lock / "container.txt")
    jailed = jails_work(out, python)
    log("no container engine here: " + ("namespaces stand in for it" if jailed else "the limits are watched"))
    return Container(out / "container", config, python, jailed)


def _job(container: Container, job: Job, place: Path, competition: Competition, log: Log) -> dict[str, Any]:
    """Do one job, and return its answer and what it used."""
    log(f"job {job.name}: {len(job.slides)} slides")
    write_input(place / "input", job, (container.config.images or (SOCKET,))[0])
    peaks, limits = run_job(container, job.name, place, log)
    answer = read_output(place / "output", container.config, competition, job.name)
    slides = slides_of(job, answer.pop("slides"), answer["codes"])
    return {"job": job.name, "peaks": asdict(peaks), "limits": limits, "slides": slides} | answer


def slides_of(job: Job, answered: Sequence[dict[str, Any]], codes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the facts of each slide of a job.

    One that the job's answer does not list is a fallback, with the job's codes.
    """
    listed = {one["image"]: one for one in answered}
    unlisted = {"state": "fallback", "codes": list(codes) or [Reason.LOST], "p": {}}
    names = [(uuid_of(slide), slide.image_id) for slide in job.slides]
    return [listed.get(name, {"image": name, "socket": ""} | unlisted) | {IMAGE_ID: image} for name, image in names]


def read_output(folder: Path, config: ContainerConfig, competition: Competition, name: str) -> dict[str, Any]:
    """Return the answer of a job. Raises RehearsalError if a socket has no value, or a wrong one."""
    probability = _value(folder / f"{config.probability}.json", name)
    label = _value(folder / f"{config.label}.json", name) if config.label else None
    sound = _is_share(probability) if config.number_of else _are_shares(probability, competition.classes.names)
    if not sound or (config.label and label not in competition.answers):
        raise RehearsalError(
            f"job {name}: {config.probability} is {probability!r}, {config.label} is {label!r}: not an answer",
            RehearsalKind.OUTPUT,
        )
    facts = _object(_value(folder / FACTS, name))
    return {"probability": probability, "label": label, "state": facts["state"], "codes": facts["codes"]} | {
        "slides": facts["slides"]
    }


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _are_shares(value: Any, names: Sequence[str]) -> bool:
    """Return whether a value is an object with the probability of every class."""
    shares = _object(value)
    return shares.keys() == set(names) and all(map(_is_share, shares.values())) and abs(sum(shares.values()) - 1) < 1e-4


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _value(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RehearsalError(f"job {name}: {path.name}: {error}", RehearsalKind.OUTPUT) from error


def _facts(
    results: Sequence[dict[str, Any]], container: Container, split: Path, competition: Competition
) -> dict[str, Any]:
    """Return the content of rehearsal.json."""
    slides = [slide for result in results for slide in result["slides"]]
    return {
        "arena": "grand-challenge",
        "competition": competition.source.stem,
        "split": str(split),
        "engine": container.engine or ("namespaces" if container.jailed else "none"),
        "api": container.config.api,
        "not_rehearsed": [] if container.engine else [NotRehearsed.IMAGE],
        "limits": _worst([result["limits"] for result in results]),
        "slides": dict(Counter(slide["state"] for slide in slides)),
        "codes": sorted({code for result in results for code in result["codes"]}),
        "peaks": {name: _most([result["peaks"][name] for result in results]) for name in asdict(Peaks())},
        "jobs": list(results),
    }


def _most(values: Sequence[float | None]) -> float | None:
    """Return the largest value of all jobs; None if one of them was not measured."""
    known = [value for value in values if value is not None]
    return round(max(known), 1) if len(known) == len(values) else None


def _worst(limits: Sequence[dict[JobLimit, Enforcement]]) -> dict[JobLimit, Enforcement]:
    """Return how each limit was held in the job that held it least."""
    order = list(Enforcement)
    return {limit: max((one[limit] for one in limits), key=order.index) for limit in JobLimit}


def _summary(facts: dict[str, Any]) -> list[str]:
    """Return the lines for people: how the limits were held, and what the jobs used."""
    held: dict[str, list[str]] = {}
    for limit, how in facts["limits"].items():
        held.setdefault(how, []).append(limit)
    peaks = facts["peaks"]
    forms = {
        "memory_mb": "{:.0f} MB",
        "group_mb": "{:.0f} MB with page cache",
        "processes": "{:.0f} processes and threads",
        "shared_mb": "{:.1f} MB in /dev/shm",
    }
    used = ", ".join(form.format(peaks[name]) for name, form in forms.items() if peaks[name] is not None)
    return [
        *(f"limits {how}: {', '.join(names)}" for how, names in held.items()),
        f"most of one job: {used or 'not measured'}",
    ]
