"""Order the tiles of shards into global batches that are the same for any number of processes.

Shards are dealt to groups, and every global batch takes the same number of tiles from each group. A process owns whole
groups, so it reads only its own shards. Numpy only.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError

MAX_GROUPS = 8
WINDOW = 4  # shards whose tiles are shuffled together, and so files in use at a time in each group

Rows = npt.NDArray[np.int64]
Copies = Callable[[int], Rows]  # epoch -> how often it contains each tile, int64[n]


class ShardSampler:
    """The order of tiles in shards: a pure function of the seed, the epoch and the step.

    In each epoch a group goes through its shards in a new order, WINDOW shards at a time, with the tiles of these
    shuffled. All groups make the same number of steps: a group with too few tiles starts again, and a group with too
    many leaves some out, different ones in each epoch.
    """

    def __init__(self, shard_of_tile: Rows, batch_tiles: int, seed: int, copies: Copies | None = None) -> None:
        """Deal shards to groups.

        Args:
            shard_of_tile: the shard of each tile, int64[n].
            batch_tiles: tiles in a global batch.
            seed: seed of all orders.
            copies: how often an epoch contains each tile; once by default.
        """
        self.group_count = count_groups(batch_tiles, len(np.unique(shard_of_tile)))
        self.group_tiles = batch_tiles // self.group_count  # tiles of one group in a global batch
        self._shard_of_tile, self._seed = shard_of_tile, seed
        self._copies = copies or (lambda epoch: np.ones(len(shard_of_tile), np.int64))
        self.batch_tiles = batch_tiles
        self._orders: dict[tuple[int, int], Rows] = {}

    @cached_property
    def groups(self) -> list[Rows]:
        """Return the shards of each group, dealt by falling size to the group with the fewest tiles."""
        shards, counts = np.unique(self._shard_of_tile, return_counts=True)
        shuffled = np.random.default_rng([self._seed]).permutation(len(shards))
        dealt: list[list[int]] = [[] for _ in range(self.group_count)]
        tiles = np.zeros(self.group_count, np.int64)
        for index in shuffled[np.argsort(-counts[shuffled], kind="stable")]:
            group = int(tiles.argmin())
            dealt[group].append(int(shards[index]))
            tiles[group] += counts[index]
        return [np.array(sorted(group), np.int64) for group in dealt]

    @cached_property
    def steps(self) -> int:
        """Return the number of global batches in an epoch."""
        return -(-int(self._copies(0).sum()) // self.batch_tiles)

    def rows(self, epoch: int, step: int, group: int) -> Rows:
        """Return the tiles that a group gives to a global batch, int64[group_tiles]."""
        order = self._orders.get((epoch, group))
        if order is None:
            order = self._order(epoch, group)
            self._orders = {key: kept for key, kept in self._orders.items() if key[0] >= epoch - 1}
            self._orders[epoch, group] = order
        return order[step * self.group_tiles : (step + 1) * self.group_tiles]

    def _order(self, epoch: int, group: int) -> Rows:
        """Return the tiles of a group in an epoch, int64[steps * group_tiles]."""
        needed, copies = self.steps * self.group_tiles, self._copies(epoch)
        rng = np.random.default_rng([self._seed, epoch, group])
        windows: list[Rows] = []
        while sum(map(len, windows)) < needed:
            windows += self._shuffled_windows(group, copies, rng)
        return np.concatenate(windows)[:needed]

    def _shuffled_windows(self, group: int, copies: Rows, rng: np.random.Generator) -> list[Rows]:
        """Return all tiles of a group, each as often as `copies` says, window by window."""
        shards = rng.permutation(self.groups[group])
        windows = [shards[start : start + WINDOW] for start in range(0, len(shards), WINDOW)]
        tiles = [np.concatenate([self._tiles_of[shard] for shard in window]) for window in windows]
        return [rng.permutation(np.repeat(rows, copies[rows])) for rows in tiles]

    @cached_property
    def _tiles_of(self) -> dict[int, Rows]:
        """Return the tiles of each shard."""
        order = np.argsort(self._shard_of_tile, kind="stable")
        shards, starts = np.unique(self._shard_of_tile[order], return_index=True)
        return dict(zip(shards.tolist(), np.split(order, starts[1:]), strict=True))


def count_groups(batch_tiles: int, shards: int) -> int:
    """Return the largest number up to MAX_GROUPS that divides a batch and leaves a shard for each group."""
    return max(groups for groups in range(1, min(MAX_GROUPS, shards, batch_tiles) + 1) if batch_tiles % groups == 0)


def replica_groups(replica: int, replicas: int, groups: int) -> Sequence[int]:
    """Return the groups that one replica reads. Raises ConfigError if they cannot be shared evenly."""
    if groups % replicas:
        raise ConfigError(
            f"{replicas} replicas cannot share {groups} groups of shards evenly; allowed: a number that divides "
            f"{groups} (the largest number of groups, up to {MAX_GROUPS}, that divides training.batch_tiles and leaves "
            "a shard for each); change training.batch_tiles or the number of devices"
        )
    share = groups // replicas
    return range(replica * share, (replica + 1) * share)
