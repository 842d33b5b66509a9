"""Reading slides: the only place with pyvips and OpenSlide.

libvips without a codec returns black pixels without an error (seen for ZSTD, LZMA, LERC, JPEG XL and JPEG 2000 in the
build that pip installs), so the compression tag is read first: plain 8-bit RGB is decoded segment by segment without
libvips, what else libvips decodes goes to libvips, the rest to OpenSlide, and what none reads is refused by name.
libvips also returns black tiles for a tiled file that is cut short or damaged, unless fail_on is "warning"
(docs/explanation/decisions.md has the table).
"""

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clotkit.errors import CodecUnsupported, SlideError, SlideUnreadable, one_line
from clotkit.slides.bands import tiles_in_one_pass
from clotkit.slides.direct import DirectSlide
from clotkit.slides.pixels import Colour, Pixels, downsampled_tile
from clotkit.slides.segments import codecs
from clotkit.slides.tiff import MAX_EXPANSION, OTHER_CODECS, VIPS_CODECS, Layout, SegmentTable, check_size, read_layout

COLOUR_BANDS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb": 3, "rgb16": 3, "cmyk": 4}
MAX_ROTATED_PX = 2**25  # in strips: libvips turns these in memory, 100 MB; it would write more to a temporary file


class Slide(Protocol):
    """An open slide. Pixels are RGB, uint8, at full resolution unless a downsample is given."""

    decoder: str
    width_px: int
    height_px: int
    sequential: bool  # read top to bottom: a tile costs the whole rows that it lies in
    table: SegmentTable | None  # where its segments lie, if they lie as the pixels do

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """The tiles with the given top left corners, uint8[tile_px, tile_px, 3] each, box-averaged by `downsample`.

        `xy` is in full-resolution pixels, multiples of `downsample`, sorted by y where the slide is read in rows; what
        lies beyond the slide's edge, or behind transparent pixels, is `background`. Raises SlideUnreadable when the
        data are damaged.
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
    if layout.segments is not None and layout.segments.plain and codecs() is not None:
        return DirectSlide(path, layout.segments, layout.width_px, layout.height_px)
    if (layout.codec is None or layout.codec in VIPS_CODECS) and _vips() is not None:
        return _open_with_vips(path, layout)
    if layout.codec is None:
        raise SlideUnreadable("PNG and JPEG files are read by libvips alone, which is not installed")
    name = VIPS_CODECS.get(layout.codec) or OTHER_CODECS.get(layout.codec) or f"number {layout.codec}"
    if layout.orientation != 1:
        raise CodecUnsupported(
            f"compression {name} is not read by libvips, and orientation {layout.orientation} not by OpenSlide"
        )
    try:
        return OpenSlideSlide(path, layout.segments)
    except SlideError as error:
        raise CodecUnsupported(f"compression {name} is not read by libvips, and OpenSlide says: {error}") from error


def _open_with_vips(path: Path, layout: Layout) -> "VipsSlide":
    slide = VipsSlide(path, layout)
    if layout.codec is None:
        check_size(slide.width_px, slide.height_px, 8, path, MAX_EXPANSION)
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

    def __init__(self, path: Path, layout: Layout) -> None:
        """Open it. Raises SlideUnreadable when libvips cannot."""
        self._vips, self._path, self._alpha = _vips(), path, layout.alpha
        self._rotated, self.sequential = False, not layout.tiled
        image = self._open("random" if layout.tiled else "sequential")
        self.table = None if self._rotated else layout.segments
        self.width_px, self.height_px = int(image.width), int(image.height)

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """See Slide.tiles."""
        size = (self.width_px, self.height_px)
        region = self._vips.Region.new(self._open("sequential" if self.sequential else "random", background))

        def read(x: int, y: int, width: int, height: int) -> Pixels:
            return np.frombuffer(region.fetch(x, y, width, height), np.uint8).reshape(height, width, 3)

        def rows(first: int, count: int) -> Pixels:
            return read(0, first, self.width_px, count)

        try:
            if self.sequential:
                yield from tiles_in_one_pass(rows, size, xy, tile_px, downsample, background)
            else:
                for corner in xy:
                    yield downsampled_tile(read, size, corner, tile_px, downsample, background)
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {one_line(error, self._path)}") from error

    def _open(self, access: str, behind: Colour = (255, 255, 255)) -> Any:
        try:
            image = self._load(access)
            turn = image.get("orientation") if image.get_typeof("orientation") else 1
            if 1 < turn <= 8:  # turned rows come in no order: every read is a random one
                if self.sequential and image.width * image.height > MAX_ROTATED_PX:
                    raise SlideUnreadable(
                        f"orientation {turn} of {image.width:,} x {image.height:,} px in strips needs "
                        f"all of it in memory; {MAX_ROTATED_PX:,} px are allowed"
                    )
                self._rotated = True
                image = self._load("random").autorot()
            return self._rgb(image, behind)
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {one_line(error, self._path)}") from error

    def _load(self, access: str) -> Any:
        return self._vips.Image.new_from_file(str(self._path), access=access, fail_on="warning")

    def _rgb(self, image: Any, behind: Colour) -> Any:
        """8-bit RGB without a colour profile; transparency shows what is behind."""
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
        return image if alpha is None else image.bandjoin(alpha).flatten(background=list(behind))


class OpenSlideSlide:
    """A slide read by OpenSlide."""

    decoder = "openslide"
    sequential = False

    def __init__(self, path: Path, table: SegmentTable | None = None) -> None:
        """Open it. Raises SlideUnreadable when OpenSlide cannot, or is not installed."""
        try:
            import openslide
        except (ImportError, OSError) as error:
            raise SlideUnreadable(f"OpenSlide is not installed: {one_line(error)}") from error
        self.table = table
        self._error: type[Exception] = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except self._error as error:
            raise SlideUnreadable(f"OpenSlide: {one_line(error)}") from error
        self.width_px, self.height_px = self._slide.dimensions
        given = self._slide.properties.get("openslide.background-color", "FFFFFF")
        self._behind = np.array([int(given[i : i + 2], 16) for i in (0, 2, 4)], np.float32)

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """See Slide.tiles."""
        for corner in xy:
            yield downsampled_tile(self._read, (self.width_px, self.height_px), corner, tile_px, downsample, background)

    def _read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """RGB pixels at full resolution; transparent ones show the slide's own background colour."""
        try:
            rgba = np.asarray(self._slide.read_region((x, y), 0, (width, height)))
        except self._error as error:
            raise SlideUnreadable(f"OpenSlide: {one_line(error)}") from error
        if rgba[..., 3].min() == 255:
            return rgba[..., :3]
        alpha = rgba[..., 3:].astype(np.float32) / 255
        mixed: Pixels = np.rint(rgba[..., :3] * alpha + self._behind * (1 - alpha)).astype(np.uint8)
        return mixed
