"""Test that global batches do not depend on the number of replicas, which read only their shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.competitions import Competition
from clotkit.config import AugmentConfig, TrainingConfig, load_recipe
from clotkit.data.sources import read_source
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError
from clotkit.shards.reading import ShardTiles
from clotkit.training.augment import augment
from clotkit.training.feed import NOT_MIXED, MemoryFeed, ShardFeed, TrainingInputs, ValidationFeed, create_feed, one_hot
from clotkit.training.sampler import MAX_GROUPS, ShardSampler, count_groups, replica_groups

from .shard_folders import write_recipe, write_shards

BATCH = 16
MIXED = AugmentConfig(mixup=0.4, cutmix=1.0)
COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, strip_ai: Competition) -> Callable[[], TileSet]:
    """Return a function that reads the tiles of 16 shards, none of which was opened before."""
    folder = tmp_path_factory.mktemp("groups")
    recipe = write_recipe(folder / "sharded.toml")
    shards = write_shards(folder / "shards", recipe, strip_ai)
    return lambda: read_source(load_recipe(recipe), shards, strip_ai, None, lambda _: None)


def feed_of(tiles: TileSet, mixing: AugmentConfig = NOT_MIXED) -> tuple[ShardFeed, ShardSampler, ShardTiles]:
    """Return a feed of augmented tiles, its sampler and the tiles."""
    pixels: Any = tiles.tiles
    assert isinstance(pixels, ShardTiles)

    def draw(rows: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[Any]:
        return augment(pixels[rows], AugmentConfig(rotate_flip=True, channel_gain=0.1), rng)

    sampler = ShardSampler(pixels.owner, BATCH, 5)
    weights = np.linspace(1, 2, len(tiles)).astype(np.float32)
    return ShardFeed(draw, sampler, one_hot(tiles.labels, 2), weights, 5, mixing), sampler, pixels


@pytest.mark.parametrize("mixing", [NOT_MIXED, MIXED])
@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_the_parts_of_all_replicas_are_the_batch_of_one(
    read: Callable[[], TileSet], replicas: int, mixing: AugmentConfig
) -> None:
    feed, sampler, _ = feed_of(read(), mixing)
    assert sampler.group_count == MAX_GROUPS
    for epoch, step in ((0, 0), (0, feed.steps - 1), (3, 1)):
        whole = feed.part(epoch, step, 0, 1)
        parts = [feed.part(epoch, step, replica, replicas) for replica in range(replicas)]
        for name, wanted, *found in zip(("inputs", "classes", "weights"), whole, *parts, strict=False):
            np.testing.assert_array_equal(np.concatenate(found), wanted, name)
        assert {float(part[3]) for part in parts} == {BATCH}


@pytest.mark.parametrize("replicas", [2, 4])
def test_a_replica_reads_only_its_own_shards(read: Callable[[], TileSet], replicas: int) -> None:
    opened: list[frozenset[int]] = []
    for replica in range(replicas):
        feed, sampler, pixels = feed_of(read())
        before = pixels.shard_set.opened
        for epoch in range(2):
            for step in range(feed.steps):
                feed.part(epoch, step, replica, replicas)
        groups = replica_groups(replica, replicas, sampler.group_count)
        own = {shard for group in groups for shard in sampler.groups[group].tolist()}
        opened.append(pixels.shard_set.opened - before)
        assert opened[-1] <= own
    assert not frozenset.intersection(*opened)


@given(COUNTS, st.integers(1, 40), st.integers(0, 3))
def test_every_batch_is_full_and_a_group_uses_its_tiles_evenly(counts: list[int], batch: int, epoch: int) -> None:
    shard_of_tile = np.repeat(np.arange(len(counts)), counts)
    sampler = ShardSampler(shard_of_tile, batch, seed=1)
    assert sampler.steps == -(-len(shard_of_tile) // batch)
    assert sorted(np.concatenate(sampler.groups).tolist()) == list(range(len(counts)))
    for group in range(sampler.group_count):
        rows = np.concatenate([sampler.rows(epoch, step, group) for step in range(sampler.steps)])
        assert len(rows) == sampler.steps * sampler.group_tiles
        uses = np.bincount(rows, minlength=len(shard_of_tile))
        own = np.isin(shard_of_tile, sampler.groups[group])
        assert not uses[~own].any()
        assert uses[own].max() - uses[own].min() <= 1


def test_epochs_differ_and_together_use_every_tile() -> None:
    shard_of_tile = np.repeat(np.arange(9), [40, 3, 3, 3, 3, 3, 3, 3, 3])
    sampler = ShardSampler(shard_of_tile, BATCH, seed=1)
    used = [
        {
            int(row)
            for step in range(sampler.steps)
            for group in range(sampler.group_count)
            for row in sampler.rows(epoch, step, group)
        }
        for epoch in range(20)
    ]
    assert len(used[0]) < len(shard_of_tile)  # the group of the large shard leaves some tiles out
    assert set.union(*used) == set(range(len(shard_of_tile)))
    assert not np.array_equal(sampler.rows(0, 0, 0), sampler.rows(1, 0, 0))
    np.testing.assert_array_equal(ShardSampler(shard_of_tile, BATCH, seed=1).rows(7, 2, 1), sampler.rows(7, 2, 1))


def test_an_epoch_contains_each_tile_as_often_as_copies_says() -> None:
    shard_of_tile, copies = np.repeat(np.arange(4), 8), np.tile([1, 3], 16)
    sampler = ShardSampler(shard_of_tile, 8, 1, lambda epoch: copies)
    rows = [sampler.rows(0, step, group) for step in range(sampler.steps) for group in range(sampler.group_count)]
    np.testing.assert_array_equal(np.bincount(np.concatenate(rows), minlength=32), copies)


@pytest.mark.parametrize(
    ("batch", "shards", "groups"),
    [(16, 20, 8), (12, 20, 6), (20, 20, 5), (7, 20, 7), (16, 3, 2), (11, 20, 1), (4, 9, 4)],
)
def test_groups_divide_the_batch_and_have_a_shard_each(batch: int, shards: int, groups: int) -> None:
    assert count_groups(batch, shards) == groups


def test_replicas_that_cannot_share_the_groups_are_refused() -> None:
    assert [list(replica_groups(replica, 3, 6)) for replica in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ConfigError, match=r"3 .*8"):
        replica_groups(0, 3, 8)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9))
def test_parts_from_memory_and_of_validation_contain_every_item_once(items: int, replicas: int, batch: int) -> None:
    values, ones = np.arange(items, dtype=np.float32)[:, None], np.ones(items, np.float32)

    def weighted(parts: list[tuple[Any, ...]]) -> list[float]:
        return [value for part in parts for value in part[0][part[2] > 0, 0].tolist()]

    validation = ValidationFeed((values, values, ones), batch, replicas)
    steps = range(validation.steps)
    parts = [validation.part(0, step, replica, replicas) for replica in range(replicas) for step in steps]
    assert weighted(parts) == list(range(items))
    feed = MemoryFeed(lambda rows, rng: values[rows], lambda epoch: np.arange(items), values, ones, batch, 0)
    parts = [feed.part(0, step, replica, replicas) for step in range(feed.steps) for replica in range(replicas)]
    assert weighted(parts) == list(range(items))
    assert all(len(part[0]) for part in parts)  # an empty one would fail in TensorFlow


@pytest.mark.parametrize("replicas", [2, 3])
def test_mixed_parts_from_memory_are_the_batch_of_one(replicas: int) -> None:
    tiles = np.random.default_rng(0).uniform(0, 255, (20, 4, 4, 3)).astype(np.float32)
    classes, weights = one_hot(np.arange(20) % 2, 2), np.linspace(1, 2, 20).astype(np.float32)
    plain, mixed = (
        MemoryFeed(lambda rows, rng: tiles[rows], lambda epoch: np.arange(20), classes, weights, 8, 0, mixing)
        for mixing in (NOT_MIXED, MIXED)
    )
    for step in range(mixed.steps):
        whole = mixed.part(1, step, 0, 1)
        parts = [mixed.part(1, step, replica, replicas) for replica in range(replicas)]
        for found, wanted, unmixed in zip(zip(*parts, strict=True), whole[:3], plain.part(1, step, 0, 1), strict=False):
            np.testing.assert_array_equal(np.concatenate(found), wanted)
            assert not np.array_equal(wanted, unmixed)


def test_groups_of_one_tile_cannot_be_mixed(read: Callable[[], TileSet]) -> None:
    tiles = read()
    pixels: Any = tiles.tiles
    training = TrainingConfig(seed=1, epochs=1, batch_tiles=8, learning_rate=1e-3)
    weights = np.ones(len(tiles), np.float32)
    inputs = TrainingInputs(
        None, lambda rows, rng: rows, one_hot(tiles.labels, 2), tiles.labels, weights, None, pixels.owner
    )
    assert create_feed(inputs, training, NOT_MIXED, 1).steps > 0
    with pytest.raises(ConfigError, match=r"training\.batch_tiles"):
        create_feed(inputs, training, MIXED, 1)


def test_the_order_does_not_depend_on_the_path_of_the_shards(tmp_path: Path, strip_ai: Competition) -> None:
    recipe = write_recipe(tmp_path / "sharded.toml")
    made = [write_shards(tmp_path / name, recipe, strip_ai, slides=9) for name in ("here", "there")]
    tiles = [read_source(load_recipe(recipe), folder, strip_ai, None, lambda _: None) for folder in made]
    one, other = (feed_of(found)[0].part(1, 1, 0, 1) for found in tiles)
    for found, wanted in zip(one, other, strict=True):
        np.testing.assert_array_equal(found, wanted)
