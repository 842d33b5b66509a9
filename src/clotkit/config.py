"""Settings from TOML into frozen dataclasses: unknown keys refused, types checked, units in the names.

Standard library only: the kernel's supervisor reads a competition with it.
"""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clotkit.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class TilingConfig:
    """How a slide becomes tiles."""

    name: str  # the tiler, by its one word: patches, darkest, windows, chunks, strips
    tile_px: int  # side of a tile as the network sees it
    shrink: int  # full-resolution pixels per tile pixel, along a side (chunks and strips: as the slide has it)
    max_tiles: int  # the K best by tissue
    batch_tiles: int  # tiles sent at a time: bounds the memory of both ends
    min_share: float = 0.5  # least tissue share of a patch; relaxed where a slide has none
    overlap: float = 0.0  # of patches and darkest squares with the next, as a share of their side
    duplicates: str = "keep"  # or drop: of sections of the same clot only one is looked at
    normalise: str = "none"  # colours: or background, reinhard, macenko


@dataclass(frozen=True)
class ModelConfig:
    """The network: a stack of convolution blocks, or what learn.models knows by name."""

    name: str
    filters: tuple[int, ...]
    dropout: float


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is trained."""

    seed: int
    epochs: int
    batch_tiles: int
    learning_rate: float
    folds: int  # for the out-of-fold predictions that calibration is fitted on


@dataclass(frozen=True)
class Recipe:
    """One member's recipe; a copy of it travels with the weights."""

    name: str
    tiling: TilingConfig
    model: ModelConfig
    training: TrainingConfig


RECIPES = Path(__file__).parent / "learn" / "recipes"


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by name (one that ships with the kit) or by the path of a TOML.

    Raises ConfigError for an unknown name, an unreadable file, or an unknown, missing, mistyped or impossible value.
    """
    path = Path(name_or_path) if str(name_or_path).endswith(".toml") else RECIPES / f"{name_or_path}.toml"
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml"))) or "none here"
        raise ConfigError(f"recipe {name_or_path}: {error.strerror}; known: {known}, or give a .toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    recipe = typed(Recipe, raw, str(path))
    _check_recipe(recipe, str(path))
    return recipe


def typed(cls: type[T], raw: dict[str, Any], where: str) -> T:
    """Make the dataclass `cls` of the mapping `raw`, table by table.

    `where` names the file and grows with the table's name in messages. Lists become tuples, ints pass as floats.
    A field with a default may be left out. Raises ConfigError for an unknown, missing or mistyped key.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(raw) - set(fields))
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(needed - set(raw))
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(fields))}")
    if missing:
        raise ConfigError(f"{where}: missing key {', '.join(missing)}")
    return cls(**{name: _convert(hints[name], raw[name], f"{where}: {name}") for name in fields if name in raw})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return typed(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    accepted = hint if isinstance(hint, type | types.UnionType) else object
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")
    return value


def _check_recipe(recipe: Recipe, where: str) -> None:
    tiling, training = recipe.tiling, recipe.training
    bounds: list[tuple[str, float, float, float]] = [
        ("tiling.tile_px", tiling.tile_px, 16, 2048),
        ("tiling.shrink", tiling.shrink, 1, 256),
        ("tiling.max_tiles", tiling.max_tiles, 1, 100_000),
        ("tiling.batch_tiles", tiling.batch_tiles, 1, 1024),
        ("tiling.min_share", tiling.min_share, 0, 1),
        ("tiling.overlap", tiling.overlap, 0, 0.9),
        ("model.dropout", recipe.model.dropout, 0, 0.95),
        ("training.epochs", training.epochs, 1, 10_000),
        ("training.batch_tiles", training.batch_tiles, 1, 4096),
        ("training.learning_rate", training.learning_rate, 1e-7, 1),
        ("training.folds", training.folds, 2, 100),
    ]
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise ConfigError(f"{where}: {name} is {value}; allowed: {low} to {high}")
    words = [
        ("tiling.duplicates", tiling.duplicates, ("keep", "drop")),
        ("tiling.normalise", tiling.normalise, ("none", "background", "reinhard", "macenko")),
    ]
    for name, word, known in words:
        if word not in known:
            raise ConfigError(f"{where}: {name} is {word!r}; allowed: {', '.join(known)}")
