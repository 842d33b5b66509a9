"""Draw previews: a downsampled slide with its tissue outline, kept tiles and rejected squares."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from clotkit.config import TilingConfig
from clotkit.errors import NoTissue
from clotkit.slides.pixels import Pixels, box_sums
from clotkit.tiling.grid_tilers import stride_px
from clotkit.tiling.microns import scale_of, side_px
from clotkit.tiling.overview import SlideContext, read_overview, slide_context, slide_overview
from clotkit.tiling.overview_tilers import piece_grid
from clotkit.tiling.tilers import open_for

LONG_PX = 1600  # maximum of a preview's long side
MIN_BOX_PX = 2.0  # on the preview; smaller squares are not drawn: they merge, and there may be millions
WIDE_BOX_PX = 12  # on the preview; from this size on, kept tiles have lines of 2 px
GRID_TILERS = ("patches", "darkest")  # tilers that choose squares of a grid
WHOLE_SIDE_TILERS = ("chunks", "strips")  # tilers that cut across the whole slide
KEPT, REJECTED, OUTLINE = (0, 90, 255), (225, 0, 0), (0, 110, 40)  # blue, red, dark green
QUALITY = 88

Mask = npt.NDArray[np.bool_]
Corners = npt.NDArray[np.int32]  # [n, 2] x and y of top left corners, full-resolution pixels


def write_preview(out: Path, slide: Path, tiling: TilingConfig, xy: Corners, key: str) -> None:
    """Draw the slide and write it to the file `out`, a JPEG with `preview_key(key)` in its comment.

    Args:
        out: The file to write.
        slide: The slide's file.
        tiling: How the tiles were cut.
        xy: Top left corners of the kept tiles, int32[n, 2].
        key: The key of the tiles' shard.

    Raises:
        SlideError: The slide cannot be read.
    """
    picture = draw_preview(slide, tiling, xy)
    picture.save(out, "JPEG", quality=QUALITY, subsampling=0, comment=preview_key(key).encode())


def draw_preview(path: Path, tiling: TilingConfig, xy: Corners) -> Image.Image:
    """Draw a slide, at most LONG_PX long: tissue outline green, kept tiles blue, rejected squares red.

    `xy` int32[n, 2] are the top left corners of the kept tiles. Memory holds the preview and what reading an overview
    takes, whatever the slide's size.

    Raises:
        SlideError: The slide cannot be read.
    """
    slide = open_for(path, tiling)
    if tiling.mpp:
        tiling = scale_of(tiling, slide.facts.get("mpp")).tiling
    context = slide_context(slide)
    size_px, origin = (context.slide.width_px, context.slide.height_px), np.array(context.origin, np.int32)
    downsample = preview_downsample(slide.width_px, slide.height_px)
    view, mask = _overview_and_mask(context, downsample)
    scanned = Image.fromarray(np.where(outline(mask)[..., None], np.array(OUTLINE, np.uint8), view))
    canvas = (-(-slide.width_px // downsample), -(-slide.height_px // downsample))
    picture = Image.new("RGB", canvas, context.background)
    picture.paste(scanned, tuple((origin // downsample).tolist()))
    side = tiling.tile_px * tiling.downsample
    if tiling.name in GRID_TILERS and side >= MIN_BOX_PX * downsample:
        rejected = rejected_squares(mask, downsample, size_px, side, stride_px(tiling), xy - origin)
        _boxes(picture, rejected + origin, (side, side), downsample, REJECTED)
    _boxes(picture, xy, kept_size_px(tiling, *size_px), downsample, KEPT)
    return picture


def preview_downsample(width_px: int, height_px: int) -> int:
    """Return the smallest power of 2 that brings the long side to LONG_PX or below.

    Powers of 2 match the tiles of TIFF files.
    """
    return 1 << (-(-max(width_px, height_px) // LONG_PX) - 1).bit_length()


def scanned_size_px(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Return width and height of the scanned part of a slide, from its facts: all but a black surround."""
    _, _, width, height = facts.get("scanned", (0, 0, facts["width_px"], facts["height_px"]))
    return width, height


def kept_size_px(
    tiling: TilingConfig, width_px: int, height_px: int, facts: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """Return width and height of the slide area that a kept tile shows, full-resolution pixels.

    `width_px` and `height_px` are those of what was scanned; see `scanned_size_px`. `facts` are the slide's, of tiles
    that were cut by micrometres.
    """
    if tiling.name in WHOLE_SIDE_TILERS:
        return piece_grid(tiling.name, width_px, height_px)[1]
    side = side_px(tiling, facts or {})
    return side, side


def rejected_squares(
    mask: Mask, downsample: int, size_px: tuple[int, int], side_px: int, stride_px: int, xy: Corners
) -> Corners:
    """Return corners int32[m, 2] of grid squares that have tissue and overlap no kept tile, row by row.

    Args:
        mask: Tissue on an overview, bool[h, w].
        downsample: Slide pixels per overview pixel.
        size_px: Width and height of the slide.
        side_px: Side of a square, and of a kept tile.
        stride_px: Distance between neighbouring squares.
        xy: Corners of the kept tiles, int32[n, 2].
    """
    rejected = _squares_with_tissue(mask, downsample, size_px, side_px, stride_px)
    for x, y in xy.astype(np.int64):
        rejected[_overlapping(y, side_px, stride_px), _overlapping(x, side_px, stride_px)] = False
    rows, columns = np.nonzero(rejected)
    return (np.stack([columns, rows], axis=1) * stride_px).astype(np.int32)


def _overlapping(start_px: int, side_px: int, stride_px: int) -> slice:
    """Return the grid rows (or columns) whose squares overlap a square that starts at `start_px`."""
    return slice(max(0, (start_px - side_px) // stride_px + 1), max(0, -(-(start_px + side_px) // stride_px)))


def outline(mask: Mask) -> Mask:
    """Return the pixels of a mask, bool[h, w], with a neighbour outside the mask or the image.

    A pixel has four neighbours.
    """
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def preview_key(shard_key: str) -> str:
    """Return the key of a preview: it changes with the shard and with this module's code."""
    return hashlib.sha256(f"{shard_key} {_code()}".encode()).hexdigest()


def preview_key_of(file: BinaryIO) -> str | None:
    """Return the key in a preview's comment, None if the file is not a preview."""
    try:
        with Image.open(file, formats=["JPEG"]) as picture:
            comment = picture.info.get("comment", b"")
    except (OSError, SyntaxError):  # Pillow raises SyntaxError for some broken headers
        return None
    return bytes(comment).decode("ascii", "replace")


def _overview_and_mask(context: SlideContext, downsample: int) -> tuple[Pixels, Mask]:
    """Return the slide's overview and its tissue mask, empty if the tissue is too faint to find here."""
    try:
        overview = slide_overview(context, downsample)
    except NoTissue:
        view = read_overview(context.slide, downsample, context.background)
        return view, np.zeros(view.shape[:2], bool)
    return overview.pixels, overview.tissue.mask


def _squares_with_tissue(mask: Mask, downsample: int, size_px: tuple[int, int], side_px: int, stride_px: int) -> Mask:
    """Return which grid squares have a pixel of `mask`, bool[rows, columns]."""
    lefts, tops = (np.arange(0, px, stride_px) for px in size_px)
    left, right = lefts // downsample, -(-(lefts + side_px) // downsample)
    top, bottom = (tops // downsample)[:, None], -(-(tops + side_px) // downsample)[:, None]
    return np.asarray(box_sums(mask, top, bottom, left, right) > 0)


def _boxes(
    picture: Image.Image, xy: Corners, size_px: tuple[int, int], downsample: int, colour: tuple[int, ...]
) -> None:
    pen = ImageDraw.Draw(picture)
    line_px = 2 if colour == KEPT and min(size_px) >= WIDE_BOX_PX * downsample else 1
    for x, y in (xy / downsample).tolist():
        right, bottom = x + size_px[0] / downsample - 1, y + size_px[1] / downsample - 1
        corners = (round(x), round(y), max(round(right), round(x)), max(round(bottom), round(y)))
        pen.rectangle(corners, outline=colour, width=line_px)


@cache
def _code() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
