"""Read and check a slide's header before a decoder is chosen or a pixel is allocated.

Headers that no slide has (float samples, a size that the file cannot hold) are refused here. Tags are read into arrays:
a library that makes Python integers of 300,000 tile offsets takes more memory for them than reading the slide does.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from clotkit.errors import SlideUnreadable, one_line

# TIFF compression tags, with the names of the TIFF specification and its registered extensions.
VIPS_CODECS = {
    1: "none",
    2: "CCITT RLE",
    3: "CCITT G3",
    4: "CCITT G4",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    50001: "WebP",
}
OTHER_CODECS = {
    6: "old JPEG",
    33003: "JPEG 2000 (Aperio YCbCr)",
    33005: "JPEG 2000 (Aperio RGB)",
    32809: "ThunderScan",
    34661: "JBIG",
    34676: "SGILog",
    34677: "SGILog24",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "ZSTD",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
SAMPLE_KINDS = {1: "unsigned", 2: "signed", 3: "float", 4: "untyped", 5: "complex integer", 6: "complex"}

# The tags that are read from the first directory; KINDS has the dtype of each kind of value.
WIDTH, HEIGHT, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
ORIENTATION, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, PLANAR_CONFIG, PREDICTOR = 274, 277, 278, 284, 317
TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 322, 323, 338, 339, 347
STRIP_TABLE, TILE_TABLE = (273, 279), (324, 325)  # offsets and byte counts
TAGS = {
    *(WIDTH, HEIGHT, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES_PER_PIXEL),
    *(ROWS_PER_STRIP, PLANAR_CONFIG, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES),
    *(*STRIP_TABLE, *TILE_TABLE),
}
KINDS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
BIGTIFF, MAX_TAGS = 43, 4096
Tags = dict[int, npt.NDArray[np.int64]]

# Limits of a slide. Real slides compress 2.4 to 159 fold; an all-white one reaches 931 with deflate, 840 with LZW, 511
# with JPEG. The other codecs have no such bound: a real ZSTD file reaches 6,214, white lossless WebP tiles of 1024 px
# reach 31,566, and a row of CCITT G4 can take one bit whatever its width.
MAX_SIDE_PX, MAX_PX, MAX_TILE_PX = 1_000_000, 500 * 10**9, 2**26
MAX_EXPANSION, MAX_EXPANSION_UNBOUND, BOUND_CODECS = 2_000, 200_000, {1, 5, 7, 8, 32773, 32946}
SMALL_BYTES = 2**26  # raw size up to which any expansion is harmless

# slides.segments decodes plain 8-bit RGB in these codecs, in segments of a bounded size.
PLAIN_CODECS = {1, 5, 7, 8, 32946}
RGB, YCBCR, JPEG = 2, 6, 7
MAX_SEGMENT_BYTES = 48 * 2**20  # decoded; 128 rows of the widest slide are 39 MB


@dataclass(frozen=True)
class SegmentTable:
    """The tiles or strips of a page: their places in the file and their encoding."""

    tiled: bool
    plain: bool  # 8-bit RGB that slides.segments can decode
    codec: int  # TIFF compression tag
    predictor: bool  # horizontal differencing, to be undone after decoding
    ycbcr: bool  # JPEG data are YCbCr, else RGB
    jpeg_tables: bytes
    width_px: int  # of a segment: a tile's width, or the slide's for strips
    height_px: int  # of a segment
    offsets: npt.NDArray[np.int64]  # [rows, columns] byte offset in the file
    counts: npt.NDArray[np.int64]  # [rows, columns] compressed bytes


@dataclass(frozen=True)
class Layout:
    """The contents of a TIFF's first directory; the defaults describe a PNG or JPEG."""

    codec: int | None = None  # TIFF compression tag, None for PNG and JPEG
    tiled: bool = False
    alpha: bool = True  # the first extra sample is transparency
    width_px: int = 0
    height_px: int = 0
    orientation: int = 1  # the TIFF tag; 1: upright
    segments: SegmentTable | None = None  # None if the table is incomplete


def read_layout(path: Path) -> Layout | None:
    """Return the layout of a TIFF, PNG or JPEG, or None for other files.

    Raises:
        SlideUnreadable: The file cannot be read, or its header is one that no slide has.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(8)
            if not magic.startswith(TIFF_MAGIC):
                return Layout() if magic.startswith(PICTURE_MAGIC) else None
            tags = read_tags(file)
    except OSError as error:
        raise SlideUnreadable(f"the file cannot be read: {error.strerror}") from error
    except (ValueError, struct.error) as error:
        raise SlideUnreadable(f"the TIFF directory cannot be read: {one_line(error)}") from error
    return _layout(tags, path)


def read_tags(file: BinaryIO) -> Tags:
    """Return those of TAGS that the first directory of a TIFF or BigTIFF has.

    Source: Adobe, TIFF Revision 6.0, section 2; for BigTIFF the libtiff project's description of its design.

    Raises:
        ValueError: The file ends early, or the directory is not plausible.
        struct.error: The file ends within a number.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", head[2:4])[0] == BIGTIFF
    word, room, count_as = ("Q", 8, "Q") if big else ("I", 4, "H")
    (start,) = struct.unpack(f"{order}{word}", head[room : 2 * room])
    if not 8 <= start < size:
        raise ValueError(f"the first directory starts at byte {start:,} of {size:,}")
    file.seek(start)
    (count,) = struct.unpack(f"{order}{count_as}", file.read(struct.calcsize(count_as)))
    if count > MAX_TAGS:
        raise ValueError(f"{count:,} tags; {MAX_TAGS:,} are allowed")
    entry = struct.Struct(f"{order}HH{word}{room}s")
    tags: Tags = {}
    for code, kind, number, value in entry.iter_unpack(_exactly(file, count * entry.size)):
        if code in TAGS and kind in KINDS and code not in tags:
            tags[code] = _values(file, np.dtype(order + KINDS[kind]), number, value, f"{order}{word}", size)
    return tags


def _values(
    file: BinaryIO, kind: np.dtype[Any], number: int, value: bytes, word: str, file_bytes: int
) -> npt.NDArray[np.int64]:
    """Return the values of one tag, from its entry if they fit there, else from where it points."""
    size = number * kind.itemsize
    if size <= len(value):
        return np.frombuffer(value[:size], kind).astype(np.int64)
    (start,) = struct.unpack(word, value)
    if start + size > file_bytes:
        raise ValueError(f"the values of a tag end at byte {start + size:,} of {file_bytes:,}")
    file.seek(start)
    return np.frombuffer(_exactly(file, size), kind).astype(np.int64)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"the file ends {size - len(data):,} bytes too early")
    return data


def _layout(tags: Tags, path: Path) -> Layout:
    """Return the layout that the tags describe, checked.

    Raises:
        SlideUnreadable: The header is one that no slide has.
    """
    codec, samples = _one(tags, COMPRESSION, 1), _one(tags, SAMPLES_PER_PIXEL, 1)
    width, height = _one(tags, WIDTH, 0), _one(tags, HEIGHT, 0)
    depths = tags.get(BITS_PER_SAMPLE, np.ones(1, np.int64))[: max(samples, 1)]
    bits, kind = int(depths.max(initial=1)), int(tags.get(SAMPLE_FORMAT, np.ones(1, np.int64)).max(initial=1))
    check_size(width, height, samples * bits, path, MAX_EXPANSION if codec in BOUND_CODECS else MAX_EXPANSION_UNBOUND)
    known = bits in ((1, 2, 4, 8, 16) if samples == 1 else (8, 16)) and (depths == bits).all()
    if kind not in (1, 4) or not known:
        raise SlideUnreadable(
            f"{bits}-bit {SAMPLE_KINDS.get(kind, 'unknown')} samples, {samples} per pixel, are not supported; "
            "unsigned samples of 8 or 16 bits are, and of 1, 2 or 4 bits with one per pixel"
        )
    tiled = TILE_WIDTH in tags
    if tiled and not 0 < (area := _one(tags, TILE_WIDTH, 0) * _one(tags, TILE_HEIGHT, 0)) <= MAX_TILE_PX:
        raise SlideUnreadable(f"a tile has {area:,} px; {MAX_TILE_PX:,} px are allowed")
    extra, orientation = tags.get(EXTRA_SAMPLES, np.zeros(0, np.int64)), _one(tags, ORIENTATION, 1)
    plain = orientation == 1 and bits == 8 and samples == 3 and kind == 1 and not len(extra)
    segments = _segments(tags, plain, path.stat().st_size)
    return Layout(codec, tiled, extra[:1].tolist() != [0], width, height, orientation, segments)


def _one(tags: Tags, code: int, default: int) -> int:
    """Return the first value of a tag."""
    return int(tags[code][0]) if len(tags.get(code, ())) else default


def _segments(tags: Tags, plain: bool, file_bytes: int) -> SegmentTable | None:
    """Return the segments of a page with interleaved samples, or None without a complete table of them.

    Raises:
        SlideUnreadable: The segments extend beyond the end of the file.
    """
    width, height, tiled = _one(tags, WIDTH, 0), _one(tags, HEIGHT, 0), TILE_WIDTH in tags
    strip = (width, min(_one(tags, ROWS_PER_STRIP, height), height))
    side = (_one(tags, TILE_WIDTH, 0), _one(tags, TILE_HEIGHT, 0)) if tiled else strip
    if min(side) < 1 or _one(tags, PLANAR_CONFIG, 1) != 1:
        return None
    shape = (-(-height // side[1]), -(-width // side[0]))
    offsets, counts = (tags.get(code) for code in (TILE_TABLE if tiled else STRIP_TABLE))
    if offsets is None or counts is None or not len(offsets) == len(counts) == shape[0] * shape[1]:
        return None
    if counts.min() < 1 or offsets.min() < 8:
        return None
    if (end := int((offsets + counts).max())) > file_bytes:
        raise SlideUnreadable(f"the file is cut short: its pixels end at byte {end:,}, the file at {file_bytes:,}")
    codec = _one(tags, COMPRESSION, 1)
    return SegmentTable(
        tiled=tiled,
        plain=plain and _packed_plainly(tags) and side[0] * side[1] * 3 <= MAX_SEGMENT_BYTES,
        codec=codec,
        predictor=_one(tags, PREDICTOR, 1) == 2,
        ycbcr=_one(tags, PHOTOMETRIC, 0) == YCBCR,
        jpeg_tables=tags[JPEG_TABLES].astype(np.uint8).tobytes() if codec == JPEG and JPEG_TABLES in tags else b"",
        width_px=side[0],
        height_px=side[1],
        offsets=offsets.reshape(shape),
        counts=counts.reshape(shape),
    )


def _packed_plainly(tags: Tags) -> bool:
    """Return whether `slides.segments` decodes this codec, colour model and packing.

    The page must have three 8-bit samples per pixel.
    """
    codec, photometric, predictor = _one(tags, COMPRESSION, 1), _one(tags, PHOTOMETRIC, 0), _one(tags, PREDICTOR, 1)
    colours = photometric in (RGB, YCBCR) if codec == JPEG else photometric == RGB
    packing = predictor == 1 or (predictor == 2 and codec not in (1, JPEG))
    return codec in PLAIN_CODECS and colours and packing and _one(tags, FILL_ORDER, 1) == 1


def check_size(width: int, height: int, bits: int, path: Path, expansion: int) -> None:
    """Check that a slide may have this size and that its file can hold it.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        bits: Bits per pixel.
        path: The file.
        expansion: Allowed ratio of raw bytes to file bytes.

    Raises:
        SlideUnreadable: A side or the area is too small or too large, or the ratio is.
    """
    if min(width, height) < 1:
        raise SlideUnreadable(f"no pixels: {width} x {height} px")
    size = f"{width:,} x {height:,} px"
    if max(width, height) > MAX_SIDE_PX:
        raise SlideUnreadable(f"{size}; {MAX_SIDE_PX:,} px per side are allowed")
    if width * height > MAX_PX:
        raise SlideUnreadable(f"{size} are {width * height / 1e9:,.0f} Gpx; {MAX_PX // 10**9} Gpx are allowed")
    raw, stored = width * height * bits // 8, path.stat().st_size
    if raw > SMALL_BYTES and raw > expansion * stored:
        raise SlideUnreadable(
            f"{size} in {stored:,} bytes would expand {raw // stored:,}-fold; {expansion:,}-fold is allowed"
        )
