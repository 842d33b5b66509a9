"""Describe how a TIFF page stores its pixels: the places of its tiles or strips, and their encoding.

Writers leave things out that libtiff does without: byte counts, tiles of bare glass, the last strip's true height. They
are completed here, and the table says so. A table that contradicts the file is refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import SlideUnreadable
from clotkit.reasons import Reason
from clotkit.slides.header.directories import (
    COMPRESSION,
    FILL_ORDER,
    HEIGHT,
    JPEG_TABLES,
    PHOTOMETRIC,
    PLANAR_CONFIG,
    PREDICTOR,
    ROWS_PER_STRIP,
    SAMPLES_PER_PIXEL,
    STRIP_TABLE,
    TILE_HEIGHT,
    TILE_TABLE,
    TILE_WIDTH,
    WIDTH,
    YCBCR_SUBSAMPLING,
    Tags,
)

Integers = npt.NDArray[np.int64]

# slides.segments decodes plain 8-bit RGB in these codecs, in segments of a bounded size, or row by row.
RAW, LZW, OLD_JPEG, JPEG, DEFLATE, PACKBITS = 1, 5, 6, 7, (8, 32946), 32773
PLAIN_CODECS = {RAW, LZW, JPEG, *DEFLATE}
CHROMA_CODECS = {RAW, LZW, PACKBITS, *DEFLATE, 34925, 50000}  # which pack chroma as the tags say
ROWWISE_CODECS = {RAW, *DEFLATE}
RGB, YCBCR = 2, 6
MAX_SEGMENT_BYTES = 48 * 2**20  # decoded; 128 rows of the widest slide are 39 MB
MAX_PAST_END = 4  # segments whose byte counts reach beyond the end of the file; writers do it in the last strip


# A tile counts as background up to this far above the commonest tile size, whichever is the most.
DEVIATIONS = 4.0  # robust standard deviations
MARGIN, MARGIN_BYTES = 1.25, 32  # factor and bytes, for slides whose background sizes hardly vary


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
    offsets: Integers  # [planes * rows, columns] byte offset in the file; 0: absent, shown as background
    counts: Integers  # [planes * rows, columns] compressed bytes; 0: absent
    planes: int = 1  # 1: samples are interleaved
    codes: tuple[Reason, ...] = ()  # what had to be completed
    doubtful: tuple[tuple[int, int], ...] = ()  # (row, column) of segments to decode before the slide is trusted

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of segments."""
        return len(self.counts) // self.planes, self.counts.shape[1]

    @property
    def row_by_row(self) -> bool:
        """True for strips that are too large to be decoded at once."""
        return not self.tiled and self.width_px * self.height_px * 3 > MAX_SEGMENT_BYTES


def median(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the medians along the first axis, which is not empty.

    np.median and np.unique import numpy.ma, which takes as long as decoding a hundred tiles.
    """
    middle = (len(values) - 1) // 2, len(values) // 2
    return np.asarray(np.partition(values, middle, axis=0)[middle[0] : middle[1] + 1].mean(axis=0), np.float64)


def background_bytes(counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the commonest tile size and the largest size that still counts as background, in bytes.

    The limit lies above the mode by a multiple of the spread, which is estimated from the sizes below the mode.
    Background is the commonest content of these slides: the largest tissue share seen on a real slide is about one
    half.
    """
    bins = np.round(np.log2(np.maximum(counts, 1)) * 8).astype(np.int64)  # eight bins per doubling
    mode = float(median(counts[bins == np.bincount(bins).argmax()]))
    below = counts[counts <= mode]
    deviation = 1.4826 * float(median(mode - below))
    return mode, max(mode + DEVIATIONS * deviation, mode * MARGIN, mode + MARGIN_BYTES)


def first_value(tags: Tags, code: int, default: int) -> int:
    """Return the first value of a tag."""
    return int(tags[code][0]) if len(tags.get(code, ())) else default


def segment_table(tags: Tags, plain: bool, file_bytes: int) -> SegmentTable | None:
    """Return the segments of a page, or None without a table of them.

    Args:
        tags: The page's tags.
        plain: The samples are upright 8-bit RGB.
        file_bytes: Size of the file.

    Raises:
        SlideUnreadable: Segments lie in the header or beyond the end of the file, or there are none.
    """
    tiled, codec = TILE_WIDTH in tags, first_value(tags, COMPRESSION, RAW)
    side = _side_px(tags, tiled)
    if min(side) < 1:
        return None
    planes = first_value(tags, SAMPLES_PER_PIXEL, 1) if first_value(tags, PLANAR_CONFIG, 1) == 2 else 1
    shape = (-(-first_value(tags, HEIGHT, 0) // side[1]) * planes, -(-first_value(tags, WIDTH, 0) // side[0]))
    places = _places(tags, tiled, shape[0] * shape[1])
    if places is None:
        return None
    offsets, counts, codes = _completed(*places, file_bytes)
    if (start := int(offsets[counts > 0].min())) < 8:
        raise SlideUnreadable(f"a tile or strip is said to start at byte {start}, within the file's header")
    past = np.flatnonzero(counts > file_bytes - offsets)  # the sum may be too large for an int64
    if len(past):
        counts = _clamped(offsets, counts, past, file_bytes)
        codes.append(Reason.TABLE_COMPLETED)
    if _read_differently(tags, codec):
        codes.append(Reason.DECODERS_DISAGREE)
    area = side[0] * side[1] * 3
    rowwise = not tiled and codec in ROWWISE_CODECS
    return SegmentTable(
        tiled=tiled,
        plain=plain and planes == 1 and _packed_plainly(tags) and (area <= MAX_SEGMENT_BYTES or rowwise),
        codec=codec,
        predictor=first_value(tags, PREDICTOR, 1) == 2,
        ycbcr=first_value(tags, PHOTOMETRIC, 0) == YCBCR,
        jpeg_tables=jpeg_tables(tags) if codec == JPEG else b"",
        width_px=side[0],
        height_px=side[1],
        offsets=offsets.reshape(shape),
        counts=counts.reshape(shape),
        planes=planes,
        codes=tuple(dict.fromkeys(codes)),
        doubtful=tuple((int(i) // shape[1], int(i) % shape[1]) for i in past),
    )


def _read_differently(tags: Tags, codec: int) -> bool:
    """Return whether decoders are known to read such a page differently.

    libtiff ignores a predictor of uncompressed data, others undo it. Where YCbCr does not state its subsampling, some
    take the default of the specification, others none.
    """
    ignored = codec in (RAW, PACKBITS) and first_value(tags, PREDICTOR, 1) != 1
    colours = first_value(tags, PHOTOMETRIC, 0) == YCBCR and codec not in (JPEG, OLD_JPEG)
    return ignored or (colours and codec in CHROMA_CODECS and YCBCR_SUBSAMPLING not in tags)


def _side_px(tags: Tags, tiled: bool) -> tuple[int, int]:
    """Return width and height of a segment.

    Without a plausible tag, a strip has its share of the page's height.
    """
    if tiled:
        return first_value(tags, TILE_WIDTH, 0), first_value(tags, TILE_HEIGHT, 0)
    height = first_value(tags, HEIGHT, 0)
    rows = first_value(tags, ROWS_PER_STRIP, height)
    if rows < 1:
        rows = -(-height // max(1, len(tags.get(STRIP_TABLE[0], ()))))
    return first_value(tags, WIDTH, 0), min(rows, height)


def _places(tags: Tags, tiled: bool, expected: int) -> tuple[Integers, Integers] | None:
    """Return `expected` offsets and byte counts, 0 where a count is missing; None without so many offsets.

    Some writers use the tags of strips for tiles.
    """
    names = TILE_TABLE if tiled and TILE_TABLE[0] in tags else STRIP_TABLE
    offsets, counts = tags.get(names[0]), tags.get(names[1], np.zeros(0, np.int64))
    if offsets is None or not 0 < expected <= len(offsets):
        return None
    known = np.zeros(expected, np.int64)
    known[: len(counts)] = counts[:expected]
    return offsets[:expected], known


def _completed(offsets: Integers, counts: Integers, file_bytes: int) -> tuple[Integers, Integers, list[Reason]]:
    """Return offsets and counts, both 0 for absent segments, and codes of what was completed.

    A segment without a place is absent. One without a size reaches to the next segment, or to the end of the file; but
    where others have sizes, one that begins where another does is absent.

    Raises:
        SlideUnreadable: All segments are absent.
    """
    codes: list[Reason] = []
    unsized = counts < 1
    absent = unsized & (offsets == 0)
    if unsized.any() and not unsized.all():
        absent |= unsized & np.isin(offsets, offsets[~unsized])
    if absent.all():
        raise SlideUnreadable(f"no pixels: all {len(counts):,} tiles or strips are absent from the file")
    offsets, counts = np.where(absent, 0, offsets), np.where(absent, 0, counts)
    if absent.any():
        codes.append(Reason.SPARSE)
    if (guessed := unsized & ~absent).any():
        starts = np.append(np.unique(offsets[~absent]), file_bytes)
        ends = starts[np.searchsorted(starts[:-1], offsets[guessed], side="right")]
        counts[guessed] = np.maximum(ends - offsets[guessed], 1)
        codes.append(Reason.TABLE_COMPLETED)
    return offsets, counts, codes


def _clamped(offsets: Integers, counts: Integers, past: Integers, file_bytes: int) -> Integers:
    """Return counts that end with the file.

    Raises:
        SlideUnreadable: More is missing than the end of a last segment.
    """
    if len(past) > MAX_PAST_END or offsets[past].max() >= file_bytes:
        end = int((offsets + counts).max())
        raise SlideUnreadable(f"the file is cut short: its pixels end at byte {end:,}, the file at {file_bytes:,}")
    counts = counts.copy()
    counts[past] = file_bytes - offsets[past]
    return counts


def jpeg_tables(tags: Tags) -> bytes:
    """Return the JPEG tables of a page as bytes, whatever kind of number they are stored as."""
    values = tags.get(JPEG_TABLES, np.zeros(0, np.int64))
    if values.max(initial=0) < 256:
        return values.astype(np.uint8).tobytes()
    for kind in ("<u2", ">u2", "<u4", ">u4"):
        if (packed := values.astype(kind).tobytes()).startswith(b"\xff\xd8"):
            return packed
    return b""


def _packed_plainly(tags: Tags) -> bool:
    """Return whether `slides.segments` decodes this codec, colour model and packing.

    The page must have three 8-bit samples per pixel.
    """
    codec, photometric = first_value(tags, COMPRESSION, RAW), first_value(tags, PHOTOMETRIC, 0)
    predictor = first_value(tags, PREDICTOR, 1)
    colours = photometric in (RGB, YCBCR) if codec == JPEG else photometric == RGB
    packing = predictor == 1 or codec == JPEG or (predictor == 2 and codec != RAW)
    return codec in PLAIN_CODECS and colours and packing and first_value(tags, FILL_ORDER, 1) == 1
