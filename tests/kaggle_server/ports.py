"""The two ports: Kaggle's API, which asks who is there, and the storage, which must never be told."""

import base64
import binascii
import json
import re
from typing import Any, Protocol

from . import accounts, competitions, datasets, kernels, models
from .reply import RefusedError, Reply, Request, as_error, as_json, as_xml, without_defaults
from .state import Blob, Call, World

METHODS = {**accounts.METHODS, **datasets.METHODS, **models.METHODS, **kernels.METHODS, **competitions.METHODS}
ANONYMOUS = ("IntrospectToken", "GenerateAccessToken")
LOG_STREAM = "GetKernelSessionLogsStream"  # what calls and faults name it, by POST or by GET
RPC = re.compile(r"(?:/api)?/v1/([A-Za-z.]+/([A-Za-z]+))")
STREAM = re.compile(r"(?:/api)?/v1/kernels/logs/stream/([^/]+)/([^/]+)")
WHOLE_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Port(Protocol):
    """The HTTP servers that listen at the ports."""

    def note(self, request: Request) -> tuple[str, str]:
        """Record a request, and return its method's name and the text that faults are matched against."""

    def answer(self, request: Request, kept: bytes | None = None) -> Reply:
        """Carry out a request; of an upload, store only the bytes `kept` if they are given."""


class Api:
    """Kaggle's API."""

    def __init__(self, world: World) -> None:
        self._world = world

    def note(self, request: Request) -> tuple[str, str]:
        """Record a request, and return its method's name and the text that faults are matched against."""
        rpc = RPC.fullmatch(request.path)
        name = rpc[2] if rpc else LOG_STREAM if STREAM.fullmatch(request.path) else request.path
        self._world.calls.append(Call(name, _said(request), request.headers))
        return name, request.path + request.body.decode(errors="replace")

    def answer(self, request: Request, kept: bytes | None = None) -> Reply:
        """Carry out a request of the API."""
        try:
            if not request.whole:
                raise RefusedError(400, "The request is not whole")
            with self._world.lock:
                return self._terse(self._call(request))
        except RefusedError as error:
            return as_error(error.status, str(error))
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # what a malformed body leads to
            return as_error(400, f"Bad request ({type(error).__name__})")

    def _call(self, request: Request) -> Reply:
        rpc, stream = RPC.fullmatch(request.path), STREAM.fullmatch(request.path)
        if not (rpc and rpc[2] in ANONYMOUS):
            _authenticate(self._world, request.headers.get("Authorization", ""))
        said = _said(request)
        if request.verb == "GET" and stream:
            return kernels.stream_log(self._world, stream[1], stream[2], request.query.get("versionLabel", ""))
        if request.verb == "POST" and rpc and rpc[2] == LOG_STREAM:
            return kernels.stream_log(self._world, said["userName"], said["kernelSlug"], said.get("versionLabel", ""))
        if request.verb == "POST" and rpc and rpc[1] in METHODS:
            return METHODS[rpc[1]](self._world, said)
        raise RefusedError(404, f"No method {request.verb} {request.path}")

    def _terse(self, reply: Reply) -> Reply:
        if not self._world.leave_out_defaults or reply.headers.get("Content-Type") != "application/json":
            return reply
        return as_json(without_defaults(json.loads(reply.body)), reply.status)


class Storage:
    """The storage: whoever has an address may use it, and no credential belongs here."""

    def __init__(self, world: World) -> None:
        self._world = world

    def note(self, request: Request) -> tuple[str, str]:
        """Record a request, and return its method's name and the text that faults are matched against."""
        blob = self._blob(request)
        key = request.path.split("/")[2] if request.path.count("/") > 2 else ""
        name = blob.name if blob else self._world.signed.get(key, (request.path, b""))[0]
        said: dict[str, Any] = {"fileName": name, "bytes": len(request.body)}
        if "Content-Range" in request.headers:
            said["contentRange"] = request.headers["Content-Range"]
        call = Call(request.verb, said, request.headers)
        self._world.calls.append(call)
        if any(header in request.headers for header in ("Authorization", "Proxy-Authorization", "Cookie")):
            self._world.leaks.append(call)
        return request.verb, f"{name} {request.path} {said.get('contentRange', '')}"

    def answer(self, request: Request, kept: bytes | None = None) -> Reply:
        """Store an upload, or serve a file."""
        with self._world.lock:
            if request.verb == "PUT":
                return self._put(request, request.body if kept is None else kept)
            return self._get(request) if request.verb == "GET" else Reply(405)

    def expire(self, request: Request) -> Reply:
        """Answer that the address of this request has expired; an upload's address stays expired."""
        blob = self._blob(request)
        if blob is None:
            return as_xml(403, "ExpiredToken")
        blob.expired = True
        return Reply(404)

    def _blob(self, request: Request) -> Blob | None:
        return self._world.blobs.get(request.path.removeprefix("/upload/"))

    def _put(self, request: Request, kept: bytes) -> Reply:
        blob = self._blob(request)
        if blob is None or blob.expired:
            return Reply(404)
        asked = request.headers.get("Content-Range", "")
        if blob.complete:
            return Reply(200)
        if asked == f"bytes */{blob.length}" and not request.body:
            return Reply(308, headers={"Range": f"bytes=0-{len(blob.data) - 1}"} if blob.data else {})
        start = _start(asked, blob, len(request.body), request.whole)
        if start is None:
            return as_xml(400, "InvalidRange")
        blob.data = blob.data[:start] + kept
        blob.complete = len(blob.data) == blob.length
        return Reply(200 if blob.complete else 503)

    def _get(self, request: Request) -> Reply:
        key = request.path.split("/")[2] if request.path.startswith("/files/") else ""
        if key not in self._world.signed or request.query.get("X-Goog-Signature") != f"5ec7e7{key}":
            return as_xml(403, "SignatureDoesNotMatch")
        if key in self._world.expired:
            return as_xml(403, "ExpiredToken")
        content = self._world.signed[key][1]
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{binascii.crc32(content):08x}"',
            "Last-Modified": "Sat, 03 Jan 2026 00:00:00 GMT",
        }
        rest = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if rest is None:
            return Reply(200, content, headers)
        if int(rest[1]) >= len(content):
            return Reply(416, headers={"Content-Range": f"bytes */{len(content)}"})
        span = f"bytes {rest[1]}-{len(content) - 1}/{len(content)}"
        return Reply(206, content[int(rest[1]) :], {**headers, "Content-Range": span})


def _start(asked: str, blob: Blob, size: int, whole: bool) -> int | None:
    """Return the offset of a PUT's bytes; None if they do not fit the announced or the received bytes."""
    if not asked:
        return 0 if size == blob.length or not whole else None
    span = WHOLE_RANGE.fullmatch(asked)
    if span is None:
        return None
    first, last, total = map(int, span.groups())
    whole_span = last - first + 1 == size or not whole
    fits = first <= len(blob.data) and whole_span and last + 1 <= total == blob.length
    return first if fits else None


def _authenticate(world: World, header: str) -> None:
    scheme, _, secret = header.partition(" ")
    if scheme == "Bearer" and accounts.is_active(world, secret):
        return
    if scheme == "Basic":
        try:
            name, _, key = base64.b64decode(secret).decode().partition(":")
        except ValueError:
            name = key = ""
        if name == world.username and key:
            return
    raise RefusedError(401, "Unauthenticated")


def _said(request: Request) -> dict[str, Any]:
    try:
        said = json.loads(request.body) if request.body else dict(request.query)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
