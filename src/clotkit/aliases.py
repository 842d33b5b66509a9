"""Read old names of recipe keys and report fields as the new ones, with one warning line per file.

Standard library only: the kernel's supervisor reads a competition with it.
"""

import logging
from collections.abc import Mapping
from typing import Any

from clotkit.errors import ConfigError

# {table of a recipe: {old key: new key}}
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
# {old field: new field} of an object in slides.jsonl
PICTURE_FIELDS = {"shrink": "downsample"}


def renamed(raw: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return `raw` with old names replaced; if both names are there, the new one wins."""
    return {names[key]: value for key, value in raw.items() if key in names} | {
        key: value for key, value in raw.items() if key not in names
    }


def renamed_recipe(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the tables of a recipe with old keys replaced, and log one warning that lists them.

    `where` names the file in messages. Raises ConfigError if a table has a key under both names.
    """
    old_keys: list[str] = []
    result = {}
    for table, value in raw.items():
        names = RECIPE_KEYS.get(table, {})
        result[table] = (
            [_renamed_table(entry, names, table, where, old_keys) for entry in value]
            if isinstance(value, list)
            else _renamed_table(value, names, table, where, old_keys)
        )
    if old_keys:
        logging.getLogger("clotkit").warning("%s: old keys: %s", where, ", ".join(dict.fromkeys(old_keys)))
    return result


def _renamed_table(table: Any, names: Mapping[str, str], title: str, where: str, old_keys: list[str]) -> Any:
    if not isinstance(table, dict):
        return table
    for old in names.keys() & table.keys():
        if names[old] in table:
            raise ConfigError(f"{where}: {title} has both {old} and its new name {names[old]}; remove {old}")
        old_keys.append(f"{title}.{old} (now {names[old]})")
    return renamed(table, names)
