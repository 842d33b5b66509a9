"""Read the labelled tiles of a recipe, with near-identical pictures grouped into one patient."""

from pathlib import Path

from clotkit.competitions import Competition
from clotkit.config import Recipe
from clotkit.data.near_duplicates import group_twins
from clotkit.data.sources import CACHE, read_source
from clotkit.data.tiles import TileSet
from clotkit.errors import UsageError
from clotkit.progress import Log
from clotkit.stores import Place


def read_grouped(
    recipe: Recipe, data: Place, competition: Competition, limit: int | None, log: Log, cache: Path = CACHE
) -> TileSet:
    """The recipe's labelled tiles; pictures that are near-identical count as one patient, unless it says otherwise.

    Raises UsageError for a limit below 1, and what read_source raises.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; at least 1 image a class is needed")
    tiles = read_source(recipe, data, competition, limit, log, cache)
    if recipe.data.source != "slides" and recipe.data.near_duplicates == "group":
        tiles = group_twins(tiles, recipe.data.duplicate_bits, log)
    log(f"{len(tiles)} tiles of {len(set(tiles.images))} images, {len(set(tiles.patients))} patients")
    return tiles
