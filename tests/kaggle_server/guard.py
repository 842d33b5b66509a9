"""Nothing leaves this machine: a process under this guard can connect to loopback only."""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class LeftLoopbackError(AssertionError):
    """Somebody tried to reach another host; not an OSError, so that nothing takes it for a bad connection."""


@contextmanager
def only_loopback() -> Iterator[list[str]]:
    """Refuse connections of this process to other hosts, and yield the list of hosts that were tried."""
    tried: list[str] = []
    with ExitStack() as stack:
        for name in ("connect", "connect_ex", "sendto"):
            stack.enter_context(_replaced(socket.socket, name, _checked_method(getattr(socket.socket, name), tried)))
        for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
            stack.enter_context(_replaced(socket, name, _checked_lookup(getattr(socket, name), tried)))
        yield tried


def is_loopback(host: Any) -> bool:
    """Return whether a host's name or address is this machine's."""
    text = host.decode() if isinstance(host, bytes) else host
    if text in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(text)).is_loopback
    except ValueError:
        return False


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for an attribute, for as long as this lasts."""
    inherited, before = name not in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _check(host: Any, tried: list[str]) -> None:
    if not is_loopback(host):
        tried.append(str(host))
        raise LeftLoopbackError(f"an attempt to reach {host}")


def _checked_method(method: Any, tried: list[str]) -> Any:
    def checked(self: socket.socket, *given: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(given[-1][0], tried)
        return method(self, *given)

    return checked


def _checked_lookup(function: Any, tried: list[str]) -> Any:
    def checked(host: Any, *given: Any, **named: Any) -> Any:
        _check(host, tried)
        return function(host, *given, **named)

    return checked
