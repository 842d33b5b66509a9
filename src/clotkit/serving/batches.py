"""Score the slides of a gateway's batches with members that stay loaded.

A batch is scored as `clotkit run` scores a split: each slide in a process of its own with a time and a memory limit.
Nothing of a batch is kept for the next one: a request has what counts of earlier slides.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition
from clotkit.console import unforeseen
from clotkit.errors import one_line
from clotkit.looking import ANSWER_S
from clotkit.members.folder import check_trained_for
from clotkit.members.loading import Member
from clotkit.progress import Log
from clotkit.reasons import Cause, Reason
from clotkit.scoring.inputs import Inputs, find_ensemble, load_members, with_missing_facts
from clotkit.scoring.local import score_locally
from clotkit.scoring.scorer import ScoredSlide, Scorer, ScoringJob, not_scored
from clotkit.scoring.settings import RunSettings
from clotkit.scoring.state import SubmissionState
from clotkit.serving.backend import ANSWERS, END, ERROR, LINE, READY
from clotkit.serving.locating import locate, slide_row
from clotkit.serving.requests import Request, read_request
from clotkit.splits import Sample, SlideRow
from clotkit.submission.answers import answer_cells
from clotkit.workers import Work, score_task

NO_MEMBER = Cause(Reason.NO_MEMBER, "no member could be loaded")
AMBIGUOUS = Cause(Reason.AMBIGUOUS, "several files may be the slide: say which by serving.path or files.slide")
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
        `facts`, `paths` to try, `other_paths` for want of those, and `earlier`: the other slides of its row, each with
        `image`, `facts` and `p`, its probabilities by member.
        """
        started, left_s = time.monotonic(), float(request["left_s"])
        asked = {slide["image"]: slide for slide in request["slides"]}
        slides, ambiguous = locate(list(asked.values()), min(ANSWER_S, left_s / 10), self.log)
        state = self._state([*slides, *ambiguous], asked)
        scorer = Scorer(self.members, state.inputs.patient_of, self.competition.limits.min_tiles)
        settings = replace(self.settings, deadline_s=left_s)
        job = ScoringJob(slides, self.members, scorer, settings, self.competition, started, self.work)
        for scored in chain(not_scored(scorer, ambiguous, AMBIGUOUS), self._scored(job)):
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
        loaded = {member.name for member in self.members}  # those of a server before may have been others
        others = {
            other["image"]: (other, slide)
            for slide in asked.values()
            for other in slide.get("earlier", ())
            if other["image"] not in asked
        }
        known = [slide_row({**slide, **other}, None, ()) for other, slide in others.values()]
        row_of = {image_id: slide["row"] for image_id, slide in asked.items()}
        row_of |= {image_id: slide["row"] for image_id, (_, slide) in others.items()}
        inputs = with_missing_facts(replace(self.inputs, slides=slides, row_of=row_of), self.members, self.log)
        inputs = replace(inputs, slides=[*inputs.slides, *known])
        scored = {
            image_id: {member: np.array(p) for member, p in other["p"].items() if member in loaded}
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


def serve(
    scorer: BatchScorer, requests: Iterable[bytes], reply: Callable[[Reply], None], seconds: float
) -> tuple[int, int]:
    """Say that the members are loaded, after `seconds`, and answer every request, a line of JSON each.

    Returns the number of requests that were answered, and of the lines that are none or could not be answered. Those
    have an error as reply, and the next line is read.
    """
    reply({READY: round(seconds, 1), "members": [member.name for member in scorer.members]})
    answered = refused = 0
    for line in requests:
        try:
            for one in _replies(scorer, line):
                reply(one)
            answered += 1
        except _RefusedError as error:
            reply({ERROR: {"code": error.code, "message": str(error)}, END: True})
            refused += 1
    return answered, refused


class _RefusedError(Exception):
    """A request that has no answer."""

    def __init__(self, code: Reason, message: str) -> None:
        super().__init__(message)
        self.code = code


def _replies(scorer: BatchScorer, line: bytes) -> Iterator[Reply]:
    """Yield the replies to a line. Raises _RefusedError."""
    try:
        request = read_request(line, len(scorer.competition.classes.names))
    except ValueError as error:
        raise _RefusedError(Reason.BAD_REQUEST, one_line(error)) from error
    try:
        yield from scorer.replies(request)
    except Exception as error:
        raise _RefusedError(Reason.FAILED, unforeseen(error)) from error
