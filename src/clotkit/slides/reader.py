"""Reading slides: the only place with pyvips and OpenSlide.

libvips without a codec returns black pixels without an error (seen for ZSTD, LZMA, LERC, JPEG XL and JPEG 2000 in the
build that pip installs), so the compression tag is read first: what libvips decodes goes to libvips, the rest to
OpenSlide, and what neither reads is refused by name. It also returns black tiles for a tiled file that is cut short or
damaged, unless fail_on is "warning" (docs/decisions.md has the table).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clotkit.errors import CodecUnsupported, SlideError, SlideUnreadable
from clotkit.slides.index import read_index

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

# TIFF compression tags; the names are those of the TIFF specification and its registered extensions.
VIPS_CODECS = {
    1: "none",
    2: "CCITT RLE",
    3: "CCITT G3",
    4: "CCITT G4",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    50001: "WebP",
}
OTHER_CODECS = {
    6: "old JPEG",
    33003: "JPEG 2000 (Aperio YCbCr)",
    33005: "JPEG 2000 (Aperio RGB)",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "ZSTD",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
FLAT_LEVELS = 2  # grey levels that skipped tiles may differ by from their common colour: less than any tissue step
BLOCK_PX = 2048  # of OpenSlide reads: bounds memory to 16 MB a block


class Slide(Protocol):
    """An open slide. Pixels are RGB, uint8, at full resolution unless a shrink is given."""

    decoder: str
    width_px: int
    height_px: int
    skipped_share: float  # of its tiles: what the last overview did not have to decode

    def overview(self, shrink: int) -> Pixels:
        """The whole slide, box-averaged: uint8[ceil(height / shrink), ceil(width / shrink), 3]."""
        ...

    def tiles(self, xy: Sequence[tuple[int, int]], tile_px: int, shrink: int, background: Colour) -> Iterator[Pixels]:
        """The tiles with the given top left corners, uint8[tile_px, tile_px, 3] each, box-averaged by `shrink`.

        `xy` is in full-resolution pixels, sorted by y; what lies beyond the slide's edge is `background`.
        """
        ...


def open_slide(path: Path) -> Slide:
    """Open a slide with the decoder that reads its codec.

    Raises SlideUnreadable when it is missing, empty, damaged or no image, CodecUnsupported when nothing here reads it.
    """
    if not path.is_file():
        raise SlideUnreadable("the path is a folder, not a file" if path.is_dir() else "the file is missing")
    if not path.stat().st_size:
        raise SlideUnreadable("the file is empty: 0 bytes")
    codec, tiled = _layout(path)
    if (codec is None or codec in VIPS_CODECS) and _vips() is not None:
        return VipsSlide(path, tiled)
    try:
        return OpenSlideSlide(path)
    except SlideError as error:
        name = VIPS_CODECS.get(codec or 0) or OTHER_CODECS.get(codec or 0) or f"number {codec}"
        raise CodecUnsupported(f"compression {name} is not read by libvips, and OpenSlide says: {error}") from error


def _layout(path: Path) -> tuple[int | None, bool]:
    """The compression tag of the first directory, and whether it is tiled; (None, False) for what is no TIFF."""
    import tifffile

    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:2] not in (b"II", b"MM"):
        return None, False
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            return int(page.compression), bool(page.is_tiled)
    except MemoryError:
        raise
    except Exception as error:
        raise SlideUnreadable(f"its TIFF directory cannot be read: {_line(error)}") from error


@cache
def _vips() -> Any:
    """The pyvips module, set up for one slide a process; None where it is not installed."""
    os.environ.setdefault("VIPS_WARNING", "0")
    try:
        import pyvips
    except (ImportError, OSError):
        return None
    pyvips.cache_set_max(0)  # a cached sequential image returned zeros (libvips issue 3803)
    return pyvips


class VipsSlide:
    """A slide read by libvips: random access where it is tiled, one sequential pass where it is not."""

    decoder = "libvips"

    def __init__(self, path: Path, tiled: bool, indexed: bool = True) -> None:
        """Open it; `indexed` lets the tile index spare the background. Raises SlideUnreadable when libvips cannot."""
        self._vips, self._path, self._tiled, self._indexed = _vips(), path, tiled, indexed
        self.skipped_share = 0.0
        image = self._open("random" if tiled else "sequential")
        self.width_px, self.height_px = int(image.width), int(image.height)

    def overview(self, shrink: int) -> Pixels:
        """See Slide.overview. Where the tile index holds, only the tiles that may have tissue are decoded."""
        if self._tiled and self._indexed and (indexed := self._indexed_overview(shrink)) is not None:
            return indexed
        image = self._open("sequential")
        return self._pixels(lambda: image.shrink(shrink, shrink, ceil=True))

    def _indexed_overview(self, shrink: int) -> Pixels | None:
        """The overview from wanted tiles, the others in their common colour; None where the index does not hold."""
        index = read_index(self._path)
        if index is None or index.side_px % shrink or index.counts.shape != self._tile_grid(index.side_px):
            return None
        image = self._open("random")
        side, cells = index.side_px, index.side_px // shrink

        def read(row: int, start: int, stop: int) -> Pixels:
            x, y = start * side, row * side
            part = image.crop(x, y, min(stop * side, self.width_px) - x, min(side, self.height_px - y))
            return self._pixels(lambda: part.shrink(shrink, shrink, ceil=True))

        skipped = [read(row, column, column + 1).reshape(-1, 3) for row, column in index.sample()]
        colour = np.median(np.concatenate(skipped), axis=0).astype(np.uint8)
        if max(int(np.abs(pixels.astype(np.int16) - colour).max()) for pixels in skipped) > FLAT_LEVELS:
            return None
        view = np.empty((-(-self.height_px // shrink), -(-self.width_px // shrink), 3), np.uint8)
        view[:] = colour
        for row, start, stop in index.runs():
            pixels = read(row, start, stop)
            top, left = row * cells, start * cells
            view[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        self.skipped_share = 1 - float(index.wanted.mean())
        return view

    def _tile_grid(self, side_px: int) -> tuple[int, int]:
        return -(-self.height_px // side_px), -(-self.width_px // side_px)

    def tiles(self, xy: Sequence[tuple[int, int]], tile_px: int, shrink: int, background: Colour) -> Iterator[Pixels]:
        """See Slide.tiles."""
        side = tile_px * shrink
        image = self._open("random" if self._tiled else "sequential")
        if self._tiled:
            for x, y in xy:
                yield self._pixels(lambda x=x, y=y: self._cut(image, x, y, side, background).shrink(shrink, shrink))
            return
        for y, columns in _rows(xy):
            # A band of full width, because a sequential image must be read from top to bottom, each row once.
            band = self._memory(image.crop(0, y, self.width_px, min(side, self.height_px - y)))
            for x in columns:
                yield self._pixels(
                    lambda x=x, band=band: self._cut(band, x, 0, side, background).shrink(shrink, shrink)
                )

    def _open(self, access: str) -> Any:
        try:
            image = self._vips.Image.new_from_file(str(self._path), access=access, fail_on="warning")
            return self._rgb(image)
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {_line(error, self._path)}") from error

    @staticmethod
    def _rgb(image: Any) -> Any:
        if image.hasalpha():
            image = image.flatten(background=[255.0 if image.format == "uchar" else 65535.0])
        return image.colourspace("srgb").cast("uchar")

    def _cut(self, image: Any, x: int, y: int, side: int, background: Colour) -> Any:
        width, height = min(side, image.width - x), min(side, image.height - y)
        cut = image.crop(x, y, width, height)
        return (
            cut
            if width == height == side
            else cut.embed(0, 0, side, side, extend="background", background=list(background))
        )

    def _memory(self, image: Any) -> Any:
        try:
            return image.copy_memory()
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {_line(error, self._path)}") from error

    def _pixels(self, make: Any) -> Pixels:
        try:
            return np.asarray(make().numpy(), dtype=np.uint8)
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {_line(error, self._path)}") from error


class OpenSlideSlide:
    """A slide read by OpenSlide, block by block."""

    decoder = "openslide"
    skipped_share = 0.0

    def __init__(self, path: Path) -> None:
        """Open it. Raises SlideUnreadable when OpenSlide cannot, or is not installed."""
        try:
            import openslide
        except (ImportError, OSError) as error:
            raise SlideUnreadable(f"OpenSlide is not installed: {_line(error)}") from error
        self._error: type[Exception] = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except self._error as error:
            raise SlideUnreadable(f"OpenSlide: {_line(error)}") from error
        self.width_px, self.height_px = self._slide.dimensions
        given = self._slide.properties.get("openslide.background-color", "FFFFFF")
        self._behind = np.array([int(given[i : i + 2], 16) for i in (0, 2, 4)], np.float32)

    def overview(self, shrink: int) -> Pixels:
        """See Slide.overview."""
        level, inner = self._level(shrink)
        outer, step = shrink // inner, max(BLOCK_PX // inner, 1) * inner  # px of full resolution: a level, a block
        height, width = -(-self.height_px // shrink), -(-self.width_px // shrink)
        view = np.empty((height, width, 3), np.uint8)
        block = max(step // shrink, 1)
        for top in range(0, height, block):
            for left in range(0, width, block):
                rows, columns = min(block, height - top), min(block, width - left)
                pixels = self._read(left * shrink, top * shrink, level, columns * outer, rows * outer)
                view[top : top + rows, left : left + columns] = _box(pixels, outer)
        return view

    def tiles(self, xy: Sequence[tuple[int, int]], tile_px: int, shrink: int, background: Colour) -> Iterator[Pixels]:
        """See Slide.tiles."""
        side = tile_px * shrink
        for x, y in xy:
            tile = np.empty((side, side, 3), np.uint8)
            tile[:] = background
            width, height = min(side, self.width_px - x), min(side, self.height_px - y)
            tile[:height, :width] = self._read(x, y, 0, width, height)
            yield _box(tile, shrink)

    def _level(self, shrink: int) -> tuple[int, int]:
        """The coarsest level whose downsample is a whole divisor of `shrink`, and that downsample."""
        best = (0, 1)
        for level, downsample in enumerate(self._slide.level_downsamples):
            whole = round(downsample)
            if abs(downsample - whole) < 0.01 and shrink % whole == 0 and whole > best[1]:
                best = (level, whole)
        return best

    def _read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        """RGB pixels of a level; transparent ones show the slide's own background colour."""
        try:
            rgba = np.asarray(self._slide.read_region((x, y), level, (width, height)))
        except self._error as error:
            raise SlideUnreadable(f"OpenSlide: {_line(error)}") from error
        if rgba[..., 3].min() == 255:
            return rgba[..., :3]
        alpha = rgba[..., 3:].astype(np.float32) / 255
        mixed: Pixels = np.rint(rgba[..., :3] * alpha + self._behind * (1 - alpha)).astype(np.uint8)
        return mixed


def _rows(xy: Iterable[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    rows: dict[int, list[int]] = {}
    for x, y in xy:
        rows.setdefault(y, []).append(x)
    yield from sorted(rows.items())


def _box(pixels: Pixels, shrink: int) -> Pixels:
    """Average boxes of `shrink` px: uint8[h, w, 3] -> uint8[h / shrink, w / shrink, 3], both sides divisible."""
    if shrink == 1:
        return pixels
    height, width = pixels.shape[0] // shrink, pixels.shape[1] // shrink
    boxes = pixels.reshape(height, shrink, width, shrink, 3)
    mean: Pixels = np.rint(boxes.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
    return mean


def _line(error: BaseException, path: Path | None = None) -> str:
    """What the error says, on one line, without the slide's path (the report has it), shortened."""
    lines = [line.strip() for line in str(error).replace(str(path), "slide").splitlines() if line.strip()]
    return ("; ".join(dict.fromkeys(lines)) or type(error).__name__)[:200]
