"""ONNX files: what they return for tiles, and one line for each that cannot be run."""

import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clotkit.batching import noise
from clotkit.config import OnnxConfig
from clotkit.errors import ConfigError, WeightsError
from clotkit.members.onnx.header import external_files, model_sha256, read_header
from clotkit.members.onnx.session import OnnxModel

from . import onnx_models as models
from .conftest import ROOT

TILE_PX = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def expected(tiles: np.ndarray, config: OnnxConfig) -> np.ndarray:
    """Return the logits of models.model for tiles uint8[n, S, S, 3]."""
    pixels = tiles[..., ::-1] if config.channels == "bgr" else tiles
    if config.dtype != "uint8":
        pixels = (pixels / config.scale - np.array(config.mean)) / np.array(config.std)
    return np.asarray(pixels.mean(axis=(1, 2)) @ models.weights())


@pytest.mark.parametrize(
    "config",
    [
        OnnxConfig(output="logits"),
        OnnxConfig(output="logits", layout="nhwc", mean=(0.5,), std=(0.25,)),
        OnnxConfig(output="logits", mean=MEAN, std=STD),
        OnnxConfig(output="logits", mean=MEAN, std=STD, channels="bgr", scale=1.0),
        OnnxConfig(output="logits", dtype="uint8", layout="nhwc"),
        OnnxConfig(output="logits", dtype="float16"),
    ],
    ids=str,
)
def test_tiles_reach_the_network_as_the_recipe_says(config: OnnxConfig, tmp_path: Path) -> None:
    shape = ("n", 3, TILE_PX, TILE_PX) if config.layout == "nchw" else ("n", TILE_PX, TILE_PX, 3)
    made = models.model(shape, layout=config.layout, dtype=config.dtype, output="logits")
    network = OnnxModel(models.save(made, tmp_path / "model.onnx"), config, TILE_PX)
    tiles = noise(TILE_PX, 7)
    rows = network(tiles)
    assert rows.dtype == np.float32
    assert rows.shape == (7, 2) == (7, network.width)
    np.testing.assert_allclose(
        rows, expected(tiles, config), rtol=2e-3 if config.dtype == "float16" else 1e-5, atol=2e-3
    )


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_any_number_of_tiles_is_predicted_whatever_the_batch(batch: str | int, tmp_path: Path) -> None:
    path = models.save(models.model((batch, 3, TILE_PX, TILE_PX)), tmp_path / "model.onnx")
    network = OnnxModel(path, OnnxConfig(), TILE_PX, batch_tiles=4)
    tiles = noise(TILE_PX, 10)
    rows = network(tiles)
    assert network(tiles[:0]).shape == (0, 2)
    np.testing.assert_array_equal(rows[3:5], network(tiles[3:5]))
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)


def test_tiles_are_resized_to_the_side_of_the_network(tmp_path: Path) -> None:
    path = models.save(models.model(("n", 3, 16, 16), output="logits"), tmp_path / "model.onnx")
    network = OnnxModel(path, OnnxConfig(input_px=16, output="logits"), TILE_PX)
    flat = np.full((2, TILE_PX, TILE_PX, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(network(flat), expected(flat, OnnxConfig()), rtol=1e-5)


def test_external_data_is_part_of_the_model(tmp_path: Path) -> None:
    path = models.save_external(models.model(), tmp_path / "model.onnx")
    whole = models.save(models.model(), tmp_path / "whole.onnx")
    tiles = noise(TILE_PX, 3)
    one, other = OnnxModel(path, OnnxConfig(), TILE_PX), OnnxModel(whole, OnnxConfig(), TILE_PX)
    np.testing.assert_array_equal(one(tiles), other(tiles))
    assert external_files(path) == [tmp_path / "weights.bin"]
    before = model_sha256(path)
    assert one.sha256 == before != other.sha256
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert model_sha256(path) != before


def test_the_header_says_what_wrote_the_file(tmp_path: Path) -> None:
    header = read_header(models.save(models.model(), tmp_path / "model.onnx"))
    assert (header.producer, header.opsets, header.ir_version) == ("tests", {"": models.OPSET}, models.IR_VERSION)


Save = Callable[[Path], object]
FAULTS: dict[str, tuple[Save, OnnxConfig, str]] = {
    "empty": (lambda path: path.write_bytes(b""), OnnxConfig(), "no ONNX file"),
    "text": (lambda path: path.write_text("version https://git-lfs\n"), OnnxConfig(), "no ONNX file"),
    "cut": (
        lambda path: path.write_bytes(models.model().SerializeToString()[:-40]),
        OnnxConfig(),
        "cut short",
    ),
    "opset": (lambda path: models.save(models.model(opset=99), path), OnnxConfig(), "opset 99 of ai.onnx,"),
    "opset of another domain": (
        lambda path: models.save(models.with_opset(models.model(), "ai.onnx.ml", 50), path),
        OnnxConfig(),
        "opset 50 of ai.onnx.ml,",
    ),
    "custom": (lambda path: models.save(models.foreign(), path), OnnxConfig(), "Stain of my.ops"),
    "missing data": (
        lambda path: models.save_external(models.model(), path, told="other.bin"),
        OnnxConfig(),
        "other.bin is missing",
    ),
    "data of a URL": (
        lambda path: models.save_external(models.model(), path, told="https://host/weights.bin"),
        OnnxConfig(),
        "'https://host/weights.bin'",
    ),
    "data outside": (
        lambda path: models.save_external(models.model(), path, told="../weights.bin"),
        OnnxConfig(),
        r"'\.\./weights.bin'",
    ),
    "data absolute": (
        lambda path: models.save_external(models.model(), path, told="/weights.bin"),
        OnnxConfig(),
        "'/weights.bin'",
    ),
    "layout": (lambda path: models.save(models.model(), path), OnnxConfig(layout="nhwc"), r"onnx\.layout"),
    "side": (lambda path: models.save(models.model(("n", 3, 64, 64)), path), OnnxConfig(), r"side of 32 px"),
    "channels": (lambda path: models.save(models.model(("n", 4, 32, 32)), path), OnnxConfig(), "3 channels"),
    "rank": (lambda path: models.save(models.model(("n", 3, 32)), path), OnnxConfig(), r"\[n, 3, 32, 32\]"),
    "dtype": (lambda path: models.save(models.model(), path), OnnxConfig(dtype="float16"), "dtype"),
    "two outputs": (lambda path: models.save(models.two_outputs(), path), OnnxConfig(), "out, logits"),
    "output's name": (
        lambda path: models.save(models.two_outputs(), path),
        OnnxConfig(output_name="rows"),
        "out, logits",
    ),
    "fixed inside": (lambda path: models.save(models.fixed_inside(), path), OnnxConfig(), "cannot compute 2 tiles"),
    "no row a tile": (lambda path: models.save(models.one_row(), path), OnnxConfig(), r"\[n, K\]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_run_is_one_line(fault: str, tmp_path: Path) -> None:
    save, config, told = FAULTS[fault]
    path = tmp_path / "model.onnx"
    save(path)
    with pytest.raises(ConfigError, match=told) as error:
        OnnxModel(path, config, TILE_PX)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        OnnxModel(tmp_path / "model.onnx", OnnxConfig(), TILE_PX)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = models.model().SerializeToString()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(
        st.sampled_from([whole[:at], whole[:at] + data.draw(st.binary(min_size=1, max_size=9)) + whole[at + 1 :]])
    )
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damaged)
    with suppress(WeightsError):
        read_header(path)


def predict_in_little_memory(path: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    network = OnnxModel(path, OnnxConfig(output="logits"), TILE_PX, batch_tiles=16)
    tiles = noise(TILE_PX, 16)
    resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
    rows = network(tiles)
    np.testing.assert_allclose(rows, expected(tiles, network.config), atol=5e-2)
    assert len(network.notes) == 1


def test_running_out_of_memory_halves_the_batch_with_one_note(tmp_path: Path) -> None:
    path = models.save(models.large_inside(), tmp_path / "model.onnx")
    code = f"from tests.test_onnx import *; predict_in_little_memory(Path({str(path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
