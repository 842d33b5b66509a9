"""Find near-identical pictures; count them as one patient, or leave out those near a test picture.

They are found by a perceptual hash: pHash of the ImageHash package (BSD-2-Clause), the signs of the 64 lowest cosine
frequencies.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.data.groups import connected_groups
from clotkit.data.tiles import TEST, TRAIN, VAL, TileSet
from clotkit.progress import Log
from clotkit.slides.pixels import Pixels

GREY_PX = 16  # side of the grey thumbnails by which two pictures with close hashes are compared
# Largest mean absolute difference of two thumbnails, of 255. Measured on pairs within 4 bits: true near-duplicates
# (other contrast, other size, a mark drawn in, the field moved a little) differ by at most 8.2; the closest chance
# pair, two blood cells, differs by 22.0.
MAX_GREY_DIFFERENCE = 9.0
FLAT_STD = 2.0  # standard deviation of a thumbnail, of 255, below which the hash is only noise
BLOCK = 256  # pictures compared with all others at a time; 256 x 17,000 distances take 40 MB
PAIRS = 20_000  # pairs whose thumbnails are compared at a time, 60 MB

Indices = npt.NDArray[np.int64]


def near_duplicate_groups(pictures: Sequence[Pixels], bits: int) -> Indices:
    """Return the group of each picture; near-identical pictures have the same one.

    Two pictures are near-duplicates if their hashes differ in at most `bits` of 64 and their thumbnails by at most
    MAX_GREY_DIFFERENCE. The relation is transitive: a near-duplicate of a near-duplicate is in the same group. The hash
    of a flat picture is noise, so a flat picture is grouped only with pictures of the same shape and bytes.

    Args:
        pictures: uint8[H, W, 3] each, of any sizes.
        bits: The largest Hamming distance of two hashes.

    Returns:
        int64[n], numbered from 0 in the order of each group's first picture.
    """
    if len(pictures) == 0:
        return np.zeros(0, np.int64)
    hashes, thumbnails = _fingerprints(pictures)
    flat = thumbnails.std(1) < FLAT_STD
    pairs = [_near_pairs(hashes, thumbnails, np.flatnonzero(~flat), bits), _equal_pairs(pictures, np.flatnonzero(flat))]
    return connected_groups(len(pictures), np.concatenate(pairs))


def group_near_duplicates(tiles: TileSet, bits: int, log: Log) -> TileSet:
    """Return the tiles with one patient name for all patients of near-identical images.

    The name is the first of theirs in sorted order. An image of several tiles is compared by all of them together.
    Given parts do not change. `log` gets one line: the number of groups, of images in them, and of groups that straddle
    classes or given parts.
    """
    return _merged(tiles, _groups_of_tiles(tiles, bits, log))


def drop_near_duplicates(tiles: TileSet, bits: int, log: Log) -> TileSet:
    """Return the tiles without training and validation images that are near-identical to a test image.

    The others are grouped as group_near_duplicates does. `dropped` of the tiles names the images, and `log` gets one
    more line with their number.
    """
    groups = _groups_of_tiles(tiles, bits, log)
    near_test = np.isin(groups, groups[tiles.parts == TEST]) & (tiles.parts != TEST)
    dropped = dict(zip(tiles.images[near_test].tolist(), tiles.parts[near_test].tolist(), strict=True))
    counts = Counter(dropped.values())
    log(
        f"{len(dropped)} images are left out, near-identical to one of {TEST}: {TRAIN} {counts[TRAIN]}, "
        f"{VAL} {counts[VAL]}"
    )
    return replace(_merged(tiles.where(~near_test), groups[~near_test]), dropped=dropped)


def _groups_of_tiles(tiles: TileSet, bits: int, log: Log) -> Indices:
    """Return the near-duplicate group of each tile's image, int64[n]."""
    rows, image_of = tiles.rows_by_image(), np.zeros(len(tiles), np.int64)
    for number, each in enumerate(rows):
        image_of[each] = number
    groups = near_duplicate_groups([_pixels(tiles, each) for each in rows], bits)
    first = tiles.first_rows()
    log(_summary(groups, tiles.labels[first], tiles.parts[first], bits))
    return groups[image_of]


def _merged(tiles: TileSet, groups: Indices) -> TileSet:
    """Return the tiles with one name for all patients that a group of near-duplicates joins."""
    names, patients = np.unique(tiles.patients, return_inverse=True)
    # The nodes are patients and groups; an edge joins a patient to the group of each of their images.
    edges = np.stack([patients, len(names) + groups], axis=1)
    merged = connected_groups(len(names) + int(groups.max()) + 1, edges)[: len(names)]
    _, leaders, of_name = np.unique(merged, return_index=True, return_inverse=True)
    return replace(tiles, patients=names[leaders[of_name]][patients], named_patients=tiles.own_patients)


def _pixels(tiles: TileSet, rows: Indices) -> Pixels:
    """Stack the tiles of one image, uint8[n * H, W, 3]; a view if their rows are contiguous."""
    contiguous = len(rows) == rows[-1] - rows[0] + 1
    chosen = tiles.tiles[rows[0] : rows[-1] + 1] if contiguous else tiles.tiles[rows]
    return chosen.reshape(-1, *tiles.tiles.shape[2:])


def _summary(groups: Indices, labels: Indices, parts: npt.NDArray[np.str_], bits: int) -> str:
    members = np.bincount(groups)
    grouped = members[groups] > 1
    straddling = {
        word: _straddling(groups[grouped], np.unique(values[grouped], return_inverse=True)[1])
        for word, values in (("classes", labels), ("given parts", parts))
    }
    return (
        f"{np.count_nonzero(members > 1)} groups of near-identical images ({np.count_nonzero(grouped)} of "
        f"{len(groups)}, within {bits} of 64 bits), each counted as one patient; "
        + ", ".join(f"{count} straddle {word}" for word, count in straddling.items())
    )


def _straddling(groups: Indices, values: Indices) -> int:
    """Count the groups that have more than one value."""
    pairs = np.unique(np.stack([groups, values], axis=1), axis=0)
    return int(np.count_nonzero(np.bincount(pairs[:, 0]) > 1)) if len(pairs) else 0


def _fingerprints(pictures: Sequence[Pixels]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
    """Return perceptual hashes, uint64[n], and grey thumbnails, float32[n, GREY_PX * GREY_PX]."""
    import imagehash
    from PIL import Image

    hashes = np.empty((len(pictures), 8), np.uint8)
    thumbnails = np.empty((len(pictures), GREY_PX * GREY_PX), np.float32)
    for index, picture in enumerate(pictures):
        grey = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
        hashes[index] = np.packbits(imagehash.phash(grey).hash)
        thumbnails[index] = np.asarray(grey.resize((GREY_PX, GREY_PX), Image.Resampling.BOX), np.float32).ravel()
    return hashes.view(np.uint64).ravel(), thumbnails


def _near_pairs(
    hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.float32], chosen: Indices, bits: int
) -> Indices:
    """Return pairs int64[m, 2] that join the near-duplicates among the chosen pictures."""
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(chosen), BLOCK):
        some, rest = chosen[start : start + BLOCK], chosen[start:]
        one, other = np.nonzero(np.bitwise_count(hashes[some, None] ^ hashes[rest]) <= bits)
        pairs = np.stack([some[one[one < other]], rest[other[one < other]]], axis=1)
        close = [_close_pairs(thumbnails, pairs[first : first + PAIRS]) for first in range(0, len(pairs), PAIRS)]
        if close:
            found.append(_star(len(hashes), np.concatenate(close)))
    return np.concatenate(found)


def _star(nodes: int, pairs: Indices) -> Indices:
    """Return fewer pairs that join the same nodes: each node with the first of its group.

    A thousand similar frames make a million pairs, but only a thousand of these.
    """
    groups = connected_groups(nodes, pairs)
    leaders = np.unique(groups, return_index=True)[1][groups]
    members = np.flatnonzero(leaders != np.arange(nodes))
    return np.stack([leaders[members], members], axis=1)


def _close_pairs(thumbnails: npt.NDArray[np.float32], pairs: Indices) -> Indices:
    """Return the pairs whose thumbnails are close."""
    differences = np.abs(thumbnails[pairs[:, 0]] - thumbnails[pairs[:, 1]]).mean(1)
    close: npt.NDArray[np.bool_] = differences <= MAX_GREY_DIFFERENCE
    return pairs[close]


def _equal_pairs(pictures: Sequence[Pixels], chosen: Indices) -> Indices:
    """Pair each chosen picture with the first that is identical to it, int64[m, 2]."""
    first: dict[tuple[Any, bytes], int] = {}
    pairs = [(first.setdefault(_content_key(pictures[index]), int(index)), int(index)) for index in chosen]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _content_key(picture: Pixels) -> tuple[Any, bytes]:
    import hashlib

    return picture.shape, hashlib.sha256(picture.tobytes()).digest()
