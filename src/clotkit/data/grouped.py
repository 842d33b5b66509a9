"""Read the labelled tiles of a recipe, with near-identical pictures grouped, or left out."""

from pathlib import Path

from clotkit.competitions import Competition
from clotkit.config import Recipe
from clotkit.data.near_duplicates import drop_near_duplicates, group_near_duplicates
from clotkit.data.sources import CACHE, read_source
from clotkit.data.tiles import TileSet
from clotkit.errors import UsageError
from clotkit.progress import Log
from clotkit.stores import Place


def read_grouped(
    recipe: Recipe, data: Place, competition: Competition, limit: int | None, log: Log, cache: Path = CACHE
) -> TileSet:
    """Read the labelled tiles of a recipe, with the patients of near-identical pictures merged.

    A recipe may opt out of the merging, or leave out pictures that are near-identical to one of the given test part.

    Raises UsageError for a limit below 1, and whatever read_source raises.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; at least 1 image per class is needed")
    tiles = read_source(recipe, data, competition, limit, log, cache)
    if recipe.data.source != "slides" and recipe.data.near_duplicates != "keep":
        drops = recipe.data.near_duplicates == "drop" and recipe.data.split == "given"
        treated = drop_near_duplicates if drops else group_near_duplicates
        tiles = treated(tiles, recipe.data.duplicate_bits, log)
    log(f"{len(tiles)} tiles of {len(set(tiles.images))} images, {len(set(tiles.patients))} patients")
    return tiles
