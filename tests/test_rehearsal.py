"""Test rehearsals: the built bundle run as Kaggle runs it, and the faults that must not pass."""

import csv
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clotkit.bundle.install import install_script
from clotkit.bundle.notebook import KernelType
from clotkit.cli import main
from clotkit.competitions import Competition, load_competition
from clotkit.errors import ConfigError, RehearsalError, UsageError
from clotkit.files import sha256
from clotkit.kaggle.kernels import read_kernel
from clotkit.kaggle.metadata import Inputs
from clotkit.reasons import NotRehearsed, RehearsalKind
from clotkit.rehearsal import environment
from clotkit.rehearsal.sandbox import MOUNTS, NAMESPACE, Rehearsal, namespaces_work
from clotkit.rehearsal.scoring import rehearse
from clotkit.rehearsal.unrehearsed import not_rehearsed
from clotkit.supervise import State, Wheels, read_status

from .conftest import ROOT

WHEELS = ROOT / "build" / "wheels"
KERNEL = ROOT / "kernels" / "infer"
FOREVER_S = 3600
# The status of a kernel that is done and used the wheels.
STATUS = (
    "import json\nSTATUS = {'job': 'score', 'state': 'done', 'wheels': 'used'}\n"
    "(ROOT / 'working' / 'status.json').write_text(json.dumps(STATUS))\n"
)


@pytest.fixture(scope="module")
def wheels() -> Path:
    assert any(WHEELS.glob("pyvips_binary*.whl")), "make wheels has not run; make test runs it"
    return WHEELS


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@dataclass(frozen=True)
class Rehearsed:
    """A rehearsal in both layouts, with the members and the wheels as datasets: its folder and its lines."""

    out: Path
    lines: list[str]

    @property
    def submission(self) -> bytes:
        return (self.out / "submission.csv").read_bytes()

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.out / "rehearsal.json").read_text())
        return facts


@pytest.fixture(scope="module")
def rehearsed(test_split: Path, member: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    made = Rehearsed(tmp_path_factory.mktemp("rehearsed"), [])
    how = Rehearsal(KERNEL, "strip_ai", wheels, "both", made.out, made.lines.append)
    assert rehearse(str(test_split), member, how)
    return made


@pytest.mark.slow
def test_the_kernel_gives_what_a_run_gives_in_both_layouts(
    rehearsed: Rehearsed, test_split: Path, member: Path, tmp_path: Path
) -> None:
    facts = rehearsed.facts
    assert facts["slides"] == {"done": 4, "partial": 0, "fallback": 0}
    assert (facts["state"], facts["codes"], facts["not_rehearsed"]) == ("done", [], [NotRehearsed.IMAGE])
    assert sorted(facts["layouts"]) == ["new", "old"]
    assert sorted(facts["datasets"]) == ["clotkit-weights", "clotkit-wheels"]
    assert facts["datasets"]["clotkit-weights"]["tiny/recipe.toml"] == sha256(member / "recipe.toml")
    kernel = read_kernel(KERNEL, "strip_ai", rehearsed.out)  # the rehearsed script may be pushed
    assert kernel.source == (rehearsed.out / "script.py").read_text()
    assert any("network: off" in line for line in rehearsed.lines)
    status = read_status(rehearsed.out / "new" / "kaggle" / "working")
    assert status is not None
    assert (status.state, status.wheels, status.slides["done"]) == (State.DONE, Wheels.USED, 4)
    assert main(["run", str(test_split), "--weights", str(member), "--out", str(tmp_path / "run")]) == 0
    for in_rehearsal, ran in zip(
        rows_of(rehearsed.out / "submission.csv"), rows_of(tmp_path / "run" / "submission.csv"), strict=True
    ):
        assert in_rehearsal[0] == ran[0]
        if in_rehearsal[0] != "patient_id":
            assert list(map(float, in_rehearsal[1:])) == pytest.approx(list(map(float, ran[1:])), abs=1e-6)


@pytest.mark.slow
def test_members_as_a_model_give_the_submission_that_they_give_as_a_dataset(
    rehearsed: Rehearsed, test_split: Path, member: Path, wheels: Path, tmp_path: Path
) -> None:
    out, inputs, lines = tmp_path / "model", Inputs(weights="model"), list[str]()
    how = Rehearsal(KERNEL, "strip_ai", wheels, "both", out, lines.append, chosen_inputs=inputs)
    assert rehearse(str(test_split), member, how)
    mounted = [line.partition("weights: ")[2].partition(";")[0] for line in lines if "weights: " in line]
    assert [path.partition("/kaggle/input/")[2] for path in mounted] == [
        "models/rehearsal/clotkit-members/keras/default/1/tiny", "clotkit-members/keras/default/1/tiny"
    ]  # fmt: skip
    assert (out / "submission.csv").read_bytes() == rehearsed.submission
    facts = json.loads((out / "rehearsal.json").read_text())
    assert (list(facts["datasets"]), list(facts["models"])) == (["clotkit-wheels"], ["clotkit-members/keras/default"])
    assert facts["inputs"] == {"weights": "model", "wheels": "dataset"}
    assert facts["models"]["clotkit-members/keras/default"]["tiny/recipe.toml"] == sha256(member / "recipe.toml")
    assert read_kernel(KERNEL, "strip_ai", out, inputs=inputs).metadata["dataset_sources"] == ["OWNER/clotkit-wheels"]


def locked(wheels: Path, folder: Path) -> Path:
    """Write locks with the hashes of the wheels that are here, so that pip needs no index, into `folder`."""
    folder.mkdir()
    hashes: dict[str, list[str]] = {}
    for path in sorted(wheels.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        hashes.setdefault(f"{name.replace('_', '-')}=={version}", []).append(f"--hash=sha256:{sha256(path)}")
    lock = "".join(f"{name} \\\n    {' '.join(known)}\n    # via here\n" for name, known in hashes.items())
    (folder / "wheels.txt").write_text(lock)
    for name in ("wheels-source", "build"):
        (folder / f"{name}.txt").write_text("")
    return folder


BY_NETWORK = pytest.mark.parametrize(
    "guarded", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["namespace", "socket guard"]
)


@pytest.mark.slow
@BY_NETWORK
def test_packages_by_the_install_script_give_the_same_submission(
    guarded: bool, rehearsed: Rehearsed, test_split: Path, member: Path, wheels: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr("clotkit.bundle.install.locks", partial(locked, wheels, tmp_path / "locks"))
    if guarded:
        monkeypatch.setattr("clotkit.rehearsal.sandbox.namespaces_work", lambda _: False)
    out, inputs, lines = tmp_path / "out", Inputs(wheels="script"), list[str]()
    assert rehearse(
        str(test_split), member, Rehearsal(KERNEL, "strip_ai", wheels, "new", out, lines.append, chosen_inputs=inputs)
    )
    status = read_status(out / "new" / "kaggle" / "working")
    assert status is not None
    assert (status.state, status.wheels) == (State.DONE, Wheels.INSTALLED)
    assert any("installed before the run" in line and f"{out}/env" in line for line in lines)
    facts = json.loads((out / "rehearsal.json").read_text())
    assert (list(facts["datasets"]), facts["inputs"]["wheels"]) == (["clotkit-weights"], "script")
    assert (out / "submission.csv").read_bytes() == rehearsed.submission


def test_an_install_script_that_fails_fails_the_rehearsal(
    test_split: Path, member: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clotkit.rehearsal.sandbox.install_script", lambda: "echo no such package >&2; exit 3\n")
    inputs = Inputs(wheels="script")
    how = Rehearsal(KERNEL, "strip_ai", wheels, "new", tmp_path / "out", lambda _: None, chosen_inputs=inputs)
    with pytest.raises(RehearsalError, match="no such package") as caught:
        rehearse(str(test_split), member, how)
    assert caught.value.kind is RehearsalKind.WHEELS


@pytest.mark.install
def test_the_script_that_ships_installs_the_packages(wheels: Path, tmp_path: Path) -> None:
    python = environment.make(tmp_path / "env", wheels, guard=False, script=install_script())
    probe = [str(python), "-I", "-c", "import imagecodecs, onnxruntime, pyvips, simplejpeg; print(pyvips.__file__)"]
    ended = subprocess.run(probe, capture_output=True, text=True, check=True)
    assert str(tmp_path) in ended.stdout


@pytest.mark.parametrize(
    ("kernel", "missing"),
    [
        ("infer", []),
        ("tile", [NotRehearsed.RECIPES]),
        ("train", [NotRehearsed.ACCELERATOR, NotRehearsed.RECIPES, NotRehearsed.DATASETS]),
    ],
)
def test_what_is_not_rehearsed_has_a_code(kernel: str, missing: list[NotRehearsed]) -> None:
    codes = not_rehearsed(ROOT / "kernels" / kernel, load_competition("strip_ai"))
    assert list(codes) == [NotRehearsed.IMAGE, *missing]
    if NotRehearsed.ACCELERATOR in codes:
        assert "NvidiaTeslaT4" in codes[NotRehearsed.ACCELERATOR]


def test_a_model_of_somebody_else_is_not_rehearsed(tmp_path: Path) -> None:
    kernel = Path(shutil.copytree(KERNEL, tmp_path / "infer"))
    metadata = json.loads((kernel / "kernel-metadata.json").read_text())
    metadata["model_sources"] = ["OWNER/clotkit-members/keras/default", "bob/a-model/keras/base/2"]
    (kernel / "kernel-metadata.json").write_text(json.dumps(metadata))
    codes = not_rehearsed(kernel, load_competition("strip_ai"))
    assert list(codes) == [NotRehearsed.IMAGE, NotRehearsed.MODELS]
    assert "bob/a-model" in codes[NotRehearsed.MODELS]


@pytest.mark.slow
def test_a_kernel_for_a_gpu_is_rehearsed_on_the_cpu_with_the_same_bundle(
    rehearsed: Rehearsed, test_split: Path, member: Path, wheels: Path, tmp_path: Path
) -> None:
    kernel = Path(shutil.copytree(KERNEL, tmp_path / "gpu" / "infer"))
    metadata = json.loads((kernel / "kernel-metadata.json").read_text())
    metadata |= {"enable_gpu": True, "machine_shape": "NvidiaL4"}
    (kernel / "kernel-metadata.json").write_text(json.dumps(metadata))
    out, lines = tmp_path / "out", list[str]()
    assert rehearse(str(test_split), member, Rehearsal(kernel, "strip_ai", wheels, "new", out, lines.append))
    facts = json.loads((out / "rehearsal.json").read_text())
    assert facts["bundle_sha256"] == rehearsed.facts["bundle_sha256"]
    assert facts["not_rehearsed"] == [NotRehearsed.IMAGE, NotRehearsed.ACCELERATOR]
    assert any("not rehearsed: accelerator: NvidiaL4" in line for line in lines)


@pytest.mark.slow
def test_where_there_are_no_namespaces_the_guard_takes_over(
    test_split: Path, member: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no unshare there
    lines: list[str] = []
    assert rehearse(
        str(test_split), member, Rehearsal(KERNEL, "strip_ai", wheels, "old", tmp_path / "out", lines.append)
    )
    assert any("socket guard" in line for line in lines)
    assert json.loads((tmp_path / "out" / "rehearsal.json").read_text())["network"] == "socket guard"


@pytest.mark.slow
def test_another_competition_is_rehearsed_too(
    make_split: Callable[..., Path], make_member: Callable[..., Path], wheels: Path, tmp_path: Path, other_toml: Path,
    other: Competition,
) -> None:  # fmt: skip
    split = make_split(tmp_path / "split", other, slides=3)
    weights = make_member(tmp_path / "weights" / "tiny", other.classes.names)
    broken = sorted((split / "test_pictures").glob("*.tif"))[0]
    broken.write_bytes(b"II*\0" + bytes(100))
    lines: list[str] = []
    clean = rehearse(
        str(split), weights, Rehearsal(KERNEL, str(other_toml), wheels, "new", tmp_path / "out", lines.append)
    )
    assert not clean
    assert rows_of(tmp_path / "out" / "answer.csv")[0] == ["person", "blue", "green", "white"]
    status = read_status(tmp_path / "out" / "new" / "kaggle" / "working")
    assert status is not None
    assert (status.state, status.slides["done"], "damaged" in status.codes) == (State.PARTIAL, 2, True)


@pytest.mark.slow
@BY_NETWORK
def test_a_notebook_gives_the_submission_of_the_script(
    guarded: bool, rehearsed: Rehearsed, test_split: Path, member: Path, wheels: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if guarded:
        monkeypatch.setenv("PATH", str(tmp_path))  # no unshare there
    notebook, kind = tmp_path / "notebook", KernelType.NOTEBOOK
    how = Rehearsal(KERNEL, "strip_ai", wheels, "new", notebook, lambda _: None, kind)
    assert rehearse(str(test_split), member, how)
    assert (notebook / "submission.csv").read_bytes() == rehearsed.submission
    facts = json.loads((notebook / "rehearsal.json").read_text())
    assert [facts["kernel_type"], rehearsed.facts["kernel_type"]] == [kind, KernelType.SCRIPT]
    assert facts["bundle_sha256"] == rehearsed.facts["bundle_sha256"]
    outputs = json.loads((notebook / "new" / "executed.ipynb").read_text())["cells"][0]["outputs"]
    assert {one["output_type"] for one in outputs} == {"stream"}
    assert read_kernel(KERNEL, "strip_ai", notebook, "notebook").source == (notebook / "script.ipynb").read_text()


@pytest.mark.parametrize("body", ["sys.exit(1)\n", "raise ValueError\n", "os.kill(os.getpid(), 9)\n"])
def test_a_notebook_that_fails_fails_the_rehearsal(
    body: str, test_split: Path, member: Path, wheels: Path, tmp_path: Path
) -> None:
    with rehearsal_error(RehearsalKind.EXIT_CODE):
        rehearse_main(body, test_split, member, wheels, tmp_path, "notebook")


def rehearse_main(
    body: str, split: Path, member: Path, wheels: Path, out: Path, kernel_type: str | None = None
) -> bool:
    """Rehearse a kernel that runs `body` in place of the real work."""
    kernel = out / "kernel"
    kernel.mkdir(parents=True)
    shutil.copyfile(KERNEL / "kernel-metadata.json", kernel / "kernel-metadata.json")
    (kernel / "main.py").write_text(
        "import os, sys, socket\nfrom pathlib import Path\nfrom typing import Any\n"
        "FILES: dict[str, str] = {}\nSETTINGS: dict[str, Any] = {}\n"
        "ROOT = Path(os.environ['CLOTKIT_KAGGLE_ROOT'])\n" + body
    )
    return rehearse(
        str(split), member, Rehearsal(kernel, "strip_ai", wheels, "new", out / "out", lambda _: None, kernel_type)
    )


@contextmanager
def rehearsal_error(kind: RehearsalKind) -> Iterator[None]:
    """Expect a RehearsalError of this kind."""
    with pytest.raises(RehearsalError) as caught:
        yield
    assert caught.value.kind is kind, caught.value


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("sys.exit(1)\n", RehearsalKind.EXIT_CODE),
        ("import clotkit\n", RehearsalKind.EXIT_CODE),
        ("import pyvips\n", RehearsalKind.EXIT_CODE),
        ("import pytest\n", RehearsalKind.EXIT_CODE),
        ("pass\n", RehearsalKind.STATUS),
        ("sys.exit(os.environ.get('CUDA_VISIBLE_DEVICES') != '-1')\n", RehearsalKind.STATUS),
        (STATUS.replace("'done'", "'started'"), RehearsalKind.STATUS),
        (STATUS.replace("'used'", "'absent'"), RehearsalKind.WHEELS),
        (STATUS + "(ROOT / 'working' / 'cache.bin').touch()\n", RehearsalKind.LEFT_BEHIND),
        ("socket.create_connection(('127.0.0.1', int(PORT)), timeout=5)\n", RehearsalKind.EXIT_CODE),
        ("socket.getaddrinfo('localhost.invalid', 80)\n", RehearsalKind.EXIT_CODE),
        ("next(ROOT.glob('input/*/mayo*/test.csv')).write_text('x')\n", RehearsalKind.EXIT_CODE),
    ],
    ids=[
        "exit code",
        "the repository",
        "a hidden package",
        "a developers' package",
        "no status",
        "no status, where no GPU is seen",
        "a status that is not final",
        "no wheels",
        "output",
        "a connection",
        "a name",
        "an input",
    ],
)
def test_what_kaggle_would_not_allow_fails(
    body: str, kind: RehearsalKind, test_split: Path, member: Path, wheels: Path, tmp_path: Path, listener: int
) -> None:
    if "write_text" in body and not namespaces_work(tmp_path):
        pytest.skip("no mount namespace here: inputs are compared after the run instead")
    with rehearsal_error(kind):
        rehearse_main(body.replace("PORT", str(listener)), test_split, member, wheels, tmp_path)


@pytest.mark.slow
def test_wheels_that_pip_refuses_fail_the_rehearsal(test_split: Path, member: Path, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "pyvips-3.2.0-py3-none-any.whl").write_bytes(b"no wheel")
    lines: list[str] = []
    with rehearsal_error(RehearsalKind.WHEELS):
        rehearse(
            str(test_split),
            member,
            Rehearsal(KERNEL, "strip_ai", tmp_path / "wheels", "new", tmp_path / "o", lines.append),
        )
    status = read_status(tmp_path / "o" / "new" / "kaggle" / "working")
    assert status is not None
    assert (status.wheels, status.slides["done"]) == (Wheels.UNUSABLE, 4)


@pytest.fixture
def listener() -> int:  # type: ignore[misc]
    """Return a port of this machine that accepts connections, so that only the sandbox can refuse one."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept_all, args=(server,), daemon=True)
        thread.start()
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        yield port
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def accept_all(server: "threading.socket.socket") -> None:  # type: ignore[name-defined]
    try:
        while True:
            server.accept()[0].close()
    except OSError:
        return


def test_the_socket_guard_refuses_what_a_namespace_would(wheels: Path, tmp_path: Path, listener: int) -> None:
    python = environment.make(tmp_path / "env", wheels, guard=True)
    for attempt in (
        f"socket.create_connection(('127.0.0.1', {listener}), timeout=5)",
        f"socket.socket().connect(('127.0.0.1', {listener}))",
        f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {listener}))",
        "socket.getaddrinfo('localhost', 80)",
    ):
        ended = subprocess.run(
            [python, "-I", "-c", f"import socket; {attempt}"], capture_output=True, text=True, check=False
        )
        assert environment.REFUSAL in ended.stderr
    pair = "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))"
    assert subprocess.run([python, "-I", "-c", pair], capture_output=True, check=False).returncode == 0


def test_the_memory_and_wall_limits_hold(
    test_split: Path, member: Path, wheels: Path, tmp_path: Path, other_toml: Path
) -> None:
    for kind, change, body in (
        (RehearsalKind.MEMORY, ("kernel_memory_mb = 30_000", "kernel_memory_mb = 200"), "x = b'1' * 2**30\n"),
        (RehearsalKind.WALL, ("kernel_wall_s = 32_400", "kernel_wall_s = 1"), ""),
    ):
        text = (ROOT / "src" / "clotkit" / "competitions" / "strip_ai.toml").read_text()
        toml = tmp_path / f"{kind}.toml"
        toml.write_text(text.replace(*change))
        kernel = tmp_path / kind
        kernel.mkdir()
        shutil.copyfile(KERNEL / "kernel-metadata.json", kernel / "kernel-metadata.json")
        (kernel / "main.py").write_text(
            "import time\nfrom typing import Any\nFILES: dict[str, str] = {}\nSETTINGS: dict[str, Any] = {}\n"
            f"{body}time.sleep({FOREVER_S})\n"
        )
        with rehearsal_error(kind):
            rehearse(
                str(test_split),
                member,
                Rehearsal(kernel, str(toml), wheels, "new", tmp_path / f"o{kind}", lambda _: None),
            )


def test_what_is_missing_is_said_with_the_command_to_type(
    test_split: Path, member: Path, wheels: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "no")):
        rehearse(
            str(test_split),
            tmp_path / "no",
            Rehearsal(KERNEL, "strip_ai", wheels, "new", tmp_path / "o", lambda _: None),
        )
    with pytest.raises(UsageError, match="make wheels"):
        rehearse(
            str(test_split), member, Rehearsal(KERNEL, "strip_ai", tmp_path, "new", tmp_path / "o", lambda _: None)
        )


def test_read_only_mounts_are_read_only(tmp_path: Path) -> None:
    if not namespaces_work(tmp_path):
        pytest.skip("no user and mount namespaces here")
    (tmp_path / "held").mkdir()
    write = ["sh", "-c", 'touch "$0/x"', str(tmp_path / "held")]
    mounted = [*NAMESPACE, "sh", "-c", MOUNTS, "sh", str(tmp_path / "held"), str(tmp_path / "held"), "--", *write]
    assert subprocess.run(mounted, capture_output=True, check=False).returncode != 0
    assert list((tmp_path / "held").iterdir()) == []
    assert subprocess.run(write, capture_output=True, check=False).returncode == 0
