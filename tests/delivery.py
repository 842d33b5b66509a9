"""Fixtures and checks that the tests of the delivery share: an empty home, a fake clock, a client."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clotkit.bundle.build import bundle_sha256, write_bundle
from clotkit.bundle.notebook import KernelType
from clotkit.bundle.places import competition_stem
from clotkit.errors import RemoteError
from clotkit.files import atomic_write_json, sha256
from clotkit.kaggle.client import Kaggle
from clotkit.kaggle.login.credentials import Credentials
from clotkit.reasons import RemoteKind

from .kaggle_server import KaggleServer, only_loopback

TOKEN = "KGAT_0123456789abcdef"


class Clock:
    """A clock that only waiting advances."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@contextmanager
def isolated(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Give an empty home, no variable about Kaggle or a proxy, and no connection out of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("KAGGLE_", "CLOTKIT_KAGGLE", "XDG_CONFIG")) or name.lower().endswith("_proxy"):
                patch.delenv(name)
        folder.mkdir()
        patch.setenv("HOME", str(folder))
        patch.setenv("KAGGLE_CONFIG_DIR", str(folder / "config"))
        patch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")  # so that a lost endpoint is not production
        with only_loopback() as tried:
            yield patch
        assert tried == []


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home, no variable about Kaggle or a proxy, and no connection out of this machine."""
    with isolated(tmp_path / "home"):
        yield tmp_path / "home"


@pytest.fixture
def server(home: Path) -> Iterator[KaggleServer]:
    with KaggleServer() as server:
        yield server
        assert server.leaks == []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def client(server: KaggleServer, clock: Clock, lines: list[str]) -> Kaggle:
    return Kaggle(Credentials(TOKEN), server.endpoint, clock.wait, chance=lambda: 0.5, log=lines.append)


def quiet(server: KaggleServer) -> KaggleServer:
    """Make nothing take longer than one poll: for the command line, which really waits."""
    server.dataset_polls = server.version_lag_polls = server.kernel_polls = server.submission_polls = 0
    return server


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    """Return the message of an error, which must be one line without a secret in it."""
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert not [secret for secret in ("Signature", "upload_id", TOKEN) if secret in message]
    return message


@contextmanager
def remote_error(kind: RemoteKind, *names: str) -> Iterator[None]:
    """Expect a RemoteError of this kind; its message is one line with these names and numbers in it."""
    with pytest.raises(RemoteError) as caught:
        yield
    message = one_line(caught)
    assert caught.value.kind is kind, message
    assert [name for name in names if name not in message] == [], message


def rehearsed(
    kernel_dir: Path,
    out: Path,
    datasets: dict[str, dict[str, Path]] | None = None,
    competition: str = "strip_ai",
    kernel_type: KernelType = KernelType.SCRIPT,
) -> str:
    """Write the files of a successful rehearsal of this kernel to `out`, and return its script."""
    out.mkdir(parents=True, exist_ok=True)
    write_bundle(kernel_dir, competition, out / kernel_type.file_name, kernel_type)
    script = (out / kernel_type.file_name).read_text(encoding="utf-8")
    attached = {name: {file: sha256(path) for file, path in files.items()} for name, files in (datasets or {}).items()}
    slides = {"done": 4, "partial": 0, "fallback": 0}
    facts = {"bundle_sha256": bundle_sha256(script), "datasets": attached, "slides": slides}
    facts |= {"competition": competition_stem(competition), "kernel_type": kernel_type}
    atomic_write_json(out / "rehearsal.json", facts)
    return script


def write_members(folder: Path) -> Path:
    """Write two members with a manifest, and return their folder."""
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "recipe.toml").write_text(f'name = "{name}"\n')
        (folder / name / "model.weights.h5").write_bytes(bytes(range(256)) * 40 + name.encode())
    (folder / "MANIFEST.json").write_text("{}\n")
    return folder
