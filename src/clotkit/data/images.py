"""Pictures of ordinary size (photographs, X-rays, ultrasound) into tiles: read whole, cut by a tiler of one word."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.config import TilingConfig
from clotkit.errors import SlideUnreadable, one_line
from clotkit.slides.pixels import Pixels

MOST_PIXELS = 64_000_000  # 192 MB as RGB: what is larger is a slide, and slides are read in pieces
EDGE_LEVEL = 150  # of 255: brighter pixels are contours, where bone and cartilage send the most back

PictureTiler = Callable[[Pixels, TilingConfig], Pixels]


def read_image(path: Path) -> Pixels:
    """Read a picture as RGB, uint8[H, W, 3]: the first frame of it, turned as its EXIF says.

    Transparent pixels are shown over white; grey pictures of more than 8 bits are scaled by their own range, darkest
    pixel to brightest. Raises SlideUnreadable when the file is missing, no picture, damaged, cut short, or larger than
    MOST_PIXELS.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's doubts about odd but sound files; the size is checked here
            with Image.open(path) as file:
                _check_size(path, *file.size)
                file.load()
                return _as_rgb(ImageOps.exif_transpose(file))
    except SlideUnreadable:
        raise
    except Exception as error:  # Pillow's decoders raise what they like: struct.error, SyntaxError, ValueError
        raise SlideUnreadable(f"{path}: no sound picture: {_why(error, path)}; save it again") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise SlideUnreadable(
            f"{path}: {width} x {height} px, allowed are {MOST_PIXELS:,} px in all; make it smaller, or a slide of it"
        )


def _why(error: Exception, path: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error, path)


def _as_rgb(image: Any) -> Pixels:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        return _scaled(np.asarray(image, np.float64))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"), np.uint8)


def _scaled(grey: Any) -> Pixels:
    """Grey float64[H, W] of any range as uint8[H, W, 3]; a constant picture is black."""
    low, high = float(grey.min()), float(grey.max())
    if not np.isfinite(high - low):
        raise ValueError("some pixels are not finite numbers")
    levels = np.rint((grey - low) * (255 / max(high - low, np.finfo(float).tiny)))
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def whole(picture: Pixels, config: TilingConfig) -> Pixels:
    """The picture as one tile, uint8[1, tile_px, tile_px, 3]: stretched to a square, antialiased (bicubic).

    One that has that size already passes through untouched.
    """
    return resized(picture, config.tile_px, config.tile_px)[None]


def parts(picture: Pixels, config: TilingConfig) -> Pixels:
    """The picture, shrunk by `downsample`, as a grid of squares, uint8[n, tile_px, tile_px, 3], row by row.

    The squares cover it: the last ones of a row and a column are shifted in. Of more than `max_tiles` a coarser grid is
    taken, evenly spread, of at most that many. A side shorter than a tile is filled up with its outermost pixels.
    """
    height, width = picture.shape[:2]
    small = resized(picture, max(1, round(height / config.downsample)), max(1, round(width / config.downsample)))
    missing = [max(0, config.tile_px - side) for side in small.shape[:2]]
    full = np.pad(small, [(gap // 2, gap - gap // 2) for gap in missing] + [(0, 0)], mode="edge")
    tops, lefts = (_starts(side, config.tile_px) for side in full.shape[:2])
    rows, columns = _coarser(len(tops), len(lefts), config.max_tiles)
    side = config.tile_px
    return np.stack(
        [full[top : top + side, left : left + side] for top in _evenly(tops, rows) for left in _evenly(lefts, columns)]
    )


def edges(picture: Pixels, config: TilingConfig) -> Pixels:
    """The tiles of `parts` with nothing but their brightest pixels, uint8[n, tile_px, tile_px, 3].

    Pixels whose grey value (luma of ITU-R BT.601) is not above EDGE_LEVEL are black: in X-ray and ultrasound pictures
    what is left are the contours.
    """
    tiles = parts(picture, config)
    luma = tiles @ np.array([0.299, 0.587, 0.114], np.float32)
    # rounded: the weights sum to 1 only nearly, and a grey of exactly EDGE_LEVEL must not pass
    return np.where((np.rint(luma) > EDGE_LEVEL)[..., None], tiles, np.uint8(0))


IMAGE_TILERS: dict[str, PictureTiler] = {"whole": whole, "parts": parts, "edges": edges}


def resized(picture: Pixels, height: int, width: int) -> Pixels:
    """A picture at another size, uint8[height, width, 3], bicubic and antialiased; itself where it has that size."""
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC), np.uint8)


def _starts(side: int, tile_px: int) -> list[int]:
    return [min(start, side - tile_px) for start in range(0, side, tile_px)]


def _coarser(rows: int, columns: int, most: int) -> tuple[int, int]:
    """A grid of at most `most` squares in about the proportions of the given one."""
    if rows * columns <= most:
        return rows, columns
    fewer = min(max(1, round((most * rows / columns) ** 0.5)), rows, most)
    across = min(columns, most // fewer)
    return min(rows, most // across), across


def _evenly(starts: list[int], count: int) -> list[int]:
    """`count` of them, the middle one of as many equal stretches."""
    return [starts[(2 * index + 1) * len(starts) // (2 * count)] for index in range(count)]
