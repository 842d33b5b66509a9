"""Read and check a slide's header before a decoder is chosen or a pixel is allocated.

Headers that no slide has (float samples, a size that the file cannot hold) are refused here.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import CodecUnsupported, SlideUnreadable, one_line
from clotkit.reasons import Reason
from clotkit.slides.codecs.formats import NO_PHOTOMETRIC, Encoding
from clotkit.slides.header.directories import (
    BITS_PER_SAMPLE,
    COLOUR_MAP,
    COMPRESSION,
    EXTRA_SAMPLES,
    FILL_ORDER,
    HEIGHT,
    ORIENTATION,
    PHOTOMETRIC,
    PLANAR_CONFIG,
    PREDICTOR,
    SAMPLE_FORMAT,
    SAMPLES_PER_PIXEL,
    TAGS,
    TIFF_MAGIC,
    TILE_HEIGHT,
    TILE_WIDTH,
    WIDTH,
    YCBCR_SUBSAMPLING,
    Directories,
    Tags,
)
from clotkit.slides.header.limits import BOUND_CODECS, MAX_EXPANSION, MAX_EXPANSION_UNBOUND, MAX_TILE_PX, check_size
from clotkit.slides.header.pages import Choice, Copy, choose
from clotkit.slides.header.resolution import stated_mpp
from clotkit.slides.header.table import OLD_JPEG, SegmentTable, first_value, segment_table

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
PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
SAMPLE_KINDS = {1: "unsigned", 2: "signed", 3: "float", 4: "untyped", 5: "complex integer", 6: "complex"}


@dataclass(frozen=True)
class Layout:
    """The contents of the directory that is the slide; the defaults describe a PNG or JPEG."""

    codec: int | None = None  # TIFF compression tag, None for PNG and JPEG
    tiled: bool = False
    alpha: bool = True  # the first extra sample is transparency
    width_px: int = 0
    height_px: int = 0
    orientation: int = 1  # the TIFF tag; 1: upright
    segments: SegmentTable | None = None  # None if the table is incomplete
    encoding: Encoding | None = None
    page: int = 0  # the directory's number in the file's main chain
    subifd: tuple[int, ...] = ()  # its numbers in the SubIFDs below that page, one a level; empty: the page itself
    notes: tuple[Reason, ...] = ()  # what the report says about the choice of the page
    levels: tuple[Copy, ...] = ()  # of a pyramid, the finest first
    mpp: tuple[float, ...] = ()  # plausible micrometres per pixel, as the description and the tags state them

    @property
    def facts(self) -> dict[str, Any]:
        """Return the facts for the report, empty for a slide that is plainly the file's first page."""
        where: dict[str, Any] = {"page": self.page} if self.page or self.subifd else {}
        return (
            where
            | ({"subifd": list(self.subifd)} if self.subifd else {})
            | ({"notes": [*self.notes]} if self.notes else {})
            | ({"mpp": self.mpp[0]} if self.mpp else {})
        )


def read_layout(path: Path) -> Layout | None:
    """Return the layout of a TIFF, PNG or JPEG, or None for other files.

    Raises:
        SlideUnreadable: The file cannot be read, or its header is one that no slide has.
        CodecUnsupported: No page is a slide, or its samples are of a kind that no decoder here reads.
    """
    with _header_errors("the TIFF directory"), path.open("rb") as file:
        magic = file.read(8)
        if not magic.startswith(TIFF_MAGIC):
            return Layout() if magic.startswith(PICTURE_MAGIC) else None
        found = Directories(file)
        choice = choose(found, path)
        tags, mpp = found.tags(choice.directory, TAGS), stated_mpp(found, choice.directory)
    return replace(_layout(tags, choice, path, found.big_endian), mpp=mpp)


def read_level(path: Path, level: Copy) -> Layout:
    """Return the layout of a smaller level of the slide in a TIFF; for errors see `read_layout`."""
    with _header_errors("the directory of a level"), path.open("rb") as file:
        found = Directories(file)
        return _layout(found.tags(level.directory, TAGS), Choice(level.directory), path, found.big_endian)


@contextmanager
def _header_errors(what: str) -> Iterator[None]:
    """Raise SlideUnreadable for `what` of a file that cannot be read."""
    try:
        yield
    except OSError as error:
        raise SlideUnreadable(f"the file cannot be read: {error.strerror}") from error
    except (ValueError, struct.error) as error:
        raise SlideUnreadable(f"{what} cannot be read: {one_line(error)}") from error


def _layout(tags: Tags, choice: Choice, path: Path, big_endian: bool) -> Layout:
    """Return the layout that the tags of the chosen directory describe, checked.

    Raises:
        SlideUnreadable: The header is one that no slide has.
        CodecUnsupported: The samples are of a kind that no decoder here reads.
    """
    codec, samples = first_value(tags, COMPRESSION, 1), first_value(tags, SAMPLES_PER_PIXEL, 1)
    width, height = first_value(tags, WIDTH, 0), first_value(tags, HEIGHT, 0)
    depths = tags.get(BITS_PER_SAMPLE, np.ones(1, np.int64))[: max(samples, 1)]
    bits, kind = int(depths.max(initial=1)), int(tags.get(SAMPLE_FORMAT, np.ones(1, np.int64)).max(initial=1))
    check_size(width, height, samples * bits, path, MAX_EXPANSION if codec in BOUND_CODECS else MAX_EXPANSION_UNBOUND)
    known = bits in ((1, 2, 4, 8, 16) if samples == 1 else (8, 16)) and (depths == bits).all()
    if kind not in (1, 4) or not known:
        raise CodecUnsupported(
            f"{bits}-bit {SAMPLE_KINDS.get(kind, 'unknown')} samples, {samples} per pixel, are not supported; "
            "unsigned samples of 8 or 16 bits are, and of 1, 2 or 4 bits with one per pixel"
        )
    tiled = TILE_WIDTH in tags
    if tiled and not 0 < (area := first_value(tags, TILE_WIDTH, 0) * first_value(tags, TILE_HEIGHT, 0)) <= MAX_TILE_PX:
        raise SlideUnreadable(f"a tile has {area:,} px; {MAX_TILE_PX:,} px are allowed")
    extra, orientation = tags.get(EXTRA_SAMPLES, np.zeros(0, np.int64)), first_value(tags, ORIENTATION, 1)
    plain = orientation == 1 and bits == 8 and samples == 3 and kind == 1 and not len(extra)
    segments, where = segment_table(tags, plain, path.stat().st_size), choice.directory
    encoding = _encoding(tags, codec, bits, samples, big_endian)
    notes = list(choice.notes)
    if where.read_differently:
        notes.append(Reason.DECODERS_DISAGREE)
    if segments is None and codec != OLD_JPEG:  # a decoder that reads the page completes its table
        notes.append(Reason.TABLE_COMPLETED)
    return Layout(
        codec,
        tiled,
        encoding.extra != 0,
        width,
        height,
        orientation,
        segments,
        encoding,
        where.page,
        where.subifd,
        tuple(notes),
        choice.levels,
    )


def _encoding(tags: Tags, codec: int, bits: int, samples: int, big_endian: bool) -> Encoding:
    """Return the pixel format that the tags describe."""
    colours = tags.get(COLOUR_MAP, np.zeros(0, np.int64))
    palette = colours[: len(colours) // 3 * 3].reshape(3, -1).T
    chroma = tags.get(YCBCR_SUBSAMPLING, np.array([2, 2]))
    extra = tags.get(EXTRA_SAMPLES, np.zeros(0, np.int64))
    return Encoding(
        codec=codec,
        bits=bits,
        samples=samples,
        photometric=first_value(tags, PHOTOMETRIC, NO_PHOTOMETRIC)
        if len(tags.get(PHOTOMETRIC, ())) == 1
        else NO_PHOTOMETRIC,
        planar=first_value(tags, PLANAR_CONFIG, 1) == 2 and samples > 1,
        predictor=first_value(tags, PREDICTOR, 1),
        lsb_first=first_value(tags, FILL_ORDER, 1) == 2,
        big_endian=big_endian,
        extra=int(extra[0]) if len(extra) else None,
        subsampling=(int(chroma[0]), int(chroma[1])) if len(chroma) > 1 and chroma[:2].min() > 0 else (2, 2),
        palette=(palette >> (8 if palette.max(initial=0) > 255 else 0)).astype(np.uint8),
        tags=tags,
    )
