"""Rebuild JPEG streams from the tags of old-style JPEG compression (6).

Source: Adobe, TIFF Revision 6.0, section 22; its Technical Note 2 says what writers made of it.
"""

import struct
from collections.abc import Callable

import numpy as np

from clotkit.errors import CodecUnsupported
from clotkit.slides.codecs.formats import Encoding
from clotkit.slides.codecs.jpeg import END, START, Stream, parse

STREAM_START, STREAM_BYTES, QUANTISATION, DC, AC = 513, 514, 519, 520, 521
MAX_STREAM_BYTES = 2**29

ReadAt = Callable[[int, int], bytes]  # (byte offset in the file, count)


def whole_picture(
    encoding: Encoding, size_px: tuple[int, int], file_bytes: int, read: ReadAt
) -> tuple[int, int] | None:
    """Return the place and the size of a stream with the whole picture; None if there is none.

    Args:
        encoding: With the tags.
        size_px: Width and height of the picture.
        file_bytes: Size of the file.
        read: Reads the file.
    """
    tag = encoding.tags.get(STREAM_START, np.zeros(0, np.int64))
    start = int(tag[0]) if len(tag) else 0
    if not 8 <= start < file_bytes:
        return None
    length = encoding.tags.get(STREAM_BYTES, np.zeros(0, np.int64))
    size = int(length[0]) if len(length) and length[0] > 0 else file_bytes
    try:
        stream = parse(read(start, min(file_bytes - start, 2**16)))
    except ValueError:
        return None
    if (stream.width_px, stream.height_px) != size_px:
        return None
    # The length often ends with the header, and the picture is in the strips right behind it.
    return start, min(max(size, MAX_STREAM_BYTES), file_bytes - start)


def strip_stream(data: bytes, encoding: Encoding, width_px: int, rows: int, read: ReadAt) -> Stream:
    """Return the stream of a strip or tile that has its tables in the tags.

    Raises:
        CodecUnsupported: Tables are missing.
    """
    samples = 1 if encoding.planar else encoding.samples
    quantisation, dc, ac = (_tables(encoding, code, samples) for code in (QUANTISATION, DC, AC))
    head = [_segment(0xDB, bytes([i]) + read(quantisation[i], 64)) for i in range(samples)]
    for kind, places in ((0x00, dc), (0x10, ac)):
        for i, place in enumerate(places):
            lengths = read(place, 16)
            head.append(_segment(0xC4, bytes([kind | i]) + lengths + read(place + 16, sum(lengths))))
    across, down = encoding.subsampling if samples == 3 else (1, 1)
    factors = [across << 4 | down] + [0x11] * (samples - 1)
    parts = b"".join(bytes([i + 1, factor, i]) for i, factor in enumerate(factors))
    head.append(_segment(0xC0, struct.pack(">BHHB", 8, rows, width_px, samples) + parts))
    scan = bytes([samples]) + b"".join(bytes([i + 1, i << 4 | i]) for i in range(samples)) + b"\0\x3f\0"
    whole = START + b"".join(head) + _segment(0xDA, scan) + data.removesuffix(END) + END
    return parse(whole)


def _tables(encoding: Encoding, code: int, samples: int) -> list[int]:
    places = encoding.tags.get(code, np.zeros(0, np.int64))[:samples].tolist()
    if len(places) < samples:
        raise CodecUnsupported(f"old JPEG with {len(places)} of {samples} tables in tag {code} is not read")
    return [int(place) for place in places]


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
