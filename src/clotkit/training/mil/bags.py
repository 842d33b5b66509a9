"""The features of many slides as bags of tiles, read from disk when they are needed.

Only a slide's name, counts and statistics stay in memory, so it does not grow with the slides' tiles.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from clotkit.config import MilConfig
from clotkit.data.tiles import TileSet
from clotkit.features.files import FeatureFile

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Bag:
    """The tiles of some slides that are one item of training."""

    files: tuple[FeatureFile, ...]

    @property
    def count(self) -> int:
        """The number of tiles."""
        return sum(file.count for file in self.files)

    def draw(self, config: MilConfig, rng: np.random.Generator) -> npt.NDArray[np.float16]:
        """Return the features of some tiles, [n, D]: those that drop_tiles leaves, and at most bag_tiles."""
        kept = max(1, round(self.count * (1 - config.drop_tiles)))
        rows = np.sort(rng.permutation(self.count)[: min(kept, config.bag_tiles)])
        starts = np.cumsum([0, *(file.count for file in self.files)])
        of_file = [rows[(rows >= start) & (rows < end)] - start for start, end in pairwise(starts)]
        parts = [file.read(wanted) for file, wanted in zip(self.files, of_file, strict=True) if len(wanted)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class SlideFeatures:
    """The features of slides, in the place of a TileSet's tiles: one row a slide."""

    files: tuple[FeatureFile, ...]
    # By path, the mean and the mean square of a slide's features, [2, D]; shared by all subsets.
    known: dict[str, Floats] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, chosen: Mask) -> "SlideFeatures":
        """Return the slides that a boolean mask [n] chooses."""
        return SlideFeatures(tuple(self.files[row] for row in np.flatnonzero(chosen)), self.known)

    @property
    def width(self) -> int:
        """The number of features of a tile."""
        return self.files[0].width

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return sum(file.count for file in self.files)

    def as_array(self) -> npt.NDArray[np.uint8]:
        """Return itself, typed as a TileSet's tiles, for callers that take its length or a mask of it."""
        return cast("npt.NDArray[np.uint8]", self)

    def fingerprint(self) -> bytes:
        """Return bytes that change with the features: their keys, or in files of other tools the first tiles."""
        lines = [
            f"{file.path.stem} {file.count} {file.width} {file.key or file.start_sha256()} {file.encoder_sha256} "
            f"{file.path.stat().st_size}"
            for file in self.files
        ]
        return hashlib.sha256("\n".join(lines).encode()).digest()

    def moments(self) -> Floats:
        """Return the mean and the mean square of each slide's features, float32[slides, 2, D].

        Each slide is read once.
        """
        return np.stack([self._moments(file) for file in self.files])

    def _moments(self, file: FeatureFile) -> Floats:
        name = str(file.path)
        if name not in self.known:
            features = file.read().astype(np.float32)
            self.known[name] = np.stack([features.mean(axis=0), np.square(features).mean(axis=0)])
        return self.known[name]


def features_of(slides: TileSet) -> SlideFeatures:
    """Return the features of a TileSet of slides."""
    return cast("SlideFeatures", slides.tiles)


def bags_of(slides: TileSet, config: MilConfig) -> tuple[TileSet, list[Bag]]:
    """Return the training bags of slides, and a TileSet with one row a bag: the bag's first slide.

    A patient whose slides have different classes has one bag a class.
    """
    files = features_of(slides).files
    if config.bags == "slide":
        return slides, [Bag((file,)) for file in files]
    owners: dict[tuple[str, int], list[int]] = {}
    for row, owner in enumerate(zip(slides.patients.tolist(), slides.labels.tolist(), strict=True)):
        owners.setdefault(owner, []).append(row)
    mask = np.zeros(len(slides), np.bool_)
    mask[[rows[0] for rows in owners.values()]] = True  # owners are in the order of their first rows
    return slides.where(mask), [Bag(tuple(files[row] for row in rows)) for rows in owners.values()]


def batch_of(bags: Sequence[Bag], size: int, config: MilConfig, tiles: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return a batch of bags, padded: features [size, tiles, D] and mask [size, tiles].

    Every step has the same shapes, because the backend compiles each new one. Bags beyond those given are empty.
    """
    features = np.zeros((size, tiles, bags[0].files[0].width), np.float32)
    mask = np.zeros((size, tiles), np.float32)
    for number, bag in enumerate(bags):
        drawn = bag.draw(config, rng)
        features[number, : len(drawn)], mask[number, : len(drawn)] = drawn, 1.0
    return {"features": features, "mask": mask}
