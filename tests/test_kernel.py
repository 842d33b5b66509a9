"""Test the scoring kernel's supervisor: it leaves a valid submission.csv whatever its pipeline does."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from clotkit import supervise
from clotkit.bundle.build import build_bundle
from clotkit.competitions import Competition, load_competition
from clotkit.reasons import Reason
from clotkit.report.records import read_report
from clotkit.submission.checking import check_submission
from clotkit.supervise import State, Status, Wheels, read_status

from .conftest import ROOT
from .stuck import stuck_file

KERNEL = ROOT / "kernels" / "infer"
FOREVER_S = 120


@pytest.fixture
def kernel_root(test_split: Path, member: Path, tmp_path: Path) -> Path:
    """Make Kaggle's folders with the input in the old layout, without wheels: OpenSlide reads the slides."""
    root = tmp_path / "kaggle"
    for folder in ("input/data", "working", "src"):
        (root / folder).mkdir(parents=True)
    (root / "input" / "mayo-clinic-strip-ai").symlink_to(test_split)
    shutil.copytree(member, root / "input" / "weights" / "tiny")
    (root / "src" / "script.py").write_text(build_bundle(KERNEL, "strip_ai"))
    return root


def start(root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-I", str(root / "src" / "script.py")], cwd=root / "working", text=True,
        env={"PATH": os.environ["PATH"], "CLOTKIT_KAGGLE_ROOT": str(root)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def valid(root: Path, competition: Competition) -> bool:
    sample = root / "input" / "mayo-clinic-strip-ai" / "sample_submission.csv"
    return check_submission(root / "working" / "submission.csv", sample, competition).valid


def status_of(root: Path) -> Status:
    status = read_status(root / "working")
    assert status is not None
    return status


@pytest.mark.parametrize("folder", ["competitions/UBC-OCEAN", "competitions/ubc-ocean", "UBC-OCEAN", "ubc-ocean"])
def test_the_data_is_found_whatever_the_capitals_of_its_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "INPUT", tmp_path)
    for name in ("a-dataset", "competitions/another", folder):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "sample_submission.csv").write_text("image_id,label\n")
    competition = load_competition("ubc_ocean")
    assert supervise.find_split(competition, competition.sample_path) == tmp_path / folder


def test_the_onnxruntime_of_an_image_with_gpus_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = ["onnxruntime-1.32.0-cp311-cp311-x.whl", "onnxruntime-1.32.0-cp312-cp312-x.whl", "pyvips-3.2.0-x.whl"]
    assert supervise.packages_of(wheels) == ["onnxruntime", "pyvips"]
    (tmp_path / "onnxruntime_gpu-1.22.0.dist-info").mkdir()
    (tmp_path / "onnxruntime_gpu-1.22.0.dist-info" / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.22.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert supervise.packages_of(wheels) == ["pyvips"]


def test_a_kernel_without_wheels_uses_packages_that_are_installed(kernel_root: Path, strip_ai: Competition) -> None:
    kernel = start(kernel_root)
    said, _ = kernel.communicate(timeout=FOREVER_S)
    assert kernel.returncode == 0, said
    status = status_of(kernel_root)
    assert (status.state, status.wheels, status.started_twice) == (State.DONE, Wheels.INSTALLED, False)
    assert (status.slides, status.codes) == ({"done": 4, "partial": 0, "fallback": 0}, [])
    assert valid(kernel_root, strip_ai)


@pytest.mark.parametrize(
    ("wheels", "prints", "codes"),
    [
        (Wheels.ABSENT, "print('4.0.0')", [Reason.OLD_OPENSLIDE]),
        (Wheels.UNUSABLE, "print('3.4.1')", [Reason.OLD_OPENSLIDE]),
        (Wheels.ABSENT, "print('4.0.1')", []),
        (Wheels.ABSENT, "raise ImportError", []),
        (Wheels.USED, "print('4.0.0')", []),
    ],
)
def test_an_old_openslide_is_named_where_it_reads_the_slides(
    wheels: Wheels, prints: str, codes: list[Reason], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "OPENSLIDE", prints)
    status = Status("score", wheels=wheels)
    supervise.note_openslide(status)
    assert status.codes == codes


@pytest.mark.slow
def test_a_pipeline_that_is_killed_is_started_once_more(kernel_root: Path, strip_ai: Competition) -> None:
    """Send SIGKILL once to the child that holds TensorFlow, as soon as it lives: the slides are scored."""
    killed_at(kernel_root, ["until the deadline"])
    status = status_of(kernel_root)
    assert (status.state, status.started_twice, status.codes) == (State.DONE, True, [])
    assert states(kernel_root) == ["done"] * 4
    assert valid(kernel_root, strip_ai)
    assert not [path.name for path in (kernel_root / "working").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_the_second_pipeline_goes_on_where_the_first_was(kernel_root: Path, strip_ai: Competition) -> None:
    said = killed_at(kernel_root, ["[2/4]"])
    assert any("resuming from" in line for line in said)
    assert states(kernel_root) == ["done"] * 4
    lines = [line for line in said if "] " in line and " done, " in line]
    assert 4 <= len(lines) <= 5  # a slide that ended as the kill came may be logged twice


@pytest.mark.slow
def test_a_pipeline_that_is_killed_twice_leaves_what_there_was(kernel_root: Path, strip_ai: Competition) -> None:
    killed_at(kernel_root, ["[1/4]", "resuming from"])
    status = status_of(kernel_root)
    assert (status.state, status.started_twice) == (State.PARTIAL, True)
    assert Reason.CRASHED in status.codes
    assert states(kernel_root)
    assert valid(kernel_root, strip_ai)


def test_a_kernel_that_is_told_to_stop_leaves_a_checked_file(kernel_root: Path, strip_ai: Competition) -> None:
    kernel = start(kernel_root)
    assert kernel.stdout is not None
    for line in kernel.stdout:
        if "[1/4]" in line:
            pipeline = next_child(kernel.pid)
            kernel.send_signal(signal.SIGTERM)
    kernel.stdout.close()
    assert kernel.wait() == 0
    status = status_of(kernel_root)
    assert (status.state, Reason.STOPPED in status.codes, Reason.INVALID in status.codes) == (
        State.PARTIAL,
        True,
        False,
    )
    assert not pipeline.is_running()
    assert valid(kernel_root, strip_ai)


@pytest.mark.slow_faults
@pytest.mark.parametrize("number", [8, pytest.param(50, marks=pytest.mark.soak)])
def test_kills_at_any_instant(number: int, kernel_root: Path, strip_ai: Competition) -> None:
    """Check that the submission is valid after each kill, and that scored slides survive."""
    rng, kills = np.random.default_rng(50), 0
    while kills < number:
        shutil.rmtree(kernel_root / "working")
        (kernel_root / "working").mkdir()
        kernel, before = start(kernel_root), set[str]()
        drain = threading.Thread(target=lambda file=kernel.stdout: [None for _ in file])
        drain.start()
        for delay_s in rng.uniform(0.0, 4.0, 2):
            with suppress(subprocess.TimeoutExpired):
                kernel.wait(timeout=float(delay_s))
            if kernel.poll() is None and (children := psutil.Process(kernel.pid).children()):
                with suppress(psutil.NoSuchProcess):
                    children[0].kill()
                kills += 1
                assert not (kernel_root / "working" / "submission.csv").exists() or valid(kernel_root, strip_ai)
                before = scored(kernel_root)
        drain.join()
        assert kernel.stdout is not None
        kernel.stdout.close()
        assert kernel.wait() == 0
        assert valid(kernel_root, strip_ai)
        assert before <= scored(kernel_root)


def killed_at(root: Path, words: list[str]) -> list[str]:
    """Run the kernel, SIGKILL its pipeline at the first line with each word in turn; return its log."""
    kernel = start(root)
    assert kernel.stdout is not None
    said, left = [], list(words)
    for line in kernel.stdout:
        said.append(line)
        if left and left[0] in line:
            left.pop(0)
            next_child(kernel.pid).send_signal(signal.SIGKILL)
    kernel.stdout.close()
    assert kernel.wait() == 0, said
    return said


def states(root: Path) -> list[str]:
    return [line.state for line in read_report(root / "working" / "report.jsonl")]


def scored(root: Path) -> set[str]:
    path = root / "working" / "report.jsonl"
    return {line.image_id for line in read_report(path)} if path.exists() else set()


def next_child(pid: int) -> psutil.Process:
    """Wait for the first child of a process, and return it."""
    while not (children := psutil.Process(pid).children()):
        pass
    return children[0]


def test_a_kernel_that_is_killed_leaves_a_valid_file(kernel_root: Path, strip_ai: Competition) -> None:
    kernel = start(kernel_root)
    assert kernel.stdout is not None
    with kernel.stdout:
        assert any("until the deadline" in line for line in kernel.stdout)
        orphans = psutil.Process(kernel.pid).children(recursive=True)
        kernel.kill()
        kernel.wait()
    assert valid(kernel_root, strip_ai)
    for process in orphans:
        process.kill()
    psutil.wait_procs(orphans, timeout=10)
    assert valid(kernel_root, strip_ai)


def test_the_kernel_ends_a_pipeline_that_hangs(kernel_root: Path, strip_ai: Competition) -> None:
    """Replace the member's metrics by a pipe that nobody writes to, so that reading them blocks for ever."""
    metrics = kernel_root / "input" / "weights" / "tiny" / "metrics.json"
    metrics.unlink()
    os.mkfifo(metrics)
    script = kernel_root / "src" / "script.py"
    short = "SETTINGS: dict[str, Any] = {'deadline_s': 2, 'grace_s': 1, "
    script.write_text(script.read_text().replace("SETTINGS: dict[str, Any] = {", short))
    kernel = start(kernel_root)
    kernel.communicate(timeout=FOREVER_S)
    assert kernel.returncode == 0
    status = status_of(kernel_root)
    assert (status.state, status.codes) == (State.FALLBACK, [Reason.DEADLINE])
    assert valid(kernel_root, strip_ai)


def test_a_kernel_without_weights_leaves_the_fallback(kernel_root: Path, strip_ai: Competition) -> None:
    shutil.rmtree(kernel_root / "input" / "weights")
    kernel = start(kernel_root)
    kernel.communicate(timeout=FOREVER_S)
    assert kernel.returncode == 0
    status = status_of(kernel_root)
    assert (status.state, status.codes) == (State.FALLBACK, [Reason.NO_MEMBER])
    assert valid(kernel_root, strip_ai)


def one_deeper(weights: Path) -> None:
    """Move members to NAME/NAME, as Kaggle sometimes unpacks an archive."""
    for name in ("tiny", "other"):
        (weights / name / name).mkdir(parents=True, exist_ok=True)
        for path in list((weights / name).iterdir()):
            if path.is_file():
                path.rename(weights / name / name / path.name)


def packed(weights: Path) -> None:
    """Pack members into tars, as they are uploaded, for a Kaggle that does not unpack them."""
    for name in ("tiny", "other"):
        shutil.make_archive(str(weights / name), "tar", weights / name)
        shutil.rmtree(weights / name)


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda weights: None, one_deeper, packed])
def test_members_are_found_however_kaggle_unpacked_them(
    kernel_root: Path, strip_ai: Competition, change: Callable[[Path], None]
) -> None:
    weights = kernel_root / "input" / "weights"
    shutil.copytree(weights / "tiny", weights / "other")
    change(weights)
    kernel = start(kernel_root)
    said, _ = kernel.communicate(timeout=FOREVER_S)
    assert kernel.returncode == 0, said
    assert "members: other, tiny" in said, said
    assert read_report(kernel_root / "working" / "report.jsonl")[0].state == "done"


def test_what_belongs_to_all_members_comes_with_them(tmp_path: Path) -> None:
    from clotkit.supervise import find_weights, walk

    def found(*names: str) -> tuple[Path | None, list[str]]:
        top = Path(tempfile.mkdtemp(dir=tmp_path))
        for name in names:
            (top / "input" / name).parent.mkdir(parents=True, exist_ok=True)
            (top / "input" / name).touch()
        weights = find_weights(list(walk(top / "input")), top)
        return weights and weights.relative_to(top), sorted(path.name for path in weights.iterdir()) if weights else []

    assert found("x/a.whl") == (None, [])
    assert found("w/MANIFEST.json", "w/a/recipe.toml") == (Path("input/w/a"), ["recipe.toml"])
    beside = ["MANIFEST.json", "a", "b"]
    assert found("w/MANIFEST.json", "w/a/recipe.toml", "w/b/recipe.toml") == (Path("input/w"), beside)
    assert found("w/MANIFEST.json", "w/a/a/recipe.toml", "w/b/b/recipe.toml") == (Path("members"), beside)
    ensemble = ["calibration.json", "ensemble.toml"]
    assert found("w/ensemble.toml", "w/calibration.json", "w/a/recipe.toml") == (Path("input/w"), ["a", *ensemble])
    deeper = found("w/ensemble.toml", "w/calibration.json", "w/a/a/recipe.toml", "w/a/a/calibration.json")
    assert deeper == (Path("members"), ["a", *ensemble])


def test_a_kernel_without_data_says_what_is_there(kernel_root: Path) -> None:
    (kernel_root / "input" / "mayo-clinic-strip-ai").unlink()
    kernel = start(kernel_root)
    said, _ = kernel.communicate(timeout=FOREVER_S)
    assert kernel.returncode == 2
    status = status_of(kernel_root)
    assert (status.state, status.codes) == (State.FAILED, [Reason.NO_DATA])
    assert "input/weights/tiny" in said


@pytest.mark.slow_faults
def test_the_kernel_ends_with_a_slide_that_does_not_answer(kernel_root: Path, strip_ai: Competition) -> None:
    """The slide alone is at the fallback; its process, which no signal ends, keeps nobody."""
    script, data = kernel_root / "src" / "script.py", kernel_root / "input" / "mayo-clinic-strip-ai"
    script.write_text(script.read_text().replace("SETTINGS: dict[str, Any] = {", 'SETTINGS = {"deadline_s": 60, ', 1))
    split = data.resolve()
    data.unlink()
    shutil.copytree(split, data)
    with stuck_file(min((data / "test").iterdir())):
        kernel = start(kernel_root)
        said, _ = kernel.communicate(timeout=FOREVER_S)
    status = status_of(kernel_root)
    assert (kernel.returncode, status.state, status.started_twice) == (0, State.PARTIAL, False), said
    assert status.slides == {"done": 3, "partial": 0, "fallback": 1}
    assert Reason.LEFT_BEHIND in status.codes
    assert status.seconds < 75
    assert valid(kernel_root, strip_ai)
