"""A recipe and its labelled tiles, with features that all variants of bench.curves share."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition
from clotkit.config import AugmentConfig, ModelConfig, Recipe
from clotkit.data.folds import Fold, Mask, make_folds
from clotkit.data.tiles import TileSet
from clotkit.evaluation.scores import (
    EvaluationTarget,
    target_of,
)
from clotkit.files import atomic_write
from clotkit.members.networks import Network
from clotkit.progress import Log
from clotkit.slides.pixels import Pixels
from clotkit.splits import SlideRow
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.training.cross_validation import TrainingRun
from clotkit.training.devices import create_context
from clotkit.training.frozen import FeatureCache, FrozenFeatures
from clotkit.tuning.folds import spread

NO_AUGMENT = AugmentConfig(rotate_flip=False, channel_gain=0.0)


@dataclass
class Spent:
    """The seconds that all blocks under `timed` took."""

    seconds: float = 0.0  # of the clock
    cpu_s: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds of a block."""
        started, cpu_s = time.monotonic(), time.process_time()
        yield
        self.seconds += time.monotonic() - started
        self.cpu_s += time.process_time() - cpu_s


def timed_row(measure: Callable[[], dict[str, Any]], features: Spent) -> dict[str, Any]:
    """Return a row after the seconds that measuring it took.

    The row that comes first makes the features that all share. `features` has their seconds up to now; those of this
    row are apart in `features_cpu_s`, so that rows can be compared.
    """
    whole, before = Spent(), replace(features)
    with whole.timed():
        row = measure()
    shared = Spent(features.seconds - before.seconds, features.cpu_s - before.cpu_s)
    seconds = {"seconds": whole.seconds - shared.seconds, "cpu_s": whole.cpu_s - shared.cpu_s}
    return {name: round(value, 1) for name, value in (seconds | {"features_cpu_s": shared.cpu_s}).items()} | row


@dataclass(frozen=True, kw_only=True)
class SharedFeatures(FeatureCache):
    """Features of one set of tiles for all variants and seeds of a recipe.

    Augmented copies are those of the recipe's own seed. Where a variant does not augment, they are the tiles.
    """

    recipe: Recipe  # with every step
    pixels: Pixels  # of the tiles, [n, S, S, 3]
    spent: Spent = field(default_factory=Spent)  # on features that were not in memory: made, or read from the folder

    def get(
        self, config: ModelConfig, recipe: Recipe, tiles: Pixels, build: Callable[[], Network], log: Log
    ) -> tuple[Network, FrozenFeatures]:
        """Return a network whose backbone all may share, and its features of the tiles."""
        own, augments = self.recipe, recipe.augment != NO_AUGMENT
        first = replace(
            recipe,
            training=replace(recipe.training, seed=own.training.seed),
            augment=recipe.augment if augments else own.augment,
            inference=own.inference,
        )
        with self.spent.timed():
            network, features = super().get(config, first, self.pixels, build, log)
        views = features.views[: recipe.inference.tta]
        return network, FrozenFeatures(features.augmented if augments else views[:1], views)


class Subject:
    """A recipe and its labelled tiles, with the features that its variants share."""

    def __init__(
        self,
        recipe: Recipe,
        tiles: TileSet,
        competition: Competition,
        out: Path,
        backbones: Path,
        pool: int | None = None,
    ) -> None:
        """Take the first `pool` images to train on, and the others to test; None: no image is for tests.

        Features are kept below the folder `out`.
        """
        self.recipe = recipe
        self.tiles = replace(tiles, tiles=np.zeros((len(tiles), 0), np.uint8))  # features stand for the pixels
        self.target: EvaluationTarget = target_of(recipe, tiles.labels, tiles.classes, competition)
        self.pool = self.slides_from(0, len(set(tiles.images)) if pool is None else pool)
        self.test = ~self.pool & ~np.isin(tiles.patients, tiles.patients[self.pool])  # no patient is on both sides
        self._backbones = backbones
        self._pixels = tiles.digests()
        folder = out / f"features-{recipe.name}-{self.key(np.ones(len(tiles), bool))[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        self._features = SharedFeatures(folder=folder, recipe=recipe, pixels=tiles.tiles)

    @property
    def features_spent(self) -> Spent:
        """The seconds that the features took up to now, whichever row needed them first."""
        return self._features.spent

    def run(self, recipe: Recipe) -> TrainingRun:
        """Return the training of a recipe on the features of these tiles."""
        context = create_context(recipe.training.strategy, quiet)
        return TrainingRun(
            recipe, self.tiles, self.target, self._backbones, None, quiet, context, features=self._features
        )

    def slides_from(self, start: int, slides: int) -> Mask:
        """Return a mask of the tiles of images `start` to `start + slides`."""
        names = list(dict.fromkeys(self.tiles.images.tolist()))[start : start + slides]
        return np.isin(self.tiles.images, names)

    def key(self, chosen: Mask) -> str:
        """Return a sha256 of the images of a mask's tiles: their names, pixels, labels and patients."""
        columns = (self.tiles.images, self.tiles.labels, self.tiles.patients)
        rows = dict.fromkeys(zip(*(column[chosen].tolist() for column in columns), strict=True))
        lines = sorted(f"{image}\t{self._pixels[image]}\t{label}\t{patient}" for image, label, patient in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def images(self, chosen: Mask) -> set[str]:
        """Return the names of the images of a mask's tiles."""
        return set(self.tiles.images[chosen].tolist())


def folds_of(tiles: TileSet, allowed: Mask, recipe: Recipe) -> list[Fold]:
    """Return the folds of the allowed tiles, as masks of all tiles."""
    made = make_folds(tiles.where(allowed), recipe.data, recipe.training, None)
    return [Fold(*(spread(mask, allowed) for mask in (one.train, one.validation, one.held_out))) for one in made]


def fewest_patients(tiles: TileSet) -> int:
    """Return how many patients the rarest class has: there are no more folds."""
    return min(len(set(tiles.patients[tiles.labels == label])) for label in range(len(tiles.classes)))


def cut_slide(slide: SlideRow, recipe: Recipe, kept: Path) -> Pixels:
    """Return the tiles of a slide, uint8[n, S, S, 3], from the file `kept`, or cut them and write it."""
    if not kept.is_file():
        pieces = tile_slide(slide.path, recipe.tiling)
        tiles = np.concatenate([piece.tiles for piece in pieces if isinstance(piece, Batch)])
        with atomic_write(kept) as temporary, temporary.open("wb") as file:
            np.save(file, tiles)
    return np.load(kept)


def quiet(_: str) -> None:
    """Drop a line of the log."""
