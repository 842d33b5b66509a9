"""Draw mutations of the seed files, with knowledge of where a TIFF's directory lies.

Plain random numbers, not a hypothesis strategy: what hypothesis draws depends on which modules are imported.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .seeds import FOLDER

# Numbers that have broken readers: zero, signs, one off a power of two, sizes that overflow.
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 31, 33, 64, 80, 112, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536,
           10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**63, 2**64 - 1)  # fmt: skip
TAGS = (254, 255, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 284, 292, 317, 320, 322, 323, 324, 325,
        330, 332, 338, 339, 347, 512, 513, 514, 519, 529, 530, 531, 532, 700, 34675, 65000)  # fmt: skip
CODECS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 33003, 33005, 34712, 34887, 34925, 50000, 50001, 50002)
KINDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 99)
MAX_EDITS = 2


@dataclass(frozen=True)
class Seed:
    """A valid file, and where the entries of its first directory lie."""

    name: str
    data: bytes
    order: str  # of struct: "<" or ">"
    big: bool  # BigTIFF
    directory: int  # byte offset of the number of entries
    entries: tuple[int, ...]  # byte offset of each entry

    def field(self, entry: int, number: int) -> tuple[int, str]:
        """Return the byte offset and the format of an entry's part: 0 tag, 1 kind, 2 count, 3 value."""
        word = "Q" if self.big else "I"
        places = (0, 2, 4, 12 if self.big else 8)
        return self.entries[entry] + places[number], self.order + ("H" if number < 2 else word)


@cache
def seeds() -> tuple[Seed, ...]:
    """Return the seed files, sorted by name."""
    return tuple(_seed(path) for path in sorted(FOLDER.glob("*.tif")))


def _seed(path: Path) -> Seed:
    data = path.read_bytes()
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    first, size = start + (8 if big else 2), 20 if big else 12
    return Seed(path.stem, data, order, big, start, tuple(range(first, first + count * size, size)))


Edit = Callable[[bytearray], None]


def mutation(draw: random.Random) -> tuple[str, bytes]:
    """Draw the name of a seed and a mutation of its bytes."""
    seed = draw.choice(seeds())
    data = bytearray(seed.data)
    for _ in range(draw.randint(1, MAX_EDITS)):
        kind = draw.choice((_tag, _tag, _tag, _codec, _number, _flip, _flip, _cut, _move, _hole))
        kind(seed, draw)(data)
    return seed.name, bytes(data)


def _tag(seed: Seed, draw: random.Random) -> Edit:
    """Change the tag, kind, count or value of an entry."""
    part = draw.randint(0, 3)
    place, form = seed.field(draw.randint(0, len(seed.entries) - 1), part)
    value = draw.choice((TAGS, KINDS, NUMBERS, NUMBERS)[part])
    return lambda data: _pack(data, place, form, value)


def _codec(seed: Seed, draw: random.Random) -> Edit:
    """Claim another compression or colour model."""
    tag, value = draw.choice([(259, codec) for codec in CODECS] + [(262, colours) for colours in range(11)])

    def edit(data: bytearray) -> None:
        for number in range(len(seed.entries)):
            place, form = seed.field(number, 0)
            if data[place : place + 2] == struct.pack(form, tag):
                _pack(data, seed.field(number, 3)[0], f"{seed.order}H", value)

    return edit


def _number(seed: Seed, draw: random.Random) -> Edit:
    """Write one of NUMBERS anywhere."""
    place, width = _place(seed, draw), draw.choice("HIQ")
    value = draw.choice(NUMBERS)
    return lambda data: _pack(data, place, seed.order + width, value)


def _flip(seed: Seed, draw: random.Random) -> Edit:
    """Change one byte."""
    place, value = _place(seed, draw), draw.randint(1, 255)

    def edit(data: bytearray) -> None:
        if place < len(data):
            data[place] ^= value

    return edit


def _cut(seed: Seed, draw: random.Random) -> Edit:
    """Cut the file short, or add bytes at its end."""
    length = _place(seed, draw) + draw.randint(0, 16)

    def edit(data: bytearray) -> None:
        data[length:] = bytes(max(length - len(data), 0))

    return edit


def _move(seed: Seed, draw: random.Random) -> Edit:
    """Copy bytes to another place, over what is there or between it."""
    source, target = _place(seed, draw), _place(seed, draw)
    size, over = draw.randint(1, 64), draw.random() < 0.5

    def edit(data: bytearray) -> None:
        data[target : target + size if over else target] = data[source : source + size]

    return edit


def _hole(seed: Seed, draw: random.Random) -> Edit:
    """Overwrite bytes with zeros or ones."""
    place, size = _place(seed, draw), draw.randint(1, 2048)
    fill = draw.choice((0, 255))

    def edit(data: bytearray) -> None:
        data[place : place + size] = bytes([fill]) * len(data[place : place + size])

    return edit


def _place(seed: Seed, draw: random.Random) -> int:
    return draw.randrange(len(seed.data))


def _pack(data: bytearray, place: int, form: str, value: int) -> None:
    """Write a number if there is room; only its lowest bytes if it is too large for the format."""
    size = struct.calcsize(form)
    if place + size <= len(data):
        struct.pack_into(form, data, place, value % 256**size)
