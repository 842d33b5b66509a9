"""Read pictures of ordinary size (photographs, X-rays, ultrasound) and cut them into tiles."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.config import TilingConfig
from clotkit.errors import CodecUnsupported, PictureTooLarge, SlideUnreadable, one_line
from clotkit.slides.pixels import Pixels

MAX_PIXELS = 64_000_000  # 192 MB as RGB; a larger picture is a slide, and slides are read in pieces
EDGE_LEVEL = 150  # of 255; brighter pixels are contours, where bone and cartilage reflect most

PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # tag of a TIFF, and its value for grey whose 0 is white

PictureTiler = Callable[[Pixels, TilingConfig], Pixels]


def read_image(path: Path) -> Pixels:
    """Read the first frame of a picture as RGB, uint8[H, W, 3], in the orientation that its EXIF names.

    Transparent pixels are shown on white. Grey pictures of more than 8 bits are scaled by their own range, from the
    darkest pixel to the brightest.

    Raises SlideUnreadable if the file is missing, damaged, cut short or no picture, PictureTooLarge above MAX_PIXELS,
    and CodecUnsupported for several channels of 16 bits.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd but sound files; the size is checked below
            with Image.open(path) as file:
                _check_size(path, *file.size)
                _check_depth(path, file)
                is_negative = getattr(file, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO  # of a TIFF
                file.load()
                return _as_rgb(ImageOps.exif_transpose(file), is_negative)
    except (CodecUnsupported, PictureTooLarge):
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, at nearly three times MAX_PIXELS
        raise PictureTooLarge(f"{path}: {one_line(error, path)}; make it smaller, or use it as a slide") from error
    except FileNotFoundError as error:
        raise SlideUnreadable(f"{path}: is not there; check the path") from error
    except Exception as error:  # Pillow's decoders raise many types: struct.error, SyntaxError, ValueError
        raise SlideUnreadable(f"{path}: not a sound picture: {_why(error, path)}; save it again") from error


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise PictureTooLarge(
            f"{path}: {width} x {height} px, at most {MAX_PIXELS:,} px are allowed; make it smaller, or use it as a "
            "slide"
        )


def _check_depth(path: Path, image: Any) -> None:
    """Raise CodecUnsupported for several channels of 16 bits, of which Pillow keeps the upper 8 alone.

    Of pictures that use 12 bits these are nearly black.
    """
    layouts = [str(tile[3]) for tile in image.tile]  # with Pillow's raw mode, as RGB;16B
    if not image.mode.startswith(("I", "F")) and any(";16" in layout for layout in layouts):
        raise CodecUnsupported(
            f"{path}: {len(image.getbands())} channels of 16 bits, which are not read; save it with 8 bits a channel"
        )


def _why(error: Exception, path: Path) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no format of pictures that is known"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error, path)


def _as_rgb(image: Any, is_negative: bool) -> Pixels:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        return _scaled(-np.asarray(image, np.float64) if is_negative else np.asarray(image, np.float64))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"), np.uint8)


def _scaled(grey: Any) -> Pixels:
    """Scale grey float64[H, W] of any range to uint8[H, W, 3]; a constant picture becomes black."""
    low, high = float(grey.min()), float(grey.max())
    if not np.isfinite(high - low):
        raise ValueError("some pixels are not finite numbers")
    levels = np.rint((grey - low) * (255 / max(high - low, np.finfo(float).tiny)))
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def whole(picture: Pixels, config: TilingConfig) -> Pixels:
    """Return the picture as one tile, uint8[1, tile_px, tile_px, 3], resized to a square if it is not one.

    Resizing is bicubic and antialiased.
    """
    return resized(picture, config.tile_px, config.tile_px)[None]


def parts(picture: Pixels, config: TilingConfig) -> Pixels:
    """Downsample the picture and cut it into a grid of tiles, uint8[n, tile_px, tile_px, 3], row by row.

    The tiles cover the picture; the last ones of a row and a column are shifted inwards. If there are more than
    `max_tiles`, a coarser grid of evenly spread tiles is taken. A side shorter than a tile is padded with its outermost
    pixels.
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
    """Return the tiles of `parts` with only their brightest pixels, uint8[n, tile_px, tile_px, 3].

    Pixels with a luma (ITU-R BT.601) of at most EDGE_LEVEL become black, which leaves the contours of X-ray and
    ultrasound pictures.
    """
    tiles = parts(picture, config)
    luma = tiles @ np.array([0.299, 0.587, 0.114], np.float32)
    # rounded, because the weights sum to 1 only nearly, and a grey of exactly EDGE_LEVEL must become black
    return np.where((np.rint(luma) > EDGE_LEVEL)[..., None], tiles, np.uint8(0))


IMAGE_TILERS: dict[str, PictureTiler] = {"whole": whole, "parts": parts, "edges": edges}


def resized(picture: Pixels, height: int, width: int) -> Pixels:
    """Resize a picture to uint8[height, width, 3], bicubic and antialiased; unchanged if it has that size."""
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC), np.uint8)


def _starts(side: int, tile_px: int) -> list[int]:
    return [min(start, side - tile_px) for start in range(0, side, tile_px)]


def _coarser(rows: int, columns: int, max_tiles: int) -> tuple[int, int]:
    """Return a grid of at most `max_tiles` with about the same proportions."""
    if rows * columns <= max_tiles:
        return rows, columns
    down = min(max(1, round((max_tiles * rows / columns) ** 0.5)), rows, max_tiles)
    across = min(columns, max_tiles // down)
    return min(rows, max_tiles // across), across


def _evenly(starts: list[int], count: int) -> list[int]:
    """Choose `count` starts, the middle one of each of `count` equal stretches."""
    return [starts[(2 * index + 1) * len(starts) // (2 * count)] for index in range(count)]
