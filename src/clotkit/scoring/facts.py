"""The contents of run.json: the inputs and the outcome of a run."""

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from clotkit import __version__
from clotkit.competitions import Competition
from clotkit.console import lost
from clotkit.files import sha256
from clotkit.members.folder import OUT_OF_FOLD
from clotkit.members.loading import Member
from clotkit.metric import METRICS
from clotkit.reasons import Cause
from clotkit.report.shift import Histogram, read_out_of_fold
from clotkit.report.shown import Shown
from clotkit.scoring.inputs import Inputs
from clotkit.scoring.settings import RunSettings
from clotkit.scoring.state import SubmissionState
from clotkit.splits import kind_of
from clotkit.workers import peak_mb

PACKAGES = ("numpy", "keras", "tensorflow", "onnxruntime", "pyvips", "openslide-python", "imagecodecs", "simplejpeg")


def run_facts(
    settings: RunSettings,
    competition: Competition,
    inputs: Inputs,
    members: Sequence[Member],
    left_out: Mapping[str, Cause],
) -> dict[str, Any]:
    """Return what run.json has from the start of a run on.

    It has all that the report page needs of the weights: they may be gone when the page is made.
    """
    return {
        "key": inputs.key,
        "clotkit": __version__,
        "python": platform.python_version(),
        "packages": dict(_package_versions()),
        "competition": competition.slug,
        "scoring": _scoring_facts(competition),
        "synthetic": bool(kind_of(settings.split_dir)),
        "arguments": {
            "split": str(settings.source or settings.split_dir),
            "weights": str(settings.weights_source or settings.weights_dir),
            "deadline_s": settings.deadline_s,
            "memory_mb": settings.memory_mb,
            "jobs": settings.jobs,
        },
        "members": dict(_member_facts(members, inputs, Shown.of(competition))),
        "left_out": {name: cause.sentence for name, cause in left_out.items()},
        "left_out_codes": {name: cause.code for name, cause in left_out.items()},
        "without": list(inputs.without),
        "ensemble": inputs.ensemble_sha256,
        "repairs": Counter(repair for repairs in inputs.repairs_of.values() for repair in repairs),
    }


def outcome_facts(
    counts: Mapping[str, int], left_behind: Mapping[str, int], seconds: float, state: SubmissionState
) -> dict[str, Any]:
    """Return what run.json has in addition once the run has ended.

    Args:
        counts: The number of slides by state.
        left_behind: By image id: the process that did not end when it was killed.
        seconds: The time that the run took.
        state: The submission.
    """
    asked, with_slides = set(state.ids), set(state.inputs.row_of.values())
    return {
        "state": "ended",
        "seconds": round(seconds, 1),
        "peak_mb": round(peak_mb(), 1),
        "slides": counts,
        "left_behind": left_behind,
        "log_lost": bool(lost()),  # part of what the run printed was not written
        "patients": {
            "asked": len(state.ids),
            "scored": len(asked & state.scored_patients()),
            "without_slide": sorted(asked - with_slides),
            "not_in_sample": sorted(with_slides - asked),
        },
        "unwritten": state.unwritten.sentence if state.unwritten else "",
        "unwritten_code": state.unwritten.code if state.unwritten else None,
        "submission_sha256": sha256(state.path),
    }


def _scoring_facts(competition: Competition) -> dict[str, Any]:
    classes, submission, metric = competition.classes, competition.submission, competition.metric
    return {
        "title": competition.title,
        "submission": competition.submission_csv,
        "classes": list(classes.names),
        "weights": list(classes.weights),
        "fallback": list(classes.fallback),
        "clip": metric.clip,
        "priors": list(classes.priors),
        "metric": metric.name,
        "higher_is_better": METRICS[metric.name].higher_is_better,
        "form": submission.form,
        "id": submission.id,
        "unit": submission.unit,
        "columns": list(submission.columns),
        "answers": list(competition.answers),
        "rule": submission.rule,
        "fallback_label": submission.fallback,
        "shown": Shown.of(competition).kind,
    }


def _member_facts(members: Sequence[Member], inputs: Inputs, shown: Shown) -> Iterator[tuple[str, dict[str, Any]]]:
    folders = {folder.name: folder for folder in inputs.folders}
    for member in members:
        out_of_fold: Histogram | None = read_out_of_fold(folders[member.name] / OUT_OF_FOLD, shown)
        yield (
            member.name,
            {
                "recipe": member.recipe.name,
                "weights_sha256": member.weights_sha256,
                "notes": member.notes,
                "calibration": member.calibration.to_json(),
                "decision": None if member.decision is None else member.decision.to_json(),
                "tile_pool": "",  # tiles are pooled as the recipe says; older ensembles chose otherwise
                "out_of_fold": None if out_of_fold is None else out_of_fold.to_json(),
            },
        )


def _package_versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"
