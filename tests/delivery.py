"""What the tests of the delivery share: an empty home, a clock that nobody waits for, a client of the server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from clotkit.bundle.build import bundle_sha256, write_bundle
from clotkit.files import atomic_write_json, sha256
from clotkit.kaggle.client import Kaggle
from clotkit.kaggle.credentials import Credentials

from .kaggle_server import KaggleServer, only_loopback

TOKEN = "KGAT_0123456789abcdef"


class Clock:
    """A clock that only waiting moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home; of the environment nothing that has to do with Kaggle or a proxy; no way out of this machine."""
    for name in list(os.environ):
        if name.startswith(("KAGGLE_", "CLOTKIT_KAGGLE", "XDG_CONFIG")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")  # should an endpoint get lost: still not production
    with only_loopback() as tried:
        yield folder
    assert tried == []


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
    """Let nothing take longer than one look: for the command line, which really waits."""
    server.dataset_polls = server.version_lag_polls = server.kernel_polls = server.submission_polls = 0
    return server


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    """What an error says: one line without a secret in it."""
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert not [secret for secret in ("Signature", "upload_id", TOKEN) if secret in said]
    return said


def rehearsed(kernel_dir: Path, out: Path, datasets: dict[str, dict[str, Path]] | None = None) -> str:
    """Leave in `out` what a rehearsal of this kernel that went well leaves, and return its script."""
    out.mkdir(parents=True, exist_ok=True)
    write_bundle(kernel_dir, "strip_ai", out / "script.py")
    script = (out / "script.py").read_text(encoding="utf-8")
    attached = {name: {file: sha256(path) for file, path in files.items()} for name, files in (datasets or {}).items()}
    slides = {"done": 4, "partial": 0, "fallback": 0}
    facts = {"bundle_sha256": bundle_sha256(script), "datasets": attached, "slides": slides}
    atomic_write_json(out / "rehearsal.json", facts)
    return script
