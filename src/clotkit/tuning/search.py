"""Read a search: which keys of a recipe are tuned, and between which values. No Optuna here."""

import copy
import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
FIXED = ("training.seed", "training.folds", "training.strategy", "training.feed", "model.copies", "model.share")
DIGITS = 4  # significant ones of a number that is drawn from a range
SCALES = ("training.loss", "training.label_smoothing", "training.class_weights", "training.balance", "model.l2")


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
        labels = {name: entry.label(_value_of(recipe, name)) for name, entry in self.entries.items()}
        if any(label is None for label in labels.values()):
            return None
        return {name: label for name, label in labels.items() if label is not None}

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
    entries = {name: typed(Entry, entry, f"{file}: {name}") for name, entry in _flat(raw, str(file))}
    if not entries:
        raise ConfigError(f"{file}: it has no key, at least 1 is needed, like [training.learning_rate]")
    search = Search(entries, str(file))
    for name, entry in entries.items():
        _check_key(name, str(file))
        _check_entry(name, entry, f"{file}: {name}")
    return search


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
    known = [field.name for field in dataclasses.fields(TUNED[table]) if f"{table}.{field.name}" not in FIXED]
    if key not in known:
        raise ConfigError(f"{where}: unknown key {name}; {table} has: {', '.join(known)}")


def _check_entry(name: str, entry: Entry, where: str) -> None:
    """Raise ConfigError for an entry without a range or choices, or with a value that the key refuses."""
    is_range = entry.low is not None and entry.high is not None
    if is_range == bool(entry.choices) or (entry.choices and (entry.log or entry.step is not None)):
        raise ConfigError(f"{where}: give low and high, with log or step if you like, or choices alone")
    if entry.choices:
        if len(set(map(json.dumps, entry.choices))) < max(2, len(entry.choices)):
            raise ConfigError(f"{where}: choices are {json.dumps(entry.choices)}; give at least 2, each once")
        for choice in entry.choices:
            _check_value(name, choice, where)
        return
    low, high = typing.cast("float", entry.low), typing.cast("float", entry.high)
    if low >= high or (entry.log and (low <= 0 or entry.step is not None)) or (entry.step or 1) <= 0:
        raise ConfigError(
            f"{where}: low {low}, high {high}, log {str(entry.log).lower()}, step {entry.step}; low must be below "
            "high, with log above 0 and without step, and step above 0"
        )
    for end in (low, high):
        _check_value(name, end, where)
    step = entry.step
    if step is not None and not (_is_whole((high - low) / step) and (isinstance(step, int) or not entry.is_integer)):
        raise ConfigError(
            f"{where}: step is {step}; from {low} to {high} it must lead in whole steps, and whole numbers"
        )


def _check_value(name: str, value: Any, where: str) -> None:
    """Raise ConfigError if a key does not take a value, by its type, its BOUNDS and its WORDS."""
    table, key = name.split(".")
    taken = convert(typing.get_type_hints(TUNED[table])[key], value, where)
    low, high = BOUNDS.get(key, (float("-inf"), float("inf")))
    for number in taken if isinstance(taken, tuple) else (taken,):
        if not isinstance(number, str) and not low <= number <= high:
            raise ConfigError(f"{where} has {number}; allowed: {low} to {high}")
    if key in WORDS and taken not in WORDS[key]:
        raise ConfigError(f"{where} has {taken!r}; allowed: {', '.join(map(str, WORDS[key]))}")


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6


def _value_of(recipe: Recipe, name: str) -> Any:
    """Return a recipe's value of a key; None if its networks differ in it."""
    table, key = name.split(".")
    values = [getattr(one, key) for one in _all_of(getattr(recipe, table))]
    if any(value != values[0] for value in values):
        return None
    return list(values[0]) if isinstance(values[0], tuple) else values[0]


def _all_of(table: Any) -> list[Any]:
    return list(table) if isinstance(table, list | tuple) else [table]


def recipe_text(tables: Tables, heading: str) -> str:
    """Return the TOML of a recipe's tables, below a comment."""
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += [f"{key} = {toml_value(value)}" for key, value in tables.items() if not _is_table(value)]
    for name, value in tables.items():
        for one in _all_of(value) if _is_table(value) else []:
            lines += ["", f"[[{name}]]" if isinstance(value, list) else f"[{name}]"]
            lines += [f"{key} = {toml_value(entry)}" for key, entry in one.items()]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
