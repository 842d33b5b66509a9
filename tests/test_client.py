"""Test the client through Kaggle's real library, against a server on loopback; nothing leaves it."""

import base64
import io
import json
import os
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clotkit.competitions import Competition, load_competition
from clotkit.errors import RemoteError, RemoteMissing, RemoteUnclear, SplitError, UsageError
from clotkit.kaggle import client as module
from clotkit.kaggle import failures
from clotkit.kaggle.client import DryRun, Kaggle
from clotkit.kaggle.login.credentials import NO_CREDENTIALS, Credentials, candidates
from clotkit.kaggle.public import download, fetch_public_split
from clotkit.kaggle.uploads import ROUNDS, STARTS, upload
from clotkit.reasons import RemoteKind
from clotkit.splits import read_slides

from .delivery import TOKEN, one_line, remote_error
from .kaggle_server import Fault, KaggleServer

TABLE, SAMPLE, FIRST, SECOND = "test_list.csv", "sample.csv", "test_images/a_0.svs", "test_images/b_0.svs"


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def competition() -> Competition:
    """A competition with other names than the one that ships."""
    shipped = load_competition()
    files = replace(shipped.files, table="{split}_list.csv", sample=SAMPLE, slide=("{split}_images/{image_id}.svs",))
    columns = replace(shipped.columns, image="slide", patient="patient")
    return replace(shipped, slug="some-comp", files=files, columns=columns)


@pytest.fixture
def server() -> Iterator[KaggleServer]:
    with KaggleServer(competition="some-comp") as server:
        server.competition.files = {
            TABLE: b"slide,patient\na_0,a\nb_0,b\n",
            SAMPLE: b"patient,X,Y\na,0.5,0.5\nb,0.5,0.5\n",
            "train_images/z_0.svs": b"never asked for",
            FIRST: os.urandom(3 * 2**20 + 17),
            SECOND: b"II*\0 a small one",
        }
        server.page_limit = 3
        yield server
        assert server.leaks == []


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def client(server: KaggleServer, waits: list[float]) -> Kaggle:
    return Kaggle(Credentials(TOKEN), server.endpoint, waits.append, chance=lambda: 0.5)


@pytest.fixture
def saying() -> Iterator[Callable[[Any], Kaggle]]:
    """A client of a server that answers whatever it is asked with the same JSON."""
    servers = []

    def say(value: Any) -> Kaggle:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing on stderr."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return Kaggle(Credentials(TOKEN), f"http://127.0.0.1:{server.server_port}", lambda _: None)

    yield say
    for server in servers:
        server.shutdown()
        server.server_close()


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def zipped(name: str, body: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, body)
    return buffer.getvalue()


def fails(client: Kaggle, tmp_path: Path, kind: RemoteKind, *names: str, name: str = TABLE, size: int = 0) -> None:
    """Expect the download of a file to fail with this kind, and to leave nothing behind."""
    with remote_error(kind, *names):
        download(client, "some-comp", name, tmp_path / "out", size)
    assert files_in(tmp_path / "out") == {}


# A competition's files


def test_fetches_table_sample_and_the_tables_slides(
    server: KaggleServer, client: Kaggle, competition: Competition, tmp_path: Path
) -> None:
    lines: list[str] = []
    out = tmp_path / "new" / "split"
    assert fetch_public_split(competition, out, client, lines.append) == out
    assert files_in(out) == {name: body for name, body in server.competition.files.items() if "train" not in name}
    assert lines[2] == f"{FIRST}: fetched, {3 * 2**20 + 17} bytes"
    assert [page.get("pageToken") for page in server.asked("ListDataFiles")] == ["", "p3"]
    assert server.asked("DownloadDataFile")[2] == {"competitionName": "some-comp", "fileName": FIRST}
    for call in server.calls:  # the token goes to the API, never to the storage
        assert call.headers.get("Authorization") == (None if call.method == "GET" else f"Bearer {TOKEN}")
        assert call.headers["User-Agent"].startswith("clotkit/")


def test_a_split_without_a_table_comes_by_its_sample(server: KaggleServer, client: Kaggle, tmp_path: Path) -> None:
    """Slides have one of several names, and the files that facts follow from come with them."""
    ubc = load_competition("ubc_ocean")
    slides = ("{split}_images/{image_id}.png", "{split}_images/{image_id}.tif")
    ubc = replace(ubc, slug="some-comp", files=replace(ubc.files, slide=slides))
    wanted = {
        ubc.files.sample: b"image_id,label\n41,CC\n7,CC\n",
        "test_images/41.png": b"png",
        "test_images/7.tif": b"tif",
        "test_thumbnails/41_thumbnail.png": b"small",
    }
    server.competition.files = wanted | {"train_images/1.png": b"train", "test_thumbnails/9_thumbnail.png": b"other"}
    fetch_public_split(ubc, tmp_path / "out", client, lambda _: None)
    assert files_in(tmp_path / "out") == wanted
    is_tma = {slide.image_id: slide.facts["is_tma"] for slide in read_slides(tmp_path / "out", "test", ubc)}
    assert is_tma == {"41": "False", "7": "True"}
    server.calls.clear()
    with remote_error(RemoteKind.MISSING, "camelyon16"):
        fetch_public_split(load_competition("camelyon16"), tmp_path / "none", client)
    assert server.calls == []


def test_a_second_run_fetches_only_what_is_missing_or_of_another_size(
    server: KaggleServer, client: Kaggle, competition: Competition, tmp_path: Path
) -> None:
    fetch_public_split(competition, tmp_path / "out", client)
    server.calls.clear()
    lines: list[str] = []
    fetch_public_split(competition, tmp_path / "out", client, lines.append)
    assert server.count("DownloadDataFile") == server.count("GET") == 0
    assert lines[-1] == f"{SECOND}: here already, {len(server.competition.files[SECOND])} bytes"
    (tmp_path / "out" / SECOND).write_bytes(b"cut")
    fetch_public_split(competition, tmp_path / "out", client)
    assert [said["fileName"] for said in server.asked("GET")] == [SECOND]
    assert (tmp_path / "out" / SECOND).read_bytes() == server.competition.files[SECOND]


@pytest.mark.parametrize("listed_as_zipped", [False, True])
def test_a_zip_of_the_file_is_unpacked(
    server: KaggleServer, client: Kaggle, tmp_path: Path, listed_as_zipped: bool
) -> None:
    want = server.competition.files[FIRST]
    server.competition.files[FIRST] = zipped("a_0.svs", want)
    size = len(server.competition.files[FIRST] if listed_as_zipped else want)
    assert download(client, "some-comp", FIRST, tmp_path / "out", size)
    assert files_in(tmp_path / "out") == {FIRST: want}


def test_a_file_that_is_a_zip_by_name_stays_one(server: KaggleServer, client: Kaggle, tmp_path: Path) -> None:
    server.competition.files["extra.zip"] = zipped("extra.csv", b"1")
    assert download(client, "some-comp", "extra.zip", tmp_path / "out")
    assert files_in(tmp_path / "out") == {"extra.zip": server.competition.files["extra.zip"]}


@pytest.mark.parametrize(
    "body",
    [
        zipped("other.csv", b"1"),
        zipped(TABLE, os.urandom(500))[:300],
        zipped(TABLE, b"x" * 99).replace(b"test_list", b"../t_list"),
    ],
    ids=["another file", "damaged", "a path that leads out"],
)
def test_a_strange_zip_is_refused(server: KaggleServer, client: Kaggle, tmp_path: Path, body: bytes) -> None:
    server.competition.files[TABLE] = body
    fails(client, tmp_path, RemoteKind.MISMATCH, TABLE)


@pytest.mark.parametrize(
    ("fault", "kind", "names"),
    [
        (Fault("", "status", None, status=401, message="Unauthenticated"), RemoteKind.CREDENTIALS, ["Unauthenticated"]),
        (Fault("", "status", None, status=403, message="accept"), RemoteKind.RULES, ["competitions/some-comp/rules"]),
        (Fault("", "status", None, status=404, message="Not found"), RemoteKind.MISSING, ["Not found"]),
        (Fault("", "status", None, status=400, message="Bad\nname"), RemoteKind.REFUSED, ["400", "Bad name"]),
        (Fault("", "status", None, status=409, message="taken"), RemoteKind.REFUSED, ["409", "taken"]),
    ],
)
@pytest.mark.parametrize("method", ["ListDataFiles", "DownloadDataFile"])
def test_a_no_is_one_line_asked_once_and_leaves_nothing(
    server: KaggleServer,
    client: Kaggle,
    competition: Competition,
    tmp_path: Path,
    waits: list[float],
    method: str,
    fault: Fault,
    kind: RemoteKind,
    names: list[str],
) -> None:
    server.faults.add(replace(fault, method=method))
    with remote_error(kind, *names):
        fetch_public_split(competition, tmp_path / "out", client)
    assert files_in(tmp_path / "out") == {}
    assert server.count(method) == 1
    assert waits == []


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (Fault("", "status", status=503), ["503"]),
        (Fault("", "status", status=500), ["500"]),
        (Fault("", "html"), []),
        (Fault("", "html", status=502), ["502"]),
        (Fault("", "reset"), ["5 times", "ConnectionError"]),
        (Fault("", "truncated"), ["5 times"]),
    ],
)
def test_what_may_pass_is_tried_again_and_ends_as_one_line(
    server: KaggleServer, client: Kaggle, waits: list[float], fault: Fault, names: list[str]
) -> None:
    server.faults.add(replace(fault, method="ListDataFiles", times=2))
    assert len(client.sizes("some-comp")) == 5
    assert waits == [2, 4]
    server.faults.add(replace(fault, method="ListDataFiles", times=None))
    with remote_error(RemoteKind.UNCLEAR, *names):
        client.sizes("some-comp")
    assert waits == [2, 4, 2, 4, 8, 16]


def test_the_waits_have_jitter(server: KaggleServer) -> None:
    waits: list[float] = []
    chances = iter([0.0, 1.0, 0.25])
    server.faults.add(Fault("GetCompetition", "status", 3, status=503))
    Kaggle(Credentials(TOKEN), server.endpoint, waits.append, chance=lambda: next(chances)).competition("some-comp")
    assert waits == [1, 6, 6]


@pytest.mark.parametrize("said", [[], {}, {"code": 500}, {"files": [3]}, {"files": 3}, "no", 3, None])
def test_json_that_is_no_list_of_files_is_refused(saying: Callable[[Any], Kaggle], said: Any) -> None:
    with remote_error(RemoteKind.MISSING if said in ({}, {"code": 500}) else RemoteKind.UNCLEAR):
        saying(said).sizes("some-comp")


def test_a_list_without_end_is_refused(saying: Callable[[Any], Kaggle]) -> None:
    with remote_error(RemoteKind.MISMATCH):
        saying({"files": [{"name": "a"}], "nextPageToken": "p2"}).sizes("some-comp")


def test_a_no_under_http_200_is_a_no(saying: Callable[[Any], Kaggle]) -> None:
    with pytest.raises(RemoteMissing, match="404"):
        saying({"code": 404, "message": "gone"}).competition("some-comp")


def test_waits_as_long_as_kaggle_asks_then_succeeds(
    server: KaggleServer, client: Kaggle, tmp_path: Path, waits: list[float]
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    for headers in ({"Retry-After": "7"}, {}, {"Retry-After": date}, {"Retry-After": "soon"}):
        server.faults.add(Fault("DownloadDataFile", "status", status=429, headers=headers))
    assert download(client, "some-comp", FIRST, tmp_path / "out")
    assert waits[:2] == [7.5, 4]
    assert 35 < waits[2] < 41
    assert waits[3] == 16
    assert (tmp_path / "out" / FIRST).read_bytes() == server.competition.files[FIRST]


def test_gives_up_when_kaggle_stays_busy(server: KaggleServer, client: Kaggle, waits: list[float]) -> None:
    server.faults.add(Fault("ListDataFiles", "status", None, status=429, headers={"Retry-After": "86400"}))
    with remote_error(RemoteKind.BUSY, "429"):
        client.sizes("some-comp")
    assert waits == [failures.LONGEST_WAIT_S + 0.5] * (module.TRIES - 1)


def test_a_truncated_body_is_tried_again_and_leaves_nothing(
    server: KaggleServer, client: Kaggle, tmp_path: Path, waits: list[float]
) -> None:
    server.faults.add(Fault("GET", "truncated", module.TRIES))
    fails(client, tmp_path, RemoteKind.UNCLEAR, "5 times", "ChunkedEncodingError")
    assert waits == [2, 4, 8, 16]
    server.faults.add(Fault("GET", "truncated"))
    assert download(client, "some-comp", TABLE, tmp_path / "out", len(server.competition.files[TABLE]))
    assert files_in(tmp_path / "out") == {TABLE: server.competition.files[TABLE]}


def test_another_length_than_listed_is_refused_and_the_old_file_stays(
    server: KaggleServer, client: Kaggle, tmp_path: Path
) -> None:
    fails(client, tmp_path, RemoteKind.MISMATCH, str(len(server.competition.files[TABLE])), "999", size=999)
    (tmp_path / "out" / TABLE).write_bytes(b"old")
    with pytest.raises(RemoteError):
        download(client, "some-comp", TABLE, tmp_path / "out", 999)
    assert files_in(tmp_path / "out") == {TABLE: b"old"}


@pytest.mark.parametrize(
    ("method", "kind"),
    [*((method, "silent") for method in ("ListDataFiles", "DownloadDataFile", "GET")),
     ("ListDataFiles", "slow"), ("GET", "slow")],
)  # fmt: skip
def test_silence_is_a_timeout(
    server: KaggleServer, competition: Competition, tmp_path: Path, waits: list[float], method: str, kind: str
) -> None:
    server.faults.add(Fault(method, kind, None))
    client = Kaggle(Credentials(TOKEN), server.endpoint, waits.append, timeout_s=(5, 0.1))
    with pytest.raises(RemoteError, match=r"ReadTimeout|ConnectionError"):
        fetch_public_split(competition, tmp_path / "out", client)
    assert len(waits) == module.TRIES - 1


def test_an_expired_address_is_not_taken_for_the_file(server: KaggleServer, client: Kaggle, tmp_path: Path) -> None:
    fault = server.faults.add(Fault("GET", "expired", None))
    fails(client, tmp_path, RemoteKind.EXPIRED, "403")
    fault.times = 0
    server.faults.add(Fault("GET", "html", module.TRIES))
    fails(client, tmp_path, RemoteKind.UNCLEAR)
    server.faults.add(Fault("GET", "expired"))
    assert download(client, "some-comp", TABLE, tmp_path / "out")  # the second try got a fresh address


def test_no_server_is_one_line(waits: list[float]) -> None:
    client = Kaggle(Credentials(TOKEN), "http://127.0.0.1:1", waits.append)
    with remote_error(RemoteKind.UNCLEAR, "5 times", "ConnectionError"):
        client.sizes("some-comp")


def test_a_full_disk_is_one_line_and_leaves_nothing(client: Kaggle, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # the system refuses the write, as a full disk would
    try:
        fails(client, tmp_path, RemoteKind.DISK, name=FIRST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_is_a_file_is_one_line(client: Kaggle, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with remote_error(RemoteKind.DISK):
        download(client, "some-comp", TABLE, tmp_path / "out")


@pytest.mark.parametrize("image_id", ["../../../evil", "..", "x/../../y"])
def test_a_slide_that_leads_out_is_refused(
    server: KaggleServer, client: Kaggle, competition: Competition, tmp_path: Path, image_id: str
) -> None:
    server.competition.files[TABLE] = f"slide,patient\n{image_id},a\n".encode()
    if image_id == "..":
        competition = replace(competition, files=replace(competition.files, slide=("{split}/{image_id}/a.svs",)))
    with pytest.raises(SplitError, match="row 2"):
        fetch_public_split(competition, tmp_path / "out", client)
    assert set(files_in(tmp_path)) == {f"out/{TABLE}", f"out/{SAMPLE}"}


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a\\..\\evil", "a\0b", "", "."])
def test_a_name_that_is_none_is_refused_unasked(
    server: KaggleServer, client: Kaggle, tmp_path: Path, name: str
) -> None:
    with remote_error(RemoteKind.UNSAFE):
        download(client, "some-comp", name, tmp_path / "out")
    assert server.calls == []


def test_a_table_without_image_ids_is_refused(
    server: KaggleServer, client: Kaggle, competition: Competition, tmp_path: Path
) -> None:
    server.competition.files[TABLE] = b"id,patient\n1,a\n"
    with pytest.raises(SplitError, match="no column slide"):
        fetch_public_split(competition, tmp_path / "out", client)


def test_a_large_file_takes_little_memory(server: KaggleServer, client: Kaggle, tmp_path: Path) -> None:
    server.competition.files[FIRST] = bytes(64 * 2**20)
    client.sizes("some-comp")  # the library's modules are loaded now
    tracemalloc.start()
    try:
        download(client, "some-comp", FIRST, tmp_path / "out", 64 * 2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


# Credentials and the endpoint


def test_no_credentials_is_one_line(competition: Competition, tmp_path: Path) -> None:
    with remote_error(RemoteKind.CREDENTIALS, NO_CREDENTIALS):
        fetch_public_split(competition, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_credentials_are_found_in_kaggles_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {name: json.dumps({"username": name, "key": f"key-{name}"}) for name in ("alice", "bob", "carol")}
    for folder, name in (("xdg/kaggle", "alice"), (".kaggle", "bob"), ("config", "carol")):
        (home / folder).mkdir(parents=True)
        (home / folder / "kaggle.json").write_text(saved[name])
    assert next(candidates()) == Credentials("key-carol", "carol")
    monkeypatch.delenv("KAGGLE_CONFIG_DIR")
    assert next(candidates()) == Credentials("key-bob", "bob")
    (home / ".kaggle" / "kaggle.json").unlink()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    assert next(candidates()) == Credentials("key-alice", "alice")
    monkeypatch.setenv("KAGGLE_USERNAME", "dave")
    monkeypatch.setenv("KAGGLE_KEY", "key-dave")
    assert next(candidates()) == Credentials("key-dave", "dave")
    (home / ".kaggle" / "access_token").write_text("from-home\n")
    assert next(candidates()) == Credentials("from-home")
    (home / "elsewhere").write_text("from-file\n")
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "elsewhere"))
    assert next(candidates()) == Credentials("from-file")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    assert next(candidates()) == Credentials(TOKEN)
    assert TOKEN not in repr(next(candidates()))


def test_a_legacy_key_is_sent_as_such_whatever_the_environment_has(
    server: KaggleServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(home))  # a folder: whoever looks for a token here fails
    client = Kaggle(Credentials("k", "alice"), server.endpoint)
    client.sizes("some-comp")
    basic = "Basic " + base64.b64encode(b"alice:k").decode()
    assert [call.headers["Authorization"] for call in server.calls] == [basic] * 2
    assert client.username == "alice"


def test_of_a_token_kaggle_is_asked_once_whose_it_is(server: KaggleServer, client: Kaggle) -> None:
    assert (client.username, client.username) == ("alice", "alice")
    assert server.asked("IntrospectToken") == [{"token": TOKEN}]
    with remote_error(RemoteKind.INACTIVE):
        _ = Kaggle(Credentials("of-another-kind"), server.endpoint).username


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:7", "http://[::1]:7", "http://localhost:7", "https://127.8.8.8"]
)
def test_an_endpoint_on_this_machine_is_taken(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Kaggle(Credentials(TOKEN), endpoint).endpoint == endpoint
    monkeypatch.setenv(module.ENDPOINT, endpoint)
    assert Kaggle(Credentials(TOKEN)).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["http://10.0.0.1", "https://example.org", "http://localhost.example.org", "http://127.0.0.1@evil.org", "x", ""],
)
def test_any_other_endpoint_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.ENDPOINT, endpoint)
    with pytest.raises(UsageError, match=module.ENDPOINT) as caught:
        Kaggle(Credentials(TOKEN))
    one_line(caught)


def test_a_signed_address_elsewhere_is_refused(saying: Callable[[Any], Kaggle]) -> None:
    elsewhere = "https://storage.example.org/x?X-Goog-Signature=5ec7e7"
    with remote_error(RemoteKind.UNSAFE):
        saying({"token": "t", "createUrl": elsewhere}).start_upload("a.bin", 3)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (".kaggle/access_token", f"{TOKEN}\n".encode("utf-16")),
        (".kaggle/access_token", b"\xef\xbb\xbf" + TOKEN.encode()),
        (".kaggle/access_token", f"{TOKEN} {TOKEN}".encode()),
        ("config/kaggle.json", TOKEN.encode()),
        ("config/kaggle.json", f'["{TOKEN}"]'.encode()),
        ("config/kaggle.json", b"3"),
    ],
)
def test_unusable_credentials_are_one_line_without_the_secret(home: Path, file: str, content: bytes) -> None:
    (home / file).parent.mkdir()
    (home / file).write_bytes(content)
    with remote_error(RemoteKind.CREDENTIALS):
        next(candidates())


def test_a_token_too_long_for_a_path_is_one_line_without_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN * 50)
    message = ""
    try:
        next(candidates())
    except RemoteError as error:  # depends on the Python: the library may or may not ask for such a path
        message = str(error)
    assert TOKEN not in message


def test_importing_the_client_loads_nothing_of_kaggle() -> None:
    code = (
        "import sys, clotkit.kaggle.client, clotkit.kaggle.verbs; "
        "print({'kaggle', 'kagglesdk', 'requests', 'urllib3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


# Uploads


@pytest.fixture
def parcel(tmp_path: Path) -> Path:
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(100_000))
    return path


def arrived(server: KaggleServer, token: str) -> bytes:
    assert server.blobs[token].complete
    return server.blobs[token].data


def test_an_upload_arrives_whole_and_takes_no_secret_along(server: KaggleServer, client: Kaggle, parcel: Path) -> None:
    token = upload(client, parcel, "a.bin")
    assert arrived(server, token) == parcel.read_bytes()
    assert server.asked("StartBlobUpload") == [{"type": "DATASET", "name": "a.bin", "contentLength": 100_000}]
    assert (server.count("PUT"), server.leaks) == (1, [])


@pytest.mark.parametrize("status", [503, 500, 429, 0])
@pytest.mark.parametrize("kept", [0, 1, 50_000, 99_999])
def test_an_upload_that_breaks_goes_on_where_it_was(
    server: KaggleServer, client: Kaggle, parcel: Path, status: int, kept: int
) -> None:
    server.faults.add(Fault("PUT", "midway", status=status, n=kept))
    assert arrived(server, upload(client, parcel, "a.bin")) == parcel.read_bytes()
    ranges = [said.get("contentRange") for said in server.asked("PUT")]
    rest = [f"bytes {kept}-99999/100000"] if kept else [None]
    assert ranges == [None, "bytes */100000", *rest]
    assert server.count("StartBlobUpload") == 1


@pytest.mark.parametrize("kind", ["reset", "status"])
def test_an_upload_whose_answer_is_lost_is_not_sent_again(
    server: KaggleServer, client: Kaggle, parcel: Path, kind: str
) -> None:
    server.faults.add(Fault("PUT", kind, after_effect=True, status=503))
    assert arrived(server, upload(client, parcel, "a.bin")) == parcel.read_bytes()
    assert [said["bytes"] for said in server.asked("PUT")] == [100_000, 0]


def test_an_upload_whose_address_expires_starts_again(server: KaggleServer, client: Kaggle, parcel: Path) -> None:
    server.faults.add(Fault("PUT", "expired"))
    assert arrived(server, upload(client, parcel, "a.bin")) == parcel.read_bytes()
    assert server.count("StartBlobUpload") == 2
    server.faults.add(Fault("PUT", "expired", None))
    with remote_error(RemoteKind.EXPIRED, f"{STARTS} times"):
        upload(client, parcel, "a.bin")


@pytest.mark.parametrize("status", [400, 401, 403, 412])
def test_an_upload_that_is_refused_is_not_repeated(
    server: KaggleServer, client: Kaggle, parcel: Path, status: int
) -> None:
    server.faults.add(Fault("PUT", "status", status=status))
    with remote_error(RemoteKind.REFUSED, str(status)):
        upload(client, parcel, "a.bin")
    assert server.count("PUT") == 1


def test_an_upload_that_never_works_ends(
    server: KaggleServer, client: Kaggle, parcel: Path, waits: list[float]
) -> None:
    server.faults.add(Fault("PUT", "reset", None))
    with remote_error(RemoteKind.UNCLEAR, str(ROUNDS)):
        upload(client, parcel, "a.bin")
    assert len(waits) == ROUNDS


def test_a_storage_that_says_nothing_is_not_waited_for_long(server: KaggleServer, parcel: Path) -> None:
    client = Kaggle(Credentials(TOKEN), server.endpoint, lambda _: None, timeout_s=(5, 0.2))
    server.faults.add(Fault("PUT", "silent"))
    started = time.monotonic()
    assert arrived(server, upload(client, parcel, "a.bin")) == parcel.read_bytes()
    server.faults.add(Fault("GET", "silent"))
    url = server.sign("a.bin", b"content")
    assert client.fetch(url, parcel.with_name("b.bin"), "a.bin") == 7
    assert time.monotonic() - started < 20


# Calls that change something


def submitting(client: Kaggle, server: KaggleServer) -> dict[str, Any]:
    """Submit a version, with the lookup that the kit uses: by its description."""
    server.kernels.clear()
    client.save_kernel(
        lambda: None,
        {"slug": "alice/a-kernel", "text": "1", "language": "python", "kernel_type": "script", "new_title": "a kernel"},
    )
    server.end(server.kernels["alice/a-kernel"].versions[0])

    def lookup() -> dict[str, Any] | None:
        return next((one for one in client.submissions("some-comp") if one["description"] == "mine"), None)

    return client.submit(
        lookup,
        {
            "competition_name": "some-comp",
            "kernel_owner": "alice",
            "kernel_slug": "a-kernel",
            "kernel_version": 1,
            "file_name": "submission.csv",
            "submission_description": "mine",
        },
    )


@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize(
    ("kind", "status"), [("reset", None), ("html", 200), ("html", 502), ("status", 500), ("status", 503)]
)
def test_what_may_have_been_done_is_looked_for_before_it_is_repeated(
    server: KaggleServer, client: Kaggle, kind: str, status: int | None, after_effect: bool
) -> None:
    server.faults.add(Fault("CreateCodeSubmission", kind, after_effect=after_effect, status=status))
    assert submitting(client, server)["ref"] == 1001
    assert len(server.submissions) == 1
    assert server.count("CreateCodeSubmission") == (1 if after_effect else 2)
    assert server.count("ListSubmissions") == (1 if after_effect else len(module.LOOKUP_WAITS_S))


@pytest.mark.parametrize("kind", ["slow", "truncated", "silent"])
def test_an_answer_that_does_not_come_whole_is_looked_for_too(server: KaggleServer, kind: str) -> None:
    client = Kaggle(Credentials(TOKEN), server.endpoint, lambda _: None, timeout_s=(5, 0.2))
    server.faults.add(Fault("CreateCodeSubmission", kind, after_effect=True))
    assert submitting(client, server)["ref"] == 1001
    assert (server.count("CreateCodeSubmission"), len(server.submissions)) == (1, 1)


def test_busy_is_no_effect_and_repeated_at_once(server: KaggleServer, client: Kaggle, waits: list[float]) -> None:
    server.faults.add(Fault("CreateCodeSubmission", "status", status=429, headers={"Retry-After": "3"}))
    submitting(client, server)
    assert (waits, server.count("ListSubmissions")) == ([3.5], 0)


@pytest.mark.parametrize("status", [400, 401, 403, 409])
def test_a_refusal_is_not_repeated(server: KaggleServer, client: Kaggle, status: int) -> None:
    server.faults.add(Fault("CreateCodeSubmission", "status", None, status=status, message="daily limit"))
    kinds = {401: RemoteKind.CREDENTIALS, 403: RemoteKind.RULES}
    with remote_error(kinds.get(status, RemoteKind.REFUSED), "daily limit"):
        submitting(client, server)
    assert (server.count("CreateCodeSubmission"), server.submissions) == (1, [])


def test_what_is_never_done_ends_as_one_line(server: KaggleServer, client: Kaggle) -> None:
    server.faults.add(Fault("CreateCodeSubmission", "reset", None))
    with remote_error(RemoteKind.UNCLEAR, f"sent {module.CHANGE_TRIES} times"):
        submitting(client, server)


def test_what_cannot_be_looked_for_is_not_repeated(server: KaggleServer, client: Kaggle) -> None:
    server.faults.add(Fault("CreateCodeSubmission", "reset"))
    server.faults.add(Fault("ListSubmissions", "status", None, status=503))
    with pytest.raises(RemoteUnclear) as caught:
        submitting(client, server)
    one_line(caught)
    assert server.count("CreateCodeSubmission") == 1


def test_a_dry_run_shows_the_call_and_sends_nothing(server: KaggleServer, parcel: Path) -> None:
    lines: list[str] = []
    client = Kaggle(Credentials(TOKEN), server.endpoint, log=lines.append, dry=True)
    assert upload(client, parcel, "a.bin") == "token of a.bin"
    with pytest.raises(DryRun):
        client.save_kernel(lambda: None, {"slug": "alice/a-kernel", "text": "x" * 1000, "enable_internet": False})
    assert server.calls == []
    assert lines[0] == "would upload a.bin, 100,000 bytes"
    assert lines[1].startswith("would send kernels.KernelsApiService/SaveKernel {")
    assert '"text": "1,000 bytes, sha256 44f8' in lines[1]
    assert TOKEN not in "".join(lines)
