"""Draw the benchmark's slides: one phantom, saved in every layout, kept in a folder for the next run."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyvips

from bench import pyramids
from bench.jobs import PYRAMIDS
from bench.pyramids import PIXELS_PER_MM, save_pyramid
from clotkit.competitions import load_competition
from clotkit.files import atomic_write
from clotkit.progress import Log
from clotkit.synthetic import phantom, phantom_patients, phantom_pixels, phantom_sizes, phantom_tissue

SEED = 309  # gives 12.4 % tissue on background (244, 244, 243), one section: near the median real slide
LARGEST_PX = "48284x101408"
NOISE, NOISE_PX = 6, 1024  # grey levels, and the side of the repeating square of noise
CLASSIC_BYTES = 2**32 - 2**25  # maximum raw size of a classic TIFF; larger files are BigTIFF

# Modules that draw and save slides.
DRAWING = (phantom, phantom_patients, phantom_pixels, phantom_sizes, phantom_tissue, pyramids)
SQUARES = {"tile": True, "tile_width": 128, "tile_height": 128}
DEFLATE = {"compression": "deflate", "predictor": "horizontal"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "deflate": {**SQUARES, **DEFLATE},
    "lzw": {**SQUARES, "compression": "lzw", "predictor": "horizontal"},
    "jpeg": {"tile": True, "tile_width": 256, "tile_height": 256, "compression": "jpeg", "Q": 85},
    "strips": {"tile": False, **DEFLATE},
    "noisy": {**SQUARES, **DEFLATE},
}


def slides(folder: Path, side_px: int, wanted: list[str], log: Log) -> dict[str, Path]:
    """Return the square slides by layout, `side_px` a side; those already in `folder` are not drawn again.

    Slides of other code or another libvips have another name, so that a change of the phantom is noticed.
    """
    folder = folder / f"{side_px}-{_digest()}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.{'svs' if name == 'svs' else 'tif'}" for name in wanted}
    for name, path in paths.items():
        if not path.exists():
            _save(_phantom(folder / "phantom", f"{side_px}x{side_px}", log), path, name)
            log(f"{name}: {path.stat().st_size / 1e6:.0f} MB")
    return paths


def largest(folder: Path, log: Log) -> Path:
    """Return a phantom of the competition's largest size, in deflate tiles of 128 px."""
    return _phantom(folder / f"largest-{_digest()}" / "phantom", LARGEST_PX, log)


def _digest() -> str:
    """Return eight characters that change with the code that draws and the libvips that saves."""
    sources = [Path(str(module.__file__)).read_bytes() for module in DRAWING]
    version = f"{[pyvips.version(part) for part in range(3)]}".encode()
    return hashlib.sha256(b"".join([*sources, Path(__file__).read_bytes(), version])).hexdigest()[:8]


def _phantom(folder: Path, size: str, log: Log) -> Path:
    """Return the only slide of a phantom split in `folder`, drawn if it is missing."""
    competition = load_competition()
    if not (folder / "test.csv").exists():  # the table is written last
        phantom.write_split(folder, "test", 1, SEED, competition, size=size, log=log)
    (image_id,) = phantom.read_plans(folder)
    return competition.slide_path(folder, "test", image_id)


def _save(source: Path, path: Path, name: str) -> None:
    image = pyvips.Image.new_from_file(str(source), access="sequential")
    big = image.width * image.height * 3 > CLASSIC_BYTES
    with atomic_write(path) as temporary:
        if name in PYRAMIDS:
            save_pyramid(source, temporary, name, big)
        else:
            (_noisy(image) if name == "noisy" else image).tiffsave(
                str(temporary), bigtiff=big, xres=PIXELS_PER_MM, yres=PIXELS_PER_MM, **LAYOUTS[name]
            )


def _noisy(image: pyvips.Image) -> pyvips.Image:
    """Return the image with uniform noise of -NOISE to +NOISE added to every sample."""
    rng = np.random.default_rng(SEED)
    square = pyvips.Image.new_from_array(rng.integers(-NOISE, NOISE + 1, (NOISE_PX, NOISE_PX, 3), np.int8))
    across, down = -(-image.width // NOISE_PX), -(-image.height // NOISE_PX)
    noise = square.replicate(across, down).crop(0, 0, image.width, image.height)
    return (image + noise).cast("uchar").copy(interpretation="srgb")
