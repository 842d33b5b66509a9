"""Read TOML files into frozen dataclasses, with keys and types checked; write recipes as TOML.

Standard library only: the kernel's supervisor reads a competition with it.
"""

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from enum import EnumType
from pathlib import Path
from typing import Any, TypeVar

from clotkit.errors import ConfigError

T = TypeVar("T")


def toml_path(name_or_path: str | Path, folder: Path) -> Path:
    """Return the path itself if it ends with .toml, else that of the file with this name in `folder`."""
    return Path(name_or_path) if str(name_or_path).endswith(".toml") else folder / f"{name_or_path}.toml"


def read_toml(name_or_path: str | Path, folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """Read a TOML file by the name of one in `folder` or by its path; return its path and tables.

    `kind` is what one such file describes, for messages. Raises ConfigError for an unknown name or an unreadable file.
    """
    path = toml_path(name_or_path, folder)
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.toml"))) or "none here"
        raise ConfigError(
            f"{kind} {name_or_path}: {error.strerror}; known: {known}; or give the path of a .toml"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error


def typed(cls: type[T], raw: dict[str, Any], where: str) -> T:
    """Build the dataclass `cls` from a mapping, nested tables included.

    Lists become tuples and integers pass as floats. Fields with a default may be left out.

    Args:
        cls: a dataclass whose fields are the allowed keys.
        raw: the table as tomllib reads it.
        where: the file and table, for messages.

    Raises:
        ConfigError: a key is unknown, missing or of a wrong type.
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
    return cls(**{name: convert(hints[name], raw[name], f"{where}: {name}") for name in fields if name in raw})


def toml_value(value: object) -> str:
    """Return a string, number, flag or list as TOML writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.1f}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def recipe_text(tables: Mapping[str, Any], heading: str = "") -> str:
    """Return the TOML of a recipe's tables, below a comment; read again, it gives the same tables."""
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += [f"{key} = {toml_value(value)}" for key, value in tables.items() if not _is_table(value)]
    for name, value in tables.items():
        if not _is_table(value):
            continue
        for one in value if isinstance(value, list) else [value]:
            lines += ["", f"[[{name}]]" if isinstance(value, list) else f"[{name}]"]
            lines += [f"{key} = {toml_value(entry)}" for key, entry in one.items()]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def convert(hint: Any, value: Any, where: str) -> Any:
    """Return a value of a TOML as the type of a field. Raises ConfigError, which begins with `where`."""
    if hint is Any:
        return value
    table = next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)
    if table is not None and isinstance(value, dict) and typing.get_origin(hint) is not tuple:
        return typed(table, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        return _converted_list(typing.get_args(hint)[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    words = next((kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, EnumType)), None)
    if words is not None:
        return _word(words, value, where)
    accepted = hint if isinstance(hint, type | types.UnionType) else object
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")
    return value


def _converted_list(item: Any, value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, dict) and dataclasses.is_dataclass(item):  # [model] is short for a single [[model]]
        return (convert(item, value, where),)
    if not isinstance(value, list):
        raise ConfigError(f"{where} is {value!r}; expected a list")
    return tuple(convert(item, entry, f"{where}[{index}]") for index, entry in enumerate(value))


def _word(words: EnumType, value: Any, where: str) -> Any:
    try:
        return words(value)
    except ValueError as error:
        raise ConfigError(f"{where} is {value!r}; allowed: {', '.join(words)}") from error
