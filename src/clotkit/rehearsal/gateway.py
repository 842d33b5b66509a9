"""Play the gateway of a competition: send batches and faults to a server, and check its answers."""

import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd

from clotkit.competitions import Competition
from clotkit.competitions.schema import AnswerForm, BatchRows
from clotkit.rehearsal.gateway_faults import GatewayFault, fallbacks
from clotkit.rehearsal.server import Server
from clotkit.rehearsal.standin.gateway import InvalidAnswerError, batches_of, rows_of
from clotkit.report.records import SlideReport
from clotkit.splits import SlideRow, read_sample, row_id
from clotkit.submission.answers import answer_cells

BATCH_ROWS = 4
BROKEN_BYTES = b"II*\0" + bytes(100)


class Failure(StrEnum):
    """A way in which a batch fails."""

    MISSED = "missed"  # no answer by the deadline
    RAISED = "raised"  # an exception instead of an answer
    GONE = "gone"  # the server is not there
    INVALID = "invalid"  # the answer lacks rows, or has a gap
    HELD = "held"  # a process has a slide of the batch open after the answer
    STATES = "states"  # slides of a batch with a fault fall back that should be scored, or the other way round


@dataclass
class GatewayResults:
    """The outcome of the batches so far."""

    batches: int = 0
    rows: int = 0
    slowest_s: float = 0.0
    failures: list[tuple[Failure, str]] = field(default_factory=list)  # with the batch
    answers: dict[str, list[Any]] = field(default_factory=dict)  # by id of the submission, the latest

    def count(self, failure: Failure) -> int:
        """Return the number of batches that failed so."""
        return sum(kind is failure for kind, _ in self.failures)

    @property
    def facts(self) -> dict[str, Any]:
        """The entries of rehearsal.json."""
        failures = {str(kind): self.count(kind) for kind in Failure}
        return {"batches": self.batches, "rows": self.rows, "slowest_s": round(self.slowest_s, 1), **failures}


class Gateway:
    """The gateway of a rehearsal; its server runs in a sandbox."""

    def __init__(self, server: Server, slides: Sequence[SlideRow], split_dir: Path, competition: Competition) -> None:
        """Send the slides of a split; their files are in `split_dir`."""
        self.server, self.competition, self.split_dir = server, competition, split_dir
        self.slides = {slide.image_id: slide for slide in slides}
        columns = [dict(slide.facts) for slide in slides]
        self.frame = pd.DataFrame(columns)
        self._id = competition.submission.id
        if self._id not in self.frame.columns:  # the patient is in the image id only
            self.frame[self._id] = [row_id(slide, competition) for slide in slides]
        self.results = GatewayResults()

    def batches(self, seed: int, batch_rows: int = BATCH_ROWS) -> list[pd.DataFrame]:
        """Return the slides in batches, in random order."""
        order = list(range(len(self.frame)))
        random.Random(seed).shuffle(order)
        return batches_of(self.frame.iloc[order], self._id, batch_rows)

    def send(self, batch: Any, *more: Any, instead: Mapping[str, Path | None] | None = None) -> dict[str, Any] | None:
        """Share the files of a batch, send it, check the answer; return its columns, None if it failed.

        `instead` has other files for some image ids, None for none.
        """
        name = f"batch {self.results.batches + 1}"
        ids = [one for one in batch[self.competition.columns.image].to_list() if isinstance(one, str)]
        shared = self._share([one for one in ids if one in self.slides], instead or {})
        started = time.monotonic()
        try:
            answer = self.server.send(batch, *more)
            columns = rows_of(answer, self._rows(batch))
        except (TimeoutError, RuntimeError, ConnectionError, InvalidAnswerError) as error:
            kinds = {TimeoutError: Failure.MISSED, InvalidAnswerError: Failure.INVALID, RuntimeError: Failure.RAISED}
            self.results.failures.append((kinds.get(type(error), Failure.GONE), f"{name}: {error}"))
            columns = None
        self.results.slowest_s = max(self.results.slowest_s, time.monotonic() - started)
        self.results.batches += 1
        self.results.rows += len(batch)
        if columns is not None and (held := self.server.held(shared)):
            self.results.failures.append((Failure.HELD, f"{name}: {', '.join(held)}"))
        self._unshare(shared)
        return columns

    def play(self, batches: Sequence[Any], resets: Sequence[int] = ()) -> None:
        """Send batches and keep the answers; reset the server before those with the numbers `resets`, from 0."""
        for number, batch in enumerate(batches):
            if number in resets:
                self.server.reset()
            columns = self.send(batch)
            if columns is not None:
                self._keep(batch, columns)

    def play_fault(self, fault: GatewayFault, batch: pd.DataFrame, scratch: Path) -> None:
        """Send a batch with a fault."""
        image = self.competition.columns.image
        first = str(batch[image].iloc[0])
        more: list[Any] = []
        instead: dict[str, Path | None] = {}
        if fault is GatewayFault.RESET:
            self.server.reset()
        elif fault is GatewayFault.BROKEN_SLIDE:
            instead[first] = scratch / "broken.tif"
            (scratch / "broken.tif").write_bytes(BROKEN_BYTES)
        elif fault is GatewayFault.STUCK_MEMBERS:
            self.server.stop_members()
        elif fault is GatewayFault.NULL_ROW:
            batch = pd.concat([batch, pd.DataFrame([dict.fromkeys(batch.columns)])], ignore_index=True)
        elif fault is GatewayFault.NULL_IMAGE:
            batch = batch.assign(**{image: [None, *batch[image].iloc[1:]]})
        elif fault is GatewayFault.REPEATED_ROW:
            batch = pd.concat([batch, batch.iloc[:1]], ignore_index=True)
        elif fault is GatewayFault.NO_ROW:
            batch = batch.iloc[:0]
        elif fault is GatewayFault.NO_SLIDE:
            instead = dict.fromkeys(map(str, batch[image]))
        elif fault is GatewayFault.SECOND_FRAME:
            more = [pd.DataFrame({self._id: ["another"] * (len(batch) + 2)})]
        self.send(batch, *more, instead=instead)

    def check_states(
        self, fault: GatewayFault, batch: pd.DataFrame, before: Mapping[str, bool], lines: Sequence[SlideReport]
    ) -> None:
        """Note a failure if the report's lines of a batch with a fault are not as they should be.

        `before` says which slides fell back without a fault.
        """
        expected = fallbacks(fault, [str(one) for one in batch[self.competition.columns.image]], before)
        fallen = {line.image_id: line.state == "fallback" for line in lines}
        wrong = sorted(one for one, falls in expected.items() if fallen.get(one) is not falls)
        if wrong:
            name = "fallback" if expected[wrong[0]] else "scored"
            failure = (
                f"fault {fault}: {len(wrong)} of {len(expected)} slides, 0 are allowed; {wrong[0]} should be {name}"
            )
            self.results.failures.append((Failure.STATES, failure))

    def write_submission(self, path: Path) -> None:
        """Write the answers as a submission in the order of the sample."""
        sample = read_sample(self.competition.sample_path(self.split_dir), self.competition)
        fallback = answer_cells(self.competition, None)
        rows = {
            one: [f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in self.answers_of(one)]
            for one in self.results.answers
        }
        cells = [
            dict(zip(self.competition.submission.columns, rows.get(one, fallback), strict=True)) for one in sample.ids
        ]
        table = pd.DataFrame([{self._id: text} | row for text, row in zip(sample.texts, cells, strict=True)])
        table[list(sample.columns)].to_csv(path, index=False, header=list(sample.header))

    def answers_of(self, one: str) -> list[Any]:
        """Return the latest answer of an id."""
        return self.results.answers[one]

    def _rows(self, batch: Any) -> int:
        """Return the number of rows that the answer to a batch must have."""
        if self.competition.serving.rows is BatchRows.SLIDE:
            return len(batch)
        return len({one for one in batch[self._id].to_list() if isinstance(one, str)})

    def _keep(self, batch: pd.DataFrame, columns: Mapping[str, Sequence[Any]]) -> None:
        ids = [str(one) for one in batch[self._id]]
        if self.competition.serving.rows is BatchRows.ID:
            ids = list(dict.fromkeys(ids))
        names = self.competition.submission.columns
        if self.competition.serving.answer is AnswerForm.VALUE and len(ids) == 1 and len(columns) == 1:
            columns = {names[0]: next(iter(columns.values()))}
        for place, one in enumerate(ids):
            self.results.answers[one] = [columns[name][place] for name in names]

    def _share(self, ids: Sequence[str], instead: Mapping[str, Path | None]) -> list[Path]:
        """Put the files of slides where the server sees them, and return their paths there."""
        paths = []
        for one in dict.fromkeys(ids):
            source = instead.get(one, self.slides[one].path)
            if source is None:
                continue
            name = self.slides[one].path.relative_to(self.split_dir)
            path = self.server.shared / "kaggle" / "input" / self.competition.slug / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            try:
                os.link(source, path)
            except OSError:  # on another file system
                shutil.copyfile(source, path)
            paths.append(path)
        return paths

    def _unshare(self, paths: Sequence[Path]) -> None:
        """Take the files of a batch away; as after an unmount, an empty file stays where each was."""
        for path in paths:
            with suppress(FileNotFoundError):
                path.unlink()
            path.touch()
