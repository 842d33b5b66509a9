"""Tiling and scoring on a Dask cluster with an object store, on loopback: the same files as locally."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
import pytest

from clotkit.cli import main
from clotkit.cluster import Patience, scheduler_address
from clotkit.competitions import Competition
from clotkit.engines import Backend, Lost, check_backend, engine
from clotkit.errors import ClusterError, SplitError, UsageError
from clotkit.reasons import Reason
from clotkit.shards.cut import CutRequest, ShardTask, cut, shard_task
from clotkit.shards.table import read_shard_rows
from clotkit.shards.tile import TileSettings, tile_split
from clotkit.shards.verify import FaultKind, verify
from clotkit.stores import Place, store_of
from clotkit.tiling.tilers import Batch
from clotkit.workers import Task

from .cluster import KEYS, Cluster, copy_in, free_port, object_store
from .conftest import RECIPE, ROOT
from .faults.misbehaving import heavy
from .test_engines import killing
from .test_tile import killed_at_once

SLIDES = 4


@pytest.fixture(scope="module")
def keys() -> Iterator[None]:
    """Set the credentials and the address of the store in this process's environment."""
    with pytest.MonkeyPatch.context() as patch, object_store() as url:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def cluster(keys: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a scheduler and two workers that can reach the store."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start_scheduler()
        made.start_worker()
        made.start_worker()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def data(make_split: Callable[..., Path], strip_ai: Competition, keys: None, tmp_path_factory: Any) -> Path:
    """Write a train split, copy it into the store, and write a recipe beside it; read-only."""
    folder = tmp_path_factory.mktemp("data")
    make_split(folder / "train", strip_ai, split="train", slides=SLIDES)
    (folder / "tiny.toml").write_text(RECIPE)
    copy_in(folder / "train", "s3://bucket/train")
    return Path(folder)


@pytest.fixture(scope="module")
def here(data: Path, strip_ai: Competition) -> Path:
    """Cut the split on this machine, with loky."""
    tile(data, data / "train", data / "out", strip_ai, Backend(jobs=2))
    return data / "out"


def tile(
    data: Path, split: Place, out: Place, competition: Competition, backend: Backend, **more: Any
) -> dict[str, int]:
    recipe = str(data / "tiny.toml")
    settings = TileSettings(split, out, recipe, None, 2, 2048, preview=False, use_mtime=False, backend=backend)
    return tile_split(settings, competition, lambda _: None, **more)


def over(cluster: Cluster) -> Backend:
    return Backend("dask", scheduler=cluster.address)


def objects(url: str) -> dict[str, bytes]:
    """Return the objects below a URL by name."""
    filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {name.removeprefix(f"{path}/"): filesystem.cat_file(name) for name in filesystem.find(path)}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_cluster_and_a_store_give_the_same_bytes(
    data: Path, here: Path, cluster: Cluster, strip_ai: Competition
) -> None:
    found = tile(data, "s3://bucket/train", "s3://bucket/same", strip_ai, over(cluster))
    assert found == {"new": SLIDES, "up_to_date": 0, "failed": 0}
    assert objects("s3://bucket/same") == files(here)
    again = tile(data, "s3://bucket/train", "s3://bucket/same", strip_ai, over(cluster))
    assert again == {"new": 0, "up_to_date": SLIDES, "failed": 0}
    assert not list(cluster.folder.glob("clotkit-scratch-*/*"))


def test_a_lost_object_is_cut_again_alone(data: Path, here: Path, strip_ai: Competition) -> None:
    url = "s3://bucket/lost"
    copy_in(here, url)
    store, lost = store_of(url), sorted(files(here))[0]
    store.remove(lost)
    assert tile(data, "s3://bucket/train", url, strip_ai, Backend()) == {"new": 1, "up_to_date": 3, "failed": 0}
    assert objects(url) == files(here)


def test_shards_of_a_killed_client_are_kept(data: Path, here: Path, strip_ai: Competition) -> None:
    """Shards without a table are read for their sha256, not cut again."""
    url = "s3://bucket/left"
    copy_in(here, url)
    store_of(url).remove("shards.csv")
    assert tile(data, "s3://bucket/train", url, strip_ai, Backend(), work=killed_at_once)["up_to_date"] == SLIDES
    assert objects(url) == files(here)


def test_verify_finds_every_fault(data: Path, here: Path, cluster: Cluster, strip_ai: Competition) -> None:
    url, names = "s3://bucket/verify", sorted(name for name in files(here) if name.endswith(".npy"))
    copy_in(here, url)
    recipe = str(data / "tiny.toml")
    words = ["tile", "s3://bucket/train", url, "--verify", "--recipe", recipe]
    words += ["--backend", "dask", "--scheduler", cluster.address]
    assert main(words) == 0
    filesystem = fsspec.filesystem("s3")
    damaged = bytearray(files(here)[names[0]])
    damaged[200] ^= 1
    filesystem.pipe_file(f"bucket/verify/{names[0]}", bytes(damaged))
    filesystem.pipe_file(f"bucket/verify/{names[1]}", b"short")
    filesystem.rm_file(f"bucket/verify/{names[2]}")
    filesystem.pipe_file("bucket/verify/stray.npy", b"")
    found = verify("s3://bucket/train", url, recipe, strip_ai, over(cluster), lambda _: None)
    assert {fault.name: fault.kind for fault in found.faults} == {
        names[0]: FaultKind.SHA256,
        names[1]: FaultKind.SIZE,
        names[2]: FaultKind.MISSING,
        "stray.npy": FaultKind.UNLISTED,
    }
    assert main(words) == 3


def test_verify_compares_with_a_recipe_and_a_split(
    data: Path, here: Path, strip_ai: Competition, tmp_path: Path
) -> None:
    found = verify(data / "train", here, "demo", strip_ai, Backend(), lambda _: None)
    assert [fault.kind for fault in found.faults] == [FaultKind.TILING] * SLIDES
    split = Path(shutil.copytree(data / "train", tmp_path / "train"))
    lines = (split / "train.csv").read_text().splitlines(keepends=True)
    (split / "train.csv").write_text("".join(lines[:-1]))
    found = verify(split, here, None, strip_ai, Backend(), lambda _: None)
    assert [(fault.name, fault.kind) for fault in found.faults] == [(lines[-1].split(",")[0], FaultKind.LISTING)]


def test_a_bad_slide_costs_only_itself_on_a_worker(data: Path, cluster: Cluster, strip_ai: Competition) -> None:
    copy_in(data / "train", "s3://bucket/bad")
    gone, cut_short, *others = sorted((data / "train" / "train").glob("*.tif"))
    filesystem = fsspec.filesystem("s3")
    filesystem.rm_file(f"bucket/bad/train/{gone.name}")
    filesystem.pipe_file(f"bucket/bad/train/{cut_short.name}", cut_short.read_bytes()[:2000])
    found = tile(data, "s3://bucket/bad", "s3://bucket/bad-out", strip_ai, over(cluster), work=dying)
    assert found == {"new": 1, "up_to_date": 0, "failed": 3}
    codes = {row.image_id: row.code for row in read_shard_rows(store_of("s3://bucket/bad-out"), strip_ai)}
    assert (codes[gone.stem], codes[cut_short.stem]) == (Reason.DAMAGED, Reason.DAMAGED)
    assert sorted(codes[slide.stem] or "" for slide in others) == ["", Reason.CRASHED]


def dying(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Cut a slide; the process of the third slide of the split is killed."""
    assert isinstance(task, ShardTask)
    assert task.stored is not None or not task.path.exists()
    if task.stored is not None:
        names = sorted(name for name in task.stored.store.entries() if name.endswith(".tif"))
        if task.stored.name == names[1]:
            os.kill(os.getpid(), signal.SIGKILL)
    yield from shard_task(task)


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_a_slides_process_has_nothing_of_its_engine(
    backend: str, data: Path, cluster: Cluster, strip_ai: Competition, tmp_path: Path
) -> None:
    engines = {"loky": Backend("loky", 2), "dask": over(cluster)}
    out = tmp_path / "out"
    tile(data, data / "train", out, strip_ai, engines[backend], work=heavy)
    assert {row.reason for row in read_shard_rows(store_of(out), strip_ai)} == {"brought []"}


def test_a_worker_with_a_full_disk_costs_only_its_item(cluster: Cluster) -> None:
    with engine(over(cluster), lambda _: None) as workers:
        found = dict(workers.unordered(refused_by_the_disk, range(3)))
    refused = found.pop(0)
    assert isinstance(refused, Lost)
    assert refused.code is Reason.NOT_STARTED
    assert "[Errno 28]" in refused.reason
    assert found == {1: 1, 2: 2}


def refused_by_the_disk(number: int) -> int:
    """Fail for the number 0, like a worker without room for a scratch folder."""
    if number == 0:
        raise OSError(28, os.strerror(28))
    return number


def test_a_worker_that_lacks_something_ends_it(cluster: Cluster) -> None:
    with engine(over(cluster), lambda _: None) as workers, pytest.raises(ClusterError, match="clotkit"):
        list(workers.unordered(lacking, [1]))


def lacking(number: int) -> int:
    raise ModuleNotFoundError("No module named 'clotkit'")


@pytest.mark.slow_faults
def test_a_slide_that_kills_every_worker_is_given_up_alone(cluster: Cluster) -> None:
    with engine(over(cluster), lambda _: None) as workers:
        found = dict(workers.unordered(killing, range(4)))
    lost = found.pop(0)
    assert isinstance(lost, Lost)
    assert lost.code is Reason.LOST
    assert found == {1: 1, 2: 2, 3: 3}


@pytest.mark.slow_faults
def test_the_scheduler_is_lost_and_the_command_given_again(
    data: Path, here: Path, keys: None, strip_ai: Competition, tmp_path: Path
) -> None:
    """Kill the scheduler after the first shard: exit code 2; the same command cuts only the rest."""
    url, cluster = "s3://bucket/scheduler", Cluster(tmp_path)
    words = ["tile", "s3://bucket/train", url, "--recipe", str(data / "tiny.toml"), "--undated", "--backend", "dask"]
    try:
        cluster.start_scheduler()
        cluster.start_worker()
        command = [sys.executable, "-m", "clotkit.cli", *words, "--scheduler", cluster.address]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert client.stdout is not None
        while not client.stdout.readline().startswith("[1/"):
            assert client.poll() is None
        cluster.kill_scheduler()
        _, errors = client.communicate(timeout=60)
        assert client.returncode == 2
        assert re.search(r"scheduler.* [1-4] of 4 slides", errors.splitlines()[-1])
        assert "Traceback" not in errors
        with pytest.raises(SplitError, match="of 4 slides"):
            read_shard_rows(store_of(url), strip_ai)
        cluster.start_scheduler()
        cluster.start_worker()
        found = tile(data, "s3://bucket/train", url, strip_ai, over(cluster))
        assert found["up_to_date"] >= 1
        assert found["failed"] == 0
        assert objects(url) == files(here)
    finally:
        cluster.close()


def test_a_worker_with_another_kit_or_other_packages_is_refused(
    data: Path, here: Path, make_split: Callable[..., Path], strip_ai: Competition, tmp_path: Path, capsys: Any
) -> None:
    task = ShardTask("a", data / "none.tif", (), store=store_of(here), shard="a.npy", key="key")
    request = CutRequest(task, 10, 2048, 10, shard_task, lambda: False)
    with pytest.raises(ClusterError):
        cut(replace(request, versions=replace(request.versions, code="another")))
    other = tmp_path / "other" / "simplejpeg-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: simplejpeg\nVersion: 0.0.1\n")
    cluster = Cluster(tmp_path, {"PYTHONPATH": f"{other.parent}:{ROOT}"})
    test = make_split(tmp_path / "test", strip_ai, slides=1)
    try:
        cluster.start_scheduler()
        cluster.start_worker()
        on_cluster = ["--backend", "dask", "--scheduler", cluster.address]
        for words in (
            ["tile", str(data / "train"), str(tmp_path / "tiles"), "--recipe", str(data / "tiny.toml")],
            ["run", str(test), "--weights", str(ROOT / "weights" / "demo"), "--out", str(tmp_path / "run")],
        ):
            capsys.readouterr()
            assert main([*words, *on_cluster]) == 2
            line = capsys.readouterr().err.splitlines()[-1]
            assert "simplejpeg 0.0.1" in line
            assert version("simplejpeg") in line
    finally:
        cluster.close()


def test_wrong_words_are_one_line(data: Path, keys: None, strip_ai: Competition, tmp_path: Path) -> None:
    split, out, recipe = str(data / "train"), str(tmp_path / "out"), str(data / "tiny.toml")
    nobody = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(UsageError, match=nobody):
        tile(data, data / "train", tmp_path / "out", strip_ai, Backend("dask", scheduler=nobody, connect_s=0.3))
    with pytest.raises(UsageError, match="--scheduler"):
        tile(data, data / "train", tmp_path / "out", strip_ai, Backend("dask"))
    with pytest.raises(UsageError, match=r"loky.*dask"):
        tile(data, data / "train", tmp_path / "out", strip_ai, Backend(scheduler=nobody))
    with pytest.raises(SplitError, match=r"s3://nobucket/train.*train\.csv"):
        tile(data, "s3://nobucket/train", tmp_path / "out", strip_ai, Backend())
    with pytest.raises(UsageError, match="nostore://a/b"):
        tile(data, data / "train", "nostore://a/b", strip_ai, Backend())
    assert main(["tile", split, "s3://bucket/x", "--recipe", recipe, "--most", "1GB"]) == 2
    assert main(["tile", split, out]) == 2


@pytest.mark.slow
def test_a_run_on_a_cluster_scores_as_here(
    make_split: Callable[..., Path], strip_ai: Competition, cluster: Cluster, tmp_path: Path
) -> None:
    """Score slides by URL on workers; submission, report and pictures equal those of one process."""
    split = make_split(tmp_path / "test", strip_ai, slides=3)
    min((split / "test").iterdir()).write_bytes(b"no slide at all")
    copy_in(split, "s3://bucket/test")
    copy_in(ROOT / "weights" / "demo", "s3://bucket/demo")
    here, there, urls = (str(tmp_path / name) for name in ("here", "there", "urls"))
    on_cluster = ["--backend", "dask", "--scheduler", cluster.address]
    weights = str(ROOT / "weights" / "demo")
    assert main(["run", str(split), "--weights", weights, "--out", here]) == 3
    assert main(["run", "s3://bucket/test", "--weights", "s3://bucket/demo", "--out", there, *on_cluster]) == 3
    assert main(["run", "s3://bucket/test", "--weights", weights, "--out", urls, "--jobs", "1"]) == 3
    for out in (there, urls):
        assert (Path(out) / "submission.csv").read_bytes() == (Path(here) / "submission.csv").read_bytes()
        assert lines_of(out) == lines_of(here)
        assert (Path(out) / "report.html").is_file()
    started = [json.loads(line)["from_s"] for line in (Path(there) / "slides.jsonl").read_text().splitlines()]
    assert all(0 < at < 120 for at in started)
    assert main(["run", str(split), "--weights", weights, "--out", here, "--scheduler", cluster.address]) == 2


@pytest.mark.slow_faults
def test_a_run_whose_scheduler_is_lost_is_gone_on_with(
    make_split: Callable[..., Path], strip_ai: Competition, keys: None, tmp_path: Path
) -> None:
    """The run ends with one line and a valid submission; --resume on another cluster scores the rest."""
    split, out = make_split(tmp_path / "test", strip_ai, slides=6), tmp_path / "out"
    weights = str(ROOT / "weights" / "demo")
    words = ["run", str(split), "--weights", weights, "--backend", "dask"]
    cluster = Cluster(tmp_path)
    try:
        cluster.start_scheduler()
        cluster.start_worker()
        command = [sys.executable, "-m", "clotkit.cli", *words, "--out", str(out), "--scheduler", cluster.address]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert client.stdout is not None
        while not client.stdout.readline().startswith("[2/"):
            assert client.poll() is None
        cluster.kill_scheduler()
        said = client.communicate(timeout=60)[1].splitlines()[-1]
        assert client.returncode == 2
        assert said.startswith("clotkit: the scheduler is gone")
        assert said.endswith("--resume goes on")
        assert main(["check", str(out / "submission.csv"), "--sample", str(split / "sample_submission.csv")]) == 0
        scored = len(lines_of(str(out)))
        assert 2 <= scored < 6
        cluster.start_scheduler()
        cluster.start_worker()
        assert main([*words, "--out", str(out), "--scheduler", cluster.address, "--resume"]) == 0
    finally:
        cluster.close()
    assert main(["run", str(split), "--weights", weights, "--out", str(tmp_path / "here")]) == 0
    assert (out / "submission.csv").read_bytes() == (tmp_path / "here" / "submission.csv").read_bytes()


def lines_of(out: str) -> dict[str, tuple[Any, ...]]:
    """Return a run's report by slide, without seconds and megabytes."""
    lines = map(json.loads, (Path(out) / "report.jsonl").read_text().splitlines())
    return {
        line["image_id"]: (line["state"], line["codes"], line["reason"], line["tiles"], line["p"]) for line in lines
    }


def test_the_table_is_the_same_whoever_cut(here: Path) -> None:
    with (here / "shards.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done"] * SLIDES


NONE = Patience(look_s=0.2, say_s=0.0, idle_s=1.0, absent_s=1.0)


def test_a_cluster_without_workers_is_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    cluster = Cluster(tmp_path)
    try:
        cluster.start_scheduler()
        backend = Backend("dask", scheduler=cluster.address, patience=NONE)
        with engine(backend, said.append) as workers, pytest.raises(ClusterError, match="dask worker"):
            list(workers.unordered(len, ["a"]))
        assert len(said) == 2
    finally:
        cluster.close()


@pytest.mark.slow
def test_workers_that_are_all_paused_are_said_and_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    cluster = Cluster(tmp_path)
    try:
        cluster.start_scheduler()
        cluster.start_worker(memory_limit="40MB")
        backend = Backend("dask", scheduler=cluster.address, patience=NONE)
        with engine(backend, said.append) as workers, pytest.raises(ClusterError, match="--memory-limit"):
            list(workers.unordered(len, ["a"]))
        assert any("--memory-limit" in line for line in said)
    finally:
        cluster.close()


@pytest.mark.parametrize(
    "text", ["foo", "tcp://", "tcp://:8786", "host:", "tcp://host:99999", "http://host:80", "a b:1"]
)
def test_an_address_without_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="tcp://host:8786"):
        scheduler_address(text)


@pytest.mark.parametrize("text", ["host:8786", "tcp://10.0.0.1:8786", "tls://[::1]:8786", "tcp://a-b.c_d:1/"])
def test_an_address_is_taken(text: str) -> None:
    assert scheduler_address(text).endswith(text)


@pytest.mark.parametrize("content", [None, "", '{"address": "tcp://127', "[]", '{"id": 1}', '{"address": "nowhere"}'])
def test_a_scheduler_file_that_is_not_whole_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"scheduler\.json"):
        scheduler_address(str(path))
    path.write_text('{"address": "tcp://127.0.0.1:8786"}')
    assert scheduler_address(str(path)) == "tcp://127.0.0.1:8786"


def test_a_server_that_is_no_scheduler_is_refused() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UsageError, match=address):
            check_backend(Backend("dask", scheduler=address, connect_s=0.5))
