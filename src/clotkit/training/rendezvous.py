"""Workers of one training meet before TensorFlow is told of them, which waits without end and without a word."""

import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clotkit.errors import ClusterError
from clotkit.progress import Log

LOOK_S = 0.2  # between two looks for those who are missing
ANSWER_S = 2.0  # that a machine has for an answer
SAY_S = 30.0  # between two lines that say who is missing


def meet(addresses: Sequence[str], index: int, wait_s: float, log: Log) -> None:
    """Return when every worker of `addresses` ("host:port") answers; meanwhile be there for them, at one's own port.

    Each of them has to be seen once: who has seen all goes on, and then TensorFlow answers at the same port.
    Raises ClusterError, with who is missing, after `wait_s` seconds, and where one's own port cannot be had.
    """
    me = f"worker {index} of {len(addresses)}, at {addresses[index]}"
    end = time.monotonic() + wait_s
    said = -SAY_S
    missing = {number: address for number, address in enumerate(addresses) if number != index}
    with _listening(addresses[index], me, len(addresses)):
        while True:
            why = {number: _asked(address, end) for number, address in missing.items()}
            missing = {number: address for number, address in missing.items() if why[number]}
            if not missing:
                return
            who = _names(missing, why)
            if time.monotonic() >= end:
                raise ClusterError(f"{me}: waited {wait_s:g} s for {who}; start all of them, or give a longer --wait")
            if time.monotonic() - said >= SAY_S:
                log(f"{me}: waits for {who}")
                said = time.monotonic()
            time.sleep(LOOK_S)


@contextmanager
def ended_within(wait_s: float) -> Iterator[None]:
    """Let Ctrl-C, and `wait_s` seconds, end the process where native code holds Python's lock and waits.

    Signals are afterwards as they were, SIGTERM too: TensorFlow catches it, and the process could not be ended by it.
    Only the main thread may ask for it; in another one nothing is limited.
    """
    try:
        before = {one: signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM)}
    except ValueError:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, wait_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _listening(address: str, me: str, backlog: int) -> Iterator[None]:
    port = parted(address)[1]
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=dual)
    except OSError as error:
        raise ClusterError(
            f"{me}: port {port} cannot be had: {error.strerror}; see whether the worker is running already"
        ) from error
    with listener:
        yield


def _asked(address: str, end: float) -> str:
    """Why nobody answers there; empty where somebody does."""
    least = max(LOOK_S, min(ANSWER_S, end - time.monotonic()))
    try:
        socket.create_connection(parted(address), timeout=least).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _names(missing: dict[int, str], why: dict[int, str]) -> str:
    shown = [f"worker {number} at {address} ({why[number]})" for number, address in list(missing.items())[:3]]
    more = [f"{len(missing) - 3} more"] if len(missing) > 3 else []
    return ", ".join(shown + more)


def parted(address: str) -> tuple[str, int]:
    """Host and port of "host:port", or of "[host]:port" for IPv6. Raises ValueError where it is neither."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r}: no host, or no port of 1 to 65535")
    return host, int(port)


def is_address(text: str) -> bool:
    """Whether a text has a host and a port."""
    try:
        parted(text)
    except ValueError:
        return False
    return True
