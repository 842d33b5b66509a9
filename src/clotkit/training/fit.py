"""Fit one network: prepare its inputs, compile it, run the epochs and load the best one.

The training loop itself is epochs.run_epochs.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.config import Recipe, TrainingConfig, loss_of
from clotkit.data.tiles import TileSet
from clotkit.members.heads import ORDERED_LOSSES, item_loss
from clotkit.members.networks import Network
from clotkit.shards.reading import ShardTiles
from clotkit.training.augment import augment
from clotkit.training.checkpoints import CheckpointManager, create_checkpoints
from clotkit.training.devices import DistributedContext
from clotkit.training.epochs import EpochCallback, run_epochs
from clotkit.training.feed import TrainingInputs, create_feed, training_inputs
from clotkit.training.frozen import FrozenFeatures, frozen_inputs
from clotkit.training.resampling import Rows, add_synthetic
from clotkit.training.trainers import averaging, create_trainer, use_averages


def fit(
    network: Network,
    train: TileSet,
    validation: TileSet,
    recipe: Recipe,
    *,
    seed: int,
    checkpoints_dir: Path | None,
    frozen_features: tuple[FrozenFeatures, FrozenFeatures] | None = None,
    decides: bool = True,
    on_epoch: EpochCallback = lambda epoch, logs: None,
    context: DistributedContext | None = None,
) -> pd.DataFrame:
    """Train a network in place and return its history.

    Args:
        network: built in the scope of devices.training_scope.
        train: tiles to learn from.
        validation: tiles that choose the best epoch; may be empty.
        recipe: settings.
        seed: of tile order, augmentation and dropout; it gives the same weights on one machine, also when resumed.
        checkpoints_dir: folder of this fit's and this worker's checkpoints; None: it does not resume.
        frozen_features: of `train` and `validation`, if the backbone is frozen; then only the head learns.
        decides: False: validation chooses nothing, and its figures are held_out_loss and held_out_accuracy.
        on_epoch: called after every epoch.
        context: processes and replicas. Each worker calls this alike; they resume after the last epoch that all have.

    Returns:
        One row per epoch: epoch, loss, accuracy and learning_rate, and val_loss and val_accuracy with validation.

    Raises:
        ConfigError: the replicas cannot share the groups of shards.
        SlideUnreadable: a shard is damaged.
        ClusterError: another worker is gone.
    """
    import keras

    context = context or DistributedContext()
    keras.utils.set_random_seed(seed)
    config, inputs = recipe.training, _inputs(network, train, validation, recipe, seed, frozen_features)
    feed, loss = create_feed(inputs, config, recipe.augment, seed), partial(keras_loss, config, network.output)
    with context.cluster_errors():
        compile_model(inputs.model, config, feed.steps, loss())
        checkpoints = create_checkpoints(checkpoints_dir, inputs.model, config.keep, shared=context.world_size > 1)
        if not _resume(checkpoints, context):
            trainer = create_trainer(inputs, loss, feed, checkpoints.epochs_done, config.epochs, context, decides)
            run_epochs(trainer, checkpoints, config, seed, on_epoch)
    history = checkpoints.finish()
    use_averages(inputs.model)
    return history


def _inputs(
    network: Network,
    train: TileSet,
    validation: TileSet,
    recipe: Recipe,
    seed: int,
    frozen_features: tuple[FrozenFeatures, FrozenFeatures] | None,
) -> TrainingInputs:
    """Return augmented tiles for a whole network, or features for a head over a frozen backbone."""
    if frozen_features is not None:
        return frozen_inputs(network, train, validation, recipe, frozen_features)
    train = add_synthetic(train, recipe.training, seed)

    def draw(rows: Rows, rng: np.random.Generator) -> npt.NDArray[Any]:
        return augment(train.tiles[rows], recipe.augment, rng)  # [b, S, S, 3]

    inputs = training_inputs(network.model, draw, train, validation, validation.tiles, recipe.training)
    return replace(inputs, shards=train.tiles.owner) if isinstance(train.tiles, ShardTiles) else inputs


def _resume(checkpoints: CheckpointManager, context: DistributedContext) -> bool:
    """Restore the last epoch that every worker has, and tell if all workers had finished.

    If one of them has lost the weights of that epoch, all start again: none may run ahead of the others.
    """
    epochs, done = context.all_gather([checkpoints.epochs_done, int(checkpoints.is_done)]).min(axis=0).tolist()
    restorable = bool(context.all_gather([int(checkpoints.can_restore(epochs))]).min())
    checkpoints.restore(epochs if restorable else 0)
    return bool(done) and restorable


def compile_model(model: Any, config: TrainingConfig, steps: int, loss: Any) -> None:
    """Compile a model and make its optimizer's variables, which checkpoints restore."""
    model.compile(_optimizer(config, steps), loss, weighted_metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)


def _optimizer(config: TrainingConfig, steps: int) -> Any:
    """Return the recipe's optimizer; it averages the weights too if the recipe says so."""
    import keras

    classes = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "rmsprop": "RMSprop"}
    optimizer = getattr(keras.optimizers, classes[config.optimizer])
    settings: dict[str, Any] = {"learning_rate": _learning_rate(config, steps)}
    if config.optimizer == "adamw" or config.weight_decay:  # Keras's weight decay is decoupled in all of them
        settings["weight_decay"] = config.weight_decay
    if config.optimizer in {"sgd", "rmsprop"}:
        settings["momentum"] = config.momentum
    return averaging(optimizer)(config.ema, **settings) if config.ema else optimizer(**settings)


def _learning_rate(config: TrainingConfig, steps: int) -> Any:
    """Return the learning rate, as a Keras schedule if it is one of steps; an epoch has `steps`."""
    import keras

    if config.schedule != "cosine":
        return config.learning_rate
    cosine, decay_steps = keras.optimizers.schedules.CosineDecay, steps * (config.epochs - config.warmup_epochs)
    if not config.warmup_epochs:
        return cosine(config.learning_rate, decay_steps)
    rises = {"warmup_target": config.learning_rate, "warmup_steps": steps * config.warmup_epochs}
    return cosine(0.0, decay_steps, **rises)


def keras_loss(config: TrainingConfig, output: str, reduction: str | None = "sum_over_batch_size") -> Any:
    """Return the loss of one-hot classes and probabilities; Keras itself reduces a function's."""
    import keras

    name = loss_of(config, output)
    if name in ORDERED_LOSSES:
        return item_loss(name, config.label_smoothing)
    losses = {"categorical": keras.losses.CategoricalCrossentropy, "binary": keras.losses.BinaryCrossentropy}
    return losses[name](label_smoothing=config.label_smoothing, reduction=reduction)
