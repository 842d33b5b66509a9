"""Test that augmentation is reproducible, stays in range and leaves its input alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clotkit.batching import tta_views
from clotkit.config import AugmentConfig
from clotkit.training.augment import TrainingBatch, augment, mix_batch

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


def batch_of(items: int = 64, side_px: int = 16) -> TrainingBatch:
    """Return tiles of one value each, their number times 4, of 2 classes with the weights 1 and 3."""
    numbers = np.arange(items, dtype=np.float32)
    tiles = np.broadcast_to(4 * numbers[:, None, None, None], (items, side_px, side_px, 3)).copy()
    labels = np.arange(items) % 2
    return tiles, np.eye(2, dtype=np.float32)[labels], np.array([1, 3], np.float32)[labels]


def loss_of(classes: np.ndarray, weights: np.ndarray) -> float:
    """Return the summed cross-entropy of a network that says 0.2 and 0.8 of every item."""
    return float(-(weights[:, None] * classes * np.log([0.2, 0.8])).sum())


def shares_of(mixed: TrainingBatch, batch: TrainingBatch) -> np.ndarray:
    """Return the share of area [n, n] that each tile (column) has in each mixed one (row)."""
    values = batch[0][:, 0, 0, 0]
    return np.stack([(mixed[0][..., 0] == value).mean(axis=(1, 2)) for value in values], axis=1)


def test_cutmix_labels_are_the_areas_of_the_tiles_and_the_loss_is_that_of_both() -> None:
    batch = batch_of()
    mixed = mix_batch(batch, AugmentConfig(cutmix=1.0), 1, epoch=1, step=2)
    shares = shares_of(mixed, batch)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert 0.2 < (shares.max(axis=1) < 1).mean() < 1
    wanted = shares @ (batch[1] * batch[2][:, None])
    np.testing.assert_allclose(mixed[1] * mixed[2][:, None], wanted, atol=1e-5)
    np.testing.assert_allclose(mixed[1].sum(axis=1), 1, atol=1e-6)
    both = sum(loss_of(batch[1][[i]], batch[2][[i]]) * shares[:, i].sum() for i in range(len(shares)))
    assert loss_of(mixed[1], mixed[2]) == pytest.approx(both, rel=1e-5)


def test_mixup_blends_pixels_labels_and_weights_alike() -> None:
    numbers = np.arange(64, dtype=np.float32)
    labels = np.eye(64, dtype=np.float32)
    tiles = np.broadcast_to(numbers[:, None, None, None], (64, 4, 4, 3)).copy()
    weights = np.ones(64, np.float32)
    mixed, shares, mixed_weights = mix_batch((tiles, labels, weights), AugmentConfig(mixup=0.4), 1, epoch=1, step=2)
    np.testing.assert_allclose(mixed_weights, 1, atol=1e-6)
    np.testing.assert_allclose(mixed[:, 2, 3, 1], shares @ numbers, rtol=1e-4)
    assert (shares > 0).sum(axis=1).max() == 2
    assert mixed.dtype == shares.dtype == np.float32
    unequal = mix_batch((tiles, labels, 1 + numbers), AugmentConfig(mixup=0.4), 1, epoch=1, step=2)
    np.testing.assert_allclose(unequal[2], shares @ (1 + numbers), rtol=1e-4)
    np.testing.assert_allclose(unequal[1] * unequal[2][:, None], shares * (1 + numbers), atol=1e-3)


def test_items_without_weight_stay_finite_when_they_are_mixed() -> None:
    tiles, classes, weights = batch_of()
    mixed = mix_batch((tiles, classes, 0 * weights), AugmentConfig(mixup=0.4), 1, epoch=1, step=2)
    assert all(np.isfinite(part).all() for part in mixed)
    assert not mixed[2].any()


def test_a_share_of_batches_is_mixed_by_one_method_each() -> None:
    batch = batch_of(8, 8)
    config = AugmentConfig(mixup=1.0, cutmix=1.0, mix_share=0.5)
    kinds = {"none": 0, "cut": 0, "blend": 0}
    for step in range(400):
        mixed = mix_batch(batch, config, 3, epoch=1, step=step)
        again = mix_batch(batch, config, 3, epoch=1, step=step)
        assert all(np.array_equal(one, other) for one, other in zip(mixed, again, strict=True))
        blends = bool((np.ptp(mixed[0], axis=(1, 2, 3)) == 0).all())
        kinds["none" if mixed[0] is batch[0] else "blend" if blends else "cut"] += 1
    assert 160 < kinds["none"] < 240
    assert 70 < kinds["cut"] < 130
    assert 70 < kinds["blend"] < 130


def test_the_parts_of_a_batch_are_mixed_by_the_same_method_with_pairs_of_their_own() -> None:
    batch = batch_of(8, 8)
    config = AugmentConfig(mixup=1.0, cutmix=1.0, mix_share=0.5)
    for step in range(20):
        one, other = (mix_batch(batch, config, 3, epoch=1, step=step, group=group)[0] for group in range(2))
        assert (one is batch[0]) == (other is batch[0])
        assert one is batch[0] or not np.array_equal(one, other)
