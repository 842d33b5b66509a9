"""Tell which images a member was made with, by their pixels first and by their names second."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, one_line
from clotkit.members.folder import SPLIT_DROPPED, SPLIT_PATIENT, SPLIT_PIXELS, SPLIT_TRAIN, SPLIT_VALIDATION
from clotkit.splits.identity import composed

UNKNOWN = -1  # the fold of an image that no fold held out
WORDS = (SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_DROPPED)


@dataclass(frozen=True)
class Match:
    """The fold of each tile that a member is to predict, and how many of its images go by other names."""

    words: npt.NDArray[np.str_]  # [n] of each tile's image, as in split.csv; "": the member was not made with it
    renamed: int | None  # images that it was made with under another name; None: it keeps no digests of pixels
    other_pixels: int | None  # images that have the name of one that it was made with, and other pixels
    of_known_patients: int | None  # new images of known patients or groups; None: none, and it keeps no patients

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
    by_patient: Mapping[str, str] = field(default_factory=dict)  # empty for earlier versions
    are_indices: bool = False  # names, and patients, are numbers in an array: of other data they say nothing

    def all_in_folds(self) -> bool:
        """Tell whether no image is in training or validation alone: every fold trained on all but its own."""
        return not {SPLIT_TRAIN, SPLIT_VALIDATION} & set(self.by_name.values())

    def match(self, tiles: TileSet) -> Match:
        """Return what is known of tiles. An image with a known name and other pixels counts as the known one.

        That is the careful choice: another version of a decoder changes pixels, and the image stays the same. A new
        image of a known patient counts as that patient's, as does one whose patient, or whose group of near-duplicates,
        has a known image among the tiles. Where names are indices, an image with other pixels is new.
        """
        first = tiles.first_rows()
        images, own = tiles.images[first].tolist(), tiles.own_patients[first].tolist()
        groups = dict(zip(images, tiles.patients[first].tolist(), strict=True))
        words, renamed, other_pixels = self._words_of(images, tiles.digests() if self.by_pixels else {})
        kept = {} if self.are_indices else self.by_patient
        of_own = [(groups[image], kept.get(composed(patient), "")) for image, patient in zip(images, own, strict=True)]
        by_group = _certain_words([*of_own, *((groups[image], word) for image, word in words.items())])
        new = {image: by_group.get(groups[image], "") for image, word in words.items() if not word}
        found = np.array([new.get(image) or words[image] for image in tiles.images.tolist()])
        of_known = sum(map(bool, new.values())) if self.by_patient or any(new.values()) else None
        return Match(found, renamed, other_pixels, of_known) if self.by_pixels else Match(found, None, None, of_known)

    def _words_of(self, images: Iterable[str], digests: Mapping[str, str]) -> tuple[dict[str, str], int, int]:
        """Return the word of each image by its pixels, else by its name; and two counts, as in Match."""
        words, renamed, other_pixels = dict[str, str](), 0, 0
        for image in images:
            digest, named = digests.get(image), self.by_name.get(image, "")
            if digest is None or digest == self.digests.get(image):
                words[image] = named
            elif digest in self.by_pixels:
                words[image], renamed = self.by_pixels[digest], renamed + 1
            else:
                is_other = bool(self.digests.get(image))
                words[image], other_pixels = "" if is_other and self.are_indices else named, other_pixels + is_other
        return words, renamed, other_pixels


def read_known_images(path: Path, folds: int, are_indices: bool = False) -> KnownImages:
    """Read a split.csv; a file that is missing knows no image. `are_indices` is as in KnownImages.

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
    names = table["image"]
    digests = dict(zip(names, table[SPLIT_PIXELS], strict=True)) if SPLIT_PIXELS in table.columns else {}
    return KnownImages(
        by_name=dict(zip(names, table["fold"], strict=True)),
        by_pixels=_words_by(table, SPLIT_PIXELS),
        digests=digests,
        # Members of earlier versions have patients in any form of Unicode.
        by_patient={composed(patient): word for patient, word in _words_by(table, SPLIT_PATIENT).items()},
        are_indices=are_indices,
    )


def _words_by(table: pd.DataFrame, column: str) -> dict[str, str]:
    """Return the word of each value of a column; empty without that column."""
    return _certain_words(zip(table[column], table["fold"], strict=True)) if column in table.columns else {}


def _certain_words(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the word of each key, without empty words.

    Of pairs with one key, as equal images or those of one patient, any may be for training: its word stays.
    """
    words = dict[str, str]()
    for key, word in pairs:
        if key and word and words.get(key) not in WORDS:
            words[key] = word
    return words
