"""What a slide's header says, and what it may not say: read before a decoder is chosen or a pixel allocated.

What no slide has (float samples, a size that the file cannot hold) is refused here. Tags are read into arrays: a
library that makes Python numbers of 300,000 tile offsets takes more memory for them than reading the slide does.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from clotkit.errors import SlideUnreadable, one_line

# TIFF compression tags; the names are those of the TIFF specification and its registered extensions.
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

# Tags of the first directory that are read, and how wide a number of each kind is.
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

# What a file may claim to be. Real slides compress 2.4 to 159 fold; all white, deflate reaches 931, LZW 840, JPEG 511.
# The other codecs have no such bound: a real ZSTD file has 6,214, white lossless WebP tiles of 1024 px have 31,566, and
# a row of CCITT G4 can be one bit however wide it is.
MAX_SIDE_PX, MAX_PX, MAX_TILE_PX = 1_000_000, 500 * 10**9, 2**26
MAX_EXPANSION, MAX_EXPANSION_UNBOUND, BOUND_CODECS = 2_000, 200_000, {1, 5, 7, 8, 32773, 32946}
SMALL_BYTES = 2**26  # raw: below this no expansion does harm

# What slides.segments decodes without libvips: plain 8-bit RGB in these codecs, in segments of a bounded size.
PLAIN_CODECS = {1, 5, 7, 8, 32946}
RGB, YCBCR, JPEG = 2, 6, 7
MAX_SEGMENT_BYTES = 48 * 2**20  # decoded: 128 rows of the widest slide are 39 MB


@dataclass(frozen=True)
class SegmentTable:
    """Where the tiles or strips of a page lie in the file, and how each is packed."""

    tiled: bool
    plain: bool  # 8-bit RGB that slides.segments can decode
    codec: int
    predictor: bool  # horizontal differencing, undone after decoding
    ycbcr: bool  # JPEG data in YCbCr, else in RGB
    jpeg_tables: bytes
    width_px: int  # of a segment: a tile's side, or the whole row
    height_px: int
    offsets: npt.NDArray[np.int64]  # [rows, columns] in the file
    counts: npt.NDArray[np.int64]  # [rows, columns] compressed bytes


@dataclass(frozen=True)
class Layout:
    """What the first directory of a TIFF says; as it stands, that of a PNG or JPEG."""

    codec: int | None = None
    tiled: bool = False
    alpha: bool = True  # a sample more than the colours is transparency
    width_px: int = 0
    height_px: int = 0
    orientation: int = 1  # the TIFF tag; 1: upright
    segments: SegmentTable | None = None  # None where its table is not whole


def read_layout(path: Path) -> Layout | None:
    """The layout of a TIFF, PNG or JPEG, None for other files. Raises SlideUnreadable for what no slide has."""
    try:
        with path.open("rb") as file:
            magic = file.read(8)
            if not magic.startswith(TIFF_MAGIC):
                return Layout() if magic.startswith(PICTURE_MAGIC) else None
            tags = read_tags(file)
    except OSError as error:
        raise SlideUnreadable(f"the file cannot be read: {error.strerror}") from error
    except (ValueError, struct.error) as error:
        raise SlideUnreadable(f"its TIFF directory cannot be read: {one_line(error)}") from error
    return _layout(tags, path)


def read_tags(file: BinaryIO) -> Tags:
    """The TAGS that a TIFF's first directory has, classic or BigTIFF. Raises ValueError or struct.error where it ends.

    Source: Adobe, TIFF Revision 6.0, section 2; for BigTIFF the libtiff project's description of its design.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", head[2:4])[0] == BIGTIFF
    word, room, count_as = ("Q", 8, "Q") if big else ("I", 4, "H")
    (start,) = struct.unpack(f"{order}{word}", head[room : 2 * room])
    if not 8 <= start < size:
        raise ValueError(f"it begins at byte {start:,} of {size:,}")
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
    """The numbers of one tag: in the entry itself where they fit, else where it points to."""
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
    """The layout that tags say, checked. Raises SlideUnreadable for what no slide has."""
    codec, samples = _one(tags, COMPRESSION, 1), _one(tags, SAMPLES_PER_PIXEL, 1)
    width, height = _one(tags, WIDTH, 0), _one(tags, HEIGHT, 0)
    depths = tags.get(BITS_PER_SAMPLE, np.ones(1, np.int64))[: max(samples, 1)]
    bits, kind = int(depths.max(initial=1)), int(tags.get(SAMPLE_FORMAT, np.ones(1, np.int64)).max(initial=1))
    check_size(width, height, samples * bits, path, MAX_EXPANSION if codec in BOUND_CODECS else MAX_EXPANSION_UNBOUND)
    known = bits in ((1, 2, 4, 8, 16) if samples == 1 else (8, 16)) and (depths == bits).all()
    if kind not in (1, 4) or not known:
        raise SlideUnreadable(
            f"{bits}-bit {SAMPLE_KINDS.get(kind, 'unknown')} samples are no slide, {samples} a pixel; "
            "unsigned ones of 8 or 16 bits are read, of 1, 2 or 4 where a pixel has one"
        )
    tiled = TILE_WIDTH in tags
    if tiled and not 0 < (area := _one(tags, TILE_WIDTH, 0) * _one(tags, TILE_HEIGHT, 0)) <= MAX_TILE_PX:
        raise SlideUnreadable(f"a tile has {area:,} px; at most {MAX_TILE_PX:,} are read")
    extra, orientation = tags.get(EXTRA_SAMPLES, np.zeros(0, np.int64)), _one(tags, ORIENTATION, 1)
    plain = orientation == 1 and bits == 8 and samples == 3 and kind == 1 and not len(extra)
    segments = _segments(tags, plain, path.stat().st_size)
    return Layout(codec, tiled, extra[:1].tolist() != [0], width, height, orientation, segments)


def _one(tags: Tags, code: int, default: int) -> int:
    """The first number of a tag."""
    return int(tags[code][0]) if len(tags.get(code, ())) else default


def _segments(tags: Tags, plain: bool, file_bytes: int) -> SegmentTable | None:
    """The segments of a page whose samples lie together; None where there is no whole table of them.

    Raises SlideUnreadable where they lie beyond the end of the file.
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
        raise SlideUnreadable(f"the file is cut short: its pixels end at byte {end:,}, it has {file_bytes:,}")
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
    """Whether slides.segments knows the codec of an 8-bit page of three samples, its colours and its packing."""
    codec, photometric, predictor = _one(tags, COMPRESSION, 1), _one(tags, PHOTOMETRIC, 0), _one(tags, PREDICTOR, 1)
    colours = photometric in (RGB, YCBCR) if codec == JPEG else photometric == RGB
    packing = predictor == 1 or (predictor == 2 and codec not in (1, JPEG))
    return codec in PLAIN_CODECS and colours and packing and _one(tags, FILL_ORDER, 1) == 1


def check_size(width: int, height: int, bits: int, path: Path, fold: int) -> None:
    """Refuse sizes that no slide has, and those that a file cannot hold; `bits` are those of a pixel."""
    if min(width, height) < 1:
        raise SlideUnreadable(f"no pixels: {width} x {height} px")
    size = f"{width:,} x {height:,} px"
    if max(width, height) > MAX_SIDE_PX:
        raise SlideUnreadable(f"{size}; a side may have {MAX_SIDE_PX:,} px")
    if width * height > MAX_PX:
        raise SlideUnreadable(f"{size} are {width * height / 1e9:,.0f} Gpx; {MAX_PX // 10**9} Gpx are allowed")
    raw, stored = width * height * bits // 8, path.stat().st_size
    if raw > SMALL_BYTES and raw > fold * stored:
        raise SlideUnreadable(
            f"{size} in {stored:,} bytes would expand {raw // stored:,}-fold; {fold:,}-fold is allowed"
        )
