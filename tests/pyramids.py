"""Pyramids for the tests: a slide that looks like tissue, and its smaller levels, sound or not."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from clotkit.slides.pixels import Pixels, box_mean

GLASS = (243, 242, 244)
TILE_PX = 128


def tissue_picture(width_px: int, height_px: int, seed: int = 0) -> Pixels:
    """Return stained tissue on glass, with texture at every scale: uint8[height_px, width_px, 3]."""
    rng = np.random.default_rng(seed)
    texture = np.zeros((height_px, width_px))
    for step in (2, 4, 8, 16, 32, 64):
        coarse = rng.normal(size=(-(-height_px // step) + 1, -(-width_px // step) + 1))
        texture += (step / 8) ** 0.5 * ndimage.zoom(coarse, step, order=1)[:height_px, :width_px]
    y, x = np.mgrid[:height_px, :width_px]
    middles = ((0.32 + rng.uniform(-0.05, 0.05), 0.4), (0.7, 0.6 + rng.uniform(-0.05, 0.05)))
    inside = np.zeros((height_px, width_px), bool)
    for across, down in middles:
        inside |= ((x / width_px - across) / 0.2) ** 2 + ((y / height_px - down) / 0.3) ** 2 < 1
    dye = np.array([0.25, 0.75, 0.35]) * np.clip(0.6 + 0.08 * texture, 0.05, 2)[..., None] * inside[..., None]
    return np.asarray(np.rint(np.array(GLASS) * 10**-dye), np.uint8)


def sound_levels(picture: Pixels, downsamples: Sequence[int]) -> dict[int, Pixels]:
    """Return box means of the picture, without the last incomplete rows and columns."""
    height, width = picture.shape[:2]
    return {
        step: box_mean(np.ascontiguousarray(picture[: height // step * step, : width // step * step]), step)
        for step in downsamples
    }


def write_pyramid(
    path: Path, picture: Pixels, levels: Mapping[int, Pixels], subifds: bool = False, description: str | None = None
) -> Path:
    """Write a picture and its levels in JPEG tiles, as pages or as SubIFDs of the first one."""
    options = {
        "tile": (TILE_PX, TILE_PX),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 92},
    }
    with tifffile.TiffWriter(path) as file:
        file.write(picture, subifds=len(levels) if subifds else None, description=description, **options)
        for pixels in levels.values():
            file.write(pixels, subfiletype=1, **options)
    return path
