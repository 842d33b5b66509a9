"""Delivery to Kaggle."""

import contextlib
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clotkit.cli import main
from clotkit.competitions import load_competition
from clotkit.errors import ClotkitError, RemoteError, UsageError
from clotkit.kaggle import submissions
from clotkit.kaggle.client import ENDPOINT, Kaggle, sign_in
from clotkit.kaggle.datasets import PushedDataset, Stage, push_dataset, read_stage
from clotkit.kaggle.follow import KernelRun
from clotkit.kaggle.kernels import Kernel, push_kernel
from clotkit.kaggle.login.credentials import Credentials, candidates
from clotkit.kaggle.metadata import metadata_problems
from clotkit.reasons import RemoteKind

from ...delivery import TOKEN, Clock, isolated, quiet
from ...kaggle_server import Fault, KaggleServer
from . import Reported

KERNEL, DATASET = "alice/a-kernel", "alice/some-weights"
SOURCES: dict[str, Any] = {
    "dataset_sources": ["OWNER/some-weights", "OWNER/some-wheels"],
    "competition_sources": ["mayo-clinic-strip-ai"],
    "kernel_sources": ["alice/an-older-kernel"],
    "model_sources": ["bob/a-model/keras/base/2"],
}

NO_SOURCES: dict[str, Any] = {key: [] for key in SOURCES}


@dataclass
class Scene:
    """An account on the loopback server, a client whose waits take no time, and a folder."""

    folder: Path
    server: KaggleServer
    patch: pytest.MonkeyPatch
    clock: Clock = field(default_factory=Clock)
    lines: list[str] = field(default_factory=list)

    @property
    def client(self) -> Kaggle:
        """A client with a token."""
        return Kaggle(Credentials(TOKEN), self.server.endpoint, self.clock.wait, log=self.lines.append)

    def dataset(self, slug: str = "some-weights", files: tuple[str, ...] = ("a.txt", "one/a.txt")) -> PushedDataset:
        """Push a dataset of small files."""
        paths = {}
        for number, name in enumerate(files):
            paths[name] = self.folder / slug / name
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            paths[name].write_text(f"{'x' * number}{name}")
        return push_dataset(self.client, Stage(slug, slug, "", "", "other", paths), self.clock)

    def kernel(self, again: bool = False, source: str = "print(1)\n", **changes: Any) -> int:
        """Push a kernel with a source of every kind, and return its version."""
        metadata = {
            "id": "OWNER/a-kernel", "title": "a kernel", "language": "python", "kernel_type": "script",
            "is_private": True, "enable_gpu": False, "enable_tpu": False, "enable_internet": False,
            **SOURCES, **changes,
        }  # fmt: skip
        kernel = Kernel("a", source, metadata)
        return push_kernel(self.client, kernel, self.folder / "pushed.json", again, self.lines.append).version

    def attached(self) -> None:
        """Make everything that the kernel has as a source."""
        for slug in ("some-weights", "some-wheels"):
            self.dataset(slug)
        fields = {"language": "python", "kernel_type": "script", "text": "1", "new_title": "an older kernel"}
        self.client.save_kernel(lambda: None, {"slug": "alice/an-older-kernel", **fields})
        self.server.models.add("bob/a-model/keras/base/2")

    def run(self) -> KernelRun:
        """Return the run of the kernel's first version, pushed as a bare script."""
        if KERNEL not in self.server.kernels:
            self.kernel(**NO_SOURCES)
        return KernelRun(self.client, KERNEL, 1, self.lines.append, self.clock, pushed_here=True)

    def cli(self, *words: str) -> tuple[int, str]:
        """Run `clotkit kaggle …` with a legacy key, and return its exit code and what it wrote to stderr."""
        for name, text in quiet(self.server).environment(self.folder / "account").items():
            self.patch.setenv(name, text)
        self.patch.chdir(self.folder)
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            return main(["kaggle", *words]), stderr.getvalue()

    def changes(self) -> int:
        """Return how often something was made or sent to be made."""
        made = ("StartBlobUpload", "CreateDataset", "CreateDatasetVersion", "SaveKernel", "CreateCodeSubmission")
        return sum(map(self.server.count, made))


@contextmanager
def scene(folder: Path, username: str = "alice") -> Iterator[Scene]:
    """Give a scene in an empty folder."""
    with isolated(folder / "home") as patch, KaggleServer(username) as server:
        yield Scene(folder, server, patch)
        assert server.leaks == []


def refused(kind: RemoteKind, call: Callable[[], Any], *words: str) -> str:
    """Expect a call to raise RemoteError of a kind, with a message of one line that has these words."""
    with pytest.raises(RemoteError) as caught:
        call()
    message = str(caught.value)
    assert caught.value.kind is kind, message
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == [], message
    assert TOKEN not in message
    return f"exit code 2, {kind}"


# What Kaggle lists and drops


def listed_otherwise(changes: dict[str, int | None], folder: Path) -> str:
    with scene(folder) as one:
        one.server.list_changes = changes
        for versions in (1, 2, 3, 3):  # versions 2 and 3 came out the same: one more would not help
            seen = refused(RemoteKind.MISMATCH, one.dataset)
            assert len(one.server.datasets[DATASET].versions) == versions
        one.server.list_changes = {}
        assert one.dataset() == PushedDataset(DATASET, 3, new=False)
        return f"pushed again twice; {seen}, until the list is right"


def archive_unpacked(folder: Path) -> str:
    with scene(folder) as one:
        one.server.list_changes = {"b.zip": None, "b/inside.csv": 5}
        return refused(RemoteKind.MISMATCH, partial(one.dataset, files=("a.txt", "b.zip")), "b.zip")


def list_in_pages(folder: Path) -> str:
    with scene(folder) as one:
        one.server.page_limit = 1
        assert one.dataset() == PushedDataset(DATASET, 1, new=True)
        assert one.dataset() == PushedDataset(DATASET, 1, new=False)
        return f"{len(one.server.asked('ListDatasetFiles'))} pages read; one version"


def list_late(folder: Path) -> str:
    with scene(folder) as one:
        one.server.list_lag_polls = 2
        assert one.dataset() == PushedDataset(DATASET, 1, new=True)
        one.server.list_lag_polls = 2
        assert one.dataset() == PushedDataset(DATASET, 1, new=False)
        return "waited for; one version"


def lacking_dataset_attached(folder: Path) -> str:
    with scene(folder) as one:
        one.attached()
        one.server.list_changes = {"a.txt": None}
        seen = refused(RemoteKind.MISMATCH, one.kernel, "a.txt")
        assert KERNEL not in one.server.kernels
        return f"{seen}; no version"


def source_dropped(source: str, folder: Path) -> str:
    with scene(folder) as one:
        one.attached()
        one.server.dropped_sources = {source}
        for _ in range(3):
            refused(RemoteKind.MISMATCH, one.kernel, source)
        assert len(one.server.kernels[KERNEL].versions) == 1
        assert json.loads((folder / "pushed.json").read_text())["missing"]
        one.server.dropped_sources = set()
        assert one.kernel(again=True) == one.kernel() == 2
        return "exit code 2 each time; one version"


def source_called_invalid(folder: Path) -> str:
    with scene(folder) as one:
        one.attached()
        one.server.models.clear()
        for _ in range(2):
            refused(RemoteKind.MISMATCH, one.kernel, "bob/a-model/keras/base/2")
        assert len(one.server.kernels[KERNEL].versions) == 1
        return "exit code 2 each time; one version"


def lacking_version_submitted(folder: Path) -> str:
    with scene(folder) as one:
        one.attached()
        one.server.dropped_sources = {"alice/some-wheels"}
        refused(RemoteKind.MISMATCH, one.kernel)
        (folder / "build" / "kernel").mkdir(parents=True)
        shutil.copy2(folder / "pushed.json", folder / "build" / "kernel")
        code, said = one.cli("submit")
        assert (code, len(said.splitlines()), one.server.submissions) == (2, 1, [])
        assert "alice/some-wheels" in said
        return "exit code 2; nothing submitted"


def spelt(spell: Callable[[str, str], str], folder: Path) -> str:
    with scene(folder) as one:
        one.attached()
        one.server.spell_source = spell
        assert one.kernel() == 1
        (folder / "pushed.json").unlink()  # by Kaggle's record alone
        assert one.kernel() == 1
        return "one version"


def prefixed(field_: str, source: str) -> str:
    prefix = {"dataset": "datasets", "competition": "competitions", "kernel": "code", "model": "models"}
    return f"{prefix[field_.removesuffix('DataSources')]}/{source}"


def versioned(field_: str, source: str) -> str:
    return f"{source}/3" if field_ in ("datasetDataSources", "kernelDataSources") else source


SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "with a prefix": prefixed,
    "with a version": versioned,
    "in capitals": lambda _, source: source.title(),
    "as addresses": lambda field_, source: f"https://www.kaggle.com/{prefixed(field_, source)}",
    "with c/ and d/": lambda field_, source: (
        {"datasetDataSources": "d/", "competitionDataSources": "c/"}.get(field_, "") + source
    ),
}


# Waiting for Kaggle


def number_refused(words: tuple[str, ...], folder: Path) -> str:
    with scene(folder) as one:
        one.run()
        one.server.end(one.server.kernels[KERNEL].versions[0])
        record = folder / "build" / "kernel" / "pushed.json"
        record.parent.mkdir(parents=True)
        shutil.copy2(folder / "pushed.json", record)
        code, said = one.cli("submit", *words)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert one.server.submissions == []
        return "exit code 2; nothing submitted"


def log_complete_but_running(folder: Path) -> str:
    with scene(folder) as one:
        one.server.kernel_fate[KERNEL] = "LOGGED"
        run = one.run()
        one.server.calls.clear()
        seen = refused(RemoteKind.TIMEOUT, run.wait, "13.0 hours")
        assert len(one.server.calls) < 600
        assert sum("log is complete" in line for line in one.lines) == 1
        assert 5 < sum("RUNNING for" in line for line in one.lines) < 20  # that it still runs
        return f"under 600 requests in 13 hours, and said; {seen}"


def never_over(name: str, folder: Path) -> str:
    with scene(folder) as one:
        run = one.run()
        one.server.calls.clear()
        if name == "logs":
            one.server.kernel_fate[KERNEL] = "RUNNING"
            seen = refused(RemoteKind.TIMEOUT, run.follow_log)
        elif name == "score":
            one.server.end(one.server.kernels[KERNEL].versions[0])
            one.server.submission_polls = 10**9
            competition = load_competition()
            ref = submissions.submit(one.client, competition, run, log=one.lines.append)
            follow = partial(submissions.follow, one.client, competition, ref, folder, one.lines.append, one.clock)
            seen = refused(RemoteKind.TIMEOUT, follow)
        else:
            one.server.stuck_datasets.add(DATASET)
            seen = refused(RemoteKind.TIMEOUT, one.dataset)
        assert len(one.server.calls) < 1_200
        assert any("minutes now" in line or "hours now" in line for line in one.lines)
        return f"under 1,200 requests, and said; {seen}"


def version_not_shown(answer: str, folder: Path) -> str:
    with scene(folder) as one:
        one.server.unseen_kernel, one.server.unseen_kernel_polls = answer, 3
        for number in (1, 2):
            assert one.kernel(source=f"print({number})\n", **NO_SOURCES) == number
            one.server.kernels[KERNEL].unseen_polls = 3
            KernelRun(one.client, KERNEL, number, one.lines.append, one.clock).wait()
        return "waited for; followed to its end"


def version_never_shown(folder: Path) -> str:
    with scene(folder) as one:
        run = one.run()
        one.server.kernels[KERNEL].unseen_polls = 10**9
        before = one.clock.now
        seen = refused(RemoteKind.MISSING, run.wait)
        assert 60 < one.clock.now - before < 180
        return f"waited for two minutes; {seen}"


# Refusals


def absent_is_403(folder: Path) -> str:
    with scene(folder) as one:
        one.server.absent_status = 403
        assert one.dataset() == PushedDataset(DATASET, 1, new=True)
        return "created"


def status_is_always_403(folder: Path) -> str:
    with scene(folder) as one:
        one.server.faults.add(Fault("GetDatasetStatus", "status", None, after_effect=True, status=403))
        assert one.dataset() == PushedDataset(DATASET, 1, new=True)
        assert one.dataset() == PushedDataset(DATASET, 1, new=False)
        return "created; the second time nothing is pushed"


def public_dataset(view: str, folder: Path) -> str:
    with scene(folder) as one:
        one.dataset("of-somebody")
        one.server.datasets["bob/of-somebody"] = one.server.datasets.pop("alice/of-somebody")
        one.server.public_views = {view}
        sources: dict[str, Any] = {**NO_SOURCES, "dataset_sources": ["bob/of-somebody"]}
        assert one.kernel(**sources) == one.kernel(**sources) == 1
        one.server.public_views = set()
        refused(RemoteKind.MISSING, partial(one.kernel, source="2", **sources), "bob/of-somebody")
        return "taken; a private one is refused by name"


def limits_unknown(status: int, folder: Path) -> str:
    with scene(folder) as one:
        run = one.run()
        one.server.end(one.server.kernels[KERNEL].versions[0])
        one.server.faults.add(Fault("GetSubmissionLimits", "status", None, status=status))
        assert submissions.submit(one.client, load_competition(), run, log=one.lines.append) == 1001
        assert any("unknown" in line for line in one.lines)
        return "submitted, and said"


def no_more_in_all(folder: Path) -> str:
    with scene(folder) as one:
        run = one.run()
        one.server.end(one.server.kernels[KERNEL].versions[0])
        one.server.total_allowed = 0
        send = partial(submissions.submit, one.client, load_competition(), run, log=one.lines.append)
        seen = refused(RemoteKind.NO_TOTAL, send)
        with pytest.raises(RemoteError) as caught:
            send()
        assert "tomorrow" not in str(caught.value)
        return seen


def kaggle_error(folder: Path) -> str:
    with scene(folder) as one:
        run = one.run()
        one.server.end(one.server.kernels[KERNEL].versions[0])
        competition = load_competition()
        send = partial(submissions.submit, one.client, competition, run, log=one.lines.append)
        one.server.submission_error = "Kaggle Error"
        ref = send()
        seen = refused(
            RemoteKind.FAILED, partial(submissions.follow, one.client, competition, ref, folder, print), "--again"
        )
        one.server.submission_error = ""
        score = submissions.follow(one.client, competition, send(again=True), folder, one.lines.append)
        return f"{seen}, with --again in the line; {score} the second time"


def user_name(username: str, works: bool, folder: Path) -> str:
    with scene(folder, username) as one:
        named = Kaggle(Credentials("k", username), one.server.endpoint, one.clock.wait, log=one.lines.append)
        one.dataset("x-files")
        one.server.calls.clear()
        stage = Stage("some-weights", "some-weights", "", "", "other", {"a.txt": folder / "x-files" / "a.txt"})
        if works:
            assert push_dataset(named, stage, one.clock).ref == f"{username}/some-weights"
            return "pushed"
        with pytest.raises(UsageError, match=username):
            push_dataset(named, stage, one.clock)
        with pytest.raises(UsageError, match=username):
            push_kernel(named, Kernel("a", "1", {"id": "OWNER/a"}), folder / "pushed.json")
        assert one.changes() == 0
        return "refused by name; nothing is made"


def owner_in_metadata(owner: str, works: bool, folder: Path) -> str:
    metadata = {"id": f"{owner}/some-weights", "title": "some weights", "licenses": [{"name": "other"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(metadata))
    if works:
        assert read_stage(folder, {}, load_competition()).owner == owner
        return "taken"
    with pytest.raises(UsageError, match=owner):
        read_stage(folder, {}, load_competition())
    return "refused by name; nothing is made"


def name_taken_by_a_kernel(folder: Path) -> str:
    with scene(folder) as one:
        one.kernel(id="OWNER/some-weights", title="some weights", **NO_SOURCES)
        one.server.calls.clear()
        seen = refused(RemoteKind.TAKEN, one.dataset, DATASET)
        assert one.changes() == 0
        return f"{seen}; nothing is made"


def name_taken_by_a_dataset(folder: Path) -> str:
    with scene(folder) as one:
        one.attached()
        before = one.changes()
        push = partial(one.kernel, id="OWNER/some-weights", title="some weights")
        seen = refused(RemoteKind.TAKEN, partial(push, dataset_sources=[]), DATASET)
        assert one.changes() == before
        metadata = {**SOURCES, "id": "OWNER/some-weights", "title": "some weights"}
        assert any("OWNER/some-weights" in problem for problem in metadata_problems(metadata))
        return f"{seen}; nothing is made"


def one_name_in_the_checkout(folder: Path) -> str:
    with scene(folder) as one:
        for path, value in (
            ("datasets_meta/mine/dataset-metadata.json", {"licenses": [{"name": "other"}]}),
            ("kernels/infer/kernel-metadata.json", {}),
            ("build/mine/a.txt", {}),
        ):
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_text(json.dumps({"id": "OWNER/some-thing", "title": "some thing", **value}))
        code, said = one.cli("datasets-push", "mine")
        assert (code, len(said.splitlines()), one.changes()) == (2, 1, 0), said
        assert "OWNER/some-thing" in said
        return "exit code 2; nothing is made"


def title(text: str, folder: Path) -> str:
    with scene(folder) as one:
        metadata: dict[str, Any] = {"id": "OWNER/a-kernel", "title": text, "code_file": "a.py", **SOURCES}
        (folder / "kernels" / "infer").mkdir(parents=True)
        (folder / "kernels" / "infer" / "kernel-metadata.json").write_text(json.dumps(metadata))
        code, said = one.cli("kernel-push")
        assert (code, len(said.splitlines()), one.server.calls) == (2, 1, [])
        assert "title" in said
        return "exit code 2; nothing is asked or made"


# Credentials, proxies, certificates


def credentials(files: dict[str, bytes], environment: dict[str, str], words: tuple[str, ...], folder: Path) -> str:
    with isolated(folder / "home") as patch:
        for name, content in files.items():
            path = folder / "home" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        patch.delenv("KAGGLE_CONFIG_DIR")
        for name, text in environment.items():
            patch.setenv(name, text)
        return refused(RemoteKind.CREDENTIALS, lambda: next(candidates()), *words)


def unreadable(folder: Path) -> str:
    with isolated(folder / "home"):
        path = folder / "home" / ".kaggle" / "access_token"
        path.mkdir(parents=True)  # a folder: root, too, cannot read it as a file
        refused(RemoteKind.CREDENTIALS, lambda: next(candidates()), str(path))
        path.rmdir()
        path.write_text(TOKEN)
        path.chmod(0)
        if os.geteuid() == 0:
            return "exit code 2, credentials (a folder in its place)"
        return refused(RemoteKind.CREDENTIALS, lambda: next(candidates()), str(path), "chmod")


def readable_by_others(folder: Path) -> str:
    with isolated(folder / "home"):
        path, lines = folder / "home" / ".kaggle" / "access_token", list[str]()
        path.parent.mkdir()
        path.write_text(TOKEN)
        path.chmod(0o644)
        assert next(candidates(lines.append)) == Credentials(TOKEN)
        assert ["0644" in line and "chmod 600" in line for line in lines] == [True]
        path.chmod(0o600)
        next(candidates(lines.append))
        assert len(lines) == 1
        return "used, and said"


def no_longer_active(name: str, folder: Path) -> str:
    """Use credentials that have expired or were revoked, alone, and then with a legacy key beside them."""
    with scene(folder) as one:
        one.patch.setenv(ENDPOINT, one.server.endpoint)
        one.patch.delenv("KAGGLE_CONFIG_DIR")
        home = folder / "home" / ".kaggle"
        home.mkdir()
        token = name == ACCESS
        text = TOKEN if token else json.dumps({"refresh_token": "revoked", "username": "alice"})
        (folder / "home" / name).write_text(text)
        (folder / "home" / name).chmod(0o600)
        one.server.expired_tokens = {TOKEN}
        seen = refused(RemoteKind.INACTIVE, lambda: sign_in(one.lines.append).quota(), name, "kaggle auth login")
        (folder / "home" / LEGACY).write_text(json.dumps({"username": "alice", "key": "k"}))
        (folder / "home" / LEGACY).chmod(0o600)
        sign_in(one.lines.append).quota()
        assert len(one.lines) == token  # a legacy key comes before a login
        return f"{seen}; with a legacy key that one, and said" if token else f"{seen}; with a legacy key that one"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Give the address of a server on loopback that answers every request with the same bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def through_proxy(address: str, endpoint: str, answer: bytes, words: tuple[str, ...], folder: Path) -> str:
    with isolated(folder / "home") as patch, answering(answer) as proxy:
        patch.setenv("HTTPS_PROXY" if endpoint.startswith("https") else "http_proxy", address.format(proxy=proxy))
        clock = Clock()
        client = Kaggle(Credentials(TOKEN), endpoint, clock.wait)
        seen = refused(RemoteKind.PROXY, partial(client.competition, "a"), *words)
        with pytest.raises(ClotkitError) as caught:
            client.competition("a")
        assert "s3cret" not in str(caught.value)
        return seen


def certificate_not_trusted(folder: Path) -> str:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, pem = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", pem, "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        with isolated(folder / "home"):
            clock = Clock()
            endpoint = f"https://127.0.0.1:{listener.getsockname()[1]}"
            client = Kaggle(Credentials(TOKEN), endpoint, clock.wait)
            seen = refused(RemoteKind.CERTIFICATE, partial(client.competition, "a"), "REQUESTS_CA_BUNDLE")
            assert clock.waits == []
            return seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


ASKS = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
DENIES = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
HTTP, HTTPS = "http://127.0.0.1:9", "https://127.0.0.1:9"
ACCESS, LEGACY, LOGIN = ".kaggle/access_token", ".kaggle/kaggle.json", ".kaggle/credentials.json"
WRONG_LISTS: dict[str, dict[str, int | None]] = {
    "lacks a file": {"a.txt": None},
    "lacks a file whose name another folder has too": {"a.txt": None, "one/a.txt": 10},
    "has a file of another size": {"a.txt": 7_777},
    "has a folder's tar of another size": {"one.tar": 512},
    "lacks a folder's tar": {"one.tar": None},
    "has a file under another name": {"a.txt": None, "a (1).txt": 5},
    "has a file of an earlier version": {"old.txt": 3},
    "lacks CONTENT.json": {"CONTENT.json": None},
    "has nothing but CONTENT.json": {"a.txt": None, "one.tar": None},
}
WRONG_CREDENTIALS: dict[str, tuple[dict[str, bytes], dict[str, str], tuple[str, ...]]] = {
    "a login that is cut": ({LOGIN: b'{"refresh_token": "r'}, {}, ("credentials.json", "kaggle auth login")),
    "a login without its lasting token": ({LOGIN: b'{"username": "a"}'}, {}, ("credentials.json", "kaggle auth login")),
    "a kaggle.json with settings only": ({LEGACY: b'{"competition": "x"}'}, {}, ("kaggle.json", "username", "key")),
    "a kaggle.json without its key": ({LEGACY: b'{"username": "alice"}'}, {}, ("kaggle.json", "no key")),
    "a bare token as kaggle.json": ({LEGACY: TOKEN.encode()}, {}, ("bare token", "access_token")),
    "a quoted token as kaggle.json": ({LEGACY: f'"{TOKEN}"'.encode()}, {}, ("quotation", "access_token")),
    "a kaggle.json that is cut": ({LEGACY: b'{"username": "alice", "k'}, {}, ("kaggle.json", "line 1")),
    "an empty kaggle.json": ({LEGACY: b""}, {}, ("kaggle.json", "0 characters")),
    "a list as kaggle.json": ({LEGACY: b"[1]"}, {}, ("kaggle.json",)),
    "a quoted token": ({ACCESS: f"'{TOKEN}'\n".encode()}, {}, (ACCESS, "quotation")),
    "a quoted token in the variable": ({}, {"KAGGLE_API_TOKEN": f'"{TOKEN}"'}, ("KAGGLE_API_TOKEN", "quotation")),
    "a token on two lines": ({ACCESS: f"{TOKEN[:8]}\n{TOKEN[8:]}".encode()}, {}, (ACCESS, "2 words or lines")),
    "a token after its name": ({ACCESS: f"KAGGLE_API_TOKEN={TOKEN}".encode()}, {}, (ACCESS, "=")),
    "a token after a byte order mark": ({ACCESS: b"\xef\xbb\xbf" + TOKEN.encode()}, {}, (ACCESS, "byte order")),
    "a token in UTF-16": ({ACCESS: TOKEN.encode("utf-16")}, {}, (ACCESS, "UTF-16")),
    "a token with a curly quote": ({ACCESS: f"{TOKEN}\u201d".encode()}, {}, (ACCESS, "ASCII")),
    "a kaggle.json as access_token": ({ACCESS: b'{"username":"a","key":"b"}'}, {}, (ACCESS, "kaggle.json")),
    "an empty access_token": ({ACCESS: b"\n"}, {}, (ACCESS, "empty")),
    "an empty variable": ({}, {"KAGGLE_API_TOKEN": ""}, ("KAGGLE_API_TOKEN", "empty")),
    "a variable with blanks only": ({}, {"KAGGLE_API_TOKEN": "  "}, ("KAGGLE_API_TOKEN", "empty")),
    "a variable with the path of no file": ({}, {"KAGGLE_API_TOKEN": "~/no/token"}, ("KAGGLE_API_TOKEN", "path")),
    "a user name without a key": ({}, {"KAGGLE_USERNAME": "alice"}, ("KAGGLE_KEY",)),
}  # fmt: skip
PROXIES: dict[str, tuple[str, str, bytes, tuple[str, ...]]] = {
    "asks for a password": ("http://{proxy}", HTTP, ASKS, ("407", "http_proxy")),
    "asks for a password before a tunnel": ("http://u:s3cret@{proxy}", HTTPS, ASKS, ("407", "HTTPS_PROXY")),
    "denies the tunnel": ("http://{proxy}", HTTPS, DENIES, ("403", "HTTPS_PROXY")),
    "is not there": ("http://u:s3cret@127.0.0.1:1", HTTP, b"", ("http_proxy",)),
    "is not there before a tunnel": ("127.0.0.1:1", HTTPS, b"", ("HTTPS_PROXY",)),
    "has an address without a colon": ("http//127.0.0.1:3128", HTTP, b"", ("http_proxy", "HOST:PORT")),
    "has a port that is none": ("http://127.0.0.1:abc", HTTP, b"", ("http_proxy", "HOST:PORT")),
    "has a port above all": ("http://127.0.0.1:99999", HTTPS, b"", ("HTTPS_PROXY", "HOST:PORT")),
    "has an address that ends in the middle": ("http://[::1", HTTP, b"", ("http_proxy", "HOST:PORT")),
    "has no host": ("http://:3128", HTTPS, b"", ("HTTPS_PROXY", "HOST:PORT")),
    "has a scheme that is none": ("ftp://127.0.0.1:1", HTTP, b"", ("http_proxy", "HOST:PORT")),
    "needs SOCKS": ("socks5://127.0.0.1:1", HTTP, b"", ("http_proxy", "HOST:PORT")),
}
ALL_SOURCES = (
    "alice/some-wheels",
    "mayo-clinic-strip-ai",
    "alice/an-older-kernel",
    "bob/a-model/keras/base/2",
)
NUMBERS: dict[str, tuple[str, ...]] = {
    "0": ("--version", "0"), "-1": ("--version", "-1"), "one": ("--version", "one"), "1_0": ("--version", "1_0"),
    "a full-width digit": ("--version", "\uff11"), "a version that is not there": ("--version", "7"),
    "0 of a named kernel": ("--kernel", KERNEL, "--version", "0"),
    "a version of a kernel that is shorter": ("--kernel", KERNEL, "--version", "3"),
}  # fmt: skip
COMPARED = "pushed again, or exit code 2; never unchanged"

CASES = [
    *(Reported(f"Kaggle's list of a dataset {name}", COMPARED, partial(listed_otherwise, changes))
      for name, changes in WRONG_LISTS.items()),
    Reported("Kaggle unpacks a zip of a dataset", "exit code 2, with the name of the file", archive_unpacked),
    Reported("Kaggle's list of a dataset comes in pages", "all pages are read", list_in_pages),
    Reported("Kaggle's list of a dataset is incomplete at first", "waited for; one version", list_late),
    Reported("a kernel attaches a dataset that lacks a file", "exit code 2; no version", lacking_dataset_attached),
    *(Reported(f"Kaggle drops the source {source} without a word", "exit code 2; no second version",
               partial(source_dropped, source)) for source in ALL_SOURCES),
    Reported("Kaggle calls a source invalid, twice", "exit code 2; no second version", source_called_invalid),
    Reported("a version without a source is submitted", "exit code 2; not submitted", lacking_version_submitted),
    *(Reported(f"submit of version: {name}", "exit code 2; nothing submitted", partial(number_refused, words))
      for name, words in NUMBERS.items()),
    Reported("a log is complete while the status stays RUNNING", "rarer looks; said; an end", log_complete_but_running),
    *(Reported(f"nothing ends ({name})", "rarer looks; said; an end", partial(never_over, name))
      for name in ("logs", "score", "dataset")),
    Reported("status 403 for a dataset that does not exist yet", "created", absent_is_403),
    Reported("status 403 for a dataset, always", "created; then unchanged", status_is_always_403),
    *(Reported(f"a public dataset of somebody else, seen by {view} alone", "taken", partial(public_dataset, view))
      for view in ("GetDataset", "ListDatasetFiles")),
    *(Reported(f"sources are read back {name}", "the same; one version", partial(spelt, spell))
      for name, spell in SPELLINGS.items()),
    *(Reported(f"right after a push Kaggle answers: {answer}", "waited for", partial(version_not_shown, answer))
      for answer in ("404", "403", "earlier")),
    Reported("a version is never shown", "waited for, within a limit", version_never_shown),
    *(Reported(f"the limits of submissions answer {status}", "goes on; unknown is said",
               partial(limits_unknown, status)) for status in (404, 403, 500)),
    Reported("limitedByTotal: no submissions are left", "says so; not tomorrow", no_more_in_all),
    Reported("a submission ends with Kaggle Error", "says --again", kaggle_error),
    *(Reported(f"the user name of a key is {name}", right, partial(user_name, name, works))
      for name, works, right in (
        ("alice_b", True, "pushed"), ("Alice", False, "a reason before anything is made"),
        ("alice.b", False, "a reason before anything is made"))),
    *(Reported(f"the owner in metadata is {name}", right, partial(owner_in_metadata, name, works))
      for name, works, right in (
        ("alice_c", True, "taken"), ("Alice_C", False, "a reason before anything is made"))),
    Reported("a new dataset has the name of a kernel", "a reason before anything is made", name_taken_by_a_kernel),
    Reported("a new kernel has the name of a dataset", "a reason before anything is made", name_taken_by_a_dataset),
    Reported("a kernel and a dataset here have one name", "a reason before anything is made", one_name_in_the_checkout),
    *(Reported(f"a kernel's title: {name}", "a reason before anything is made", partial(title, text))
      for name, text in (("4 characters", "abcd"), ("51 characters", "x" * 51), ("another slug", "another kernel"))),
    *(Reported(f"credentials: {name}", "one line of its own, with what to do", partial(credentials, *case))
      for name, case in WRONG_CREDENTIALS.items()),
    Reported("credentials: an access token that has expired", "one line; other credentials are used",
             partial(no_longer_active, ACCESS)),
    Reported("credentials: a login that was revoked", "one line; other credentials are used",
             partial(no_longer_active, LOGIN)),
    Reported("credentials: a file that cannot be read", "one line of its own, with what to do", unreadable),
    Reported("credentials: a file that others can read", "used; one line with what to do", readable_by_others),
    *(Reported(f"a proxy {name}", "one line of its own, with what to do", partial(through_proxy, *case))
      for name, case in PROXIES.items()),
    Reported("a certificate that is not trusted", "one line of its own, with what to do", certificate_not_trusted),
]  # fmt: skip
