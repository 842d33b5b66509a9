"""Test that a member whose numbers cannot be used is refused by name, wherever it is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.errors import ConfigError, WeightsError
from clotkit.members.blending import Blend
from clotkit.members.calibration import Calibration
from clotkit.members.folder import check_member, find_members, read_member
from clotkit.members.loading import load_member
from clotkit.members.weights import check_outputs

from .conftest import ROOT

Change = Callable[[h5py.File], None]
CLASSES = ("CE", "LAA")
VARIANCE, KERNEL = "layers/batch_normalization_1/vars/3", "layers/conv2d_1/vars/0"


def filled(name: str, value: float, index: object = ...) -> Change:
    """Return a change that sets values of an array."""

    def change(file: h5py.File) -> None:
        array = file[name][...]
        array[index] = value
        file[name][...] = array

    return change


def zeros(file: h5py.File) -> None:
    names: list[str] = []
    file.visititems(lambda name, entry: names.append(name) if isinstance(entry, h5py.Dataset) else None)
    for name in names:
        file[name][...] = 0


def without(name: str) -> Change:
    """Return a change that removes an array or a layer."""

    def change(file: h5py.File) -> None:
        del file[name]

    return change


def renamed(file: h5py.File) -> None:
    file.move("layers/conv2d_1", "layers/other")


def more(file: h5py.File) -> None:
    file["layers/conv2d_7/vars/0"] = np.ones((3, 3, 2, 2), np.float32)


def other_shape(file: h5py.File) -> None:
    del file["layers/dense/vars/1"]
    file["layers/dense/vars/1"] = np.ones(3, np.float32)


IN_THE_FILE: dict[str, Change] = {
    "one NaN in a variance": filled(VARIANCE, np.nan, 0),
    "an infinity in a kernel": filled(KERNEL, np.inf, (0, 0, 0, 0)),
    "minus infinity in a bias": filled("layers/dense/vars/1", -np.inf, 1),
    "a value that overflows": filled(KERNEL, 3e38, (1, 1, 1, 1)),
    "a negative variance": filled(VARIANCE, -0.5, 3),
    "only zeros": zeros,
    "no layers": without("layers"),
}
IN_THE_NETWORK: dict[str, Change] = {
    "a missing array": without(VARIANCE),
    "a missing layer": without("layers/dense"),
    "a renamed layer": renamed,
    "one more layer": more,
    "an array of another shape": other_shape,
    "a head of zeros": filled("layers/dense/vars/0", 0),
}


def changed(folder: Path, change: Change) -> Path:
    """Copy the member demo, change its weights, and return its folder."""
    shutil.copytree(ROOT / "weights" / "demo", folder)
    with h5py.File(folder / "model.weights.h5", "r+") as file:
        change(file)
    return folder


@pytest.mark.parametrize("name", IN_THE_FILE)
def test_numbers_that_cannot_be_used_are_refused_without_a_network(name: str, tmp_path: Path) -> None:
    member = changed(tmp_path / "demo", IN_THE_FILE[name])
    with pytest.raises(WeightsError, match=r"model\.weights\.h5"):
        read_member(member)
    with pytest.raises(WeightsError):
        check_member(member)


@pytest.mark.parametrize("name", IN_THE_NETWORK)
def test_no_network_keeps_its_initial_values(name: str, tmp_path: Path) -> None:
    member = changed(tmp_path / "demo", IN_THE_NETWORK[name])
    with pytest.raises(WeightsError, match=r"model\.weights\.h5"):
        load_member(member, CLASSES)


def test_sound_members_pass() -> None:
    for member in find_members(ROOT / "weights"):
        check_member(member)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slope", float("nan")),
        ("slope", float("inf")),
        ("slope", -1.0),
        ("offsets", [float("nan"), 0.0]),
        ("offsets", [0.0]),
        ("floor", float("nan")),
        ("floor", 0.5),
        ("floor", -0.1),
    ],
)
def test_a_calibration_that_cannot_be_used_is_refused(key: str, value: object) -> None:
    raw = Calibration(1.0, (0.0, 0.0), 0.02).to_json() | {key: value}
    with pytest.raises(WeightsError):
        Calibration.from_json(json.loads(json.dumps(raw)), "calibration.json", 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights", [float("nan"), 1.0]),
        ("weights", [1.5, -0.5]),
        ("weights", [0.0, 0.0]),
        ("slope", float("inf")),
        ("means", [0.5, float("nan")]),
        ("covariance", [[0.1, float("inf")], [0.0, 0.1]]),
        ("members", ["a", "a"]),
    ],
)
def test_an_ensemble_that_cannot_be_used_is_refused(key: str, value: object) -> None:
    numbers = {"weights": [0.5, 0.5], "pseudo_slides": 0.0, "prior": 0.5, "floor": 0.0, "slope": 1.0, "intercept": 0.0}
    raw = {"method": "shrunken_platt", "members": ["a", "b"], "means": [0.5, 0.5], "covariance": [[0.1, 0], [0, 0.1]]}
    sound = raw | {"calibrator": numbers}
    assert Blend.from_json(sound, "x").members == ("a", "b")
    wrong = raw | {"calibrator": numbers | {key: value}} if key in numbers else sound | {key: value}
    with pytest.raises(WeightsError):
        Blend.from_json(wrong, "x")


@pytest.mark.parametrize(
    ("rows", "pooling", "sound"),
    [
        ([[0.4, 0.6], [1.0, 0.0]], "mean", True),
        ([[0.4, 0.6005]], "mean", True),
        ([[5.0, -3.0, 2.0]], "attention", True),
        ([], "mean", True),
        ([[0.4, float("nan")]], "mean", False),
        ([[5.0, float("inf"), 2.0]], "attention", False),
        ([[0.4, 0.4]], "mean", False),
        ([[1.5, -0.5]], "mean", False),
    ],
)
def test_outputs_are_checked(rows: list[list[float]], pooling: str, sound: bool) -> None:
    assert (check_outputs(np.array(rows).reshape(-1, 3 if pooling != "mean" else 2), pooling == "mean") == "") is sound


def two(tmp_path: Path) -> Path:
    """Return a folder of two members."""
    for name in ("demo", "other"):
        shutil.copytree(ROOT / "weights" / "demo", tmp_path / "weights" / name)
    return tmp_path / "weights"


@pytest.mark.parametrize("name", ["demo.tar", "other.zip", "demo.tar.gz", "Demo.tgz"])
def test_an_archive_beside_a_member_of_its_name_is_refused(name: str, tmp_path: Path) -> None:
    weights = two(tmp_path)
    (weights / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=name):
        find_members(weights)
    (weights / name).rename(weights / "notes.zip")
    assert [folder.name for folder in find_members(weights)] == ["demo", "other"]


def test_names_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    weights = two(tmp_path)
    shutil.copytree(weights / "demo", weights / "DEMO")
    with pytest.raises(ConfigError, match="DEMO"):
        find_members(weights)


def test_a_member_that_is_reached_twice_is_refused(tmp_path: Path) -> None:
    weights = two(tmp_path)
    (weights / "again").symlink_to(weights / "demo")
    with pytest.raises(ConfigError, match="again"):
        find_members(weights)


@pytest.mark.parametrize("place", ["demo/inner", "versions/inner", "versions/2/inner"])
def test_a_member_that_lies_deeper_is_refused(place: str, tmp_path: Path) -> None:
    weights = two(tmp_path)
    shutil.copytree(weights / "demo", tmp_path / "moved")
    (weights / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "moved").rename(weights / place)
    with pytest.raises(ConfigError, match="inner"):
        find_members(weights)


def test_every_verb_refuses_in_one_line(
    tmp_path: Path, strip_ai: Competition, capsys: pytest.CaptureFixture[str]
) -> None:
    member = changed(tmp_path / "weights" / "demo", filled(VARIANCE, np.nan, 0))
    (tmp_path / "a.tif").write_bytes(b"x")
    push = ["kaggle", "datasets-push", "weights", "--weights", str(member.parent), "--dry-run"]
    for words in (
        ["manifest", str(member.parent)],
        ["predict", str(member), str(tmp_path / "a.tif")],
        ["evaluate", str(member), "--data", str(tmp_path), "--out", str(tmp_path / "out")],
        [*push, "--metadata", str(ROOT / "datasets_meta")],
    ):
        assert main(words) == 2, words
        (line,) = capsys.readouterr().err.splitlines()
        assert str(member / "model.weights.h5") in line
    assert not (member.parent / "MANIFEST.json").exists()
