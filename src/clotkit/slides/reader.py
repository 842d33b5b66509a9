"""Open slides: the only module that uses pyvips and OpenSlide.

The compression tag is read first, because libvips without a codec returns black pixels without an error (seen for ZSTD,
LZMA, LERC, JPEG XL and JPEG 2000 in the build that pip installs). The first decoder that reads a page is used: our own
segments for plain 8-bit RGB, then libvips, OpenSlide, and any codec that imagecodecs has. A page that none of them
reads is refused by name.

libvips also returns black tiles for a truncated or damaged tiled file, unless `fail_on` is "warning"
(docs/explanation/decisions.md has the table).
"""

import os
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import CodecUnsupported, SlideError, SlideUnreadable, one_line
from clotkit.reasons import Reason
from clotkit.slides.any_codec import AnySegments
from clotkit.slides.bands import tiles_in_one_pass
from clotkit.slides.codecs.decompress import CCITT
from clotkit.slides.codecs.formats import colours_of
from clotkit.slides.direct import DirectSlide
from clotkit.slides.fallback import Candidate, Expected, FallbackSlide
from clotkit.slides.header.limits import MAX_EXPANSION, check_size
from clotkit.slides.header.pages import Copy, level_downsample
from clotkit.slides.header.resolution import plausible_mpp, unlike
from clotkit.slides.header.table import JPEG, RAW, SegmentTable
from clotkit.slides.header.tiff import OTHER_CODECS, VIPS_CODECS, Layout, read_layout, read_level
from clotkit.slides.levels import AUTO, LevelFile, PyramidSlide, Slide
from clotkit.slides.pictures import PictureSlide, check_interlacing
from clotkit.slides.pixels import Colour, Pixels, downsampled_tile
from clotkit.slides.segments import Segments, codecs
from clotkit.versions import is_old_openslide

__all__ = ["Slide", "open_slide"]

COLOUR_BANDS = {"b-w": 1, "grey16": 1, "srgb": 3, "rgb": 3, "rgb16": 3, "cmyk": 4}
LOSSY_CODECS = {6, 7, 33003, 33005, 34712, 34887, 50001, 50002, 52546}
MAX_JPEG_PX = 65_500  # libjpeg's limit of a side
MAX_ROTATED_PX = 2**25  # in strips: libvips rotates these in memory, 100 MB; more would go to a temporary file


def open_slide(path: Path, levels: str = AUTO, microns: bool = False) -> Slide:
    """Open a slide with the decoder that reads its codec.

    Args:
        path: The slide's file.
        levels: The smaller levels of a pyramid that tiles may come from: AUTO, CLOSE, or FULL for none of them.
        microns: Whether OpenSlide is asked for the size of a pixel too: `mpp` among the facts. It knows more scanners.

    Raises:
        SlideUnreadable: The file is missing, empty, damaged, or not an image.
        CodecUnsupported: No decoder here reads its codec.
    """
    try:
        there = path.is_file()
    except OSError as error:  # a name that is too long, a folder that must not be read
        raise SlideUnreadable(f"the file cannot be opened: {error.strerror}") from error
    if not there:
        raise SlideUnreadable("the path is a folder, not a file" if path.is_dir() else "the file is missing")
    if not path.stat().st_size:
        raise SlideUnreadable("the file is empty: 0 bytes")
    layout = read_layout(path)
    if layout is None:
        return _open_for_openslide(path, levels)
    upright = layout.orientation == 1
    slide = PyramidSlide(_open_page(path, layout), _levels_of_a_tiff(path, layout) if upright else (), levels)
    if microns:
        _add_mpp(slide, path, layout.mpp)
    return slide


def _open_for_openslide(path: Path, levels: str) -> PyramidSlide:
    """Open a slide that OpenSlide alone may read, with its levels. Raises SlideUnreadable."""
    try:
        slide = OpenSlideSlide(path)
    except SlideError as error:
        raise SlideUnreadable(f"not an image: no TIFF, PNG or JPEG signature; {error}") from error
    if slide.mpp is not None:
        slide.facts["mpp"] = slide.mpp
    return PyramidSlide(slide, _levels_of_openslide(path, slide), levels)


def _add_mpp(slide: PyramidSlide, path: Path, stated: tuple[float, ...]) -> None:
    """Add the size of a pixel to a slide's facts: OpenSlide's, else the header's; note that they differ."""
    try:
        other = OpenSlideSlide(path)
    except SlideError:  # not installed, or it does not read the file: the header has the only word
        other = None
    # OpenSlide may show another page of the file.
    if other is not None and (other.width_px, other.height_px) == (slide.width_px, slide.height_px) and other.mpp:
        stated = (other.mpp, *stated)
    if stated:
        slide.facts["mpp"] = stated[0]
    if any(unlike(stated[0], mpp) for mpp in stated[1:]):
        slide.facts["notes"] = [*slide.facts.get("notes", ()), Reason.MPP_DISAGREES]


def _open_page(path: Path, layout: Layout) -> FallbackSlide:
    """Open one page of a TIFF, or a picture."""
    pictures = layout.codec is None
    candidates = _of_a_picture(path, layout) if pictures else _of_a_tiff(path, layout)
    lossy = pictures or layout.codec in LOSSY_CODECS
    return FallbackSlide(candidates, Expected(layout.segments, lossy, layout.facts))


def _levels_of_a_tiff(path: Path, layout: Layout) -> list[LevelFile]:
    """Return the smaller levels of a TIFF."""

    def open_level(level: Copy) -> FallbackSlide:
        page = read_level(path, level)
        # OpenSlide interpolates between a level's pixels where its sides are rounded.
        candidates = [one for one in _of_a_tiff(path, page) if one.decoder != "openslide"]
        return FallbackSlide(candidates, Expected(page.segments, page.codec in LOSSY_CODECS))

    return [LevelFile(level.downsample, partial(open_level, level), level.fits) for level in layout.levels]


def _levels_of_openslide(path: Path, slide: "OpenSlideSlide") -> list[LevelFile]:
    """Return the smaller levels of a slide that OpenSlide alone reads."""
    full = (slide.width_px, slide.height_px)
    levels = [(level_downsample(size, full), number) for number, size in enumerate(slide.level_sizes)]
    return [
        LevelFile(downsample, partial(OpenSlideSlide, path, level=number))
        for downsample, number in levels
        if downsample
    ]


def _of_a_picture(path: Path, layout: Layout) -> list[Candidate]:
    """Return the decoders of a PNG or JPEG file. Pillow shows damaged JPEG data as pixels."""
    with path.open("rb") as file:
        lenient = file.read(1) != b"\x89"
    return [
        Candidate("libvips", lambda: _open_with_vips(path, layout), proven=True),
        Candidate("pillow", lambda: PictureSlide(path), proven=True, lenient=lenient),
    ]


def _of_a_tiff(path: Path, layout: Layout) -> list[Candidate]:
    """Return the decoders of a page, in the order in which they are tried.

    OpenSlide is asked only if nobody calls the file damaged: it ignores libjpeg's warnings.
    """
    table, candidates = layout.segments, list[Candidate]()
    if table is not None and table.plain:
        sound = not table.codes and not table.doubtful
        verifies = table.codec != RAW
        candidates.append(Candidate("direct", lambda: _open_directly(path, layout), proven=sound, final=verifies))
    last = Candidate("tifffile", lambda: _open_with_tifffile(path, layout), lenient=layout.codec in CCITT)
    plain_rgb = layout.encoding is not None and layout.encoding.samples == 3 and layout.encoding.bits == 8
    if (table is not None and Reason.TABLE_COMPLETED in table.codes) or not _has_plain_colours(layout):
        # OpenSlide shows tiles without a byte count as background, and the first of three grey samples as the picture.
        return [*candidates, Candidate("libvips", lambda: _open_with_vips(path, layout)), last]
    return [
        *candidates,
        Candidate("libvips", lambda: _open_with_vips(path, layout)),
        Candidate("openslide", lambda: _open_with_openslide(path, layout), lenient=True, witness=plain_rgb),
        last,
    ]


def _has_plain_colours(layout: Layout) -> bool:
    """Return whether a page's samples fit its photometric interpretation."""
    try:
        return layout.encoding is None or colours_of(layout.encoding.photometric, layout.encoding.samples) > 0
    except CodecUnsupported:
        return False


def _one_plane(table: SegmentTable | None) -> SegmentTable | None:
    """Return a table whose rows are those of the slide, or None: planes lie one below the other in it."""
    return table if table is None or table.planes == 1 else None


def _open_directly(path: Path, layout: Layout) -> DirectSlide:
    assert layout.segments is not None
    if codecs() is None:
        raise CodecUnsupported("imagecodecs and simplejpeg are not installed")
    size = (layout.width_px, layout.height_px)
    return DirectSlide(Segments(path, layout.segments, *size, _strict_jpeg), size)


def _open_with_tifffile(path: Path, layout: Layout) -> DirectSlide:
    segments = AnySegments(path, layout, _strict_jpeg)
    return DirectSlide(segments, (layout.width_px, layout.height_px), "tifffile")


def _open_with_openslide(path: Path, layout: Layout) -> "OpenSlideSlide":
    if layout.orientation != 1:
        raise CodecUnsupported(f"OpenSlide does not read orientation {layout.orientation}")
    slide = OpenSlideSlide(path, layout.segments)
    if (slide.width_px, slide.height_px) != (layout.width_px, layout.height_px):
        raise CodecUnsupported(
            f"OpenSlide reads {slide.width_px} x {slide.height_px} px, "
            f"the slide's page has {layout.width_px} x {layout.height_px} px"
        )
    return slide


def _open_with_vips(path: Path, layout: Layout) -> "VipsSlide":
    if _vips() is None:
        raise CodecUnsupported("libvips is not installed")
    if layout.codec is not None and layout.codec not in VIPS_CODECS:
        name = OTHER_CODECS.get(layout.codec, f"number {layout.codec}")
        raise CodecUnsupported(f"libvips does not read compression {name}")
    if layout.codec == JPEG and max(_segment_px(layout)) > MAX_JPEG_PX:
        raise CodecUnsupported(f"libvips does not read JPEG data of more than {MAX_JPEG_PX:,} px a side")
    if layout.codec is None:
        check_interlacing(path)
    slide = VipsSlide(path, layout)
    if layout.codec is None:
        check_size(slide.width_px, slide.height_px, 8, path, MAX_EXPANSION)
    elif sorted((slide.width_px, slide.height_px)) != sorted((layout.width_px, layout.height_px)):
        raise SlideUnreadable(
            f"the TIFF directory says {layout.width_px} x {layout.height_px} px, "
            f"libvips reads {slide.width_px} x {slide.height_px} px"
        )
    return slide


def _segment_px(layout: Layout) -> tuple[int, int]:
    """Return width and height of a page's segments; the page's own if it has no table of them."""
    table = layout.segments
    return (layout.width_px, layout.height_px) if table is None else (table.width_px, table.height_px)


@cache
def _vips() -> Any:
    """Return the pyvips module, configured for one slide per process; None if it is not installed."""
    os.environ.setdefault("VIPS_WARNING", "0")
    try:
        import pyvips
    except (ImportError, OSError):
        return None
    pyvips.cache_set_max(0)  # a cached sequential image returned zeros (libvips issue 3803)
    return pyvips


def _strict_jpeg(data: bytes) -> Pixels:
    """Decode a JPEG stream of any sampling with libvips, uint8[h, w, 3].

    Raises:
        ValueError: It is damaged.
        CodecUnsupported: libvips is not installed.
    """
    vips = _vips()
    if vips is None:
        raise CodecUnsupported("libvips, which reads JPEG data with an odd sampling, is not installed")
    try:
        image = vips.Image.jpegload_buffer(data, fail_on="warning")
        return np.asarray(image.numpy(), np.uint8).reshape(image.height, image.width, -1)
    except vips.Error as error:
        raise ValueError(one_line(error)) from error


class VipsSlide:
    """A slide that libvips reads: random access if it is tiled, else one sequential pass."""

    decoder = "libvips"

    def __init__(self, path: Path, layout: Layout) -> None:
        """Open the slide.

        Raises:
            SlideUnreadable: libvips cannot open it.
            CodecUnsupported: libvips does not read its page.
        """
        if len(layout.subifd) > 1:
            raise CodecUnsupported("libvips does not read a SubIFD below a SubIFD")
        self._vips, self._path, self._alpha = _vips(), path, layout.alpha
        self._page = {} if layout.codec is None else {"page": layout.page, "subifd": (*layout.subifd, -1)[0]}
        self.facts: dict[str, Any] = {}
        self._rotated, self.sequential = False, not layout.tiled
        image = self._open("random" if layout.tiled else "sequential")
        self.table = None if self._rotated else _one_plane(layout.segments)
        self.width_px, self.height_px = int(image.width), int(image.height)

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `Decoded.tiles`."""
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

    def _open(self, access: str, background: Colour = (255, 255, 255)) -> Any:
        try:
            image = self._load(access)
            orientation = image.get("orientation") if image.get_typeof("orientation") else 1
            if 1 < orientation <= 8:  # rotated rows come in no order, so every read is a random one
                if self.sequential and image.width * image.height > MAX_ROTATED_PX:
                    raise SlideUnreadable(
                        f"orientation {orientation} in strips needs the whole slide in memory: "
                        f"{image.width:,} x {image.height:,} px; {MAX_ROTATED_PX:,} px are allowed"
                    )
                self._rotated = True
                image = self._load("random").autorot()
            return self._rgb(image, background)
        except self._vips.Error as error:
            raise SlideUnreadable(f"libvips: {one_line(error, self._path)}") from error

    def _load(self, access: str) -> Any:
        load = self._vips.Image.tiffload if self._page else self._vips.Image.new_from_file
        return load(os.fsencode(self._path), access=access, fail_on="warning", **self._page)

    def _rgb(self, image: Any, background: Colour) -> Any:
        """Convert to 8-bit RGB without a colour profile; transparent pixels show `background`."""
        if image.format not in ("uchar", "ushort"):
            raise CodecUnsupported(f"{image.format} samples are not supported; samples of 8 or 16 unsigned bits are")
        colours = COLOUR_BANDS.get(image.interpretation, 0)
        if not colours or image.bands < colours or (colours == 1 and image.bands > 2):
            raise CodecUnsupported(
                f"{image.bands} samples per pixel as {image.interpretation} are not grey, RGB or CMYK"
            )
        if image.format == "ushort":
            image = (image >> 8).cast("uchar")
        alpha = image[colours] if self._alpha and image.bands > colours else None
        if image.bands > colours:
            image = image[:colours]
        if colours == 4:  # CMYK without a profile: each ink, black too, darkens
            image = (image[:3].invert() * image[3].invert() / 255).rint().cast("uchar")
        if colours == 1:
            image = image.bandjoin([image, image])
        image = image.copy(interpretation="srgb")
        return image if alpha is None else image.bandjoin(alpha).flatten(background=list(background))


class OpenSlideSlide:
    """A slide that OpenSlide reads."""

    decoder = "openslide"
    sequential = False

    def __init__(self, path: Path, table: SegmentTable | None = None, level: int = 0) -> None:
        """Open one level of the slide.

        Raises:
            CodecUnsupported: OpenSlide cannot open it, or is not installed.
        """
        try:
            import openslide
        except (ImportError, OSError) as error:
            raise CodecUnsupported("OpenSlide is not installed") from error
        self.table, self.facts = _one_plane(table), dict[str, Any]()
        if is_old_openslide(openslide.__library_version__):
            self.facts["notes"] = [Reason.OLD_OPENSLIDE]
        self._error: type[Exception] = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except self._error as error:
            raise CodecUnsupported(f"OpenSlide: {one_line(error, path)}") from error
        self.level_sizes: tuple[tuple[int, int], ...] = self._slide.level_dimensions
        self._level, (self.width_px, self.height_px) = level, self.level_sizes[level]
        self._downsample = float(self._slide.level_downsamples[level])
        sides = [self._slide.properties.get(f"openslide.mpp-{axis}", "") for axis in "xy"]
        self.mpp = plausible_mpp(float(sides[0]), float(sides[1])) if all(sides) else None
        colour = self._slide.properties.get("openslide.background-color", "")
        self._background: Colour | None = None
        if len(colour) == 6:
            self._background = (int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16))

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `Decoded.tiles`."""
        size, read = (self.width_px, self.height_px), partial(self._read, self._background or background)
        for corner in xy:
            yield downsampled_tile(read, size, corner, tile_px, downsample, background)

    def _read(self, background: Colour, x: int, y: int, width: int, height: int) -> Pixels:
        """Return RGB pixels; transparent ones show the slide's own background if it states one."""
        try:
            place = (round(x * self._downsample), round(y * self._downsample))  # OpenSlide counts in level 0
            rgba = np.asarray(self._slide.read_region(place, self._level, (width, height)))
        except self._error as error:
            raise SlideUnreadable(f"OpenSlide: {one_line(error)}") from error
        if rgba[..., 3].min() == 255:
            return rgba[..., :3]
        alpha = rgba[..., 3:].astype(np.float32) / 255
        mixed: Pixels = np.rint(rgba[..., :3] * alpha + np.array(background, np.float32) * (1 - alpha)).astype(np.uint8)
        return mixed
