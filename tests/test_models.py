"""Test prediction: independence of the batch, smaller batches when memory runs out, several devices."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clotkit.batching import Predictor, is_out_of_memory, largest_difference, noise
from clotkit.competitions import Competition
from clotkit.members.heads import FLOAT32
from clotkit.members.loading import (
    MIXED_FLOAT16,
    Member,
    choose_precision,
    load_member,
    load_on_device,
)
from clotkit.members.predict import predictor

from .conftest import ROOT

SUMS = np.array([1e-6, 2e-6], np.float32)  # per grey level


class SmallMemoryNetwork:
    """A network that runs out of memory with more than `max_tiles` tiles, and records its batch sizes."""

    def __init__(self, max_tiles: int, error: type[Exception] | None = None) -> None:
        self.max_tiles, self.error, self.batches = max_tiles, error, list[int]()

    def predict_on_batch(self, tiles: np.ndarray) -> np.ndarray:
        self.batches.append(len(tiles))
        if len(tiles) > self.max_tiles:
            if self.error is not None:
                raise self.error("CUDA_ERROR_OUT_OF_MEMORY while autotuning")
            import tensorflow as tf

            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[8,64,64,16]")
        return tiles.sum(axis=(1, 2, 3), dtype=np.float32)[:, None] * SUMS


def plain(tiles: np.ndarray) -> np.ndarray:
    return np.asarray(SmallMemoryNetwork(10_000).predict_on_batch(tiles))


@pytest.mark.parametrize("error", [None, RuntimeError, MemoryError])
def test_running_out_of_memory_halves_the_batch_permanently_with_one_note(error: type[Exception] | None) -> None:
    model, tiles = SmallMemoryNetwork(3, error), noise(16, 11)
    predict = predictor(model, 8)
    assert predict.notes == []
    assert predict(tiles) == pytest.approx(plain(tiles))
    assert model.batches == [8, 4, 2, 2, 2, 2, 2, 2]
    assert predict(tiles[:3]) == pytest.approx(plain(tiles[:3]))
    assert model.batches[8:] == [2, 2]
    assert re.findall("[0-9]+", " ".join(predict.notes)) == ["8", "2"]


def test_without_padding_the_last_batch_is_as_small_as_it_is() -> None:
    sizes = []

    def forward(tiles: np.ndarray) -> np.ndarray:
        sizes.append(len(tiles))
        return plain(tiles)

    predict = Predictor([forward], 4, pads=False)
    tiles = noise(16, 6)
    np.testing.assert_array_equal(predict(tiles), plain(tiles))
    assert len(predict(tiles[:0])) == 0
    assert sizes == [4, 2, 1]


def test_a_single_tile_that_does_not_fit_is_an_error() -> None:
    model = SmallMemoryNetwork(0)
    with pytest.raises(Exception, match="OOM") as caught:
        predictor(model, 4)(noise(16, 4))
    assert is_out_of_memory(caught.value)
    assert model.batches == [4, 2, 1]


def test_another_error_passes_through_at_once() -> None:
    calls = []

    def forward(tiles: np.ndarray) -> np.ndarray:
        calls.append(len(tiles))
        raise ValueError("no room to zoom in the bloom")

    with pytest.raises(ValueError, match="zoom"):
        Predictor([forward], 8)(noise(16, 8))
    assert calls == [8]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("OOM when allocating tensor", True),
        ("RESOURCE_EXHAUSTED: ran out", True),
        ("CUDNN_STATUS_ALLOC_FAILED", True),
        ("Failed to allocate 2147483648 bytes", True),
        ("could not allocate scratch", True),
        ("Exception during initialization: std::bad_alloc", True),
        ("zoom level out of range", False),
    ],
)
def test_messages_of_out_of_memory_errors_are_recognised(words: str, wanted: bool) -> None:
    assert is_out_of_memory(RuntimeError(words)) is wanted


def test_devices_share_the_tiles_and_reduce_the_batch_together() -> None:
    one, two, tiles = SmallMemoryNetwork(10), SmallMemoryNetwork(2), noise(16, 13)
    predict = Predictor([one.predict_on_batch, two.predict_on_batch], 8)
    for count in (0, 1, 2, 5, 13):
        assert predict(tiles[:count]) == pytest.approx(plain(tiles[:count]))
    assert set(one.batches) <= {4, 2}
    assert 4 in two.batches
    assert set(two.batches[-2:]) == {2}
    assert re.findall("[0-9]+", " ".join(predict.notes)) == ["4", "2"]


def test_the_probabilities_of_a_tile_do_not_depend_on_other_tiles(keras_member: Path, strip_ai: Competition) -> None:
    loaded = load_member(keras_member, strip_ai.classes.names)
    assert loaded.notes == []
    tiles = noise(32, 10)
    together = loaded.predict(tiles)
    assert together.dtype == np.float32
    assert together.sum(axis=1) == pytest.approx(1, abs=1e-6)
    for order in (slice(0, 1), slice(9, None), slice(3, 8), slice(None, None, -1)):
        assert loaded.predict(tiles[order]) == pytest.approx(together[order], abs=1e-6)
    assert loaded.predict(tiles[:0]).shape == (0, 2)


def test_a_member_needs_no_notes() -> None:
    from clotkit.config import load_recipe
    from clotkit.members.calibration import Calibration

    member = Member("m", load_recipe("demo"), Calibration(1.0, (0.0, 0.0), 0.0), "", plain)
    assert member.notes == []


def test_half_precision_is_chosen_when_it_is_exact_enough(keras_member: Path, strip_ai: Competition) -> None:
    from clotkit.config import load_recipe

    recipe = load_recipe(keras_member / "recipe.toml")
    full, half = (
        load_on_device(keras_member, recipe, 2, 1, "cpu:0", precision) for precision in (FLOAT32, MIXED_FLOAT16)
    )
    sample = noise(32, 4)
    assert np.abs(np.asarray(half(sample)) - np.asarray(full(sample))).max() > 0  # it did compute in float16
    assert np.asarray(half(sample)).sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert choose_precision(full, half, recipe) == (MIXED_FLOAT16, [])
    precision, notes = choose_precision(full, lambda tiles: np.asarray(full(tiles)) + 0.004, recipe)
    assert precision == FLOAT32
    assert "0.004" in notes[0]
    import keras

    assert keras.config.dtype_policy().name == "float32"


def test_nan_is_an_infinite_difference() -> None:
    assert largest_difference(plain, lambda tiles: plain(tiles) * np.float32("nan"), 16, 4) == float("inf")
    assert largest_difference(plain, plain, 16, 4) == 0


TWO = """
import os
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.debugging.set_log_device_placement(True)
from clotkit.members import loading
from clotkit.members.heads import FLOAT32
from clotkit.batching import noise
member = loading.load_member(Path(sys.argv[1]), ("CE", "LAA"))
assert loading.list_devices() == ["cpu:0", "cpu:1"], loading.list_devices()
np.save(sys.argv[2], member.predict(noise(32, 7)))
print("memory growth:", os.environ["TF_FORCE_GPU_ALLOW_GROWTH"])
"""


def test_two_devices_both_compute(keras_member: Path, tmp_path: Path, strip_ai: Competition) -> None:
    """Use two logical CPUs as two GPUs; TensorFlow's log names the device of each convolution."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    command = [sys.executable, "-c", TWO, str(keras_member), str(tmp_path / "p.npy")]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment | {"TF_CPP_MIN_LOG_LEVEL": "0"}, capture_output=True, text=True, check=True
    )
    convolutions = [line for line in ended.stdout.splitlines() if "(Conv2D)" in line]
    for device in ("CPU:0", "CPU:1"):
        assert any(line.endswith(device) for line in convolutions), device
    assert "memory growth: true" in ended.stdout
    expected = load_member(keras_member, strip_ai.classes.names).predict(noise(32, 7))
    assert np.load(tmp_path / "p.npy") == pytest.approx(expected, abs=1e-6)
