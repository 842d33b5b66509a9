"""Measure slides for the [sizes] of a competition: headers and sizes of files, no pixels."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from clotkit.competitions import Sizes
from clotkit.errors import SlideError
from clotkit.slides.header.tiff import read_layout

MOST_HEADERS = 200  # slides whose header is read
LEVELS = (0.0, 0.05, 0.5, 0.95, 1.0)
PNG = b"\x89PNG\r\n\x1a\n"
SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's frame headers


def measure(paths: Sequence[Path]) -> Sizes | None:
    """Return the sizes of these slides; None if no header gives a width and a height.

    Sizes of files are of all slides, widths and heights of up to MOST_HEADERS of them, evenly spaced.
    """
    sizes_bytes = sorted(filter(None, map(_bytes, paths)))
    sides = [sides for path in paths[:: max(1, -(-len(paths) // MOST_HEADERS))] if (sides := sides_px(path))]
    if not sides or min(map(min, sides)) < 2:
        return None
    areas = sorted(float(width * height) for width, height in sides)
    aspects = sorted(round(max(one) / min(one), 2) for one in sides)
    largest = max(sides, key=lambda one: one[0] * one[1])
    return Sizes(
        slides=len(paths),
        total_bytes=float(sum(sizes_bytes)),
        area_levels=LEVELS,
        areas_px=quantiles(areas),
        aspects=quantiles(aspects),
        largest_px=largest,
        least_side_px=min(*map(min, sides), min(largest) - 1),
        most_side_px=max(map(max, sides)),
        portrait_share=round(sum(height > width for width, height in sides) / len(sides), 2),
        file_levels=LEVELS,
        file_bytes=quantiles([float(size) for size in sizes_bytes]),
    )


def quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """Return the value of rising `values` at each of LEVELS."""
    return tuple(values[round(level * (len(values) - 1))] for level in LEVELS)


def sides_px(path: Path) -> tuple[int, int] | None:
    """Return width and height of a slide from its header; None if this is no TIFF, PNG or JPEG."""
    with suppress(OSError, struct.error, SlideError):
        with path.open("rb") as file:
            head = file.read(26)
        if head.startswith(PNG):
            width, height = struct.unpack(">II", head[16:24])
            return width, height
        if head.startswith(b"\xff\xd8"):
            return _jpeg_sides_px(path)
        layout = read_layout(path)
        return (layout.width_px, layout.height_px) if layout else None
    return None


def _jpeg_sides_px(path: Path) -> tuple[int, int] | None:
    """Return width and height of a JPEG's frame header. Raises struct.error where the file ends before it."""
    with path.open("rb") as file:
        file.seek(2)
        while True:
            mark, marker, length = struct.unpack(">BBH", file.read(4))
            if mark != 0xFF:
                return None
            if marker in SIZE_MARKERS:
                height, width = struct.unpack(">xHH", file.read(5))
                return width, height
            file.seek(length - 2, 1)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
