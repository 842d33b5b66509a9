"""Test that workers wait for each other before they train, over real sockets on loopback."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.errors import ClusterError
from clotkit.training.rendezvous import is_address, killed_after, rendezvous, split_address

from .cluster import free_port

BUSY = """
import ctypes
from clotkit.training.rendezvous import killed_after

with killed_after({seconds}):
    print("waits", flush=True)
    ctypes.PyDLL(None).sleep(60)  # keeps Python's lock
"""


def test_all_workers_go_on_once_all_answer() -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(5)]
    met = [Future[None]() for _ in addresses]
    lines: list[str] = []

    def start(rank: int) -> None:
        """Wait for the others, then listen at the same port, as TensorFlow does, until all have met."""
        rendezvous(addresses, rank, 60, lines.append)
        with socket.create_server(split_address(addresses[rank])):
            met[rank].set_result(None)
            wait(met, 60)

    with ThreadPoolExecutor(len(addresses)) as pool:
        list(pool.map(start, range(len(addresses))))
    assert all(one.done() for one in met)


def test_missing_workers_are_named() -> None:
    ports = [free_port() for _ in range(6)]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", ports[1])), pytest.raises(ClusterError) as raised:
        rendezvous(addresses, 0, 0.1, lines.append)
    assert len(lines) == 1
    for text in (lines[0], str(raised.value)):
        named = [address for address in addresses[1:] if address in text]
        assert named == addresses[2:5]  # not the one that answers, and 3 at most
        assert "1 more" in text
    assert "\n" not in str(raised.value)


def test_a_worker_whose_host_has_no_address_is_missing() -> None:
    addresses = [f"127.0.0.1:{free_port()}", "nobody.invalid:1"]
    with pytest.raises(ClusterError, match=r"nobody\.invalid:1"):
        rendezvous(addresses, 0, 0, lambda _: None)


def test_a_taken_port_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"]
        with pytest.raises(ClusterError, match=f"{port}.*Address already in use"):
            rendezvous(addresses, 0, 60, lambda _: None)


@pytest.mark.parametrize(("seconds", "sent", "code"), [(2, None, signal.SIGALRM), (60, signal.SIGINT, signal.SIGINT)])
def test_native_code_that_keeps_pythons_lock_is_ended(seconds: float, sent: signal.Signals | None, code: int) -> None:
    command = [sys.executable, "-c", BUSY.format(seconds=seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        if sent is not None:
            process.send_signal(sent)
        assert process.wait(30) == -code


def test_signal_handlers_are_restored() -> None:
    ours = (signal.SIGINT, signal.SIGALRM, signal.SIGTERM)
    before = [signal.getsignal(one) for one in ours]
    with killed_after(60):
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert [signal.getsignal(one) for one in ours] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_thread_may_not_set_signals_and_nothing_changes() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: killed_after(60).__enter__()).result()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@given(st.one_of(st.text(), st.builds("{}:{}".format, st.text(), st.integers())))
def test_any_text_is_an_address_or_is_not(text: str) -> None:
    if is_address(text):
        host, port = split_address(text)
        assert host
        assert 0 < port < 65536


def test_addresses_have_host_and_port() -> None:
    assert split_address("node-3:12345") == ("node-3", 12345)
    assert split_address("[::1]:80") == ("::1", 80)
    assert not any(map(is_address, ["a", "a:", ":1", "a:b", "a:0", "a:65536", "a:-1", "[]:1", ""]))
