"""Workers that meet before they train: real sockets on loopback."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.errors import ClusterError
from clotkit.training.rendezvous import ended_within, is_address, meet, parted

from .cluster import free_port

BUSY = """
import ctypes
from clotkit.training.rendezvous import ended_within

with ended_within({seconds}):
    print("waits", flush=True)
    ctypes.PyDLL(None).sleep(60)  # with Python's lock
"""


def test_all_who_come_go_on() -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(5)]
    met = [Future[None]() for _ in addresses]
    said: list[str] = []

    def trains(index: int) -> None:
        """Meet the others, then listen at the same port, as TensorFlow does, until all have met."""
        meet(addresses, index, 60, said.append)
        with socket.create_server(parted(addresses[index])):
            met[index].set_result(None)
            wait(met, 60)

    with ThreadPoolExecutor(len(addresses)) as pool:
        list(pool.map(trains, range(len(addresses))))
    assert all(one.done() for one in met)
    assert all(": waits for worker " in line for line in said)


def test_who_is_missing_is_named() -> None:
    free = [free_port() for _ in range(6)]
    addresses = [f"127.0.0.1:{port}" for port in free]
    said: list[str] = []
    with (
        socket.create_server(("127.0.0.1", free[1])),
        pytest.raises(ClusterError, match=r"worker 0 of 6, at .*: waited 0.1 s for worker 2 at \S+ \(Conn.*, 1 more;"),
    ):
        meet(addresses, 0, 0.1, said.append)
    assert len(said) == 1
    assert "worker 1 at" not in said[0]


def test_a_host_without_a_name_is_missing() -> None:
    addresses = [f"127.0.0.1:{free_port()}", "nobody.invalid:1"]
    with pytest.raises(ClusterError, match=r"waited 0 s for worker 1 at nobody.invalid:1 \("):
        meet(addresses, 0, 0, lambda _: None)


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}", f"127.0.0.1:{free_port()}"]
        with pytest.raises(ClusterError, match=r"port \d+ cannot be had: Address already in use"):
            meet(addresses, 0, 60, lambda _: None)


@pytest.mark.parametrize(("seconds", "sent", "code"), [(2, None, signal.SIGALRM), (60, signal.SIGINT, signal.SIGINT)])
def test_native_code_that_keeps_pythons_lock_is_ended(seconds: float, sent: signal.Signals | None, code: int) -> None:
    command = [sys.executable, "-c", BUSY.format(seconds=seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        if sent is not None:
            process.send_signal(sent)
        assert process.wait(30) == -code


def test_what_is_ended_in_time_leaves_signals_as_they_were() -> None:
    ours = (signal.SIGINT, signal.SIGALRM, signal.SIGTERM)
    before = [signal.getsignal(one) for one in ours]
    with ended_within(60):
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert [signal.getsignal(one) for one in ours] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: ended_within(60).__enter__()).result()  # a thread may not ask: nothing happens
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@given(st.one_of(st.text(), st.builds("{}:{}".format, st.text(), st.integers())))
def test_a_text_is_an_address_or_is_not(text: str) -> None:
    if is_address(text):
        host, port = parted(text)
        assert host
        assert 0 < port < 65536


def test_addresses_have_host_and_port() -> None:
    assert parted("node-3:12345") == ("node-3", 12345)
    assert parted("[::1]:80") == ("::1", 80)
    assert not any(map(is_address, ["a", "a:", ":1", "a:b", "a:0", "a:65536", "a:-1", "[]:1", ""]))
