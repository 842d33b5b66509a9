"""Read rows of one long strip in bounded memory: raw or deflate, as large as a whole slide."""

import zlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from clotkit.slides.codecs.formats import Pixels

CHUNK_BYTES = 2**20  # compressed bytes per read
SKIPPED_BYTES = 2**22  # decoded bytes at a time while rows are skipped
MAX_EXCESS_BYTES = 2**26  # decoded bytes below the last row: a strip may be stored at full height

Read = Callable[[int, int], bytes]  # (byte offset in the strip, count) -> bytes, fewer at its end


class Rows(Protocol):
    """The rows of a strip."""

    def rows(self, first: int, count: int) -> Pixels:
        """Return uint8[count, width, 3]. Raises ValueError if the data are damaged or end before."""
        ...


class RawRows:
    """The rows of an uncompressed strip, at random."""

    def __init__(self, read: Read, width_px: int) -> None:
        self._read, self._row = read, width_px * 3

    def rows(self, first: int, count: int) -> Pixels:
        """Return rows; see `Rows.rows`."""
        data = self._read(first * self._row, count * self._row)
        if len(data) < count * self._row:
            raise ValueError(f"{len(data):,} bytes of pixels; {count * self._row:,} expected")
        return np.frombuffer(data, np.uint8).reshape(count, -1, 3)


class DeflateRows:
    """The rows of a deflate strip, decoded from the top; going back starts over."""

    def __init__(self, read: Read, width_px: int, height_px: int, predictor: bool) -> None:
        self._read, self._row, self._height, self._predictor = read, width_px * 3, height_px, predictor
        self._start()

    def _start(self) -> None:
        self._stream, self._waiting, self._offset, self._done = zlib.decompressobj(), b"", 0, 0

    def rows(self, first: int, count: int) -> Pixels:
        """Return rows; see `Rows.rows`. The checksum is compared once the last row is read."""
        if first < self._done:
            self._start()
        try:
            while self._done < first:
                self._next(min(first - self._done, max(1, SKIPPED_BYTES // self._row)))
            data = self._next(count)
            if self._done == self._height:
                self._finish()
        except zlib.error as error:
            raise ValueError(str(error)) from error
        pixels = np.frombuffer(data, np.uint8).reshape(count, -1, 3)
        return np.add.accumulate(pixels, axis=1, dtype=np.uint8) if self._predictor else pixels

    def _next(self, rows: int) -> bytearray:
        """Return the next rows, still differenced."""
        wanted, data = rows * self._row, bytearray()
        while len(data) < wanted:
            piece = self._decoded(wanted - len(data))
            if not piece:
                raise ValueError(f"{len(data):,} bytes of pixels; {wanted:,} expected")
            data += piece
        self._done += rows
        return data

    def _decoded(self, most: int) -> bytes:
        """Return decoded bytes, at most `most`; none at the end of the data."""
        while not self._stream.eof:
            packed = self._waiting or self._read(self._offset, CHUNK_BYTES)
            if not self._waiting:
                self._offset += len(packed)
            piece = self._stream.decompress(packed, most)
            self._waiting = self._stream.unconsumed_tail
            if piece or not packed:
                return piece
        return b""

    def _finish(self) -> None:
        """Read to the end of the data, so that zlib compares the checksum.

        Raises:
            ValueError: The checksum is missing.
        """
        excess = 0
        while excess < MAX_EXCESS_BYTES and (piece := self._decoded(CHUNK_BYTES)):
            excess += len(piece)
        if not self._stream.eof and excess < MAX_EXCESS_BYTES:
            raise ValueError("the data end before their checksum")
