"""Test that augmentation is reproducible, stays in range and leaves its input alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clotkit.config import AugmentConfig
from clotkit.members.predict import tta_views
from clotkit.training.augment import augment

NO_CHANGE = AugmentConfig(rotate_flip=False, channel_gain=0)


def tiles_of(seed: int, count: int = 5, side_px: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, side_px // 4, side_px // 4, 3))
    return np.kron(coarse, np.ones((1, 4, 4, 1))).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        AugmentConfig,
        rotate_flip=st.booleans(),
        mirror=st.booleans(),
        rotate_deg=st.floats(0, 180),
        scale=st.floats(0, 0.9),
        shift=st.floats(0, 0.9),
        shear_deg=st.floats(0, 60),
        channel_gain=st.floats(0, 0.9),
        brightness=st.floats(0, 0.9),
        contrast=st.floats(0, 0.9),
        stain=st.floats(0, 0.9),
        blur=st.floats(0, 1),
        cutout=st.floats(0, 0.9),
    ),
    st.integers(0, 1000),
)
def test_any_augmentation_keeps_shape_range_and_its_input(config: AugmentConfig, seed: int) -> None:
    tiles = tiles_of(seed)
    before = tiles.copy()
    changed = augment(tiles, config, np.random.default_rng(seed))
    assert changed.shape == tiles.shape
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert np.array_equal(tiles, before)
    assert np.array_equal(changed, augment(tiles, config, np.random.default_rng(seed)))


def test_without_any_setting_nothing_changes() -> None:
    tiles = tiles_of(1)
    assert np.array_equal(augment(tiles, NO_CHANGE, np.random.default_rng(0)), tiles)


def test_rotate_flip_gives_all_eight_rotations_and_mirrors() -> None:
    tiles = tiles_of(2, 64)
    changed = augment(tiles, AugmentConfig(rotate_flip=True, channel_gain=0), np.random.default_rng(3))
    which = [
        next(i for i, view in enumerate(tta_views(tile[None], 8)) if np.array_equal(view[0], new))
        for tile, new in zip(tiles, changed, strict=True)
    ]
    assert set(which) == set(range(8))


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(rotate_flip=False, channel_gain=0.1),
        AugmentConfig(rotate_flip=False, channel_gain=0, brightness=0.05),
    ],
)
def test_colours_change_within_bounds(config: AugmentConfig) -> None:
    tiles = np.full((50, 8, 8, 3), 120, np.uint8)
    means = augment(tiles, config, np.random.default_rng(2)).mean(axis=(1, 2)) / 120
    assert 0.88 < means.min() < 0.97
    assert 1.03 < means.max() < 1.12


def test_resampling_can_rotate_by_90_degrees() -> None:
    tiles = tiles_of(4, 1)
    rotated = [
        augment(tiles, AugmentConfig(rotate_flip=False, channel_gain=0, rotate_deg=180), np.random.default_rng(seed))
        for seed in range(300)
    ]
    nearest = min(np.abs(one - np.rot90(tiles, 1, (1, 2))).mean() for one in rotated)
    other = np.abs(rotated[0] - np.rot90(tiles, 1, (1, 2))).mean()
    assert nearest < 8 < other


def test_a_shift_moves_by_at_most_its_share() -> None:
    tiles = np.zeros((200, 20, 20, 3), np.uint8)
    tiles[:, 10, 10] = 255
    moved = augment(tiles, AugmentConfig(rotate_flip=False, channel_gain=0, shift=0.2), np.random.default_rng(0))[
        ..., 0
    ]
    rows, columns = (moved.sum(axis=axis) @ np.arange(20) / moved.sum(axis=(1, 2)) for axis in (2, 1))
    for centre in (rows, columns):
        assert np.abs(centre - 10).max() <= 4.01
        assert np.abs(centre - 10).max() > 3


def test_stains_change_tissue_and_leave_white() -> None:
    config = AugmentConfig(rotate_flip=False, channel_gain=0, stain=0.3)
    purple = np.full((40, 4, 4, 3), (150, 80, 170), np.uint8)
    changed = augment(purple, config, np.random.default_rng(1))
    assert changed.std(axis=0).max() > 10
    white = augment(np.full((40, 4, 4, 3), 255, np.uint8), config, np.random.default_rng(1))
    assert white.min() > 230


def test_test_time_augmentation_keeps_every_pixel() -> None:
    tiles = tiles_of(5)
    assert [len(tta_views(tiles, views)) for views in (1, 2, 8)] == [1, 2, 8]
    assert np.array_equal(tta_views(tiles, 1)[0], tiles)
    assert len({view.tobytes() for view in tta_views(tiles, 8)}) == 8
    assert all(np.array_equal(np.sort(view, axis=None), np.sort(tiles, axis=None)) for view in tta_views(tiles, 8))
