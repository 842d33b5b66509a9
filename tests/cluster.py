"""A Dask cluster and object stores on loopback, for tests that kill processes, and for benchmarks."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .conftest import ROOT

BIN = Path(sys.executable).parent
WAIT_S = 60
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Cluster:
    """A scheduler and workers of one thread each.

    A `prefix` like `ip netns exec NAME` runs one of them on another host.
    """

    folder: Path  # of logs and scratch files
    env: Mapping[str, str] = field(default_factory=dict)  # more environment variables
    host: str = "127.0.0.1"
    port: int = 0
    scheduler: "subprocess.Popen[bytes] | None" = None
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def address(self) -> str:
        """The address of the scheduler."""
        return f"tcp://{self.host}:{self.port}"

    def start_scheduler(self, prefix: Sequence[str] = ()) -> None:
        """Start the scheduler, at its earlier address if it had one, and wait until it answers."""
        self.port = self.port or free_port(self.host)
        where = ["--host", self.host, "--port", str(self.port), "--no-dashboard"]
        self.scheduler = self._start("scheduler", [*prefix, str(BIN / "dask"), "scheduler", *where])
        with self.client():
            pass

    def start_worker(self, prefix: Sequence[str] = (), host: str | None = None, memory_limit: str | None = None) -> int:
        """Start a worker with its nanny, wait until the scheduler knows it, and return its number.

        With a `memory_limit` it has no nanny, which would end it above the limit: it is paused.
        """
        number, where = len(self.workers), ["--host", host or self.host, "--no-dashboard"]
        size = ["--nthreads", "1", "--nworkers", "1", "--name", f"worker-{number}"]
        local = ["--local-directory", str(self.folder / f"worker-{number}")]
        limit = ["--memory-limit", memory_limit, "--no-nanny"] if memory_limit else []
        command = [*prefix, str(BIN / "dask"), "worker", self.address, *where, *size, *local, *limit]
        self.workers.append(self._start(f"worker-{number}", command))
        with self.client() as client:
            client.wait_for_workers(sum(worker.poll() is None for worker in self.workers), timeout=WAIT_S)
        return number

    def stop_worker(self) -> None:
        """Retire the newest worker."""
        with self.client() as client:
            known = client.scheduler_info(n_workers=-1)["workers"]
            name = f"worker-{len(self.workers) - 1}"
            client.retire_workers([address for address, facts in known.items() if facts["name"] == name])
        end(self.workers.pop())

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Yield a client of the scheduler."""
        from distributed import Client

        with Client(self.address, timeout=WAIT_S, set_as_default=False) as client:
            yield client

    def worker_pids(self) -> dict[str, int]:
        """Return the ids of the processes that do the work, the nannies' children, by address."""
        with self.client() as client:
            return dict(client.run(os.getpid))

    def kill_scheduler(self) -> None:
        """Kill the scheduler and the workers, which would end with it."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()
        for worker in self.workers:
            end(worker)
        self.workers.clear()

    def close(self) -> None:
        """Kill everything."""
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            end(process)

    def _start(self, name: str, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        env = {**os.environ, **KEYS, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder), **self.env}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=env, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )  # a session of its own, so that end() reaches its children


def end(process: "subprocess.Popen[Any]") -> None:
    """Kill a process and its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def object_store(bucket: str = "bucket", host: str = "127.0.0.1") -> Iterator[str]:
    """Run an S3 server with one bucket in this process, and yield its address."""
    import boto3
    import requests
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
    server.start()
    try:
        url = f"http://{host}:{server.get_host_and_port()[1]}"
        # The objects of an earlier server in this process are still there.
        requests.post(f"{url}/moto-api/reset", timeout=60).raise_for_status()
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=bucket)
        clear_filesystems()
        yield url
    finally:
        server.stop()


@contextmanager
def google_store(bucket: str = "bucket") -> Iterator[str]:
    """Run a Google Cloud Storage server with one bucket in this process, and yield its address."""
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        clear_filesystems()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def clear_filesystems() -> None:
    """Clear fsspec's cached file systems, which keep the addresses of an earlier environment."""
    from fsspec import get_filesystem_class

    for protocol in ("s3", "gs"):
        get_filesystem_class(protocol).clear_instance_cache()


def copy_in(folder: Path, url: str) -> None:
    """Copy a local folder's files into an object store."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
        filesystem.put_file(str(file), f"{path}/{file.relative_to(folder).as_posix()}")


@dataclass(frozen=True)
class Host:
    """A host for a process: a network namespace, or this machine."""

    prefix: tuple[str, ...]  # goes before the command
    host: str  # its address


@contextmanager
def hosts(count: int) -> Iterator[tuple[str, list[Host]]]:
    """Yield this machine's address, and `count` hosts that reach it: network namespaces on a bridge.

    Without the right to create them (root on Linux) all hosts are on loopback.
    """
    tag, made = f"ck{os.getpid() % 100_000}", list[list[str]]()

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def undo(*words: str) -> None:
        made.append(["ip", *words])

    try:
        ip("link", "add", f"{tag}b", "type", "bridge")
        undo("link", "del", f"{tag}b")
        host, found = "10.213.77.1", list[Host]()
        ip("addr", "add", f"{host}/24", "dev", f"{tag}b")
        ip("link", "set", f"{tag}b", "up")
        for number in range(count):
            name, outer, inner = f"{tag}n{number}", f"{tag}v{number}", f"{tag}p{number}"
            address = f"10.213.77.{number + 2}"
            ip("netns", "add", name)
            undo("netns", "del", name)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            ip("link", "set", inner, "netns", name)
            ip("link", "set", outer, "master", f"{tag}b", "up")
            for words in (["addr", "add", f"{address}/24", "dev", inner], ["link", "set", inner, "up"]):
                ip("netns", "exec", name, "ip", *words)
            ip("netns", "exec", name, "ip", "link", "set", "lo", "up")
            found.append(Host(("ip", "netns", "exec", name), address))
    except (OSError, subprocess.CalledProcessError):
        host, found = "127.0.0.1", [Host((), "127.0.0.1")] * count
    try:
        yield host, found
    finally:
        for command in reversed(made):
            subprocess.run(command, check=False, capture_output=True)
