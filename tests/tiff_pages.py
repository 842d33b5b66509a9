"""Write TIFFs of several pages byte by byte, with SubIFDs at any depth and broken directories.

tifffile and libvips write what is usual; this writes the rest.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 320, 240
Values = int | float | str | Sequence[int] | None  # None: the tag is left out
SHORT, LONG, TEXT, FLOAT, LONG8 = 3, 4, 2, 11, 16
FORMS = {SHORT: "H", LONG: "I", LONG8: "Q"}
LONGS = {254, 256, 257, 273, 278, 279, 324, 325, 330}  # all other numbers are written as 16 bits


@dataclass
class Page:
    """A page to write: deflate, in tiles of `tile` px or in one strip."""

    pixels: npt.NDArray[Any]  # [h, w] or [h, w, bands]
    tile: int = 0  # 0: one strip
    tags: dict[int, Values] = field(default_factory=dict)  # more tags, or other values
    subifds: Sequence["Page"] = ()
    chained: bool = False  # only the first SubIFD is in the tag; each one points to the next
    next_at: int | None = None  # where the next page is, whatever the truth

    def segments(self) -> list[bytes]:
        """Return the compressed tiles, padded by their last pixels, or the one strip."""
        height, width = self.pixels.shape[:2]
        if not self.tile:
            return [zlib.compress(self.pixels.tobytes())]
        side, rest = self.tile, [(0, 0)] * (self.pixels.ndim - 2)
        full = np.pad(self.pixels, [(0, -height % side), (0, -width % side), *rest], mode="edge")
        corners = [(y, x) for y in range(0, height, side) for x in range(0, width, side)]
        return [zlib.compress(full[y : y + side, x : x + side].tobytes()) for y, x in corners]

    def described(self) -> dict[int, Values]:
        """Return the tags without the places of the segments."""
        height, width = self.pixels.shape[:2]
        bands = self.pixels.shape[2] if self.pixels.ndim == 3 else 1
        shape: dict[int, Values] = {322: self.tile, 323: self.tile} if self.tile else {278: height}
        bits: dict[int, Values] = {258: [self.pixels.itemsize * 8] * bands, 277: bands}
        return {256: width, 257: height, 259: 8, 262: 2 if bands > 2 else 1} | bits | shape | self.tags


class Writer:
    """A TIFF that is being written: `data` grows, places are byte offsets in it."""

    def __init__(self, order: str = "<", big: bool = False) -> None:
        """Write the header, with no first page yet."""
        self.order, self.big = order, big
        self.word, self.room = (f"{order}Q", 8) if big else (f"{order}I", 4)
        mark = b"II" if order == "<" else b"MM"
        rest = struct.pack(f"{order}HHHQ", 43, 8, 0, 0) if big else struct.pack(f"{order}HI", 42, 0)
        self.data = bytearray(mark + rest)
        self.first = len(self.data) - self.room  # where the place of the first page is written

    def chain(self, pages: Sequence[Page], pointer: int | None) -> list[int]:
        """Write pages, each pointed to by the one before it, the first from `pointer`; return their places."""
        places = []
        for page in pages:
            place, following = self._page(page)
            places.append(place)
            if pointer is not None:
                struct.pack_into(self.word, self.data, pointer, place)
            pointer = following
            if page.next_at is not None:
                struct.pack_into(self.word, self.data, following, page.next_at)
                pointer = None
        return places

    def _page(self, page: Page) -> tuple[int, int]:
        """Write a page with its SubIFDs; return its place, and where the place of the next one goes."""
        below = self.chain(page.subifds, None) if page.chained else [self._page(one)[0] for one in page.subifds]
        if page.chained:
            below = below[:1]
        segments = page.segments()
        places = [self._append(segment) for segment in segments]
        offsets, counts = (324, 325) if page.tile else (273, 279)
        tables: dict[int, Values] = {offsets: places, counts: [len(segment) for segment in segments]}
        tags = page.described() | tables | ({330: below} if below else {}) | page.tags
        entries = [self._entry(code, value) for code, value in sorted(tags.items()) if value is not None]
        count = struct.pack(self.order + ("Q" if self.big else "H"), len(entries))
        place = self._append(count + b"".join(entries) + bytes(self.room))
        return place, place + len(count) + len(entries) * (4 + 2 * self.room)

    def _entry(self, code: int, value: Values) -> bytes:
        if isinstance(value, str):
            kind, number, data = TEXT, len(value.encode()) + 1, value.encode() + b"\0"
        elif isinstance(value, float):
            kind, number, data = FLOAT, 1, struct.pack(f"{self.order}f", value)
        else:
            values = [value] if isinstance(value, int) else list(value or ())
            kind = (LONG8 if self.big else LONG) if code in LONGS else SHORT
            number, data = len(values), struct.pack(f"{self.order}{len(values)}{FORMS[kind]}", *values)
        if len(data) > self.room:
            data = struct.pack(self.word, self._append(data))
        return struct.pack(f"{self.order}HH{self.word[1]}", code, kind, number) + data.ljust(self.room, b"\0")

    def _append(self, data: bytes) -> int:
        place = len(self.data)
        self.data += data + bytes(len(data) % 2)
        return place


def write(path: Path, pages: Sequence[Page], order: str = "<", big: bool = False) -> None:
    """Write a TIFF of these pages."""
    file = Writer(order, big)
    file.chain(pages, file.first)
    path.write_bytes(file.data)


def tissue(width: int = WIDTH, height: int = HEIGHT, seed: int = 7) -> npt.NDArray[np.uint8]:
    """Return pale glass with a purple disc of texture, uint8[height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), (240, 238, 242), np.uint8)
    inside = (x - 0.45 * width) ** 2 + (y - 0.5 * height) ** 2 < (0.35 * min(width, height)) ** 2
    pixels[inside] = np.array((150, 80, 150)) + rng.integers(-30, 30, (int(inside.sum()), 1))
    return pixels


def smaller(pixels: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    """Return every `step`-th pixel."""
    return np.ascontiguousarray(pixels[::step, ::step])


def paper(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return a label: dark lines on white, uint8[height, width, 3]."""
    pixels = np.full((height, width, 3), 250, np.uint8)
    pixels[height // 4 : -height // 4 : 6, width // 8 : -width // 8] = 30
    return pixels
