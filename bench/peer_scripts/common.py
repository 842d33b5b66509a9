"""Measure a peer's job, and choose and downsample tiles for readers that leave this to their callers.

A script has a function that imports its peer and returns the job; `measured` runs it and prints one line of JSON.
"""

import argparse
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Corners = list[tuple[int, int]]
# left and top in the level, level, width, height -> uint8[height, width, 3 or 4]
Read = Callable[[int, int, int, int, int], Any]

VIEW = 64  # slide pixels per overview pixel
BLOCK_PX = 2048
THRESHOLD = 24  # grey levels from the background from which a pixel is tissue


@dataclass(frozen=True)
class Tiles:
    """The tiles that a job asks for."""

    tile_px: int
    downsample: int  # slide pixels per tile pixel
    most: int
    least_share: float  # of tissue in a tile

    @property
    def side_px(self) -> int:
        """The side of a tile in the slide."""
        return self.tile_px * self.downsample


Run = Callable[[str, Tiles], int]  # path of a slide, job -> number of tiles


def measured(load: Callable[[], Run]) -> None:
    """Run the job of the command line after the imports, and print its figures, or why the peer refused."""
    line = argparse.ArgumentParser()
    line.add_argument("path")
    line.add_argument("job", help="tile_px, downsample, most, least_share as JSON")
    options = line.parse_args()
    job = Tiles(**json.loads(options.job))
    try:
        importlib.import_module("PIL.Image")
        run = load()
        cpu, wall = cpu_s(), time.perf_counter()
        tiles = run(options.path, job)
        cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    except Exception as error:  # noqa: BLE001 - a peer may raise anything
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_mb": peak_mb(), "tiles": tiles}))


def cpu_s() -> float:
    """Return the CPU seconds of this process, with its threads, and of its ended children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def peak_mb() -> float:
    """Return the peak memory of this process, or of its largest child, in MB (2**20 bytes).

    Its own is VmHWM, because getrusage's begins with that of the process which started it.
    """
    with Path("/proc/self/status").open(encoding="ascii") as status:
        own_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return max(own_kb, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def naive_loop(size_px: tuple[int, int], downsamples: Sequence[float], read: Read, job: Tiles) -> int:
    """Return the number of tiles that a plain reader cuts: an overview first, then each tile.

    Args:
        size_px: width and height of the slide.
        downsamples: downsample of each level, the slide itself first.
        read: the reader.
        job: the tiles to cut.
    """
    level = best_level(downsamples, job.downsample)
    scale = downsamples[level]
    side_px, tiles = round(job.side_px / scale), []
    for x, y in best_squares(_overview(size_px, downsamples, read), size_px, job):
        left, top = round(x / scale), round(y / scale)
        width, height = (
            min(side_px, round(length / scale) - at) for length, at in zip(size_px, (left, top), strict=True)
        )
        tile = np.full((side_px, side_px, 3), 255, np.uint8)
        tile[:height, :width] = np.asarray(read(left, top, level, width, height))[..., :3]
        tiles.append(downsampled(tile, max(1, side_px // job.tile_px)))
    return len(tiles)


def best_level(downsamples: Sequence[float], downsample: float) -> int:
    """Return the lowest level that still has every pixel that `downsample` needs."""
    return max(range(len(downsamples)), key=lambda level: (downsamples[level] <= downsample + 0.01, downsamples[level]))


def _overview(size_px: tuple[int, int], downsamples: Sequence[float], read: Read) -> Pixels:
    """Return the slide downsampled by VIEW, block by block from the best level."""
    level = best_level(downsamples, VIEW)
    scale = downsamples[level]
    factor = max(1, round(VIEW / scale))
    block, (width, height) = BLOCK_PX // factor * factor, (int(length / scale) for length in size_px)
    rows = []
    for top in range(0, height, block):
        row = []
        for left in range(0, width, block):
            pixels = read(left, top, level, min(block, width - left), min(block, height - top))
            row.append(downsampled(np.ascontiguousarray(np.asarray(pixels)[..., :3]), factor))
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)


def best_squares(view: Pixels, size_px: tuple[int, int], job: Tiles) -> Corners:
    """Return corners of a job's grid squares with most tissue, for peers that leave the choice open.

    `view` is the slide of `size_px` (width, height), downsampled by VIEW.
    """
    border = np.concatenate([view[0], view[-1], view[:, 0], view[:, -1]])
    mask = np.abs(view.astype(np.int16) - np.median(border, axis=0).astype(np.int16)).max(axis=2) >= THRESHOLD
    cells = job.side_px // VIEW
    columns, rows = (-(-length // job.side_px) for length in size_px)
    page = np.zeros((rows * cells, columns * cells))
    height, width = (min(length, limit) for length, limit in zip(mask.shape, page.shape, strict=True))
    page[:height, :width] = mask[:height, :width]
    share = page.reshape(rows, cells, columns, cells).mean(axis=(1, 3)).ravel()
    chosen = [at for at in np.argsort(-share, kind="stable")[: job.most].tolist() if share[at] > 0]
    chosen = sorted(at for at in chosen if share[at] >= job.least_share)
    return [(at % columns * job.side_px, at // columns * job.side_px) for at in chosen]


def downsampled(pixels: Pixels, downsample: int) -> Pixels:
    """Return means of boxes of `downsample` px; those past an edge are of what there is."""
    from PIL import Image

    return pixels if downsample == 1 else np.asarray(Image.fromarray(pixels).reduce(downsample))
