"""Check that a process goes on when its output cannot be written, and ends without a traceback."""

import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from clotkit import console
from clotkit.errors import UsageError
from clotkit.options import INTERRUPTED, UNFORESEEN, WRONG
from clotkit.spawning import without_main


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("broken", [Full(), None], ids=["full", "absent"])
def test_the_work_goes_on(broken: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", broken)
    with console.kept_going():
        assert not sys.stdout.isatty()
        print("lost")
        sys.stdout.flush()
        assert console.lost()
    assert sys.stdout is broken


def test_a_closed_stream_and_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, kept = io.StringIO(), io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    monkeypatch.setattr(sys, "stderr", kept)
    with console.kept_going():
        print("lost")
        print("kept", file=sys.stderr)
        assert console.lost()
    assert kept.getvalue() == "kept\n"


def test_names_that_are_no_text_of_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    with console.kept_going():
        print("sl\u00efde \udce9")
        assert not console.lost()
    assert raw.getvalue() == b"sl\\xefde \\udce9\n"


class Odd:
    """A stream of a notebook: no terminal, no file, ASCII only, and errors of its own."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        if "fail" in text:
            raise LookupError(text)
        self.text += text.encode("ascii").decode()

    def flush(self) -> None: ...


def test_a_stream_that_is_hardly_one(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Odd()
    monkeypatch.setattr(sys, "stdout", odd)
    with console.kept_going():
        assert not sys.stdout.isatty()
        with pytest.raises(TypeError):
            sys.stdout.write(b"")  # type: ignore[arg-type]
        print("caf\u00e9")
        assert not console.lost()
        print("fail")
        assert console.lost()
    assert odd.text == "caf\\xe9\n"


def test_a_slow_reader_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    lines = list[bytes]()

    def read() -> None:
        with os.fdopen(reader, "rb") as file:
            lines.extend(file)

    thread = threading.Thread(target=read)
    thread.start()
    with console.kept_going():
        print("x" * 200_000)  # more than a pipe holds
        assert not console.lost()
    sys.stdout.close()
    thread.join()
    assert len(lines[0]) == 200_001


def test_a_library_cannot_close_the_streams(capsys: pytest.CaptureFixture[str]) -> None:
    with console.kept_going():
        sys.stdout.close()
        sys.stderr.close()
        print("still open")
    print("and afterwards")
    assert capsys.readouterr().out == "still open\nand afterwards\n"


def raises(error: BaseException) -> Any:
    """Return work that raises an error."""

    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "kept"),
    [
        (UsageError("wrong"), WRONG, False),
        (KeyboardInterrupt(), INTERRUPTED, False),
        (ZeroDivisionError("by nobody"), UNFORESEEN, True),
        (RecursionError("deep"), UNFORESEEN, True),
        (MemoryError(), UNFORESEEN, True),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), UNFORESEEN, True),
        (PermissionError(13, "Permission denied", "/there"), WRONG, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_line(
    error: BaseException, code: int, kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console.guarded(raises(error), tmp_path) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert (tmp_path / console.TRACEBACK).exists() is kept
    if kept:
        assert type(error).__name__ in lines[0]
        assert "raise error" in (tmp_path / console.TRACEBACK).read_text()


def test_a_traceback_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert console.guarded(raises(ValueError("x")), tmp_path / "absent") == UNFORESEEN
    (kept,) = tmp_path.iterdir()
    assert str(kept) in capsys.readouterr().err


SECRETS = {
    "user of a URL": "https://user:hunter2@example.org/a: refused",
    "signature of a query": "GET https://example.org/a?X-Amz-Signature=hunter2&part=1",
    "token of a query": "https://example.org/a?access_token=hunter2",
    "token of Kaggle": "401 for KGAT_hunter2hunter2: unknown",
    "header": "{'Authorization': 'Bearer hunter2hunter2.x=='}",
    "where the line is cut": "x" * 182 + " s3://user:hunter2@bucket/a",
}


@pytest.mark.parametrize("inside", [True, False], ids=["output folder", "temporary folder"])
@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_a_traceback_and_its_line_are_without_secrets(
    text: str, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        try:
            raise ConnectionError(text)
        except ConnectionError as first:
            raise ValueError(text) from first
    except ValueError as error:
        line = console.unforeseen(error, tmp_path if inside else None)
    (kept,) = tmp_path.iterdir()
    assert line.endswith(str(kept))
    assert "ConnectionError" in kept.read_text()
    assert not [part for part in (line, kept.read_text()) if "hunter" in part]


def test_a_traceback_in_the_temporary_folder_is_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / f"clotkit-{os.getpid()}-{console.TRACEBACK}").symlink_to(tmp_path / "theirs")
    for _ in range(2):
        console.unforeseen(ValueError("x"))
    kept = [path for path in tmp_path.glob(f"*{console.TRACEBACK}") if not path.is_symlink()]
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600, 0o600]
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_traceback_that_cannot_be_kept_is_still_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    line = console.unforeseen(ValueError("https://user:hunter2@example.org"))
    assert "ValueError" in line
    assert "hunter2" not in line


def test_an_error_in_a_thread_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = threading.excepthook
    with console.one_line_a_thread():
        thread = threading.Thread(target=raises(ValueError("in a thread")))
        thread.start()
        thread.join()
    assert threading.excepthook is before
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_the_main_module_is_hidden_for_a_while() -> None:
    program = vars(sys.modules["__main__"])
    before = {name: program.get(name) for name in ("__file__", "__spec__")}
    with without_main():
        assert program["__spec__"] is None
        assert "__file__" not in program
        with without_main():
            pass
        assert "__file__" not in program
    assert {name: program.get(name) for name in before} == before
