"""Shards: the tiles of a slide in one file, written batch by batch, read back memory-mapped.

A shard is four .npy arrays in a row, as `np.save` would append them: tiles, xy, facts (JSON), and a seal with their
sizes and checksums. `np.load(path, mmap_mode="r")` alone gives the tiles. Every header is 128 bytes and follows from
the seal, so a shard is compared with what it must be, not parsed. No TensorFlow here: tiles are cut without it.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.errors import NoTissue, SlideUnreadable
from clotkit.files import sha256
from clotkit.splits import SlideRow
from clotkit.stores import Store
from clotkit.tiling.tilers import Batch
from clotkit.versions import code_version

FORMAT = 2
HEADER_BYTES = 128
SEAL_ITEMS = 6  # format, tiles, tile_px, bytes of the facts, CRC-32 of the tiles, CRC-32 of all else
SEAL_BYTES = HEADER_BYTES + 8 * SEAL_ITEMS
MOST_TILES, MOST_TILE_PX = 2**31, 2**16  # a seal that claims more is none
CHUNK_BYTES = 2**20

Pieces = Iterable[dict[str, Any] | Batch]


@dataclass(frozen=True)
class Shard:
    """A slide's tiles: uint8[n, tile_px, tile_px, 3], memory-mapped, read-only; `xy` int32[n, 2] their corners.

    `facts` is what the tiler said of the slide, `key` what the shard was made from (see shard_key).
    """

    tiles: npt.NDArray[np.uint8]
    xy: npt.NDArray[np.int32]
    facts: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Written:
    """A shard that stands: its tiles, its bytes, and their sha256."""

    tiles: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Frame:
    """All of a shard but its tiles: `count` of them, uint8[tile_px, tile_px, 3] each, and `xy` int32[count, 2]."""

    count: int
    tile_px: int
    checksum: int  # CRC-32 of the tiles
    xy: npt.NDArray[np.int32]
    facts: dict[str, Any]
    key: str


def write_shard(store: Store, name: str, pieces: Pieces, key: str) -> Written:
    """Write the batches and facts of `pieces` to the shard `name` of a store, atomically.

    One batch is held at a time. The same pieces and key give the same bytes. Raises NoTissue when no tile comes, and
    what `pieces` raises; then nothing is written.
    """
    with store.atomic_write(name) as path:
        tiles = _write(path, pieces, key)
        return Written(tiles, path.stat().st_size, sha256(path))


def _write(path: Path, pieces: Pieces, key: str) -> int:
    """Write a shard to a file, and return the number of its tiles."""
    facts: dict[str, Any] = {}
    corners: list[npt.NDArray[np.int32]] = []
    side = checksum = 0
    with path.open("wb") as file:
        file.write(bytes(HEADER_BYTES))  # its place: how many tiles there are is known at the end
        for piece in pieces:
            if isinstance(piece, dict):
                facts.update(piece)
                continue
            side = side or piece.tiles.shape[1]
            if piece.tiles.shape != (len(piece.xy), side, side, 3):
                raise ValueError(f"a batch is {piece.tiles.shape}, not {(len(piece.xy), side, side, 3)}")
            tiles = np.ascontiguousarray(piece.tiles, np.uint8)
            file.write(tiles.data)
            checksum = zlib.crc32(tiles.data, checksum)
            corners.append(piece.xy.astype("<i4"))
        xy = np.concatenate(corners) if corners else np.zeros((0, 2), "<i4")
        if not len(xy):
            raise NoTissue("no tile came of it")
        about = json.dumps({"facts": facts, "key": key}, sort_keys=True, separators=(",", ":")).encode()
        file.write(_tail(side, xy, about, checksum))
        file.seek(0)
        file.write(_header("|u1", (len(xy), side, side, 3)))
    return len(xy)


def read_shard(path: Path, verify: bool = True) -> Shard:
    """Open a shard; its tiles are memory-mapped: what is not looked at is not read.

    `verify` reads every byte once and compares checksums; without it only the tiles' own bytes are taken on trust.
    Raises SlideUnreadable, on one line, for a shard that is missing, cut short, damaged, or something else.
    """
    try:
        with path.open("rb") as file:
            frame = read_frame(file)
            if frame is None or (verify and _checksum(file, frame) != frame.checksum):
                raise SlideUnreadable(f"{path}: not a whole shard; delete it and run clotkit tile again")
            shape = (frame.count, frame.tile_px, frame.tile_px, 3)
            tiles = np.memmap(file, np.uint8, "r", HEADER_BYTES, shape)
    except OSError as error:
        raise SlideUnreadable(f"{path}: cannot be read: {error.strerror}; clotkit tile makes shards") from error
    return Shard(tiles, frame.xy, frame.facts, frame.key)


def shard_key(slide: SlideRow, tiling: TilingConfig, dated: bool = True) -> str:
    """What a shard is made from, as a sha256: the slide's size and time of change, the tiling, the code that cuts.

    Of a slide in an object store it is the store's version. Without `dated` neither counts: for slides that are copied
    or mounted afresh, and never changed. Raises OSError when the slide is missing.
    """
    size_bytes, changed = _state_of(slide)
    made_from = {
        "bytes": size_bytes,
        "mtime_ns": changed if dated else None,
        "tiling": asdict(tiling),
        "code": code_version(),
        "format": FORMAT,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _state_of(slide: SlideRow) -> tuple[int, int | str]:
    """The bytes of a slide, and what changes when it is written again."""
    if slide.stored is not None:
        return slide.stored.entry.size_bytes, slide.stored.entry.version
    stat = slide.path.stat()
    return stat.st_size, stat.st_mtime_ns


def frame_in(store: Store, name: str) -> Frame | None:
    """All of a shard but its tiles; None when there is none, or it is not whole (its tiles' own bytes are not read).

    Raises StoreError where an object store cannot be asked.
    """
    try:
        with store.open(name) as file:
            return read_frame(file)
    except OSError:
        return None


def _header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file, format 1.0, always HEADER_BYTES long."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (HEADER_BYTES - 10).to_bytes(2, "little")
        + text.ljust(HEADER_BYTES - 11).encode()
        + b"\n"
    )


def _tail(tile_px: int, xy: npt.NDArray[np.int32], about: bytes, checksum: int) -> bytes:
    """What follows the tiles of a shard: xy, the JSON `about`, the seal."""
    sizes = np.array([FORMAT, len(xy), tile_px, len(about), checksum], "<u8").tobytes()
    other = zlib.crc32(xy.tobytes() + about + sizes)
    seal = sizes + np.array([other], "<u8").tobytes()
    parts = [
        (_header("<i4", xy.shape), xy.tobytes()),
        (_header("|u1", (len(about),)), about),
        (_header("<u8", (SEAL_ITEMS,)), seal),
    ]
    return b"".join(header + body for header, body in parts)


def read_frame(file: BinaryIO) -> Frame | None:
    """A shard's frame; None where the file is not, byte for byte except its tiles, what its seal says.

    Three short pieces of the file are read: its end, its beginning, and what follows the tiles.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8 * SEAL_ITEMS, 0))
    seal = file.read(8 * SEAL_ITEMS)
    if size < SEAL_BYTES or len(seal) != 8 * SEAL_ITEMS:
        return None
    form, count, side, about_bytes, checksum, _ = (int(value) for value in np.frombuffer(seal, "<u8"))
    if form != FORMAT or not 0 < count < MOST_TILES or not 0 < side < MOST_TILE_PX or about_bytes > size:
        return None
    tail_bytes = 2 * HEADER_BYTES + 8 * count + about_bytes + SEAL_BYTES
    if size != HEADER_BYTES + count * side * side * 3 + tail_bytes:
        return None
    file.seek(0)
    head = file.read(HEADER_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    start = HEADER_BYTES + 8 * count
    xy = np.frombuffer(tail[HEADER_BYTES:start], "<i4").reshape(count, 2)
    about = tail[start + HEADER_BYTES : start + HEADER_BYTES + about_bytes]
    if head != _header("|u1", (count, side, side, 3)) or tail != _tail(side, xy, about, checksum):
        return None
    said = json.loads(about)
    return Frame(count, side, checksum, xy, said["facts"], said["key"])


def _checksum(file: BinaryIO, frame: Frame) -> int:
    """The CRC-32 of a shard's tiles as they stand in the file."""
    left, checksum = frame.count * frame.tile_px**2 * 3, 0
    file.seek(HEADER_BYTES)
    while left and (chunk := file.read(min(left, CHUNK_BYTES))):
        checksum = zlib.crc32(chunk, checksum)
        left -= len(chunk)
    return checksum
