"""Run the epochs of a fit: the one training loop, whatever computes the steps.

A step's batch comes from a feed.BatchDataset over the feed that feed.create_feed returns: the feed chooses the items of
the step, and its function `draw`, defined in fit.py and frozen.py, reads and augments their tiles.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from clotkit.config import TrainingConfig
from clotkit.progress import Log
from clotkit.training.checkpoints import CheckpointManager, best_epoch
from clotkit.training.trainers import Logs, Trainer

LOG_EVERY_S = 20.0  # least time between two lines of one fit

EpochCallback = Callable[[int, Logs], None]  # takes the epoch, counted from 1, and its row of the history


def run_epochs(
    trainer: Trainer, checkpoints: CheckpointManager, config: TrainingConfig, seed: int, on_epoch: EpochCallback
) -> None:
    """Train until the last epoch or an early stop, from the epoch that the checkpoints have reached.

    All numbers of an epoch are the same on every worker, so the workers decide alike. Raises what the trainer raises.
    """
    callbacks = _learning_rate_callbacks(trainer, config, checkpoints.history)
    for epoch in range(checkpoints.epochs_done, config.epochs):
        if _stops_early(checkpoints.history, config):
            break
        _seed_layers(trainer.model, seed, epoch)
        logs = trainer.train(epoch) | trainer.validate()
        for callback in callbacks:
            callback.on_epoch_end(epoch, logs)
        logs["learning_rate"] = _learning_rate(trainer.model)
        checkpoints.save(logs)
        on_epoch(epoch + 1, logs)


def _learning_rate_callbacks(trainer: Trainer, config: TrainingConfig, history: pd.DataFrame) -> list[Any]:
    """Return the Keras callbacks that change the learning rate, replayed over the epochs so far.

    A cosine schedule needs none: it is part of the optimizer, and of its saved state.
    """
    import keras

    if config.schedule == "cosine":
        return []
    trainer.model.optimizer.learning_rate = config.learning_rate
    if config.schedule == "constant":
        return []
    plateau = keras.callbacks.ReduceLROnPlateau(
        trainer.monitor, config.plateau_factor, config.plateau_patience, min_lr=config.min_learning_rate
    )
    plateau.set_model(trainer.model)
    plateau.on_train_begin()
    for epoch, row in enumerate(history.to_dict("records")):
        plateau.on_epoch_end(epoch, dict(row))
    return [plateau]


def _stops_early(history: pd.DataFrame, config: TrainingConfig) -> bool:
    """Tell if training.patience epochs brought no better loss, see best_epoch; never with patience 0."""
    return bool(config.patience and len(history) and len(history) - best_epoch(history) >= config.patience)


def _seed_layers(model: Any, seed: int, epoch: int) -> None:
    """Set the state of every random layer, such as dropout, from the seed and the epoch.

    A resumed fit then draws the same numbers as one that was not interrupted.
    """
    for number, layer in enumerate(model._flatten_layers()):
        if getattr(layer, "seed_generator", None) is not None:
            layer.seed_generator.state.assign([seed % 2**31 + number, epoch])


def _learning_rate(model: Any) -> float:
    import keras

    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


@contextmanager
def epoch_progress(title: str, total: int, log: Log) -> Iterator[EpochCallback]:
    """Show a tqdm bar of epochs on a terminal, and elsewhere a line every LOG_EVERY_S seconds at most."""
    from tqdm import tqdm

    last = time.monotonic()
    with tqdm(total=total, desc=title, unit="epoch", disable=not sys.stderr.isatty()) as bar:

        def on_epoch(epoch: int, logs: dict[str, float]) -> None:
            nonlocal last
            losses = ", ".join(f"{name} {logs[name]:.3f}" for name in ("loss", "val_loss") if name in logs)
            bar.set_postfix_str(losses, refresh=False)
            bar.update(epoch - bar.n)
            if bar.disable and time.monotonic() - last > LOG_EVERY_S:
                last = time.monotonic()
                log(f"{title}: epoch {epoch} of {total}, {losses}")

        yield on_epoch
