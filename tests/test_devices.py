"""Test training on several devices: two virtual CPUs stand for two GPUs, in a process of their own."""

import subprocess
import sys

import pytest

from clotkit.training.devices import training_scope

TWO = """
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from pathlib import Path
import sys

from clotkit.config import load_recipe
from clotkit.training.devices import create_context, training_scope
from clotkit.training.fit import fit
from clotkit.members.networks import build_network
from clotkit.data.tiles import TileSet

recipe = load_recipe(sys.argv[1])
rng = np.random.default_rng(0)
labels = np.arange(48) % 2
tiles = rng.integers(0, 120, (48, 16, 16, 3)) + 90 * labels[:, None, None, None]
names = np.arange(48).astype(str)
train = TileSet(tiles.astype(np.uint8), labels, names, names, names, names, ("dark", "light"))
context = create_context("auto")
with training_scope(context=context):
    network = build_network(recipe.model[0], 16, 2)
    history = fit(network, train, train, recipe, seed=1, checkpoints_dir=Path(sys.argv[2]), context=context)
    print("replicas", context.replicas)
print("loss", history["loss"].iloc[0], history["loss"].iloc[-1])
"""
RECIPE = """
name = "two"

[tiling]
name = "whole"
tile_px = 16
downsample = 1
max_tiles = 1
batch_tiles = 16

[model]
name = "cnn"
filters = [4]

[training]
seed = 1
epochs = 6
batch_tiles = 16
learning_rate = 2e-2
"""


@pytest.mark.slow
def test_a_network_learns_on_two_devices(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.toml").write_text(RECIPE)
    command = [sys.executable, "-c", TWO, str(folder / "two.toml"), str(folder / "state")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "replicas 2" in ended.stdout
    first, last = map(float, ended.stdout.split("loss ")[1].split())
    assert last < first


def test_half_precision_is_set_on_a_gpu_and_reset_afterwards() -> None:
    import keras

    before = keras.config.dtype_policy().name
    with training_scope(["cpu:0"]):
        assert keras.config.dtype_policy().name == before
    with training_scope(["gpu:0"]):
        assert keras.config.dtype_policy().name == "mixed_float16"
    assert keras.config.dtype_policy().name == before
