"""Answer a gateway's batches: always in time, always with a row for each row.

Standard library only.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.competitions.schema import BatchRows
from clotkit.console import unforeseen
from clotkit.errors import ClotkitError
from clotkit.reasons import Cause, Reason
from clotkit.report import records
from clotkit.report.records import SlideReport
from clotkit.serving.backend import ANSWERS, LINE, Backend
from clotkit.serving.frames import Batch, answer_for, read_batch, text_of, unread_batch
from clotkit.serving.rows import RequestedSlide, read_row
from clotkit.submission.answers import answer_cells
from clotkit.supervise import ROOT, WORKING, State, Status, say

MARGIN_S, MARGIN_SHARE = 5.0, 0.1  # kept of a deadline: seconds, or a share of it if that is less
BAD_ROW = Cause(Reason.BAD_ROW, "the batch's row has no image id that can be used")
WHY_LEFT = {  # by the reason why slides of a batch were left
    Reason.NOT_READY: "the members were not loaded by the batch's deadline",
    Reason.DEADLINE: "the batch's deadline came before it was done",
    Reason.LOST: "the process with the members died while it was read, and again",
    Reason.BAD_REQUEST: "the process with the members refused the batch",
}
RUN_OVER = Cause(Reason.DEADLINE, "the run's deadline has passed")
ANSWERED, LATE = "answered", "late"  # keys of Status.batches
CELLS = "cells"  # among a slide's facts in the report: the cells of its row, for its patient's later rows


class Predictor:
    """Answers the batches of a gateway with a process that has the members."""

    def __init__(
        self,
        competition: Competition,
        backend: Backend,
        split: Path,
        status: Status,
        started: float,
        batch_s: float = 0,
    ) -> None:
        """Answer with `backend`; `batch_s` replaces the deadline of batches but the first if it is not 0.

        A server that goes on from the report of one before has had its first batch.
        """
        self.competition, self.backend, self.status, self.started = competition, backend, status, started
        serving = competition.serving
        self._batch_s = batch_s or serving.deadline_s
        self._first_s = serving.first_deadline_s or serving.deadline_s
        self._roots = [*shared_places(split, competition), split]
        self._lock = threading.Lock()
        self._lines = {line.image_id: line for line in _earlier_lines()}  # a server that is started again goes on
        self._facts = {image_id: _cells(line) for image_id, line in self._lines.items()}
        self._waits_for_first = not self._lines
        self._answers: dict[str, list[str]] = {}  # by id of the submission, the latest
        self._report = records.ReportFile(WORKING / records.REPORT, list(self._lines.values()))
        self.batches = 0

    def predict(self, *values: Any, **named: Any) -> Any:
        """Return the answer to a batch: a row for each of its rows, in the form of what came."""
        received = time.monotonic()
        with self._lock:
            self.batches += 1
            try:
                batch = read_batch([*values, *named.values()], self.competition.columns.image)
            except Exception as error:  # noqa: BLE001 - whatever it is, the gateway gets an answer
                self._failed(error)
                batch = unread_batch([*values, *named.values()])
            rows = [self._read(cells, number, batch) for number, cells in enumerate(batch.rows, start=1)]
            try:
                self._score(rows, received)
            except Exception as error:  # noqa: BLE001 - whatever it is, the gateway gets its rows
                self._failed(error)
            self._write_status()
            try:
                return self._answer(batch, rows)
            except Exception as error:  # noqa: BLE001 - cells that cannot even be written back
                self._failed(error)
                return self._answer(replace(batch, rows=[{}] * len(rows)), [None] * len(rows))

    def _failed(self, error: Exception) -> None:
        """Note that a batch could not be answered as it should be."""
        self.status.add(Reason.FAILED)
        say(f"batch {self.batches}: {unforeseen(error, WORKING)}")

    def close(self) -> None:
        """End the process that has the members, and close the report."""
        self.backend.close()
        self._report.close()

    def _read(self, cells: Mapping[str, Any], number: int, batch: Batch) -> RequestedSlide | None:
        """Return the slide of a row; None, whatever is wrong with the row."""
        try:
            return read_row(cells, number, batch, self.competition, self._roots)
        except Exception as error:  # noqa: BLE001 - the other rows are scored
            self._failed(error)
            return None

    def _score(self, rows: Sequence[RequestedSlide | None], received: float) -> None:
        """Score the slides of the rows, and keep the answers that there are by the deadline."""
        asked = {one.image_id: one for one in rows if one is not None}
        for number, one in enumerate(rows, start=1):
            if one is None:
                self._fall_back(RequestedSlide(f"(batch {self.batches}, row {number})", "", "", {}, ()), BAD_ROW)
        self._facts |= {image_id: one.facts for image_id, one in asked.items()}
        limit_s = self._first_s if self._waits_for_first else self._batch_s
        self._waits_for_first = False
        run_until = self.started + self.competition.limits.deadline_s
        until = min(received + limit_s - min(MARGIN_S, MARGIN_SHARE * limit_s), run_until)
        waiting = dict(asked)
        for message in self.backend.score([self._request(one) for one in asked.values()], until) if asked else ():
            line = self._with_cells(SlideReport(**message[LINE]))
            waiting.pop(line.image_id, None)
            self._answers |= message[ANSWERS]
            self._add(line)
        cause = RUN_OVER if time.monotonic() >= run_until else self._why_late()
        for one in waiting.values():
            self._fall_back(one, cause)
        batches = self.status.batches
        batches[ANSWERED] = batches.get(ANSWERED, 0) + 1
        batches[LATE] = batches.get(LATE, 0) + bool(waiting)
        say(f"batch {self.batches}: {len(rows)} rows, {len(waiting)} late, {time.monotonic() - received:.1f} s")

    def _why_late(self) -> Cause:
        if self.backend.reason is not None:
            return Cause(self.backend.reason, "the members cannot be used")
        return Cause(self.backend.why_left, WHY_LEFT.get(self.backend.why_left, "the members could not score it"))

    def _with_cells(self, line: SlideReport) -> SlideReport:
        """Return a slide's line with the cells of its row, if its patient may have later rows."""
        cells = {} if self.competition.by_image else dict(self._facts.get(line.image_id, {}))
        return replace(line, facts=line.facts | {CELLS: cells}) if cells else line

    def _request(self, one: RequestedSlide) -> dict[str, Any]:
        """Return the request to score a slide, with its row's earlier slides."""
        others = () if self.competition.by_image else self._lines.items()
        earlier = [
            {"image": image_id, "facts": dict(self._facts.get(image_id, {})), "p": line.p}
            for image_id, line in others
            if line.p and image_id != one.image_id and line.patient_id == one.patient_id
        ]
        return {
            "image": one.image_id,
            "patient": one.patient_id,
            "row": one.row_id,
            "facts": dict(one.facts),
            "paths": list(one.paths),
            "other_paths": list(one.other_paths),
            "earlier": earlier,
        }

    def _fall_back(self, one: RequestedSlide, cause: Cause) -> None:
        """Report a slide as fallback."""
        line = SlideReport(one.image_id, one.patient_id, "fallback", cause.sentence, 0, 0.0, 0.0, codes=[cause.code])
        self._add(line)

    def _add(self, line: SlideReport) -> None:
        """Add a line to the report; a disk that is full costs the line only."""
        self._lines[line.image_id] = line
        self.status.add(*line.codes)
        with suppress(OSError):
            self._report.add(line)

    def _answer(self, batch: Batch, rows: Sequence[RequestedSlide | None]) -> Any:
        """Return the answer to a batch, by what is known of its rows.

        Rows of one id are told by the batch's own cell, by which the gateway counts them; without it by their slides.
        """
        cells = batch.ids(self.competition.submission.id)
        ids = [cell if text_of(cell) else one and one.row_id for cell, one in zip(cells, rows, strict=True)]
        groups = [[place] for place in range(len(rows))]
        if self.competition.serving.rows is BatchRows.ID:
            by_id: dict[str, list[int]] = {}
            for place, one in enumerate(ids):
                by_id.setdefault(text_of(one), []).append(place)
            without_id = by_id.pop("", [])
            groups = list(by_id.values()) or [without_id[:1]] * bool(without_id)
        answers = [self._answer_of([rows[place] for place in group]) for group in groups]
        return answer_for(batch, [ids[group[0]] for group in groups], answers, self.competition)

    def _answer_of(self, rows: Sequence[RequestedSlide | None]) -> Sequence[str]:
        """Return the cells of the answer to rows of one id: the first that is known, or the fallback."""
        known = (self._answers[one.row_id] for one in rows if one is not None and one.row_id in self._answers)
        return next(known, answer_cells(self.competition, None))

    def _write_status(self) -> None:
        """Write the state so far: the gateway does not announce its last batch."""
        self.status.slides = records.counts(list(self._lines.values()))
        self.status.write(self.state, self.started)

    @property
    def state(self) -> State:
        """The state of the slides so far."""
        counts = records.counts(list(self._lines.values()))
        if counts["fallback"] == sum(counts.values()):
            return State.FALLBACK
        return State.DONE if counts["done"] == sum(counts.values()) else State.PARTIAL


def shared_places(split: Path, competition: Competition) -> list[Path]:
    """Return the folders where a gateway may mount slides: below the shared one, by their path there."""
    shared = ROOT / "shared"
    inputs = [f"kaggle/input/{place}{competition.slug}" for place in ("competitions/", "")]
    return [shared / split.relative_to("/"), *(shared / name for name in inputs), shared]


def _cells(line: SlideReport) -> Mapping[str, str]:
    """Return the cells of a slide's row, as a server before has noted them."""
    cells = line.facts.get(CELLS)
    return cells if isinstance(cells, dict) else {}


def _earlier_lines() -> list[SlideReport]:
    """Return the lines of a server that ran in this folder before."""
    try:
        return records.read_report(WORKING / records.REPORT)
    except (ClotkitError, ValueError, TypeError):
        return []
