"""Write the small valid TIFFs that are mutated.

`python -m tests.fuzz.seeds` writes them into tests/fuzz/seeds. They are kept in the repository, so that the mutations
stay the same when a library writes TIFFs differently.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).with_name("seeds")
SIDES_PX = (80, 112)  # height and width: no multiple of a tile's 32 px


def picture() -> npt.NDArray[np.uint8]:
    """Return pale glass with one textured blob, uint8[80, 112, 3]."""
    height, width = SIDES_PX
    rng = np.random.default_rng(12)
    y, x = np.mgrid[:height, :width]
    blob = ((x - 50) / 40) ** 2 + ((y - 42) / 30) ** 2 < 1
    grain = rng.random((height // 8, width // 8)).repeat(8, 0).repeat(8, 1)[..., None]
    tissue = np.array((205, 120, 165)) * (1 - grain) + np.array((120, 70, 140)) * grain
    glass = np.array((243, 241, 244)) + rng.integers(-1, 2, (height, width, 1))
    return np.where(blob[..., None], tissue, glass).astype(np.uint8)


def forms() -> dict[str, tuple[npt.NDArray[Any], dict[str, Any]]]:
    """Return the pixels and the writer's options of each file, by name."""
    rgb = picture()
    tiled: dict[str, Any] = {"photometric": "rgb", "tile": (32, 32)}
    strips: dict[str, Any] = {"photometric": "rgb", "rowsperstrip": 16}
    return {
        "deflate_tiles": (rgb, {**tiled, "compression": "zlib"}),
        "lzw_strips_predictor": (rgb, {**strips, "compression": "lzw", "predictor": True}),
        "jpeg_tiles_420": (rgb, {**tiled, "compression": "jpeg", "subsampling": (2, 2)}),
        "jpeg_strips_444": (rgb, {**strips, "compression": "jpeg", "subsampling": (1, 1)}),
        "raw_strips": (rgb, strips),
        "raw_tiles_bigtiff": (rgb, {**tiled, "bigtiff": True}),
        "deflate_strips_big_endian": (rgb, {**strips, "compression": "zlib", "byteorder": ">"}),
        "grey_packbits": (rgb[..., 1], {"photometric": "minisblack", "rowsperstrip": 16, "compression": "packbits"}),
        "grey_16_bit_tiles": (rgb[..., 1].astype(np.uint16) << 8, {"photometric": "minisblack", "tile": (32, 32)}),
        "planar_lzw": (np.moveaxis(rgb, 2, 0), {**strips, "planarconfig": "separate", "compression": "lzw"}),
        "zstd_tiles": (rgb, {**tiled, "compression": "zstd"}),
        "pyramid_deflate": (rgb, {**tiled, "compression": "zlib", "subifds": 1}),
    }  # fmt: skip


def write() -> None:
    """Write every file into FOLDER."""
    import tifffile

    FOLDER.mkdir(exist_ok=True)
    for name, (pixels, options) in forms().items():
        kept = {key: value for key, value in options.items() if key not in ("bigtiff", "byteorder")}
        layout = {key: value for key, value in options.items() if key in ("bigtiff", "byteorder")}
        with tifffile.TiffWriter(FOLDER / f"{name}.tif", **layout) as writer:
            writer.write(pixels, metadata=None, software=False, **kept)
            if "subifds" in options:
                small = np.ascontiguousarray(pixels[::2, ::2])
                writer.write(small, metadata=None, software=False, subfiletype=1, **{**kept, "subifds": 0})


if __name__ == "__main__":
    write()
