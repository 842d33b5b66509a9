"""Compare the tiles of padded and grey slides with those of the plain ones: `python -m bench.padding`.

Each drawn slide is cut as it is. Then part of its canvas is painted over, in six ways, in colour and in grey; no tissue
is covered. A tile agrees if the slide as it is has a kept tile less than a tile's side away. The exit code is 1 if, of
any slide, less than MIN_AGREEING of the tiles agree, or a tile is bare glass.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.slides.pixels import Colour, Pixels
from clotkit.tiling.tilers import TILERS, Batch, tile_slide

WIDTH_PX, HEIGHT_PX = 2048, 1536
GLASS: tuple[Colour, ...] = ((243, 241, 244), (216, 214, 218), (234, 216, 254), (196, 211, 192))
SAVED: tuple[dict[str, Any], ...] = (
    {"tile": True, "tile_width": 128, "tile_height": 128, "compression": "deflate", "predictor": "horizontal"},
    {"tile": True, "tile_width": 256, "tile_height": 256, "compression": "jpeg", "Q": 85},
    {"compression": "lzw"},
)
LUMA = np.array([0.299, 0.587, 0.114])
MIN_AGREEING = 0.75  # of the tiles of one slide
TILE_PX, DOWNSAMPLE, MAX_TILES = 32, 4, 16  # the squares' sides are a twelfth of the slide's short side

Corners = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """A drawn slide."""

    pixels: Pixels  # [h, w, 3]
    tissue: Mask  # [h, w]
    saved: dict[str, Any]  # how libvips saves it


def draw(seed: int) -> Drawn:
    """Draw a slide: one to four blobs of textured tissue on noisy glass, away from all the paddings."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    tissue = np.zeros(y.shape, bool)
    for _ in range(rng.integers(1, 5)):
        radius = rng.uniform(0.05, 0.16) * HEIGHT_PX
        turn, ratio, waves, depth = rng.uniform(0, 3.14), rng.uniform(0.5, 1), rng.integers(2, 7), rng.uniform(0, 0.25)
        dx, dy = x - rng.uniform(0.45, 0.7) * WIDTH_PX, y - rng.uniform(0.38, 0.62) * HEIGHT_PX
        along, across = dx * np.cos(turn) + dy * np.sin(turn), (dy * np.cos(turn) - dx * np.sin(turn)) / ratio
        tissue |= np.hypot(along, across) < radius * (1 + depth * np.sin(waves * np.arctan2(across, along)))
    grain = int(rng.choice([3, 5, 8, 13]))
    light = rng.random((HEIGHT_PX // grain + 1, WIDTH_PX // grain + 1)).repeat(grain, 0).repeat(grain, 1)
    light = light[:HEIGHT_PX, :WIDTH_PX, None]
    pale, dark = rng.normal((205, 120, 165), 12), rng.normal((120, 70, 140), 12)
    glass = np.array(GLASS[seed % len(GLASS)])
    dyed = (pale * light + dark * (1 - light)) / 255 * glass
    noise = rng.normal(0, rng.choice([0.0, 0.6, 1.5]), (*y.shape, 1))
    pixels = np.where(tissue[..., None], dyed, glass) + noise
    return Drawn(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), tissue, SAVED[seed % len(SAVED)])


def paddings(seed: int) -> Iterator[tuple[str, Mask, Colour]]:
    """Yield six paddings: name, bool[h, w], colour. None reaches where tissue is drawn."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    edge = np.minimum(np.minimum(x / WIDTH_PX, 1 - x / WIDTH_PX), np.minimum(y / HEIGHT_PX, 1 - y / HEIGHT_PX))
    yield "black frame, 3 %", edge < 0.03, (0, 0, 0)
    yield "black frame, 15 %", edge < 0.15, (0, 0, 0)
    yield "white frame, 15 %", edge < 0.15, (255, 255, 255)
    yield "grey corner", (x < 0.25 * WIDTH_PX) & (y < 0.7 * HEIGHT_PX), (128, 128, 128)
    yield "blue L", (x < 0.2 * WIDTH_PX) | (y > 0.85 * HEIGHT_PX), (0, 90, 160)
    gaps = np.zeros(y.shape, bool)
    for _ in range(6):  # unscanned rectangles along the border, of fields of 96 px
        left, deep = int(rng.integers(0, WIDTH_PX // 96)) * 96, int(rng.integers(1, 3)) * 96
        wide = int(rng.integers(1, 6)) * 96
        gaps[:deep, left : left + wide] = True
        gaps[-deep:, WIDTH_PX - left - wide : WIDTH_PX - left] = True
    yield "white gaps", gaps, (255, 255, 255)


def saved_slide(path: Path, pixels: Pixels, saved: dict[str, Any]) -> Path:
    """Save a slide, and return its path."""
    import pyvips

    pyvips.Image.new_from_array(pixels).tiffsave(str(path), **saved)
    return path


def kept(path: Path, tiler: str) -> Corners:
    """Cut a slide, and return the corners of its tiles, [n, 2]."""
    pieces = tile_slide(path, TilingConfig(tiler, TILE_PX, DOWNSAMPLE, MAX_TILES, 8))
    return np.concatenate([piece.xy.astype(np.int64) for piece in pieces if isinstance(piece, Batch)])


def compared(mine: Corners, other: Corners, tissue: Mask, side_px: int) -> dict[str, float]:
    """Return how far two choices of squares agree.

    Returns:
        `agreeing`: the share of either's tiles that the other has less than a side away, the smaller of both;
        `tissue`: the tissue in mine over that in the other's; `bare`: how many of mine have none.
    """
    away = np.abs(mine[:, None] - other[None]).max(axis=2) < side_px  # [n, m]
    areas = [[float(tissue[y : y + side_px, x : x + side_px].sum()) for x, y in corners] for corners in (mine, other)]
    return {
        "agreeing": float(min(away.any(axis=1).mean(), away.any(axis=0).mean())),
        "tissue": sum(areas[0]) / sum(areas[1]),
        "bare": float(sum(area == 0 for area in areas[0])),
    }


def measure(folder: Path, seeds: range, tilers: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one row for each slide, padding, colour or grey, and tiler."""
    for seed in seeds:
        slide = draw(seed)
        plain_path = saved_slide(folder / "plain.tif", slide.pixels, slide.saved)
        plain = {tiler: kept(plain_path, tiler) for tiler in tilers}
        for name, padding, fill in [("none", np.zeros(slide.tissue.shape, bool), (0, 0, 0)), *paddings(seed)]:
            padded = np.where(padding[..., None], np.array(fill, np.uint8), slide.pixels)
            grey = np.rint(padded @ LUMA).astype(np.uint8)[..., None].repeat(3, 2)
            for kind, pixels in (("colour", padded), ("grey", grey)):
                path = saved_slide(folder / "padded.tif", pixels, slide.saved)
                for tiler in tilers:
                    side = HEIGHT_PX if tiler in ("chunks", "strips") else TILE_PX * DOWNSAMPLE
                    row = {"seed": seed, "padding": name, "kind": kind, "tiler": tiler}
                    yield row | compared(kept(path, tiler), plain[tiler], slide.tissue, side)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each padding, colour or grey, and tiler: means, and the worst slide."""
    lines = [
        f"{'padding':18} {'kind':7} {'tiler':8} {'slides':>6} {'agreeing':>9} {'worst':>6} {'tissue':>7} {'bare':>5}"
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["padding"], row["kind"], row["tiler"]), []).append(row)
    for (name, kind, tiler), some in groups.items():
        worst = min(some, key=lambda row: row["agreeing"])
        agreeing, tissue = (sum(row[key] for row in some) / len(some) for key in ("agreeing", "tissue"))
        bare = sum(row["bare"] for row in some)
        lines.append(
            f"{name:18} {kind:7} {tiler:8} {len(some):6} {agreeing:9.3f} {worst['agreeing']:6.2f} {tissue:7.3f} "
            f"{bare:5.0f}  slide {worst['seed']}"
        )
    return lines


def main() -> int:
    """Print the table, and return 1 if a slide misses the target."""
    line = argparse.ArgumentParser(prog="python -m bench.padding", description=__doc__)
    line.add_argument("--slides", type=int, default=60, help="number of drawn slides (default: 60)")
    line.add_argument("--tilers", nargs="+", choices=sorted(TILERS), default=list(TILERS), metavar="TILER")
    options = line.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder), range(options.slides), options.tilers))
    print(*table(rows), sep="\n")
    missed = [row for row in rows if row["agreeing"] < MIN_AGREEING or row["bare"]]
    print(f"{len(rows)} comparisons, {len(missed)} below {MIN_AGREEING} or with bare glass")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
