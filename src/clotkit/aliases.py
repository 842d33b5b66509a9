"""Old names of recipe keys and report fields, read as the new ones with one warning line a file.

Standard library only: the kernel's supervisor reads a competition with it.
"""

import logging
from collections.abc import Mapping
from typing import Any

from clotkit.errors import ConfigError

# {table: {old: new}} of recipe.toml.
RECIPE_KEYS = {
    "tiling": {"shrink": "downsample", "min_share": "min_tissue_share"},
    "data": {"positive": "positive_class"},
    "model": {"ridge": "l2", "cut": "last_layer"},
    "augment": {"turns": "rotate_flip", "gain": "channel_gain", "erase": "cutout"},
    "training": {
        "watch": "validation_share",
        "frozen_views": "frozen_augmentations",
        "least_rate": "min_learning_rate",
        "plateau_epochs": "plateau_patience",
    },
    "inference": {"views": "tta", "pool": "pooling"},
}
# {old: new} of an object in a line of slides.jsonl.
PICTURE_FIELDS = {"shrink": "downsample"}


def renamed(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return `raw` with its old names replaced; a new name that is there too wins."""
    return {names[key]: value for key, value in raw.items() if key in names} | {
        key: value for key, value in raw.items() if key not in names
    }


def renamed_recipe(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the tables of a recipe with new keys, and warn once about the old ones.

    Raises ConfigError where a table has a key under both names.
    """
    found: list[str] = []
    result = {}
    for table, value in raw.items():
        names = RECIPE_KEYS.get(table, {})
        result[table] = (
            [_renamed_table(entry, names, table, where, found) for entry in value]
            if isinstance(value, list)
            else _renamed_table(value, names, table, where, found)
        )
    if found:
        logging.getLogger("clotkit").warning("%s: old keys are read: %s", where, ", ".join(dict.fromkeys(found)))
    return result


def _renamed_table(table: Any, names: Mapping[str, str], title: str, where: str, found: list[str]) -> Any:
    if not isinstance(table, dict):
        return table
    for old in names.keys() & table.keys():
        if names[old] in table:
            raise ConfigError(f"{where}: {title} has both {old} and {names[old]}, its new name; remove {old}")
        found.append(f"{title}.{old} (now {names[old]})")
    return renamed(table, names)
