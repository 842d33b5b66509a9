"""The tiles of many shards as one array: what is indexed is what it would be in memory, whatever the order."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clotkit.errors import SlideUnreadable
from clotkit.shards.reading import Listed, ShardTiles, Shelf
from clotkit.shards.shard import Shard, read_shard, write_shard
from clotkit.stores import Folder
from clotkit.tiling.tilers import Batch

COUNTS, SIDE_PX = (5, 1, 9, 3), 4
TOTAL = sum(COUNTS)
Tiles = npt.NDArray[np.uint8]
Shelved = tuple[Callable[[], Shelf], Tiles]


def opener(path: Path) -> Callable[[bool], Shard]:
    return lambda verify: read_shard(path, verify)


@pytest.fixture(scope="module")
def shelved(tmp_path_factory: pytest.TempPathFactory) -> Shelved:
    """Four shards, two of them open at a time, and the same tiles in memory."""
    folder, rng = tmp_path_factory.mktemp("shelf"), np.random.default_rng(0)
    listed, whole = [], []
    for number, count in enumerate(COUNTS):
        tiles = rng.integers(0, 256, (count, SIDE_PX, SIDE_PX, 3)).astype(np.uint8)
        name = f"{number}.npy"
        write_shard(Folder(folder), name, [Batch(tiles, np.zeros((count, 2), np.int32))], f"key {number}")
        listed.append(Listed(count, f"key {number}", opener(folder / name)))
        whole.append(tiles)
    return lambda: Shelf(listed, SIDE_PX, most_open=2), np.concatenate(whole)


def masks(length: int) -> st.SearchStrategy[npt.NDArray[np.bool_]]:
    return st.lists(st.booleans(), min_size=length, max_size=length).map(lambda bits: np.array(bits, bool))


@given(masks(TOTAL), st.data())
def test_it_is_indexed_as_an_array_is(shelved: Shelved, mask: npt.NDArray[np.bool_], data: st.DataObject) -> None:
    tiles, whole = ShardTiles(shelved[0]())[mask], shelved[1][mask]
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


def test_a_mask_reads_nothing_and_an_index_only_what_it_needs(shelved: Shelved) -> None:
    shelf = shelved[0]()
    tiles = ShardTiles(shelf)
    assert tiles.owner.tolist() == np.repeat(np.arange(len(COUNTS)), COUNTS).tolist()
    some = tiles[np.arange(TOTAL) % 2 == 0]
    assert shelf.opened == frozenset()
    some[np.array([0, 1])]
    assert shelf.opened == {0}


@pytest.mark.parametrize("wrong", [np.array([TOTAL]), np.ones(TOTAL - 1, bool), TOTAL])
def test_what_is_not_there_is_refused(shelved: Shelved, wrong: object) -> None:
    with pytest.raises(IndexError):
        ShardTiles(shelved[0]())[wrong]


def test_fingerprints_tell_tiles_apart(shelved: Shelved) -> None:
    tiles = ShardTiles(shelved[0]())
    assert tiles.fingerprint() == ShardTiles(shelved[0]()).fingerprint()
    assert tiles.fingerprint() != tiles[np.arange(TOTAL) > 0].fingerprint()


def test_a_shard_is_checked_when_it_is_first_opened(tmp_path: Path) -> None:
    tiles = np.zeros((2, SIDE_PX, SIDE_PX, 3), np.uint8)
    write_shard(Folder(tmp_path), "0.npy", [Batch(tiles, np.zeros((2, 2), np.int32))], "key")
    with (tmp_path / "0.npy").open("r+b") as file:
        file.seek(150)
        file.write(b"\x01")
    shelf = Shelf([Listed(2, "key", opener(tmp_path / "0.npy"))], SIDE_PX)
    with pytest.raises(SlideUnreadable, match="not a whole shard"):
        shelf.read(np.array([1]))
