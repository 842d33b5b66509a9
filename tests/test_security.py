"""The door of the application: hosts, origins, sites, the session's token, methods, sizes, headers."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clotkit.app.security import MOST_BODY_BYTES, TOKEN, Door
from clotkit.competitions import Competition
from clotkit.reasons import Refusal

from .app_server import AppServer, app_server

PATH = "/slides/x/info.json"  # of no slide: 404 for whoever may ask


@pytest.fixture(scope="module")
def server(strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    """Serve an empty folder, and a route that takes what is sent and one that fails."""

    async def length(request: Request) -> Response:
        return Response(str(len(await request.body())))

    async def broken(_: Request) -> Response:
        raise RuntimeError("a secret")

    more = [Route("/length", length, methods=["POST"]), Route("/broken", broken)]
    with app_server([tmp_path_factory.mktemp("root")], strip_ai, more) as server:
        yield server


def code(server: AppServer, headers: dict[str, str], method: str = "GET", body: bytes | None = None) -> str:
    """Return the code of the answer to a request with this session's token and other headers."""
    answer = server.ask(PATH, server.own_headers() | headers, method, body)
    assert 400 <= answer.status < 500
    found: str = json.loads(answer.body)["code"]
    return found


def test_its_own_pages_are_answered(server: AppServer) -> None:
    assert code(server, {}) == Refusal.NOT_FOUND
    assert code(server, {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}) == Refusal.NOT_FOUND
    assert code(server, {"Sec-Fetch-Site": "none"}) == Refusal.NOT_FOUND
    local = f"localhost:{server.door.port}"
    assert code(server, {"Host": local, "Origin": f"http://{local}"}) == Refusal.NOT_FOUND


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.2:{port}", ""]
)
def test_other_hosts_are_refused(server: AppServer, host: str) -> None:
    assert code(server, {"Host": host.format(port=server.door.port)}) == Refusal.HOST


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "http://127.0.0.1:1", "https://127.0.0.1:{port}", "http://localhost:{port}", ""],
)
def test_other_origins_are_refused(server: AppServer, origin: str) -> None:
    assert code(server, {"Origin": origin.format(port=server.door.port)}) == Refusal.ORIGIN


@pytest.mark.parametrize("site", ["cross-site", "same-site", "x"])
def test_pages_of_other_sites_are_refused(server: AppServer, site: str) -> None:
    assert code(server, {"Sec-Fetch-Site": site}) == Refusal.ORIGIN


@pytest.mark.parametrize(
    "cookie", ["", "{name}=", "{name}=x", "other={token}", "{name}", "{name}=\xe9", "=;;=", "{name}={token}x"]
)
def test_without_the_token_nothing_is_answered(server: AppServer, cookie: str) -> None:
    cookie = cookie.format(name=server.door.cookie, token=server.door.token)
    for path in ("/", PATH, "/static/viewer.js", "/view/x"):
        answer = server.ask(path, {"Cookie": cookie})
        assert (answer.status, json.loads(answer.body)["code"]) == (403, Refusal.TOKEN)


def test_the_printed_address_gives_the_cookie_and_the_page_without_the_token(server: AppServer) -> None:
    answer = server.ask(f"/view/x?{TOKEN}={server.door.token}&run=a%22b", {"Sec-Fetch-Site": "cross-site"})
    assert answer.status == 200
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{server.door.cookie}={server.door.token};")
    assert {"httponly", "samesite=strict"} <= {part.strip().lower() for part in cookie.split(";")}
    assert re.findall(rb'url=([^"]*)"', answer.body) == [b"/view/x?run=a%22b"]
    assert server.door.token.encode() not in answer.body
    wrong = server.ask(f"/?{TOKEN}=x")
    assert (wrong.status, json.loads(wrong.body)["code"]) == (403, Refusal.TOKEN)


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "///evil.example"])
def test_the_printed_address_leads_to_this_server_alone(server: AppServer, path: str) -> None:
    answer = server.ask(f"{path}?{TOKEN}={server.door.token}", {})
    (url,) = re.findall(rb'url=([^"]*)"', answer.body)
    assert re.fullmatch(rb"/([^/\\].*)?", url)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_other_methods_are_refused(server: AppServer, method: str) -> None:
    assert code(server, {}, method) == Refusal.METHOD


def test_what_is_sent_needs_an_origin(server: AppServer) -> None:
    assert code(server, {}, "POST", b"x") == Refusal.ORIGIN
    assert code(server, {"Origin": server.url}, "POST", b"x") == Refusal.METHOD


@pytest.mark.parametrize("length", [str(MOST_BODY_BYTES + 1), "9" * 400])
def test_a_large_body_is_refused_unread(server: AppServer, length: str) -> None:
    with socket.create_connection((server.door.address, server.door.port)) as connection:
        host = f"{server.door.address}:{server.door.port}"
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode())
        assert connection.recv(16).split()[1] in {b"413", b"400"}


@pytest.mark.parametrize("extra", [0, 1])
def test_a_body_is_counted_whatever_its_header_says(server: AppServer, extra: int) -> None:
    with socket.create_connection((server.door.address, server.door.port)) as connection:
        headers = {"Host": f"{server.door.address}:{server.door.port}", "Transfer-Encoding": "chunked"}
        headers |= {"Origin": server.url} | server.own_headers()
        lines = [f"{name}: {value}" for name, value in headers.items()]
        connection.sendall("\r\n".join(["POST /length HTTP/1.1", *lines, "", ""]).encode())
        for _ in range(16):
            connection.sendall(b"%x\r\n%s\r\n" % (MOST_BODY_BYTES // 16, bytes(MOST_BODY_BYTES // 16)))
        connection.sendall(b"1\r\nx\r\n" * extra + b"0\r\n\r\n")
        assert connection.recv(16).split()[1] == (b"413" if extra else b"200")


def test_an_error_of_the_program_tells_nothing(server: AppServer) -> None:
    answer = server.ask("/broken")
    assert (answer.status, json.loads(answer.body)["code"]) == (500, Refusal.FAILED)
    assert b"secret" not in answer.body


def test_two_hosts_are_refused(server: AppServer) -> None:
    with socket.create_connection((server.door.address, server.door.port)) as connection:
        host = f"{server.door.address}:{server.door.port}"
        connection.sendall(f"GET {PATH} HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n".encode())
        assert connection.recv(16).split()[1] in {b"403", b"400"}


def test_every_answer_limits_what_a_page_may_do(server: AppServer) -> None:
    for path, headers in ((PATH, None), ("/none", None), (PATH, {}), ("/broken", None)):
        found = server.ask(path, headers).headers
        policy = dict(part.split(" ", 1) for part in found["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert "unsafe" not in found["content-security-policy"]
        assert found["x-content-type-options"] == "nosniff"
        assert found["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in found
        assert "python" not in found.get("server", "")


@given(st.text(max_size=40), st.integers(0, 99_999))
def test_no_name_is_a_host_of_loopback_but_its_three(name: str, port: int) -> None:
    door = Door("127.0.0.1", 8501)
    assert not door.is_host(f"{name}:{port}") or (name.lower() in {"127.0.0.1", "localhost", "[::1]"} and port == 8501)


def test_on_another_address_numbers_are_hosts_and_names_are_not() -> None:
    door = Door("0.0.0.0", 8501)
    assert all(door.is_host(f"{name}:8501") for name in ("10.1.2.3", "[fe80::1]", "localhost"))
    assert not any(door.is_host(host) for host in ("evil.example:8501", "10.1.2.3:80", "10.1.2.3.evil.example:8501"))


@pytest.mark.parametrize("address", ["127.0.0.1", "LOCALHOST", "::1", "0.0.0.0", "::", "fe80::1", "Lab-7.example"])
def test_the_printed_address_names_a_host_that_is_answered(address: str) -> None:
    door = Door(address, 8501)
    parts = urlsplit(door.url)
    assert parts.port == 8501
    assert door.is_host(parts.netloc)
    assert door.is_host(parts.netloc.lower())  # as browsers send it
    assert not door.is_host("evil.example:8501")


@pytest.mark.parametrize("path", ["/static/../security.py", "/static/../web/server.py", "/static/%2e%2e/security.py"])
def test_no_file_but_those_of_pages_is_served(server: AppServer, path: str) -> None:
    assert server.ask(path).status == 404
    assert server.ask("/static/app.js").status == 200


def test_each_session_has_a_token_of_its_own(tmp_path: Path) -> None:
    tokens = {Door("127.0.0.1", 8501).token for _ in range(20)}
    assert len(tokens) == 20
    assert min(map(len, tokens)) >= 40
