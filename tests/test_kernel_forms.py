"""Test the scoring kernel on other forms: what it leaves always has the header and ids of the sample."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from clotkit.bundle.build import build_bundle
from clotkit.competitions import Competition, load_competition
from clotkit.reasons import Reason
from clotkit.submission.checking import check_submission
from clotkit.supervise import State, read_status
from clotkit.synthetic.phantom import write_split

from .conftest import ROOT
from .onnx_members import write_onnx_member
from .test_submission import GRADES, RISK, SUBTYPES

FOREVER_S = 120
FORMS = {"grades": GRADES, "subtypes": SUBTYPES, "risk": RISK}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Competition:
    path = tmp_path / f"{request.param}.toml"
    path.write_text(FORMS[request.param])
    return load_competition(str(path))


@pytest.fixture
def root(form: Competition, tmp_path: Path) -> Path:
    """Make Kaggle's folders with a test split of the form, without weights."""
    root = tmp_path / "kaggle"
    for folder in ("input", "working", "src"):
        (root / folder).mkdir(parents=True)
    write_split(root / "input" / form.slug, "test", 4, 7, form, size="640x512", log=lambda _: None)
    (root / "src" / "script.py").write_text(build_bundle(ROOT / "kernels" / "infer", str(form.source)))
    return root


@contextmanager
def kernel(root: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-I", str(root / "src" / "script.py")],
        cwd=root / "working",
        text=True,
        env={"PATH": os.environ["PATH"], "CLOTKIT_KAGGLE_ROOT": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def header_and_ids(path: Path, column: str) -> tuple[list[str], list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return list(rows.fieldnames or []), [row[column] for row in rows]


def test_a_sample_that_cannot_be_understood_is_copied(form: Competition, root: Path) -> None:
    """A column more, as a competition may add one: the file is the sample itself, byte for byte."""
    sample = form.sample_path(root / "input" / form.slug)
    lines = sample.read_text().splitlines()
    sample.write_text("\n".join([lines[0] + ",extra", *(line + ",7" for line in lines[1:])]) + "\n")
    with kernel(root) as process:
        assert process.wait(timeout=FOREVER_S) == 0
    assert (root / "working" / form.files.submission).read_bytes() == sample.read_bytes()
    status = read_status(root / "working")
    assert status is not None
    assert (status.state, Reason.INVALID in status.codes) == (State.FALLBACK, True)


@pytest.mark.slow_faults
@pytest.mark.parametrize("number", [2, pytest.param(10, marks=pytest.mark.soak)])
def test_kills_leave_the_header_and_the_ids_of_the_sample(number: int, form: Competition, root: Path) -> None:
    """Kill the kernel and all its processes at random instants of a run that scores."""
    write_onnx_member(root / "input" / "weights" / "tiny", form.classes.names)
    sample, column = form.sample_path(root / "input" / form.slug), form.submission.id
    mould, rng = header_and_ids(sample, column), np.random.default_rng(10)
    submission = root / "working" / form.files.submission
    for delay_s in rng.uniform(0.3, 4.0, number):
        shutil.rmtree(root / "working")
        (root / "working").mkdir()
        with kernel(root) as process:
            children = psutil.Process(process.pid)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=float(delay_s))
            for child in children.children(recursive=True) if children.is_running() else []:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
        if submission.exists():  # before it there is no file at all
            assert header_and_ids(submission, column) == mould
            assert check_submission(submission, sample, form).valid
    with kernel(root) as process:
        assert process.wait(timeout=FOREVER_S) == 0
    status = read_status(root / "working")
    assert status is not None
    assert status.slides["fallback"] == 0
    assert check_submission(submission, sample, form).valid
