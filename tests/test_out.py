"""Every verb refuses a path that it cannot write to, before it does any work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clotkit.cli import main, parser
from clotkit.errors import UsageError
from clotkit.options import options_of, out_file, out_folder, out_place, verbs_of

from .conftest import ROOT
from .permissions import obey_permissions

OUTS = {verb: options_of(one)["out"] for verb, one in verbs_of(parser()).items() if "out" in options_of(one)}
OUT_FOLDER = "from clotkit.options import out_folder; print(out_folder({!r}))"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a file that is nobody's to overwrite."""
    path = tmp_path / "file"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("verb", OUTS)
def test_every_verb_checks_where_it_writes(verb: str, file: Path) -> None:
    check = OUTS[verb].type
    assert check in (out_folder, out_place, out_file)
    for path in (file / "below", file / "far" / "below", *([] if check is out_file else [file])):
        with pytest.raises(UsageError):
            check(str(path))
    assert file.read_text() == "mine"


def test_what_can_be_made_is_returned_and_not_made_yet(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in (".", "new", "new/deep", str(tmp_path / "new")):
        assert out_folder(text) == out_place(text) == Path(text)
        assert out_file(f"{text}/a.csv") == Path(text) / "a.csv"
    assert out_file(str(file)) == file
    assert out_place("s3://bucket/tiles/") == "s3://bucket/tiles"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_no_file_and_a_broken_link_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError):
        out_file(str(tmp_path))
    for path in (tmp_path / "link", tmp_path / "link" / "below"):
        with pytest.raises(UsageError):
            out_folder(str(path))


@pytest.mark.skipif(sys.platform != "linux", reason="it needs capabilities of Linux")
@pytest.mark.parametrize("below", ["", "new", "new/deep"])
def test_a_folder_without_permission_is_refused(below: str, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    words = [sys.executable, "-c", OUT_FOLDER.format(str(closed / below))]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=obey_permissions, timeout=120
    )
    assert done.returncode != 0
    assert "UsageError" in done.stderr


def test_the_refusal_is_an_object_with_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["contours", str(file / "below"), "--json"])
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert len(printed.err.splitlines()) == 1
    assert (ended.value.code, answer["exit_code"], answer["error"]["code"]) == (2, 2, "usage")
