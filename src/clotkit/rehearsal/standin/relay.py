"""Send calls from a gateway to a server, with frames and plain values, by gRPC on a Unix socket.

A Unix socket needs no network, which is off in a rehearsal.
"""

import json
import os
import tempfile
from collections.abc import Callable
from concurrent import futures
from importlib import import_module
from typing import Any

import grpc

ADDRESS = "CLOTKIT_RELAY"  # environment variable: the socket's path
METHOD = "/clotkit.StandIn/Send"
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Client:
    """The gateway's side."""

    def __init__(self, path: str) -> None:
        """Connect to the socket at `path` when the first call is made."""
        self._channel = grpc.insecure_channel(f"unix:{path}", options=OPTIONS)
        self._send = self._channel.unary_unary(METHOD, request_serializer=None, response_deserializer=None)

    def is_up(self, limit_s: float) -> bool:
        """Wait for the server, at most so long; return whether it is up."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout=limit_s)
        except grpc.FutureTimeoutError:
            return False
        return True

    def send(self, name: str, *values: Any, limit_s: float | None = None) -> Any:
        """Call a function of the server, and return what it returns.

        Raises TimeoutError after `limit_s`, RuntimeError for an exception in the function, ConnectionError else.
        """
        request = json.dumps([name, [encoded(value) for value in values]]).encode()
        try:
            return decoded(json.loads(self._send(request, timeout=limit_s)))
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(f"no answer after {limit_s} s") from error
            kind = RuntimeError if code is grpc.StatusCode.UNKNOWN else ConnectionError
            raise kind(error.details()) from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """The server's side: functions by their names."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        """Call `functions`."""
        self._functions = functions

    def service(self, call: Any) -> Any:
        """Return the handler of a call; None if the method is unknown."""
        return grpc.unary_unary_rpc_method_handler(self._answer) if call.method == METHOD else None

    def _answer(self, request: bytes, _context: Any) -> bytes:
        name, values = json.loads(request)
        if name not in self._functions:
            raise NotImplementedError(f"No listener for {name} was registered.")
        return json.dumps(encoded(self._functions[name](*map(decoded, values)))).encode()


def define_server(*functions: Callable[..., Any]) -> tuple[Any, str]:
    """Return a server that calls the functions, one call at a time, and the path of its socket."""
    path = os.environ.get(ADDRESS) or f"{tempfile.mkdtemp(prefix='clotkit-')}/relay"
    handler = Handler({function.__name__: function for function in functions})
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), handlers=(handler,), options=OPTIONS)
    server.add_insecure_port(f"unix:{path}")
    return server, path


def encoded(value: Any) -> list[Any]:
    """Return a value in JSON's types. Raises TypeError for a type that a gateway does not send."""
    library = type(value).__module__.partition(".")[0]
    if hasattr(value, "columns"):
        return ["frame", library, {str(name): _cells(value[name]) for name in value.columns}]
    if hasattr(value, "to_list"):
        return ["series", library, value.name, _cells(value)]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [encoded(one) for one in value]]
    if isinstance(value, dict):
        return ["dict", {name: encoded(one) for name, one in value.items()}]
    value = value.item() if hasattr(value, "item") else value
    if value is not None and not isinstance(value, str | int | float):
        raise TypeError(f"{type(value).__name__}: a gateway sends no such thing")
    return ["value", value]


def _cells(series: Any) -> list[Any]:
    return [cell if isinstance(cell, str | int | float) else None for cell in series.to_list()]


def decoded(message: list[Any]) -> Any:
    """Return the value of a message."""
    kind, *parts = message
    if kind == "frame":
        return _library(parts[0]).DataFrame(parts[1])
    if kind == "series":
        return _library(parts[0]).Series(name=parts[1], **{_values_name(parts[0]): parts[2]})
    if kind == "dict":
        return {name: decoded(one) for name, one in parts[0].items()}
    if kind in {"list", "tuple"}:
        return (list if kind == "list" else tuple)(decoded(one) for one in parts[0])
    return parts[0]


def _values_name(library: str) -> str:
    return "values" if library == "polars" else "data"


def _library(name: str) -> Any:
    """Return pandas or polars. Raises TypeError for another library."""
    if name not in {"pandas", "polars"}:
        raise TypeError(f"{name}: a gateway sends frames of pandas and polars")
    return import_module(name)
