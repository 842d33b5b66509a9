"""Reading slides: the only place with pyvips and OpenSlide.

libvips without a codec returns black pixels without an error (seen for ZSTD, LZMA, LERC, JPEG XL and JPEG 2000 in the
build that pip installs), so the compression tag is read first: what libvips decodes goes to libvips, the rest to
OpenSlide, and what neither reads is refused by name. It also returns black tiles for a tiled file that is cut short or
damaged, unless fail_on is "warning" (docs/decisions.md has the table).
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clotkit.errors import CodecUnsupported, SlideError, SlideUnreadable, one_line
from clotkit.slides.index import read_index
from clotkit.slides.tiff import MOST_FOLD, OTHER_CODECS, VIPS_CODECS, Layout, check_size, read_layout

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

FLAT_LEVELS = 2  # grey levels that skipped tiles may differ by from their common colour: less than any tissue step
BLOCK_PX = 2048  # of OpenSlide reads: bounds memory to 16 MB a block
FETCH_ROWS = 16  # of a shrunk strip slide, at a time
COLOUR_BANDS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb": 3, "rgb16": 3, "cmyk": 4}
MOST_TURNED_PX = 2**25  # in strips: libvips turns these in memory, 100 MB; it would write more to a temporary file


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

        `xy` is in full-resolution pixels, multiples of `shrink`, sorted by y; what lies beyond the slide's edge is
        `background`.
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
    layout = read_layout(path)
    if layout is None:
        try:
            return OpenSlideSlide(path)
        except SlideError as error:
            raise SlideUnreadable(f"not an image: it begins like no TIFF, PNG or JPEG, and {error}") from error
    if (layout.codec is None or layout.codec in VIPS_CODECS) and _vips() is not None:
        return _open_with_vips(path, layout)
    if layout.codec is None:
        raise SlideUnreadable("PNG and JPEG files are read by libvips alone, which is not installed")
    name = VIPS_CODECS.get(layout.codec) or OTHER_CODECS.get(layout.codec) or f"number {layout.codec}"
    if layout.turn != 1:
        raise CodecUnsupported(
            f"compression {name} is not read by libvips, and orientation {layout.turn} not by OpenSlide"
        )
    try:
        return OpenSlideSlide(path)
    except SlideError as error:
        raise CodecUnsupported(f"compression {name} is not read by libvips, and OpenSlide says: {error}") from error


def _open_with_vips(path: Path, layout: Layout) -> "VipsSlide":
    slide = VipsSlide(path, layout.tiled, alpha=layout.alpha)
    if layout.codec is None:
        check_size(slide.width_px, slide.height_px, 8, path, MOST_FOLD)
    elif sorted((slide.width_px, slide.height_px)) != sorted((layout.width_px, layout.height_px)):
        raise SlideUnreadable(
            f"its TIFF directory says both {layout.width_px} x {layout.height_px} px "
            f"and {slide.width_px} x {slide.height_px} px"
        )
    return slide


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

    def __init__(self, path: Path, tiled: bool, indexed: bool = True, alpha: bool = True) -> None:
        """Open it; `indexed` lets the tile index spare the background. Raises SlideUnreadable when libvips cannot."""
        self._vips, self._path, self._tiled, self._alpha = _vips(), path, tiled, alpha
        self._turned = False
        self.skipped_share = 0.0
        image = self._open("random" if tiled else "sequential")
        self._indexed = indexed and tiled and not self._turned  # the index is one of the tiles as they are stored
        self.width_px, self.height_px = int(image.width), int(image.height)

    def overview(self, shrink: int) -> Pixels:
        """See Slide.overview. Where the tile index holds, only the tiles that may have tissue are decoded."""
        if self._indexed and (indexed := self._indexed_overview(shrink)) is not None:
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
        if not self._tiled:
            yield from self._streamed(xy, tile_px, shrink, background)
            return
        side = tile_px * shrink
        image = self._open("random")
        for x, y in xy:
            yield self._pixels(lambda x=x, y=y: self._cut(image, x, y, side, background).shrink(shrink, shrink))

    def _streamed(
        self, xy: Sequence[tuple[int, int]], tile_px: int, shrink: int, background: Colour
    ) -> Iterator[Pixels]:
        """The tiles from one pass over the shrunk rows, top to bottom: what a sequential image allows.

        Held at a time: FETCH_ROWS shrunk rows of full width, and the tiles that these rows touch.
        """
        width, height = (max(place[axis] for place in xy) // shrink + tile_px for axis in (0, 1))
        image = self._open("sequential")
        padded = image.embed(
            0,
            0,
            max(width * shrink, image.width),
            max(height * shrink, image.height),
            extend="background",
            background=list(background),
        )
        rows = self._rows_of(padded.shrink(shrink, shrink), [y // shrink for _, y in xy], tile_px)
        waiting, touched = deque(xy), deque[tuple[int, int, Pixels]]()
        for top, band in rows:
            while waiting and waiting[0][1] // shrink < top + len(band):
                x, y = waiting.popleft()
                touched.append((x // shrink, y // shrink, np.empty((tile_px, tile_px, 3), np.uint8)))
            for x, y, tile in touched:
                first, last = max(top, y), min(top + len(band), y + tile_px)
                tile[first - y : last - y] = band[first - top : last - top, x : x + tile_px]
            while touched and touched[0][1] + tile_px <= top + len(band):
                yield touched.popleft()[2]

    def _rows_of(self, image: Any, tops: Sequence[int], tile_px: int) -> Iterator[tuple[int, Pixels]]:
        """Bands of FETCH_ROWS rows of `image`, those that a tile with one of these tops reaches into, in order."""
        try:
            region = self._vips.Region.new(image)
            for top in range(0, max(tops) + tile_px, FETCH_ROWS):
                count = min(FETCH_ROWS, max(tops) + tile_px - top)
                if any(start < top + count and top < start + tile_px for start in tops):
                    part = region.fetch(0, top, image.width, count)
                    yield top, np.frombuffer(part, np.uint8).reshape(count, image.width, 3)
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {one_line(error, self._path)}") from error

    def _open(self, access: str) -> Any:
        try:
            image = self._load(access)
            turn = image.get("orientation") if image.get_typeof("orientation") else 1
            if 1 < turn <= 8:  # turned rows come in no order: every read is a random one
                if not self._tiled and image.width * image.height > MOST_TURNED_PX:
                    raise SlideUnreadable(
                        f"orientation {turn} of {image.width:,} x {image.height:,} px in strips needs "
                        f"all of it in memory; {MOST_TURNED_PX:,} px are allowed"
                    )
                self._turned = True
                image = self._load("random").autorot()
            return self._rgb(image)
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {one_line(error, self._path)}") from error

    def _load(self, access: str) -> Any:
        return self._vips.Image.new_from_file(str(self._path), access=access, fail_on="warning")

    def _rgb(self, image: Any) -> Any:
        """8-bit RGB without a colour profile; transparency shows white."""
        if image.format not in ("uchar", "ushort"):
            raise SlideUnreadable(f"{image.format} samples are no slide; unsigned ones of 8 or 16 bits are read")
        colours = COLOUR_BANDS.get(image.interpretation, 0)
        if not colours or image.bands < colours or (colours == 1 and image.bands > 2):
            raise SlideUnreadable(
                f"{image.bands} samples a pixel as {image.interpretation} are neither grey, RGB nor CMYK"
            )
        if image.format == "ushort":
            image = (image >> 8).cast("uchar")
        alpha = image[colours] if self._alpha and image.bands > colours else None
        if image.bands > colours:
            image = image[:colours]
        if colours == 4:  # as without a profile: ink darkens, black ink too
            image = (image[:3].invert() * image[3].invert() / 255).rint().cast("uchar")
        if colours == 1:
            image = image.bandjoin([image, image])
        image = image.copy(interpretation="srgb")
        return image if alpha is None else image.bandjoin(alpha).flatten(background=[255.0])

    def _cut(self, image: Any, x: int, y: int, side: int, background: Colour) -> Any:
        width, height = min(side, image.width - x), min(side, image.height - y)
        cut = image.crop(x, y, width, height)
        return (
            cut
            if width == height == side
            else cut.embed(0, 0, side, side, extend="background", background=list(background))
        )

    def _pixels(self, make: Any) -> Pixels:
        try:
            return np.asarray(make().numpy(), dtype=np.uint8)
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {one_line(error, self._path)}") from error


class OpenSlideSlide:
    """A slide read by OpenSlide, block by block."""

    decoder = "openslide"
    skipped_share = 0.0

    def __init__(self, path: Path) -> None:
        """Open it. Raises SlideUnreadable when OpenSlide cannot, or is not installed."""
        try:
            import openslide
        except (ImportError, OSError) as error:
            raise SlideUnreadable(f"OpenSlide is not installed: {one_line(error)}") from error
        self._error: type[Exception] = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except self._error as error:
            raise SlideUnreadable(f"OpenSlide: {one_line(error)}") from error
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
            raise SlideUnreadable(f"OpenSlide: {one_line(error)}") from error
        if rgba[..., 3].min() == 255:
            return rgba[..., :3]
        alpha = rgba[..., 3:].astype(np.float32) / 255
        mixed: Pixels = np.rint(rgba[..., :3] * alpha + self._behind * (1 - alpha)).astype(np.uint8)
        return mixed


def _box(pixels: Pixels, shrink: int) -> Pixels:
    """Average boxes of `shrink` px: uint8[h, w, 3] -> uint8[h / shrink, w / shrink, 3], both sides divisible."""
    if shrink == 1:
        return pixels
    height, width = pixels.shape[0] // shrink, pixels.shape[1] // shrink
    boxes = pixels.reshape(height, shrink, width, shrink, 3)
    mean: Pixels = np.rint(boxes.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
    return mean
