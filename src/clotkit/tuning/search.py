"""Read a search: which keys of a recipe are tuned, and between which values. No Optuna here."""

import copy
import dataclasses
import itertools
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clotkit.config import BOUNDS, WORDS, AugmentConfig, InferenceConfig, ModelConfig, Recipe, TrainingConfig
from clotkit.errors import ConfigError
from clotkit.typed_toml import convert, read_toml, toml_value, typed

Value = float | int | str | bool
Tables = dict[str, Any]  # a recipe's tables as its TOML has them

DEFAULT = Path(__file__).with_name("search.toml")
# The tables whose keys may be tuned: the others choose the data, and all trials are judged on the same tiles.
TUNED: dict[str, type] = {
    "training": TrainingConfig,
    "model": ModelConfig,
    "augment": AugmentConfig,
    "inference": InferenceConfig,
}
# Keys that no trial would judge, with the reason.
FIXED = {
    "training.seed": "the lowest loss would be that of the luckiest draw",
    "training.folds": "--inner is the number of folds",
    "training.strategy": "it chooses devices, not a result",
    "training.feed": "it chooses where tiles are read from, not a result",
    "training.validation_share": "all trials are trained and judged on the same folds",
    "training.final": "a trial judges the networks of its folds, not the ones that ship",
    "model.copies": "more networks are hardly ever worse, so the most expensive choice would win",
    "model.share": "it weighs networks that are trained all the same",
    "inference.floor": "all trials are judged with the same floor",
}
DIGITS = 4  # significant ones of a number that is drawn from a range
SCALES = (
    "training.loss", "training.label_smoothing", "training.class_weights", "training.balance", "model.l2",
    "model.output",
)  # fmt: skip
MOST_STEPS = 1_000_000  # between low and high; above it float arithmetic no longer tells whether they are whole
MOST_COMBINATIONS = 10_000  # of choices of [model] that are checked before the data are read


@dataclass(frozen=True)
class Entry:
    """The values that one key may have: the numbers of a range, or some choices."""

    low: float | int | None = None  # least value of a range
    high: float | int | None = None  # greatest one
    log: bool = False  # draw the range's logarithm evenly
    step: float | int | None = None  # between the values of a range; None: any number, or any whole one
    choices: tuple[Any, ...] = ()  # in place of a range

    @property
    def is_integer(self) -> bool:
        """Tell if the range has whole numbers."""
        return all(isinstance(end, int) for end in (self.low, self.high))

    @property
    def labels(self) -> list[Value]:
        """Return the choices as one word or number each: a list is written as TOML does."""
        return [toml_value(choice) if isinstance(choice, list | tuple) else choice for choice in self.choices]

    def value(self, label: Value) -> Any:
        """Return the recipe's value for one of `labels`, or for a number of the range, rounded to DIGITS."""
        if self.choices:
            return self.choices[self.labels.index(label)]
        if self.is_integer or self.low is None or self.high is None:
            return label
        return min(max(float(f"{label:.{DIGITS}g}"), self.low), self.high)

    def label(self, value: Any) -> Value | None:
        """Return the label of a recipe's value, None if it is not among these."""
        if self.choices:
            known = [json.dumps(choice) for choice in self.choices]
            text = json.dumps(value)
            return self.labels[known.index(text)] if text in known else None
        if value is None or self.low is None or self.high is None or not self.low <= value <= self.high:
            return None
        return typing.cast("Value", value) if self.step is None or _is_whole((value - self.low) / self.step) else None


@dataclass(frozen=True)
class Search:
    """The keys that are tuned, by table and key of a recipe as in "training.learning_rate"."""

    entries: Mapping[str, Entry]
    source: str  # path of its file

    def apply(self, tables: Tables, labels: Mapping[str, Value]) -> Tables:
        """Return a recipe's tables with the values for these labels; a key of model is set in each [[model]]."""
        changed = copy.deepcopy(tables)
        for name, label in labels.items():
            value = self.entries[name].value(label)
            table, key = name.split(".")
            for one in _all_of(changed.setdefault(table, {})):
                one[key] = list(value) if isinstance(value, tuple) else value
        return changed

    def labels_of(self, recipe: Recipe) -> dict[str, Value] | None:
        """Return the labels of a recipe's own values; None if the search does not have them all."""
        labels = {name: entry.label(value) for name, entry, value in self._own(recipe)}
        if any(label is None for label in labels.values()):
            return None
        return {name: label for name, label in labels.items() if label is not None}

    def values_outside(self, recipe: Recipe) -> dict[str, Any]:
        """Return those of a recipe's own values that the search does not have; None where its networks differ."""
        return {name: value for name, entry, value in self._own(recipe) if entry.label(value) is None}

    def values_of(self, recipe: Recipe) -> dict[str, Any]:
        """Return a recipe's own values of the keys that are tuned."""
        return {name: value for name, _, value in self._own(recipe)}

    def _own(self, recipe: Recipe) -> Iterator[tuple[str, Entry, Any]]:
        return ((name, entry, _value_of(recipe, name)) for name, entry in self.entries.items())

    def check_models(self, recipe: Recipe, check: Callable[[tuple[ModelConfig, ...]], None]) -> None:
        """Call `check` with the recipe's networks for each choice of a key of [model].

        Raises ConfigError, as `check` does, for a choice that it refuses whatever the choices of other keys are.
        """
        keys = {name.partition(".")[2]: entry.choices for name, entry in self.entries.items() if _is_model(name)}
        tuned = {key: choices for key, choices in keys.items() if choices}
        if math.prod(map(len, tuned.values())) > MOST_COMBINATIONS:
            return  # a trial that does not fit is settled as such, and the study goes on
        for key, choices in tuned.items():
            for choice in choices:
                if refused := _refusal(recipe, check, {**tuned, key: (choice,)}):
                    where = f"{self.source}: model.{key} has {toml_value(choice)}"
                    raise ConfigError(f"{where}: {refused}") from refused

    @property
    def scales_loss(self) -> bool:
        """Tell if it varies what a training's own loss is, so that trials cannot be compared epoch by epoch."""
        return any(name in self.entries for name in SCALES)

    def text(self) -> str:
        """Return all that it says, in a fixed order."""
        return json.dumps({name: dataclasses.asdict(self.entries[name]) for name in sorted(self.entries)})


def read_search(path: Path | None) -> Search:
    """Read a search file; None: the one that ships.

    Raises ConfigError for an unknown key, and for a value that the key does not take.
    """
    file, raw = read_toml(path or DEFAULT, DEFAULT.parent, "search")
    entries: dict[str, Entry] = {}
    for name, keys in _flat(raw, str(file)):
        if name in entries:
            raise ConfigError(f'{file}: {name} is given twice, as [{name}] and as "{name}" = {{…}}; keep one of them')
        _check_key(name, str(file))
        entries[name] = _entry(name, keys, f"{file}: {name}")
    if not entries:
        raise ConfigError(f"{file}: it has no key, at least 1 is needed, like [training.learning_rate]")
    return Search(entries, str(file))


def _flat(raw: Tables, where: str) -> Iterator[tuple[str, Tables]]:
    """Yield each key of a recipe with its entry, from [table.key] or "table.key" = {…}."""
    for table, keys in raw.items():
        if not isinstance(keys, dict):
            raise ConfigError(f"{where}: {table} is {keys!r}; write a table, like [training.learning_rate]")
        if "." in table:
            yield table, keys
            continue
        for key, entry in keys.items():
            if not isinstance(entry, dict):
                raise ConfigError(f"{where}: {table}.{key} is {entry!r}; give it low and high, or choices")
            yield f"{table}.{key}", entry


def _check_key(name: str, where: str) -> None:
    table, _, key = name.partition(".")
    if table not in TUNED:
        raise ConfigError(f"{where}: {name}: keys of these tables are tuned: {', '.join(TUNED)}")
    if name in FIXED:
        raise ConfigError(f"{where}: {name} cannot be tuned: {FIXED[name]}; set it in the recipe")
    known = [field.name for field in dataclasses.fields(TUNED[table]) if f"{table}.{field.name}" not in FIXED]
    if key not in known:
        raise ConfigError(f"{where}: unknown key {name}; {table} has: {', '.join(known)}")


def _entry(name: str, keys: Tables, where: str) -> Entry:
    """Return the entry of a key, with values of the key's type.

    Raises ConfigError for an entry without a range or choices, or with a value that the key refuses.
    """
    entry = typed(Entry, keys, where)
    ends = [end for end in (entry.low, entry.high, entry.step) if end is not None]
    if entry.choices:
        if ends or entry.log:
            raise ConfigError(f"{where}: choices beside a range; give choices alone, or low and high without choices")
        return replace(entry, choices=_choices(name, entry.choices, where))
    if entry.low is None or entry.high is None:
        raise ConfigError(f"{where}: give low and high, with log or step if you like, or choices alone")
    if name.partition(".")[2] in WORDS:
        allowed = ", ".join(map(toml_value, WORDS[name.partition(".")[2]]))
        raise ConfigError(
            f"{where}: low {entry.low}, high {entry.high}; not all between them are allowed: give choices of {allowed}"
        )
    if _hint_of(name) is float:  # whole bounds of such a key would draw whole numbers alone
        step = None if entry.step is None else float(entry.step)
        entry = replace(entry, low=float(entry.low), high=float(entry.high), step=step)
    _check_range(name, entry, where)
    return entry


def _choices(name: str, choices: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    """Return choices as values of the key's type. Raises ConfigError for a wrong or repeated one."""
    taken = [_checked(name, choice, where) for choice in choices]
    values = tuple(list(value) if isinstance(value, tuple) else value for value in taken)
    if len(set(map(json.dumps, values))) < max(2, len(values)):
        raise ConfigError(f"{where}: choices are {json.dumps(values)}; give at least 2, each once")
    return values


def _check_range(name: str, entry: Entry, where: str) -> None:
    """Raise ConfigError for a range whose ends the key refuses, or that its step does not divide."""
    low, high, step = typing.cast("float", entry.low), typing.cast("float", entry.high), entry.step
    if low >= high or (entry.log and (low <= 0 or step is not None)):
        raise ConfigError(
            f"{where}: low {low}, high {high}, log {str(entry.log).lower()}, step {step}; low must be below "
            "high, with log above 0 and without step"
        )
    for end in (low, high):
        _checked(name, end, where)
    if step is None:
        return
    is_sound = math.isfinite(step) and (high - low) / MOST_STEPS <= step <= high - low
    if not (is_sound and _is_whole((high - low) / step) and (isinstance(step, int) or not entry.is_integer)):
        raise ConfigError(
            f"{where}: step is {step}; from {low} to {high} it must lead in 1 to {MOST_STEPS:,} whole steps, and over "
            "whole numbers"
        )


def _hint_of(name: str) -> Any:
    """Return the type of a recipe's key."""
    table, key = name.split(".")
    return typing.get_type_hints(TUNED[table])[key]


def _checked(name: str, value: Any, where: str) -> Any:
    """Return a value as the key's type. Raises ConfigError if its type, its BOUNDS or its WORDS refuse it."""
    key = name.partition(".")[2]
    taken = convert(_hint_of(name), value, where)
    low, high = BOUNDS.get(key, (float("-inf"), float("inf")))
    for number in taken if isinstance(taken, tuple) else (taken,):
        if not isinstance(number, str) and not low <= number <= high:
            raise ConfigError(f"{where} has {number}; allowed: {low} to {high}")
    if key in WORDS and taken not in WORDS[key]:
        raise ConfigError(f"{where} has {taken!r}; allowed: {', '.join(map(str, WORDS[key]))}")
    return taken


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6


def _is_model(name: str) -> bool:
    return name.startswith("model.")


def _refusal(
    recipe: Recipe, check: Callable[[tuple[ModelConfig, ...]], None], tuned: Mapping[str, tuple[Any, ...]]
) -> ConfigError | None:
    """Return why `check` refuses every combination of these choices; None if it takes one."""
    refused: ConfigError | None = None
    for values in itertools.product(*tuned.values()):
        plain = [tuple(value) if isinstance(value, list) else value for value in values]
        changes: dict[str, Any] = dict(zip(tuned, plain, strict=True))
        try:
            check(tuple(replace(model, **changes) for model in recipe.model))
        except ConfigError as error:
            refused = refused or error
        else:
            return None
    return refused


def _value_of(recipe: Recipe, name: str) -> Any:
    """Return a recipe's value of a key; None if its networks differ in it."""
    table, key = name.split(".")
    values = [getattr(one, key) for one in _all_of(getattr(recipe, table))]
    if any(value != values[0] for value in values):
        return None
    return list(values[0]) if isinstance(values[0], tuple) else values[0]


def _all_of(table: Any) -> list[Any]:
    return list(table) if isinstance(table, list | tuple) else [table]
