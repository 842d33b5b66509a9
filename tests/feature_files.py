"""Write and read HDF5 files of features as TRIDENT and STAMP do, without clotkit.

TRIDENT: trident/IO.py (save_h5, read_coords, read_coords_legacy) and trident/wsi_objects/WSI.py. STAMP:
src/stamp/preprocessing/__init__.py (writes) and src/stamp/modeling/data.py (BagDataset, get_coords).
"""

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np


class Tiles(NamedTuple):
    """The features and places of the tiles of a slide."""

    features: np.ndarray  # [n, D]
    xy: np.ndarray  # [n, 2], in the unit of the reader
    side: float  # of a tile, in the same unit


def write_trident(path: Path, features: np.ndarray, xy: np.ndarray, patch_px: int = 256, batch_axis: int = 0) -> None:
    """Write a file of TRIDENT: level-0 pixels, a chunk a row, sizes as attributes of `coords`."""
    about = {
        "patch_size": patch_px, "patch_size_level0": 2 * patch_px, "level0_magnification": 40,
        "target_magnification": 20, "overlap": 0, "name": path.stem, "savetodir": "out", "level0_width": 9000,
        "level0_height": 8000,
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for name, data in (("features", features), ("coords", xy)):
            shape = (*(1,) * batch_axis, *data.shape)
            made = file.create_dataset(
                name, shape, data.dtype, data.reshape(shape), maxshape=(None, *shape[1:]), chunks=(1, *shape[1:])
            )
            made.attrs.update(about if name == "coords" else {"name": path.stem, "savetodir": "out", "encoder": "uni"})


def read_trident(path: Path) -> Tiles:
    """Read a file as TRIDENT does: CLAM's attributes stand in for an unknown magnification."""
    with h5py.File(path, "r") as file:
        coords, features, about = file["coords"][:], file["features"][:], dict(file["coords"].attrs)
    side = about["patch_size_level0"]
    if None not in (about.get("level0_magnification"), about.get("target_magnification"), about.get("patch_size")):
        wanted = about["patch_size"] * about["level0_magnification"] / about["target_magnification"]
        assert abs(side - wanted) <= 0.06 * wanted  # magnifications are rounded
    else:
        assert about["patch_level"] == 0
        assert side == about["patch_size"] * about["custom_downsample"]
    assert coords.dtype.kind == "i"
    return Tiles(features, coords, float(side))


def write_stamp(path: Path, features: np.ndarray, xy_um: np.ndarray, version: str = "2.3.0") -> None:
    """Write a file of STAMP: micrometres; the attributes are those of this version."""
    with h5py.File(path, "w") as file:
        if version.startswith("1."):  # tiles of 224 px and 256 um, places in pixels of tiles, no attributes
            file["coords"], file["feats"] = xy_um / 256 * 224, features
            return
        file["coords"], file["feats"] = xy_um.astype(np.float32), features
        size = "tile_size" if version == "2.0.0" else "tile_size_um"
        file.attrs.update({"stamp_version": version, "extractor": "uni2", "unit": "um", size: 256.0})
        if size == "tile_size_um":
            file.attrs.update({"tile_size_px": 224, "code_hash": "0123abcd", "feat_type": "tile"})


def read_stamp(path: Path) -> Tiles:
    """Read a file as STAMP's BagDataset and get_coords do."""
    with h5py.File(path, "r") as file:
        features, coords = file["feats"][:], file["coords"][:]
        if (size := file.attrs.get("tile_size")) and file.attrs.get("unit") == "um":
            return Tiles(features, coords, float(size))
        if size := file.attrs.get("tile_size_um"):
            assert file.attrs["feat_type"] == "tile"
            assert float(size) / int(file.attrs["tile_size_px"]) > 0  # its mpp
            return Tiles(features, coords, float(size))
    raise RuntimeError("unable to infer coordinates from feature file")
