"""Write synthetic slides and thumbnails by their extension, TIFF, SVS or PNG, in bounded memory."""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import tifffile

from clotkit.errors import ConfigError
from clotkit.files import atomic_write
from clotkit.synthetic.phantom_pixels import FAST, Painter, Pixels
from clotkit.synthetic.phantom_tissue import TILE_PX, SlidePlan, tissue_mask

SOFTWARE = "clotkit phantom, synthetic"  # the TIFF tag of every slide
APERIO = (  # the description by which readers know the format
    "Aperio Image Library, {software}\r\n{width}x{height} [0,0 {width}x{height}] ({tile}x{tile})|AppMag = 20|MPP = 0.5"
)
TIFFS, PNG, SVS = ("", ".tif", ".tiff"), ".png", ".svs"
BYTES_OF_TILE = 40_000  # of a tissue tile, 49,152 raw; the largest seen has 36,099
CLASSIC_BYTES = 2**32 - 2**25  # maximum expected size of a classic TIFF; larger files are BigTIFF
THUMBNAIL_PX = 256  # maximum side
TISSUE = (205, 110, 140)  # colour in a thumbnail
SUB = 1  # PNG filter: the difference from the pixel to the left


def check_suffix(name: str, where: Path) -> None:
    """Raise ConfigError if no slide of this name can be written; `where` is the competition's file."""
    suffix, known = PurePosixPath(name).suffix.lower(), (*TIFFS, SVS, PNG)
    if suffix not in known:
        raise ConfigError(
            f"{where}: files.slide is {name!r} first; a synthetic slide can be {', '.join(filter(None, known))}: put "
            "such a name first"
        )


def write_slide(path: Path, plan: SlidePlan) -> None:
    """Write one slide, by its extension; few tiles are in memory at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    painter, suffix = Painter(plan), path.suffix.lower()
    with atomic_write(path) as temporary:
        if suffix == PNG:
            _write_png(temporary, plan.width_px, plan.height_px, painter.bands())
        else:
            _write_tiff(temporary, painter, _aperio(plan) if suffix == SVS else None)


def write_companion(path: Path, plan: SlidePlan) -> None:
    """Write a file beside a slide: its thumbnail if the name is a PNG's, else nothing but the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    downsample = -(-max(plan.width_px, plan.height_px) // THUMBNAIL_PX)
    mask = tissue_mask(plan, downsample)  # [h, w]
    pixels = np.where(mask[..., None], np.array(TISSUE, np.uint8), np.array(plan.background, np.uint8))
    with atomic_write(path) as temporary:
        if path.suffix.lower() == PNG:
            _write_png(temporary, mask.shape[1], mask.shape[0], [pixels])
        else:
            temporary.touch()


def _aperio(plan: SlidePlan) -> str:
    return APERIO.format(software=SOFTWARE, width=plan.width_px, height=plan.height_px, tile=TILE_PX)


def _write_tiff(path: Path, painter: Painter, description: str | None) -> None:
    """Write a tiled TIFF: one level, deflate with predictor, one tile in memory at a time."""
    busy = int(np.count_nonzero(painter.kind))
    big = busy * BYTES_OF_TILE + painter.kind.size * 400 > CLASSIC_BYTES
    with tifffile.TiffWriter(path, bigtiff=big, byteorder="<") as tiff:
        tiff.write(
            painter.tiles(),
            shape=(painter.plan.height_px, painter.plan.width_px, 3),
            dtype=np.uint8,
            tile=(TILE_PX, TILE_PX),
            photometric="rgb",
            compression="adobe_deflate",
            predictor=2,
            resolution=(10, 10),  # px per cm: as meaningless as in the real slides
            resolutionunit="CENTIMETER",
            software=SOFTWARE,
            description=description,
            metadata=None,
        )


def _write_png(path: Path, width_px: int, height_px: int, bands: Iterable[Pixels]) -> None:
    """Write a PNG, 8-bit RGB, from bands of rows, uint8[h, width, 3] each: one band in memory at a time."""
    packer = zlib.compressobj(FAST)
    with path.open("wb") as file:

        def chunk(kind: bytes, data: bytes) -> None:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))
        for band in bands:
            filtered = band.copy()
            filtered[:, 1:] -= band[:, :-1]
            lines = np.pad(filtered.reshape(len(band), -1), ((0, 0), (1, 0)), constant_values=SUB)
            chunk(b"IDAT", packer.compress(lines.tobytes()))
        chunk(b"IDAT", packer.flush())
        chunk(b"IEND", b"")
