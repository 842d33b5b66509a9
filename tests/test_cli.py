"""The command line: options and the settings they fill, quantities, exit codes, set-up, and submit.py."""

import argparse
import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clotkit import answer, options
from clotkit.app.web.server import AppSettings
from clotkit.cli import main, parser
from clotkit.competitions import Competition
from clotkit.containers import config as containers
from clotkit.ensembling.data import BlendSettings
from clotkit.evaluation.evaluate import EvaluateSettings
from clotkit.options import megabytes, options_of, seconds, verbs_of
from clotkit.planning.cluster_plan import ClusterSettings
from clotkit.planning.plan import PlanSettings
from clotkit.scoring.settings import RunSettings
from clotkit.shards.tile import TileSettings
from clotkit.submission.checking import check_submission
from clotkit.training.train import TrainSettings

from .conftest import ROOT

PARSERS = verbs_of(parser())


@pytest.mark.parametrize(
    ("text", "value"), [("8h", 28_800), ("90m", 5_400), ("90min", 5_400), ("600s", 600), ("600", 600), ("1.5h", 5_400)]
)
def test_times(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(("text", "value"), [("4GB", 4096), ("800MB", 800), ("1.5GB", 1536)])
def test_sizes(text: str, value: int) -> None:
    assert megabytes(text) == value


@pytest.mark.parametrize("text", ["", "h", "8x", "-1h", "0s", "1h30", "eight"])
def test_other_quantities_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        seconds(text)
    with pytest.raises(argparse.ArgumentTypeError):
        megabytes(text)


@pytest.mark.parametrize("words", [[], ["unknown"], ["run"], ["run", "x", "--jobs", "many"], ["check"]])
def test_wrong_usage_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", PARSERS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*verb.split(), "--help"])
    assert stopped.value.code == 0
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize("verb", PARSERS)
def test_every_option_has_help(verb: str) -> None:
    assert [name for name, option in options_of(PARSERS[verb]).items() if not option.help] == []


@pytest.mark.parametrize("words", ["m --json a b", "--json m a b", "m a b --json", "m a --json b"])
def test_options_may_stand_between_a_member_and_its_images(words: str) -> None:
    one = verbs_of(parser())["predict"]
    for _ in range(2):  # the same parser again
        found = one.parse_args(words.split())
        assert (found.member, found.images, found.json) == (Path("m"), [Path("a"), Path("b")], True)


@dataclass(frozen=True)
class Filled:
    """A settings class that a verb fills from its options."""

    verb: str
    settings: type[Any]
    renamed: dict[str, str]  # {option: field}, where the names differ
    other: tuple[str, ...] = ()  # fields that no option sets
    unused: tuple[str, ...] = ()  # options that go elsewhere


SHARED = {"competition", "json"}  # options that choose how a verb reads and prints, not what it does
UNITS = {"deadline": "deadline_s", "memory": "memory_mb"}
CLUSTER_ONLY = ("cluster", "slides", "price", "bandwidth", "startup")
FILLED = [
    Filled("plan", PlanSettings, UNITS | {"split": "split_dir", "weights": "weights_dir", "split_name": "split"},
           unused=CLUSTER_ONLY),
    Filled("plan", ClusterSettings, UNITS | {
        "split": "split_dir", "split_name": "split", "cluster": "machines", "jobs": "threads", "price": "price_usd",
        "bandwidth": "bandwidth_mb_s", "startup": "startup_s"}, ("seed",), ("weights", "deadline")),
    Filled("tile", TileSettings, UNITS | {
        "split": "split_dir", "split_name": "split", "undated": "use_mtime", "max_output": "max_output_mb",
        "scheduler": "backend"}, unused=("verify",)),
    Filled("train", TrainSettings, {"wait": "wait_s"}),
    Filled("evaluate", EvaluateSettings, {}, ("worst",)),
    Filled("blend", BlendSettings, {"trust": "trusted"}, ("repeats",)),
    Filled("run", RunSettings, UNITS | {
        "split": "source", "weights": "weights_source", "out": "run_dir", "scheduler": "backend"},
        ("split_dir", "weights_dir", "stall_s")),
    Filled("app", AppSettings, {"root": "roots"}),
]  # fmt: skip


@pytest.mark.parametrize("filled", FILLED, ids=lambda filled: filled.settings.__name__)
def test_options_and_settings_have_the_same_names_and_defaults(filled: Filled) -> None:
    fields = {field.name: field for field in dataclasses.fields(filled.settings)}
    sets = {
        filled.renamed.get(name, name): option
        for name, option in options_of(PARSERS[filled.verb]).items()
        if name not in filled.unused
    }
    assert sets.keys() - SHARED == fields.keys() - {*filled.other} - SHARED
    for name, option in sets.items():
        default = fields[name].default if name in fields else dataclasses.MISSING
        if default not in (dataclasses.MISSING, None) and option.default is not None and name != "use_mtime":
            assert option.default in (default, [*default] if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("verb", PARSERS)
def test_every_option_is_read(verb: str) -> None:
    function = PARSERS[verb].get_default("verb")
    while isinstance(function, partial):
        function = function.args[0] if callable(function.args[0]) else function.func
    readers = (sys.modules[function.__module__], options, answer, containers)
    source = "".join(map(inspect.getsource, readers))
    assert [name for name in options_of(PARSERS[verb]) if f"arguments.{name}" not in source] == []


def test_a_phantom_is_written_by_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", str(tmp_path / "a"), "--slides", "1", "--size", "300x400"]) == 0
    assert "300 x 400" in capsys.readouterr().out
    assert main(["phantom", str(tmp_path / "b"), "--slides", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "b").exists()


def run_submit(*words: str, folder: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(folder / "submit.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def set_up() -> None:
    if not (ROOT / ".venv" / ".runtime").exists():
        pytest.skip("clotkit is not set up in .venv: make setup")


@pytest.mark.usefixtures("set_up")
def test_submit_creates_and_validates(test_split: Path, member: Path, tmp_path: Path, strip_ai: Competition) -> None:
    out = tmp_path / "submission.csv"
    ended = run_submit("--split", str(test_split), "--weights", str(member), "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    assert check_submission(out, test_split / "sample_submission.csv", strip_ai).valid
    assert run_submit("--split", str(test_split), "--check", str(out)).returncode == 0
    out.write_text(out.read_text().replace("patient_id", "patient"))
    wrong = run_submit("--split", str(test_split), "--check", str(out))
    assert wrong.returncode == 2
    assert "patient_id" in wrong.stderr


@pytest.mark.usefixtures("set_up")
def test_submit_with_fallbacks_ends_with_3(test_split: Path, member: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    shutil.copytree(test_split, split)
    sorted((split / "test").glob("*.tif"))[0].unlink()
    ended = run_submit("--split", str(split), "--weights", str(member), "--out", str(tmp_path / "out.csv"))
    assert ended.returncode == 3
    assert (tmp_path / "out.csv").exists()


@pytest.mark.usefixtures("set_up")
def test_submit_writes_nothing_for_wrong_input(tmp_path: Path, member: Path, test_split: Path) -> None:
    for words in (
        ["--split", str(tmp_path / "none"), "--weights", str(member), "--out", str(tmp_path / "x.csv")],
        ["--split", str(test_split), "--weights", str(tmp_path), "--out", str(tmp_path / "x.csv")],
        ["--split", str(test_split), "--weights", str(member), "--out", str(tmp_path / "no" / "x.csv")],
    ):
        ended = run_submit(*words)
        assert ended.returncode == 2
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("set_up")
def test_submit_validates_for_another_competition(tmp_path: Path) -> None:
    sample, written = tmp_path / "sample_submission.csv", tmp_path / "written.csv"
    sample.write_text("image_id,isup_grade\n0a,0\n0b,0\n")
    for text, code in (("image_id,isup_grade\n0a,5\n0b,0\n", 0), ("image_id,isup_grade\n0a,6\n0b,0\n", 2)):
        written.write_text(text)
        ended = run_submit("--competition", "panda", "--split", str(tmp_path), "--check", str(written))
        assert ended.returncode == code, ended.stderr


def test_submit_without_set_up_names_the_command(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "submit.py", tmp_path / "submit.py")
    ended = run_submit(folder=tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.endswith(f"make -C {tmp_path} setup")


def make(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    # MAKEFLAGS of an outer make would change this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_make_alone_prints_every_target(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    printed = make(tmp_path).stdout
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    for target in phony.split()[1:]:
        assert f"make {target} " in printed


@pytest.mark.parametrize("python", ["", "/nowhere/python3"])
def test_a_missing_python_is_one_clear_line(python: str, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    ended = make(tmp_path, "--silent", "setup", f"PYTHON={python}")
    assert ended.returncode != 0
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("make")]
    assert "make setup PYTHON=" in line
    assert not (tmp_path / ".venv").exists()
