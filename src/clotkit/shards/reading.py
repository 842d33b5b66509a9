"""The tiles of many shards as one array that reads only the tiles that are indexed.

No TensorFlow here.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from clotkit.shards.shard import Shard

MAX_OPEN = 64  # shards that are memory-mapped at a time

TileArray = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LazyShard:
    """A shard that is opened when its first tile is read."""

    tiles: int  # number of tiles
    key: str  # see shard_key
    open: Callable[[bool], Shard]  # with True, every byte is compared with the shard's checksum


@dataclass(frozen=True)
class ShardSet:
    """Shards in a row, whose tiles have consecutive numbers.

    Each shard is verified when it is first opened. Several threads may read at a time.
    """

    shards: Sequence[LazyShard]
    tile_px: int
    max_open: int = MAX_OPEN
    starts: Rows = field(init=False)  # [shards + 1]: the number of each shard's first tile, and of all tiles
    _open: "OrderedDict[int, TileArray]" = field(init=False, default_factory=OrderedDict)  # least recently used first
    _verified: set[int] = field(init=False, default_factory=set)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _shard_locks: list[threading.Lock] = field(init=False)

    def __post_init__(self) -> None:
        counts = [shard.tiles for shard in self.shards]
        object.__setattr__(self, "starts", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
        object.__setattr__(self, "_shard_locks", [threading.Lock() for _ in counts])

    @property
    def opened(self) -> frozenset[int]:
        """The numbers of the shards that have ever been opened."""
        return frozenset(self._verified)

    def read(self, rows: Rows) -> TileArray:
        """Read the tiles with these numbers, in this order: uint8[n, tile_px, tile_px, 3].

        Raises whatever `LazyShard.open` raises.
        """
        owner = self.owner(rows)
        tiles = np.empty((len(rows), self.tile_px, self.tile_px, 3), np.uint8)
        for shard in np.unique(owner):
            chosen = np.flatnonzero(owner == shard)
            wanted = rows[chosen] - self.starts[shard]
            forward = np.argsort(wanted, kind="stable")  # in the order of the file
            tiles[chosen[forward]] = self._tiles(int(shard))[wanted[forward]]
        return tiles

    def owner(self, rows: Rows) -> Rows:
        """Return the number of the shard of each tile."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _tiles(self, shard: int) -> TileArray:
        with self._shard_locks[shard]:  # one thread opens it; threads that want other shards do not wait
            with self._lock:
                if shard in self._open:
                    self._open.move_to_end(shard)
                    return self._open[shard]
            tiles = self.shards[shard].open(shard not in self._verified).tiles
            with self._lock:
                self._verified.add(shard)
                self._open[shard] = tiles
                while len(self._open) > self.max_open:
                    self._open.popitem(last=False)
            return tiles


class ShardTiles:
    """Some tiles of a set of shards, with the interface of an array uint8[n, tile_px, tile_px, 3].

    Indexing with a number, a slice or an array of numbers reads these tiles into memory. Indexing with a boolean mask
    [n] returns another ShardTiles and reads nothing.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, shard_set: ShardSet, rows: Rows | None = None) -> None:
        self.shard_set = shard_set
        self.rows = np.arange(shard_set.starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the array: (n, tile_px, tile_px, 3)."""
        return len(self.rows), self.shard_set.tile_px, self.shard_set.tile_px, 3

    @property
    def owner(self) -> Rows:
        """The number of the shard of each tile, int64[n]."""
        return self.shard_set.owner(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Read or choose tiles, see the class. Raises IndexError as an array does."""
        picked = np.asarray(index) if not isinstance(index, slice) else index
        if not isinstance(picked, slice) and picked.dtype == bool:
            return ShardTiles(self.shard_set, self.rows[picked])
        rows = self.rows[picked]
        return self.shard_set.read(np.atleast_1d(rows))[0 if rows.ndim == 0 else slice(None)]

    def as_array(self) -> TileArray:
        """Return itself, typed as an array, for callers that only index it or take its length, shape or dtype."""
        return cast("TileArray", self)

    def fingerprint(self) -> bytes:
        """Return bytes that identify these tiles without reading them: shard keys and tile numbers."""
        keys = "\n".join(f"{shard.key} {shard.tiles}" for shard in self.shard_set.shards)
        return keys.encode() + np.ascontiguousarray(self.rows, "<i8").tobytes()
