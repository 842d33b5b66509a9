"""Global batches of a training, as each replica's part of them: from memory, or from shards; and as a tf.data dataset.

Every part is a pure function of the seed, the epoch, the step and the replica: a run that was killed goes on with the
batch that it would have had, and the parts of all replicas are the batch of one.
"""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clotkit.training.sampler import Lanes, Rows, lanes_of

AT_A_TIME = 2  # parts that are made ready in parallel, and that wait to be taken

Floats = npt.NDArray[np.float32]
Draw = Callable[[Rows, np.random.Generator], npt.NDArray[Any]]
Part = tuple[npt.NDArray[Any], Floats, Floats, Floats]  # inputs [b, …], classes [b, C], weights [b], items of the batch


class Feed(Protocol):
    """Where the batches come from."""

    steps: int  # global batches of an epoch

    def part(self, epoch: int, step: int, replica: int, replicas: int) -> Part:
        """A replica's part of a global batch; the last number is how many items the whole batch has, float32[]."""
        ...


class MemoryFeed:
    """Items that are in memory, in the order of `order(epoch)`; each replica takes its rows of the whole batch."""

    def __init__(
        self, draw: Draw, order: Callable[[int], Rows], classes: Floats, weights: Floats, batch_items: int, seed: int
    ) -> None:
        self._draw, self._order, self._classes, self._weights = draw, order, classes, weights
        self._batch_items, self._seed = batch_items, seed
        self._lock = threading.Lock()
        self._known: tuple[int, Rows] = (-1, np.zeros(0, np.int64))
        self.steps = -(-len(order(0)) // batch_items)

    def batch(self, epoch: int, step: int) -> tuple[npt.NDArray[Any], Floats, Floats]:
        """A whole global batch: inputs [b, …], one-hot classes [b, C], weights [b]."""
        chosen = self._in_order(epoch)[step * self._batch_items : (step + 1) * self._batch_items]
        inputs = self._draw(chosen, np.random.default_rng([self._seed, epoch, step]))
        return inputs, self._classes[chosen], self._weights[chosen]

    def part(self, epoch: int, step: int, replica: int, replicas: int) -> Part:
        """See Feed. The whole batch is drawn: what chance does to an item depends on those before it."""
        # Keras says that an epoch ends before its first one begins: for it they count from 1, and here as for it
        inputs, classes, weights = self.batch(epoch + 1, step)
        begin, end = (len(inputs) * edge // replicas for edge in (replica, replica + 1))
        return _cut((inputs, classes, weights), begin, end)

    def _in_order(self, epoch: int) -> Rows:
        with self._lock:
            if self._known[0] != epoch:
                self._known = epoch, self._order(epoch)
            return self._known[1]


class ShardFeed:
    """Tiles of shards, by lanes (see Lanes); `draw` reads those that it is asked for."""

    def __init__(self, draw: Draw, lanes: Lanes, classes: Floats, weights: Floats, seed: int) -> None:
        self._draw, self._lanes, self._classes, self._weights, self._seed = draw, lanes, classes, weights, seed
        self.steps = lanes.steps

    def part(self, epoch: int, step: int, replica: int, replicas: int) -> Part:
        """See Feed. Raises ConfigError where the lanes cannot be parted evenly."""
        lanes = lanes_of(replica, replicas, self._lanes.count)
        drawn = [self._lane(epoch, step, lane) for lane in lanes]
        inputs, rows = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        return inputs, self._classes[rows], self._weights[rows], np.array(self._lanes.batch_tiles, np.float32)

    def _lane(self, epoch: int, step: int, lane: int) -> tuple[npt.NDArray[Any], Rows]:
        rows = self._lanes.rows(epoch, step, lane)
        return self._draw(rows, np.random.default_rng([self._seed, epoch, step, lane])), rows


def _cut(batch: tuple[npt.NDArray[Any], Floats, Floats], begin: int, end: int) -> Part:
    """Some items of a batch; instead of none, one of no weight: TensorFlow's convolutions fail on empty batches."""
    inputs, classes, weights = batch
    items = np.array(len(inputs), np.float32)
    if begin < end:
        return inputs[begin:end], classes[begin:end], weights[begin:end], items
    last = min(begin, len(inputs) - 1)
    return inputs[last : last + 1], classes[last : last + 1], np.zeros(1, np.float32), items


class WatchFeed:
    """Watched items once, in their order; each replica has a run of them that lie together. No epoch matters."""

    def __init__(self, watched: tuple[npt.NDArray[Any], Floats, Floats], batch_items: int, replicas: int = 1) -> None:
        self._inputs, self._classes, self._weights = watched
        self._batch_items = batch_items
        self.steps = -(-self._most(replicas) // batch_items)

    def _most(self, replicas: int) -> int:
        return -(-len(self._inputs) // replicas)

    def part(self, epoch: int, step: int, replica: int, replicas: int) -> Part:
        """See Feed."""
        most = self._most(replicas)
        end = min((replica + 1) * most, len(self._inputs))
        begin = min(replica * most + step * self._batch_items, end)
        return _cut((self._inputs, self._classes, self._weights), begin, min(begin + self._batch_items, end))


class Dataset:
    """A feed as tf.data: what a process's replicas take, in turn, of the global batches from one step to another.

    `failure` is what was raised in the feed: TensorFlow makes an error of its own of it.
    """

    def __init__(self, feed: Feed, here: int = 1, first: int = 0, replicas: int = 1) -> None:
        self._feed, self._here, self._first, self._replicas = feed, here, first, replicas
        self.failure: Exception | None = None

    @cached_property
    def _spec(self) -> Sequence[tuple[Any, tuple[int, ...]]]:
        """The type, and the shape after the first axis, of each array of a part."""
        part = self._feed.part(0, 0, self._first, self._replicas)
        return [(array.dtype, array.shape[1:]) for array in part]

    def between(self, begin: int, end: int, whole: bool = False) -> Any:
        """A tf.data.Dataset of the parts of steps begin … end - 1, counted on from epoch to epoch.

        An element is (inputs, classes, weights, items of the batch); for a `whole` batch, as Keras takes it, without
        the last. Raises what the feed raises for the first part.
        """
        import tensorflow as tf

        types = [array_type for array_type, _ in self._spec]

        def shaped(*arrays: Any) -> tuple[Any, ...]:
            for array, (_, rest) in zip(arrays[:3], self._spec[:3], strict=True):
                array.set_shape((None, *rest))
            arrays[3].set_shape(())
            return arrays[:3] if whole else arrays

        numbers = tf.data.Dataset.range(begin * self._here, end * self._here)
        parts = numbers.map(
            lambda number: shaped(*tf.numpy_function(self._part, [number], types)),
            num_parallel_calls=AT_A_TIME,
            deterministic=True,
        )
        return parts.prefetch(AT_A_TIME)

    def _part(self, number: Any) -> Part:
        step, local = divmod(int(number), self._here)
        try:
            return self._feed.part(
                step // self._feed.steps, step % self._feed.steps, self._first + local, self._replicas
            )
        except Exception as error:
            self.failure = error
            raise
