"""Serve objects as S3 does, on loopback, some of them badly: cut, short, changed or refused."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler", bytes], None]
KEY = "/bucket/top/"


@dataclass
class Objects:
    """The objects of the server's only bucket by name, and how the GETs of some are answered."""

    content: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)  # by name; others are answered as S3 does
    gets: dict[str, int] = field(default_factory=dict)  # answered so far, by name


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD and GET of objects, and the list of a folder."""

    protocol_version = "HTTP/1.1"
    objects: Objects

    @property
    def name(self) -> str:
        """The name of the object that is asked for, below the folder."""
        return self.path.partition("?")[0].removeprefix(KEY)

    @property
    def first_byte(self) -> int | None:
        """The first byte of the range that is asked for; None: the whole object."""
        asked = self.headers.get("Range")
        return None if asked is None else int(asked.removeprefix("bytes=").partition("-")[0])

    def do_HEAD(self) -> None:
        """Answer with an object's facts."""
        content = self.objects.content.get(self.name)
        if content is None:
            self.send(404, b"")
        else:
            self.send(200, content, head=True)

    def do_GET(self) -> None:
        """Answer with an object, or with the list of all."""
        if not self.path.startswith(KEY):
            self.send(200, self._list())
            return
        name = self.name
        content = self.objects.content.get(name)
        if content is None:
            self.send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        self.objects.gets[name] = self.objects.gets.get(name, 0) + 1
        self.objects.answers.get(name, Handler.right)(self, content)

    def right(self, content: bytes) -> None:
        """Answer as S3 does: the whole object, or the range that is asked for."""
        part = content[slice(*self.bounds(content))]
        self.send(206 if self.first_byte is not None else 200, part, whole=content)

    def bounds(self, content: bytes) -> tuple[int, int]:
        """Return the first byte of the range that is asked for, and the one after its last."""
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        return int(first), min(int(last) + 1 if last else len(content), len(content))

    def send(
        self, status: int, body: bytes, *, whole: bytes | None = None, length: int | None = None, head: bool = False
    ) -> None:
        """Send an answer; with a `length` above that of the body the connection is cut after it."""
        whole = body if whole is None else whole
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.md5(whole, usedforsecurity=False).hexdigest()}"')
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if status == 206:
            first, end = self.bounds(whole)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(whole)}")
        self.end_headers()
        if not head:
            self.wfile.write(body)
        if length is not None and length > len(body):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def _list(self) -> bytes:
        entries = "".join(
            f"<Contents><Key>top/{name}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"</ETag><Size>{len(content)}</Size>'
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for name, content in self.objects.content.items()
        )
        head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        return f"{head}<Name>bucket</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


@contextmanager
def object_server(objects: Objects) -> Iterator[str]:
    """Run the server, and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"objects": objects}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
