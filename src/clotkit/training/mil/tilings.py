"""Check that features were cut with the tiling of the recipe that a head is trained with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from clotkit.config import Recipe, TilingConfig, downsample_rules, missing_facts, tiling_for
from clotkit.errors import ConfigError
from clotkit.features.files import FeatureFile, tiling_text
from clotkit.progress import Log
from clotkit.splits import SlideRow
from clotkit.units import many

ROUNDING = 0.06  # of a tile's side at level 0: other tools count it from a rounded magnification


def check_tilings(recipe: Recipe, slides: Sequence[SlideRow], files: Sequence[FeatureFile], log: Log) -> None:
    """Raise ConfigError for features of other tiles than those that the member will be given.

    Files of other tools state at most the side of a tile; `log` gets a line on those that state nothing to compare.
    """
    unknown = [
        file.path.stem for slide, file in zip(slides, files, strict=True) if not _is_checked(recipe, slide, file)
    ]
    if unknown:
        log(
            f"{many(len(unknown), 'slide')}, the first is {unknown[0]}: the file does not state how its tiles were "
            "cut; it cannot be checked against the recipe's tiling"
        )


def _is_checked(recipe: Recipe, slide: SlideRow, file: FeatureFile) -> bool:
    """Tell whether a file states what its tiles are. Raises ConfigError for others than the recipe's."""
    allowed = _tilings(recipe.tiling, slide.facts)
    if file.tiling:
        if file.tiling not in map(tiling_text, allowed):
            _refuse(recipe, file, _difference(file.tiling, tiling_text(allowed[0])))
        return True
    tile_px, level0_px = (_number(file.facts.get(key)) for key in ("patch_size", "patch_size_level0"))
    if tile_px and tile_px != recipe.tiling.tile_px:
        _refuse(recipe, file, f"tile_px {tile_px:g} instead of {recipe.tiling.tile_px}")
    if recipe.tiling.mpp or not (tile_px and level0_px):
        return False
    wanted_px = [one.tile_px * one.downsample for one in allowed]
    if all(abs(level0_px - wanted) > ROUNDING * wanted for wanted in wanted_px):
        _refuse(recipe, file, f"tiles of {level0_px:g} px of level 0 instead of {wanted_px[0]}")
    return True


def _tilings(tiling: TilingConfig, facts: Mapping[str, str]) -> list[TilingConfig]:
    """Return the tilings that a slide may have: one, unless it lacks a column of downsample_if."""
    if not missing_facts(tiling, facts):
        return [tiling_for(tiling, facts)]
    downsamples = dict.fromkeys([tiling.downsample, *(rule.downsample for rule in downsample_rules(tiling))])
    return [replace(tiling, downsample=downsample, downsample_if=()) for downsample in downsamples]


def _difference(found: str, wanted: str) -> str:
    """Return the keys in which two texts of a tiling differ, with their values."""
    ours, theirs = json.loads(wanted), json.loads(found)
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key} {theirs.get(key)} instead of {ours.get(key)}" for key in keys)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _refuse(recipe: Recipe, file: FeatureFile, difference: str) -> None:
    raise ConfigError(
        f"{file.path}: its tiles were not cut as the tiling of recipe {recipe.name} says: {difference}; run clotkit "
        "features with this recipe, or give the recipe the tiling of the features"
    )
