"""Decode single tiles and strips of a plain TIFF without libvips.

libvips decodes through libtiff and zlib, and builds a pipeline for every region. Handing a segment's bytes straight to
its codec takes half the time on deflate and JPEG, and lets a reader skip what it does not need. Damage is always
detected: deflate has its own checksum, an LZW segment must have its exact length, and libjpeg's warnings are errors.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import SlideUnreadable, one_line
from clotkit.slides.pixels import Pixels
from clotkit.slides.tiff import JPEG, SegmentTable

START, END = b"\xff\xd8", b"\xff\xd9"
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # APP14 segment; the next byte is the colour transform


def codecs() -> tuple[Any, Any] | None:
    """Return the modules imagecodecs and simplejpeg, or None if one is not installed."""
    try:
        import imagecodecs
        import simplejpeg
    except ImportError:
        return None
    return imagecodecs, simplejpeg


class Segments:
    """The segments (tiles or strips) of one file, decoded on request."""

    def __init__(self, path: Path, table: SegmentTable, width_px: int, height_px: int) -> None:
        """Open the file; `codecs` must not have returned None.

        Raises:
            SlideUnreadable: The file cannot be opened.
        """
        modules = codecs()
        assert modules is not None, "codecs() is None"
        self.table, self._path, self._size = table, path, (width_px, height_px)
        self._codecs, self._jpeg = modules
        self._buffer: Pixels = np.empty((0, 0, 3), np.uint8)
        self._head = START + ADOBE + (b"\1" if table.ycbcr else b"\0") + _bare(table.jpeg_tables)
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise SlideUnreadable(f"the file cannot be read: {error.strerror}") from error

    def __del__(self) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            os.close(self._file)

    def decode(self, row: int, column: int) -> Pixels:
        """Return one segment, uint8[height, width, 3], cropped at the slide's edge.

        The array of a strip is valid until the next strip is decoded.

        Raises:
            SlideUnreadable: The segment is damaged.
        """
        table = self.table
        top, left = row * table.height_px, column * table.width_px
        height, width = min(table.height_px, self._size[1] - top), min(table.width_px, self._size[0] - left)
        rows = table.height_px if table.tiled else height  # only the last strip may be shorter
        packed = os.pread(self._file, int(table.counts[row, column]), int(table.offsets[row, column]))
        kind = "tile" if table.tiled else "strip"
        try:
            pixels = self._unpack(packed, rows)
        except (ValueError, RuntimeError) as error:
            reason = one_line(error, self._path)
            raise SlideUnreadable(f"the {kind} at {left}, {top} px is damaged: {reason}") from error
        return pixels[:height, :width]

    def _unpack(self, packed: bytes, rows: int) -> Pixels:
        """Return a whole segment of `rows` rows.

        Raises:
            ValueError: The data do not hold so many rows.
            RuntimeError: A codec cannot decode the data.
        """
        table = self.table
        shape = (rows, table.width_px, 3)
        if table.codec == JPEG:
            return self._unpack_jpeg(packed, shape)
        pixels = self._empty(shape)
        if table.codec == 1:
            _check_length(len(packed), pixels.size, at_least=True)
            return np.frombuffer(packed, np.uint8, pixels.size).reshape(shape)
        decode = self._codecs.lzw_decode if table.codec == 5 else self._codecs.deflate_decode
        _check_length(len(decode(packed, out=pixels.reshape(-1))), pixels.size)
        return np.asarray(self._codecs.delta_decode(pixels, axis=1, out=pixels)) if table.predictor else pixels

    def _empty(self, shape: tuple[int, int, int]) -> Pixels:
        """Return a buffer for a segment.

        Strips share one buffer: allocating megabytes takes as long as decoding them.
        """
        if self.table.tiled:
            return np.empty(shape, np.uint8)
        if self._buffer.shape != shape:
            self._buffer = np.empty(shape, np.uint8)
        return self._buffer

    def _unpack_jpeg(self, packed: bytes, shape: tuple[int, int, int]) -> Pixels:
        if packed[:2] != START:
            raise ValueError("not a JPEG stream")
        pixels: Pixels = np.asarray(self._jpeg.decode_jpeg(self._head + packed[2:], "RGB", strict=True), np.uint8)
        if pixels.shape != shape:
            raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} px; {shape[1]} x {shape[0]} expected")
        return pixels


def _check_length(size: int, expected: int, at_least: bool = False) -> None:
    if size < expected or (size > expected and not at_least):
        raise ValueError(f"{size:,} bytes of pixels; {expected:,} expected")


def _bare(tables: bytes) -> bytes:
    """Return the tables of an abbreviated JPEG stream without its start and end markers."""
    return tables[2:-2] if tables[:2] == START and tables[-2:] == END else tables
