"""The JSON object of every verb: one on standard output, with the fields that the reference documents."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clotkit.answer import SCHEMA, stdout_is_stderr
from clotkit.cli import main, parser
from clotkit.options import Result, verbs_of

from .test_encoded_members import write_encoder

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "json.md"
ALWAYS = ("schema", "verb", "exit_code")
Clotkit = Callable[..., dict[str, Any]]


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """Return the fields of each section of the page: those always there, and those in italics."""
    found = re.findall(r"^## clotkit ([^\n]+)\n[^|#]*((?:\|[^\n]*\n)+)", PAGE.read_text(), re.MULTILINE)
    sections = [(name, table) for names, table in found for name in _of_one_table(names)]
    cells = {name: "".join(row.split("|")[1] for row in table.splitlines()[2:]) for name, table in sections}
    italic = {name: set(re.findall(r"\*`(\w+)`\*", text)) for name, text in cells.items()}
    return {name: (set(re.findall(r"`(\w+)`", text)) - italic[name], italic[name]) for name, text in cells.items()}


def _of_one_table(names: str) -> list[str]:
    """Return the verbs of a heading: of "kaggle wait, logs" these are two."""
    first, *others = names.split(", ")
    return [first, *(f"{first.partition(' ')[0]} {other}" for other in others)]


FIELDS = documented()


@pytest.fixture
def clotkit(capsys: pytest.CaptureFixture[str]) -> Clotkit:
    """Return a function that runs a verb with --json, and checks its object against the page."""

    def run(section: str, *words: object, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*section.split()[:1], *map(str, words), "--json"]) == code
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1
        found: dict[str, Any] = json.loads(printed)
        assert (found["schema"], found["exit_code"]) == (SCHEMA, code)
        assert section.startswith(found["verb"])
        always, sometimes = FIELDS[section]
        fields = found.keys() - ALWAYS
        assert fields - sometimes == always
        return found

    return run


def test_every_verb_has_the_option() -> None:
    for words, verb in verbs_of(parser()).items():
        assert verb.get_default("words") == words
        assert "--json" in verb.format_help()
    assert {section.partition(" --")[0] for section in FIELDS} == {*verbs_of(parser())}


def test_the_page_for_agents_has_ten_commands_that_exist() -> None:
    page = (ROOT / "docs" / "agents.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `clotkit ([^`]+)` \|[^|]*\| ([^|]+) \|$", page, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 11))
    for command in [command for _, command, _ in rows] + re.findall(r"`clotkit ([^`]+ --json)`", page):
        arguments = parser().parse_args(command.split())
        assert arguments.json
    for _, command, fields in rows:
        words = parser().parse_args(command.split()).words
        assert set(re.findall(r"`(\w+)`", fields)) <= FIELDS[words][0] | FIELDS[words][1]


def test_small_verbs(clotkit: Clotkit, split: Path, tmp_path: Path) -> None:
    drawn = clotkit("phantom", tmp_path / "train", "--split", "train", "--slides", 3, "--size", "300x400")
    assert (drawn["split"], drawn["slides"], drawn["folder"]) == ("train", 3, str(tmp_path / "train"))
    assert clotkit("contours", tmp_path / "pictures", "--pictures", 12)["pictures"] == 12
    listed = clotkit("competition list", "list")["competitions"]
    assert {"strip_ai", "panda"} <= {one["name"] for one in listed}
    draft = clotkit("competition new", "new", tmp_path / "train", "--out", tmp_path / "mine.toml")
    assert draft["fill_in"]
    assert {one["code"] for one in clotkit("competition check", "check", draft["file"])["findings"]} == {"fill_in"}
    sample = split / "sample_submission.csv"
    checked = clotkit("check", sample, "--sample", sample)
    assert checked["valid"]
    assert checked["fallback_rows"] == checked["rows"] > 0
    short = tmp_path / "short.csv"
    short.write_text("".join(sample.read_text().splitlines(keepends=True)[:-2]))
    refused = clotkit("check", short, "--sample", sample, code=2)
    assert (refused["valid"], refused["expected"]) == (False, None)
    assert refused["problems"][0]["code"] == "row_count"


def test_verbs_that_package(clotkit: Clotkit, tmp_path: Path) -> None:
    bundled = clotkit("bundle", "--kernel", ROOT / "kernels" / "infer", "--out", tmp_path / "script.py")
    assert bundled["bytes"] == (tmp_path / "script.py").stat().st_size
    clotkit("container", "--weights", ROOT / "weights" / "demo", "--out", tmp_path / "container")
    assert (tmp_path / "container" / "Dockerfile").is_file()


def test_features(clotkit: Clotkit, split: Path, recipe: Path, tmp_path: Path) -> None:
    write_encoder(tmp_path / "tiny")
    words = split, tmp_path / "features", "--recipe", recipe, "--encoder", tmp_path / "tiny", "--split-name", "test"
    assert clotkit("features", *words)["slides"] == {"new": 4, "up_to_date": 0, "failed": 0}
    assert clotkit("features --verify", *words, "--verify")["faults"] == []
    assert clotkit("features --plan", *words, "--plan")["slides"] == 4


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["run", "x"], 2, "usage"),
        (["kaggle", "submit", "--sample"], 2, "usage"),
        (["check", "absent.csv", "--sample", "absent.csv"], 2, "split"),
        (["train", "absent", "--data", "x", "--out", "y"], 2, "config"),
        (["phantom", "out", "--slides", "-1"], 2, "usage"),
        (["report", "absent"], 2, "usage"),
    ],
)
def test_an_error_is_an_object_too(words: list[str], code: int, error: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clotkit.cli", *words, "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == code
    found = json.loads(ended.stdout)
    assert found["exit_code"] == code
    assert found["verb"] == " ".join(word for word in words[:2] if word in ("kaggle", "submit")) or words[0]
    assert found["error"]["code"] == error
    assert found["error"]["message"]


def test_an_error_that_nobody_foresaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*_: object, **_named: object) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr("clotkit.synthetic.phantom.write_split", fail)
    assert main(["phantom", str(tmp_path), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["type"]) == ("unforeseen", "ZeroDivisionError")
    assert str(tmp_path / "traceback.txt") in error["message"]


def test_secrets_of_urls_are_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://user:s3cret@127.0.0.1:9/split?sig=TOPSECRET&X-Amz-Signature=HUSH&part=7"
    assert main(["run", url, "--weights", "x", "--out", "y", "--json"]) == 2
    printed = "".join(capsys.readouterr())
    assert "127.0.0.1" in printed
    assert not any(secret in printed for secret in ("s3cret", "TOPSECRET", "HUSH"))


def test_a_fact_cannot_take_the_place_of_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    facts = {"verb": "x", "exit_code": 9, "count": np.int64(3), "path": tmp_path}
    monkeypatch.setattr("clotkit.report.verbs._report", lambda _: Result(0, facts))
    assert main(["report", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"schema": SCHEMA, "verb": "report", "exit_code": 0, "count": 3, "path": str(tmp_path)}


def test_numbers_that_are_not_finite_are_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("clotkit.training.member_folder.write_manifest", lambda _: float("nan"))
    monkeypatch.setattr("clotkit.training.mil.verbs.many", lambda *_: "")
    assert main(["manifest", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["members"] is None


def test_what_a_child_prints_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with stdout_is_stderr():
        print("of this process")
        subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
        os.write(1, b"of a library\n")
    print("the object")
    out, err = capfd.readouterr()
    assert out == "the object\n"
    assert set(err.splitlines()) == {"of this process", "of a child", "of a library"}


@pytest.mark.slow
def test_from_slides_to_a_score(clotkit: Clotkit, recipe: Path, tmp_path: Path) -> None:
    train, test, members = tmp_path / "train", tmp_path / "test", tmp_path / "members"
    clotkit("phantom", train, "--split", "train", "--slides", 48, "--size", "500x512")
    clotkit("phantom", test, "--slides", 4, "--size", "500x512")
    assert clotkit("plan", test, "--weights", ROOT / "weights" / "demo")["failing"] == []
    assert len(clotkit("plan --cluster", train, "--cluster", 2, "--startup", "1s")["outcomes"]) >= 1
    cut = clotkit("tile", train, tmp_path / "tiles", "--recipe", recipe)
    assert cut["slides"] == {"new": 48, "up_to_date": 0, "failed": 0}
    assert clotkit("tile --verify", train, tmp_path / "tiles", "--verify")["faults"] == []
    for name in ("a", "b"):
        trained = clotkit("train", recipe, "--data", tmp_path / "tiles", "--out", members / name)
        assert (trained["member"], trained["metrics"]["n"] > 20) == (str(members / name), True)
    assert clotkit("manifest", members)["members"] == 2
    found = clotkit("evaluate", members / "a", "--data", tmp_path / "tiles", "--out", tmp_path / "evaluated")
    assert 0 <= found["auc"] <= 1
    slides = sorted((test / "test").glob("*.tif"))
    (test / "bad.tif").write_bytes(b"x")
    asked = clotkit("predict", members / "a", *slides, test / "bad.tif", code=3)
    assert [len(asked["predictions"]), len(asked["failed"])] == [4, 1]
    tables = [members / name / "oof.csv" for name in ("a", "b")]
    clotkit("blend", *tables, "--labels", train / "train.csv", "--out", members)
    scored = clotkit("run", test, "--weights", members, "--out", tmp_path / "run")
    assert (scored["slides"], scored["shortfalls"]) == ({"done": 4, "partial": 0, "fallback": 0}, {})
    assert clotkit("check", scored["submission"], "--sample", test / "sample_submission.csv")["fallback_rows"] == 0
    assert clotkit("report", tmp_path / "run")["page"] == str(tmp_path / "run" / "report.html")
    clotkit("member export", "export", members / "a", "--out", tmp_path / "onnx")
    slides[0].write_bytes(b"x")
    again = clotkit("run", test, "--weights", members / "a", "--out", tmp_path / "other", code=3)
    assert again["slides"] == {"done": 3, "partial": 0, "fallback": 1}
