"""Keep the state of a fit in a folder, so that a killed fit resumes as if it had not been."""

import io
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.files import atomic_write, atomic_write_text

HISTORY, DONE = "history.csv", "done"


class CheckpointManager:
    """The checkpoints of one fit: the weights of the last and of the best epoch, and the history.

    The weights include the optimizer's state. The history is written after the weights of its last epoch, so it never
    lists an epoch whose weights are missing.
    """

    def __init__(self, folder: Path, model: Any, keep: str, shared: bool = False) -> None:
        """Open the checkpoints in `folder`, with the history of an earlier fit if there is one.

        Args:
            folder: created if missing.
            model: a compiled Keras model.
            keep: "best" or "last", the recipe's training.keep.
            shared: other workers keep checkpoints too. One of them may be an epoch behind when all are killed, so
                one more epoch is kept to go back to.
        """
        self._folder, self._model, self._keep, self._shared = folder, model, keep, shared
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / HISTORY
        self.history = pd.read_csv(path) if path.is_file() else pd.DataFrame()

    @property
    def is_done(self) -> bool:
        """Tell if the fit came to its end."""
        return (self._folder / DONE).is_file()

    @property
    def epochs_done(self) -> int:
        """Return how many epochs the history has."""
        return len(self.history)

    def can_restore(self, epochs: int) -> bool:
        """Tell if the weights after `epochs` epochs are there, and those of the best epoch until then."""
        if not epochs:
            return True
        needed = (epochs, self._best(self.history[:epochs]))
        return all(self._weights(epoch).is_file() for epoch in needed)

    def restore(self, epochs: int) -> None:
        """Load the weights after `epochs` epochs, the optimizer's state too, and cut the history off there."""
        self.history = self.history[:epochs] if epochs else pd.DataFrame()
        if epochs:
            self._model.load_weights(self._weights(epochs))

    def save(self, logs: dict[str, float]) -> None:
        """Save the weights after an epoch, append its row to the history, and delete unneeded weights."""
        epoch = self._append(logs)
        with atomic_write(self._weights(epoch)) as temporary:
            self._model.save_weights(temporary, overwrite=True)
        text = io.StringIO()
        self.history.to_csv(text, index=False, lineterminator="\n")
        atomic_write_text(self._folder / HISTORY, text.getvalue())
        needed = {self._weights(epoch), self._weights(self._best(self.history))}
        if self._shared and epoch > 1:
            needed |= {self._weights(epoch - 1), self._weights(self._best(self.history[:-1]))}
        for path in self._folder.glob("epoch-*"):
            if path not in needed:
                path.unlink()

    def finish(self) -> pd.DataFrame:
        """Mark the fit as done, load the weights of the best epoch into the model, and return the history."""
        (self._folder / DONE).touch()
        self._model.load_weights(self._weights(self._best(self.history)))
        return self.history

    def _append(self, logs: dict[str, float]) -> int:
        """Append an epoch's row to the history, and return its number."""
        epoch = self.epochs_done + 1
        self.history = pd.concat([self.history, pd.DataFrame([{"epoch": epoch, **logs}])], ignore_index=True)
        return epoch

    def _best(self, history: pd.DataFrame) -> int:
        """Return the best epoch, which is the last one with keep = "last" or without validation."""
        if self._keep == "last" or "val_loss" not in history:
            return len(history)
        return best_epoch(history)

    def _weights(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:04d}.weights.h5"


class MemoryCheckpoints(CheckpointManager):
    """The best weights of a fit that does not resume, in memory."""

    def __init__(self, model: Any, keep: str) -> None:
        """Begin without history."""
        self._model, self._keep, self.history = model, keep, pd.DataFrame()
        self._kept: list[npt.NDArray[Any]] = []  # of the best epoch, unless that is the last one anyway

    @property
    def is_done(self) -> bool:
        """Tell that no earlier fit came to its end."""
        return False

    def save(self, logs: dict[str, float]) -> None:
        """Append an epoch's row to the history, and keep its weights if they are the best."""
        self._append(logs)
        if self._keep != "last" and "val_loss" in logs and self._best(self.history) == self.epochs_done:
            self._kept = [np.array(variable) for variable in self._variables()]

    def finish(self) -> pd.DataFrame:
        """Put the weights of the best epoch into the model, and return the history."""
        if self._best(self.history) != self.epochs_done:
            for variable, value in zip(self._variables(), self._kept, strict=True):
                variable.assign(value)
        return self.history

    def _variables(self) -> list[Any]:
        """Return the model's variables and the optimizer's, which may have averages of the weights."""
        return [*self._model.variables, *self._model.optimizer.variables]


def create_checkpoints(folder: Path | None, model: Any, keep: str, shared: bool = False) -> CheckpointManager:
    """Return the checkpoints of a fit, see CheckpointManager; in memory without a folder."""
    return MemoryCheckpoints(model, keep) if folder is None else CheckpointManager(folder, model, keep, shared)


def best_epoch(history: pd.DataFrame) -> int:
    """Return the epoch of the lowest validation loss, or training loss without validation; 1 is the first.

    A loss that is NaN is never the lowest.
    """
    losses = history["val_loss" if "val_loss" in history else "loss"].to_numpy(np.float64)
    return int(np.where(np.isnan(losses), np.inf, losses).argmin()) + 1


def delete_checkpoints(checkpoints_dir: Path) -> None:
    """Delete the folder of checkpoints that are no longer needed, if it is there."""
    with suppress(FileNotFoundError):
        shutil.rmtree(checkpoints_dir)
