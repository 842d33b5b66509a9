"""Compare two runs: which patients moved, by how much, and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from clotkit.errors import UsageError
from clotkit.report.records import SlideReport
from clotkit.report.run import Run, mapping
from clotkit.units import many

STILL = 1e-6  # a change of a probability that is rounding


class Change(StrEnum):
    """Why an answer moved."""

    SLIDES = "slides"  # the patient has other slides
    STATE = "state"  # a slide has another state: done, partial, fallback
    TILES = "tiles"  # a slide gave another number of tiles
    MEMBERS = "members"  # other members scored a slide
    WEIGHTS = "weights"  # a member of the same name has other weights
    PROBABILITIES = "probabilities"  # a member gave a slide other probabilities
    AFTER_MEMBERS = "after_members"  # members gave the same: calibration, blending or the decision differ


@dataclass(frozen=True)
class Moved:
    """A patient or slide whose answer differs."""

    id: str
    before: Sequence[float]  # [C]; empty of labels without probabilities
    after: Sequence[float]
    label_before: str  # empty for the forms of probabilities
    label_after: str
    by: float  # largest difference of a probability
    why: Mapping[Change, str]  # a sentence for each


@dataclass(frozen=True)
class Comparison:
    """The difference of two runs."""

    classes: Sequence[str]
    both: int  # ids in both
    only_first: int
    only_second: int
    mean: float  # mean over the ids in both of the largest difference of a probability
    moved: Sequence[Moved]  # the largest change first
    settings: Mapping[str, tuple[str, str]]  # what the runs were started with, where it differs


def compare(first: Run, second: Run) -> Comparison:
    """Compare two runs. Raises UsageError if their classes differ or no id is in both."""
    a, b = first.answers, second.answers
    if list(a.classes) != list(b.classes):
        raise UsageError("the two runs have other classes; choose two runs of one competition")
    both = [one for one in a.ids if one in set(b.ids)]
    if not both:
        raise UsageError("the two submissions have no id in common; choose two runs over one split")
    every = [_moved(one, first, second) for one in both]
    changed = [one for one in every if one.by > STILL or one.label_before != one.label_after]
    changed.sort(key=lambda one: (one.label_before == one.label_after, -one.by))
    mean = sum(one.by for one in every) / len(every)
    only = (len(set(a.ids) - set(b.ids)), len(set(b.ids) - set(a.ids)))
    return Comparison(list(a.classes), len(both), *only, mean, changed, dict(_settings(first, second)))


def _moved(one: str, first: Run, second: Run) -> Moved:
    before, after = first.answers.rows.get(one, ()), second.answers.rows.get(one, ())
    labels = first.answers.labels.get(one, ""), second.answers.labels.get(one, "")
    by = max((abs(x - y) for x, y in zip(before, after, strict=False)), default=0.0)
    differs = by > STILL or labels[0] != labels[1]
    return Moved(one, before, after, *labels, by, dict(_why(one, first, second)) if differs else {})


def _why(one: str, first: Run, second: Run) -> Iterator[tuple[Change, str]]:
    """Yield the reasons that the slides of an answer tell, the strongest first."""
    a, b = _lines(first, first.answers.key(one)), _lines(second, second.answers.key(one))
    reasons = dict[Change, str]()
    if a.keys() != b.keys():
        reasons[Change.SLIDES] = f"{many(len(a), 'slide')} before, {len(b)} after"
    for image_id in [name for name in a if name in b]:
        reasons |= {code: text for code, text in _slide_changes(a[image_id], b[image_id]) if code not in reasons}
    if Change.PROBABILITIES in reasons or Change.MEMBERS in reasons:
        names = [name for name in first.members if _weights(first, name) != _weights(second, name)]
        names = [name for name in names if name in second.members]
        if names:
            reasons[Change.WEIGHTS] = f"other weights: {', '.join(names)}"
    if not reasons:
        reasons[Change.AFTER_MEMBERS] = "the members gave the same: calibration, blending or the decision differ"
    yield from sorted(reasons.items(), key=lambda item: list(Change).index(item[0]))


def _slide_changes(a: SlideReport, b: SlideReport) -> Iterator[tuple[Change, str]]:
    name = a.image_id
    if a.state != b.state:
        code = ", ".join((b if b.state != "done" else a).codes)
        yield Change.STATE, f"{name}: {a.state} before, {b.state} after{f' ({code})' if code else ''}"
    if a.tiles != b.tiles:
        yield Change.TILES, f"{name}: {many(a.tiles, 'tile')} before, {b.tiles} after"
    if a.p.keys() != b.p.keys():
        yield Change.MEMBERS, f"{name}: {', '.join(a.p) or 'no member'} before, {', '.join(b.p) or 'no member'} after"
    for member in [one for one in a.p if one in b.p]:
        pairs = list(zip(a.p[member], b.p[member], strict=False))
        by = max((abs(x - y) for x, y in pairs), default=0.0)
        if by > STILL:
            yield Change.PROBABILITIES, f"{name}: {member} gave {pairs[-1][0]:.3f} before, {pairs[-1][1]:.3f} after"


def _lines(run: Run, key: str) -> dict[str, SlideReport]:
    return {line.image_id: line for line in run.lines if run.row_of(line) == key}


def _weights(run: Run, name: str) -> Any:
    return run.members.get(name, {}).get("weights_sha256")


def _settings(first: Run, second: Run) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield what differs between the starts of two runs."""
    pairs = [(_facts(run), run) for run in (first, second)]
    for name in dict.fromkeys([*pairs[0][0], *pairs[1][0]]):
        values = (pairs[0][0].get(name, ""), pairs[1][0].get(name, ""))
        if values[0] != values[1]:
            yield name, values


def _facts(run: Run) -> dict[str, str]:
    facts = {name: str(run.facts.get(name, "")) for name in ("clotkit", "state")}
    facts |= {name: str(value) for name, value in mapping(run.facts.get("arguments")).items()}
    return facts | {"members": ", ".join(run.members)}
