"""Test the progress and the report of a run: one line per slide, whatever is in it."""

import io
import os
from pathlib import Path

import pytest

from clotkit.progress import progress
from clotkit.report.records import ReportFile, SlideReport, read_report


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "lines"), [(io.StringIO, ["[1/2] a: 3 tiles", "[2/2] b: failed"]), (Terminal, ["[2/2] b: failed"])]
)
def test_progress(stream: type[io.StringIO], lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", stream())
    said: list[str] = []
    with progress(2, said.append) as advance:
        advance("a: 3 tiles", False)
        advance("b: failed", True)
    assert said == lines


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\x1c", os.fsdecode(b"\xe9"), "\n"])
def test_a_line_of_the_report_ends_at_a_newline_only(odd: str, tmp_path: Path) -> None:
    line = SlideReport(f"a{odd}b_0", f"a{odd}b", "done", reason="", tiles=1, seconds=1.0, peak_mb=1.0)
    with ReportFile(tmp_path / "report.jsonl", [line]) as report:
        report.add(line)
    assert read_report(tmp_path / "report.jsonl") == [line, line]
