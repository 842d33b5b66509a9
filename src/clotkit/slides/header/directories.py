"""Read the directories of a TIFF: the main chain of pages, and the SubIFDs below them.

Values are read on demand, into arrays: a slide has 300,000 tile offsets and as many byte counts in every level, and a
library that makes Python integers of them takes more memory than reading the slide does.
"""

import os
import struct
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# The tags that describe a page's pixels; KINDS has the dtype of each kind of value.
WIDTH, HEIGHT, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
ORIENTATION, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, PLANAR_CONFIG, PREDICTOR = 274, 277, 278, 284, 317
TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES = 322, 323, 338, 339, 347
COLOUR_MAP, YCBCR_SUBSAMPLING, T4_OPTIONS, LERC_PARAMETERS = 320, 530, 292, 50674
OLD_JPEG_START, OLD_JPEG_LENGTH, OLD_JPEG_Q, OLD_JPEG_DC, OLD_JPEG_AC = 513, 514, 519, 520, 521
STRIP_TABLE, TILE_TABLE = (273, 279), (324, 325)  # offsets and byte counts
TAGS = {
    *(WIDTH, HEIGHT, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES_PER_PIXEL),
    *(ROWS_PER_STRIP, PLANAR_CONFIG, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES),
    *(COLOUR_MAP, YCBCR_SUBSAMPLING, T4_OPTIONS, LERC_PARAMETERS, *STRIP_TABLE, *TILE_TABLE),
    *(OLD_JPEG_START, OLD_JPEG_LENGTH, OLD_JPEG_Q, OLD_JPEG_DC, OLD_JPEG_AC),
}
# The tags that tell what a page is. The last one is Hamamatsu's.
NEW_SUBFILE_TYPE, SUBFILE_TYPE, DESCRIPTION, PAGE_NAME, SUBIFDS = 254, 255, 270, 285, 330
SOURCE_LENS = 65421
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
PAGE_TAGS = {
    *(NEW_SUBFILE_TYPE, SUBFILE_TYPE, DESCRIPTION, PAGE_NAME, SUBIFDS, SOURCE_LENS),
    *(X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT),
}
KINDS = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
RATIONAL, RATIONAL_BYTES = 5, 8
FLOAT, FLOAT_KIND = 11, "f4"
BIGTIFF, MAX_TAGS, MAX_DIRECTORIES = 43, 4096, 4096
# Tags of one value, and the kinds of value that libtiff accepts for them: it ignores the tag otherwise.
SINGLE = {
    *(WIDTH, HEIGHT, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES_PER_PIXEL, ROWS_PER_STRIP),
    *(PLANAR_CONFIG, PREDICTOR, TILE_WIDTH, TILE_HEIGHT),
}
NUMBER_KINDS = {1, 3, 4, 6, 8, 9, 16, 17}
Tags = dict[int, npt.NDArray[np.int64]]


class Entry(NamedTuple):
    """An entry of a directory: the values themselves if they fit into it, else their place in the file."""

    kind: int
    number: int
    value: bytes


@dataclass(frozen=True)
class Directory:
    """A directory (IFD): one page, or one SubIFD below a page."""

    page: int  # number in the main chain
    subifd: tuple[int, ...]  # numbers below the page, one for each level; empty: the page itself
    entries: dict[int, Entry]  # those of TAGS and PAGE_TAGS
    tags: int  # how many it has
    unreadable: frozenset[int] = frozenset()  # those of TAGS whose values are of an unknown kind

    @property
    def read_differently(self) -> bool:
        """True if libtiff ignores a tag that others read: it has several values, or they are no numbers."""
        single = [entry for code, entry in self.entries.items() if code in SINGLE]
        return any(entry.number != 1 or entry.kind not in NUMBER_KINDS for entry in single)

    @property
    def size_bytes(self) -> int:
        """Bytes of the directory and of the values that it points to, about."""
        values = (entry.number * np.dtype(KINDS.get(entry.kind, "u1")).itemsize for entry in self.entries.values())
        width = max((len(entry.value) for entry in self.entries.values()), default=4)
        return self.tags * (4 + 2 * width) + sum(size for size in values if size > width)


class Directories:
    """The directories of an open TIFF or BigTIFF: those of the main chain first, then the SubIFDs.

    Source: Adobe, TIFF Revision 6.0, section 2, and its Technical Note 1 for SubIFDs; for BigTIFF the libtiff project's
    description of its design.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read all directories without their values.

        Raises:
            ValueError: The file ends early, or the first directory is not plausible.
            struct.error: The file ends within a number.
        """
        self._file, self.file_bytes = file, os.fstat(file.fileno()).st_size
        file.seek(0)
        head = file.read(16)
        self._order = order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack(f"{order}H", head[2:4])[0] == BIGTIFF
        word, room, count_as = ("Q", 8, "Q") if big else ("I", 4, "H")
        self._word, self._count = struct.Struct(order + word), struct.Struct(order + count_as)
        self._entry = struct.Struct(f"{order}HH{word}{room}s")
        self.big_endian = order == ">"
        (first,) = self._word.unpack(head[room : 2 * room])
        self.broken = ""  # why some directories are not here
        self.all: list[Directory] = []
        self._seen: set[int] = set()
        self._read_chain(first)
        self._read_subifds()

    def tags(self, directory: Directory, codes: Collection[int]) -> Tags:
        """Return those of the tags `codes` that a directory has, as integers. Raises ValueError."""
        if odd := directory.unreadable.intersection(codes):
            raise ValueError(f"tag {min(odd)} has values of an unknown kind")
        return {code: self._values(entry) for code, entry in directory.entries.items() if code in codes}

    def number(self, directory: Directory, code: int, default: int) -> int:
        """Return the first value of a tag, or the default if it has none. Raises ValueError."""
        entry = directory.entries.get(code)
        return int(self._values(entry, 1)[0]) if entry is not None and entry.number else default

    def decimal(self, directory: Directory, code: int) -> float:
        """Return the first value of a tag that is a 32-bit float; 0 if there is none."""
        entry = directory.entries.get(code)
        if entry is None or entry.kind != FLOAT or entry.number != 1:
            return 0.0
        return float(np.frombuffer(entry.value[:4], self._order + FLOAT_KIND)[0])

    def rational(self, directory: Directory, code: int) -> float:
        """Return the first value of a tag of fractions; 0 if there is none or it cannot be read."""
        entry = directory.entries.get(code)
        if entry is None or entry.kind != RATIONAL or not entry.number:
            return 0.0
        try:
            above, below = struct.unpack(f"{self._order}II", self._bytes(entry, 8))
        except (OSError, ValueError, struct.error):
            return 0.0
        return above / below if below else 0.0

    def text(self, directory: Directory, code: int, most_bytes: int) -> str:
        """Return a text of at most `most_bytes`; empty if there is none or it cannot be read."""
        entry = directory.entries.get(code)
        if entry is None or entry.kind not in (1, 2, 7):
            return ""
        try:
            data = self._bytes(entry, min(entry.number, most_bytes))
        except (OSError, ValueError, struct.error):
            return ""
        return data.split(b"\0", 1)[0].decode("utf-8", "replace")

    def _read_chain(self, first: int) -> None:
        start, page = first, 0
        while start:
            if start in self._seen or page == MAX_DIRECTORIES:
                self.broken = f"page {page} is page {page - 1} or one before it" if page < MAX_DIRECTORIES else _MANY
                return
            try:
                start = self._read(start, page, ())
            except (ValueError, struct.error) as error:
                if not page:
                    raise
                self.broken = f"page {page}: {error}"
                return
            page += 1
        if not page:
            raise ValueError("it has no directory")

    def _read_subifds(self) -> None:
        """Read the directories below the pages; one that was read before is skipped."""
        waiting = deque(place for directory in list(self.all) for place in self._below(directory))
        while waiting:
            start, page, path, step = waiting.popleft()
            if not start or start in self._seen:
                continue
            if len(self.all) >= MAX_DIRECTORIES:
                self.broken = _MANY
                return
            try:
                following = self._read(start, page, path)
            except (ValueError, struct.error) as error:
                self.broken = f"page {page}, SubIFD {path[-1]}: {error}"
                continue
            waiting.extend(self._below(self.all[-1]))
            waiting.append((following, page, (*path[:-1], path[-1] + step), step))

    def _below(self, directory: Directory) -> Iterator[tuple[int, int, tuple[int, ...], int]]:
        """Yield place, page, path and the step to the next path of each SubIFD that a directory points to."""
        entry = directory.entries.get(SUBIFDS)
        if entry is None:
            return
        try:
            starts = self._values(entry, MAX_DIRECTORIES).tolist()
        except (ValueError, struct.error) as error:
            self.broken = f"page {directory.page}: SubIFDs: {error}"
            return
        for number, start in enumerate(starts):
            yield start, directory.page, (*directory.subifd, number), len(starts)

    def _read(self, start: int, page: int, subifd: tuple[int, ...]) -> int:
        """Append the directory at byte `start`; return the place of the next one, 0 for none."""
        self._seen.add(start)
        if not 8 <= start < self.file_bytes:
            raise ValueError(f"the file ends at byte {self.file_bytes:,}; a directory should start at byte {start:,}")
        self._file.seek(start)
        (count,) = self._count.unpack(self._file.read(self._count.size))
        if count > MAX_TAGS:
            raise ValueError(f"{count:,} tags; {MAX_TAGS:,} are allowed")
        entries, unreadable = dict[int, Entry](), set[int]()
        for code, kind, number, value in self._entry.iter_unpack(_exactly(self._file, count * self._entry.size)):
            known = (code in TAGS and kind in KINDS) or code in PAGE_TAGS
            if code in (NEW_SUBFILE_TYPE, SUBFILE_TYPE) and (kind not in KINDS or number != 1):
                continue  # broken, and not needed to read the pixels
            if known and code not in entries:
                entries[code] = Entry(kind, number, value)
            elif code in TAGS and code not in entries:
                unreadable.add(code)
        self.all.append(Directory(page, subifd, entries, count, frozenset(unreadable)))
        after = self._file.read(self._word.size)
        return int(self._word.unpack(after)[0]) if len(after) == self._word.size else 0

    def _values(self, entry: Entry, most: int | None = None) -> npt.NDArray[np.int64]:
        """Return the first `most` values of a tag, int64[n]; None: all.

        Raises ValueError if they are no integers or beyond the file.
        """
        if entry.kind not in KINDS:
            raise ValueError(f"a tag has values of kind {entry.kind}")
        kind = np.dtype(self._order + KINDS[entry.kind])
        number = entry.number if most is None else min(most, entry.number)
        return np.frombuffer(self._bytes(entry, number * kind.itemsize), kind).astype(np.int64)

    def _bytes(self, entry: Entry, size: int) -> bytes:
        """Return the first `size` bytes of a tag's values, from its entry if all fit there."""
        width = RATIONAL_BYTES if entry.kind == RATIONAL else np.dtype(KINDS.get(entry.kind, "u1")).itemsize
        if entry.number * width <= len(entry.value):
            return entry.value[:size]
        (start,) = self._word.unpack(entry.value)
        if start + size > self.file_bytes:
            raise ValueError(
                f"the file ends at byte {self.file_bytes:,}; the values of a tag should reach byte {start + size:,}"
            )
        self._file.seek(start)
        return _exactly(self._file, size)


_MANY = f"it has more than {MAX_DIRECTORIES:,} directories"


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"the file ends {size - len(data):,} bytes too early")
    return data
