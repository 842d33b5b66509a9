"""Previews: a slide from afar with the tissue outlined, the tiles that a recipe keeps, and those that it leaves."""

import hashlib
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from clotkit.config import TilingConfig
from clotkit.errors import NoTissue
from clotkit.slides.pixels import Pixels, box_sums
from clotkit.slides.reader import Slide, open_slide
from clotkit.tiling.grid_tilers import stride_px
from clotkit.tiling.overview import SlideContext, read_overview, slide_overview
from clotkit.tiling.overview_tilers import piece_grid
from clotkit.tiling.tissue import sample_background

LONG_PX = 1600  # of a preview's long side, at most
MIN_BOX_PX = 2.0  # on the preview: smaller squares cannot be told apart, and there may be millions of them
WIDE_BOX_PX = 12  # on the preview: from here on kept tiles have lines of 2 px
GRID_TILERS = ("patches", "darkest")  # tilers that choose among the squares of a grid
WHOLE_SIDE_TILERS = ("chunks", "strips")  # tilers that cut across the whole slide
KEPT, REJECTED, OUTLINE = (0, 90, 255), (225, 0, 0), (0, 110, 40)  # blue, red, dark green
QUALITY = 88

Mask = npt.NDArray[np.bool_]
Corners = npt.NDArray[np.int32]  # [n, 2] x and y of top left corners, full-resolution pixels


def write_preview(out: Path, slide: Path, tiling: TilingConfig, xy: Corners, key: str) -> None:
    """Draw `slide` and write it to the file `out`, a JPEG which carries `preview_key(key)` in its comment.

    `xy` int32[n, 2] are the kept tiles' top left corners, `key` is their shard's key. Raises SlideError where the
    slide cannot be read.
    """
    picture = draw_preview(slide, tiling, xy)
    picture.save(out, "JPEG", quality=QUALITY, subsampling=0, comment=preview_key(key).encode())


def draw_preview(path: Path, tiling: TilingConfig, xy: Corners) -> Image.Image:
    """The slide at `path`, at most LONG_PX long: tissue outlined in green, kept tiles blue, rejected squares red.

    `xy` int32[n, 2] are the kept tiles' top left corners. Held at a time: the preview and what the reader's overview
    takes, whatever the slide's size. Raises SlideError where the slide cannot be read.
    """
    slide = open_slide(path)
    size_px = (slide.width_px, slide.height_px)
    downsample = preview_downsample(*size_px)
    view, mask = _seen(slide, downsample)
    picture = Image.fromarray(np.where(outline(mask)[..., None], np.array(OUTLINE, np.uint8), view))
    side = tiling.tile_px * tiling.downsample
    if tiling.name in GRID_TILERS and side >= MIN_BOX_PX * downsample:
        rejected = rejected_squares(mask, downsample, size_px, side, stride_px(tiling), xy)
        _boxes(picture, rejected, (side, side), downsample, REJECTED)
    _boxes(picture, xy, kept_size_px(tiling, *size_px), downsample, KEPT)
    return picture


def preview_downsample(width_px: int, height_px: int) -> int:
    """The least power of 2 that brings the long side to LONG_PX or below; powers of 2 suit the tiles of TIFF files."""
    return 1 << (-(-max(width_px, height_px) // LONG_PX) - 1).bit_length()


def kept_size_px(tiling: TilingConfig, width_px: int, height_px: int) -> tuple[int, int]:
    """Width and height of what a kept tile shows of a slide, full-resolution pixels."""
    if tiling.name in WHOLE_SIDE_TILERS:
        return piece_grid(tiling.name, width_px, height_px)[1]
    side = tiling.tile_px * tiling.downsample
    return side, side


def rejected_squares(
    mask: Mask, downsample: int, size_px: tuple[int, int], side_px: int, stride_px: int, xy: Corners
) -> Corners:
    """Corners int32[m, 2] of the grid's squares of `side_px` with tissue in them that no kept tile overlaps.

    `mask` bool[h, w] is the tissue on an overview at `downsample` of a slide of `size_px` (width, height); squares
    begin every `stride_px`; `xy` int32[n, 2] are the corners of the kept tiles, squares of `side_px` too. Row by row.
    """
    rejected = _squares_with_tissue(mask, downsample, size_px, side_px, stride_px)
    for x, y in xy.astype(np.int64):
        rejected[_overlapping(y, side_px, stride_px), _overlapping(x, side_px, stride_px)] = False
    found_rows, found_columns = np.nonzero(rejected)
    return (np.stack([found_columns, found_rows], axis=1) * stride_px).astype(np.int32)


def _overlapping(start_px: int, side_px: int, stride_px: int) -> slice:
    """The grid's rows (or columns) of squares that a square beginning at `start_px` overlaps."""
    return slice(max(0, (start_px - side_px) // stride_px + 1), max(0, -(-(start_px + side_px) // stride_px)))


def outline(mask: Mask) -> Mask:
    """The pixels of a mask, bool[h, w], that touch what is not mask, or the edge, at one of their four sides."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def preview_key(shard_key: str) -> str:
    """What a preview of a shard's tiles carries: it changes with the shard, and with this module's code."""
    return hashlib.sha256(f"{shard_key} {_code()}".encode()).hexdigest()


def preview_key_of(file: BinaryIO) -> str | None:
    """The key in a preview's comment; None when the file is no preview."""
    try:
        with Image.open(file, formats=["JPEG"]) as picture:
            comment = picture.info.get("comment", b"")
    except (OSError, SyntaxError):  # the latter is what Pillow raises for some broken headers
        return None
    return bytes(comment).decode("ascii", "replace")


def _seen(slide: Slide, downsample: int) -> tuple[Pixels, Mask]:
    """The slide from afar and its tissue; none where it is too faint to be seen from here."""
    background = sample_background(slide)
    try:
        seen = slide_overview(SlideContext(slide, background), downsample)
    except NoTissue:
        view = read_overview(slide, downsample, background)
        return view, np.zeros(view.shape[:2], bool)
    return seen.pixels, seen.tissue.mask


def _squares_with_tissue(mask: Mask, downsample: int, size_px: tuple[int, int], side_px: int, stride_px: int) -> Mask:
    """Which squares of the grid have a pixel of `mask` in them, bool[rows, columns]."""
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
