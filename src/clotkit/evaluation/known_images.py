"""Tell which images a member was made with, by their pixels first and by their names second."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, one_line
from clotkit.members.folder import SPLIT_DROPPED, SPLIT_PIXELS, SPLIT_TRAIN, SPLIT_VALIDATION

UNKNOWN = -1  # the fold of an image that no fold held out
WORDS = (SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_DROPPED)


@dataclass(frozen=True)
class Match:
    """The fold of each tile that a member is to predict, and how many of its images go by other names."""

    words: npt.NDArray[np.str_]  # [n] of each tile's image, as in split.csv; "": the member was not made with it
    renamed: int | None  # images that it was made with under another name; None: it keeps no digests of pixels
    other_pixels: int | None  # images that have the name of one that it was made with, and other pixels

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Match":
        """Return what is known of the tiles that a mask [n] chooses; the counts stay."""
        return replace(self, words=self.words[chosen])

    @property
    def folds(self) -> npt.NDArray[np.int64]:
        """Return the fold that held each tile's image out [n]; UNKNOWN where none did."""
        return np.array([int(word) if word.isdecimal() else UNKNOWN for word in self.words], np.int64)


@dataclass(frozen=True)
class KnownImages:
    """The images that a member was made with, as its split.csv lists them."""

    by_name: Mapping[str, str] = field(default_factory=dict)  # the fold's number, or one of WORDS
    by_pixels: Mapping[str, str] = field(default_factory=dict)  # by digest; empty for slides and earlier versions
    digests: Mapping[str, str] = field(default_factory=dict)  # by name

    def all_in_folds(self) -> bool:
        """Tell whether no image is in training or validation alone: every fold trained on all but its own."""
        return not {SPLIT_TRAIN, SPLIT_VALIDATION} & set(self.by_name.values())

    def match(self, tiles: TileSet) -> Match:
        """Return what is known of tiles. An image with a known name and other pixels counts as the known one.

        That is the careful choice: another version of a decoder changes pixels, and the image stays the same.
        """
        digests = tiles.digests() if self.by_pixels else {}
        words, renamed, other_pixels = dict[str, str](), 0, 0
        for image in dict.fromkeys(tiles.images.tolist()):
            digest, named = digests.get(image), self.by_name.get(image, "")
            if digest is None or digest == self.digests.get(image):
                words[image] = named
            elif digest in self.by_pixels:
                words[image], renamed = self.by_pixels[digest], renamed + 1
            else:
                words[image], other_pixels = named, other_pixels + bool(self.digests.get(image))
        found = np.array([words[image] for image in tiles.images.tolist()])
        return Match(found, renamed, other_pixels) if self.by_pixels else Match(found, None, None)


def read_known_images(path: Path, folds: int) -> KnownImages:
    """Read a split.csv; a file that is missing knows no image.

    Raises ConfigError if it cannot be read, lacks a column, or names a fold that is not one of `folds`.
    """
    if not path.is_file():
        return KnownImages()
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' parsers raise ValueErrors
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}; train the member again") from error
    if missing := {"image", "fold"} - set(table.columns):
        raise ConfigError(f"{path}: has no column {sorted(missing)[0]}; needed: image, fold; train the member again")
    allowed = {"", *WORDS, *map(str, range(folds))}
    if wrong := sorted(set(table["fold"]) - allowed):
        raise ConfigError(
            f"{path}: the fold {wrong[0]!r} is none of 0 to {folds - 1}, {', '.join(WORDS)}; train the member again"
        )
    by_name = dict(zip(table["image"], table["fold"], strict=True))
    if SPLIT_PIXELS not in table.columns:
        return KnownImages(by_name)
    digests = dict(zip(table["image"], table[SPLIT_PIXELS], strict=True))
    # Of images that are equal one may be for training: it comes last, and its word stays.
    ordered = table[table[SPLIT_PIXELS] != ""].sort_values("fold", key=lambda fold: fold.isin(WORDS), kind="stable")
    return KnownImages(by_name, dict(zip(ordered[SPLIT_PIXELS], ordered["fold"], strict=True)), digests)
