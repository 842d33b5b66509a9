"""Near-duplicates are found, unrelated pictures are not, and their patients become one."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from clotkit.data.images import read_image, resized
from clotkit.data.near_duplicates import drop_near_duplicates, group_near_duplicates, near_duplicate_groups
from clotkit.data.tiles import TileSet

from .conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
BITS = 4


def picture(seed: int, side: int = 64) -> npt.NDArray[np.uint8]:
    """Draw smooth random structure, uint8[side, side, 3]."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), side / 16, mode="wrap")
    grey = np.clip(128 + 50 * field / field.std(), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def tile_set(tiles: list[npt.NDArray[np.uint8]], patients: list[str], images: list[str]) -> TileSet:
    count = len(tiles)
    return TileSet(
        tiles=np.stack(tiles),
        labels=np.arange(count) % 2,
        patients=np.array(patients),
        images=np.array(images),
        centres=np.full(count, ""),
        parts=np.full(count, ""),
        classes=("no", "yes"),
    )


def test_copies_of_other_size_brightness_and_compression_are_one_group(tmp_path: Path) -> None:
    one = picture(0)
    Image.fromarray(one).save(tmp_path / "a.jpg", quality=40)
    copies = [one, resized(one, 90, 70), (one * 0.97).astype(np.uint8), read_image(tmp_path / "a.jpg")]
    assert near_duplicate_groups([*copies, picture(1), picture(2)], BITS).tolist() == [0, 0, 0, 0, 1, 2]


def test_different_pictures_are_not_grouped() -> None:
    assert near_duplicate_groups([picture(seed) for seed in range(600)], BITS).tolist() == list(range(600))


def test_a_much_darker_copy_is_not_grouped() -> None:
    """Only the thumbnails tell the two apart: their hashes are equal."""
    one = picture(0)
    assert near_duplicate_groups([one, one // 2], 0).tolist() == [0, 1]


def test_groups_are_found_across_blocks() -> None:
    pictures = [picture(seed, 32) for seed in range(300)]
    groups = near_duplicate_groups([*pictures, *pictures[::-1], pictures[7]], BITS)
    assert groups.tolist() == [*range(300), *range(299, -1, -1), 7]


def test_flat_pictures_are_grouped_only_if_identical() -> None:
    rng = np.random.default_rng(0)
    flat = [np.full((20, 20, 3), level, np.uint8) for level in (0, 255, 128, 0)]
    noisy = [(200 + rng.integers(0, 3, (20, 20, 3))).astype(np.uint8) for _ in range(3)]
    reshaped = np.zeros((10, 40, 3), np.uint8)
    assert near_duplicate_groups([*flat, *noisy, noisy[1], reshaped], BITS).tolist() == [0, 1, 2, 0, 3, 4, 5, 4, 6]


def test_no_pictures_have_no_groups() -> None:
    assert near_duplicate_groups([], BITS).shape == (0,)


def test_patients_of_near_duplicates_become_one() -> None:
    first, second, third = picture(0), picture(1), picture(2)
    # a and b share the first picture, b and c the second, so the three become one patient; d stays alone
    tiles = tile_set([first, first, second, second, third], ["b", "a", "b", "c", "d"], ["1", "2", "3", "4", "5"])
    tiles = replace(tiles, parts=np.array(["train", "test", "train", "train", "val"]))
    lines: list[str] = []
    found = group_near_duplicates(tiles, BITS, lines.append)
    assert found.patients.tolist() == ["a", "a", "a", "a", "d"]
    assert found.own_patients.tolist() == tiles.own_patients.tolist() == tiles.patients.tolist()
    assert found.where(found.patients == "a").own_patients.tolist() == ["b", "a", "b", "c"]
    assert [int(number) for number in re.findall(r"\d+", lines[0])] == [2, 4, 5, 4, 64, 2, 1]
    for name in ("tiles", "labels", "images", "centres", "parts"):
        assert np.array_equal(getattr(found, name), getattr(tiles, name))
    assert group_near_duplicates(found, BITS, lines.append).patients.tolist() == found.patients.tolist()


def test_an_image_of_several_tiles_is_compared_by_all_of_them() -> None:
    first, second, third = picture(0), picture(1), picture(2)
    tiles = tile_set(
        [first, first, first, second, second, third], ["a", "b", "c", "a", "b", "c"], ["1", "2", "3", "1", "2", "3"]
    )
    assert group_near_duplicates(tiles, BITS, lambda _: None).patients.tolist() == ["a", "a", "c", "a", "a", "c"]


def test_pictures_that_are_near_identical_to_a_test_picture_are_dropped() -> None:
    pictures = [picture(0), picture(1), picture(0), picture(2), picture(1), picture(0), picture(3)]
    parts = np.array(["train", "train", "val", "val", "train", "test", "test"])
    tiles = replace(tile_set(pictures, list("abcdefg"), list("ABCDEFG")), parts=parts)
    lines: list[str] = []
    kept = drop_near_duplicates(tiles, BITS, lines.append)
    assert kept.images.tolist() == list("BDEFG")
    assert kept.patients.tolist() == list("bdbfg")
    assert kept.dropped == {"A": "train", "C": "val"}
    assert re.findall(r"\d+", lines[-1]) == ["2", "1", "1"]
    without_test = drop_near_duplicates(tiles.where(parts != "test"), BITS, lines.append)
    assert (len(without_test), dict(without_test.dropped)) == (5, {})


def test_without_near_duplicates_nothing_changes() -> None:
    tiles = tile_set([picture(seed) for seed in range(4)], list("abca"), list("1234"))
    lines: list[str] = []
    assert group_near_duplicates(tiles, BITS, lines.append).patients.tolist() == list("abca")
    assert [int(number) for number in re.findall(r"\d+", lines[0])][:3] == [0, 0, 4]


@pytest.mark.skipif(not (DATA / "brain_mri").is_dir(), reason="needs the brain MRI pictures of the shared data")
def test_brain_pictures() -> None:
    paths = sorted(path for name in ("no", "yes") for path in (DATA / "brain_mri" / name).iterdir())
    groups = near_duplicate_groups([read_image(path) for path in paths], BITS)
    sizes = np.bincount(groups)
    assert np.count_nonzero(sizes > 1) == 35
    assert sizes.max() == 5
    kinds = np.array([path.parent.name for path in paths])
    assert all(len(set(kinds[groups == group])) == 1 for group in np.flatnonzero(sizes > 1))


@pytest.mark.skipif(not (DATA / "bloodmnist").is_dir(), reason="needs the blood cells of the shared data")
def test_blood_cells() -> None:
    with np.load(DATA / "bloodmnist" / "bloodmnist.npz") as archive:
        pictures = [archive[f"{part}_images"] for part in ("train", "val", "test")]
    parts = np.repeat([0, 1, 2], [len(some) for some in pictures])
    groups = near_duplicate_groups([*np.concatenate(pictures)], BITS)
    members = np.flatnonzero(np.bincount(groups) > 1)
    # nine identical cells, and one whose field was moved a little
    assert sum(len(set(parts[groups == group])) > 1 for group in members) == 10
    assert len(members) == 18
