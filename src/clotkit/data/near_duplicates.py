"""Near-identical pictures: found by a perceptual hash, counted as one patient, so that none is on both sides of a fold.

The hash is pHash of the ImageHash package (BSD-2-Clause): the signs of the 64 lowest cosine frequencies.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.data.tiles import TileSet
from clotkit.slides.pixels import Pixels

GREY_PX = 16  # side of the small grey pictures that two twins are compared by
# Mean absolute difference of these, of 255. Measured: of pairs within 4 bits, real twins (other contrast, other size, a
# mark drawn in, the field moved a little) differ by at most 8.2, and the nearest chance pair, two blood cells, by 22.0.
GREY_LEVELS = 9.0
FLAT_LEVELS = 2.0  # standard deviation of the small grey picture: below it the hash is of noise
BLOCK = 256  # pictures compared with all others at a time: 256 x 17,000 distances take 40 MB
PAIRS = 20_000  # whose small grey pictures are compared at a time: 60 MB

Indices = npt.NDArray[np.int64]


def twin_groups(pictures: Sequence[Pixels], bits: int) -> Indices:
    """The group of each picture uint8[H, W, 3], int64[n], numbered as they come; near-identical ones have the same.

    Two pictures are twins when their hashes differ in at most `bits` of 64 and their small grey versions by at most
    GREY_LEVELS on average, and twins of twins are in the same group. A flat picture has only identical twins: same
    shape, same bytes.
    """
    if len(pictures) == 0:
        return np.zeros(0, np.int64)
    hashes, greys = _fingerprints(pictures)
    flat = greys.std(1) < FLAT_LEVELS
    pairs = [_near(hashes, greys, np.flatnonzero(~flat), bits), _same(pictures, np.flatnonzero(flat))]
    return _joined(len(pictures), np.concatenate(pairs))


def group_twins(tiles: TileSet, bits: int, log: Callable[[str], None]) -> TileSet:
    """The same tiles, with one patient's name (of all, the first) for the patients of near-identical images.

    An image of several tiles is compared by all of them. Given parts stay as they are. `log` gets one line: how many
    groups, of how many images, and how many of them straddle classes or given parts.
    """
    rows, image_of = _by_image(tiles)
    groups = twin_groups([_pixels(tiles, each) for each in rows], bits)
    first = np.array([each[0] for each in rows], np.int64)
    log(_summary(groups, tiles.labels[first], tiles.parts[first], bits))
    names, patients = np.unique(tiles.patients, return_inverse=True)
    # patients and groups are the nodes; whoever has an image in a group is tied to it
    ties = np.stack([patients, len(names) + groups[image_of]], axis=1)
    merged = _joined(len(names) + int(groups.max()) + 1, ties)[: len(names)]
    _, leaders, of_name = np.unique(merged, return_index=True, return_inverse=True)
    return replace(tiles, patients=names[leaders[of_name]][patients])


def _by_image(tiles: TileSet) -> tuple[list[Indices], Indices]:
    """The rows of each image, and each row's image."""
    _, image_of, counts = np.unique(tiles.images, return_inverse=True, return_counts=True)
    order = np.argsort(image_of, kind="stable")
    return np.split(order, np.cumsum(counts)[:-1]), image_of


def _pixels(tiles: TileSet, rows: Indices) -> Pixels:
    """The tiles of one image below each other, uint8[n * H, W, 3]; a view where they stand together."""
    together = len(rows) == rows[-1] - rows[0] + 1
    chosen = tiles.tiles[rows[0] : rows[-1] + 1] if together else tiles.tiles[rows]
    return chosen.reshape(-1, *tiles.tiles.shape[2:])


def _summary(groups: Indices, labels: Indices, parts: npt.NDArray[np.str_], bits: int) -> str:
    members = np.bincount(groups)
    twins = members[groups] > 1
    straddling = {
        word: _straddling(groups[twins], np.unique(values[twins], return_inverse=True)[1])
        for word, values in (("classes", labels), ("given parts", parts))
    }
    return (
        f"{np.count_nonzero(members > 1)} groups of near-identical images ({np.count_nonzero(twins)} of {len(groups)}, "
        f"within {bits} of 64 bits), each counted as one patient; "
        + ", ".join(f"{count} straddle {word}" for word, count in straddling.items())
    )


def _straddling(groups: Indices, values: Indices) -> int:
    """How many groups have more than one value."""
    pairs = np.unique(np.stack([groups, values], axis=1), axis=0)
    return int(np.count_nonzero(np.bincount(pairs[:, 0]) > 1)) if len(pairs) else 0


def _fingerprints(pictures: Sequence[Pixels]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
    """Perceptual hashes uint64[n] and small grey versions float32[n, GREY_PX * GREY_PX]."""
    import imagehash
    from PIL import Image

    hashes = np.empty((len(pictures), 8), np.uint8)
    greys = np.empty((len(pictures), GREY_PX * GREY_PX), np.float32)
    for index, picture in enumerate(pictures):
        grey = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
        hashes[index] = np.packbits(imagehash.phash(grey).hash)
        greys[index] = np.asarray(grey.resize((GREY_PX, GREY_PX), Image.Resampling.BOX), np.float32).ravel()
    return hashes.view(np.uint64).ravel(), greys


def _near(hashes: npt.NDArray[np.uint64], greys: npt.NDArray[np.float32], chosen: Indices, bits: int) -> Indices:
    """Pairs int64[m, 2] of twins among the chosen pictures."""
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(chosen), BLOCK):
        some, rest = chosen[start : start + BLOCK], chosen[start:]
        one, other = np.nonzero(np.bitwise_count(hashes[some, None] ^ hashes[rest]) <= bits)
        pairs = np.stack([some[one[one < other]], rest[other[one < other]]], axis=1)
        alike = [_alike(greys, pairs[first : first + PAIRS]) for first in range(0, len(pairs), PAIRS)]
        if alike:
            found.append(_star(len(hashes), np.concatenate(alike)))
    return np.concatenate(found)


def _star(nodes: int, pairs: Indices) -> Indices:
    """Fewer pairs that join the same nodes: each with the first of its group. A thousand frames are a million pairs."""
    groups = _joined(nodes, pairs)
    leaders = np.unique(groups, return_index=True)[1][groups]
    members = np.flatnonzero(leaders != np.arange(nodes))
    return np.stack([leaders[members], members], axis=1)


def _alike(greys: npt.NDArray[np.float32], pairs: Indices) -> Indices:
    """Those of the pairs whose grey versions are near each other."""
    alike: npt.NDArray[np.bool_] = np.abs(greys[pairs[:, 0]] - greys[pairs[:, 1]]).mean(1) <= GREY_LEVELS
    return pairs[alike]


def _same(pictures: Sequence[Pixels], chosen: Indices) -> Indices:
    """Pairs int64[m, 2] of identical pictures among the chosen: each with the first like it."""
    first: dict[tuple[Any, bytes], int] = {}
    pairs = [(first.setdefault(_key(pictures[index]), int(index)), int(index)) for index in chosen]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _key(picture: Pixels) -> tuple[Any, bytes]:
    import hashlib

    return picture.shape, hashlib.sha256(picture.tobytes()).digest()


def _joined(nodes: int, pairs: Indices) -> Indices:
    """The connected component of each node, int64[nodes], numbered by their first nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(nodes, nodes))
    _, found = connected_components(graph, directed=False)
    _, leaders, component = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(leaders))[component].astype(np.int64)
