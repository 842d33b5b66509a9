"""Test the serving kernel as a process: without data or members, told to stop, its gateway failing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from clotkit.bundle.build import build_bundle
from clotkit.competitions import Competition
from clotkit.reasons import Reason
from clotkit.rehearsal.standin import relay
from clotkit.rehearsal.standin.layout import write_package
from clotkit.supervise import RERUN, State, Status, read_status

from .conftest import ROOT

FOREVER_S = 120
FAILING = (
    "import kaggle_evaluation.core.templates\n\n\nclass Server(kaggle_evaluation.core.templates.InferenceServer):\n"
)


@pytest.fixture
def kernel_root(test_split: Path, tmp_path: Path, strip_ai: Competition) -> Path:
    """Make Kaggle's folders with the competition's data and its server, without members and wheels."""
    root = tmp_path / "kaggle"
    for folder in ("working", "src", f"input/competitions/{strip_ai.slug}"):
        (root / folder).mkdir(parents=True)
    data = root / "input" / "competitions" / strip_ai.slug
    for path in test_split.iterdir():
        (data / path.name).symlink_to(path)
    write_package(data, "test.csv", strip_ai)
    (root / "src" / "script.py").write_text(build_bundle(ROOT / "kernels" / "serve", "strip_ai"))
    return root


def start(root: Path, **more: str) -> "subprocess.Popen[str]":
    environment = {"PATH": os.environ["PATH"], "CLOTKIT_KAGGLE_ROOT": str(root), **more}
    return subprocess.Popen(
        [sys.executable, "-I", str(root / "src" / "script.py")], cwd=root / "working", text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(kernel: "subprocess.Popen[str]", root: Path) -> tuple[int, Status]:
    """Return the exit code and the status of a kernel that ends."""
    said, _ = kernel.communicate(timeout=FOREVER_S)
    status = read_status(root / "working")
    assert status is not None, said
    return kernel.returncode, status


def test_without_data_it_ends_at_once(kernel_root: Path) -> None:
    for path in (kernel_root / "input").rglob("templates.py"):
        path.unlink()
    code, status = ended(start(kernel_root), kernel_root)
    assert (code, status.job, status.state, status.codes) == (2, "serve", State.FAILED, [Reason.NO_DATA])


def test_without_members_a_commit_is_all_fallback(kernel_root: Path, strip_ai: Competition) -> None:
    code, status = ended(start(kernel_root), kernel_root)
    assert (code, status.state, status.slides["fallback"]) == (0, State.FALLBACK, 4)
    assert Reason.NO_MEMBER in status.codes
    frame = pd.read_csv(kernel_root / "working" / "submission.csv")
    assert frame[list(strip_ai.submission.columns)].iloc[0].to_list() == pytest.approx(
        strip_ai.classes.fallback, abs=1e-6
    )


def test_a_commit_whose_gateway_fails_ends_well(kernel_root: Path) -> None:
    (server,) = kernel_root.rglob("*_inference_server.py")
    server.write_text(f"{FAILING}    pass\n")  # it has no gateway
    code, status = ended(start(kernel_root), kernel_root)
    assert (code, status.state, Reason.FAILED in status.codes) == (0, State.FAILED, True)
    assert len(pd.read_csv(kernel_root / "working" / "submission.csv")) > 0


def test_a_server_that_is_told_to_stop_leaves_its_status(kernel_root: Path, test_split: Path, tmp_path: Path) -> None:
    socket = tmp_path / "relay"
    kernel = start(kernel_root, **{RERUN: "1", relay.ADDRESS: str(socket)})
    client = relay.Client(str(socket))
    assert client.is_up(FOREVER_S)
    rows = pd.read_csv(test_split / "test.csv", dtype=str).iloc[:2]
    assert len(client.send("predict", rows, limit_s=FOREVER_S)) == 2
    client.close()
    kernel.send_signal(signal.SIGTERM)
    code, status = ended(kernel, kernel_root)
    assert (code, status.state, status.batches["answered"]) == (0, State.FALLBACK, 1)
    assert Reason.STOPPED in status.codes
