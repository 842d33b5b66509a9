"""Test the training loop and its checkpoints with a trainer of given losses, without a network."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clotkit.config import TrainingConfig
from clotkit.training.checkpoints import CheckpointManager
from clotkit.training.epochs import run_epochs

SETTINGS = TrainingConfig(seed=1, epochs=8, batch_tiles=4, learning_rate=0.5, schedule="constant")


class Model:
    """A model whose only weight is the number of epochs that it was trained for."""

    def __init__(self) -> None:
        self.weight = 0
        self.optimizer = SimpleNamespace(learning_rate=0.0)

    def save_weights(self, path: Path, overwrite: bool) -> None:
        Path(path).write_text(str(self.weight))

    def load_weights(self, path: Path) -> None:
        self.weight = int(Path(path).read_text())

    def _flatten_layers(self) -> list[Any]:
        return []


class Trainer:
    """A trainer that gives a validation loss per epoch, and dies after the last one."""

    monitor = "val_loss"

    def __init__(self, model: Model, losses: list[float]) -> None:
        self.model, self.losses = model, losses

    def train(self, epoch: int) -> dict[str, float]:
        if epoch == len(self.losses):
            raise KeyboardInterrupt
        assert self.model.weight == epoch
        self.model.weight += 1
        return {"accuracy": 0.5, "loss": 1.0}

    def validate(self) -> dict[str, float]:
        return {"val_accuracy": 0.5, "val_loss": self.losses[self.model.weight - 1]}


def checkpoints_in(folder: Path, model: Model, keep: str = "best", shared: bool = False) -> CheckpointManager:
    checkpoints = CheckpointManager(folder, model, keep, shared)
    checkpoints.restore(checkpoints.epochs_done)
    return checkpoints


def trained(folder: Path, losses: list[float], config: TrainingConfig = SETTINGS) -> tuple[Model, list[int]]:
    """Return the trained model, and the epochs that the callback heard of."""
    model, epochs = Model(), list[int]()
    checkpoints = checkpoints_in(folder, model, config.keep)
    run_epochs(Trainer(model, losses), checkpoints, config, 1, lambda epoch, logs: epochs.append(epoch))
    checkpoints.finish()
    return model, epochs


def with_settings(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{**vars(SETTINGS), **settings})


def test_the_best_epoch_is_loaded_and_only_needed_weights_stay(tmp_path: Path) -> None:
    model, epochs = trained(tmp_path, [5, 4, 1, 3, 4, 5, 6, 7])
    assert model.weight == 3
    assert epochs == list(range(1, 9))
    assert sorted(path.name[:10] for path in tmp_path.glob("epoch-*")) == ["epoch-0003", "epoch-0008"]
    assert checkpoints_in(tmp_path, Model()).is_done


def test_the_last_epoch_is_loaded_when_the_recipe_keeps_it(tmp_path: Path) -> None:
    assert trained(tmp_path, [5, 4, 1, 3, 4, 5, 6, 7], with_settings(keep="last"))[0].weight == 8


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    assert trained(tmp_path, [5, float("nan"), 4, 6, 6, 6, 6, 6])[0].weight == 3


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_training_stops_after_patience_epochs_without_a_better_loss(patience: int, tmp_path: Path) -> None:
    _, epochs = trained(tmp_path, [5, 4, 4, 4, 4, 4, 4, 4], with_settings(patience=patience))
    assert epochs == list(range(1, 2 + patience + 1))


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_a_resumed_run_has_the_history_of_a_whole_one(killed_after: int, tmp_path: Path) -> None:
    losses = [5.0, 4, 4, 4, 3, 3, 3, 3]
    config = with_settings(schedule="plateau", plateau_patience=2, plateau_factor=0.1)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", losses[:killed_after], config)
    _, epochs = trained(tmp_path / "killed", losses, config)
    assert epochs == list(range(killed_after + 1, 9))
    trained(tmp_path / "whole", losses, config)
    histories = [(tmp_path / name / "history.csv").read_text() for name in ("killed", "whole")]
    assert histories[0] == histories[1]
    rates = CheckpointManager(tmp_path / "whole", Model(), "best").history["learning_rate"]
    assert np.allclose(rates, [0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005])


def test_workers_can_go_back_by_one_epoch(tmp_path: Path) -> None:
    model = Model()
    checkpoints = checkpoints_in(tmp_path, model, shared=True)
    with pytest.raises(KeyboardInterrupt):
        run_epochs(Trainer(model, [5, 4, 6, 3]), checkpoints, SETTINGS, 1, lambda epoch, logs: None)
    assert [epoch for epoch in range(5) if checkpoints.can_restore(epoch)] == [0, 2, 3, 4]  # 2 is the best until 3
    checkpoints.restore(3)
    assert (model.weight, checkpoints.epochs_done) == (3, 3)
