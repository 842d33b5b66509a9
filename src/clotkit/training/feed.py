"""Make the batches of a training run, from memory or from shards, for each replica and as tf.data.

Every part of a batch is a pure function of the seed, the epoch, the step and the replica. So a resumed run continues
with the batch that it would have had, and the parts of all replicas together are the batch of a single one.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clotkit.config import AugmentConfig, TrainingConfig
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError
from clotkit.training.augment import Floats, TrainingBatch, mix_batch
from clotkit.training.resampling import epoch_order, sample_weights
from clotkit.training.sampler import Rows, ShardSampler, replica_groups

NOT_MIXED = AugmentConfig()
PARALLEL_PARTS = 2  # parts that are computed at the same time, and parts that wait to be taken

Draw = Callable[[Rows, np.random.Generator], npt.NDArray[Any]]  # item numbers [b] -> their inputs [b, …]
Part = tuple[npt.NDArray[Any], Floats, Floats, Floats]  # a TrainingBatch, and the items of the global batch, float32[]


@dataclass(frozen=True)
class TrainingInputs:
    """The data that one model is fitted to.

    An item is a tile, or a slide for a head that pools whole slides.
    """

    model: Any  # Keras model of the inputs
    draw: Draw  # gives the inputs of items, augmented
    classes: Floats  # one-hot class of each item, [n, C]
    labels: Rows  # class index of each item, [n]
    weights: Floats  # weight of each item in the loss, [n]
    validation: TrainingBatch | None  # the items that choose the epoch; None without any
    shards: Rows | None = None  # the shard of each item, [n]; None when the items are in memory


def training_inputs(
    model: Any, draw: Draw, train: TileSet, validation: TileSet, inputs: npt.NDArray[Any], config: TrainingConfig
) -> TrainingInputs:
    """Return inputs whose items have the classes and weights of the rows of `train`, in memory.

    `inputs` are the model's inputs for the rows of `validation`.
    """
    batch = None
    if len(validation):
        batch = (inputs, one_hot(validation.labels, len(validation.classes)), sample_weights(validation, config))
    classes = one_hot(train.labels, len(train.classes))
    return TrainingInputs(model, draw, classes, train.labels, sample_weights(train, config), batch)


def one_hot(labels: Rows, classes: int) -> Floats:
    """Return float32[n, C] for class indices int64[n]."""
    return np.eye(classes, dtype=np.float32)[labels]


class Feed(Protocol):
    """The batches of a run."""

    steps: int  # global batches in an epoch

    def part(self, epoch: int, step: int, replica: int, replicas: int) -> Part:
        """Return a replica's part of a global batch."""
        ...


def create_feed(inputs: TrainingInputs, config: TrainingConfig, augment: AugmentConfig, seed: int) -> Feed:
    """Return the global batches of the inputs: in any order from memory, or grouped by shard.

    They are mixed as `augment` says. Raises ConfigError if the tiles of shards are to be mixed, and a group gives a
    batch only one of them.
    """
    labels, classes = inputs.labels, inputs.classes.shape[1]

    def order(seed_epoch: int) -> Rows:
        return epoch_order(labels, config, classes, seed, seed_epoch)

    if inputs.shards is None:
        return MemoryFeed(inputs.draw, order, inputs.classes, inputs.weights, config.batch_tiles, seed, augment)

    def copies(epoch: int) -> Rows:
        return np.bincount(order(epoch), minlength=len(labels))

    sampler = ShardSampler(inputs.shards, config.batch_tiles, seed, copies if config.balance == "oversample" else None)
    if sampler.group_tiles == 1 and (augment.mixup or augment.cutmix):
        raise ConfigError(
            f"augment.mixup is {augment.mixup}, augment.cutmix {augment.cutmix}, but each of the {sampler.group_count} "
            "groups of shards gives a batch 1 tile; pairs are mixed inside a group: set training.batch_tiles to "
            f"{2 * sampler.group_count} or more"
        )
    return ShardFeed(inputs.draw, sampler, inputs.classes, inputs.weights, seed, augment)


class MemoryFeed:
    """Items in memory, in the order of `order(seed_epoch)`; a replica takes its rows of a global batch."""

    def __init__(
        self,
        draw: Draw,
        order: Callable[[int], Rows],
        classes: Floats,
        weights: Floats,
        batch_items: int,
        seed: int,
        augment: AugmentConfig = NOT_MIXED,
    ) -> None:
        self._draw, self._order, self._classes, self._weights = draw, order, classes, weights
        self._batch_items, self._seed, self._augment = batch_items, seed, augment
        self._lock = threading.Lock()
        self._cached_order: tuple[int, Rows] = (-1, np.zeros(0, np.int64))
        self.steps = -(-len(order(0)) // batch_items)

    def part(self, epoch: int, step: int, replica: int, replicas: int) -> Part:
        """See Feed.

        Every replica draws the whole batch, because an item's random numbers follow those of the items before it, and
        because any two items may be mixed.
        """
        # Seeds count epochs from 1 in memory, from 0 with shards: kept so that earlier runs stay reproducible.
        seed_epoch = epoch + 1
        rows = self._epoch_rows(seed_epoch)[step * self._batch_items : (step + 1) * self._batch_items]
        inputs = self._draw(rows, np.random.default_rng([self._seed, seed_epoch, step]))
        begin, end = (len(rows) * edge // replicas for edge in (replica, replica + 1))
        batch = inputs, self._classes[rows], self._weights[rows]
        return _slice(mix_batch(batch, self._augment, self._seed, epoch=seed_epoch, step=step), begin, end)

    def _epoch_rows(self, seed_epoch: int) -> Rows:
        with self._lock:
            if self._cached_order[0] != seed_epoch:
                self._cached_order = seed_epoch, self._order(seed_epoch)
            return self._cached_order[1]


class ShardFeed:
    """Tiles of shards in the order of a ShardSampler; `draw` reads the tiles that it is asked for.

    Tiles are mixed with others of their group only, so a replica reads no other shards than its own.
    """

    def __init__(
        self,
        draw: Draw,
        sampler: ShardSampler,
        classes: Floats,
        weights: Floats,
        seed: int,
        augment: AugmentConfig = NOT_MIXED,
    ) -> None:
        self._draw, self._sampler, self._classes, self._weights = draw, sampler, classes, weights
        self._seed, self._augment = seed, augment
        self.steps = sampler.steps

    def part(self, epoch: int, step: int, replica: int, replicas: int) -> Part:
        """See Feed. Raises ConfigError when the replicas cannot share the groups of shards evenly."""
        groups = replica_groups(replica, replicas, self._sampler.group_count)
        drawn = [self._group(epoch, step, group) for group in groups]
        inputs, classes, weights = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        return inputs, classes, weights, np.array(self._sampler.batch_tiles, np.float32)

    def _group(self, epoch: int, step: int, group: int) -> TrainingBatch:
        """Return the tiles of one group of shards in a global batch."""
        rows = self._sampler.rows(epoch, step, group)
        inputs = self._draw(rows, np.random.default_rng([self._seed, epoch, step, group]))
        batch = inputs, self._classes[rows], self._weights[rows]
        return mix_batch(batch, self._augment, self._seed, epoch=epoch, step=step, group=group)


class ValidationFeed:
    """The validation items once, in their order, the same in every epoch; each replica has a run of them."""

    def __init__(self, validation: TrainingBatch, batch_items: int, replicas: int = 1) -> None:
        self._validation = validation
        self._batch_items = batch_items
        self.steps = -(-self._run_length(replicas) // batch_items)

    def part(self, epoch: int, step: int, replica: int, replicas: int) -> Part:
        """See Feed."""
        length = self._run_length(replicas)
        end = min((replica + 1) * length, len(self._validation[0]))
        begin = min(replica * length + step * self._batch_items, end)
        return _slice(self._validation, begin, min(begin + self._batch_items, end))

    def _run_length(self, replicas: int) -> int:
        return -(-len(self._validation[0]) // replicas)


def _slice(batch: TrainingBatch, begin: int, end: int) -> Part:
    """Return some items of a batch; for an empty slice one item of weight 0.

    An empty batch breaks TensorFlow's convolutions and the statistics of batch normalisation.
    """
    inputs, classes, weights = batch
    items = np.array(len(inputs), np.float32)
    if begin < end:
        return inputs[begin:end], classes[begin:end], weights[begin:end], items
    last = min(begin, len(inputs) - 1)
    return inputs[last : last + 1], classes[last : last + 1], np.zeros(1, np.float32), items


class BatchDataset:
    """A feed as tf.data: the parts that the replicas of this process take, in turn, of each global batch."""

    def __init__(self, feed: Feed, local_replicas: int = 1, first: int = 0, replicas: int = 1) -> None:
        """Wrap a feed for the replicas `first` … `first + local_replicas - 1` of `replicas`."""
        self._feed, self._local_replicas, self._first, self._replicas = feed, local_replicas, first, replicas
        self._failure: Exception | None = None
        self._offset = 0  # parts before the first one of `epoch`

    def epoch(self, epoch: int) -> Any:
        """Return the dataset of one epoch for Keras's `fit`: always the same object, as making one is slow."""
        self._offset = epoch * self._feed.steps * self._local_replicas
        return self._one_epoch

    @cached_property
    def _one_epoch(self) -> Any:
        return self.batches(0, 1, for_keras=True)

    def batches(self, first_epoch: int, end_epoch: int, for_keras: bool = False) -> Any:
        """Return a tf.data.Dataset of the parts of epochs first_epoch … end_epoch - 1, counted from 0.

        An element is a Part; with `for_keras`, for a single replica, it is a TrainingBatch, as Keras's `fit` takes it.
        Raises what the feed raises for the first part.
        """
        import tensorflow as tf

        types = [dtype for dtype, _ in self._spec]

        def shaped(*arrays: Any) -> tuple[Any, ...]:
            for array, (_, item_shape) in zip(arrays[:3], self._spec[:3], strict=True):
                array.set_shape((None, *item_shape))
            arrays[3].set_shape(())
            return arrays[:3] if for_keras else arrays

        # TensorFlow keeps the function of every numpy_function until the process ends: it must not keep the tiles too.
        own = weakref.ref(self)

        def part(number: Any) -> Part:
            dataset = own()
            assert dataset is not None  # whoever iterates holds it
            return dataset._part(number)

        parts_per_epoch = self._feed.steps * self._local_replicas
        numbers = tf.data.Dataset.range(first_epoch * parts_per_epoch, end_epoch * parts_per_epoch)
        parts = numbers.map(
            lambda number: shaped(*tf.numpy_function(part, [number], types)),
            num_parallel_calls=PARALLEL_PARTS,
            deterministic=True,
        )
        return parts.prefetch(PARALLEL_PARTS)

    @contextmanager
    def feed_errors(self) -> Iterator[None]:
        """Raise the feed's own exception instead of the error that TensorFlow makes of it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - TensorFlow's class depends on where the feed failed
            raise self._failure or error from None

    @cached_property
    def _spec(self) -> Sequence[tuple[Any, tuple[int, ...]]]:
        """Return the dtype of each array of a part, and its shape without the first axis."""
        part = self._feed.part(0, 0, self._first, self._replicas)
        return [(array.dtype, array.shape[1:]) for array in part]

    def _part(self, number: Any) -> Part:
        step, local = divmod(int(number) + self._offset, self._local_replicas)
        epoch, step = divmod(step, self._feed.steps)
        try:
            return self._feed.part(epoch, step, self._first + local, self._replicas)
        except Exception as error:
            self._failure = error
            raise
