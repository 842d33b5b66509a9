"""Labelled tiles: what every source gives, and what training and evaluation take."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

TRAIN, VAL, TEST = "train", "val", "test"  # the parts that a source may give


@dataclass(frozen=True)
class TileSet:
    """`tiles` uint8[n, H, W, 3], and for each its class index, patient, image (a slide or a picture), centre, part.

    The tiles are in memory, or a ShardTiles, which reads those that are asked for. `classes` are the names by class
    index. A centre is "" where none is known, a part "" where the source gives none.
    """

    tiles: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    patients: npt.NDArray[np.str_]
    images: npt.NDArray[np.str_]
    centres: npt.NDArray[np.str_]
    parts: npt.NDArray[np.str_]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tiles)

    def where(self, chosen: npt.NDArray[np.bool_]) -> "TileSet":
        """The tiles that a boolean mask [n] picks."""
        return replace(
            self,
            tiles=self.tiles[chosen],
            labels=self.labels[chosen],
            patients=self.patients[chosen],
            images=self.images[chosen],
            centres=self.centres[chosen],
            parts=self.parts[chosen],
        )
