"""Keep a study in a folder: its trials, who runs which of them, and which are still to be run.

A study has as many trials as are asked for, numbered from 0. A trial is settled when it is complete, or when it
ended without a loss for any reason of TrialEnd: Optuna's journal has all of these as pruned. If its process dies, it
goes on under the same number and with the same values, as another trial of Optuna's.

Optuna's journal knows no heartbeat. So a process holds the lock of a file while it runs a trial: whoever gets that lock
knows that the process is dead, on this machine or on another one, and whatever its number was.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from clotkit.errors import ConfigError, one_line
from clotkit.locks import exclusive_file
from clotkit.tuning.search import Entry, Search, Value

JOURNAL, CLAIM, RUNNING = "study.journal", ".claim.lock", ".running"
NUMBER, SETTINGS = "number", "settings"  # attributes of a trial, and of a study
FIXED_PARAMS = "fixed_params"  # attribute that Optuna gives a trial that was queued: its values
STARTUP_TRIALS = 5  # complete trials before one is pruned
WARMUP_SHARE = 0.2  # of the epochs, in which no trial is pruned


class _JournalLock:
    """The journal's lock: it ends with its process, and whoever takes it removes a torn last line."""

    def __init__(self, journal: Path) -> None:
        self._journal, self._held = journal, ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held.enter_context(exclusive_file(self._journal.with_suffix(".lock")))
        _remove_torn_line(self._journal)
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._held.close()


def _remove_torn_line(journal: Path) -> None:
    """Cut off a last line without an end, to which the next line would be appended."""
    with journal.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if not size or (file.seek(size - 1), file.read(1))[1] == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


@dataclass(frozen=True)
class StudySettings:
    """The settings of a study."""

    folder: Path
    name: str  # of the study in the journal
    search: Search
    first: Mapping[str, Value] | None  # the values of trial 0; None: drawn like the others
    fingerprints: Mapping[str, str]  # what must be the same when the study goes on, by what it is
    seed: int
    epochs: int  # of a trial, which are reported from 1
    prunes: bool  # whether trials are compared epoch by epoch


class TuningStudy:
    """One study in the journal of a folder."""

    def __init__(self, settings: StudySettings) -> None:
        """Open the study, or create it.

        Raises ConfigError if the folder has one with other settings, or a damaged one, UsageError if it has no locks.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("optuna").handlers.clear()
        self.settings, journal = settings, settings.folder / JOURNAL
        (settings.folder / RUNNING).mkdir(parents=True, exist_ok=True)
        pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=int(WARMUP_SHARE * settings.epochs) + 1)
        with exclusive_file(settings.folder / CLAIM):
            if journal.is_file():
                _remove_torn_line(journal)
            lock: Any = _JournalLock(journal)  # has the methods of Optuna's locks, whose base class is private
            try:
                self._study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(str(journal), lock)),
                    study_name=settings.name,
                    pruner=pruner if settings.prunes else optuna.pruners.NopPruner(),
                    direction="minimize",
                    load_if_exists=True,
                )
            except (ValueError, KeyError, TypeError) as error:  # of json, and of Optuna for a line that lacks something
                raise ConfigError(
                    f"{journal}: damaged, it is no journal of a study: {one_line(error)}; put back a sound copy, or "
                    "delete it to begin again"
                ) from error
            self._check_settings()

    def _check_settings(self) -> None:
        known = self._study.user_attrs.get(SETTINGS)
        if known is None:
            self._study.set_user_attr(SETTINGS, dict(self.settings.fingerprints))
            return
        changed = [name for name, text in self.settings.fingerprints.items() if known.get(name) != text]
        if changed:
            raise ConfigError(
                f"{self.settings.folder}: its study is of another {' and '.join(changed)}; choose another folder, or "
                "delete this one"
            )

    def settled(self) -> list[FrozenTrial]:
        """Return by number the trials that ended, with a loss or without one (TrialEnd)."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return sorted(trials, key=number_of)

    def winner(self) -> FrozenTrial | None:
        """Return the complete trial with the lowest loss, the first of equals; None if no trial has a loss."""
        complete = [trial for trial in self.settled() if trial.state is TrialState.COMPLETE]
        return min(complete, key=lambda trial: (trial.value, number_of(trial)), default=None)

    def importances(self) -> dict[str, float]:
        """Return how much each key mattered, by PED-ANOVA (Watanabe et al. 2023); empty with too few trials."""
        if len({trial.value for trial in self.settled() if trial.state is TrialState.COMPLETE}) < STARTUP_TRIALS:
            return {}
        return dict(optuna.importance.get_param_importances(self._study))

    @contextmanager
    def claim(self, most: int) -> Iterator[optuna.Trial | None]:
        """Yield the next trial and hold its lock; None if `most` are settled or run elsewhere."""
        with ExitStack() as held:
            with exclusive_file(self.settings.folder / CLAIM):
                self._release_dead()
                trial = self._next(most)
                if trial is not None:
                    held.enter_context(exclusive_file(self._lock_of(trial.number)))
            yield trial
            if trial is not None:
                self._lock_of(trial.number).unlink(missing_ok=True)

    def tell(self, trial: optuna.Trial, loss: float | None, facts: Mapping[str, Any]) -> None:
        """Settle a trial: with its loss, or with None as pruned, whatever its reason is."""
        for name, value in facts.items():
            trial.set_user_attr(name, value)
        self._study.tell(trial, loss, TrialState.PRUNED if loss is None else TrialState.COMPLETE)

    def _next(self, most: int) -> optuna.Trial | None:
        """Return a trial that a dead process left, or else one of the next number."""
        known = self._study.get_trials(deepcopy=False)
        waiting = [trial for trial in known if trial.state is TrialState.WAITING]
        taken = {number_of(trial) for trial in known if trial.state is not TrialState.FAIL}
        if len(taken) - len(waiting) >= most:
            return None
        number = number_of(waiting[0]) if waiting else min(set(range(len(taken) + 1)) - taken)
        if number == 0 and not waiting and self.settings.first is not None:
            self._study.enqueue_trial(dict(self.settings.first), user_attrs={NUMBER: 0})
        # Seeded by the number, a study that was killed goes on as it would have without.
        self._study.sampler = optuna.samplers.TPESampler(seed=self.settings.seed + number, constant_liar=True)
        trial = self._study.ask(_distributions(self.settings.search))
        trial.set_user_attr(NUMBER, number)
        return trial

    def _release_dead(self) -> None:
        """Mark trials whose process is dead as failed, and queue their values under the same number."""
        known = self._study.get_trials(deepcopy=False)
        queued = {number_of(trial) for trial in known if trial.state is TrialState.WAITING}
        for trial in known:
            if trial.state is not TrialState.RUNNING:
                continue
            path = self._lock_of(trial.number)
            with exclusive_file(path, wait=False) as is_free:
                if not is_free or trial.number not in self._running():  # it may have ended just now
                    continue
                if NUMBER in trial.user_attrs and number_of(trial) not in queued:
                    self._study.enqueue_trial(_values_of(trial), user_attrs={NUMBER: number_of(trial)})
                self._study.tell(trial.number, state=TrialState.FAIL)
            path.unlink(missing_ok=True)

    def _running(self) -> set[int]:
        return {trial.number for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}

    def _lock_of(self, number: int) -> Path:
        return self.settings.folder / RUNNING / f"{self.settings.name}-{number}.lock"


def _values_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values that a trial has, and those that it was to get: it may have died between two keys."""
    return {**trial.system_attrs.get(FIXED_PARAMS, {}), **trial.params}


def number_of(trial: FrozenTrial | optuna.Trial) -> int:
    """Return the number of a trial, the same when it was begun again; -1 if it has none."""
    return int(trial.user_attrs.get(NUMBER, -1))


def _distributions(search: Search) -> dict[str, BaseDistribution]:
    return {name: _distribution(entry) for name, entry in search.entries.items()}


def _distribution(entry: Entry) -> BaseDistribution:
    if entry.choices:
        return CategoricalDistribution(list(entry.labels))
    low, high = entry.low or 0, entry.high or 0
    if entry.is_integer:
        return IntDistribution(int(low), int(high), entry.log, int(entry.step or 1))
    return FloatDistribution(float(low), float(high), entry.log, entry.step)
