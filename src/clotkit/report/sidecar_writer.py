"""Write slides.jsonl while a run goes on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

from clotkit.errors import described
from clotkit.progress import Log
from clotkit.report.records import LinesFile, SlideReport
from clotkit.report.shown import Shown
from clotkit.report.sidecar import Trace, kept_lines, sidecar_line


class SidecarWriter:
    """The file slides.jsonl, open for appending; an error costs pictures only, and is logged once."""

    def __init__(self, path: Path, kept: set[str], slides: int, started: float, shown: Shown, log: Log) -> None:
        """Start the file with the lines that are there of the slides in `kept`.

        Args:
            path: the file.
            kept: the slides.
            slides: their number in the whole run.
            started: the time.monotonic() value at which the run began.
            shown: what is drawn of a tile's probabilities.
            log: called with the first error.
        """
        self._shown = shown
        self._path, self._slides, self._started, self._log = path, slides, started, log
        self._file: LinesFile | None = None
        self._part, self._failed = 1, False
        self._attempt(partial(self._open, kept))

    def add(self, line: SlideReport, trace: Trace) -> None:
        """Append the line of a slide."""
        file = self._file
        if file is not None:
            settings = (self._slides, self._started, self._part, self._shown)
            self._attempt(lambda: file.append(sidecar_line(line, trace, *settings)))

    def _open(self, kept: set[str]) -> None:
        lines, self._part = kept_lines(self._path, kept)
        self._file = LinesFile(self._path, lines, durable=False)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # noqa: BLE001 - pictures are not worth the run
            if not self._failed:
                self._log(f"{self._path}: {described(error)}; the report will lack some pictures, the run goes on")
            self._failed = True

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
