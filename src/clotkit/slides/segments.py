"""Single tiles and strips of a plain TIFF, decoded one by one: the fast path that needs no libvips.

libvips decodes through libtiff and zlib, and builds a pipeline for every region. Taking a segment's bytes straight to
its codec costs half as much on deflate and JPEG, and lets a reader skip whatever it does not need. Damage never passes:
deflate is checked against its own checksum, LZW against the length it must have, and libjpeg's warnings are errors.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import SlideUnreadable, one_line
from clotkit.slides.pixels import Pixels
from clotkit.slides.tiff import JPEG, SegmentTable

START, END = b"\xff\xd8", b"\xff\xd9"
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # APP14; one byte more says how colours are coded


def codecs() -> tuple[Any, Any] | None:
    """The modules imagecodecs and simplejpeg; None where one is not installed."""
    try:
        import imagecodecs
        import simplejpeg
    except ImportError:
        return None
    return imagecodecs, simplejpeg


class Segments:
    """The segments of one file, read on demand."""

    def __init__(self, path: Path, table: SegmentTable, width_px: int, height_px: int) -> None:
        """Open the file. Raises SlideUnreadable when that fails."""
        found = codecs()
        assert found is not None, "ask codecs() first"
        self.table, self._path, self._size = table, path, (width_px, height_px)
        self._codecs, self._jpeg = found
        self._room: Pixels = np.empty((0, 0, 3), np.uint8)
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
        """One segment, uint8[height, width, 3], cut at the slide's edge; a strip stands until the next is decoded.

        Raises SlideUnreadable when it is damaged.
        """
        table = self.table
        top, left = row * table.height_px, column * table.width_px
        height, width = min(table.height_px, self._size[1] - top), min(table.width_px, self._size[0] - left)
        rows = table.height_px if table.tiled else height  # the last strip may be shorter, a tile never is
        packed = os.pread(self._file, int(table.counts[row, column]), int(table.offsets[row, column]))
        kind = "tile" if table.tiled else "strip"
        try:
            pixels = self._unpack(packed, rows)
        except (ValueError, RuntimeError) as error:
            reason = one_line(error, self._path)
            raise SlideUnreadable(f"the {kind} at {left}, {top} px is damaged: {reason}") from error
        return pixels[:height, :width]

    def _unpack(self, packed: bytes, rows: int) -> Pixels:
        """A whole segment of `rows` rows. Raises ValueError or RuntimeError when it does not hold them."""
        table = self.table
        shape = (rows, table.width_px, 3)
        if table.codec == JPEG:
            return self._unpack_jpeg(packed, shape)
        pixels = self._empty(shape)
        if table.codec == 1:
            _check_length(len(packed), pixels.size, least=True)
            return np.frombuffer(packed, np.uint8, pixels.size).reshape(shape)
        decode = self._codecs.lzw_decode if table.codec == 5 else self._codecs.deflate_decode
        _check_length(len(decode(packed, out=pixels.reshape(-1))), pixels.size)
        return np.asarray(self._codecs.delta_decode(pixels, axis=1, out=pixels)) if table.predictor else pixels

    def _empty(self, shape: tuple[int, int, int]) -> Pixels:
        """Room for a segment; that of a strip is used again, for allocating megabytes costs as much as decoding."""
        if self.table.tiled:
            return np.empty(shape, np.uint8)
        if self._room.shape != shape:
            self._room = np.empty(shape, np.uint8)
        return self._room

    def _unpack_jpeg(self, packed: bytes, shape: tuple[int, int, int]) -> Pixels:
        if packed[:2] != START:
            raise ValueError("it is no JPEG stream")
        pixels: Pixels = np.asarray(self._jpeg.decode_jpeg(self._head + packed[2:], "RGB", strict=True), np.uint8)
        if pixels.shape != shape:
            raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} px; {shape[1]} x {shape[0]} are due")
        return pixels


def _check_length(found: int, due: int, least: bool = False) -> None:
    if found < due or (found > due and not least):
        raise ValueError(f"{found:,} bytes of pixels; {due:,} are due")


def _bare(tables: bytes) -> bytes:
    """The tables of an abbreviated JPEG stream without its first and last marker."""
    return tables[2:-2] if tables[:2] == START and tables[-2:] == END else tables
