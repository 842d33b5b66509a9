"""ShardTiles gives the same tiles as an array in memory, in any order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.errors import SlideUnreadable
from clotkit.shards.reading import LazyShard, ShardSet, ShardTiles
from clotkit.shards.shard import Shard, read_shard, write_shard
from clotkit.stores import Folder
from clotkit.tiling.tilers import Batch

COUNTS, SIDE_PX = (5, 1, 9, 3), 4
TOTAL = sum(COUNTS)
TileArray = npt.NDArray[np.uint8]
Sharded = tuple[Callable[[], ShardSet], TileArray]


def opener(path: Path) -> Callable[[bool], Shard]:
    return lambda verify: read_shard(path, verify)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Sharded:
    """Return a set of four shards, at most two of them open at a time, and the same tiles in memory."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    shards, whole = [], []
    for number, count in enumerate(COUNTS):
        tiles = rng.integers(0, 256, (count, SIDE_PX, SIDE_PX, 3)).astype(np.uint8)
        name = f"{number}.npy"
        write_shard(Folder(folder), name, [Batch(tiles, np.zeros((count, 2), np.int32))], f"key {number}")
        shards.append(LazyShard(count, f"key {number}", opener(folder / name)))
        whole.append(tiles)
    return lambda: ShardSet(shards, SIDE_PX, max_open=2), np.concatenate(whole)


def masks(length: int) -> st.SearchStrategy[npt.NDArray[np.bool_]]:
    return st.lists(st.booleans(), min_size=length, max_size=length).map(lambda bits: np.array(bits, bool))


@given(masks(TOTAL), st.data())
def test_indexing_is_that_of_an_array(sharded: Sharded, mask: npt.NDArray[np.bool_], data: st.DataObject) -> None:
    tiles, whole = ShardTiles(sharded[0]())[mask], sharded[1][mask]
    assert isinstance(tiles, ShardTiles)
    assert (len(tiles), tiles.shape, tiles.dtype, tiles.ndim) == (len(whole), whole.shape, whole.dtype, whole.ndim)
    edges = st.none() | st.integers(-TOTAL, TOTAL)
    part = slice(data.draw(edges), data.draw(edges), data.draw(st.sampled_from((None, 1, 2, -1))))
    np.testing.assert_array_equal(tiles[part], whole[part])
    again = data.draw(masks(len(whole)))
    np.testing.assert_array_equal(tiles[again][:], whole[again])
    if len(whole):
        rows = np.array(data.draw(st.lists(st.integers(-len(whole), len(whole) - 1), max_size=30)), np.int64)
        np.testing.assert_array_equal(tiles[rows], whole[rows])
        np.testing.assert_array_equal(tiles[int(rows[0]) if len(rows) else 0], whole[rows[0] if len(rows) else 0])


def test_a_mask_opens_no_shard_and_an_index_only_those_it_needs(sharded: Sharded) -> None:
    shard_set = sharded[0]()
    tiles = ShardTiles(shard_set)
    assert tiles.owner.tolist() == np.repeat(np.arange(len(COUNTS)), COUNTS).tolist()
    some = tiles[np.arange(TOTAL) % 2 == 0]
    assert shard_set.opened == frozenset()
    some[np.array([0, 1])]
    assert shard_set.opened == {0}


@pytest.mark.parametrize("wrong", [np.array([TOTAL]), np.ones(TOTAL - 1, bool), TOTAL])
def test_an_index_out_of_range_is_refused(sharded: Sharded, wrong: object) -> None:
    with pytest.raises(IndexError):
        ShardTiles(sharded[0]())[wrong]


def test_fingerprints_tell_tiles_apart(sharded: Sharded) -> None:
    tiles = ShardTiles(sharded[0]())
    assert tiles.fingerprint() == ShardTiles(sharded[0]()).fingerprint()
    assert tiles.fingerprint() != tiles[np.arange(TOTAL) > 0].fingerprint()


def test_a_shard_is_verified_when_it_is_first_opened(tmp_path: Path) -> None:
    tiles = np.zeros((2, SIDE_PX, SIDE_PX, 3), np.uint8)
    write_shard(Folder(tmp_path), "0.npy", [Batch(tiles, np.zeros((2, 2), np.int32))], "key")
    with (tmp_path / "0.npy").open("r+b") as file:
        file.seek(150)
        file.write(b"\x01")
    shard_set = ShardSet([LazyShard(2, "key", opener(tmp_path / "0.npy"))], SIDE_PX)
    with pytest.raises(SlideUnreadable):
        shard_set.read(np.array([1]))
