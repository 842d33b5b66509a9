"""Lanes and feeds: the same global batches for any number of replicas, each of which reads its own shards alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.competitions import Competition
from clotkit.config import AugmentConfig, load_recipe
from clotkit.data.sources import read_source
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError
from clotkit.shards.reading import ShardTiles
from clotkit.training.augment import augment
from clotkit.training.feed import MemoryFeed, ShardFeed, WatchFeed
from clotkit.training.fit import one_hot
from clotkit.training.sampler import MOST_LANES, Lanes, lane_count, lanes_of

from .shard_folders import write_recipe, write_shards

BATCH = 16
COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, strip_ai: Competition) -> Callable[[], TileSet]:
    """The tiles of 16 shards, as they are when none was opened yet."""
    folder = tmp_path_factory.mktemp("lanes")
    recipe = write_recipe(folder / "sharded.toml")
    shards = write_shards(folder / "shards", recipe, strip_ai)
    return lambda: read_source(load_recipe(recipe), shards, strip_ai, None, lambda _: None)


def feed_of(tiles: TileSet) -> tuple[ShardFeed, Lanes, ShardTiles]:
    pixels: Any = tiles.tiles
    assert isinstance(pixels, ShardTiles)

    def draw(rows: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[Any]:
        return augment(pixels[rows], AugmentConfig(rotate_flip=True, channel_gain=0.1), rng)

    lanes = Lanes(pixels.owner, BATCH, 5)
    weights = np.linspace(1, 2, len(tiles)).astype(np.float32)
    return ShardFeed(draw, lanes, one_hot(tiles.labels, 2), weights, 5), lanes, pixels


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_the_parts_of_all_replicas_are_the_batch_of_one(read: Callable[[], TileSet], replicas: int) -> None:
    feed, lanes, _ = feed_of(read())
    assert lanes.count == MOST_LANES
    for epoch, step in ((0, 0), (0, feed.steps - 1), (3, 1)):
        whole = feed.part(epoch, step, 0, 1)
        parts = [feed.part(epoch, step, replica, replicas) for replica in range(replicas)]
        for name, wanted, *found in zip(("inputs", "classes", "weights"), whole, *parts, strict=False):
            np.testing.assert_array_equal(np.concatenate(found), wanted, name)
        assert {float(part[3]) for part in parts} == {BATCH}


@pytest.mark.parametrize("replicas", [2, 4])
def test_a_replica_reads_its_own_shards_alone(read: Callable[[], TileSet], replicas: int) -> None:
    opened: list[frozenset[int]] = []
    for replica in range(replicas):
        feed, lanes, pixels = feed_of(read())
        before = pixels.shard_set.opened
        for epoch in range(2):
            for step in range(feed.steps):
                feed.part(epoch, step, replica, replicas)
        own = {shard for lane in lanes_of(replica, replicas, lanes.count) for shard in lanes.shards[lane].tolist()}
        opened.append(pixels.shard_set.opened - before)
        assert opened[-1] <= own
    assert not frozenset.intersection(*opened)


@given(COUNTS, st.integers(1, 40), st.integers(0, 3))
def test_every_batch_is_full_and_no_tile_of_a_lane_has_two_turns_more(
    counts: list[int], batch: int, epoch: int
) -> None:
    owner = np.repeat(np.arange(len(counts)), counts)
    lanes = Lanes(owner, batch, seed=1)
    assert lanes.steps == -(-len(owner) // batch)
    assert sorted(np.concatenate(lanes.shards).tolist()) == list(range(len(counts)))
    for lane in range(lanes.count):
        rows = np.concatenate([lanes.rows(epoch, step, lane) for step in range(lanes.steps)])
        assert len(rows) == lanes.steps * lanes.each
        turns = np.bincount(rows, minlength=len(owner))
        mine = np.isin(owner, lanes.shards[lane])
        assert not turns[~mine].any()
        assert turns[mine].max() - turns[mine].min() <= 1


def test_another_epoch_has_another_order_and_in_the_end_all_tiles_had_a_turn() -> None:
    owner = np.repeat(np.arange(9), [40, 3, 3, 3, 3, 3, 3, 3, 3])
    lanes = Lanes(owner, BATCH, seed=1)
    seen = [
        {
            int(row)
            for step in range(lanes.steps)
            for lane in range(lanes.count)
            for row in lanes.rows(epoch, step, lane)
        }
        for epoch in range(20)
    ]
    assert len(seen[0]) < len(owner)  # the lane of the large shard leaves some out
    assert set.union(*seen) == set(range(len(owner)))
    assert not np.array_equal(lanes.rows(0, 0, 0), lanes.rows(1, 0, 0))
    np.testing.assert_array_equal(Lanes(owner, BATCH, seed=1).rows(7, 2, 1), lanes.rows(7, 2, 1))


def test_tiles_come_as_often_as_they_are_wanted() -> None:
    owner, copies = np.repeat(np.arange(4), 8), np.tile([1, 3], 16)
    lanes = Lanes(owner, 8, 1, lambda epoch: copies)
    rows = [lanes.rows(0, step, lane) for step in range(lanes.steps) for lane in range(lanes.count)]
    np.testing.assert_array_equal(np.bincount(np.concatenate(rows), minlength=32), copies)


@pytest.mark.parametrize(
    ("batch", "shards", "lanes"),
    [(16, 20, 8), (12, 20, 6), (20, 20, 5), (7, 20, 7), (16, 3, 2), (11, 20, 1), (4, 9, 4)],
)
def test_lanes_divide_the_batch_and_have_a_shard_each(batch: int, shards: int, lanes: int) -> None:
    assert lane_count(batch, shards) == lanes


def test_replicas_that_cannot_share_the_lanes_are_refused() -> None:
    assert [list(lanes_of(replica, 3, 6)) for replica in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ConfigError, match="3 replicas are to share 8 lanes"):
        lanes_of(0, 3, 8)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9))
def test_parts_from_memory_and_of_the_watched_are_all_of_them_once(items: int, replicas: int, batch: int) -> None:
    values, ones = np.arange(items, dtype=np.float32)[:, None], np.ones(items, np.float32)

    def weighed(parts: list[tuple[Any, ...]]) -> list[float]:
        return [value for part in parts for value in part[0][part[2] > 0, 0].tolist()]

    watch = WatchFeed((values, values, ones), batch, replicas)
    parts = [watch.part(0, step, replica, replicas) for replica in range(replicas) for step in range(watch.steps)]
    assert weighed(parts) == list(range(items))
    feed = MemoryFeed(lambda rows, rng: values[rows], lambda epoch: np.arange(items), values, ones, batch, 0)
    parts = [feed.part(0, step, replica, replicas) for step in range(feed.steps) for replica in range(replicas)]
    assert weighed(parts) == list(range(items))
    assert all(len(part[0]) for part in parts)  # an empty one would fail in TensorFlow


def test_a_path_is_not_needed_for_the_order(tmp_path: Path, strip_ai: Competition) -> None:
    recipe = write_recipe(tmp_path / "sharded.toml")
    made = [write_shards(tmp_path / name, recipe, strip_ai, slides=9) for name in ("here", "there")]
    tiles = [read_source(load_recipe(recipe), folder, strip_ai, None, lambda _: None) for folder in made]
    one, other = (feed_of(found)[0].part(1, 1, 0, 1) for found in tiles)
    for found, wanted in zip(one, other, strict=True):
        np.testing.assert_array_equal(found, wanted)
