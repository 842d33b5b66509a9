"""Guard the application: who may ask, from where, how much, and what a page may load.

A page of another site can send requests to this machine, and another user of it can connect to the port. So each
request must name this server as its host, come from its own pages or from nowhere, and carry the session's token.
"""

import ipaddress
import platform
import secrets
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import URL, Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from clotkit.app.escaping import LONGEST_REASON, printable
from clotkit.errors import ClotkitError, SlideError
from clotkit.reasons import Refusal
from clotkit.units import MB

TOKEN = "token"  # the word in the address that clotkit app prints
LOOPBACKS = ("127.0.0.1", "localhost", "[::1]")
METHODS = ("GET", "HEAD", "POST")
MOST_URL_BYTES = 8_000
MOST_BODY_BYTES = MB  # of a request to an address without a limit of its own
MOST_HEADERS = 100
NO_STYLE = (
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"  # an empty one: it stops a library from adding its own
)
CONTENT_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {NO_STYLE}",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # without a referrer, browsers post forms with the origin "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
CONTINUE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>clotkit</title>'
    '<meta http-equiv="refresh" content="0; url={url}"><a href="{url}">Continue</a></html>'
)


@dataclass(frozen=True)
class Door:
    """The checks that a request must pass: the server's address, and the token of its session."""

    address: str  # that the server listens on
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    body_bytes: Mapping[str, int] = field(default_factory=dict)  # limits of bodies, by the beginning of the path

    @property
    def cookie(self) -> str:
        """The name of the cookie: browsers do not keep those of two ports apart."""
        return f"clotkit-{self.port}"

    @property
    def url(self) -> str:
        """The address that opens the application."""
        address = f"[{self.address}]" if ":" in self.address else self.address  # of the sixth version
        return f"http://{address}:{self.port}/?{TOKEN}={self.token}"

    def is_host(self, host: str) -> bool:
        """Return whether a Host header names this server, and no name that somebody else may point here."""
        name, _, port = host.lower().rpartition(":")
        if port != str(self.port):
            return False
        own = self.address.lower()
        if own in LOOPBACKS or own == "::1":
            return name in LOOPBACKS
        return name in ("localhost", platform.node().lower(), own) or _is_number(name)

    def body_limit(self, path: str) -> int:
        """Return how many bytes a request to a path may send."""
        return max(
            (limit for start, limit in self.body_bytes.items() if path.startswith(start)), default=MOST_BODY_BYTES
        )


class RequestRefused(Exception):  # noqa: N818 - named for what it says
    """A request that is not answered."""

    def __init__(self, code: Refusal, sentence: str, status: int = 403) -> None:
        super().__init__(sentence)
        self.code, self.status = code, status


def guarded(routes: Sequence[BaseRoute], door: Door, lifespan: Lifespan[Starlette] | None = None) -> Starlette:
    """Return an application with these routes behind a door. Its errors are one line of JSON with a code."""
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, door=door)],
        exception_handlers={
            RequestRefused: _refused,
            ClotkitError: _failed,
            HTTPException: _not_served,
            Exception: _broken,
        },
        lifespan=lifespan,
    )


def answer(code: str, sentence: str, status: int) -> Response:
    """Return an error as one line of JSON."""
    body = {"code": code, "error": printable(sentence, LONGEST_REASON)}
    return JSONResponse(body, status, headers={"cache-control": "no-store"})


def status_of(error: ClotkitError) -> int:
    """Return the status of the answer to an error: 422 for one of a file, 400 for one of the request."""
    return 422 if isinstance(error, SlideError) else 400


class Guard:
    """Middleware that checks each request at the door, and adds the headers that limit what a page may do."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        guarded_send = _with_headers(send)
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers, method = Headers(scope=scope), str(scope["method"])
        try:
            self._check(scope, headers, method)
            entry = _entry(scope, self._door) if method == "GET" else None
            if entry is None:
                self._check_session(scope, headers, method)
        except RequestRefused as refused:
            await answer(refused.code, str(refused), refused.status)(scope, receive, guarded_send)
            return
        if entry is not None:
            await entry(scope, receive, guarded_send)
            return
        await self._served(scope, _limited(receive, self._door.body_limit(scope["path"])), guarded_send)

    async def _served(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; for an error of the program, the page of Starlette would lack the headers."""
        is_begun = False

        async def noted(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if not is_begun:
                handler = scope["app"].exception_handlers[Exception]
                await (await handler(Request(scope), error))(scope, receive, send)
            raise  # for the log

    def _check(self, scope: Scope, headers: Headers, method: str) -> None:
        """Raise RequestRefused for what no browser of ours sends, whoever asks."""
        if method not in METHODS:
            raise RequestRefused(Refusal.METHOD, f"use {', '.join(METHODS)}", 405)
        if len(scope.get("raw_path", b"")) + len(scope["query_string"]) > MOST_URL_BYTES:
            raise RequestRefused(Refusal.TOO_LARGE, f"at most {MOST_URL_BYTES} bytes of address", 414)
        if len(scope["headers"]) > MOST_HEADERS:
            raise RequestRefused(Refusal.TOO_LARGE, f"at most {MOST_HEADERS} headers", 431)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._door.is_host(hosts[0]):
            raise RequestRefused(Refusal.HOST, "the Host header does not name this server")
        length, limit = headers.get("content-length", "0"), self._door.body_limit(scope["path"])
        if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > limit:
            raise RequestRefused(Refusal.TOO_LARGE, f"at most {limit:,} bytes may be sent here", 413)

    def _check_session(self, scope: Scope, headers: Headers, method: str) -> None:
        """Raise RequestRefused for a request that is not of this session's pages."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if (origin is None and method == "POST") or (origin is not None and not self._is_own(origin, headers)):
            raise RequestRefused(Refusal.ORIGIN, "the request comes from another origin")
        if site not in ("same-origin", "none"):
            raise RequestRefused(Refusal.ORIGIN, "the request comes from another site")
        given = cookie_parser(headers.get("cookie", "")).get(self._door.cookie, "")
        if not secrets.compare_digest(given.encode(), self._door.token.encode()):
            raise RequestRefused(
                Refusal.TOKEN, "open the address that clotkit app printed: it has the token of this session"
            )

    def _is_own(self, origin: str, headers: Headers) -> bool:
        return origin.lower() == f"http://{headers['host']}".lower()


def _entry(scope: Scope, door: Door) -> Response | None:
    """Return the answer to an address with the session's token: a cookie, and the page without the token.

    Not a redirect: a browser that comes from another site would not send the cookie along.
    """
    token = QueryParams(scope["query_string"]).get(TOKEN)
    if token is None:
        return None
    if not secrets.compare_digest(token.encode(), door.token.encode()):
        raise RequestRefused(
            Refusal.TOKEN, "this token is of another session; use the address that clotkit app printed"
        )
    path = "/" + scope["raw_path"].decode("latin-1").lstrip("/\\")  # //host would be another server
    rest = URL(scope=scope).remove_query_params(TOKEN).query
    here = path + (f"?{rest}" if rest else "")
    page = HTMLResponse(CONTINUE.format(url=_attribute(here)), headers={"cache-control": "no-store"})
    page.set_cookie(door.cookie, door.token, httponly=True, samesite="strict", path="/")
    return page


def _attribute(text: str) -> str:
    return "".join(f"&#{ord(char)};" if char in "&<>\"'" else char for char in text)


def _is_number(name: str) -> bool:
    """Return whether a host is an IP address, which no name server can point elsewhere."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    """Return `send` that adds HEADERS to every answer, and forbids to store it unless it says otherwise."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            raw: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
            named = {name.lower() for name, _ in raw}
            added = HEADERS | {"cache-control": "no-store"}
            raw += [(name.encode(), value.encode()) for name, value in added.items() if name.encode() not in named]
            message = {**message, "headers": raw}
        await send(message)

    return with_headers


def _limited(receive: Receive, most_bytes: int) -> Receive:
    """Return `receive` that raises RequestRefused for a body above its limit, whatever its header says."""
    received = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most_bytes:
            raise RequestRefused(Refusal.TOO_LARGE, f"at most {most_bytes:,} bytes may be sent here", 413)
        return message

    return limited


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return answer(error.code, str(error), error.status)


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, ClotkitError)
    return answer(error.reason, str(error), status_of(error))


async def _not_served(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = Refusal.METHOD if error.status_code == 405 else Refusal.NOT_FOUND
    return answer(code, error.detail, error.status_code)


async def _broken(_: Request, error: Exception) -> Response:
    """Answer for an error of the program itself; the log has its traceback, the page has not."""
    return answer(Refusal.FAILED, f"the application failed: {type(error).__name__}", 500)
