"""Save a picture as a pyramid: levels as pages, as SubIFDs, or in the order of Aperio's files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips
import tifffile

Pixels = npt.NDArray[np.uint8]

TILE_PX, QUALITY = 256, 85
MPP = 0.25  # micrometres per pixel, of a scan at 40 x
PIXELS_PER_MM = 1000 / MPP
SVS_LEVELS = (1, 4, 16)
SVS_THUMBNAIL_PX, SVS_LABEL_PX, SVS_MACRO_PX = 1024, (400, 400), (1280, 480)
JPEG: dict[str, Any] = {
    "tile": True, "tile_width": TILE_PX, "tile_height": TILE_PX, "compression": "jpeg", "Q": QUALITY,
    "xres": PIXELS_PER_MM, "yres": PIXELS_PER_MM,
}  # fmt: skip


def save_pyramid(source: Path, path: Path, layout: str, big: bool) -> None:
    """Save the picture of a tiled file in a layout with levels.

    Args:
        source: the file to copy.
        path: the file to write.
        layout: `pyramid` and `subifd` halve down to one tile; `svs` has the levels 1, 4 and 16.
        big: whether to write a BigTIFF.
    """
    if layout == "svs":
        _save_svs(source, path, big)
    else:
        image = pyvips.Image.new_from_file(str(source), access="sequential")
        image.tiffsave(str(path), pyramid=True, subifd=layout == "subifd", bigtiff=big, **JPEG)


def _save_svs(source: Path, path: Path, big: bool) -> None:
    """Save the pages of an Aperio file in their order: level 0, thumbnail, lower levels, label, macro."""
    image = pyvips.Image.new_from_file(str(source), access="random")
    size = f"{image.width}x{image.height}"
    start = f"Aperio Image Library v12.0.0\r\n{size}"
    facts = f"|AppMag = {10 / MPP:g}|MPP = {MPP}"
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        _write_level(tiff, image, SVS_LEVELS[0], f"{start} [0,0 {size}] ({TILE_PX}x{TILE_PX}) JPEG Q={QUALITY}{facts}")
        thumbnail = pyvips.Image.thumbnail(str(source), SVS_THUMBNAIL_PX, size="down").numpy()
        _write_strips(tiff, thumbnail, f"{start} -> {thumbnail.shape[1]}x{thumbnail.shape[0]} - {facts}", 0)
        for level in SVS_LEVELS[1:]:
            of = f"{-(-image.width // level)}x{-(-image.height // level)}"
            _write_level(
                tiff, image, level, f"{start} [0,0 {size}] ({TILE_PX}x{TILE_PX}) -> {of} JPEG Q={QUALITY}{facts}"
            )
        for kind, (width, height), subfile in (("label", SVS_LABEL_PX, 1), ("macro", SVS_MACRO_PX, 9)):
            picture = pyvips.Image.thumbnail(str(source), width, height=height, size="force").numpy()
            _write_strips(tiff, picture, f"Aperio Image Library v12.0.0\r\n{kind} {width}x{height}", subfile)


def _write_level(tiff: tifffile.TiffWriter, image: pyvips.Image, level: int, description: str) -> None:
    shape = (-(-image.height // level), -(-image.width // level), 3)
    _write(tiff, _tiles(image, level), description, shape=shape, dtype=np.uint8, tile=(TILE_PX, TILE_PX))


def _write_strips(tiff: tifffile.TiffWriter, picture: Pixels, description: str, subfile: int) -> None:
    _write(tiff, np.ascontiguousarray(picture[..., :3]), description, rowsperstrip=16, subfiletype=subfile)


def _write(tiff: tifffile.TiffWriter, data: Any, description: str, **layout: Any) -> None:
    tiff.write(
        data, photometric="rgb", subsampling=(2, 2), compression="jpeg", compressionargs={"level": QUALITY},
        description=description, metadata=None, software=False, maxworkers=1, **layout,
    )  # fmt: skip


def _tiles(image: pyvips.Image, level: int) -> Iterator[Pixels]:
    """Yield the tiles of a level row by row, means of `level` x `level` px; tiles past the edge repeat it."""
    step = TILE_PX * level
    for top in range(0, image.height, step):
        rows = image.crop(0, top, image.width, min(step, image.height - top))
        width, height = (-(-length // level) for length in (rows.width, rows.height))
        whole = rows.embed(0, 0, width * level, height * level, extend="copy").shrink(level, level).numpy()
        band = np.pad(whole, ((0, TILE_PX - height), (0, -width % TILE_PX), (0, 0)), mode="edge")
        for left in range(0, band.shape[1], TILE_PX):
            yield np.ascontiguousarray(band[:, left : left + TILE_PX])
