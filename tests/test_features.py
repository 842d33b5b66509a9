"""HDF5 files of features: ours, TRIDENT's and STAMP's are read; what is wrong with a file is one line."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.errors import ConfigError, NoTissue, ResolutionUnknown, SlideUnreadable
from clotkit.features.files import Layout, Unit, feature_writer, open_features, write_features
from clotkit.features.folder import FeatureFolder

from .feature_files import read_stamp, read_trident, write_stamp, write_trident

RNG = np.random.default_rng(3)
FEATURES = RNG.normal(size=(60, 24)).astype(np.float32)
XY = np.stack(np.meshgrid(np.arange(10), np.arange(6)), -1).reshape(-1, 2).astype(np.int64) * 512
FACTS: dict[str, str | int | float] = {
    "encoder": "tiny", "encoder_sha256": "0" * 64, "key": "1" * 64, "patch_size": 256, "patch_size_level0": 512,
    "overlap": 0, "name": "a", "level0_width": 9000, "level0_height": 8000, "patch_level": 0, "custom_downsample": 2,
    "level0_magnification": 40, "target_magnification": 20, "level0_mpp": 0.25, "tile_size_px": 256,
}  # fmt: skip


def test_ours_comes_back_and_trident_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_features(path, FEATURES, XY, FACTS)
    found = open_features(path)
    assert (found.layout, found.unit, found.count, found.width) == (Layout.CLOTKIT, Unit.PX, 60, 24)
    assert found.read().dtype == np.float16
    assert np.array_equal(found.read(), FEATURES.astype(np.float16))
    assert np.array_equal(found.coords, XY)
    assert {key: found.facts[key] for key in FACTS} == FACTS
    theirs = read_trident(path)
    assert np.array_equal(theirs.features, found.read())
    assert np.array_equal(theirs.xy, XY)
    assert theirs.side == 512


def test_trident_reads_a_file_without_magnification(tmp_path: Path) -> None:
    without = {key: value for key, value in FACTS.items() if "magnification" not in key}
    write_features(tmp_path / "a.h5", FEATURES, XY, without)
    assert read_trident(tmp_path / "a.h5").side == 512


def test_stamp_reads_its_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with feature_writer(path, Layout.STAMP) as writer:
        writer.append(FEATURES, XY)
        writer.facts.update(FACTS)
    theirs = read_stamp(path)
    assert np.array_equal(theirs.features, FEATURES.astype(np.float16))
    assert np.array_equal(theirs.xy, XY * 0.25)
    assert theirs.side == 512 * 0.25
    found = open_features(path)
    assert (found.layout, found.unit) == (Layout.STAMP, Unit.PX)  # it says how large a pixel is
    assert np.array_equal(found.coords, XY)


def test_stamp_needs_the_size_of_a_pixel(tmp_path: Path) -> None:
    with pytest.raises(ResolutionUnknown), feature_writer(tmp_path / "a.h5", Layout.STAMP) as writer:
        writer.append(FEATURES, XY)


@pytest.mark.parametrize("batch_axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_trident_is_read(batch_axis: int, dtype: type, tmp_path: Path) -> None:
    features: np.ndarray = RNG.normal(size=(60, 1536)).astype(dtype)
    write_trident(tmp_path / "a.h5", features, XY, batch_axis=batch_axis)
    found = open_features(tmp_path / "a.h5")
    assert (found.layout, found.unit, found.count, found.width) == (Layout.TRIDENT, Unit.PX, 60, 1536)
    assert np.array_equal(found.read(), features.astype(np.float16))
    assert np.array_equal(found.coords, XY)
    assert found.facts["patch_size_level0"] == 512


@pytest.mark.parametrize("version", ["1.1.0", "2.0.0", "2.3.0"])
def test_stamp_is_read(version: str, tmp_path: Path) -> None:
    write_stamp(tmp_path / "a.h5", FEATURES.astype(np.float16), XY / 2, version)
    found = open_features(tmp_path / "a.h5")
    assert (found.layout, found.unit, found.count, found.width) == (Layout.STAMP, Unit.UM, 60, 24)
    assert np.array_equal(found.read(), FEATURES.astype(np.float16))
    assert np.array_equal(found.coords, XY // 2)


def test_attributes_of_stamp_may_be_arrays_of_one(tmp_path: Path) -> None:
    """Some writers store each attribute as an array; a size of a pixel that is a text is none."""
    write_stamp(tmp_path / "a.h5", FEATURES, 256.0 * XY)
    places = open_features(tmp_path / "a.h5").coords
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        for key, value in list(file.attrs.items()):
            file.attrs[key] = np.array([value]) if isinstance(value, int | float | np.number) else value
    np.testing.assert_array_equal(open_features(tmp_path / "a.h5").coords, places)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["level0_mpp"] = "unknown"
    with pytest.raises(SlideUnreadable, match="coords"):
        _ = open_features(tmp_path / "a.h5").coords


@given(
    rows=st.lists(st.integers(0, 59), max_size=80),
    batches=st.lists(st.integers(1, 60), min_size=1, max_size=6),
)
def test_any_rows_of_any_batches(rows: list[int], batches: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("batches") / "a.h5"
    ends = [0, *np.cumsum(batches).clip(max=60), 60]
    with feature_writer(path) as writer:
        for start, end in pairwise(ends):
            writer.append(FEATURES[start:end], XY[start:end])
    assert np.array_equal(open_features(path).read(rows), FEATURES.astype(np.float16)[rows])


def test_the_same_batches_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_features(tmp_path / name, FEATURES, XY, FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_when_datasets_are_closed_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread, or the garbage collector, may hold one longer."""
    create, held = h5py.File.create_dataset, list[h5py.Dataset]()

    def hold(*arguments: Any, **named: Any) -> h5py.Dataset:
        held.append(create(*arguments, **named))
        return held[-1]

    features, corners = np.ones((6, 12)), np.arange(12).reshape(6, 2)
    write_features(tmp_path / "a.h5", features, corners, {"patch_size_level0": 256, "key": "k" * 64})
    monkeypatch.setattr(h5py.File, "create_dataset", hold)
    write_features(tmp_path / "b.h5", features, corners, {"patch_size_level0": 256, "key": "k" * 64})
    assert len(held) == 2
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -70000.0])
def test_numbers_that_float16_cannot_hold(bad: float, tmp_path: Path) -> None:
    features = FEATURES.copy()
    features[41, 7] = bad
    with pytest.raises(ValueError, match="1 of 60"):
        write_features(tmp_path / "a.h5", features, XY, FACTS)
    assert list(tmp_path.iterdir()) == []
    write_trident(tmp_path / "b.h5", features, XY)
    with pytest.raises(SlideUnreadable, match=r"b\.h5.*row 41"):
        open_features(tmp_path / "b.h5").read()


def test_no_tiles(tmp_path: Path) -> None:
    with pytest.raises(NoTissue), feature_writer(tmp_path / "a.h5"):
        pass
    write_trident(tmp_path / "b.h5", FEATURES[:0], XY[:0])
    with pytest.raises(NoTissue):
        open_features(tmp_path / "b.h5")


def _read_all(path: Path) -> None:
    found = open_features(path)
    assert len(found.read()) == len(found.coords)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the middle: in a chunk of features
    path.write_bytes(data)


def no_hdf5(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, RNG.normal(size=(60, 1536)).astype(np.float32))


def renamed(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.move("features", "embeddings")


def replaced(name: str, value: np.ndarray) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]
            file[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        cut_short,
        flipped,
        no_hdf5,
        renamed,
        pytest.param(replaced("features", FEATURES[0]), id="one vector"),
        pytest.param(replaced("features", FEATURES.astype(np.int32)), id="integers"),
        pytest.param(replaced("features", np.zeros((2, 60, 24), np.float32)), id="two bags"),
        pytest.param(replaced("coords", XY[:59]), id="a row short"),
        pytest.param(replaced("coords", np.zeros((60, 5), np.int64)), id="five columns"),
        pytest.param(replaced("coords", np.full((60, 2), np.nan)), id="places that are NaN"),
        pytest.param(replaced("coords", np.full((60, 2), 1e300)), id="places beyond any slide"),
        pytest.param(replaced("features", np.zeros((60, 0), np.float32)), id="no features"),
    ],
)
def test_a_damaged_or_wrong_file_is_one_line(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_features(path, RNG.normal(size=(60, 1536)), XY, FACTS)
    change(path)
    with pytest.raises(SlideUnreadable, match=r"a\.h5") as caught:
        _read_all(path)
    assert "\n" not in str(caught.value)


def test_a_folder_by_image_id(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_features(tmp_path / f"{name}.h5", FEATURES, XY, {**FACTS, "name": name})
    folder = FeatureFolder(tmp_path)
    assert folder.ids == ["a", "b"]
    assert (folder.width, folder.encoder_sha256) == (24, "0" * 64)
    assert folder.open("b").facts["name"] == "b"
    with pytest.raises(SlideUnreadable, match="of c"):
        folder.open("c")


def test_a_folder_has_features_of_one_encoder(tmp_path: Path) -> None:
    write_features(tmp_path / "a.h5", FEATURES, XY, FACTS)
    write_features(tmp_path / "b.h5", FEATURES, XY, {**FACTS, "encoder_sha256": "f" * 64})
    write_features(tmp_path / "c.h5", FEATURES[:, :8], XY, FACTS)
    folder = FeatureFolder(tmp_path)
    for image_id in ("b", "c"):
        with pytest.raises(ConfigError, match=rf"{image_id}\.h5.*a has 24"):
            folder.open(image_id)


def test_a_damaged_file_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"")
    write_features(tmp_path / "b.h5", FEATURES, XY, FACTS)
    folder = FeatureFolder(tmp_path)
    assert folder.open("b").count == 60
    with pytest.raises(SlideUnreadable):
        folder.open("a")


@pytest.mark.parametrize("names", [(), ("x/a.h5", "y/a.h5")])
def test_a_folder_without_files_or_with_two_of_one_slide(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir()
        write_features(tmp_path / name, FEATURES, XY, FACTS)
    with pytest.raises(ConfigError):
        FeatureFolder(tmp_path).ids  # noqa: B018 - a property
