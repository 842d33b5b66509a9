"""Say what stands here: members with their figures, splits, runs, the last rehearsal and push."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from clotkit.app.roots import Roots, allowed
from clotkit.app.viewer import SPLITS, list_folders, open_folder, read_facts, report_lines
from clotkit.competitions import Competition
from clotkit.errors import ClotkitError, SplitError
from clotkit.locks import is_held
from clotkit.members.folder import METRICS
from clotkit.report.records import REPORT, RUN, STATES, counts
from clotkit.report.run import mapping
from clotkit.splits import split_of

REHEARSAL, PUSHED = "rehearsal.json", "pushed.json"  # as clotkit rehearse and clotkit kaggle kernel-push leave them
QUIET_S = 300.0  # without a slide, after which a run that no process here holds has stopped
FIGURES = {"accuracy": "accuracy", "auc": "AUC", "weighted_log_loss": "weighted log loss"}


class RunState(StrEnum):
    """The progress of a run."""

    RUNNING = "running"
    STOPPED = "stopped"  # before its end; a run that is killed cannot say so
    ENDED = "ended"
    UNKNOWN = "unknown"  # its report or its run.json cannot be read


@dataclass(frozen=True)
class StandingMember:
    """A member and its main figures."""

    name: str
    figures: dict[str, float]
    estimate: str  # how they were estimated


@dataclass(frozen=True)
class StandingSplit:
    """A split below the roots."""

    folder: Path
    kind: str  # train or test
    slides: int


@dataclass(frozen=True)
class StandingRun:
    """A run below the roots."""

    folder: Path
    state: RunState
    slides: dict[str, int]  # by their state
    changed: datetime
    facts: dict[str, Any]  # run.json

    @property
    def done(self) -> int:
        """The number of slides that the report has."""
        return sum(self.slides.values())

    @property
    def members(self) -> list[str]:
        """The names of its members."""
        return list(mapping(self.facts.get("members")))


@dataclass(frozen=True)
class LastFile:
    """The newest file of a name, and what it says."""

    path: Path
    changed: datetime
    facts: dict[str, Any]


def standing_members(members: dict[str, Path]) -> list[StandingMember]:
    """Return all members with their figures."""
    return [_member(name, _facts(folder / METRICS) or {}) for name, folder in members.items()]


def standing_folders(roots: Roots, competition: Competition) -> tuple[list[StandingSplit], list[StandingRun]]:
    """Return the splits and the runs below the roots, the newest run first.

    What cannot be read is left out.
    """
    splits, runs = list[StandingSplit](), list[StandingRun]()
    for folder in list_folders(roots, competition):
        with suppress(ClotkitError, OSError):
            if (folder / REPORT).is_file():
                runs.append(standing_run(folder, roots))
            else:
                slides = open_folder(folder, roots, competition).rows
                splits.append(StandingSplit(folder, split_of(folder, competition, SPLITS), len(slides)))
    return splits, sorted(runs, key=lambda run: run.changed, reverse=True)


def standing_run(folder: Path, roots: Roots) -> StandingRun:
    """Return how far a run is.

    Raises UsageError or OSError if its report is missing, or its report or run.json is outside the roots.
    """
    report = roots.inside(folder / REPORT)
    facts = _facts(roots.inside(folder / RUN)) if allowed((folder / RUN).exists) else None
    try:
        slides, state = counts(report_lines(report)), _state(folder, report, facts)
    except (SplitError, ValueError, TypeError):
        slides, state = dict.fromkeys(STATES, 0), RunState.UNKNOWN
    return StandingRun(folder, state, slides, _changed(report), facts or {})


def _state(folder: Path, report: Path, facts: dict[str, Any] | None) -> RunState:
    """Return the state of a run, of whose run.json nothing is concluded unless it can be read.

    A run writes run.json before its report, so one without it is no run of today that has ended: either it lost the
    file, or its disk was full. A run of an older kit wrote run.json without a state, at its end.
    """
    if facts is None:
        return RunState.RUNNING if is_held(folder) else RunState.UNKNOWN
    state = facts.get("state", RunState.ENDED)
    if state == RunState.RUNNING:
        return _progress(folder, report)
    return RunState.ENDED if state == RunState.ENDED else RunState.UNKNOWN


def _progress(folder: Path, report: Path) -> RunState:
    """Return whether a run that has not ended goes on, here or on a machine that shares the disk."""
    is_quiet = time.time() - report.stat().st_mtime > QUIET_S
    return RunState.STOPPED if is_quiet and not is_held(folder) else RunState.RUNNING


def last_rehearsal(roots: Roots) -> LastFile | None:
    """Return the newest rehearsal below the roots; None without one."""
    return _last(roots, [REHEARSAL])


def last_push(roots: Roots) -> LastFile | None:
    """Return the newest push of a kernel to Kaggle that is recorded below the roots; None without one."""
    return _last(roots, [PUSHED])


def _last(roots: Roots, names: Sequence[str]) -> LastFile | None:
    found = [one for folder in roots.below(names) for one in _files(folder, names, roots)]
    return max(found, key=lambda one: one.changed, default=None)


def _files(folder: Path, names: Sequence[str], roots: Roots) -> Iterator[LastFile]:
    for name in names:
        with suppress(ClotkitError, OSError):
            path = roots.inside(folder / name)
            yield LastFile(path, _changed(path), _facts(path) or {})


def _member(name: str, metrics: dict[str, Any]) -> StandingMember:
    figures = {
        shown: float(metrics[key]) for key, shown in FIGURES.items() if isinstance(metrics.get(key), int | float)
    }
    return StandingMember(name, figures, str(metrics.get("estimate", "")))


def _facts(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it cannot be read."""
    try:
        return read_facts(path)
    except (OSError, ValueError):
        return None


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone()
