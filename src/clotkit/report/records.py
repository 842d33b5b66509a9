"""Read and write report.jsonl, which has one line per slide, and make the table at the end of a run.

It needs the standard library only.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from clotkit.errors import SplitError
from clotkit.files import ESCAPED, atomic_write_text

REPORT, RUN, SLIDES, PAGE = "report.jsonl", "run.json", "slides.jsonl", "report.html"
FILES = (REPORT, RUN, SLIDES, PAGE)  # in a run's folder, besides the submission
IMAGE_ID = "image_id"  # key of a line, here and in slides.jsonl
State = Literal["done", "partial", "fallback"]
STATES = ("done", "partial", "fallback")


@dataclass(frozen=True)
class SlideReport:
    """One slide's line of report.jsonl.

    `codes` is empty in a line of an older kit, and for a slide that is done.
    """

    image_id: str
    patient_id: str
    state: State
    codes: list[str] = field(
        default_factory=list, kw_only=True
    )  # reasons.Reason, in the order of the sentences in `reason`
    reason: str  # sentences for people; empty: done
    tiles: int
    seconds: float
    peak_mb: float
    p: dict[str, list[float]] = field(default_factory=dict)  # by member: [C], mean over tiles, before calibration
    facts: dict[str, Any] = field(default_factory=dict)  # of the slide's file and its tissue


class LinesFile:
    """A file of lines, open for appending."""

    def __init__(self, path: Path, kept: Iterable[str], durable: bool) -> None:
        """Start the file with the lines `kept` of an older one; `durable`: fsync every line."""
        atomic_write_text(path, "".join(kept))
        self._file: BinaryIO = path.open("ab")
        self._durable = durable

    def append(self, line: str) -> None:
        """Append a line and flush. Raises OSError if the disk is full; the file then has whole lines only."""
        whole = self._file.tell()
        try:
            self._file.write(line.encode(errors=ESCAPED))
            self._file.flush()
            if self._durable:
                os.fsync(self._file.fileno())
        except OSError:
            self._file = self._cut(whole)
            raise

    def _cut(self, whole: int) -> BinaryIO:
        """Cut the file to its whole lines and open it again: the old buffer would write the rest later."""
        with suppress(OSError):
            self._file.close()
        os.truncate(self._file.name, whole)
        return Path(self._file.name).open("ab")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class ReportFile(LinesFile):
    """The file report.jsonl, open for appending; each line is on disk before the next slide."""

    def __init__(self, path: Path, kept: Sequence[SlideReport] = ()) -> None:
        """Start the file with the lines `kept` of an older one."""
        super().__init__(path, map(_text, kept), durable=True)

    def add(self, line: SlideReport) -> None:
        """Append a line; see LinesFile.append."""
        self.append(_text(line))


def _text(line: SlideReport) -> str:
    return json.dumps(asdict(line), ensure_ascii=False) + "\n"


def read_report(path: Path) -> list[SlideReport]:
    """Return the lines of a report.jsonl, without a last line that a kill cut short.

    Raises SplitError if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SplitError(f"{path}: cannot be read: {error.strerror}; clotkit run writes it") from error
    complete = text[: text.rfind("\n") + 1]
    try:
        return [SlideReport(**json.loads(line)) for line in complete.split("\n")[:-1]]
    except RecursionError as error:
        raise SplitError(f"{path}: a line is nested too deeply; clotkit run writes it") from error


def table(lines: Sequence[SlideReport]) -> Iterator[str]:
    """Yield the rows of the table at the end of a run, by state and image id.

    Its columns are slide, state, tiles, seconds, peak MB and reason.
    """
    width = max([len("slide"), *(len(line.image_id) for line in lines)])
    yield f"{'slide':<{width}}  {'state':<8} {'tiles':>6} {'seconds':>8} {'peak MB':>8}  reason"
    for line in sorted(lines, key=lambda line: (STATES.index(line.state), line.image_id)):
        yield (
            f"{line.image_id:<{width}}  {line.state:<8} {line.tiles:>6} {line.seconds:>8.1f} {line.peak_mb:>8.0f}"
            f"  {line.reason}"
        ).rstrip()


def counts(lines: Sequence[SlideReport]) -> dict[str, int]:
    """Return the number of slides by state."""
    by_state: Counter[str] = Counter(line.state for line in lines)
    return {state: by_state[state] for state in STATES}
