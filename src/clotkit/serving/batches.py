"""Score the slides of a gateway's batches with members that stay loaded.

A batch is scored as `clotkit run` scores a split: each slide in a process of its own with a time and a memory limit.
Nothing of a batch is kept for the next one: a request has what counts of earlier slides.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition
from clotkit.looking import ANSWER_S, look_at
from clotkit.members.folder import check_trained_for
from clotkit.members.loading import Member
from clotkit.progress import Log
from clotkit.reasons import Cause, Reason
from clotkit.scoring.inputs import Inputs, find_ensemble, load_members, with_missing_facts
from clotkit.scoring.local import score_locally
from clotkit.scoring.scorer import ScoredSlide, Scorer, ScoringJob, not_scored
from clotkit.scoring.settings import RunSettings
from clotkit.scoring.state import SubmissionState
from clotkit.serving.backend import ANSWERS, END, LINE, READY
from clotkit.splits import Sample, SlideRow
from clotkit.splits.identity import SLIDE_SUFFIXES
from clotkit.submission.answers import answer_cells
from clotkit.supervise import ROOT, walk
from clotkit.workers import Work, score_task

NO_MEMBER = Cause(Reason.NO_MEMBER, "no member could be loaded")
SHARED = ROOT / "shared"  # where a gateway mounts the slides of a batch
Request = Mapping[str, Any]
Reply = dict[str, Any]


@dataclass(frozen=True)
class BatchScorer:
    """The members of a server, loaded once."""

    competition: Competition
    settings: RunSettings
    inputs: Inputs  # without slides
    members: Sequence[Member]
    log: Log
    work: Work = score_task

    def replies(self, request: Request) -> Iterator[Reply]:
        """Yield a reply for each slide of a request as it is scored, and a last one.

        The request has `left_s`, the seconds for it, and `slides`, each with `image`, `patient`, `row`,
        `facts`, `paths` to try, and `earlier`: the other slides of its row, each with `image`, `facts` and `p`,
        its probabilities by member.
        """
        started, left_s = time.monotonic(), float(request["left_s"])
        asked = {slide["image"]: slide for slide in request["slides"]}
        slides = placed(list(asked.values()), min(ANSWER_S, left_s / 10), self.log)
        state = self._state(slides, asked)
        scorer = Scorer(self.members, state.inputs.patient_of, self.competition.limits.min_tiles)
        settings = replace(self.settings, deadline_s=left_s)
        job = ScoringJob(slides, self.members, scorer, settings, self.competition, started, self.work)
        for scored in self._scored(job):
            line = scored.line
            if scored.means:
                state.add(line, scored.means)
            row_id = state.inputs.row_of[line.image_id]
            repairs = list(state.inputs.repairs_of.get(line.image_id, ()))
            line = replace(line, facts=line.facts | ({"repairs": repairs} if repairs else {}))
            yield {LINE: asdict(line), ANSWERS: self._answers(state, row_id)}
        yield {END: True}

    def _scored(self, job: ScoringJob) -> Iterator[ScoredSlide]:
        return score_locally(job) if self.members else not_scored(job.scorer, job.slides, NO_MEMBER)

    def _state(self, slides: Sequence[SlideRow], asked: Mapping[str, Any]) -> SubmissionState:
        """Return a submission of the rows that the slides count for, with their earlier slides scored."""
        others = {
            other["image"]: (other, slide)
            for slide in asked.values()
            for other in slide.get("earlier", ())
            if other["image"] not in asked
        }
        known = [_slide({**slide, **other}, None, ()) for other, slide in others.values()]
        row_of = {image_id: slide["row"] for image_id, slide in asked.items()}
        row_of |= {image_id: slide["row"] for image_id, (_, slide) in others.items()}
        inputs = with_missing_facts(replace(self.inputs, slides=slides, row_of=row_of), self.members, self.log)
        inputs = replace(inputs, slides=[*inputs.slides, *known])
        scored = {
            image_id: {member: np.array(p) for member, p in other["p"].items()}
            for image_id, (other, _) in others.items()
        }
        return SubmissionState(Path(), self.competition, inputs, self.log, self.members, scored)

    def _answers(self, state: SubmissionState, row_id: str) -> dict[str, list[str]]:
        """Return the cells of the answer of one row; empty if none of its slides is scored."""
        row_of = state.inputs.row_of
        scored = {image_id: means for image_id, means in state.scored.items() if row_of[image_id] == row_id}
        if not any(scored.values()):
            return {}
        rows = replace(state, scored=scored).probabilities()
        labels = state.labels(rows)
        return {one: answer_cells(self.competition, p, labels.get(one)) for one, p in rows.items()}


def placed(slides: Sequence[Request], answer_s: float, log: Log) -> list[SlideRow]:
    """Return slides at the first of their paths that is there; at the first of all if none is."""
    paths = [(place, Path(path)) for place, slide in enumerate(slides) for path in slide["paths"]]
    seen = look_at([(path, None) for _, path in paths], log, answer_s) if paths else {}
    found: dict[int, tuple[Path, list[int]]] = {}
    for number, (place, path) in enumerate(paths):
        if any(seen.get(number, ())) and place not in found:
            found[place] = (only_slide(path), seen[number])
    lost = {
        Path(path).name: place for place, slide in enumerate(slides) if place not in found for path in slide["paths"]
    }
    for folder, names in walk(SHARED) if lost else ():
        found |= {lost[name]: (folder / name, []) for name in names if name in lost}
    return [_slide(slide, *found.get(place, (None, []))) for place, slide in enumerate(slides)]


def only_slide(path: Path) -> Path:
    """Return the slide in a folder that has one, as a gateway may share it; any other path as it is."""
    inside = [one for one in path.iterdir() if one.suffix.casefold() in SLIDE_SUFFIXES] if path.is_dir() else []
    return inside[0] if len(inside) == 1 else path


def _slide(slide: Request, path: Path | None, state: Sequence[int]) -> SlideRow:
    """Return a slide at its path, with the size and the time of change of its file if they are known."""
    if path is None:
        path = Path(slide["paths"][0] if slide["paths"] else slide["image"])
    size = tuple(state) if state else ()
    return SlideRow(slide["image"], slide["patient"], path, None, facts=slide["facts"], size_and_mtime=size)


def load_scorer(settings: RunSettings, competition: Competition, log: Log) -> BatchScorer:
    """Load the members of `settings.weights_dir`.

    Raises ConfigError if no member is there, UsageError for limits that are too small.
    """
    settings.check()
    ensemble, folders = find_ensemble(settings.weights_dir, competition, settings.without)
    check_trained_for(folders, competition.slug)
    inputs = Inputs((), Sample((), (), (), ()), {}, ensemble, folders, None, "")
    members, _ = load_members(inputs, competition, log)
    return BatchScorer(competition, settings, inputs, members, log)


def serve(scorer: BatchScorer, requests: Iterable[Request], reply: Callable[[Reply], None], seconds: float) -> int:
    """Say that the members are loaded, after `seconds`; answer every request, and return their number."""
    reply({READY: round(seconds, 1), "members": [member.name for member in scorer.members]})
    answered = 0
    for request in requests:
        for one in scorer.replies(request):
            reply(one)
        answered += 1
    return answered
