"""The client of Kaggle, driven through Kaggle's real library against a stub on loopback. Nothing here leaves it."""

import base64
import io
import json
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from clotkit.competitions import Competition, load_competition
from clotkit.errors import RemoteError, SplitError
from clotkit.kaggle import client as module
from clotkit.kaggle.client import Credentials, KaggleFiles, fetch_public_split, find_credentials

SERVICE = "/api/v1/competitions.CompetitionApiService/"
TOKEN = "KGAT_0123456789abcdef"
TABLE, SAMPLE, FIRST, SECOND = "test_list.csv", "sample.csv", "test_images/a_0.svs", "test_images/b_0.svs"


@dataclass
class Answer:
    """One HTTP answer; `length` is the Content-Length where it lies, `hang` one that never comes."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    hang: bool = False


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


HTML = Answer(200, b"<html>busy</html>", {"Content-Type": "text/html; charset=utf-8"})


class Stub:
    """Kaggle's API and the storage it redirects to: two servers of one handler, on two ports of loopback."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.listed: dict[str, int] = {}  # sizes that the list gives in place of the true ones
        self.scripted: dict[str, list[Answer]] = {}  # by method [and file]: given first, the last one for ever
        self.calls: list[tuple[str, Any, dict[str, str]]] = []
        self.over = threading.Event()
        self.servers = [self._server(), self._server()]
        self.api, self.storage = [f"http://127.0.0.1:{server.server_port}" for server in self.servers]

    def close(self) -> None:
        self.over.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def asked(self, method: str) -> list[Any]:
        return [said for name, said, _ in self.calls if name == method]

    def answer(self, method: str, said: Any) -> Answer:
        for key in (f"{method} {said.get('fileName')}", method):
            if self.scripted.get(key):
                return self.scripted[key].pop(0) if len(self.scripted[key]) > 1 else self.scripted[key][0]
        if method == "GET":
            return Answer(200, self.files[said["fileName"]], {"Content-Type": "application/octet-stream"})
        if method == "ListDataFiles":
            names, second = list(self.files), said.get("pageToken") == "p2"
            page = names[3:] if second else names[:3]
            listed = [
                {
                    "name": n,
                    "ref": n,
                    "totalBytes": self.listed.get(n, len(self.files[n])),
                    "creationDate": "2022-07-07T19:18:05.123Z",
                }
                for n in page
            ]
            return as_json({"files": listed, "nextPageToken": "" if second else "p2"})
        if said["fileName"] not in self.files:
            return as_json({"code": 404, "message": "File not found"}, 404)
        return Answer(302, headers={"Location": f"{self.storage}/signed/{said['fileName']}?Signature=secret"})

    def _server(self) -> ThreadingHTTPServer:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                method = self.path.removeprefix(SERVICE)
                stub.calls.append((method, said, dict(self.headers)))
                self.give(stub.answer(method, said))

            def do_GET(self) -> None:
                name = unquote(urlsplit(self.path).path).removeprefix("/signed/")
                stub.calls.append(("GET", name, dict(self.headers)))
                self.give(stub.answer("GET", {"fileName": name}))

            def give(self, answer: Answer) -> None:
                if answer.hang:
                    stub.over.wait(10)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(answer.length or len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
                self.close_connection = answer.length is not None

            def log_message(self, *_: Any) -> None:
                """Say nothing on stderr."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home; of the environment nothing that has to do with Kaggle or a proxy."""
    for name in list(os.environ):
        if name.startswith("KAGGLE_") or name.lower().endswith("_proxy") or name == "XDG_CONFIG_HOME":
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder / "config"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")  # should an endpoint get lost: still not production
    return folder


@pytest.fixture
def competition() -> Competition:
    """A competition with other names than the one that ships."""
    shipped = load_competition()
    files = replace(shipped.files, table="{split}_list.csv", sample=SAMPLE, slide="{split}_images/{image_id}.svs")
    return replace(shipped, slug="some-comp", files=files, columns=replace(shipped.columns, image="slide"))


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    stub.files = {
        TABLE: b"slide,patient\na_0,a\nb_0,b\n",
        SAMPLE: b"patient,X,Y\na,0.5,0.5\nb,0.5,0.5\n",
        "train_images/z_0.svs": b"never asked for",
        FIRST: os.urandom(3 * 2**20 + 17),
        SECOND: b"II*\0 a small one",
    }
    yield stub
    stub.close()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def client(stub: Stub, waits: list[float]) -> KaggleFiles:
    return loopback(KaggleFiles(Credentials(TOKEN), stub.api, waits.append))


def loopback(client: KaggleFiles) -> KaggleFiles:
    assert urlsplit(client.endpoint).hostname == "127.0.0.1"
    return client


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def zipped(name: str, body: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, body)
    return buffer.getvalue()


def test_fetches_table_sample_and_the_tables_slides(
    stub: Stub, client: KaggleFiles, competition: Competition, tmp_path: Path
) -> None:
    lines: list[str] = []
    out = tmp_path / "new" / "split"
    assert fetch_public_split(competition, out, client, lines.append) == out
    assert files_in(out) == {name: body for name, body in stub.files.items() if "train" not in name}
    assert lines[2] == f"{FIRST}: fetched, {3 * 2**20 + 17} bytes"
    assert stub.asked("ListDataFiles") == [
        {"competitionName": "some-comp", "pageSize": 200, "pageToken": token} for token in ("", "p2")
    ]
    assert stub.asked("DownloadDataFile")[2] == {"competitionName": "some-comp", "fileName": FIRST}
    for method, _, headers in stub.calls:  # the token goes to the API, never to the storage
        assert headers.get("Authorization") == (None if method == "GET" else f"Bearer {TOKEN}")
        assert headers["User-Agent"].startswith("clotkit/")


def test_a_second_run_fetches_only_what_is_missing_or_of_another_size(
    stub: Stub, client: KaggleFiles, competition: Competition, tmp_path: Path
) -> None:
    fetch_public_split(competition, tmp_path / "out", client)
    stub.calls.clear()
    lines: list[str] = []
    fetch_public_split(competition, tmp_path / "out", client, lines.append)
    assert stub.asked("DownloadDataFile") == stub.asked("GET") == []
    assert lines[-1] == f"{SECOND}: here already, {len(stub.files[SECOND])} bytes"
    (tmp_path / "out" / SECOND).write_bytes(b"cut")
    fetch_public_split(competition, tmp_path / "out", client)
    assert stub.asked("GET") == [SECOND]
    assert (tmp_path / "out" / SECOND).read_bytes() == stub.files[SECOND]


@pytest.mark.parametrize("listed_as_zipped", [False, True])
def test_a_zip_of_the_file_is_unpacked(
    stub: Stub, client: KaggleFiles, competition: Competition, tmp_path: Path, listed_as_zipped: bool
) -> None:
    want = dict(stub.files)
    for name in (TABLE, FIRST):
        stub.files[name] = zipped(Path(name).name, want[name])
        stub.listed[name] = len(stub.files[name] if listed_as_zipped else want[name])
    fetch_public_split(competition, tmp_path / "out", client)
    got = files_in(tmp_path / "out")
    assert got == {name: want[name] for name in (TABLE, SAMPLE, FIRST, SECOND)}


def test_a_file_that_is_a_zip_by_name_stays_one(stub: Stub, client: KaggleFiles, tmp_path: Path) -> None:
    stub.files["extra.zip"] = zipped("extra.csv", b"1")
    assert client.download("some-comp", "extra.zip", tmp_path / "out")
    assert files_in(tmp_path / "out") == {"extra.zip": stub.files["extra.zip"]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (zipped("other.csv", b"1"), "zip of 1 files, not of test_list.csv alone"),
        (zipped(TABLE, os.urandom(500))[:300], "damaged zip"),
        (zipped(TABLE, b"x" * 99).replace(b"test_list", b"../t_list"), "zip of 1 files"),
    ],
)
def test_a_strange_zip_is_refused(stub: Stub, client: KaggleFiles, tmp_path: Path, body: bytes, says: str) -> None:
    stub.files[TABLE] = body
    fails(client, tmp_path, says)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (as_json({"code": 401, "message": "Unauthenticated"}, 401), "Kaggle refused (401, Unauthenticated)"),
        (as_json({"code": 403, "message": "You must accept the rules"}), "kaggle.com/competitions/some-comp/rules"),
        (Answer(403), "kaggle.com/competitions/some-comp/rules"),
        (as_json({"code": 404, "message": "Not found"}, 404), "check the competition's slug"),
        (as_json({"code": 400, "message": "Bad\nname"}, 400), "Kaggle answered 400 (Bad name): see"),
        (replace(HTML, status=503), "Kaggle answered 503"),
        (HTML, "perhaps a web page"),
        (replace(HTML, headers={"Content-Type": "application/json"}), "perhaps a web page"),
    ],
)
@pytest.mark.parametrize("method", ["ListDataFiles", "DownloadDataFile"])
def test_a_no_is_one_line_and_leaves_nothing(
    stub: Stub,
    client: KaggleFiles,
    competition: Competition,
    tmp_path: Path,
    waits: list[float],
    method: str,
    answer: Answer,
    says: str,
) -> None:
    stub.scripted[method] = [answer]
    with pytest.raises(RemoteError) as caught:
        fetch_public_split(competition, tmp_path / "out", client)
    assert says in one_line(caught)
    assert files_in(tmp_path / "out") == {}
    assert len(stub.asked(method)) == 1
    assert waits == []


@pytest.mark.parametrize("said", [[], {}, {"code": 500}, {"files": [3]}, {"files": 3}, "no", 3, None])
def test_json_that_is_no_list_of_files_is_refused(stub: Stub, client: KaggleFiles, said: Any) -> None:
    stub.scripted["ListDataFiles"] = [as_json(said)]
    with pytest.raises(RemoteError, match=r"not an answer of Kaggle's API|lists no files"):
        client.sizes("some-comp")


def test_a_list_without_end_is_refused(stub: Stub, client: KaggleFiles) -> None:
    stub.scripted["ListDataFiles"] = [as_json({"files": [{"name": "a"}], "nextPageToken": "p2"})]
    with pytest.raises(RemoteError, match="goes in a circle"):
        client.sizes("some-comp")


def test_waits_as_long_as_kaggle_asks_then_succeeds(
    stub: Stub, client: KaggleFiles, competition: Competition, tmp_path: Path, waits: list[float]
) -> None:
    busy = {"code": 429, "message": "Too Many Requests"}
    stub.scripted["ListDataFiles"] = [as_json(busy, 429, **{"Retry-After": "7"}), *pages(stub)]
    redirect = stub.answer("DownloadDataFile", {"fileName": FIRST})
    stub.scripted[f"DownloadDataFile {FIRST}"] = [Answer(429), as_json(busy), redirect]
    fetch_public_split(competition, tmp_path / "out", client)
    assert waits == [7, 2, 4]
    assert (tmp_path / "out" / FIRST).read_bytes() == stub.files[FIRST]


def test_gives_up_when_kaggle_stays_busy(stub: Stub, client: KaggleFiles, waits: list[float]) -> None:
    stub.scripted["ListDataFiles"] = [Answer(429, headers={"Retry-After": "86400"})]
    with pytest.raises(RemoteError, match=r"slow down \(429\)"):
        client.sizes("some-comp")
    assert waits == [module.LONGEST_WAIT_S] * (module.TRIES - 1)


def test_a_truncated_body_is_tried_again_and_leaves_nothing(
    stub: Stub, client: KaggleFiles, tmp_path: Path, waits: list[float]
) -> None:
    stub.scripted["GET"] = [Answer(200, b"slide,pat", length=5000)]
    fails(client, tmp_path, "the connection failed 5 times (ChunkedEncodingError)")
    assert waits == [2, 4, 8, 16]
    stub.scripted["GET"] = [Answer(200, b"x" * 4000, length=5000), Answer(200, stub.files[TABLE])]
    assert client.download("some-comp", TABLE, tmp_path / "out", len(stub.files[TABLE]))
    assert files_in(tmp_path / "out") == {TABLE: stub.files[TABLE]}


def test_another_length_than_listed_is_refused_and_the_old_file_stays(
    stub: Stub, client: KaggleFiles, tmp_path: Path
) -> None:
    fails(client, tmp_path, f"{len(stub.files[TABLE])} bytes came, Kaggle's list says 999", size=999)
    (tmp_path / "out" / TABLE).write_bytes(b"old")
    with pytest.raises(RemoteError):
        client.download("some-comp", TABLE, tmp_path / "out", 999)
    assert files_in(tmp_path / "out") == {TABLE: b"old"}


@pytest.mark.parametrize("method", ["ListDataFiles", "DownloadDataFile", "GET"])
def test_silence_is_a_timeout(
    stub: Stub, competition: Competition, tmp_path: Path, waits: list[float], method: str
) -> None:
    stub.scripted[method] = [Answer(hang=True)]
    client = loopback(KaggleFiles(Credentials(TOKEN), stub.api, waits.append, timeout_s=(5, 0.1)))
    with pytest.raises(RemoteError, match="ReadTimeout"):
        fetch_public_split(competition, tmp_path / "out", client)
    assert len(waits) == module.TRIES - 1


@pytest.mark.parametrize("status", [403, 503])
def test_an_expired_address_is_not_taken_for_the_file(
    stub: Stub, client: KaggleFiles, tmp_path: Path, status: int
) -> None:
    stub.scripted["GET"] = [Answer(status, b"<Error>expired</Error>", {"Content-Type": "application/xml"})]
    fails(client, tmp_path, f"Kaggle answered {status}")
    stub.scripted["GET"] = [HTML]
    fails(client, tmp_path, "perhaps a web page")


def test_no_server_is_one_line(stub: Stub, waits: list[float]) -> None:
    client = loopback(KaggleFiles(Credentials(TOKEN), "http://127.0.0.1:1", waits.append))
    with pytest.raises(RemoteError) as caught:
        client.sizes("some-comp")
    assert "the connection failed 5 times (ConnectionError): check it" in one_line(caught)


def test_a_full_disk_is_one_line_and_leaves_nothing(stub: Stub, client: KaggleFiles, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # the system refuses the write, as a full disk would
    try:
        fails(client, tmp_path, "free some space", name=FIRST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_is_a_file_is_one_line(client: KaggleFiles, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RemoteError, match="choose another folder"):
        client.download("some-comp", TABLE, tmp_path / "out")


@pytest.mark.parametrize("image_id", ["../../../evil", "..", "x/../../y"])
def test_a_slide_that_leads_out_is_refused(
    stub: Stub, client: KaggleFiles, competition: Competition, tmp_path: Path, image_id: str
) -> None:
    stub.files[TABLE] = f"slide,patient\n{image_id},a\n".encode()
    if image_id == "..":
        competition = replace(competition, files=replace(competition.files, slide="{split}/{image_id}/a.svs"))
    with pytest.raises(RemoteError, match="leads out of"):
        fetch_public_split(competition, tmp_path / "out", client)
    assert set(files_in(tmp_path)) == {f"out/{TABLE}", f"out/{SAMPLE}"}


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a\\..\\evil", "a\0b", "", "."])
def test_a_name_that_is_none_is_refused_unasked(stub: Stub, client: KaggleFiles, tmp_path: Path, name: str) -> None:
    with pytest.raises(RemoteError, match="refused"):
        client.download("some-comp", name, tmp_path / "out")
    assert stub.calls == []


def test_a_table_without_image_ids_is_refused(
    stub: Stub, client: KaggleFiles, competition: Competition, tmp_path: Path
) -> None:
    stub.files[TABLE] = b"id,patient\n1,a\n"
    with pytest.raises(SplitError, match="no column slide"):
        fetch_public_split(competition, tmp_path / "out", client)


def test_a_large_file_takes_little_memory(stub: Stub, client: KaggleFiles, tmp_path: Path) -> None:
    stub.files[FIRST] = bytes(64 * 2**20)
    client.sizes("some-comp")  # the library's modules are loaded now
    tracemalloc.start()
    try:
        client.download("some-comp", FIRST, tmp_path / "out", 64 * 2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_no_credentials_is_one_line(competition: Competition, tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as caught:
        fetch_public_split(competition, tmp_path / "out")
    assert one_line(caught) == module.NO_CREDENTIALS
    assert not (tmp_path / "out").exists()


def test_credentials_are_found_in_kaggles_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = {name: json.dumps({"username": name, "key": f"key-{name}"}) for name in ("alice", "bob", "carol")}
    for folder, name in (("xdg/kaggle", "alice"), (".kaggle", "bob"), ("config", "carol")):
        (home / folder).mkdir(parents=True)
        (home / folder / "kaggle.json").write_text(saved[name])
    assert find_credentials() == Credentials("key-carol", "carol")
    monkeypatch.delenv("KAGGLE_CONFIG_DIR")
    assert find_credentials() == Credentials("key-bob", "bob")
    (home / ".kaggle" / "kaggle.json").unlink()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    assert find_credentials() == Credentials("key-alice", "alice")
    monkeypatch.setenv("KAGGLE_USERNAME", "dave")
    monkeypatch.setenv("KAGGLE_KEY", "key-dave")
    assert find_credentials() == Credentials("key-dave", "dave")
    (home / ".kaggle" / "access_token").write_text("from-home\n")
    assert find_credentials() == Credentials("from-home")
    (home / "elsewhere").write_text("from-file\n")
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(home / "elsewhere"))
    assert find_credentials() == Credentials("from-file")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    assert find_credentials() == Credentials(TOKEN)
    assert TOKEN not in repr(find_credentials())


def test_a_legacy_key_is_sent_as_such_whatever_the_environment_has(
    stub: Stub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(home))  # a folder: whoever looks for a token here fails
    client = loopback(KaggleFiles(Credentials("k", "alice"), stub.api))
    client.sizes("some-comp")
    basic = "Basic " + base64.b64encode(b"alice:k").decode()
    assert [headers["Authorization"] for _, _, headers in stub.calls] == [basic] * 2


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
    with pytest.raises(RemoteError, match="the Kaggle credentials") as caught:
        find_credentials()
    assert TOKEN not in one_line(caught)


def test_a_token_too_long_for_a_path_is_one_line_without_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN * 50)
    said = ""
    try:
        find_credentials()
    except RemoteError as error:  # whether the library can ask for such a path depends on the Python
        said = str(error)
    assert TOKEN not in said


def test_importing_the_client_loads_nothing_of_kaggle() -> None:
    code = "import sys, clotkit.kaggle.client; print({'kaggle', 'kagglesdk', 'requests', 'urllib3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def pages(stub: Stub) -> list[Answer]:
    return [stub.answer("ListDataFiles", {"pageToken": token}) for token in ("", "p2")]


def fails(client: KaggleFiles, tmp_path: Path, says: str, name: str = TABLE, size: int = 0) -> None:
    with pytest.raises(RemoteError) as caught:
        client.download("some-comp", name, tmp_path / "out", size)
    assert says in one_line(caught)
    assert files_in(tmp_path / "out") == {}


def one_line(caught: pytest.ExceptionInfo[RemoteError]) -> str:
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert "Signature" not in said
    return said
