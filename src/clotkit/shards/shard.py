"""Shards: the tiles of one slide in one file, written batch by batch and memory-mapped when read.

A shard is four .npy arrays in a row, as repeated `np.save` calls write them: tiles, xy, facts (JSON), and a footer with
their sizes and checksums. `np.load(path, mmap_mode="r")` alone gives the tiles. Every header is 128 bytes and follows
from the footer, so a reader compares a shard with the bytes that it must have, and parses nothing.

No TensorFlow here: tiles are cut without it.
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

from clotkit.config import TilingConfig, rule_facts, tiling_for
from clotkit.errors import NoTissue, SlideUnreadable
from clotkit.files import sha256
from clotkit.splits import SlideRow
from clotkit.stores import Store
from clotkit.tiling.tilers import Batch
from clotkit.versions import code_version

FORMAT = 2
HEADER_BYTES = 128
FOOTER_ITEMS = 6  # format, tiles, tile_px, bytes of the facts, CRC-32 of the tiles, CRC-32 of everything else
FOOTER_BYTES = HEADER_BYTES + 8 * FOOTER_ITEMS
MAX_TILES, MAX_TILE_PX = 2**31, 2**16  # a footer with larger numbers is not one
CHUNK_BYTES = 2**20

Pieces = Iterable[dict[str, Any] | Batch]


@dataclass(frozen=True)
class Shard:
    """The tiles of a slide, memory-mapped and read-only."""

    tiles: npt.NDArray[np.uint8]  # [n, tile_px, tile_px, 3]
    xy: npt.NDArray[np.int32]  # [n, 2], upper left corners
    facts: dict[str, Any]  # the tiler's facts of the slide
    key: str  # see shard_key


@dataclass(frozen=True)
class ShardFile:
    """A shard that has been written."""

    tiles: int  # number of tiles
    size_bytes: int
    sha256: str  # of the file


@dataclass(frozen=True)
class ShardMetadata:
    """Everything of a shard except its tiles."""

    count: int  # number of tiles
    tile_px: int
    checksum: int  # CRC-32 of the tiles
    xy: npt.NDArray[np.int32]  # [count, 2], upper left corners
    facts: dict[str, Any]  # the tiler's facts of the slide
    key: str  # see shard_key


def write_shard(store: Store, name: str, pieces: Pieces, key: str) -> ShardFile:
    """Write batches and facts to the shard `name` of a store, atomically.

    One batch is in memory at a time. The same pieces and key give the same bytes.

    Raises NoTissue if there is no tile, and whatever `pieces` raises; then nothing is written.
    """
    with store.atomic_write(name) as path:
        tiles = _write(path, pieces, key)
        return ShardFile(tiles, path.stat().st_size, sha256(path))


def _write(path: Path, pieces: Pieces, key: str) -> int:
    """Write a shard to a local file and return its number of tiles."""
    facts: dict[str, Any] = {}
    corners: list[npt.NDArray[np.int32]] = []
    side = checksum = 0
    with path.open("wb") as file:
        file.write(bytes(HEADER_BYTES))  # a placeholder: the number of tiles is known at the end
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
            raise NoTissue("the slide gave no tiles")
        about = json.dumps({"facts": facts, "key": key}, sort_keys=True, separators=(",", ":")).encode()
        file.write(_tail(side, xy, about, checksum))
        file.seek(0)
        file.write(_header("|u1", (len(xy), side, side, 3)))
    return len(xy)


def read_shard(path: Path, verify: bool = True) -> Shard:
    """Open a shard and memory-map its tiles; tiles that are not indexed are not read.

    Args:
        path: A local file.
        verify: Read every byte once and compare checksums. Without it everything except the tiles is compared.

    Raises:
        SlideUnreadable: The file is missing, cut short, damaged, or not a shard.
    """
    try:
        with path.open("rb") as file:
            metadata = read_metadata(file)
            if metadata is None or (verify and _tiles_checksum(file, metadata) != metadata.checksum):
                raise SlideUnreadable(f"{path}: not a whole shard; delete it and run clotkit tile again")
            shape = (metadata.count, metadata.tile_px, metadata.tile_px, 3)
            tiles = np.memmap(file, np.uint8, "r", HEADER_BYTES, shape)
    except OSError as error:
        raise SlideUnreadable(f"{path}: cannot be read: {error.strerror}; clotkit tile writes shards") from error
    return Shard(tiles, metadata.xy, metadata.facts, metadata.key)


def shard_key(slide: SlideRow, tiling: TilingConfig, use_mtime: bool = True) -> str:
    """Return a sha256 of everything that a shard depends on.

    That is the slide's size and modification time (in an object store, its version), the tiling with the cells of the
    slide's row that its downsample depends on, and the code that cuts. Without `use_mtime` neither time nor version
    counts: for slides that are copied or mounted anew but never edited.

    Raises OSError if the slide is missing.
    """
    size_bytes, changed = _state_of(slide)
    used, row = tiling_for(tiling, slide.facts), rule_facts(tiling, slide.facts)
    made_from = {
        "bytes": size_bytes,
        "mtime_ns": changed if use_mtime else None,
        "tiling": {key: value for key, value in asdict(used).items() if key != "downsample_if"},
        **({"row": row} if row else {}),
        "code": code_version(),
        "format": FORMAT,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _state_of(slide: SlideRow) -> tuple[int, int | str]:
    """Return the bytes of a slide, and its modification time in ns or its version in an object store."""
    if slide.stored is not None:
        return slide.stored.entry.size_bytes, slide.stored.entry.version
    if slide.size_and_mtime is not None:
        if not any(slide.size_and_mtime):
            raise FileNotFoundError(slide.path)
        return slide.size_and_mtime[0], slide.size_and_mtime[1]
    stat = slide.path.stat()
    return stat.st_size, stat.st_mtime_ns


def metadata_in(store: Store, name: str) -> ShardMetadata | None:
    """Read the metadata of a shard in a store; None if it is missing or not whole.

    The tiles' own bytes are not read.

    Raises StoreError if an object store does not answer.
    """
    try:
        with store.open(name) as file:
            return read_metadata(file)
    except OSError:
        return None


def _header(descr: str, shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file, format 1.0, padded to HEADER_BYTES."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (HEADER_BYTES - 10).to_bytes(2, "little")
        + text.ljust(HEADER_BYTES - 11).encode()
        + b"\n"
    )


def _tail(tile_px: int, xy: npt.NDArray[np.int32], about: bytes, checksum: int) -> bytes:
    """Return the bytes after the tiles of a shard: xy, the JSON text `about`, and the footer."""
    sizes = np.array([FORMAT, len(xy), tile_px, len(about), checksum], "<u8").tobytes()
    other = zlib.crc32(xy.tobytes() + about + sizes)
    footer = sizes + np.array([other], "<u8").tobytes()
    parts = [
        (_header("<i4", xy.shape), xy.tobytes()),
        (_header("|u1", (len(about),)), about),
        (_header("<u8", (FOOTER_ITEMS,)), footer),
    ]
    return b"".join(header + body for header, body in parts)


def read_metadata(file: BinaryIO) -> ShardMetadata | None:
    """Read the metadata of a shard; None unless every byte except the tiles agrees with the footer.

    Reads three short pieces of the file: its end, its beginning, and the bytes after the tiles.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8 * FOOTER_ITEMS, 0))
    footer = file.read(8 * FOOTER_ITEMS)
    if size < FOOTER_BYTES or len(footer) != 8 * FOOTER_ITEMS:
        return None
    form, count, side, about_bytes, checksum, _ = (int(value) for value in np.frombuffer(footer, "<u8"))
    if form != FORMAT or not 0 < count < MAX_TILES or not 0 < side < MAX_TILE_PX or about_bytes > size:
        return None
    tail_bytes = 2 * HEADER_BYTES + 8 * count + about_bytes + FOOTER_BYTES
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
    content = json.loads(about)
    return ShardMetadata(count, side, checksum, xy, content["facts"], content["key"])


def _tiles_checksum(file: BinaryIO, metadata: ShardMetadata) -> int:
    """Return the CRC-32 of a shard's tiles in the file."""
    left, checksum = metadata.count * metadata.tile_px**2 * 3, 0
    file.seek(HEADER_BYTES)
    while left and (chunk := file.read(min(left, CHUNK_BYTES))):
        checksum = zlib.crc32(chunk, checksum)
        left -= len(chunk)
    return checksum
