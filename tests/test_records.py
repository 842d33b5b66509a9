"""Test the progress of a run: one line per slide, or a bar and the lines that must be read."""

import io

import pytest

from clotkit.progress import progress


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
