"""Measure an encoder in a process of its own: seconds and memory. A batch that fits is chosen by it.

The memory of a batch grows with its tiles, so two sizes give it for all. Whatever the encoder does there, this process
goes on.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from clotkit.batching import noise
from clotkit.errors import ConfigError
from clotkit.members.encoders.encoder import BATCH_TILES, GPU_BATCH_TILES, FoundEncoder
from clotkit.stores import Store
from clotkit.tiling.tilers import Batch
from clotkit.workers import Ended, Limits, Task, stream

SMALL, LARGE = 1, BATCH_TILES  # tiles of the two batches that are measured
PROBE_S = 600.0  # the longest measurement
ADDRESS_MB = 2**20  # address space of the measurement: libraries map far more than they use
FILE = "encoder.json"  # in a folder of features: the encoder, and its batch


@dataclass(frozen=True)
class EncoderTiming:
    """The time and memory of an encoder on this machine."""

    width: int  # number of features of a tile
    load_s: float  # to load it, with its first tile
    tile_s: float  # to encode a tile of a batch
    base_mb: float  # peak memory of a process that has loaded it, without any batch
    tile_mb: float  # more for each tile of a batch
    on_gpu: bool
    pads: bool = True  # whether a partial batch takes as long as a whole one

    def peak_mb(self, batch_tiles: int) -> float:
        """Return the peak memory with batches of this size, in MB."""
        return self.base_mb + self.tile_mb * batch_tiles

    def slide_s(self, tiles: int, batch_tiles: int) -> float:
        """Return the seconds to encode the tiles of a slide in batches of this size."""
        return self.tile_s * (-(-tiles // batch_tiles) * batch_tiles if self.pads else tiles)

    def batch_within(self, memory_mb: float) -> int:
        """Return the tiles of a batch: the default, halved until it fits `memory_mb`; 1 if none does."""
        batch = GPU_BATCH_TILES if self.on_gpu else BATCH_TILES
        while batch > 1 and self.peak_mb(batch) > memory_mb:
            batch //= 2
        return batch


def time_encoder(encoder: FoundEncoder, tile_px: int) -> EncoderTiming:
    """Load an encoder in two processes of its own, one after the other, and measure them.

    Raises ConfigError if it cannot be loaded, or needs more memory than there is.
    """
    small, large = (_measured(encoder, tile_px, batch) for batch in (SMALL, LARGE))
    tile_mb = max(0.0, large.peak_mb - small.peak_mb) / (LARGE - SMALL)
    base_mb = large.peak_mb - LARGE * tile_mb
    found = large.facts
    tile_s, on_gpu, pads = found["batch_s"] / LARGE, found["on_gpu"], found["pads"]
    return EncoderTiming(found["width"], found["load_s"], tile_s, base_mb, tile_mb, on_gpu, pads)


def _measured(encoder: FoundEncoder, tile_px: int, batch_tiles: int) -> Ended:
    """Return the end of a process that encoded batches of this size. Raises ConfigError if it failed."""
    work = partial(probe_work, encoder, tile_px, batch_tiles)
    tasks = [Task(encoder.name, encoder.path, ())]
    for event in stream(tasks, Limits(PROBE_S, ADDRESS_MB), 1, work):
        if isinstance(event, Ended):
            if event.code is not None:
                raise ConfigError(f"encoder {encoder.name}: {event.reason}")
            return event
    raise ConfigError(f"encoder {encoder.name}: its measurement was stopped")


def probe_work(
    encoder: FoundEncoder, tile_px: int, batch_tiles: int, task: Task
) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Load the encoder, encode two batches, and yield the width and the seconds.

    Raises ConfigError as FoundEncoder.load does.
    """
    started = time.perf_counter()
    loaded, tiles = encoder.load(tile_px, batch_tiles), noise(tile_px, batch_tiles)
    load_s = time.perf_counter() - started
    loaded.encode(tiles)
    started = time.perf_counter()
    loaded.encode(tiles)
    batch_s = time.perf_counter() - started
    network = {"width": loaded.width, "on_gpu": loaded.on_gpu, "pads": loaded.pads}
    yield 0, network | {"load_s": load_s, "batch_s": batch_s}


@dataclass(frozen=True)
class EncoderUse:
    """The encoder of a folder of features, and its batch; the next run takes the same."""

    encoder: str  # name
    sha256: str
    width: int  # number of features of a tile
    batch_tiles: int


def read_use(store: Store) -> EncoderUse | None:
    """Return how the features in a store were made; None if nothing says so."""
    try:
        return EncoderUse(**json.loads(store.read_text(FILE)))
    except (OSError, ValueError, TypeError):
        return None


def write_use(store: Store, use: EncoderUse) -> None:
    """Write how the features in a store are made, unless it says so already."""
    if read_use(store) != use:
        store.atomic_write_text(FILE, json.dumps(vars(use), indent=2) + "\n")


def described_timing(timing: EncoderTiming, batch_tiles: int) -> str:
    """Return a line for people on an encoder and its batch."""
    return (
        f"{timing.width} features; batches of {batch_tiles} tiles, {timing.tile_s:.3g} s a tile, "
        f"{timing.peak_mb(batch_tiles):,.0f} MB at most; loaded in {timing.load_s:.1f} s"
    )
