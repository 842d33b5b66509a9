"""The order in which the tiles of shards are learned from: the same global batches however many processes there are.

Shards are dealt to lanes, and every global batch takes as many tiles of each lane. A process has whole lanes, so it
reads its own shards alone. Numpy only.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError

MOST_LANES = 8
WINDOW = 4  # shards whose tiles are shuffled together: so many files are in use at a time, of a lane

Rows = npt.NDArray[np.int64]
Copies = Callable[[int], Rows]  # epoch -> how often each tile is to be in it, int64[n]


class Lanes:
    """Lanes over tiles of which `owner` int64[n] names the shards: a pure function of the seed, the epoch and the step.

    In an epoch a lane goes through its shards in an order of its own, WINDOW at a time, the tiles of those shuffled.
    All lanes make as many steps: one that runs out begins again, one that has more leaves some out, others each epoch.
    """

    def __init__(self, owner: Rows, batch_tiles: int, seed: int, copies: Copies | None = None) -> None:
        self.count = lane_count(batch_tiles, len(np.unique(owner)))
        self.each = batch_tiles // self.count  # tiles of a lane in a global batch
        self._owner, self._seed = owner, seed
        self._copies = copies or (lambda epoch: np.ones(len(owner), np.int64))
        self.batch_tiles = batch_tiles
        self._orders: dict[tuple[int, int], Rows] = {}

    @cached_property
    def shards(self) -> list[Rows]:
        """The shards of each lane: the largest first, each to the lane that has the fewest tiles yet."""
        shards, counts = np.unique(self._owner, return_counts=True)
        shuffled = np.random.default_rng([self._seed]).permutation(len(shards))
        dealt: list[list[int]] = [[] for _ in range(self.count)]
        tiles = np.zeros(self.count, np.int64)
        for index in shuffled[np.argsort(-counts[shuffled], kind="stable")]:
            lane = int(tiles.argmin())
            dealt[lane].append(int(shards[index]))
            tiles[lane] += counts[index]
        return [np.array(sorted(lane), np.int64) for lane in dealt]

    @cached_property
    def steps(self) -> int:
        """The global batches of an epoch."""
        return -(-int(self._copies(0).sum()) // self.batch_tiles)

    def rows(self, epoch: int, step: int, lane: int) -> Rows:
        """The tiles that a lane gives to a global batch, int64[each]."""
        order = self._orders.get((epoch, lane))
        if order is None:
            order = self._order(epoch, lane)
            self._orders = {key: kept for key, kept in self._orders.items() if key[0] >= epoch - 1}
            self._orders[epoch, lane] = order
        return order[step * self.each : (step + 1) * self.each]

    def _order(self, epoch: int, lane: int) -> Rows:
        needed, copies = self.steps * self.each, self._copies(epoch)
        rng = np.random.default_rng([self._seed, epoch, lane])
        found: list[Rows] = []
        while sum(map(len, found)) < needed:
            found += self._pass(lane, copies, rng)
        return np.concatenate(found)[:needed]

    def _pass(self, lane: int, copies: Rows, rng: np.random.Generator) -> list[Rows]:
        """All tiles of a lane once, or as often as they are wanted, window by window."""
        shards = rng.permutation(self.shards[lane])
        windows = [shards[start : start + WINDOW] for start in range(0, len(shards), WINDOW)]
        tiles = [np.concatenate([self._tiles_of[shard] for shard in window]) for window in windows]
        return [rng.permutation(np.repeat(rows, copies[rows])) for rows in tiles]

    @cached_property
    def _tiles_of(self) -> dict[int, Rows]:
        order = np.argsort(self._owner, kind="stable")
        shards, starts = np.unique(self._owner[order], return_index=True)
        return dict(zip(shards.tolist(), np.split(order, starts[1:]), strict=True))


def lane_count(batch_tiles: int, shards: int) -> int:
    """The most lanes, MOST_LANES at most, that part a global batch evenly and have a shard each."""
    return max(lanes for lanes in range(1, min(MOST_LANES, shards, batch_tiles) + 1) if batch_tiles % lanes == 0)


def lanes_of(replica: int, replicas: int, lanes: int) -> Sequence[int]:
    """The lanes of one replica. Raises ConfigError where they cannot be parted evenly."""
    if lanes % replicas:
        raise ConfigError(
            f"{replicas} replicas are to share {lanes} lanes of shards; allowed: a number that divides {lanes}; lanes "
            f"are the most up to {MOST_LANES} that divide training.batch_tiles and have a shard each"
        )
    each = lanes // replicas
    return range(replica * each, (replica + 1) * each)
