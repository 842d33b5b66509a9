"""Wait until every worker of a training run answers, before TensorFlow starts its cluster.

TensorFlow waits for missing workers forever and prints nothing while it does.
"""

import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clotkit.errors import ClusterError
from clotkit.progress import Log

POLL_S = 0.2  # between two attempts to connect
CONNECT_TIMEOUT_S = 2.0
LOG_EVERY_S = 30.0  # between two lines that name the missing workers
MAX_NAMED = 3  # missing workers that a line names


def rendezvous(addresses: Sequence[str], rank: int, wait_s: float, log: Log) -> None:
    """Wait until every worker answers, and answer at this worker's own port meanwhile.

    `addresses` are "host:port" by rank. Each worker has to be reached once. A worker that has reached all of them goes
    on, and TensorFlow then listens at the same port. Raises ClusterError, with the missing workers, after `wait_s`
    seconds, and when this worker's port is taken.
    """
    this_worker = f"worker {rank} of {len(addresses)}, at {addresses[rank]}"
    deadline = time.monotonic() + wait_s
    last_log = -LOG_EVERY_S
    missing = {number: address for number, address in enumerate(addresses) if number != rank}
    with _listening(addresses[rank], this_worker, len(addresses)):
        while True:
            failures = {number: _connect_failure(address, deadline) for number, address in missing.items()}
            missing = {number: address for number, address in missing.items() if failures[number]}
            if not missing:
                return
            names = _names(missing, failures)
            if time.monotonic() >= deadline:
                raise ClusterError(
                    f"{this_worker}: waited {wait_s:g} s for {names}; start all of them, or give a longer --wait"
                )
            if time.monotonic() - last_log >= LOG_EVERY_S:
                log(f"{this_worker}: waits for {names}")
                last_log = time.monotonic()
            time.sleep(POLL_S)


@contextmanager
def killed_after(wait_s: float) -> Iterator[None]:
    """Let SIGINT, SIGTERM and, after `wait_s` seconds, SIGALRM end the process while inside.

    The signals have their default actions, because Python's own handlers cannot run while native code waits with
    Python's lock. Afterwards the handlers are those of before; SIGTERM is among them because TensorFlow replaces its
    handler, and the process would ignore it. Only the main thread may set signals; in another one nothing changes.
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


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port", or "[host]:port" for IPv6. Raises ValueError for another form."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r}: no host, or no port of 1 to 65535")
    return host, int(port)


def is_address(text: str) -> bool:
    """Tell if a text has a host and a port."""
    try:
        split_address(text)
    except ValueError:
        return False
    return True


@contextmanager
def _listening(address: str, this_worker: str, backlog: int) -> Iterator[None]:
    """Listen at the port of `address`, on all interfaces. Raises ClusterError when the port is taken."""
    port = split_address(address)[1]
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=dual)
    except OSError as error:
        raise ClusterError(
            f"{this_worker}: cannot listen at port {port}: {error.strerror}; check that this worker is not running yet"
        ) from error
    with listener:
        yield


def _connect_failure(address: str, deadline: float) -> str:
    """Return why nobody answers at an address, or "" when somebody does."""
    timeout_s = max(POLL_S, min(CONNECT_TIMEOUT_S, deadline - time.monotonic()))
    try:
        socket.create_connection(split_address(address), timeout=timeout_s).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _names(missing: dict[int, str], failures: dict[int, str]) -> str:
    named = list(missing.items())[:MAX_NAMED]
    shown = [f"worker {number} at {address} ({failures[number]})" for number, address in named]
    more = [f"{len(missing) - MAX_NAMED} more"] if len(missing) > MAX_NAMED else []
    return ", ".join(shown + more)
