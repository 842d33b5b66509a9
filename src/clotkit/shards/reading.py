"""The tiles of many shards as one array that is never in memory as a whole: what is indexed is read.

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

MOST_OPEN = 64  # shards that are mapped at a time

Tiles = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Listed:
    """A shard that is not read yet: how many tiles it has, what it was made from, and how it is had.

    `open` gives it; with True it compares every byte with the shard's checksum.
    """

    tiles: int
    key: str
    open: Callable[[bool], Shard]


@dataclass(frozen=True)
class Shelf:
    """Shards one after the other, at most `most_open` of them mapped; each is checked when it is first opened."""

    shards: Sequence[Listed]
    tile_px: int
    most_open: int = MOST_OPEN
    starts: Rows = field(init=False)  # [shards + 1]: the number of the first tile of each, and of all tiles
    _open: "OrderedDict[int, Tiles]" = field(init=False, default_factory=OrderedDict)
    _checked: set[int] = field(init=False, default_factory=set)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _locks: list[threading.Lock] = field(init=False)

    def __post_init__(self) -> None:
        counts = [shard.tiles for shard in self.shards]
        object.__setattr__(self, "starts", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
        object.__setattr__(self, "_locks", [threading.Lock() for _ in counts])

    @property
    def opened(self) -> frozenset[int]:
        """The numbers of the shards that were ever opened."""
        return frozenset(self._checked)

    def read(self, rows: Rows) -> Tiles:
        """The tiles of these numbers, in their order: uint8[n, S, S, 3]. Raises what `Listed.open` raises."""
        owner = self.owner(rows)
        found = np.empty((len(rows), self.tile_px, self.tile_px, 3), np.uint8)
        for shard in np.unique(owner):
            chosen = np.flatnonzero(owner == shard)
            wanted = rows[chosen] - self.starts[shard]
            forward = np.argsort(wanted, kind="stable")  # as the tiles lie in the file
            found[chosen[forward]] = self._tiles(int(shard))[wanted[forward]]
        return found

    def owner(self, rows: Rows) -> Rows:
        """The number of the shard that each tile is of."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _tiles(self, shard: int) -> Tiles:
        with self._locks[shard]:  # one thread opens it, those that want others do not wait
            with self._lock:
                if shard in self._open:
                    self._open.move_to_end(shard)
                    return self._open[shard]
            tiles = self.shards[shard].open(shard not in self._checked).tiles
            with self._lock:
                self._checked.add(shard)
                self._open[shard] = tiles
                while len(self._open) > self.most_open:
                    self._open.popitem(last=False)
            return tiles


class ShardTiles:
    """Some of the tiles of a shelf, by the names of an array uint8[n, S, S, 3].

    A number, a slice or an array of numbers gives the tiles as an array in memory; a boolean mask [n] gives those that
    it picks as such an array again, without reading.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, shelf: Shelf, rows: Rows | None = None) -> None:
        self.shelf = shelf
        self.rows = np.arange(shelf.starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As an array has it."""
        return len(self.rows), self.shelf.tile_px, self.shelf.tile_px, 3

    @property
    def owner(self) -> Rows:
        """The number of the shard that each tile is of, int64[n]."""
        return self.shelf.owner(self.rows)

    def __getitem__(self, chosen: Any) -> Any:
        """See the class. Raises IndexError for a number or a mask that does not fit."""
        picked = np.asarray(chosen) if not isinstance(chosen, slice) else chosen
        if not isinstance(picked, slice) and picked.dtype == bool:
            return ShardTiles(self.shelf, self.rows[picked])
        rows = self.rows[picked]
        return self.shelf.read(np.atleast_1d(rows))[0 if rows.ndim == 0 else slice(None)]

    def as_array(self) -> Tiles:
        """Itself, for what takes arrays and only indexes them, asks for their length, shape or type."""
        return cast("Tiles", self)

    def fingerprint(self) -> bytes:
        """What tells these tiles from others without reading them: the shards' keys and the numbers of the tiles."""
        keys = "\n".join(f"{shard.key} {shard.tiles}" for shard in self.shelf.shards)
        return keys.encode() + np.ascontiguousarray(self.rows, "<i8").tobytes()
