"""Test training from shards, on virtual devices and with two processes on loopback.

The curves do not depend on the number of replicas: they are those of one process with the same global batch.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.data.sources import read_source
from clotkit.errors import ConfigError, UsageError
from clotkit.members.loading import load_member
from clotkit.members.networks import build_network
from clotkit.training.devices import DistributedContext, read_cluster, training_scope
from clotkit.training.fit import fit
from clotkit.training.train import TrainSettings, train

from .cluster import KEYS, copy_in, free_port, object_store
from .shard_folders import SHARDED, write_recipe, write_shards
from .test_train import mark_first_epoch

WITHIN = 1e-4
TWO_CPUS = """
import sys
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from clotkit.cli import main

for arguments in (argument.split() for argument in sys.argv[1:]):
    assert main(["train", *arguments]) == 0
print(len(tf.config.list_logical_devices("CPU")), "devices")
"""


def curves_of(member: Path) -> pd.DataFrame:
    return pd.read_csv(member / "history.csv")


def assert_same_curves(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(curves_of(one), curves_of(other), rtol=0, atol=WITHIN)


def start_worker(index: int, addresses: Sequence[str], arguments: Sequence[str]) -> "subprocess.Popen[str]":
    """Start `clotkit train` as one of several workers."""
    cluster = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
    return subprocess.Popen(
        [sys.executable, "-m", "clotkit.cli", "train", *arguments],
        env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(arguments: Sequence[str]) -> "list[subprocess.Popen[str]]":
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    return [start_worker(index, addresses, arguments) for index in range(2)]


def outputs_of(workers: "Sequence[subprocess.Popen[str]]", code: int = 0) -> list[str]:
    """Return the outputs of workers, which must all end with this exit code."""
    said = [worker.communicate(timeout=150)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [code] * len(workers), "\n".join(said)
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, strip_ai: Competition) -> Path:
    """Return a folder of recipes, `shards`, and the member `alone`, trained by one process on one device."""
    top = tmp_path_factory.mktemp("scale")
    alone = write_recipe(top / "alone.toml")
    other = (
        'feed = "memory"',
        'schedule = "plateau"',
        "plateau_patience = 1",
        "patience = 2",
        'balance = "oversample"',
        "ema = 0.8",
    )
    mixed = SHARDED.replace("shift = 0.1", "shift = 0.1\nmixup = 0.4\ncutmix = 1.0\nmix_share = 0.7")
    write_recipe(top / "memory.toml", *other, text=mixed)
    write_recipe(top / "mirrored.toml", 'strategy = "mirrored"')
    write_recipe(top / "mirrored_memory.toml", 'strategy = "mirrored"', *other, text=mixed)
    write_recipe(top / "workers.toml", 'strategy = "multi_worker"')
    write_shards(top / "shards", alone, strip_ai)
    train(TrainSettings(alone, top / "shards", top / "alone"), strip_ai, lambda _: None)
    return top


def test_evaluating_a_member_trained_from_shards_gives_its_metrics(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(folder / "alone"), "--data", str(folder / "shards"), "--out", str(tmp_path), "--json"]
    assert main(command) == 0
    found, wanted = json.loads(capsys.readouterr().out), json.loads((folder / "alone" / "metrics.json").read_text())
    for name in ("weighted_log_loss", "accuracy", "auc"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-5)
    losses = curves_of(folder / "alone")["loss"]
    assert losses.iloc[3] < losses.iloc[0]


@pytest.mark.soak
def test_two_virtual_devices_learn_as_one(folder: Path, tmp_path: Path, strip_ai: Competition) -> None:
    shards = folder / "shards"
    settings = TrainSettings(str(folder / "memory.toml"), shards, tmp_path / "memory")
    train(settings, strip_ai, lambda _: None)
    trained = [
        f"{folder / recipe}.toml --data {shards} --out {tmp_path / recipe}"
        for recipe in ("mirrored", "mirrored_memory")
    ]
    ended = subprocess.run([sys.executable, "-c", TWO_CPUS, *trained], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "2 devices" in ended.stdout
    assert_same_curves(tmp_path / "mirrored", folder / "alone")
    assert_same_curves(tmp_path / "mirrored_memory", tmp_path / "memory")


@pytest.mark.slow
def test_two_processes_learn_as_one(folder: Path, tmp_path: Path, strip_ai: Competition) -> None:
    arguments = [str(folder / "workers.toml"), "--data", str(folder / "shards"), "--out", str(tmp_path / "two")]
    chief, other = outputs_of(start_two(arguments))
    assert_same_curves(tmp_path / "two", folder / "alone")
    assert "fold 2 of 2" in chief
    assert "fold" not in other
    assert not list((tmp_path / "two").glob(".training*"))
    tiles = read_source(load_recipe(folder / "memory.toml"), folder / "shards", strip_ai, None, lambda _: None).tiles
    one, two = (
        load_member(place, strip_ai.classes.names).predict(tiles) for place in (folder / "alone", tmp_path / "two")
    )
    np.testing.assert_allclose(two, one, rtol=0, atol=WITHIN)


@pytest.mark.parametrize(
    "lines",
    [
        ['balance = "oversample"'],
        ["ema = 0.8", 'optimizer = "sgd"', "warmup_epochs = 1", 'keep = "last"'],
    ],
)
def test_an_interrupted_fit_resumes_with_the_same_batches(
    lines: list[str], folder: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    import keras

    text = SHARDED.replace("shift = 0.1", "shift = 0.1\nmixup = 0.4") if "ema = 0.8" in lines else SHARDED
    recipe = load_recipe(write_recipe(tmp_path / "often.toml", *lines, text=text))
    tiles = read_source(recipe, folder / "shards", strip_ai, None, lambda _: None)
    seen = np.arange(len(tiles)) % 4 > 0

    def fitted(name: str, breaks_after: int = 0) -> list[np.ndarray]:
        def on_epoch(epoch: int, logs: dict[str, float]) -> None:
            if epoch == breaks_after:
                raise KeyboardInterrupt

        keras.utils.set_random_seed(1)
        with training_scope():
            network = build_network(recipe.model[0], recipe.tiling.tile_px, 2)
            parts = tiles.where(seen), tiles.where(~seen)
            fit(network, *parts, recipe, seed=1, checkpoints_dir=tmp_path / name, on_epoch=on_epoch)
        return [np.asarray(value) for value in network.model.get_weights()]

    with pytest.raises(KeyboardInterrupt):
        fitted("broken", breaks_after=2)
    assert len(pd.read_csv(tmp_path / "broken" / "history.csv")) == 2
    for found, wanted in zip(fitted("broken"), fitted("whole"), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_training_from_an_object_store_fetches_each_shard_once(
    folder: Path, tmp_path: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    with object_store() as address:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        copy_in(folder / "shards", "s3://bucket/tiles")
        settings = TrainSettings(
            str(folder / "alone.toml"), "s3://bucket/tiles", tmp_path / "one", cache=tmp_path / "cache"
        )
        train(settings, strip_ai, lambda _: None)
        assert_same_curves(tmp_path / "one", folder / "alone")
        fetched = sorted((tmp_path / "cache").iterdir())
        assert len(fetched) == 16
        kept, damaged = fetched[0], fetched[1]
        before = kept.stat().st_mtime_ns
        damaged.write_bytes(damaged.read_bytes()[:-1])
        fetched[2].unlink()
        again = TrainSettings(
            str(folder / "memory.toml"), "s3://bucket/tiles", tmp_path / "two", cache=tmp_path / "cache"
        )
        read_source(load_recipe(again.recipe), again.data, strip_ai, None, lambda _: None, again.cache)
        assert sorted((tmp_path / "cache").iterdir()) == fetched
        assert kept.stat().st_mtime_ns == before
        filesystem = fsspec.filesystem("s3", use_listings_cache=False)
        for path in (folder / "shards").glob("*.npy"):
            filesystem.rm_file(f"bucket/tiles/{path.name}")
        tiles = read_source(load_recipe(again.recipe), again.data, strip_ai, None, lambda _: None, again.cache)
        assert len(tiles) == 183


def test_a_damaged_shard_is_named_when_it_is_read(
    folder: Path, tmp_path: Path, strip_ai: Competition, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path / "shards", str(folder / "alone.toml"), strip_ai)
    broken = sorted(shards.glob("*.npy"))[-1]
    data = bytearray(broken.read_bytes())
    data[200] ^= 1
    broken.write_bytes(data)
    assert main(["train", str(folder / "alone.toml"), "--data", str(shards), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert str(broken) in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "TF_CONFIG"),
        ("{", "TF_CONFIG.*JSONDecodeError"),
        ("[]", "TF_CONFIG.*TypeError"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG.*KeyError"),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            r"a:1.*a:1",
        ),
        ('{"cluster": {"worker": ["a:1"], "ps": []}, "task": {"type": "worker", "index": 0}}', "ps"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "0 to 1"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "chief"),
    ],
)
def test_a_malformed_cluster_is_refused(text: str | None, match: str) -> None:
    with pytest.raises(UsageError, match=match) as raised:
        read_cluster(text)
    assert "\n" not in str(raised.value)


def test_a_cluster_is_read() -> None:
    text = '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
    assert read_cluster(text) == (("a:1", "b:2"), 1)


def test_missing_shards_and_clusters_are_errors_before_a_file_is_written(
    folder: Path, tmp_path: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(ConfigError, match="shards"):
        train(TrainSettings(str(folder / "alone.toml"), tmp_path / "raw", tmp_path / "out"), strip_ai)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UsageError, match="TF_CONFIG"):
        train(TrainSettings(str(folder / "workers.toml"), folder / "shards", tmp_path / "out"), strip_ai)
    assert not (tmp_path / "out").exists()
    npz = SHARDED.replace("[training]", '[data]\nsource = "npz"\nclasses = ["a", "b"]\n\n[training]')
    with pytest.raises(ConfigError, match=r"training\.feed.*npz"):
        load_recipe(write_recipe(tmp_path / "npz.toml", text=npz))
    with pytest.raises(ConfigError, match=r"training\.balance.*synthetic"):
        load_recipe(write_recipe(tmp_path / "smote.toml", 'balance = "synthetic"'))
    with pytest.raises(ConfigError, match=r"training\.strategy.*many.*multi_worker"):
        load_recipe(write_recipe(tmp_path / "many.toml", 'strategy = "many"'))


def test_a_single_worker_gathers_its_own_numbers() -> None:
    assert DistributedContext().all_gather([3, 1]).tolist() == [[3, 1]]
    assert DistributedContext().is_chief
    assert DistributedContext(rank=1, world_size=3, local_replicas=2).replicas == 6


def fall_behind(one: Path, other: Path) -> None:
    """Put one worker an epoch behind the other, as if it had been killed before it wrote its history."""
    lines = one.read_text().splitlines(keepends=True)
    if len(lines) == len(other.read_text().splitlines()):
        one.write_text("".join(lines[:-1]))


@pytest.mark.soak
@pytest.mark.parametrize("killed", [0, 1])
def test_workers_resume_after_one_was_killed(folder: Path, tmp_path: Path, killed: int) -> None:
    text = SHARDED.replace("epochs = 4", "epochs = 30")
    alone = write_recipe(tmp_path / "alone.toml", text=text)
    recipe = write_recipe(tmp_path / "workers.toml", 'strategy = "multi_worker"', text=text)
    out = tmp_path / "two"
    arguments = [recipe, "--data", str(folder / "shards"), "--out", str(out)]
    workers = start_two(arguments)
    history = out / (".training" if killed == 0 else ".training-1") / "0-0" / "history.csv"
    end = time.monotonic() + 120
    while not (history.is_file() and len(history.read_text().splitlines()) > 5):
        assert all(worker.poll() is None for worker in workers)
        assert time.monotonic() < end
    workers[killed].send_signal(signal.SIGKILL)
    said, _ = workers[1 - killed].communicate(timeout=150)
    assert workers[1 - killed].returncode == 2, said
    last = said.splitlines()[-1]
    assert last.startswith(f"clotkit: worker {1 - killed} of 2: ")
    workers[killed].communicate()
    other = out / (".training-1" if killed == 0 else ".training") / "0-0" / "history.csv"
    fall_behind(history, other)
    for path in (history, other):
        mark_first_epoch(pd.read_csv(path)).to_csv(path, index=False)
    outputs_of(start_two(arguments))
    assert main(["train", alone, "--data", str(folder / "shards"), "--out", str(tmp_path / "one")]) == 0
    wanted = mark_first_epoch(curves_of(tmp_path / "one"))  # the mark: the first epoch was not redone
    pd.testing.assert_frame_equal(curves_of(out), wanted, rtol=0, atol=WITHIN)


def waiting(folder: Path, tmp_path: Path, wait: str, other: int) -> "subprocess.Popen[str]":
    """Start worker 0 of two, without a worker 1 at port `other`."""
    addresses = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{other}"]
    data = ["--data", str(folder / "shards"), "--out", str(tmp_path / "out"), "--wait", wait]
    return start_worker(0, addresses, [str(folder / "workers.toml"), *data])


@pytest.mark.slow_recipes
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_waiting_worker_names_the_missing_one_and_a_signal_ends_it(
    sent: signal.Signals, code: int, folder: Path, tmp_path: Path
) -> None:
    other = free_port()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        worker = waiting(folder, tmp_path, "5m", other)
    finally:
        signal.signal(signal.SIGINT, handler)
    with worker:
        assert worker.stdout is not None
        assert next(line for line in worker.stdout if f"127.0.0.1:{other}" in line)
        worker.send_signal(sent)
        said, _ = worker.communicate(timeout=30)
    assert worker.returncode == code
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow_recipes
def test_a_worker_that_never_comes_is_named(folder: Path, tmp_path: Path) -> None:
    other = free_port()
    [said] = outputs_of([waiting(folder, tmp_path, "1s", other)], code=2)
    last = said.splitlines()[-1]
    assert f"127.0.0.1:{other}" in last


@pytest.mark.slow_recipes
def test_another_program_at_a_workers_port_does_not_block_a_worker_forever(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        worker = waiting(folder, tmp_path, "3s", silent.getsockname()[1])
        outputs_of([worker], code=-signal.SIGALRM)


@pytest.mark.slow_recipes
def test_workers_that_cannot_share_shards_or_differ_in_recipe_end_with_one_line(folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(folder / "shards"), "--out", str(tmp_path / "out")]
    text = SHARDED.replace("batch_tiles = 16", "batch_tiles = 5")
    odd = write_recipe(tmp_path / "odd.toml", 'strategy = "multi_worker"', text=text)
    for said in outputs_of(start_two([odd, *arguments]), code=2):
        assert re.search("clotkit: 2 .*5 ", said.splitlines()[-1])
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    recipes = [str(folder / "workers.toml"), odd]
    workers = [start_worker(index, addresses, [recipes[index], *arguments]) for index in range(2)]
    for said in outputs_of(workers, code=2):
        assert said.splitlines()[-1].startswith("clotkit: worker 1 of 2 ")
