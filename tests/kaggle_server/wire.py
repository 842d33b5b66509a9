"""Requests off a socket, answers and faults onto it."""

import contextlib
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .faults import Fault, Faults
from .ports import Port, Storage
from .reply import Reply, Request, as_error, as_html

RESET = struct.pack("ii", 1, 0)  # linger on, for no time: the system answers with a reset
EVENT = b"\n\n"


class Listener(ThreadingHTTPServer):
    """One port of loopback; closing it ends every connection and every thread."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, port: Port, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port, self.faults = port, faults
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The address at which it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        """Stop listening, end the connections, and wait for their threads."""
        self.shutdown()
        self._thread.join()
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection; here and not in its thread, so that closing cannot miss it."""
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnected; report any other error, which is a mistake in the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "loopback"
    disable_nagle_algorithm = True
    server: Listener

    def do_POST(self) -> None:
        """Answer a call."""
        self._serve()

    def do_GET(self) -> None:
        """Return a file or a log."""
        self._serve()

    def do_PUT(self) -> None:
        """Store an upload."""
        self._serve()

    def log_message(self, *_: Any) -> None:
        """Write no log to stderr."""

    def _serve(self) -> None:
        request = self._read()
        name, text = self.server.port.note(request)
        fault = self.server.faults.take(name, text, len(request.body))
        if fault is None:
            self._give(self.server.port.answer(request))
        else:
            self._misbehave(fault, request)

    def _read(self) -> Request:
        url = urlsplit(self.path)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body, whole = self._read_chunks()
        else:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            whole = len(body) == length
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        return Request(self.command, url.path, query, self.headers, body, whole)

    def _read_chunks(self) -> tuple[bytes, bool]:
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
            part = self.rfile.read(size) if size > 0 else b""
            parts.append(part)
            if size < 0 or len(part) < size:
                return b"".join(parts), False
            self.rfile.readline()
        while self.rfile.readline().strip():
            """A trailer."""
        return b"".join(parts), True

    def _misbehave(self, fault: Fault, request: Request) -> None:
        port = self.server.port
        if fault.kind in ("slow", "truncated"):
            self._stop_early(port.answer(request), fault)
            return
        if fault.kind == "midway":
            port.answer(request, fault.part(request.body))
        elif fault.after_effect:
            port.answer(request)
        if fault.kind == "reset" or (fault.kind == "midway" and fault.status == 0):
            self._reset()
        elif fault.kind == "silent":
            self._hold()
        else:
            self._give(self._lie(fault, request))

    def _lie(self, fault: Fault, request: Request) -> Reply:
        if fault.kind == "html":
            return as_html(fault.status or 200)
        if fault.kind == "expired" and isinstance(self.server.port, Storage):
            return self.server.port.expire(request)
        if fault.kind == "midway":
            return Reply(fault.status or 503, headers=dict(fault.headers))
        reply = as_error(fault.status or (403 if fault.kind == "expired" else 500), fault.message, fault.headers)
        reply.status = fault.http or reply.status
        return reply

    def _give(self, reply: Reply) -> None:
        self._head(reply, len(reply.body))
        if not reply.events:
            self.wfile.write(reply.body)
            return
        events = [event for event in reply.body.split(EVENT) if event]
        self._give_events(events[:-1])
        if reply.then:
            reply.then()  # whoever reads the last event finds it done
        self._give_events(events[-1:])
        self.wfile.write(b"0\r\n\r\n")

    def _give_events(self, events: list[bytes]) -> None:
        for event in events:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event + EVENT), event + EVENT))

    def _stop_early(self, reply: Reply, fault: Fault) -> None:
        reply.body = reply.body or b"{ }"
        self._head(reply, len(reply.body))
        part = fault.part(reply.body)
        if reply.events:
            self._give_events(part.split(EVENT)[:-1])
        else:
            self.wfile.write(part)
        if fault.kind == "slow":
            self._hold()
        self.close_connection = True

    def _head(self, reply: Reply, length: int) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.events:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _hold(self) -> None:
        """Wait until the client goes away or the server closes."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.recv(1)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.rfile.close()
        self.connection.close()
