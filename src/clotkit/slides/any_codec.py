"""Decode tiles and strips in any codec and pixel format that tifffile and imagecodecs read.

This is the last decoder, for what libvips and OpenSlide do not read, and the second opinion on what they do. tifffile
itself would read a whole page, and make Python integers of its tables; only its codecs are used.
"""

import dataclasses
from pathlib import Path

import numpy as np

from clotkit.errors import CodecUnsupported
from clotkit.reasons import Reason
from clotkit.slides.codecs.decompress import BYTE_CODECS, JPEG2000_YCBCR, codec_function, decompressed, image_samples
from clotkit.slides.codecs.formats import YCBCR, Encoding, Samples, colours_of, to_rgb, unpacked, ycbcr_to_rgb
from clotkit.slides.codecs.jpeg import Stream, parse
from clotkit.slides.codecs.old_jpeg import strip_stream, whole_picture
from clotkit.slides.header.table import JPEG, OLD_JPEG, SegmentTable
from clotkit.slides.header.tiff import Layout
from clotkit.slides.pixels import Colour, Pixels
from clotkit.slides.segments import JpegSegments, StrictJpeg

MAX_BYTES = 2**29  # decoded, of one segment
DECODED_COLOURS = {50001, 34927, 50002, 52546, JPEG, OLD_JPEG}  # codecs that give RGB, whatever the tag says


class AnySegments(JpegSegments):
    """The segments of a page in any codec, decoded on request."""

    def __init__(self, path: Path, layout: Layout, strict_jpeg: StrictJpeg | None = None) -> None:
        """Open the file.

        Raises:
            SlideUnreadable: The file cannot be opened.
            CodecUnsupported: No package here has the codec, or the page has no table of segments.
        """
        encoding = layout.encoding
        assert encoding is not None, "not a TIFF"
        self._encoding: Encoding = encoding
        if layout.orientation != 1:
            raise CodecUnsupported(f"orientation {layout.orientation} is not read")
        if layout.segments is None and encoding.codec != OLD_JPEG:
            raise CodecUnsupported("the page has no table of its tiles or strips")
        colours_of(encoding.photometric, encoding.samples)
        size = (layout.width_px, layout.height_px)
        super().__init__(path, layout.segments or _one_strip(size), *size, strict_jpeg)
        self._whole = False
        if encoding.codec == OLD_JPEG:
            self._find_whole_picture(path.stat().st_size)
        elif encoding.codec == JPEG:
            if not self.decodes_jpeg:
                raise CodecUnsupported("imagecodecs and simplejpeg are not installed")
        elif encoding.codec != 1 and encoding.codec not in (8, 32946, 34925):
            codec_function(encoding.codec)
        if (need := encoding.raw_bytes(self.table.width_px, self.table.height_px)) > MAX_BYTES:
            raise CodecUnsupported(f"a tile or strip of {need:,} bytes; {MAX_BYTES:,} are allowed")
        self._last: tuple[int, Colour, Pixels] | None = None

    def decode(self, row: int, column: int, background: Colour) -> Pixels:
        """Return one segment, uint8[height, width, 3]; see `segments.Segments.decode`."""
        _, _, width, height = self.bounds(row, column)
        try:
            planes = [self._plane(row + i * self.table.grid[0], column, height) for i in range(self.table.planes)]
            samples: Samples = np.dstack(planes) if len(planes) > 1 else planes[0]
            if self._encoding.codec == OLD_JPEG:  # whose streams may have the rows and columns of whole blocks
                samples = samples[: self.table.height_px, : self.table.width_px]
            self.check_size(samples.shape, height, width)
            return self._rgb(samples[:height, :width], background)
        except (ValueError, RuntimeError, TypeError, ArithmeticError, LookupError) as error:
            raise self.damaged(row, column, error) from error

    def rows(self, number: int, first: int, count: int, background: Colour) -> Pixels:
        """Return rows of a large strip, which is decoded at once."""
        if self._last is None or self._last[:2] != (number, background):
            self._last = None  # frees the memory first
            self._last = (number, background, self.decode(number, 0, background))
        return self._last[2][first : first + count]

    def _plane(self, row: int, column: int, height: int) -> Samples:
        """Return the samples of one plane of a segment, at least `height` rows of them."""
        if not self.table.counts[row, column]:
            raise ValueError("it has some of its planes only")
        data, table, encoding = self.packed(row, column), self.table, self._encoding
        rows = [table.height_px] if table.tiled or height == table.height_px else [height, table.height_px]
        if encoding.codec == OLD_JPEG and not self._whole:
            return self._jpeg_samples(strip_stream(data, encoding, table.width_px, rows[0], self.read_at))
        if encoding.codec in (JPEG, OLD_JPEG):
            return self._jpeg_samples(parse(data))
        if encoding.codec not in BYTE_CODECS:
            return image_samples(data, encoding)
        try:
            decoded = decompressed(data, encoding, table.width_px, rows)
        except (ValueError, RuntimeError):
            if Reason.TABLE_COMPLETED not in table.codes or not data.endswith(b"\0"):
                raise
            decoded = decompressed(data[:-1], encoding, table.width_px, rows)  # segments begin with even bytes
        return unpacked(decoded, encoding, table.width_px, rows[0])

    def _jpeg_samples(self, stream: Stream) -> Samples:
        if len(stream.components) == 1:
            return self.decoded_grey(stream)
        if len(stream.components) != 3:
            raise CodecUnsupported(f"JPEG data of {len(stream.components)} components are not read")
        return self.decoded_stream(stream, self.colours_of(stream))

    def _rgb(self, samples: Samples, background: Colour) -> Pixels:
        encoding = self._encoding
        if encoding.codec == JPEG2000_YCBCR:
            return ycbcr_to_rgb(samples[..., :3].astype(np.uint8))
        if encoding.codec in DECODED_COLOURS and encoding.photometric == YCBCR and samples.shape[2] == 1:
            encoding = dataclasses.replace(encoding, photometric=1)
        is_ycbcr = encoding.photometric == YCBCR and (encoding.planar or encoding.codec not in DECODED_COLOURS)
        return to_rgb(samples, encoding, background, is_ycbcr)

    def _find_whole_picture(self, file_bytes: int) -> None:
        """Read an old-style JPEG as one strip if the file has one stream of the whole picture."""
        if not self.decodes_jpeg:
            raise CodecUnsupported("imagecodecs and simplejpeg are not installed")
        place = whole_picture(self._encoding, self._size, file_bytes, self.read_at)
        if place is not None:
            self._whole, self.table = True, _one_strip(self._size, *place)
        elif not self.table.counts.any():
            raise CodecUnsupported("the page has no table of its tiles or strips")


def _one_strip(size_px: tuple[int, int], start: int = 0, count: int = 0) -> SegmentTable:
    """Return a table with one strip, which is the whole page."""
    place, size = np.array([[start]], np.int64), np.array([[count]], np.int64)
    return SegmentTable(False, False, OLD_JPEG, False, True, b"", *size_px, place, size)
