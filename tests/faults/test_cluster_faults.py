"""Tiling over two workers and an object store: whatever is killed, the shards are the same."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.shards.table import read_shard_rows
from clotkit.stores import store_of
from tests.cluster import KEYS, Cluster, copy_in, end, hosts, object_store
from tests.conftest import RECIPE

SLIDES = 60
URL, OUT = "s3://bucket/train", "s3://bucket/out"


@contextmanager
def client(words: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """Run clotkit in a session of its own, with its output piped."""
    command = [sys.executable, "-m", "clotkit.cli", *words]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        yield process
    finally:
        end(process)
        for one in (process.stdout, process.stderr):
            if one is not None:
                one.close()


def read_until(process: "subprocess.Popen[str]", number: int) -> None:
    """Read the lines of a run until `number` slides have ended."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"[{number}/"):
            return
    raise AssertionError(f"the run ended before {number} slides: {process.stderr and process.stderr.read()}")


def done_in(out: str) -> int:
    return len([name for name in store_of(out).entries() if name.endswith(".npy")])


@pytest.mark.slow_faults
def test_workers_a_scheduler_and_a_client_are_killed(
    strip_ai: Competition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kill one worker twice, then the scheduler, then the client; the same command continues each time."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    split, here = tmp_path / "train", tmp_path / "here"
    size = ["--size", "1280x1920", "--seed", "9"]
    assert main(["phantom", str(split), "--split", "train", "--slides", str(SLIDES), *size]) == 0
    assert main(["tile", str(split), str(here), "--recipe", str(recipe), "--undated"]) == 0
    with hosts(2) as (host, (one, two)), object_store(host=host) as address:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": address}).items():
            monkeypatch.setenv(name, value)
        copy_in(split, URL)
        cluster = Cluster(tmp_path, host=host)
        words = ["tile", URL, OUT, "--recipe", str(recipe), "--undated", "--backend", "dask"]
        try:
            cluster.start_scheduler()
            cluster.start_worker(one.prefix, one.host)
            cluster.start_worker(two.prefix, two.host)
            words += ["--scheduler", cluster.address]
            with client(words) as run:
                for number in (5, 15):
                    read_until(run, number)
                    pid = next(pid for where, pid in cluster.worker_pids().items() if f"//{one.host}:" in where)
                    psutil.Process(pid).kill()
                read_until(run, 25)
                assert not [line for line in cut_lines(run, 26) if "failed" in line]
                cluster.kill_scheduler()
                errors = run.communicate(timeout=60)[1]
                assert (run.returncode, errors.count("\n")) == (2, 1)
            done = done_in(OUT)
            assert 25 <= done < SLIDES
            cluster.start_scheduler()
            cluster.start_worker(one.prefix, one.host)
            cluster.start_worker(two.prefix, two.host)
            with client(words) as run:
                read_until(run, 5)
            assert done + 5 <= done_in(OUT) < SLIDES
            capsys.readouterr()
            assert main(words) == 0
            cut_now = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
            assert len(cut_now) <= SLIDES - done - 5
            assert main(["tile", URL, OUT, "--verify", "--recipe", str(recipe), *words[-4:]]) == 0
            assert capsys.readouterr().out.splitlines()[-1].startswith(f"{OUT}: {SLIDES} shards, ")
        finally:
            cluster.close()
        rows = read_shard_rows(store_of(OUT), strip_ai)
        assert [row.state for row in rows] == ["done"] * SLIDES
        names = sorted(store_of(OUT).entries())
        assert names == sorted(path.name for path in here.iterdir())
        for name in names:
            with store_of(OUT).open(name) as file:
                assert file.read() == (here / name).read_bytes()


def cut_lines(run: "subprocess.Popen[str]", number: int) -> list[str]:
    """Return the lines of a run until `number` slides have ended."""
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(line)
        if line.startswith(f"[{number}/"):
            break
    return lines
