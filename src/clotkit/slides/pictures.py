"""Read PNG and JPEG files with Pillow, where libvips is not installed or does not read them."""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import CodecUnsupported, SlideUnreadable, one_line
from clotkit.slides.header.limits import MAX_EXPANSION, check_size
from clotkit.slides.header.table import SegmentTable
from clotkit.slides.pixels import Colour, Pixels, downsampled_tile

MAX_PX = 2**27  # 400 MB decoded, once more while it is converted
# Every pass of an interlaced PNG (Adam7) reaches the last row, so libvips decodes it whole: RGB of 32,768 x 32,768 px.
MAX_INTERLACED_MB = 3072
PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # of a decoded pixel, by colour type


def check_interlacing(path: Path) -> None:
    """Check that an interlaced PNG may be held in memory; other files pass.

    Raises:
        CodecUnsupported: It is too large.
    """
    with path.open("rb") as file:
        head = file.read(29)
    if len(head) < 29 or not head.startswith(b"\x89PNG") or not head[28]:
        return
    width, height, bits, colours = struct.unpack(">IIBB", head[16:26])
    need_mb = -(-width * height * PNG_SAMPLES.get(colours, 4) * max(bits // 8, 1) // 2**20)
    if need_mb > MAX_INTERLACED_MB:
        raise CodecUnsupported(
            f"an interlaced PNG of {width:,} x {height:,} px takes {need_mb:,} MB to decode; {MAX_INTERLACED_MB:,} MB "
            "are allowed; save it without interlacing"
        )


class PictureSlide:
    """A picture that Pillow has decoded at once."""

    decoder, sequential = "pillow", False
    table: SegmentTable | None = None

    def __init__(self, path: Path) -> None:
        """Decode the picture.

        Raises:
            SlideUnreadable: It is damaged.
            CodecUnsupported: Pillow is not installed, or the picture is too large.
        """
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise CodecUnsupported("Pillow is not installed") from error
        self.facts: dict[str, Any] = {}
        try:
            Image.MAX_IMAGE_PIXELS = None  # check_size and MAX_PX are the limits here
            with Image.open(path, formats=("PNG", "JPEG")) as file:
                check_size(*file.size, 8, path, MAX_EXPANSION)
                if file.size[0] * file.size[1] > MAX_PX:
                    raise CodecUnsupported(
                        f"{file.size[0]:,} x {file.size[1]:,} px; Pillow decodes at once, {MAX_PX:,} px are allowed"
                    )
                self._read(ImageOps.exif_transpose(file))
        except (OSError, SyntaxError, ValueError) as error:
            raise SlideUnreadable(f"Pillow: {one_line(error, path)}") from error

    def _read(self, image: Any) -> None:
        """Keep RGB pixels, and the transparency if there is any."""
        self._alpha: Pixels | None = None
        if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            self._alpha = np.asarray(image.getchannel("A"))
        if image.mode.startswith("I"):
            grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            self._pixels: Pixels = grey[..., None].repeat(3, axis=2)
        else:
            self._pixels = np.asarray(image.convert("RGB"))
        self.height_px, self.width_px = self._pixels.shape[:2]

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `fallback.Slide.tiles`."""

        def read(x: int, y: int, width: int, height: int) -> Pixels:
            part = self._pixels[y : y + height, x : x + width]
            if self._alpha is None:
                return np.ascontiguousarray(part)
            share = self._alpha[y : y + height, x : x + width, None].astype(np.float32) / 255
            mixed = part * share + np.array(background, np.float32) * (1 - share)
            return np.rint(mixed).astype(np.uint8)

        for corner in xy:
            yield downsampled_tile(read, (self.width_px, self.height_px), corner, tile_px, downsample, background)
