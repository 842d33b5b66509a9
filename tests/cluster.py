"""A Dask cluster and an S3 on loopback, as real processes: for tests that kill them, and for benchmarks."""

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
    """A scheduler and workers of one thread each; `prefix` stands before every command (`ip netns exec NAME`)."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 0
    scheduler: "subprocess.Popen[bytes] | None" = None
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return f"tcp://{self.host}:{self.port}"

    def start_scheduler(self, prefix: Sequence[str] = ()) -> None:
        """Start it, at the address that it had before if there was one, and wait until it answers."""
        self.port = self.port or free_port(self.host)
        where = ["--host", self.host, "--port", str(self.port), "--no-dashboard"]
        self.scheduler = self._start("scheduler", [*prefix, str(BIN / "dask"), "scheduler", *where])
        with self.client():
            pass

    def start_worker(self, prefix: Sequence[str] = (), host: str | None = None) -> int:
        """Start a worker with its nanny, wait until it is known; return its number."""
        number, where = len(self.workers), ["--host", host or self.host, "--no-dashboard"]
        size = ["--nthreads", "1", "--nworkers", "1", "--name", f"worker-{number}"]
        local = ["--local-directory", str(self.folder / f"worker-{number}")]
        command = [*prefix, str(BIN / "dask"), "worker", self.address, *where, *size, *local]
        self.workers.append(self._start(f"worker-{number}", command))
        with self.client() as client:
            client.wait_for_workers(sum(worker.poll() is None for worker in self.workers), timeout=WAIT_S)
        return number

    def stop_worker(self) -> None:
        """End the newest one, as who wants to keep the others would."""
        with self.client() as client:
            known = client.scheduler_info(n_workers=-1)["workers"]
            name = f"worker-{len(self.workers) - 1}"
            client.retire_workers([address for address, said in known.items() if said["name"] == name])
        end(self.workers.pop())

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of the scheduler's."""
        from distributed import Client

        with Client(self.address, timeout=WAIT_S, set_as_default=False) as client:
            yield client

    def worker_pids(self) -> dict[str, int]:
        """The processes that do the work, the nannies' children, by their addresses."""
        with self.client() as client:
            return dict(client.run(os.getpid))

    def kill_scheduler(self) -> None:
        """SIGKILL it; the workers end with it, as Dask's do."""
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()
        for worker in self.workers:
            end(worker)
        self.workers.clear()

    def close(self) -> None:
        """End everything."""
        for process in [*self.workers, *([self.scheduler] if self.scheduler else [])]:
            end(process)

    def _start(self, name: str, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        env = {**os.environ, **KEYS, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder), **self.env}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=env, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )  # of its own: what it started goes with it


def end(process: "subprocess.Popen[Any]") -> None:
    """SIGKILL a process and all of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def object_store(bucket: str = "bucket", host: str = "127.0.0.1") -> Iterator[str]:
    """An S3 in this process with one bucket; its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
    server.start()
    try:
        url = f"http://{host}:{server.get_host_and_port()[1]}"
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket=bucket)
        _forget()
        yield url
    finally:
        server.stop()


@contextmanager
def google_store(bucket: str = "bucket") -> Iterator[str]:
    """A Google Cloud Storage in this process with one bucket; its address."""
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        _forget()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def _forget() -> None:
    """fsspec keeps its file systems for the process, with the addresses that the environment had for them then."""
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
class Place:
    """Where a process runs: what stands before its command, and its address there."""

    prefix: tuple[str, ...]
    host: str


@contextmanager
def places(count: int) -> Iterator[tuple[str, list[Place]]]:
    """This machine's address and `count` places that reach it: network namespaces on a bridge, like other machines.

    Without the right to make them (root on Linux) all are on loopback.
    """
    tag, made = f"ck{os.getpid() % 100_000}", list[list[str]]()

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def undo(*words: str) -> None:
        made.append(["ip", *words])

    try:
        ip("link", "add", f"{tag}b", "type", "bridge")
        undo("link", "del", f"{tag}b")
        host, found = "10.213.77.1", list[Place]()
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
            found.append(Place(("ip", "netns", "exec", name), address))
    except (OSError, subprocess.CalledProcessError):
        host, found = "127.0.0.1", [Place((), "127.0.0.1")] * count
    try:
        yield host, found
    finally:
        for command in reversed(made):
            subprocess.run(command, check=False, capture_output=True)
