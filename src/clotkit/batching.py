"""Predict tiles in batches of one shape, on all devices at once, smaller ones when memory runs out.

This module knows arrays, no framework.
"""

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

TileArray = npt.NDArray[np.uint8]
Forward = Callable[[TileArray], npt.ArrayLike]  # one batch through a network: [n, H, W, 3] -> [n, C]
Predict = Callable[[TileArray], npt.NDArray[np.float32]]

MAX_DIFFERENCE = 1e-3  # of a probability in half precision from the one in float32
OUT_OF_MEMORY = re.compile(
    r"\bOOM\b|resource.?exhausted|out.of.memory|alloc_failed|bad.?alloc|(failed to|unable to|could not) allocate",
    re.IGNORECASE,
)


class Predictor:
    """A network as a function of any number of tiles: uint8[n, H, W, 3] -> float32[n, C].

    Every network call has the same shape, the last batch padded, because TensorFlow traces each new shape; so the
    probabilities of a tile do not depend on the tiles beside it. Without `pads` the last batch is as small as it is,
    for a runtime that takes any size and gives the same rows. With several `forwards`, one per device, each takes an
    equal share of the tiles in its own thread. When a device runs out of memory the batch is halved permanently, and
    one line in `notes` records it; when a single tile does not fit, the error passes through.
    """

    def __init__(
        self, forwards: Sequence[Forward], batch_tiles: int, notes: Sequence[str] = (), pads: bool = True
    ) -> None:
        self.notes, self.pads = list(notes), pads
        self.batch_tiles = -(-batch_tiles // len(forwards))  # tiles in a batch of one device
        self._forwards = forwards
        self._initial_batch_tiles, self._lock = self.batch_tiles, threading.Lock()
        self._threads = ThreadPoolExecutor(len(forwards), "predict") if len(forwards) > 1 else None

    def __call__(self, tiles: TileArray) -> npt.NDArray[np.float32]:
        """Return the probabilities float32[n, C] of `tiles` uint8[n, H, W, 3], row by row; n may be 0."""
        if self._threads is None:
            return self._predict_on_device(self._forwards[0], tiles)
        shares = np.array_split(tiles, len(self._forwards))  # [n, ...] -> one [n / devices, ...] per device
        used = [pair for pair in zip(self._forwards, shares, strict=True) if len(pair[1])]
        parts = self._threads.map(self._predict_on_device, *zip(*used or [(self._forwards[0], tiles)], strict=True))
        return np.concatenate(list(parts))  # [n, C]

    def _predict_on_device(self, forward: Forward, tiles: TileArray) -> npt.NDArray[np.float32]:
        """Predict tiles on one device, batch by batch, each of the batch size in force when its turn comes."""
        parts: list[npt.NDArray[np.float32]] = []
        start = 0
        while start < len(tiles) or not parts:
            batch_tiles = self.batch_tiles
            part = tiles[start : start + batch_tiles]
            try:
                size = batch_tiles if self.pads else max(len(part), 1)
                rows = np.asarray(forward(_padded(part, size)), np.float32)  # [size, C]
            except Exception as error:
                if batch_tiles == 1 or not is_out_of_memory(error):
                    raise
                self._reduce_batch(batch_tiles // 2)
                continue
            parts.append(rows[: len(part)])
            start += len(part)
        return np.concatenate(parts)  # [n, C]

    def _reduce_batch(self, batch_tiles: int) -> None:
        """Use smaller batches from now on; two devices that fail at the same size reduce it once."""
        with self._lock:
            if batch_tiles < self.batch_tiles:
                before, self.batch_tiles = self._note(), batch_tiles
                self.notes[:] = [note for note in self.notes if note != before] + [self._note()]

    def _note(self) -> str:
        return f"memory ran out with batches of {self._initial_batch_tiles} tiles; {self.batch_tiles} per batch since"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell by an error's type or message that a GPU or the machine ran out of memory.

    The backends have no exception class of their own for it, so their messages have to be read.
    """
    types = {kind.__name__ for kind in type(error).__mro__}
    return bool(types & {"ResourceExhaustedError", "MemoryError"} or OUT_OF_MEMORY.search(str(error)))


def largest_difference(one: Predict, other: Predict, tile_px: int, tiles: int) -> float:
    """Return the largest difference of two networks' probabilities on noise tiles; infinity for a NaN."""
    sample = noise(tile_px, tiles)
    difference = np.abs(one(sample) - other(sample)).max()  # [n, C] -> one figure
    return float(difference) if np.isfinite(difference) else float("inf")


def noise(tile_px: int, tiles: int) -> TileArray:
    """Return fixed noise tiles uint8[tiles, tile_px, tile_px, 3]: one colour each, with increasing grain.

    Strong grain drives a network to 0 or 1, where no precision makes a difference.
    """
    rng = np.random.default_rng(0)
    colour = rng.uniform(60, 250, (tiles, 1, 1, 3))
    grain = rng.normal(size=(tiles, tile_px, tile_px, 3)) * np.linspace(1, 12, tiles)[:, None, None, None]
    return np.asarray(np.clip(colour + grain, 0, 255), np.uint8)


def with_tta(forward: Forward, tta: int) -> Forward:
    """Return `forward` averaged over `tta` test-time augmentations of its batch."""
    if tta == 1:
        return forward
    return lambda tiles: np.mean([np.asarray(forward(view)) for view in tta_views(tiles, tta)], axis=0)


def tta_views(tiles: TileArray, tta: int) -> list[TileArray]:
    """Return the test-time augmentations of tiles [n, S, S, 3].

    `tta` is 1 (the tiles themselves), 2 (and mirrored) or 8 (all rotations by 90 degrees, and those mirrored).
    """
    rotations = [np.rot90(tiles, turn, (1, 2)) for turn in range(4 if tta == 8 else 1)]
    mirrored = [view[:, :, ::-1] for view in rotations] if tta > 1 else []
    return [np.ascontiguousarray(view) for view in [*rotations, *mirrored]]


def _padded(part: TileArray, batch_tiles: int) -> TileArray:
    """Pad a batch with black tiles: [n, H, W, 3] -> [batch_tiles, H, W, 3]."""
    if len(part) == batch_tiles:
        return part
    return np.concatenate([part, np.zeros((batch_tiles - len(part), *part.shape[1:]), part.dtype)])
