"""Take JPEG streams of tiles apart, and put them together so that a strict decoder reads them.

Encoders leave bytes before a marker, after the last one or in the tables, and a TIFF's colour tag may contradict its
streams. libjpeg's warnings are the only sign of damage, so what is no damage must not give any.

Source: ITU-T T.81, annex B; Adobe, Technical Note 5116.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clotkit.slides.codecs.formats import Pixels

START, END = b"\xff\xd8", b"\xff\xd9"
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # APP14 segment; the next byte is the colour transform
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
SEGMENTS = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}  # markers that are followed by a length
TABLES = {0xC4, 0xDB, 0xDD}
SCAN, JFIF, APP14 = 0xDA, 0xE0, 0xEE
MAX_END_ZEROS = 2  # that entropy-coded data may end with
MAX_JUNK = 2**16  # bytes before the first marker
NEUTRAL, BRIGHT, MIN_GLASS, CHROMA_SHARE = 24, 170, 0.05, 0.5  # of `stored_as_rgb`


@dataclass(frozen=True)
class Stream:
    """A JPEG stream, taken apart."""

    head: bytes  # marker segments in front of the scan, but for those that state a colour model
    scan: bytes  # from the first scan's marker to the end marker, which is left out
    width_px: int = 0
    height_px: int = 0
    components: tuple[tuple[int, int], ...] = ()  # (id, sampling factors as one byte) of each
    jfif: bool = False
    adobe: int | None = None  # colour transform of an Adobe segment: 0 none, 1 YCbCr

    @property
    def ycbcr(self) -> bool | None:
        """True if the stream itself states that it is YCbCr, None if it states nothing."""
        if len(self.components) != 3:
            return None
        ids, factors = zip(*self.components, strict=True)
        if self.adobe is not None:
            return self.adobe == 1
        if bytes(ids) == b"RGB":
            return False
        return True if self.jfif or len(set(factors)) > 1 else None

    @property
    def shown_ycbcr(self) -> bool | None:
        """True if libjpeg takes the stream for YCbCr, None if it takes it for what it is told."""
        return True if self.jfif else None if self.adobe is None else self.adobe == 1

    def without_zeros(self) -> "list[Stream]":
        """Return the stream with fewer zeros at its end, the fewest last.

        Entropy-coded data may end with a few. Other bytes there are left for the decoder to complain about: damage
        looks like that.
        """
        bare_scan = self.scan.rstrip(b"\0")
        most = min(len(self.scan) - len(bare_scan), MAX_END_ZEROS + 1)
        return [replace(self, scan=bare_scan + bytes(zeros)) for zeros in reversed(range(most))]

    def whole(self, tables: bytes, ycbcr: bool) -> bytes:
        """Return a complete stream with one statement about its colours."""
        return START + ADOBE + (b"\1" if ycbcr else b"\0") + bare(tables) + self.head + self.scan + END


def bare(tables: bytes) -> bytes:
    """Return the tables of an abbreviated stream without its start and end markers and padding."""
    return b"".join(segment for marker, segment, _ in _marker_segments(tables, 0) if marker in TABLES)


def _marker_segments(data: bytes, at: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield marker segments from `at`, up to the end marker: (marker, its bytes, where it begins).

    Bytes between them that belong to none are left out.
    """
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == END[1]:
            return
        if marker not in SEGMENTS or length < 2:
            at += 1
            continue
        yield marker, data[at : at + 2 + length], at
        at += 2 + length


def parse(data: bytes) -> Stream:
    """Take a stream apart.

    Raises:
        ValueError: It has no start, or ends before its first scan.
    """
    start = data.find(START, 0, MAX_JUNK)
    if start < 0:
        raise ValueError("not a JPEG stream")
    head, facts = list[bytes](), dict[str, Any]()
    for marker, segment, at in _marker_segments(data, start + 2):
        body = segment[4:]
        if marker == SCAN:
            return Stream(b"".join(head), _scan(data[at:]), **facts)
        if marker in FRAMES:
            facts |= _frame(body)
        if marker == JFIF and body.startswith(b"JFIF"):
            facts["jfif"] = True
        elif marker == APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            facts["adobe"] = body[11]
        else:
            head.append(segment)
    raise ValueError("the JPEG stream ends before its first scan")


def _frame(body: bytes) -> dict[str, Any]:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise ValueError("a JPEG frame ends early")
    height, width = struct.unpack(">HH", body[1:5])
    parts = [body[6 + 3 * i : 9 + 3 * i] for i in range(body[5])]
    return {"width_px": width, "height_px": height, "components": tuple((part[0], part[1]) for part in parts)}


def _scan(data: bytes) -> bytes:
    """Return the scans without end marker, what follows it, and fill bytes in front of it."""
    end = data.rfind(END)
    return (data[:end] if end >= 0 else data).rstrip(b"\xff")


def stored_as_rgb(pixels: Pixels) -> bool | None:
    """Return whether samples that no colour transform was applied to are RGB rather than YCbCr.

    Bare glass decides: it is bright and nearly neutral in one of the two only. Without glass, the chroma of YCbCr
    varies much less than its luma, while the channels of RGB vary alike.

    Args:
        pixels: The samples as they are stored, uint8[n, 3].

    Returns:
        None if neither rule decides.
    """
    samples = pixels.reshape(-1, 3).astype(np.int16)
    first, chroma = samples[:, 0], samples[:, 1:]
    bright = samples.min(axis=1) >= BRIGHT
    as_rgb = float((bright & (np.ptp(samples, axis=1) < NEUTRAL)).mean())
    as_ycbcr = float(((first >= BRIGHT) & (np.abs(chroma - 128).max(axis=1) < NEUTRAL // 2)).mean())
    if max(as_rgb, as_ycbcr) >= MIN_GLASS:
        return as_rgb > as_ycbcr
    spread = samples.std(axis=0)
    if spread[0] < 1:
        return None
    return bool(spread[1:].mean() / spread[0] > CHROMA_SHARE)
