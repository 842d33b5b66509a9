"""Split the patients twice: outer parts judge the winner, inner folds of the others the trials."""

from dataclasses import dataclass, replace

import numpy as np

from clotkit.config import Recipe
from clotkit.data.folds import Fold, Mask, make_folds
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, UsageError

HELD_OUT_PARTS = 3  # without --outer one of so many parts of the patients is the outer one
WITH_FOLDS = ("folds", "centres")  # rules of data.split that hold out every patient once


@dataclass(frozen=True)
class OuterFold:
    """An outer fold, and the folds of its training patients."""

    fold: Fold  # its held_out part judges the winner
    inner: list[Fold]  # masks over all tiles; tiles of the outer held_out part are in none
    is_test_part: bool  # held_out is the test part of the split, which is trained as clotkit train does

    @property
    def all_folds(self) -> list[Fold]:
        """Return every fold, for a fingerprint."""
        return [self.fold, *self.inner]


def outer_folds(tiles: TileSet, recipe: Recipe, outer: int | None, inner: int) -> list[OuterFold]:
    """Return the outer folds of a recipe, each with its inner folds, the same for the same seed.

    With data.split "given" or "holdout" the test part is the only outer one. Otherwise `outer` folds hold out every
    patient once (centres: every centre); None: a third of the patients is held out.

    Raises UsageError for numbers of folds that the split does not take, ConfigError for too few patients.
    """
    if inner < 2:
        raise UsageError(f"--inner is {inner}; at least 2 folds are needed")
    is_fixed = recipe.data.split not in WITH_FOLDS
    if outer is not None and (is_fixed or outer < 2):
        raise UsageError(
            f"--outer is {outer}, data.split {recipe.data.split!r}; it takes at least 2, and a split by "
            f"{' or '.join(WITH_FOLDS)}: otherwise the test part is the outer one"
        )
    folds = make_folds(tiles, recipe.data, recipe.training, outer or HELD_OUT_PARTS)
    chosen = folds if outer else folds[:1]
    return [_with_inner(fold, tiles, recipe, inner, is_fixed) for fold in chosen]


def _with_inner(fold: Fold, tiles: TileSet, recipe: Recipe, inner: int, is_fixed: bool) -> OuterFold:
    """Return an outer fold with stratified folds of its training patients.

    The validation part of a fixed split chooses the epoch in the inner fits too. In a split by folds each inner fold
    has a validation part of its own, if the recipe wants one.
    """
    kept = is_fixed and bool(fold.validation.any())
    allowed = fold.train if kept else ~fold.held_out
    training = replace(recipe.training, validation_share=0.0) if kept else recipe.training
    try:
        made = make_folds(tiles.where(allowed), replace(recipe.data, split="folds"), training, inner)
    except ConfigError as error:
        raise ConfigError(
            f"{inner} inner folds of the {len(set(tiles.patients[allowed]))} patients: {error}"
        ) from error
    folds = [
        Fold(
            spread(one.train, allowed),
            fold.validation if kept else spread(one.validation, allowed),
            spread(one.held_out, allowed),
        )
        for one in made
    ]
    return OuterFold(fold, folds, is_fixed)


def spread(mask: Mask, allowed: Mask) -> Mask:
    """Return a mask over the allowed tiles as one over all tiles."""
    whole = np.zeros(len(allowed), bool)
    whole[allowed] = mask
    return whole


def straddling(fold: OuterFold, tiles: TileSet) -> int:
    """Return how many patients are both in the outer part and among those that were trained on."""
    held_out, others = (set(tiles.patients[mask].tolist()) for mask in (fold.fold.held_out, ~fold.fold.held_out))
    return len(held_out & others)
