"""Fitting with a strategy: every replica computes its part of a global batch, and all of them learn from the sum.

Keras 3.13's `fit` does not work under MultiWorkerMirroredStrategy (it reduces scalars along an axis, and asks for the
mean of a tuple), and its loss is the mean of the replicas' means, which is another one where a batch cannot be parted
evenly. This loop has the global batch's own loss, so that the number of replicas does not matter.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.training.devices import Team
from clotkit.training.feed import Dataset, Feed

Sums = npt.NDArray[np.float64]  # a row a step, summed over the replicas: loss, weighted hits, weights, items


def run_epochs(
    model: Any,
    loss: Any,
    team: Team,
    feed: Feed,
    watched: Feed | None,
    epochs: tuple[int, int],
    callbacks: Sequence[Any],
) -> None:
    """Train a compiled model, built in the team's scope, from one epoch up to another, as `model.fit` would.

    `loss` is a Keras loss of single items, without reduction. The callbacks are told of every epoch: accuracy and loss,
    weighted, and val_accuracy and val_loss with `watched`. All numbers are the same on every worker, so callbacks that
    stop or slow the training decide alike. Raises what the feeds raise.
    """
    import keras

    synchronise(model, team)
    first = team.worker * team.here
    seen = Dataset(feed, team.here, first, team.replicas)
    checked = None if watched is None else Dataset(watched, team.here, first, team.replicas)
    step, check = _train_step(model, loss, team), _check_step(model, loss, team)
    told = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs[1], verbose=0)
    model.stop_training = False
    told.on_train_begin()
    batches = _parts(team, seen, epochs[0] * feed.steps, epochs[1] * feed.steps)
    for epoch in range(*epochs):
        told.on_epoch_begin(epoch)
        rows = _run(step, batches, feed.steps, seen)  # [steps, 4]
        logs = _accuracy(rows) | {"loss": np.average(rows[:, 0], weights=rows[:, 3])}
        if checked is not None and watched is not None:
            rows = _run(check, _parts(team, checked, 0, watched.steps), watched.steps, checked)  # [steps, 3]
            found = _accuracy(rows) | {"loss": rows[:, 0].sum() + float(_penalty(model))}
            logs |= {f"val_{name}": value for name, value in found.items()}
        told.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    told.on_train_end()


def synchronise(model: Any, team: Team) -> None:
    """Let batch normalisation take the statistics of the global batch, not those of a replica's part."""
    import keras

    if team.replicas > 1:
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True


def _parts(team: Team, parts: Dataset, begin: int, end: int) -> Iterator[Any]:
    """This process's parts of the batches, an iterator for its replicas."""
    found: Iterator[Any] = iter(team.strategy.distribute_datasets_from_function(lambda _: parts.between(begin, end)))
    return found


def _run(step: Callable[[Any], Any], batches: Iterator[Any], steps: int, parts: Dataset) -> Sums:
    """So many steps, and what each came to, a row a step."""
    try:
        return np.array([np.asarray(step(batches), np.float64) for _ in range(steps)])
    except Exception as error:  # noqa: BLE001 - TensorFlow wraps what a feed raises in an error of its own
        raise parts.failure or error from None


def _accuracy(rows: Sums) -> dict[str, float]:
    """The weighted share of hits, by the name that Keras gives it."""
    return {"accuracy": rows[:, 1].sum() / max(rows[:, 2].sum(), 1e-9)}


def _train_step(model: Any, loss: Any, team: Team) -> Callable[[Any], Any]:
    """A step as a TensorFlow function of the iterator: [loss of the batch, weighted hits, weights, items]."""
    import tensorflow as tf

    def on_replica(inputs: Any, classes: Any, weights: Any, items: Any) -> Any:
        with tf.GradientTape() as tape:
            probabilities = model(inputs, training=True)  # [b, C]
            mine = tf.reduce_sum(loss(classes, probabilities) * weights) / items
            mine += _penalty(model) / team.replicas
            scaled = model.optimizer.scale_loss(mine)
        variables = model.trainable_variables
        model.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return _counted(mine, classes, probabilities, weights, items / team.replicas)

    return _function(on_replica, team)


def _check_step(model: Any, loss: Any, team: Team) -> Callable[[Any], Any]:
    """The same without learning: [the items' share of the loss of all, weighted hits, weights]."""
    import tensorflow as tf

    def on_replica(inputs: Any, classes: Any, weights: Any, items: Any) -> Any:
        probabilities = model(inputs, training=False)  # [b, C]
        mine = tf.reduce_sum(loss(classes, probabilities) * weights) / items
        return _counted(mine, classes, probabilities, weights)

    return _function(on_replica, team)


def _penalty(model: Any) -> Any:
    """What regularisers add to the loss."""
    import tensorflow as tf

    return tf.add_n([tf.constant(0.0), *model.losses])


def _counted(loss: Any, classes: Any, probabilities: Any, weights: Any, *others: Any) -> Any:
    """[loss, weighted hits, weights, the others] of a replica, float32."""
    import tensorflow as tf

    hits = tf.cast(tf.argmax(classes, 1) == tf.argmax(probabilities, 1), tf.float32)  # [b]
    return tf.stack([loss, tf.reduce_sum(hits * weights), tf.reduce_sum(weights), *others])


def _function(on_replica: Callable[..., Any], team: Team) -> Callable[[Any], Any]:
    import tensorflow as tf

    def step(batches: Any) -> Any:
        return team.strategy.reduce("SUM", team.strategy.run(on_replica, next(batches)), axis=None)

    made: Callable[[Any], Any] = tf.function(step, reduce_retracing=True)
    return made
