"""Compute an epoch of training and its validation, with Keras's own `fit` or with a strategy.

Keras 3.13's `fit` does not work under MultiWorkerMirroredStrategy: it reduces scalars along an axis, and asks for the
mean of a tuple. Its loss is the mean of the replicas' means, which differs from the loss of the global batch when a
batch cannot be split evenly. StrategyTrainer computes the loss of the global batch, so the number of replicas does not
change it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clotkit.training.augment import TrainingBatch
from clotkit.training.devices import DistributedContext
from clotkit.training.feed import BatchDataset, Feed, TrainingInputs, ValidationFeed

VALIDATION_BATCH = 256  # tiles in one process

Logs = dict[str, float]  # figures of an epoch by the names that Keras gives them
Sums = npt.NDArray[np.float64]  # one row per step, summed over the replicas: loss, weighted hits, weights, items


class Trainer(Protocol):
    """Computes the epochs of one compiled model."""

    model: Any
    monitor: str  # the loss that decides: "val_loss" with validation data, else "loss"

    def train(self, epoch: int) -> Logs:
        """Train for one epoch, counted from 0, and return its accuracy and loss. Epochs have to come in order."""
        ...

    def validate(self) -> Logs:
        """Return val_accuracy and val_loss, or nothing without validation data.

        They are those of the averaged weights if the optimizer averages them.
        """
        ...


def create_trainer(
    inputs: TrainingInputs,
    loss: Callable[[str | None], Any],
    feed: Feed,
    first_epoch: int,
    end_epoch: int,
    context: DistributedContext,
    decides: bool = True,
) -> Trainer:
    """Return the trainer for a context: Keras's own when it has no strategy.

    Args:
        inputs: their model is compiled, and was built in the context's scope.
        loss: returns the model's Keras loss with a given reduction.
        feed: training batches.
        first_epoch: the first epoch to compute, counted from 0.
        end_epoch: the epoch after the last one to compute.
        context: processes and replicas.
        decides: whether the validation items choose anything, or are watched alone.
    """
    trainer: Trainer
    if context.strategy is None:
        trainer = KerasTrainer(inputs.model, feed, inputs.validation)
    else:
        trainer = StrategyTrainer(inputs.model, loss(None), feed, inputs.validation, first_epoch, end_epoch, context)
    return trainer if decides else MonitoringTrainer(trainer)


class KerasTrainer:
    """Trains with Keras's `fit`, one epoch per call: on one device, or on several with JAX's DataParallel."""

    def __init__(self, model: Any, feed: Feed, validation: TrainingBatch | None) -> None:
        self.model = model
        self.monitor = "loss" if validation is None else "val_loss"
        self._batches = BatchDataset(feed)
        self._validation = None if validation is None else BatchDataset(ValidationFeed(validation, VALIDATION_BATCH))

    def train(self, epoch: int) -> Logs:
        """See Trainer."""
        batches = self._batches.epoch(epoch)
        with self._batches.feed_errors():
            done = self.model.fit(batches, initial_epoch=epoch, epochs=epoch + 1, shuffle=False, verbose=0)
        return {name: float(values[-1]) for name, values in done.history.items()}

    def validate(self) -> Logs:
        """See Trainer."""
        if self._validation is None:
            return {}
        batches = self._validation.epoch(0)
        with self._validation.feed_errors(), averaged_weights(self.model):
            figures = self.model.evaluate(batches, return_dict=True, verbose=0)
        return {f"val_{name}": float(value) for name, value in figures.items()}


class StrategyTrainer:
    """Trains with a tf.distribute strategy: replicas compute parts of a batch and sum their gradients."""

    def __init__(
        self,
        model: Any,
        loss: Any,
        feed: Feed,
        validation: TrainingBatch | None,
        first_epoch: int,
        end_epoch: int,
        context: DistributedContext,
    ) -> None:
        """Prepare the steps; `loss` is a Keras loss of single items, without reduction."""
        synchronise_normalisation(model, context)
        self.model = model
        self.monitor = "loss" if validation is None else "val_loss"
        self._context, self._train_steps = context, feed.steps
        self._train_step, self._validation_step = (
            _train_step(model, loss, context),
            _validation_step(model, loss, context),
        )
        self._dataset = self._local_dataset(feed)
        self._batches = self._iterator(self._dataset, first_epoch, end_epoch)
        self._validation = None
        if validation is not None:
            batch = VALIDATION_BATCH // context.local_replicas  # of a replica: the limit is the memory of one process
            validation_feed = ValidationFeed(validation, batch, context.replicas)
            self._validation = self._local_dataset(validation_feed)
            self._validation_steps = validation_feed.steps

    def train(self, epoch: int) -> Logs:
        """See Trainer."""
        rows = _run(self._train_step, self._batches, self._train_steps, self._dataset)  # [steps, 4]
        return _accuracy(rows) | {"loss": float(np.average(rows[:, 0], weights=rows[:, 3]))}

    def validate(self) -> Logs:
        """See Trainer."""
        if self._validation is None:
            return {}
        batches = self._iterator(self._validation, 0, 1)
        with averaged_weights(self.model):
            rows = _run(self._validation_step, batches, self._validation_steps, self._validation)  # [steps, 3]
            figures = _accuracy(rows) | {"loss": float(rows[:, 0].sum()) + float(_penalty(self.model))}
        return {f"val_{name}": value for name, value in figures.items()}

    def _local_dataset(self, feed: Feed) -> BatchDataset:
        """Return the parts of the batches that this process's replicas take."""
        context = self._context
        return BatchDataset(feed, context.local_replicas, context.rank * context.local_replicas, context.replicas)

    def _iterator(self, dataset: BatchDataset, first_epoch: int, end_epoch: int) -> Iterator[Any]:
        """Return an iterator over some epochs that the strategy spreads over its local replicas."""
        distribute = self._context.strategy.distribute_datasets_from_function
        batches: Iterator[Any] = iter(distribute(lambda _: dataset.batches(first_epoch, end_epoch)))
        return batches


@cache
def averaging(optimizer: Any) -> Any:
    """Return an optimizer's class extended by an exponential moving average of the trained weights.

    After t earlier steps the average moves with the decay min(ema, t / (9 + t)), so that the first weights, which are
    those of chance, do not last in it (the rule of TensorFlow's ExponentialMovingAverage, counted from the step
    after the first). Keras's own `use_ema` has one decay for all steps, and puts the averages into the model at the end
    of every `fit`, which is called here once an epoch. The averages are variables of the optimizer, so checkpoints have
    them.
    """
    from keras import ops

    class Averaging(optimizer):  # type: ignore[misc]
        def __init__(self, ema: float, **settings: Any) -> None:
            super().__init__(**settings)
            self.ema = ema

        def build(self, variables: Any) -> None:
            super().build(variables)
            self.averages = self.add_optimizer_variables(variables, "average")

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            super().update_step(gradient, variable, learning_rate)
            average = self.averages[self._get_variable_index(variable)]
            earlier = ops.cast(self.iterations, variable.dtype)
            decay = ops.minimum(ops.cast(self.ema, variable.dtype), earlier / (earlier + 9))
            self.assign(average, average * decay + variable * (1 - decay))

    return Averaging


@contextmanager
def averaged_weights(model: Any) -> Iterator[None]:
    """Give a model its averaged weights inside, and its own again after."""
    if not _averages(model):
        yield
        return
    own = [np.array(variable) for variable in model.trainable_variables]
    use_averages(model)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, own, strict=True):
            variable.assign(value)


def use_averages(model: Any) -> None:
    """Replace a model's trained weights by their averages, if its optimizer has them."""
    for variable, average in zip(model.trainable_variables, _averages(model), strict=False):
        variable.assign(average)


def _averages(model: Any) -> list[Any]:
    """Return the averages of the trainable variables, in their order, or nothing."""
    # In half precision Keras wraps the optimizer.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return getattr(optimizer, "averages", [])


class MonitoringTrainer:
    """A trainer whose validation figures are for watching alone: nothing is chosen by them."""

    monitor = "loss"

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self.model = trainer, trainer.model

    def train(self, epoch: int) -> Logs:
        """See Trainer."""
        return self._trainer.train(epoch)

    def validate(self) -> Logs:
        """Return held_out_accuracy and held_out_loss."""
        return {name.replace("val_", "held_out_"): value for name, value in self._trainer.validate().items()}


def synchronise_normalisation(model: Any, context: DistributedContext) -> None:
    """Let batch normalisation use the statistics of the global batch instead of those of a replica's part."""
    import keras

    if context.replicas > 1:
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True


def _run(step: Callable[[Any], Any], batches: Iterator[Any], steps: int, dataset: BatchDataset) -> Sums:
    """Run steps and return the figures of each, one row per step."""
    with dataset.feed_errors():
        return np.array([np.asarray(step(batches), np.float64) for _ in range(steps)])


def _accuracy(rows: Sums) -> Logs:
    """Return the weighted share of correct items."""
    return {"accuracy": float(rows[:, 1].sum() / max(rows[:, 2].sum(), 1e-9))}


def _train_step(model: Any, loss: Any, context: DistributedContext) -> Callable[[Any], Any]:
    """Return a training step as a TensorFlow function of the batch iterator.

    It returns float32[4]: the loss of the global batch, the weights of the correct items, all weights, and the items.
    """
    import tensorflow as tf

    def on_replica(inputs: Any, classes: Any, weights: Any, items: Any) -> Any:
        with tf.GradientTape() as tape:
            probabilities = model(inputs, training=True)  # [b, C]
            share = tf.reduce_sum(loss(classes, probabilities) * weights) / items  # of the global batch's loss
            share += _penalty(model) / context.replicas
            scaled = model.optimizer.scale_loss(share)
        variables = model.trainable_variables
        model.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return _figures(share, classes, probabilities, weights, items / context.replicas)

    return _replicated(on_replica, context)


def _validation_step(model: Any, loss: Any, context: DistributedContext) -> Callable[[Any], Any]:
    """Return a validation step as a TensorFlow function of the batch iterator.

    It returns float32[3]: the step's share of the validation loss, the weights of the correct items, and all weights.
    """
    import tensorflow as tf

    def on_replica(inputs: Any, classes: Any, weights: Any, items: Any) -> Any:
        probabilities = model(inputs, training=False)  # [b, C]
        share = tf.reduce_sum(loss(classes, probabilities) * weights) / items
        return _figures(share, classes, probabilities, weights)

    return _replicated(on_replica, context)


def _penalty(model: Any) -> Any:
    """Return the sum of what the model's regularisers add to the loss."""
    import tensorflow as tf

    return tf.add_n([tf.constant(0.0), *model.losses])


def _figures(loss: Any, classes: Any, probabilities: Any, weights: Any, *others: Any) -> Any:
    """Return the loss, the weights of the correct items, all weights, and the others, float32[3 + others]."""
    import tensorflow as tf

    correct = tf.cast(tf.argmax(classes, 1) == tf.argmax(probabilities, 1), tf.float32)  # [b]
    return tf.stack([loss, tf.reduce_sum(correct * weights), tf.reduce_sum(weights), *others])


def _replicated(on_replica: Callable[..., Any], context: DistributedContext) -> Callable[[Any], Any]:
    """Return a TensorFlow function that runs the next batch on all replicas and sums the results."""
    import tensorflow as tf

    def step(batches: Any) -> Any:
        return context.strategy.reduce("SUM", context.strategy.run(on_replica, next(batches)), axis=None)

    compiled: Callable[[Any], Any] = tf.function(step, reduce_retracing=True)
    return compiled
