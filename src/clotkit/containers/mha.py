"""Write a MetaImage (.mha) as a tiled TIFF, which the slide reader takes, strip by strip."""

import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clotkit.errors import SlideUnreadable
from clotkit.units import MB
from clotkit.workers import Piece, Task

TILE_PX = 512
HEADER_BYTES = 65_536
CHUNK_BYTES = 1 << 20
MOST_OF_DISK = 0.5  # of what is free: one picture does not cost the others their place
PART = ".part"  # suffix of a TIFF that is not whole


class MetaImageError(SlideUnreadable):
    """A MetaImage that is damaged, or not a picture of 8-bit RGB or grey."""


@dataclass(frozen=True)
class Header:
    """The header of a MetaImage."""

    width_px: int
    height_px: int
    channels: int
    compressed: bool
    spacing_mm: tuple[float, float] | None
    data_at: int  # byte


def convert_task(task: Task) -> Iterator[tuple[int, Piece]]:
    """Write a TIFF beside a task's MetaImage, in a slide's process. Raises MetaImageError."""
    part = task.path.with_suffix(PART)
    mha_to_tiff(task.path, part)
    part.rename(task.path.with_suffix(".tif"))
    yield from ()


def mha_to_tiff(source: Path, target: Path) -> None:
    """Write a MetaImage as a TIFF. Raises MetaImageError if it is damaged or of another kind."""
    import tifffile

    with source.open("rb") as file:
        header = read_header(file, source)
        size_mb, free_mb = header.width_px * header.height_px * 3 / MB, shutil.disk_usage(target.parent).free / MB
        if size_mb > MOST_OF_DISK * free_mb:
            raise MetaImageError(f"{source}: {size_mb:.0f} MB as a TIFF; {MOST_OF_DISK * free_mb:.0f} MB are allowed")
        resolution = None if header.spacing_mm is None else tuple(10 / one for one in header.spacing_mm)
        tifffile.imwrite(
            target,
            _tiles(file, header, source),
            shape=(header.height_px, header.width_px, 3),
            dtype=np.uint8,
            tile=(TILE_PX, TILE_PX),
            photometric="rgb",
            bigtiff=True,
            resolution=resolution,
            resolutionunit="CENTIMETER" if resolution else None,
        )


def read_header(file: BinaryIO, where: Path) -> Header:
    """Return the header of a MetaImage. Raises MetaImageError if the kit does not read such a one."""
    keys: dict[str, str] = {}
    while "ElementDataFile" not in keys:
        line = file.readline(HEADER_BYTES)
        name, equals, value = line.decode("ascii", "replace").partition("=")
        if not equals or file.tell() > HEADER_BYTES:
            raise MetaImageError(f"{where}: the header of a MetaImage ends without ElementDataFile")
        keys[name.strip()] = value.strip()
    try:
        sizes = [int(one) for one in keys["DimSize"].split()]
        channels = int(keys.get("ElementNumberOfChannels", "1"))
        spacing = [float(one) for one in keys.get("ElementSpacing", keys.get("ElementSize", "")).split()]
    except (KeyError, ValueError) as error:
        raise MetaImageError(f"{where}: {type(error).__name__} in the header of the MetaImage: {error}") from error
    plain = keys["ElementDataFile"] == "LOCAL" and keys.get("ElementType") == "MET_UCHAR" and channels in (1, 3)
    if not plain or len(sizes) not in (2, 3) or sizes[2:] not in ([], [1]) or min(sizes) < 1:
        raise MetaImageError(
            f"{where}: DimSize {keys['DimSize']}, {channels} channels of {keys.get('ElementType')}; "
            "a picture of 1 or 3 channels of MET_UCHAR is needed"
        )
    known = len(spacing) >= 2 and min(spacing[:2]) > 0
    return Header(
        sizes[0], sizes[1], channels, keys.get("CompressedData", "").lower() == "true",
        (spacing[0], spacing[1]) if known else None, file.tell(),
    )  # fmt: skip


def _tiles(file: BinaryIO, header: Header, where: Path) -> Iterator[np.ndarray]:
    """Yield the tiles of the picture, row by row, each of TILE_PX a side."""
    for strip in _strips(file, header, where):
        for left in range(0, header.width_px, TILE_PX):
            tile = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
            part = strip[:, left : left + TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _strips(file: BinaryIO, header: Header, where: Path) -> Iterator[np.ndarray]:
    """Yield the rows of the picture, TILE_PX at a time. Raises MetaImageError if they end early."""
    data = _data(file, header.compressed, where)
    row_bytes, rest = header.width_px * header.channels, b""
    for top in range(0, header.height_px, TILE_PX):
        rows = min(TILE_PX, header.height_px - top)
        strip, filled = np.empty(rows * row_bytes, np.uint8), 0
        while filled < strip.size:
            chunk = rest or next(data, None)
            if chunk is None:
                raise MetaImageError(f"{where}: the pixels end at row {top} of {header.height_px}")
            part, rest = chunk[: strip.size - filled], chunk[strip.size - filled :]
            strip[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
        yield strip.reshape(rows, header.width_px, header.channels)


def _data(file: BinaryIO, compressed: bool, where: Path) -> Iterator[bytes]:
    """Yield the bytes of the pixels; a compressed stream is never expanded further than it is read."""
    inflate = zlib.decompressobj()
    while chunk := file.read(CHUNK_BYTES):
        if not compressed:
            yield chunk
            continue
        try:
            while chunk:
                yield inflate.decompress(chunk, CHUNK_BYTES)
                chunk = inflate.unconsumed_tail
        except zlib.error as error:
            raise MetaImageError(f"{where}: the compressed pixels are damaged: {error}") from error
