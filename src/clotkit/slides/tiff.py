"""What a slide's header says, and what it may not say: read before a decoder is chosen or a pixel allocated.

Standard library and tifffile only; what no slide has (float samples, a size that the file cannot hold) is refused here.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import SlideError, SlideUnreadable, one_line

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

# What a file may claim to be. Real slides compress 2.4 to 159 fold; all white, deflate reaches 931, LZW 840, JPEG 511.
# The other codecs have no such bound: a real ZSTD file has 6,214, white lossless WebP tiles of 1024 px have 31,566, and
# a row of CCITT G4 can be one bit however wide it is.
MOST_SIDE_PX, MOST_PX, MOST_TILE_PX = 1_000_000, 500 * 10**9, 2**26
MOST_FOLD, MOST_FOLD_UNBOUND, BOUND_CODECS = 2_000, 200_000, {1, 5, 7, 8, 32773, 32946}
SMALL_BYTES = 2**26  # raw: below this no expansion does harm

# What slides.segments decodes without libvips: plain 8-bit RGB in these codecs, in segments of a bounded size.
PLAIN_CODECS = {1, 5, 7, 8, 32946}
RGB, YCBCR, JPEG = 2, 6, 7
MOST_SEGMENT_BYTES = 48 * 2**20  # decoded: 128 rows of the widest slide are 39 MB


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
    turn: int = 1  # the orientation, 1 where it is upright
    segments: SegmentTable | None = None  # None where its table is not whole


def read_layout(path: Path) -> Layout | None:
    """The layout of a TIFF, PNG or JPEG, None for other files. Raises SlideUnreadable for what no slide has."""
    import tifffile

    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise SlideUnreadable(f"the file cannot be read: {error.strerror}") from error
    if not magic.startswith(TIFF_MAGIC):
        return Layout() if magic.startswith(PICTURE_MAGIC) else None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it cannot read; the report says it once
    try:
        with tifffile.TiffFile(path) as tiff:
            return _page_layout(tiff.pages.first, path)
    except (MemoryError, SlideError):
        raise
    except Exception as error:
        raise SlideUnreadable(
            f"its TIFF directory cannot be read: {type(error).__name__}: {one_line(error)}"
        ) from error


def _page_layout(page: Any, path: Path) -> Layout:
    """The layout of a tifffile page, checked. Raises SlideUnreadable for what no slide has."""
    codec, kind = int(page.compression), int(page.sampleformat)
    bits, samples = page.bitspersample, int(page.samplesperpixel)
    width, height = int(page.imagewidth), int(page.imagelength)
    fold = MOST_FOLD if codec in BOUND_CODECS else MOST_FOLD_UNBOUND
    check_size(width, height, samples * (bits if isinstance(bits, int) else max(bits)), path, fold)
    if kind not in (1, 4) or bits not in ((1, 2, 4, 8, 16) if samples == 1 else (8, 16)):
        raise SlideUnreadable(
            f"{bits}-bit {SAMPLE_KINDS.get(kind, 'unknown')} samples are no slide, {samples} a pixel; "
            "unsigned ones of 8 or 16 bits are read, of 1, 2 or 4 where a pixel has one"
        )
    tiled = bool(page.is_tiled)
    if tiled and not 0 < (area := int(page.tilewidth) * int(page.tilelength)) <= MOST_TILE_PX:
        raise SlideUnreadable(f"a tile has {area:,} px; at most {MOST_TILE_PX:,} are read")
    extra = [int(value) for value in page.extrasamples]
    turn = int(page.tags.valueof("Orientation", default=1))
    plain = turn == 1 and bits == 8 and samples == 3 and kind == 1 and not extra
    segments = _segments(page, plain, path.stat().st_size)
    return Layout(codec, tiled, extra[:1] != [0], width, height, turn, segments)


def _segments(page: Any, plain: bool, file_bytes: int) -> SegmentTable | None:
    """The segments of a page whose samples lie together; None where the file does not hold them all."""
    width, height, tiled, codec = (
        int(page.imagewidth),
        int(page.imagelength),
        bool(page.is_tiled),
        int(page.compression),
    )
    side = (int(page.tilewidth), int(page.tilelength)) if tiled else (width, min(int(page.rowsperstrip), height))
    if min(side) < 1 or int(page.planarconfig) != 1:
        return None
    shape = (-(-height // side[1]), -(-width // side[0]))
    offsets, counts = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    if not len(offsets) == len(counts) == shape[0] * shape[1]:
        return None
    if counts.min() < 1 or offsets.min() < 8 or (offsets + counts).max() > file_bytes:
        return None
    return SegmentTable(
        tiled=tiled,
        plain=plain and _packed_plainly(page) and side[0] * side[1] * 3 <= MOST_SEGMENT_BYTES,
        codec=codec,
        predictor=int(page.predictor) == 2,
        ycbcr=int(page.photometric) == YCBCR,
        jpeg_tables=bytes(page.jpegtables or b"") if codec == JPEG else b"",
        width_px=side[0],
        height_px=side[1],
        offsets=offsets.reshape(shape),
        counts=counts.reshape(shape),
    )


def _packed_plainly(page: Any) -> bool:
    """Whether slides.segments knows the codec of an 8-bit page of three samples, its colours and its packing."""
    codec, photometric, predictor = int(page.compression), int(page.photometric), int(page.predictor)
    colours = photometric in (RGB, YCBCR) if codec == JPEG else photometric == RGB
    packing = predictor == 1 or (predictor == 2 and codec not in (1, JPEG))
    return codec in PLAIN_CODECS and colours and packing and page.tags.valueof("FillOrder", default=1) == 1


def check_size(width: int, height: int, bits: int, path: Path, fold: int) -> None:
    """Refuse sizes that no slide has, and those that a file cannot hold; `bits` are those of a pixel."""
    if min(width, height) < 1:
        raise SlideUnreadable(f"no pixels: {width} x {height} px")
    size = f"{width:,} x {height:,} px"
    if max(width, height) > MOST_SIDE_PX:
        raise SlideUnreadable(f"{size}; a side may have {MOST_SIDE_PX:,} px")
    if width * height > MOST_PX:
        raise SlideUnreadable(f"{size} are {width * height / 1e9:,.0f} Gpx; {MOST_PX // 10**9} Gpx are allowed")
    raw, stored = width * height * bits // 8, path.stat().st_size
    if raw > SMALL_BYTES and raw > fold * stored:
        raise SlideUnreadable(
            f"{size} in {stored:,} bytes would expand {raw // stored:,}-fold; {fold:,}-fold is allowed"
        )
