"""Labelled tiles, as sources give them and as training and evaluation take them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
import numpy.typing as npt

TRAIN, VAL, TEST = "train", "val", "test"  # parts that a source may give


@dataclass(frozen=True)
class TileSet:
    """Labelled tiles, with the patient, image, centre and part of each."""

    tiles: npt.NDArray[np.uint8]  # [n, H, W, 3], in memory, or a ShardTiles that reads the tiles that are indexed
    labels: npt.NDArray[np.int64]  # [n], class indices
    patients: npt.NDArray[np.str_]  # [n]
    images: npt.NDArray[np.str_]  # [n], names of slides or pictures
    centres: npt.NDArray[np.str_]  # [n], "" if none is known
    parts: npt.NDArray[np.str_]  # [n], "" if the source gives none
    classes: tuple[str, ...]  # names by class index
    # Images that were left out as near-identical to one of the test part, and the part of each.
    dropped: Mapping[str, str] = field(default_factory=dict)
    # [n], patients as the data name them, where `patients` has one name for those that near-duplicates join.
    named_patients: npt.NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def own_patients(self) -> npt.NDArray[np.str_]:
        """Return the patients as the data name them, [n]."""
        return self.patients if self.named_patients is None else self.named_patients

    def rows_by_image(self) -> list[npt.NDArray[np.int64]]:
        """Return the row numbers of each image's tiles; the images are in the order of their first tiles."""
        return rows_by_name(self.images)

    def first_rows(self) -> npt.NDArray[np.int64]:
        """Return the row number of each image's first tile, in ascending order."""
        return np.sort(np.unique(self.images, return_index=True)[1])

    def digests(self) -> dict[str, str]:
        """Return 12 hex digits of the sha256 of each image's tiles, by image. The tiles must be in memory."""
        found = {image: sha256() for image in self.images.tolist()}
        for image, tile in zip(self.images.tolist(), self.tiles, strict=True):
            found[image].update(tile.tobytes())
        return {image: digest.hexdigest()[:12] for image, digest in found.items()}

    def where(self, chosen: npt.NDArray[np.bool_]) -> "TileSet":
        """Return the tiles that a boolean mask [n] chooses."""
        return replace(
            self,
            tiles=self.tiles[chosen],
            labels=self.labels[chosen],
            patients=self.patients[chosen],
            images=self.images[chosen],
            centres=self.centres[chosen],
            parts=self.parts[chosen],
            named_patients=None if self.named_patients is None else self.named_patients[chosen],
        )


def rows_by_name(names: npt.NDArray[np.str_]) -> list[npt.NDArray[np.int64]]:
    """Return the indices of each name in `names` [n]; the names are in the order of their first indices."""
    if not len(names):
        return []
    _, first, name = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first[name], kind="stable")
    return np.split(order, np.cumsum(np.bincount(name)[np.argsort(first)])[:-1])
