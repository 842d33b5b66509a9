"""Prediction: batches of one shape, smaller ones once memory runs out, all devices at once. Knows arrays, not Keras."""

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Tiles = npt.NDArray[np.uint8]
Forward = Callable[[Tiles], npt.ArrayLike]  # one batch through a network: [n, H, W, 3] -> [n, C]
Predict = Callable[[Tiles], npt.NDArray[np.float32]]

MOST_DIFFERENCE = 1e-3  # in a probability, for a lower precision to stand in for float32
OUT_OF_MEMORY = re.compile(
    r"\bOOM\b|resource.?exhausted|out.of.memory|alloc_failed|(failed to|unable to|could not) allocate", re.IGNORECASE
)


class Predictor:
    """Predict any number of tiles: uint8[n, H, W, 3] -> float32[n, C].

    Every network call has the same shape, the last one padded, because a new shape costs a trace; so a tile's
    probabilities do not depend on the tiles beside it. With several `forwards`, one a device, each takes its share of
    the tiles in a thread of its own. When a device runs out of memory the batch is halved, for good, and `notes` has
    one line that says so; with single tiles the error passes through.
    """

    def __init__(self, forwards: Sequence[Forward], batch_tiles: int, notes: Sequence[str] = ()) -> None:
        self.notes = list(notes)
        self.batch_tiles = -(-batch_tiles // len(forwards))  # of one device
        self._forwards = forwards
        self._first, self._lock = self.batch_tiles, threading.Lock()
        self._threads = ThreadPoolExecutor(len(forwards), "predict") if len(forwards) > 1 else None

    def __call__(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        """Probabilities float32[n, C], row by row those of `tiles` uint8[n, H, W, 3]; n may be 0."""
        if self._threads is None:
            return self._on_one(self._forwards[0], tiles)
        shares = np.array_split(tiles, len(self._forwards))  # [n, ...] -> one [n / devices, ...] a device
        used = [pair for pair in zip(self._forwards, shares, strict=True) if len(pair[1])]
        parts = self._threads.map(self._on_one, *zip(*used or [(self._forwards[0], tiles)], strict=True))
        return np.concatenate(list(parts))

    def _on_one(self, forward: Forward, tiles: Tiles) -> npt.NDArray[np.float32]:
        """Tiles through one device, batch by batch, each with the size that holds when it is its turn."""
        parts: list[npt.NDArray[np.float32]] = []
        start = 0
        while start < len(tiles) or not parts:
            batch_tiles = self.batch_tiles
            part = tiles[start : start + batch_tiles]
            try:
                rows = np.asarray(forward(_padded(part, batch_tiles)), np.float32)  # [batch_tiles, C]
            except Exception as error:
                if batch_tiles == 1 or not is_out_of_memory(error):
                    raise
                self._shrink(batch_tiles // 2)
                continue
            parts.append(rows[: len(part)])
            start += len(part)
        return np.concatenate(parts)

    def _shrink(self, batch_tiles: int) -> None:
        """Smaller batches from here on; where two devices fail at the same size, once."""
        with self._lock:
            if batch_tiles < self.batch_tiles:
                before, self.batch_tiles = self._note(), batch_tiles
                self.notes[:] = [note for note in self.notes if note != before] + [self._note()]

    def _note(self) -> str:
        return f"memory ran out with batches of {self._first} tiles; {self.batch_tiles} at a time since then"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says, by its type or in words, that a GPU or the machine has no memory left."""
    types = {kind.__name__ for kind in type(error).__mro__}
    return bool(types & {"ResourceExhaustedError", "MemoryError"} or OUT_OF_MEMORY.search(str(error)))


def largest_difference(one: Predict, other: Predict, tile_px: int, tiles: int) -> float:
    """The largest difference between two networks' probabilities on `tiles` tiles of noise; infinity for a NaN."""
    sample = noise(tile_px, tiles)
    difference = np.abs(one(sample) - other(sample)).max()  # [n, C] -> one figure
    return float(difference) if np.isfinite(difference) else float("inf")


def noise(tile_px: int, tiles: int) -> Tiles:
    """Tiles uint8[tiles, tile_px, tile_px, 3]: a colour each, little grain to some; always the same.

    Much grain drives a network to 0 or 1, where no precision makes a difference.
    """
    rng = np.random.default_rng(0)
    colour = rng.uniform(60, 250, (tiles, 1, 1, 3))
    grain = rng.normal(size=(tiles, tile_px, tile_px, 3)) * np.linspace(1, 12, tiles)[:, None, None, None]
    return np.asarray(np.clip(colour + grain, 0, 255), np.uint8)


def in_views(forward: Forward, views: int) -> Forward:
    """`forward` on each view of a batch, and the mean of what it gives."""
    if views == 1:
        return forward
    return lambda tiles: np.mean([np.asarray(forward(view)) for view in views_of(tiles, views)], axis=0)


def views_of(tiles: Tiles, views: int) -> list[Tiles]:
    """The tiles [n, S, S, 3] as they are, and mirrored (2 views), and in all eight turns and mirrors (8)."""
    turns = 4 if views == 8 else 1
    turned = [np.rot90(tiles, turn, (1, 2)) for turn in range(turns)]
    mirrored = [view[:, :, ::-1] for view in turned] if views > 1 else []
    return [np.ascontiguousarray(view) for view in [*turned, *mirrored]]


def _padded(part: Tiles, batch_tiles: int) -> Tiles:
    """[n, H, W, 3] -> [batch_tiles, H, W, 3], black tiles at the end."""
    if len(part) == batch_tiles:
        return part
    return np.concatenate([part, np.zeros((batch_tiles - len(part), *part.shape[1:]), part.dtype)])
