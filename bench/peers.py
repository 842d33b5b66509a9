"""The readers of one level: each does the whole job on one slide and returns its number of tiles.

The job is a tissue map and the 16 best tiles of 1024 px as uint8 of 256 px. Every peer is written for this benchmark
from a description of its method; none uses the tile index.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.jobs import BEST, Job
from bench.peer_scripts.common import BLOCK_PX, VIEW, Corners, Pixels, best_squares
from clotkit.slides.reader import open_slide
from clotkit.tiling.tilers import Batch, cut_slide, tile_slide

TILES, SIDE_PX, OUT_PX = BEST.most, BEST.side_px, BEST.tile_px


def decode_whole(path: Path) -> int:
    """Decode every pixel once, in order, with libvips: the limit. The mean it keeps costs a little too."""
    import pyvips

    pyvips.Image.new_from_file(str(path), access="sequential").avg()
    return 0


def ours(path: Path, job: Job) -> int:
    """Cut a job's tiles with clotkit."""
    return _count(tile_slide(path, job.tiling))


def ours_unindexed(path: Path) -> int:
    """Cut the 16 best tiles with clotkit, without the tile index."""
    slide: Any = open_slide(path)
    slide.table = None
    return _count(cut_slide(slide, BEST.tiling))


def vips_thumbnail(path: Path) -> int:
    """Use pyvips the usual way: thumbnail, choose, crop from the image opened for random access."""
    import pyvips

    image = pyvips.Image.new_from_file(str(path), access="random")
    size = {"width": -(-image.width // VIEW), "height": -(-image.height // VIEW)}
    view = pyvips.Image.thumbnail(str(path), size["width"], height=size["height"], size="force").numpy()
    downsample, tiles = SIDE_PX // OUT_PX, []
    for x, y in best_squares(view, (image.width, image.height), BEST):
        width, height = min(SIDE_PX, image.width - x), min(SIDE_PX, image.height - y)
        tile = image.crop(x, y, width, height).embed(0, 0, SIDE_PX, SIDE_PX, extend="white")
        tiles.append(tile.shrink(downsample, downsample).numpy())
    return len(tiles)


def openslide_grid(path: Path) -> int:
    """Read an overview block by block with OpenSlide, then the chosen squares."""
    import openslide

    with openslide.OpenSlide(path) as slide:
        return _grid_loop(slide)


def tiffslide_grid(path: Path) -> int:
    """Run the same loop with tiffslide, which has OpenSlide's interface."""
    import tiffslide

    with tiffslide.TiffSlide(path) as slide:
        return _grid_loop(slide)


def tifffile_whole(path: Path) -> int:
    """Read the whole slide as one array with tifffile; do the rest with numpy."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        whole = page.asarray(maxworkers=1)
    height, width = whole.shape[:2]
    view = np.concatenate([_downsampled(whole[top : top + VIEW], VIEW) for top in range(0, height, VIEW)])
    tiles = []
    for x, y in best_squares(view, (width, height), BEST):
        tile = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
        part = whole[y : y + SIDE_PX, x : x + SIDE_PX]
        tile[: part.shape[0], : part.shape[1]] = part
        tiles.append(_downsampled(tile, SIDE_PX // OUT_PX))
    return len(tiles)


def second_place(path: Path) -> int:
    """Follow the second place: all at 1/24, blocks of 28 px with contrast, distinct windows of 224 px."""
    import pyvips

    scale, block, side, contrast = 24, 28, 224, 90
    view = pyvips.Image.new_from_file(str(path), access="sequential").resize(1 / scale).numpy()
    rows, columns = (max(side, -(-length // block) * block) for length in view.shape[:2])
    page = np.full((rows, columns, 3), 255, np.uint8)
    page[: view.shape[0], : view.shape[1]] = view
    lines = page.mean(axis=2).reshape(rows, columns // block, block)  # [rows, block columns, block]
    busy = np.ptp(lines, axis=2).reshape(rows // block, block, -1).max(axis=1) > contrast
    chosen: Corners = []
    for least in (0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0):
        _add_windows(chosen, busy, side // block, least)
    return len([page[y * block : y * block + side, x * block : x * block + side].copy() for x, y in chosen])


def twenty_fifth_place(path: Path) -> int:
    """Follow the 25th place: a thumbnail at most 20,000 px wide, its 16 darkest squares of 1024 px."""
    import pyvips
    from PIL import Image

    view = pyvips.Image.thumbnail(str(path), 20_000, height=10_000_000, size="down").numpy()
    squares = []
    for top in range(0, view.shape[0], SIDE_PX):
        for left in range(0, view.shape[1], SIDE_PX):
            square = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
            part = view[top : top + SIDE_PX, left : left + SIDE_PX]
            square[: part.shape[0], : part.shape[1]] = part
            squares.append((float(square.mean()), top, left, square))
    darkest = sorted(squares, key=lambda entry: entry[:3])[:TILES]
    return len([np.asarray(Image.fromarray(square).resize((OUT_PX, OUT_PX))) for *_, square in darkest])


def approach_1(path: Path) -> int:
    """Follow Approach 1: squares of the short side, each read whole, filtered, squeezed into one tile.

    Its step drops the last square of some slides; a square slide has one.
    """
    import openslide
    from PIL import Image

    slide, tiles = openslide.OpenSlide(path), 0
    width, height = slide.dimensions
    side, long = min(width, height), max(width, height)
    count = -(-long // side)
    step = side - int((count * side - long) / (count - 1)) if count > 1 else 0
    for offset in range(0, count * step or 1, step or 1):
        if offset + side > long:
            break
        corner = (offset, 0) if width >= height else (0, offset)
        square = slide.read_region(corner, 0, (side, side)).convert("RGB")
        values = np.array(square)
        if np.count_nonzero(values) > 0.2 * values.size and np.count_nonzero(values == 255) < 0.8 * values.size:
            tile = np.array(square.resize((OUT_PX, OUT_PX), Image.Resampling.LANCZOS))
            flat = [np.count_nonzero(band == np.median(band)) for band in np.moveaxis(tile, 2, 0)]
            tiles += int(max(flat) < 0.99 * OUT_PX**2)
    return tiles


def blockwise_view(slide: Any) -> Pixels:
    """Return an OpenSlide's full resolution, downsampled by VIEW block by block."""
    width, height = slide.dimensions
    view = np.empty((-(-height // VIEW), -(-width // VIEW), 3), np.uint8)
    for top in range(0, height, BLOCK_PX):
        for left in range(0, width, BLOCK_PX):
            size = min(BLOCK_PX, width - left), min(BLOCK_PX, height - top)
            block = slide.read_region((left, top), 0, size).convert("RGB").reduce(VIEW)
            y, x = top // VIEW, left // VIEW
            view[y : y + block.height, x : x + block.width] = np.asarray(block)
    return view


def _grid_loop(slide: Any) -> int:
    tiles = []
    for x, y in best_squares(blockwise_view(slide), slide.dimensions, BEST):
        square = slide.read_region((x, y), 0, (SIDE_PX, SIDE_PX)).convert("RGB")
        tiles.append(np.asarray(square.reduce(SIDE_PX // OUT_PX)))
    return len(tiles)


def _downsampled(pixels: Pixels, downsample: int) -> Pixels:
    """Return means of boxes of `downsample` px; the last row and column repeat the edge where needed."""
    height, width = (-(-length // downsample) for length in pixels.shape[:2])
    missing = [(0, height * downsample - pixels.shape[0]), (0, width * downsample - pixels.shape[1]), (0, 0)]
    whole = np.pad(pixels, missing, mode="edge") if max(missing)[1] else pixels
    means = whole.reshape(height, downsample, width, downsample, 3).mean(axis=(1, 3), dtype=np.float32)
    return np.asarray(np.rint(means), np.uint8)


def _add_windows(chosen: Corners, busy: npt.NDArray[np.bool_], side: int, least: float) -> None:
    """Add windows of `side` blocks with a share of at least `least` busy blocks, in place, up to TILES.

    A window that shares half of its area with a chosen one is dropped.
    """
    sums = np.pad(busy.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    share = (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
    for y, x in np.argwhere(share >= least).tolist():
        if len(chosen) == TILES:
            return
        shared = [max(0, side - abs(x - left)) * max(0, side - abs(y - top)) for left, top in chosen]
        if not shared or max(shared) / (2 * side**2 - max(shared)) < 0.5:
            chosen.append((x, y))


def _count(pieces: Any) -> int:
    return sum(len(piece.tiles) for piece in pieces if isinstance(piece, Batch))
