"""Decode single tiles and strips of a plain TIFF without libvips.

libvips decodes through libtiff and zlib, and builds a pipeline for every region. Handing a segment's bytes straight to
its codec takes half the time on deflate and JPEG, and lets a reader skip what it does not need. Damage is always
detected: deflate has its own checksum, an LZW segment must have its length, and libjpeg's warnings are errors.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import CodecUnsupported, SlideUnreadable, one_line
from clotkit.reasons import Reason
from clotkit.slides.codecs.formats import HORIZONTAL
from clotkit.slides.codecs.jpeg import ADOBE, START, Stream, bare, parse, stored_as_rgb
from clotkit.slides.codecs.rows import DeflateRows, RawRows, Rows
from clotkit.slides.codecs.small_tiff import LZW_START, small_tiff
from clotkit.slides.header.table import JPEG, LZW, RAW, SegmentTable
from clotkit.slides.pixels import Colour, Pixels, evenly_spread

HEAD_BYTES = 2**16  # of a JPEG stream, that its first scan begins in
COLOUR_SAMPLES = 6  # tiles that are decoded where a JPEG's colour model is in doubt
# Sampling factors of the luma, with chroma 1 x 1, that simplejpeg decodes.
SAMPLINGS = {0x11, 0x21, 0x22, 0x12, 0x41, 0x14}

StrictJpeg = Callable[[bytes], Pixels]  # decodes any sampling; raises ValueError for a damaged stream


def codecs() -> tuple[Any, Any] | None:
    """Return the modules imagecodecs and simplejpeg, or None if one is not installed."""
    try:
        import imagecodecs
        import simplejpeg
    except ImportError:
        return None
    return imagecodecs, simplejpeg


class SegmentFile:
    """The tiles or strips of one file, as they are stored."""

    def __init__(self, path: Path, table: SegmentTable, width_px: int, height_px: int) -> None:
        """Open the file.

        Raises:
            SlideUnreadable: The file cannot be opened.
        """
        self.table, self._path, self._size = table, path, (width_px, height_px)
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise SlideUnreadable(f"the file cannot be read: {error.strerror}") from error

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            os.close(self._file)

    def packed(self, row: int, column: int, most: int | None = None) -> bytes:
        """Return the bytes of a segment, at most `most`; `row` counts on through the planes."""
        count = int(self.table.counts[row, column])
        return os.pread(self._file, count if most is None else min(most, count), int(self.table.offsets[row, column]))

    def read_at(self, offset: int, count: int) -> bytes:
        """Return bytes of the file."""
        return os.pread(self._file, count, offset)

    def bounds(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Return left, top, width and height of a segment in the slide, without what is beyond its edge."""
        top, left = row * self.table.height_px, column * self.table.width_px
        height, width = min(self.table.height_px, self._size[1] - top), min(self.table.width_px, self._size[0] - left)
        return left, top, width, height

    def check_size(self, size: tuple[int, ...], height: int, width: int) -> None:
        """Check that a decoded segment covers the needed pixels, and is no larger than a tile or strip.

        A larger one contradicts the header, and which of the two is right cannot be told. The last strip may have the
        rows of a whole one.

        Raises:
            ValueError: It is smaller or larger.
        """
        too_small = size[0] < height or size[1] < width
        if too_small or size[0] > self.table.height_px or size[1] > self.table.width_px:
            raise ValueError(f"{size[1]} x {size[0]} px; {width} x {height} expected")

    def damaged(self, row: int, column: int, error: Exception) -> SlideUnreadable:
        """Return the error for a segment that `error` was raised for."""
        left, top, _, _ = self.bounds(row, column)
        kind = "tile" if self.table.tiled else "strip"
        return SlideUnreadable(f"the {kind} at {left}, {top} px is damaged: {one_line(error, self._path)}")


class JpegSegments(SegmentFile):
    """The segments of one file whose JPEG streams are decoded strictly: libjpeg's warnings are errors."""

    def __init__(
        self, path: Path, table: SegmentTable, width_px: int, height_px: int, strict_jpeg: StrictJpeg | None
    ) -> None:
        """Open the file.

        Raises:
            SlideUnreadable: The file cannot be opened.
        """
        super().__init__(path, table, width_px, height_px)
        modules = codecs()
        self._codecs: Any = modules and modules[0]
        self._jpeg: Any = modules and modules[1]
        self._strict_jpeg = strict_jpeg
        self.codes: tuple[Reason, ...] = ()
        self._ycbcr, self._as_told = table.ycbcr, True
        if table.codec == JPEG and self.decodes_jpeg and table.planes == 1:
            self._choose_colours()

    @property
    def decodes_jpeg(self) -> bool:
        """True if the package for JPEG streams is installed."""
        return self._jpeg is not None

    def colours_of(self, stream: Stream) -> bool:
        """Return whether a stream is YCbCr: as it states, unless another model was chosen for the file."""
        return self._ycbcr if not self._as_told or stream.shown_ycbcr is None else stream.shown_ycbcr

    def decoded_stream(self, stream: Stream, ycbcr: bool) -> Pixels:
        """Return the pixels of a stream with three components, uint8[h, w, 3].

        Raises:
            ValueError: The stream is damaged.
            RuntimeError: The stream is damaged.
            CodecUnsupported: It needs a decoder that is not installed.
        """
        whole = stream.whole(self.table.jpeg_tables, ycbcr)
        factors = [factor for _, factor in stream.components]
        if len(factors) == 3 and (factors[0] not in SAMPLINGS or factors[1:] != [0x11, 0x11]):
            if self._strict_jpeg is None:
                raise CodecUnsupported("libvips is not installed; it reads JPEG data with an odd sampling")
            return self._strict_jpeg(whole)
        try:
            return self.decoded_jpeg(whole)
        except (ValueError, RuntimeError):
            for shorter in stream.without_zeros():
                with suppress(ValueError, RuntimeError):
                    return self.decoded_jpeg(shorter.whole(self.table.jpeg_tables, ycbcr))
            raise

    def decoded_jpeg(self, data: bytes) -> Pixels:
        """Return the pixels of a complete stream, uint8[h, w, 3]; see `decoded_stream`."""
        return np.asarray(self._jpeg.decode_jpeg(data, "RGB", strict=True), np.uint8)

    def decoded_grey(self, stream: Stream) -> Pixels:
        """Return the pixels of a stream with one component, uint8[h, w, 1]; see `decoded_stream`."""
        whole = stream.whole(self.table.jpeg_tables, ycbcr=False)
        return np.asarray(self._jpeg.decode_jpeg(whole, "GRAY", strict=True), np.uint8).reshape(
            stream.height_px, stream.width_px, 1
        )

    def _choose_colours(self) -> None:
        """Choose between the colour models that the tag and the streams state, by the pixels if they differ."""
        places = self._samples()
        try:
            stream = parse(self.packed(*places[0], HEAD_BYTES))
        except ValueError:
            return  # `decode` says what is wrong
        if stream.ycbcr is None or stream.ycbcr == self.table.ycbcr:
            return
        self._ycbcr, self.codes = stream.ycbcr, (Reason.DECODERS_DISAGREE,)
        stored = []
        for place in places:
            try:
                stored.append(self.decoded_stream(parse(self.packed(*place)), ycbcr=False).reshape(-1, 3))
            except (ValueError, RuntimeError, CodecUnsupported):
                continue
        if stored and (as_rgb := stored_as_rgb(np.concatenate(stored))) is not None:
            self._ycbcr = not as_rgb
        self._as_told = stream.shown_ycbcr in (None, self._ycbcr)

    def _samples(self) -> list[tuple[int, int]]:
        """Return a few places of segments, from the one with the most bytes to the one with the fewest."""
        counts, columns = self.table.counts.ravel(), self.table.counts.shape[1]
        order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
        chosen = order[evenly_spread(len(order), COLOUR_SAMPLES)]
        return [(int(i) // columns, int(i) % columns) for i in chosen]


class Segments(JpegSegments):
    """The segments (tiles or strips) of one plain file, decoded on request."""

    def __init__(
        self, path: Path, table: SegmentTable, width_px: int, height_px: int, strict_jpeg: StrictJpeg | None = None
    ) -> None:
        """Open the file; `codecs` must not have returned None.

        Raises:
            SlideUnreadable: The file cannot be opened.
        """
        super().__init__(path, table, width_px, height_px, strict_jpeg)
        assert self.decodes_jpeg, "codecs() is None"
        self._buffer: Pixels = np.empty((0, 0, 3), np.uint8)
        self._rows: tuple[int, Rows] | None = None
        self._head = START + ADOBE + (b"\1" if self._ycbcr else b"\0") + bare(table.jpeg_tables)

    def decode(self, row: int, column: int, background: Colour) -> Pixels:
        """Return one segment that is not absent, uint8[height, width, 3], cropped at the slide's edge.

        The array of a strip is valid until the next strip is decoded. `background` is not needed here.

        Raises:
            SlideUnreadable: The segment is damaged.
            CodecUnsupported: It needs a decoder that is not installed.
        """
        _, _, width, height = self.bounds(row, column)
        rows = self.table.height_px if self.table.tiled else height  # only the last strip may be shorter
        try:
            pixels = self._unpack(self.packed(row, column), (rows, self.table.width_px, 3), (height, width))
        except (ValueError, RuntimeError) as error:
            raise self.damaged(row, column, error) from error
        return pixels[:height, :width]

    def rows(self, number: int, first: int, count: int, background: Colour) -> Pixels:
        """Return rows of a strip that is too large to be decoded at once.

        Raises:
            SlideUnreadable: The strip is damaged.
        """
        if self._rows is None or self._rows[0] != number:
            self._rows = (number, self._open_rows(number))
        try:
            return self._rows[1].rows(first, count)
        except ValueError as error:
            raise self.damaged(number, 0, error) from error

    def _open_rows(self, number: int) -> Rows:
        table, (_, _, width, height) = self.table, self.bounds(number, 0)
        start, size = int(table.offsets[number, 0]), int(table.counts[number, 0])

        def read(offset: int, count: int) -> bytes:
            return os.pread(self._file, max(0, min(count, size - offset)), start + offset)

        return RawRows(read, width) if table.codec == RAW else DeflateRows(read, width, height, table.predictor)

    def _unpack(self, packed: bytes, shape: tuple[int, int, int], needed: tuple[int, int]) -> Pixels:
        """Return a whole segment of `shape`; a JPEG may be smaller if it covers the `needed` pixels.

        Raises:
            ValueError: The data do not hold so many rows.
            RuntimeError: A codec cannot decode the data.
        """
        table = self.table
        if table.codec == JPEG:
            return self._unpack_jpeg(packed, shape, needed)
        pixels = self._empty(shape)
        if table.codec == RAW:
            _check_length(len(packed), pixels.size, at_least=True)
            return np.frombuffer(packed, np.uint8, pixels.size).reshape(shape)
        if table.codec == LZW:
            if self._by_libtiff(packed, pixels):
                return pixels
            _check_length(len(self._codecs.lzw_decode(packed, out=pixels.reshape(-1))), pixels.size)
        else:
            self._inflate(packed, pixels)
        return np.asarray(self._codecs.delta_decode(pixels, axis=1, out=pixels)) if table.predictor else pixels

    def _by_libtiff(self, packed: bytes, pixels: Pixels) -> bool:
        """Decode LZW data into `pixels` with libtiff; return whether that succeeded, predictor and all."""
        if not packed.startswith(LZW_START):
            return False
        height, width = pixels.shape[:2]
        predictor = HORIZONTAL if self.table.predictor else 1
        try:
            self._codecs.tiff_decode(small_tiff(packed, LZW, (width, height), 3, predictor=predictor), out=pixels)
        except (ValueError, RuntimeError, ImportError):
            return False  # the decoder without libtiff says what is wrong
        return True

    def _inflate(self, packed: bytes, pixels: Pixels) -> None:
        """Decode deflate data into `pixels`; more data may follow, up to the checksum of them all."""
        try:
            _check_length(len(self._codecs.deflate_decode(packed, out=pixels.reshape(-1))), pixels.size)
        except (ValueError, RuntimeError):
            height, width = pixels.shape[:2]
            whole = DeflateRows(lambda offset, count: packed[offset : offset + count], width, height, predictor=False)
            pixels[:] = whole.rows(0, height)

    def _empty(self, shape: tuple[int, int, int]) -> Pixels:
        """Return a buffer for a segment.

        Strips share one buffer: allocating megabytes takes as long as decoding them.
        """
        if self.table.tiled:
            return np.empty(shape, np.uint8)
        if self._buffer.shape != shape:
            self._buffer = np.empty(shape, np.uint8)
        return self._buffer

    def _unpack_jpeg(self, packed: bytes, shape: tuple[int, int, int], needed: tuple[int, int]) -> Pixels:
        if self._as_told and packed[:2] == START:
            try:
                pixels = self.decoded_jpeg(self._head + packed[2:])
            except (ValueError, RuntimeError):
                pixels = None
            if pixels is not None and pixels.shape == shape:
                return pixels
        stream = parse(packed)
        self.check_size((stream.height_px, stream.width_px), *needed)
        return self.decoded_stream(stream, self.colours_of(stream))


def _check_length(size: int, expected: int, at_least: bool = False) -> None:
    if size < expected or (size > expected and not at_least):
        raise ValueError(f"{size:,} bytes of pixels; {expected:,} expected")
