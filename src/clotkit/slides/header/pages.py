"""Choose the page of a TIFF that is the slide.

A file may also have a label, a macro photograph, a thumbnail, a mask and smaller levels, in any order. Its own
structure decides: the subfile types, the names that scanners give their pages, sizes and tiling.
"""

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clotkit.errors import CodecUnsupported, SlideUnreadable, one_line
from clotkit.reasons import Reason
from clotkit.slides.header.directories import (
    BITS_PER_SAMPLE,
    COMPRESSION,
    DESCRIPTION,
    HEIGHT,
    MAX_DIRECTORIES,
    NEW_SUBFILE_TYPE,
    PAGE_NAME,
    PHOTOMETRIC,
    ROWS_PER_STRIP,
    SAMPLES_PER_PIXEL,
    SOURCE_LENS,
    STRIP_TABLE,
    SUBFILE_TYPE,
    SUBIFDS,
    TILE_HEIGHT,
    TILE_TABLE,
    TILE_WIDTH,
    WIDTH,
    Directories,
    Directory,
)
from clotkit.slides.header.limits import BOUND_CODECS, MAX_EXPANSION, MAX_EXPANSION_UNBOUND, check_size

WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE, MASK_PHOTOMETRIC = 0, 1, 3, 4  # photometric interpretations
REDUCED_BIT, MASK_BIT = 1, 4  # of NewSubfileType
OLD_REDUCED = 2  # a value of SubfileType
MASK = "mask"
MAX_NAME_BYTES, MAX_DESCRIPTION_BYTES = 4096, 2**20
# A page that says of itself that it is not the slide: Aperio in its second line, other scanners in the first.
NAMED = re.compile(
    r"\s*(?:Aperio[^\n]*\n)?\s*(label|macro|thumbnail|overview|barcode|probability|preview)"
    r"(?=$|[\s|,;:.\d]|[ _-]?(?:image|picture))",
    re.IGNORECASE,
)
APERIO_REDUCED = re.compile(r"Aperio[^\n]*\n[^\n]*->")  # "4443x3567 (256x256) -> 2221x1783"
LEVEL = re.compile(r"(?:^|[\s|;])level=(\d{1,6})")  # Ventana: "level=0 mag=40"
OME_FILES = re.compile(r"""<(?:\w+:)?UUID\b[^<>]*\bFileName=["']([^"']*)""")
OME_ELSEWHERE = re.compile(r"<(?:\w+:)?BinaryOnly\b")
OME_PIXELS, OME_SIZE = re.compile(r"<(?:\w+:)?Pixels\b[^>]*"), re.compile(r"""\bSize([XYCZT])=["'](\d{1,9})["']""")
IMAGEJ_PLANES = re.compile(r"ImageJ=.*\nimages=(\d{1,9})\b")
TIFFFILE_SHAPE = re.compile(r'"shape": \[(\d{1,9}(?:, ?\d{1,9}){0,9})\].*"truncated": true')
# How many times smaller a page may be than another and still be the slide: scanners tile the slide and not its macro
# photograph, a slide in colour may have a grey mask, and a page that is marked as a reduced copy seldom is the slide.
TILED_WEIGHT, COLOUR_WEIGHT, BILEVEL_WEIGHT, REDUCED_WEIGHT = 16, 4, 1 / 4, 1 / 16
COPY_TIMES, COPY_SHAPE = 3.9, 0.02  # a page of the same shape with fewer than 1/3.9 of the pixels is a copy
COMPARED = 64  # sizes, the largest ones, that a page may be a copy of
ICON_PX = 32  # pages with no longer side are icons, whose sizes tell nothing: the first one counts
LOST_TIMES = 2  # pages that cannot be read may have this many times the bytes of the slide, not more
MIN_LEVEL_PX = 64  # of a level's longer side
RIVAL_TIMES = 4  # a page like the slide with at least 1/4 of its pixels may be another section


@dataclass(frozen=True)
class Page:
    """A page or SubIFD, described by its small tags."""

    directory: Directory
    width_px: int
    height_px: int
    samples: int
    colour: bool  # in several bands or by a palette
    channel: bool  # one band of 8 bits or more without a palette: it may be one channel of several
    tiled: bool
    reduced: bool  # marked as a copy in a lower resolution
    name: str  # "label", "macro", "mask", …; empty: it may be the slide

    @property
    def area_px(self) -> int:
        """Width times height."""
        return self.width_px * self.height_px

    @property
    def weight(self) -> float:
        """The page with the largest weight is the slide."""
        depth = COLOUR_WEIGHT if self.colour else 1 if self.channel else BILEVEL_WEIGHT
        tiled, reduced = TILED_WEIGHT if self.tiled else 1, REDUCED_WEIGHT if self.reduced else 1
        return self.area_px * depth * tiled * reduced

    def copies(self, other: "Page") -> bool:
        """Return whether this page has the shape of the other and is a good deal smaller."""
        height_px = self.width_px * other.height_px / other.width_px
        same_shape = abs(self.height_px - height_px) <= max(1, COPY_SHAPE * height_px)
        return same_shape and self.area_px * COPY_TIMES <= other.area_px

    def may_be_slide(self, best: "Page") -> bool:
        """Return whether this page may be the slide, or a part of it, beside the one that was chosen."""
        alike = self.tiled == best.tiled and self.samples == best.samples
        return not self.reduced and self.area_px * (RIVAL_TIMES if alike else 1) >= best.area_px


@dataclass(frozen=True)
class Copy:
    """A page that may be the slide in a lower resolution: a level of its pyramid."""

    directory: Directory
    downsample: int  # slide pixels per pixel, along a side
    fits: bool  # both sides have that downsample


@dataclass(frozen=True)
class Choice:
    """The directory of the slide, its smaller levels, and the codes that the report carries about it."""

    directory: Directory
    notes: tuple[Reason, ...] = ()
    levels: tuple[Copy, ...] = ()  # the finest first


def choose(found: Directories, path: Path) -> Choice:
    """Return the directory of a file that is the slide.

    Raises:
        CodecUnsupported: No page is a slide, or the slide is spread over pages or files.
        SlideUnreadable: The slide's directory cannot be read.
        ValueError: The first directory cannot be read.
    """
    description = found.text(found.all[0], DESCRIPTION, MAX_DESCRIPTION_BYTES)
    if len(files := set(OME_FILES.findall(description))) > 1 or OME_ELSEWHERE.search(description) is not None:
        raise CodecUnsupported(
            f"an OME-TIFF of {max(len(files), 2)} or more files is not supported; save the slide as one file"
        )
    pages, broken = _pages(found, path)
    images = [page for page in pages if not page.name]
    other = next((page for page in pages if page.name != MASK), None)
    if not images and other is not None:
        raise CodecUnsupported(f"the file has no slide, only its {other.name} ({_place(other.directory)})")
    if not images:  # a mask alone, or nothing that is a page
        return Choice(pages[0].directory if pages else found.all[0], (Reason.PAGES_UNREAD,) if broken else ())
    if broken and all(page.reduced for page in images):
        raise SlideUnreadable(f"the slide's directory cannot be read, only those of reduced copies can; {broken}")
    choice = _largest(images, broken, description)
    if broken and _lost_bytes(found) > LOST_TIMES * _stored_bytes(found, choice.directory):
        lost = f"the directory of a page larger than {_place(choice.directory)} is not among those read; {broken}"
        raise CodecUnsupported(lost) if len(found.all) >= MAX_DIRECTORIES else SlideUnreadable(lost)
    return choice


def _lost_bytes(found: Directories) -> int:
    """Return the bytes of the file that belong to no page that can be read, about."""
    return found.file_bytes - sum(directory.size_bytes + _stored_bytes(found, directory) for directory in found.all)


def _stored_bytes(found: Directories, directory: Directory) -> int:
    """Return the compressed bytes of a page; 0 if they cannot be read."""
    try:
        table = _table(directory)
        return 0 if table is None else int(found.tags(directory, table)[table[1]].sum())
    except (KeyError, OSError, ValueError, struct.error):
        return 0


def _largest(images: Sequence[Page], broken: str, description: str) -> Choice:
    """Return the page of the largest weight that is no copy of another one.

    `description` is that of the first page. Raises CodecUnsupported if the page is only a part of the slide.
    """
    sizes = {(page.width_px, page.height_px): page for page in images}
    larger = sorted(sizes.values(), key=lambda page: page.area_px)[-COMPARED:]
    originals = [page for page in images if not any(page.copies(other) for other in larger)]
    best = max(originals, key=lambda page: page.weight)  # the first of equals
    if max(best.width_px, best.height_px) <= ICON_PX:
        best = images[0]
    rivals = [page for page in originals if page is not best and page.may_be_slide(best)]
    same = [page for page in rivals if (page.width_px, page.height_px) == (best.width_px, best.height_px)]
    planes = max(_planes(description, best), 1 + sum(page.channel for page in same))
    if best.channel and planes > 1:
        raise CodecUnsupported(
            f"{planes} images of {best.width_px:,} x {best.height_px:,} px with one band each are channels, focal "
            "planes or time points, which are not supported; save the slide as one RGB page"
        )
    contradicted = best.reduced and not all(page.reduced for page in images)
    notes = {
        Reason.OTHER_PAGE: bool(best.directory.page or best.directory.subifd),
        Reason.SEVERAL_PAGES: bool(rivals) or planes > 1 or contradicted,
        Reason.PAGES_UNREAD: bool(broken),
    }
    return Choice(best.directory, tuple(note for note, holds in notes.items() if holds), _levels(images, best))


def _levels(images: Sequence[Page], slide: Page) -> tuple[Copy, ...]:
    """Return the levels of a slide among all pages, one for each downsample.

    It is the first page that fits, tiled ones first. A page that is marked as a level, with one side that fits a power
    of 2 and another that does not, is listed too: it was cut.
    """
    full, levels = (slide.width_px, slide.height_px), dict[int, Copy]()
    for page in sorted(images, key=lambda page: not page.tiled):
        if page is slide or (page.samples, page.colour) != (slide.samples, slide.colour) or slide.tiled > page.tiled:
            continue  # a level in rows would need its tiles in order
        downsample = level_downsample((page.width_px, page.height_px), full)
        sides = (level_downsample((page.width_px,), full[:1]), level_downsample((page.height_px,), full[1:]))
        if downsample or (page.reduced and any(side & (side - 1) == 0 < side for side in sides)):
            found = Copy(page.directory, downsample or max(sides), fits=downsample > 0)
            if found.fits > (found.downsample in levels and levels[found.downsample].fits):
                levels[found.downsample] = found
            else:
                levels.setdefault(found.downsample, found)
    return tuple(sorted(levels.values(), key=lambda level: level.downsample))


def level_downsample(size_px: Sequence[int], full_px: Sequence[int]) -> int:
    """Return the downsample of a level of `size_px`, given the size of level 0; 0 if it is no level.

    Writers round sides up or down, so every side must be less than one pixel from the quotient. A power of 2 that fits
    is preferred, because small levels fit several downsamples.
    """
    ratio = max(full / px for px, full in zip(size_px, full_px, strict=True) if full == max(full_px))
    if max(size_px) < MIN_LEVEL_PX or ratio < 1.5:
        return 0
    for downsample in (1 << round(math.log2(ratio)), round(ratio)):
        if all(abs(px - full / downsample) < 1 for px, full in zip(size_px, full_px, strict=True)):
            return downsample
    return 0


def _planes(description: str, page: Page) -> int:
    """Return the number of images of a page's size that the first page's description states.

    It may be that of OME, ImageJ or tifffile.
    """
    planes = 1
    for pixels in OME_PIXELS.findall(description):
        size = {axis: int(length) for axis, length in OME_SIZE.findall(pixels)}
        if (size.get("X"), size.get("Y")) == (page.width_px, page.height_px):
            planes = max(planes, size.get("C", 1) * size.get("Z", 1) * size.get("T", 1) // page.samples)
    if (found := IMAGEJ_PLANES.match(description)) is not None:
        planes = max(planes, int(found[1]))
    if (found := TIFFFILE_SHAPE.search(description)) is not None:
        planes = max(planes, math.prod(map(int, found[1].split(","))) // (page.area_px * page.samples))
    return planes


def _pages(found: Directories, path: Path) -> tuple[list[Page], str]:
    """Return the pages that can be read, and why others cannot be (empty: all can).

    Raises SlideUnreadable or ValueError for the first directory: if it is broken, the slide is.
    """
    pages, broken, first = list[Page](), found.broken, found.all[0]
    for directory in found.all:
        empty = not _table(directory) and WIDTH not in directory.entries
        if (empty and directory.tags) or (SUBIFDS in directory.entries and not _table(directory)):
            continue  # it only holds metadata or other directories
        try:
            page = _page(found, directory, path)
            if directory is not first:
                _check_table(found, page)
            pages.append(page)
        except (OSError, ValueError, struct.error, SlideUnreadable) as error:
            if directory is first:
                raise
            broken = f"{_place(directory)}: {one_line(error)}"
    return pages, broken


def _check_table(found: Directories, page: Page) -> None:
    """Raise ValueError if a page has not as many segments as its size needs: one of the two is broken."""
    entries, table = page.directory.entries, _table(page.directory)
    rows = min(found.number(page.directory, ROWS_PER_STRIP, page.height_px), page.height_px)
    width, height = (found.number(page.directory, code, 0) for code in (TILE_WIDTH, TILE_HEIGHT))
    if table is None or min(*((width, height) if page.tiled else (rows, 1))) < 1:
        raise ValueError("no pixels")
    needed = -(-page.height_px // height) * -(-page.width_px // width) if page.tiled else -(-page.height_px // rows)
    if entries[table[0]].number not in (needed, needed * page.samples):
        raise ValueError(f"{entries[table[0]].number:,} segments; {needed:,} are needed")


def _table(directory: Directory) -> tuple[int, int] | None:
    """Return the tags of the offsets and byte counts that a directory has; None if it has no pixels."""
    return next((table for table in (TILE_TABLE, STRIP_TABLE) if table[0] in directory.entries), None)


def _page(found: Directories, directory: Directory, path: Path) -> Page:
    """Return a page, whose size the file can hold. Raises SlideUnreadable or ValueError."""
    width, height = found.number(directory, WIDTH, 0), found.number(directory, HEIGHT, 0)
    samples, bits = found.number(directory, SAMPLES_PER_PIXEL, 1), found.number(directory, BITS_PER_SAMPLE, 1)
    expansion = MAX_EXPANSION if found.number(directory, COMPRESSION, 1) in BOUND_CODECS else MAX_EXPANSION_UNBOUND
    check_size(width, height, samples * bits, path, expansion)
    photometric = found.number(directory, PHOTOMETRIC, BLACK_IS_ZERO)
    return Page(
        directory,
        width,
        height,
        max(samples, 1),
        colour=samples > 2 or photometric == PALETTE,
        channel=samples == 1 and bits >= 8 and photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO),
        tiled=TILE_WIDTH in directory.entries,
        reduced=_reduced(found, directory),
        name=_name(found, directory, photometric),
    )


def _reduced(found: Directories, directory: Directory) -> bool:
    """Return whether a page is marked as a copy in a lower resolution."""
    description = found.text(directory, DESCRIPTION, MAX_NAME_BYTES)
    if found.number(directory, NEW_SUBFILE_TYPE, 0) & REDUCED_BIT or APERIO_REDUCED.match(description) is not None:
        return True
    level = LEVEL.search(description)
    return found.number(directory, SUBFILE_TYPE, 0) == OLD_REDUCED or (level is not None and int(level[1]) > 0)


def _name(found: Directories, directory: Directory, photometric: int) -> str:
    """Return what a page is if it is not the slide, else an empty string."""
    for code in (DESCRIPTION, PAGE_NAME):
        if (named := NAMED.match(found.text(directory, code, MAX_NAME_BYTES))) is not None:
            return named[1].lower()
    if found.number(directory, NEW_SUBFILE_TYPE, 0) & MASK_BIT or photometric == MASK_PHOTOMETRIC:
        return MASK
    return "macro" if found.decimal(directory, SOURCE_LENS) < 0 else ""  # Hamamatsu: -1 macro, -2 map


def _place(directory: Directory) -> str:
    return ", SubIFD ".join([f"page {directory.page}", *map(str, directory.subifd)])
