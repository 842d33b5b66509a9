"""Object stores and clusters that answer badly, or not at all."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clotkit.cli import main
from clotkit.cluster import Patience
from clotkit.competitions import load_competition
from clotkit.engines import Backend, check_backend, engine
from clotkit.errors import ClusterError, UsageError
from clotkit.shards.shard import read_shard
from clotkit.synthetic.phantom import write_split

from ...cluster import KEYS, Cluster, clear_filesystems, free_port, google_store, object_store
from ...conftest import RECIPE, ROOT
from ...object_server import Handler, Objects, object_server
from ...test_downloads import changed_once, cut_once, short_ranges, shorter, slow_down
from ...test_stores import GOOGLE
from . import Reported

LARGE_BYTES = 60 * 2**20  # above it libraries fetch in ranges
Answer = Callable[[Handler, bytes], None]


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, for this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        clear_filesystems()
        yield


def split_in(folder: Path, size_bytes: int) -> Path:
    """Write a train split of one slide, and append zeros, which no reader looks at, to that size."""
    write_split(folder / "train", "train", 1, 5, load_competition(), size="1280x1920", log=lambda _: None)
    (folder / "tiny.toml").write_text(RECIPE)
    (slide,) = (folder / "train" / "train").glob("*.tif")
    with slide.open("ab") as file:
        file.truncate(max(size_bytes, slide.stat().st_size))
    return folder / "train"


def tile(folder: Path, split: str, out: str) -> int:
    """Cut a split with `clotkit tile`, and return the exit code."""
    words = ["tile", split, str(folder / out), "--recipe", str(folder / "tiny.toml"), "--undated"]
    return main([*words, "--jobs", "1"])


def served(split: Path, answer: Answer) -> Objects:
    """Return the files of a split, its slide answered in some way."""
    content = {path.relative_to(split).as_posix(): path.read_bytes() for path in split.rglob("*") if path.is_file()}
    return Objects(content, {name: answer for name in content if name.endswith(".tif")})


def fetched_whole(answer: Answer, size_bytes: int, folder: Path) -> str:
    """Cut a slide of a bucket that answers badly; the tiles are those of the local file."""
    split = split_in(folder, size_bytes)
    assert tile(folder, str(split), "here") == 0
    with object_server(served(split, answer)) as url, environment(KEYS | {"AWS_ENDPOINT_URL": url}):
        code = tile(folder, "s3://bucket/top", "there")
    assert code == 0, code
    here, there = (read_shard(next((folder / out).glob("*.npy"))).tiles for out in ("here", "there"))
    assert np.array_equal(here, there)
    return "fetched whole; the tiles are those of the local file"


def not_fetched(answer: Answer, folder: Path) -> str:
    """Cut a slide of a bucket that never gives it whole."""
    split = split_in(folder, 0)
    with object_server(served(split, answer)) as url, environment(KEYS | {"AWS_ENDPOINT_URL": url}):
        code = tile(folder, "s3://bucket/top", "there")
    assert code == 3, code
    assert not list((folder / "there").glob("*.npy"))
    return "the slide failed by name, exit code 3"


def ended(words: list[str]) -> str:
    """Run a command and see that it ends with 2 and one line."""
    run = subprocess.run([sys.executable, "-m", "clotkit.cli", *words], capture_output=True, text=True, check=False)
    lines = run.stderr.splitlines()
    assert (run.returncode, len(lines)) == (2, 1), run.stderr
    assert "://nobucket/" in lines[0]
    return "one line, exit code 2"


def no_bucket(words: Callable[[Path], list[str]], google: bool, folder: Path) -> str:
    """Name a bucket that is not there, for slides, weights or shards."""
    split_in(folder, 0)
    store, name = (google_store(), "STORAGE_EMULATOR_HOST") if google else (object_store(), "AWS_ENDPOINT_URL")
    with store as url, environment(KEYS | GOOGLE | {name: url}):
        return ended(words(folder))


def no_server(protocol: str, folder: Path) -> str:
    """Name a bucket of a server that refuses connections."""
    nobody = f"http://127.0.0.1:{free_port()}"
    with environment(KEYS | GOOGLE | {"AWS_ENDPOINT_URL": nobody, "STORAGE_EMULATOR_HOST": nobody}):
        return ended(slides(protocol, folder))


def slides(protocol: str, folder: Path) -> list[str]:
    """Return the words of a run on slides of a bucket."""
    weights = str(ROOT / "weights" / "demo")
    return ["run", f"{protocol}://nobucket/x", "--weights", weights, "--out", str(folder / "out")]


def weights(protocol: str, folder: Path) -> list[str]:
    """Return the words of a run with weights of a bucket."""
    return ["run", str(folder / "train"), "--weights", f"{protocol}://nobucket/w", "--out", str(folder / "out")]


def shards(protocol: str, folder: Path) -> list[str]:
    """Return the words that cut shards into a bucket."""
    return ["tile", str(folder / "train"), f"{protocol}://nobucket/o", "--recipe", str(folder / "tiny.toml")]


def wrong_scheduler(text: str, content: str | None, folder: Path) -> str:
    """Name a scheduler by an address or a file."""
    split = split_in(folder, 0)
    if content is not None:
        (folder / text).write_text(content)
    where = str(folder / text) if text.endswith(".json") else text
    words = ["tile", str(split), str(folder / "out"), "--recipe", str(folder / "tiny.toml")]
    code = main([*words, "--backend", "dask", "--scheduler", where])
    assert code == 2, code
    return "one line, exit code 2"


def no_scheduler(folder: Path) -> str:
    """Name the address of a server that is no scheduler: it accepts and says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        try:
            check_backend(Backend("dask", scheduler=f"tcp://127.0.0.1:{silent.getsockname()[1]}", connect_s=0.5))
        except UsageError:
            return "refused within the limit of a connection"
    raise AssertionError("taken for a scheduler")


def stands_still(memory_limit: str | None, folder: Path) -> str:
    """Give items to a cluster whose only worker is paused, or that has none."""
    said: list[str] = []
    cluster = Cluster(folder)
    try:
        cluster.start_scheduler()
        if memory_limit:
            cluster.start_worker(memory_limit=memory_limit)
        patience = Patience(look_s=0.2, say_s=0.0, idle_s=1.0, absent_s=1.0)
        with engine(Backend("dask", scheduler=cluster.address, patience=patience), said.append) as workers:
            try:
                list(workers.unordered(len, ["a"]))
            except ClusterError:
                wanted = "--memory-limit" if memory_limit else "dask worker"
                assert any(wanted in line for line in said[1:]), said
                return "said in the log with what to change, then given up"
    finally:
        cluster.close()
    raise AssertionError("it worked")


WHOLE, ONE_LINE = "the slide is fetched whole", "one line, exit code 2"
CASES = [
    Reported("a bucket answers ranges shorter than asked", WHOLE, partial(fetched_whole, short_ranges, LARGE_BYTES),
             True),
    Reported("a connection is cut in a large slide", WHOLE, partial(fetched_whole, cut_once, LARGE_BYTES), True),
    Reported("a connection is cut in a small slide", WHOLE, partial(fetched_whole, cut_once, 0)),
    Reported("a busy bucket answers SlowDown", WHOLE, partial(fetched_whole, slow_down, 0), True),
    Reported("an answer ends early, and says so", "the slide fails by name", partial(not_fetched, shorter)),
    Reported("a slide is replaced during its download", "the slide fails by name",
             partial(not_fetched, changed_once), True),
    *[
        Reported(f"{what} in a bucket that is not there, {protocol}", ONE_LINE,
                 partial(no_bucket, partial(words, protocol), protocol == "gs"), (what, protocol) != ("shards", "s3"))
        for what, words in (("slides", slides), ("weights", weights), ("shards", shards))
        for protocol in ("s3", "gs")
    ],
    Reported("a store that refuses connections, s3", ONE_LINE, partial(no_server, "s3"), True),
    Reported("a store that refuses connections, gs", ONE_LINE, partial(no_server, "gs"), True),
    Reported("a scheduler without host and port", ONE_LINE, partial(wrong_scheduler, "foo", None)),
    Reported("a scheduler file that is missing", ONE_LINE, partial(wrong_scheduler, "scheduler.json", None)),
    Reported("a scheduler file that is half written", ONE_LINE,
             partial(wrong_scheduler, "scheduler.json", json.dumps({"address": "tcp://127.0.0.1:1"})[:-6])),
    Reported("a server that is no Dask scheduler", "refused within seconds", no_scheduler),
    Reported("all workers are paused", "said, then given up", partial(stands_still, "40MB")),
    Reported("no worker ever comes", "said, then given up", partial(stands_still, None)),
]  # fmt: skip
