"""Test the loopback server with Kaggle's own clients, for which it must behave like Kaggle."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from kagglesdk import KaggleClient, KaggleEnv
from kagglesdk.blobs.types.blob_api_service import ApiBlobType, ApiStartBlobUploadRequest
from kagglesdk.competitions.types.competition_api_service import (
    ApiCreateCodeSubmissionRequest,
    ApiDownloadDataFileRequest,
    ApiGetCompetitionRequest,
    ApiGetSubmissionLimitsRequest,
    ApiGetSubmissionRequest,
    ApiListDataFilesRequest,
    ApiListSubmissionsRequest,
)
from kagglesdk.datasets.types.dataset_api_service import (
    ApiCreateDatasetRequest,
    ApiCreateDatasetVersionRequest,
    ApiCreateDatasetVersionRequestBody,
    ApiDatasetNewFile,
    ApiDownloadDatasetRequest,
    ApiGetDatasetRequest,
    ApiGetDatasetStatusRequest,
    ApiListDatasetFilesRequest,
)
from kagglesdk.kernels.types.kernels_api_service import (
    ApiDownloadKernelOutputRequest,
    ApiGetAcceleratorQuotaStatisticsRequest,
    ApiGetKernelRequest,
    ApiGetKernelSessionStatusRequest,
    ApiListKernelSessionOutputRequest,
    ApiSaveKernelRequest,
)
from kagglesdk.security.types.oauth_service import IntrospectTokenRequest

from .conftest import ROOT
from .kaggle_server import Fault, KaggleServer, KernelVersion, only_loopback
from .kaggle_server.guard import LeftLoopbackError
from .kaggle_server.state import SUBMISSION, slugify

TOKEN = "KGAT_0123456789abcdef"
COMPETITION = "mayo-clinic-strip-ai"
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No way out of this machine, no credentials, no proxy."""
    for name in list(os.environ):
        if name.startswith("KAGGLE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    with only_loopback() as tried:
        yield
    assert tried == []


@pytest.fixture
def server() -> Iterator[KaggleServer]:
    with KaggleServer() as server:
        yield server
    assert server.leaks == []
    assert server.faults.pending == []


@pytest.fixture
def kaggle(server: KaggleServer) -> Iterator[Any]:
    with connect(server.endpoint) as client:
        yield client


def connect(endpoint: str, token: str = TOKEN) -> Any:
    client = KaggleClient(env=KaggleEnv.LOCAL, api_token=token)
    client.http_client()._endpoint = endpoint
    return client


def of(kind: type, **fields: Any) -> Any:
    request = kind()
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def start(kaggle: Any, name: str, content: bytes) -> Any:
    asked = of(ApiStartBlobUploadRequest, type=ApiBlobType.DATASET, name=name, content_length=len(content))
    return kaggle.blobs.blob_api_client.start_blob_upload(asked)


def upload(kaggle: Any, name: str, content: bytes) -> str:
    """Send a file as Kaggle's client does, going on where the storage says it stopped."""
    blob, first, size = start(kaggle, name, content), 0, len(content)
    for _ in range(10):
        span = {"Content-Range": f"bytes {first}-{size - 1}/{size}"} if first else {}
        try:
            status = requests.put(blob.create_url, data=content[first:], headers=span, timeout=9).status_code
        except requests.ConnectionError:
            status = 503
        if status == 200:
            return str(blob.token)
        assert status == 503
        query = requests.put(blob.create_url, headers={"Content-Range": f"bytes */{size}"}, timeout=9)
        if query.status_code == 200:
            return str(blob.token)
        assert query.status_code == 308
        first = int(query.headers["Range"].removeprefix("bytes=0-")) + 1 if "Range" in query.headers else 0
    raise AssertionError("ten times in vain")


def files(*tokens: str) -> list[Any]:
    return [of(ApiDatasetNewFile, token=token) for token in tokens]


def create(kaggle: Any, *tokens: str, slug: str = "my-weights") -> Any:
    named = {"owner_slug": "alice", "slug": slug, "title": "My weights", "license_name": "CC0-1.0", "is_private": True}
    asked = of(ApiCreateDatasetRequest, files=files(*tokens), **named)
    return kaggle.datasets.dataset_api_client.create_dataset(asked)


def statuses(kaggle: Any, count: int, slug: str = "my-weights") -> list[str]:
    asked = of(ApiGetDatasetStatusRequest, owner_slug="alice", dataset_slug=slug)
    return [kaggle.datasets.dataset_api_client.get_dataset_status(asked).status.name for _ in range(count)]


def current(kaggle: Any) -> int:
    asked = of(ApiGetDatasetRequest, owner_slug="alice", dataset_slug="my-weights")
    return int(kaggle.datasets.dataset_api_client.get_dataset(asked).current_version_number)


def push(kaggle: Any, title: str = "My Kernel X", slug: str = "my-kernel-x", **fields: Any) -> Any:
    given = {"text": "print(1)\n", "language": "python", "kernel_type": "script", "is_private": True, **fields}
    asked = of(ApiSaveKernelRequest, slug=f"alice/{slug}", new_title=title, **given)
    return kaggle.kernels.kernels_api_client.save_kernel(asked)


def runs(kaggle: Any, label: str = "v1", count: int = 3, slug: str = "my-kernel-x") -> list[str]:
    asked = of(ApiGetKernelSessionStatusRequest, user_name="alice", kernel_slug=slug)
    asked.version_label = label or None
    return [kaggle.kernels.kernels_api_client.get_kernel_session_status(asked).status.name for _ in range(count)]


def output(kaggle: Any, **fields: Any) -> Any:
    asked = of(ApiListKernelSessionOutputRequest, user_name="alice", kernel_slug="my-kernel-x", version_label="v1")
    for name, value in fields.items():
        setattr(asked, name, value)
    return kaggle.kernels.kernels_api_client.list_kernel_session_output(asked)


def submit(kaggle: Any, version: int = 1, name: str = "submission.csv") -> Any:
    kernel = {"kernel_owner": "alice", "kernel_slug": "my-kernel-x", "kernel_version": version}
    asked = of(ApiCreateCodeSubmissionRequest, competition_name=COMPETITION, file_name=name, **kernel)
    asked.submission_description = "v1 4f2a"
    return kaggle.competitions.competition_api_client.create_code_submission(asked)


def refused(status: int, call: Any, *given: Any, **named: Any) -> str:
    with pytest.raises(requests.HTTPError) as caught:
        call(*given, **named)
    assert caught.value.response is not None
    assert caught.value.response.status_code == status
    return str(caught.value)


# credentials


def test_knows_tokens_and_keys_and_nobody_else(server: KaggleServer) -> None:
    with connect(server.endpoint) as kaggle:
        told = kaggle.security.oauth_client.introspect_token(of(IntrospectTokenRequest, token=TOKEN))
        assert (told.active, told.username) == (True, "alice")
        told = kaggle.security.oauth_client.introspect_token(of(IntrospectTokenRequest, token="other"))
        assert (told.active, told.username) == (False, "")
        assert push(kaggle).version_number == 1
    with connect(server.endpoint, "stolen") as kaggle:
        assert "Unauthenticated" in refused(401, push, kaggle)
    url, body = f"{server.endpoint}/v1/kernels.KernelsApiService/GetAcceleratorQuotaStatistics", b"{}"
    for user, status in (("alice", 200), ("bob", 401)):
        assert requests.post(url, body, auth=(user, "k"), timeout=9).status_code == status
    assert requests.post(url, body, timeout=9).status_code == 401
    assert [call.headers["Authorization"] for call in server.calls[:3]] == [f"Bearer {TOKEN}"] * 3


# datasets


def test_a_dataset_and_a_second_version_of_it(server: KaggleServer, kaggle: Any) -> None:
    assert "not found" in refused(404, statuses, kaggle, 1)
    tokens = [upload(kaggle, name, content) for name, content in (("a.bin", WEIGHTS), ("sub/b.whl", b"b"), ("e", b""))]
    made = create(kaggle, *tokens)
    assert (made.ref, made.status, made.error) == ("/alice/my-weights", "ok", "")
    assert statuses(kaggle, 4) == ["NOT_YET_PERSISTED", "BLOBS_RECEIVED", "READY", "READY"]
    server.version_lag_polls = 2
    assert [current(kaggle) for _ in range(3)] == [0, 1, 1]  # the fourth status had been the first look
    dataset = server.datasets["alice/my-weights"]
    assert (dataset.title, dataset.license, dataset.private) == ("My weights", "CC0-1.0", True)
    assert dataset.versions[0].files == {"a.bin": WEIGHTS, "sub/b.whl": b"b", "e": b""}

    body = of(ApiCreateDatasetVersionRequestBody, version_notes="sha256 1f", files=files(upload(kaggle, "c", b"cc")))
    asked = of(ApiCreateDatasetVersionRequest, owner_slug="alice", dataset_slug="my-weights", body=body)
    assert kaggle.datasets.dataset_api_client.create_dataset_version(asked).status == "ok"
    server.version_lag_polls = 1
    assert statuses(kaggle, 3)[-1] == "READY"
    assert [current(kaggle) for _ in range(2)] == [1, 2]
    assert [(version.number, version.notes) for version in dataset.versions] == [
        (1, "Initial release"),
        (2, "sha256 1f"),
    ]


def test_a_dataset_is_listed_by_pages_and_downloaded(server: KaggleServer, kaggle: Any) -> None:
    server.dataset_polls = server.version_lag_polls = 0
    create(kaggle, *(upload(kaggle, name, name.encode()) for name in ("a", "sub/b", "c")))
    statuses(kaggle, 1)
    asked = of(ApiListDatasetFilesRequest, owner_slug="alice", dataset_slug="my-weights", page_size=2)
    page = kaggle.datasets.dataset_api_client.list_dataset_files(asked)
    listed = list(page.dataset_files)
    asked.page_token = page.next_page_token
    page = kaggle.datasets.dataset_api_client.list_dataset_files(asked)
    assert {file.name: file.total_bytes for file in [*listed, *page.dataset_files]} == {"a": 1, "c": 1, "sub/b": 5}
    assert page.next_page_token == ""
    asked = of(ApiDownloadDatasetRequest, owner_slug="alice", dataset_slug="my-weights", file_name="sub/b")
    answer = kaggle.datasets.dataset_api_client.download_dataset(asked)
    assert (answer.content, answer.url.startswith(server.storage)) == (b"sub/b", True)
    assert "Authorization" not in server.calls[-1].headers
    asked.file_name = "nope"
    refused(404, kaggle.datasets.dataset_api_client.download_dataset, asked)


def test_a_name_that_is_taken(server: KaggleServer, kaggle: Any) -> None:
    token = upload(kaggle, "a", b"a")
    assert create(kaggle, token).error == ""
    assert "already in use" in create(kaggle, token).error
    server.name_taken_status = 409
    assert "already in use" in refused(409, create, kaggle, token)
    assert len(server.datasets) == 1


def test_datasets_that_are_never_ready(server: KaggleServer, kaggle: Any) -> None:
    server.stuck_datasets, server.failed_datasets = {"alice/stuck"}, {"alice/failed"}
    for slug in ("stuck", "failed"):
        create(kaggle, upload(kaggle, "a", b"a"), slug=slug)
    assert set(statuses(kaggle, 20, "stuck")[5:]) == {"INDIVIDUAL_BLOBS_COMPRESSED"}
    assert statuses(kaggle, 3, "failed")[-1] == "FAILED"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "midway", n=5000),
        Fault("PUT", "midway", n=0),
        Fault("PUT", "midway", times=3),
        Fault("PUT", "midway", n=5000, status=0),
        Fault("PUT", "reset"),
        Fault("PUT", "reset", after_effect=True),
        Fault("PUT", "status", status=503, after_effect=True),
    ],
    ids=lambda fault: f"{fault.kind} {fault.n} {fault.status} {fault.after_effect}",
)
def test_an_upload_goes_on_where_it_stopped(server: KaggleServer, kaggle: Any, fault: Fault) -> None:
    server.faults.add(replace(fault))
    token = upload(kaggle, "a.bin", WEIGHTS)
    assert server.blobs[token].data == WEIGHTS
    if fault.n == 5000:
        assert server.asked("PUT")[-1] == {
            "fileName": "a.bin",
            "bytes": len(WEIGHTS) - 5000,
            "contentRange": f"bytes 5000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}",
        }


def test_an_upload_that_expires_or_lies_is_refused(server: KaggleServer, kaggle: Any) -> None:
    server.faults.add(Fault("PUT", "expired"))
    blob = start(kaggle, "a", WEIGHTS)
    assert [requests.put(blob.create_url, WEIGHTS, timeout=9).status_code for _ in range(2)] == [404, 404]
    blob = start(kaggle, "a", WEIGHTS)
    assert requests.put(blob.create_url, b"short", timeout=9).status_code == 400
    wrong = {"Content-Range": f"bytes 5-9/{len(WEIGHTS)}"}
    assert requests.put(blob.create_url, b"a gap", headers=wrong, timeout=9).status_code == 400
    refused(400, create, kaggle, blob.token)
    refused(400, start, kaggle, "../evil", b"")
    assert server.datasets == {}


def test_a_client_that_goes_away_midway_leaves_what_it_sent(server: KaggleServer, kaggle: Any) -> None:
    blob = start(kaggle, "a", WEIGHTS)
    host, _, port = server.storage.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=9) as connection:
        path = blob.create_url.removeprefix(server.storage)
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(WEIGHTS)}\r\n\r\n".encode())
        connection.sendall(WEIGHTS[:99])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(99).startswith(b"HTTP/1.1 503")
    query = requests.put(blob.create_url, headers={"Content-Range": f"bytes */{len(WEIGHTS)}"}, timeout=9)
    assert (query.status_code, query.headers["Range"]) == (308, "bytes=0-98")


# kernels


def test_a_push_from_its_source_to_its_output(server: KaggleServer, kaggle: Any) -> None:
    server.page_limit = 2
    server.on_run = lambda version: version.outputs.update({"../evil": b"e", "/etc/x": b"x"})
    made = push(kaggle, enable_gpu=True, machine_shape="NvidiaTeslaT4", competition_data_sources=[COMPETITION])
    assert (made.ref, made.version_number, made.error) == ("/code/alice/my-kernel-x", 1, "")
    assert made.invalid_competition_sources == []
    assert (output(kaggle).files, output(kaggle).log) == ([], "")
    assert runs(kaggle, count=4) == ["QUEUED", "RUNNING", "COMPLETE", "COMPLETE"]
    page = output(kaggle)
    assert [event["data"] for event in json.loads(page.log)] == [
        "the run starts\n",
        "4 patients scored\n",
        "the run ends\n",
    ]
    every = [*page.files, *output(kaggle, page_token=page.next_page_token).files]
    got = {file.file_name: requests.get(file.url, timeout=9).content for file in every}
    assert got == {"../evil": b"e", "/etc/x": b"x", "submission.csv": SUBMISSION}
    named = {"owner_slug": "alice", "kernel_slug": "my-kernel-x", "file_path": "submission.csv", "version_number": 1}
    one = kaggle.kernels.kernels_api_client.download_kernel_output(of(ApiDownloadKernelOutputRequest, **named))
    assert one.content == SUBMISSION
    told = kaggle.kernels.kernels_api_client.get_kernel(
        of(ApiGetKernelRequest, user_name="alice", kernel_slug="my-kernel-x")
    )
    assert (told.metadata.current_version_number, told.blob.source) == (1, "print(1)\n")
    quota = kaggle.kernels.kernels_api_client.get_accelerator_quota_statistics(
        ApiGetAcceleratorQuotaStatisticsRequest()
    )
    assert quota.gpu_quota.total_time_allowed.total_seconds() == 108_000
    assert (quota.gpu_quota.time_used.total_seconds(), quota.quota_refresh_time.year) == (3600, 2026)


def test_versions_and_their_labels(server: KaggleServer, kaggle: Any) -> None:
    assert [push(kaggle).version_number for _ in range(2)] == [1, 2]
    assert runs(kaggle, "v1", 3)[-1] == "COMPLETE"
    assert runs(kaggle, "", 1) == ["QUEUED"]  # none: the last one
    for label in ("2", "v3", "v", "vx"):
        refused(404, runs, kaggle, label, 1)
    refused(403, runs, kaggle, "v1", 1, "other-kernel")
    server.version_jump = 3
    assert push(kaggle).version_number == 5
    assert push(kaggle).version_number == 6
    assert [version.source == "print(1)\n" for version in server.kernels["alice/my-kernel-x"].versions] == [
        True, True, False, False, True, True,
    ]  # fmt: skip
    assert server.push_elsewhere("alice/my-kernel-x") == 7


def test_what_a_push_is_refused_or_warned_for(server: KaggleServer, kaggle: Any) -> None:
    refused(500, push, kaggle, "x" * 51)
    refused(400, push, kaggle, text="é" * 500_001)
    refused(500, push, kaggle, slug="Bad_Slug!!")
    refused(404, push, kaggle, id=99)
    assert server.kernels == {}
    push(kaggle, text="x" * 1_000_000)
    made = push(kaggle, title="Another, title", dataset_data_sources=["alice/none"], kernel_data_sources=["bob/none"])
    assert (made.ref, made.version_number) == ("/code/alice/another-title", 1)
    assert (made.invalid_dataset_sources, made.invalid_kernel_sources) == (["alice/none"], ["bob/none"])
    assert set(server.kernels) == {"alice/my-kernel-x", "alice/another-title"}


def test_a_run_sees_only_datasets_that_are_ready(server: KaggleServer, kaggle: Any) -> None:
    create(kaggle, upload(kaggle, "a", b"a"))
    source = ["alice/my-weights"]
    assert push(kaggle, dataset_data_sources=source).invalid_dataset_sources == []
    statuses(kaggle, 3)
    push(kaggle, dataset_data_sources=["alice/my-weights/1"])
    assert [version.mounted for version in server.kernels["alice/my-kernel-x"].versions] == [{}, {source[0]: 1}]


def test_two_gpu_sessions_and_no_more(server: KaggleServer, kaggle: Any) -> None:
    def named(number: int) -> Any:
        return push(kaggle, title=f"Kernel {number}", slug=f"kernel-{number}", enable_gpu=True)

    assert [named(number).version_number for number in (1, 2)] == [1, 1]
    full = named(3)
    assert (full.error, full.version_number) == ("Maximum batch GPU session count of 2 reached.", 0)
    assert "versionNumber" not in full.to_dict()
    assert push(kaggle).version_number == 1  # without a GPU
    assert "alice/kernel-3" not in server.kernels
    assert [bool(named(3).error) for _ in range(3)] == [True, True, False]  # time has passed


@pytest.mark.parametrize(
    ("fate", "told"),
    [
        ("ERROR", ["QUEUED", "RUNNING", "ERROR"]),
        ("CANCEL", ["QUEUED", "RUNNING", "CANCEL_ACKNOWLEDGED"]),
        ("QUEUED", ["QUEUED", "QUEUED", "QUEUED"]),
        ("RUNNING", ["QUEUED", "RUNNING", "RUNNING"]),
    ],
)
def test_fates_of_a_run(server: KaggleServer, kaggle: Any, fate: str, told: list[str]) -> None:
    server.kernel_fate["alice/my-kernel-x"] = fate
    push(kaggle)
    assert runs(kaggle) == told
    assert output(kaggle).files == []
    asked = of(ApiGetKernelSessionStatusRequest, user_name="alice", kernel_slug="my-kernel-x", version_label="v1")
    failure = kaggle.kernels.kernels_api_client.get_kernel_session_status(asked).failure_message
    assert bool(failure) == (fate == "ERROR")


def stream(server: KaggleServer) -> requests.Response:
    url = f"{server.endpoint}/api/v1/kernels/logs/stream/alice/my-kernel-x?versionLabel=v1"
    return requests.get(url, headers={"Authorization": f"Bearer {TOKEN}"}, stream=True, timeout=9)


def test_the_log_is_events_and_then_an_array(server: KaggleServer, kaggle: Any) -> None:
    def run(version: KernelVersion) -> None:
        version.log = ["one\n", {"stream_name": "stderr", "time": 9.0, "data": "two"}]

    server.on_run = run
    push(kaggle)
    server.faults.add(Fault("GetKernelSessionLogsStream", "truncated"))
    with stream(server) as cut, pytest.raises(requests.exceptions.ChunkedEncodingError):
        cut.text  # noqa: B018
    assert runs(kaggle, count=1) == ["QUEUED"]
    with stream(server) as whole:
        assert whole.headers["Content-Type"] == "text/event-stream"
        lines = [str(line) for line in whole.iter_lines(decode_unicode=True) if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert ([event["data"] for event in events], lines[-1]) == (["one\n", "two"], "data: END_OF_LOG")
    assert runs(kaggle, count=1) == ["COMPLETE"]
    with stream(server) as over:
        assert over.json() == events
        assert over.headers["Content-Type"] == "application/json"


def test_a_log_that_comes_late(server: KaggleServer, kaggle: Any) -> None:
    server.kernel_polls, server.log_lag_polls = 0, 1
    push(kaggle)
    runs(kaggle, count=1)
    assert [bool(output(kaggle).log) for _ in range(2)] == [False, True]


# the competition


def test_a_submission_gets_its_score(server: KaggleServer, kaggle: Any) -> None:
    client = kaggle.competitions.competition_api_client
    told = client.get_competition(of(ApiGetCompetitionRequest, competition_name=COMPETITION))
    assert (told.user_has_entered, told.submissions_disabled, told.is_kernels_submissions_only) == (True, False, True)
    assert (told.max_daily_submissions, told.deadline.year) == (5, 2027)
    push(kaggle)
    assert "Could not find provided notebook" in refused(404, submit, kaggle)  # the run is not over
    runs(kaggle)
    assert "Could not find provided notebook" in refused(404, submit, kaggle, 2)
    refused(400, submit, kaggle, 1, "other.csv")
    ref = submit(kaggle).ref
    scores = [client.get_submission(of(ApiGetSubmissionRequest, ref=ref)) for _ in range(3)]
    assert [(score.status.name, score.public_score) for score in scores] == [
        ("PENDING", ""), ("PENDING", ""), ("COMPLETE", "0.65432"),
    ]  # fmt: skip
    server.submission_error, server.submission_polls = "Submission Scoring Error", 0
    second = client.get_submission(of(ApiGetSubmissionRequest, ref=submit(kaggle).ref))
    assert (second.status.name, second.error_description) == ("ERROR", "Submission Scoring Error")
    listed = client.list_submissions(of(ApiListSubmissionsRequest, competition_name=COMPETITION)).submissions
    assert [(one.ref, one.description) for one in listed] == [(1002, "v1 4f2a"), (1001, "v1 4f2a")]
    assert [(one.kernel, one.version, one.file_name) for one in server.submissions] == [
        ("alice/my-kernel-x", 1, "submission.csv")
    ] * 2


def test_limits_and_rules_of_the_competition(server: KaggleServer, kaggle: Any) -> None:
    server.kernel_polls, server.competition.used_today = 0, 4
    push(kaggle)
    runs(kaggle, count=1)
    submit(kaggle)
    assert "daily submission limit" in refused(400, submit, kaggle)
    asked = of(ApiGetSubmissionLimitsRequest, competition_name=COMPETITION)
    limits = kaggle.competitions.competition_api_client.get_submission_limits(asked)
    assert (limits.num_today, limits.num_allowed_now) == (5, 0)
    server.competition.entered = False
    assert "rules" in refused(400, submit, kaggle)
    asked = of(ApiListDataFilesRequest, competition_name=COMPETITION)
    refused(403, kaggle.competitions.competition_api_client.list_data_files, asked)


def test_the_competitions_files(server: KaggleServer, kaggle: Any) -> None:
    client = kaggle.competitions.competition_api_client
    listed = client.list_data_files(of(ApiListDataFilesRequest, competition_name=COMPETITION)).files
    assert {file.name: file.total_bytes for file in listed} == {
        name: len(content) for name, content in server.competition.files.items()
    }
    asked = of(ApiDownloadDataFileRequest, competition_name=COMPETITION, file_name="test/006388_0.tif")
    answer = client.download_data_file(asked)
    assert (answer.history[0].status_code, answer.content) == (302, b"II*\0 a slide named 006388_0")
    assert answer.url.partition("?")[0].endswith("/006388_0.tif")


# what goes wrong


@pytest.mark.parametrize(("after_effect", "made"), [(False, 0), (True, 1)])
@pytest.mark.parametrize("kind", ["reset", "html", "status"])
def test_a_push_whose_answer_is_lost(
    server: KaggleServer, kaggle: Any, kind: str, after_effect: bool, made: int
) -> None:
    server.faults.add(Fault("SaveKernel", kind, after_effect=after_effect, status=503))
    with pytest.raises(requests.RequestException) as caught:
        push(kaggle)
    assert (type(caught.value) is requests.ConnectionError) == (kind == "reset")
    assert server.count("SaveKernel") == 1
    assert sum(len(kernel.versions) for kernel in server.kernels.values()) == made
    assert push(kaggle).version_number == made + 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 503])
def test_a_status_on_purpose(server: KaggleServer, kaggle: Any, status: int) -> None:
    server.faults.add(Fault("SaveKernel", "status", status=status, headers={"Retry-After": "7"}, message="busy"))
    with pytest.raises(requests.HTTPError, match="busy") as caught:
        push(kaggle)
    assert caught.value.response is not None
    assert caught.value.response.headers["Retry-After"] == "7"
    server.faults.add(Fault("SaveKernel", "status", status=status, http=200))
    assert "on purpose" in refused(200, push, kaggle)
    assert server.kernels == {}


def test_a_signed_address_expires_and_bodies_end_early(server: KaggleServer, kaggle: Any) -> None:
    server.kernel_polls = 0
    push(kaggle)
    runs(kaggle, count=1)
    url = output(kaggle).files[0].url
    for kind in ("expired", "truncated", "slow", "silent"):
        server.faults.add(Fault("GET", kind, where="submission.csv"))
    page = requests.get(url, timeout=9)
    assert (page.status_code, page.headers["Content-Type"][:15]) == (403, "application/xml")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url, timeout=9)
    with pytest.raises(requests.ConnectionError, match="Read timed out"):
        requests.get(url, timeout=0.3)
    with pytest.raises(requests.ReadTimeout):
        requests.get(url, timeout=0.3)
    assert requests.get(url, headers={"Range": "bytes=5-"}, timeout=9).content == SUBMISSION[5:]
    server.expire_urls()
    assert [requests.get(there, timeout=9).status_code for there in (url, url.partition("?")[0])] == [403, 403]


def test_closing_ends_whoever_is_held() -> None:
    with KaggleServer() as server:
        server.faults.add(Fault("SaveKernel", "silent"))
        held = socket.create_connection(("127.0.0.1", int(server.endpoint.rpartition(":")[2])), timeout=9)
        path = b"/v1/kernels.KernelsApiService/SaveKernel"
        held.sendall(b"POST " + path + b" HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    with held, contextlib.suppress(ConnectionResetError):  # which is what it is if the request had not been read
        assert held.recv(9) == b""


def test_skip_where_and_for_ever(server: KaggleServer, kaggle: Any) -> None:
    server.faults.add(Fault("SaveKernel", "status", status=500, where="my-kernel-x", skip=1, times=2))
    push(kaggle)
    push(kaggle, title="Other one", slug="other-one")
    refused(500, push, kaggle)
    refused(500, push, kaggle)
    assert push(kaggle).version_number == 2
    for_ever = server.faults.add(Fault("SaveKernel", "status", status=500, times=None))
    for _ in range(3):
        refused(500, push, kaggle)
    assert server.faults.pending == [for_ever]
    server.faults.clear()
    with pytest.raises(ValueError, match="no fault of the kind"):
        Fault("SaveKernel", "typo")


def test_a_credential_at_the_storage_is_noticed() -> None:
    with KaggleServer() as server:
        requests.get(server.sign("a", b"a"), headers={"Authorization": "Basic x"}, timeout=9)
        assert [call.method for call in server.leaks] == ["GET"]


def test_defaults_can_be_left_out_and_nonsense_is_refused(server: KaggleServer, kaggle: Any) -> None:
    server.leave_out_defaults = True
    push(kaggle)
    url = f"{server.endpoint}/v1/kernels.KernelsApiService/"
    auth = ("alice", "k")
    asked = b'{"userName":"alice","kernelSlug":"my-kernel-x"}'
    assert requests.post(f"{url}GetKernelSessionStatus", asked, auth=auth, timeout=9).json() == {}
    for body in (b"", b"[]", b"nonsense", b'{"text":3}'):
        assert requests.post(f"{url}SaveKernel", body, auth=auth, timeout=9).status_code in (400, 403)
    assert requests.post(f"{url}NoSuchMethod", b"{}", auth=auth, timeout=9).status_code == 404
    assert requests.get(f"{url}SaveKernel", auth=auth, timeout=9).status_code == 404


@pytest.mark.parametrize("title", ["My Kernel X", "A b_c", "STRIP-AI  infer v2", "café 1.5", "-x-"])
def test_slugs_are_those_of_kaggles_client(title: str) -> None:
    slugified = pytest.importorskip("slugify").slugify(title)
    assert slugify(title) == slugified


# outside of this process


def test_nothing_leaves_this_machine() -> None:
    with only_loopback() as tried:
        for host in ("api.kaggle.com", "192.0.2.1"):
            with pytest.raises(LeftLoopbackError):
                requests.get(f"http://{host}/", timeout=9)
        with socket.socket() as plain, pytest.raises(LeftLoopbackError):
            plain.connect(("192.0.2.1", 80))
    assert tried == ["api.kaggle.com", "192.0.2.1", "192.0.2.1"]
    assert "connect" not in vars(socket.socket) or socket.socket.connect.__name__ == "checked"


def kaggle_command(server: KaggleServer, home: Path, *words: str) -> str:
    command = [sys.executable, "-m", "kaggle", *words]
    environment = server.environment(home)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=home, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kaggles_own_command_finds_its_way(server: KaggleServer, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    server.environment(folder)
    (folder / "main.py").write_text("print(2)\n")
    metadata = {
        "id": "alice/my-kernel-x",
        "title": "My Kernel X",
        "code_file": "main.py",
        "language": "python",
        "kernel_type": "script",
        "competition_sources": [COMPETITION],
    }
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata))
    assert "version 1 successfully pushed" in kaggle_command(server, folder, "kernels", "push", "-p", ".")
    server.kernel_polls = 0
    assert "COMPLETE" in kaggle_command(server, folder, "kernels", "status", "alice/my-kernel-x")
    kaggle_command(server, folder, "kernels", "output", "alice/my-kernel-x", "-p", "out")
    assert (folder / "out" / "submission.csv").read_bytes() == SUBMISSION
    assert server.kernels["alice/my-kernel-x"].versions[0].source == "print(2)\n"


def test_kaggles_own_command_goes_on_with_an_upload(server: KaggleServer, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    server.environment(folder)
    (folder / "files").mkdir()
    (folder / "files" / "a.bin").write_bytes(WEIGHTS)
    metadata = {"id": "alice/my-weights", "title": "My weights", "licenses": [{"name": "CC0-1.0"}]}
    (folder / "files" / "dataset-metadata.json").write_text(json.dumps(metadata))
    server.faults.add(Fault("PUT", "midway", n=1000))
    said = kaggle_command(server, folder, "datasets", "create", "-p", "files")
    assert "Will resume upload at 1000" in said
    assert "already in use" in kaggle_command(server, folder, "datasets", "create", "-p", "files")
    assert server.datasets["alice/my-weights"].versions[0].files == {"a.bin": WEIGHTS}
    server.dataset_polls = server.version_lag_polls = 0
    assert "ready" in kaggle_command(server, folder, "datasets", "status", "alice/my-weights")
    kaggle_command(server, folder, "datasets", "download", "alice/my-weights", "-f", "a.bin", "-p", "back")
    assert (folder / "back" / "a.bin").read_bytes() == WEIGHTS


def test_a_child_cannot_leave_either(server: KaggleServer, tmp_path: Path) -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 9)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=server.environment(tmp_path), capture_output=True, timeout=60, check=False
    )
    assert b"LeftLoopbackError: an attempt to reach 192.0.2.1" in done.stderr


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_it_writes_down_what_came(tmp_path: Path, ending: signal.Signals) -> None:
    state, file = tmp_path / "state", tmp_path / "address"
    command = [sys.executable, "-m", "tests.kaggle_server", "--state", str(state), "--file", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        with connect(endpoint) as kaggle:
            push(kaggle)
            push(kaggle, text="print(3)\n")
            create(kaggle, upload(kaggle, "sub/b", b"b"))
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert endpoint.startswith("http://127.0.0.1:")
    written = {str(path.relative_to(state)): path.read_bytes() for path in state.rglob("*") if path.is_file()}
    assert written == {
        "kernels/my-kernel-x/v1.py": b"print(1)\n",
        "kernels/my-kernel-x/v2.py": b"print(3)\n",
        "datasets/my-weights/v1/sub/b": b"b",
    }
    assert file.read_text() == f"{endpoint}\n"
