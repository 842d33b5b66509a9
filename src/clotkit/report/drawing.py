"""Compute the drawings in report.html: tissue outlines, tile boxes, histograms, the timeline.

Functions return plain numbers and SVG path data; the template writes the markup. It needs numpy only.
"""

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.report.shift import BINS, Histogram

Mask = npt.NDArray[np.bool_]

WIDTH, HEIGHT, LEFT, BELOW = 440, 200, 34, 34  # of a histogram, and its margins, in SVG units
TIMELINE_WIDTH, LANE_HEIGHT, TOP = 1200, 16, 6  # of the timeline, in SVG units; TOP: above the first lane
MIN_BAR_WIDTH = 1.0  # of a bar on the timeline, however short its time


@dataclass(frozen=True)
class Bar:
    """A slide's process on the timeline, in seconds."""

    begin: float
    end: float
    state: str = ""
    title: str = ""


@dataclass(frozen=True)
class Box:
    """A tile on a slide's picture, in full-resolution pixels."""

    p: float
    x: int
    y: int
    width: int
    height: int
    attention: float | None = None  # share of the slide's attention; None: all tiles weigh alike
    border: float = 1.0  # width of its border, 1 to 5: by its attention beside the largest one

    @property
    def tenth(self) -> int:
        """The class of the colour of `p`, 0 to 9."""
        return min(max(int(self.p * 10), 0), 9) if math.isfinite(self.p) else 0


def unpacked(bits: str, width: int, height: int) -> Mask:
    """Return a mask bool[height, width] from the base64 of its packed bits.

    Raises ValueError if they are not valid.
    """
    flat = np.unpackbits(np.frombuffer(base64.b64decode(bits, validate=True), np.uint8), count=width * height)
    return flat.reshape(height, width).astype(bool)


def outline_path(mask: Mask, scale: float, max_chars: int) -> str:
    """Return the edges of a mask as SVG path data, `scale` units per pixel.

    The mask is halved until the path has at most `max_chars` characters.
    """
    step = 1
    while True:
        path = "".join(_edges(mask, round(scale * step))) if _edge_px(mask) <= max_chars else None
        if path is not None and len(path) <= max_chars:
            return path
        if max(mask.shape) <= 2:
            return ""
        mask, step = _halved(mask), step * 2


def _edge_px(mask: Mask) -> int:
    """Return about how many pixels of a mask are at its edge: a cheap bound before the path is written."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def _halved(mask: Mask) -> Mask:
    height, width = mask.shape
    even = np.pad(mask, ((0, height % 2), (0, width % 2)))
    counts = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).sum(axis=(1, 3))
    return np.asarray(counts >= 2)


def _edges(mask: Mask, scale: int) -> Iterator[str]:
    """Yield a piece of path for each straight run of edge between mask and background."""
    padded = np.pad(mask, 1).astype(np.int8)
    for letter, steps in (("h", np.diff(padded, axis=0)[:, 1:-1]), ("v", np.diff(padded, axis=1)[1:-1].T)):
        for line, start, length in _runs(steps):
            x, y = (start, line) if letter == "h" else (line, start)
            yield f"M{x * scale} {y * scale}{letter}{length * scale}"


def _runs(steps: npt.NDArray[np.int8]) -> Iterator[tuple[int, int, int]]:
    """Yield row, first column and length of each run of equal nonzero steps."""
    ends = np.diff(np.pad(steps, ((0, 0), (1, 1))), axis=1) != 0
    for row in np.flatnonzero(ends.any(axis=1)).tolist():
        places = np.flatnonzero(ends[row]).tolist()
        for first, after in pairwise(places):
            if steps[row, first]:
                yield row, first, after - first


def tile_boxes(tiles: Iterable[Mapping[str, Any]], limit: int) -> tuple[list[Box], int]:
    """Return at most `limit` boxes of the tiles in a line of slides.jsonl, and the number of tiles.

    If there are more, the boxes spread evenly over the sorted probabilities, including both ends.
    """
    boxes = [box for group in tiles for box in _boxes_of(group)]
    boxes.sort(key=lambda box: (box.p, box.x, box.y))
    if 1 < limit < len(boxes):
        drawn = [boxes[round(i * (len(boxes) - 1) / (limit - 1))] for i in range(limit)]
    else:
        drawn = boxes
    return drawn, len(boxes)


def _boxes_of(group: Mapping[str, Any]) -> Iterator[Box]:
    """Yield the boxes of the tiles of one tiling."""
    width, height = (int(px) for px in group["size_px"])
    weights = group.get("attention") or [None] * len(group["p"])
    largest = max((weight for weight in weights if weight is not None), default=0.0) or 1.0
    for (x, y), p, weight in zip(group["xy"], group["p"], weights, strict=True):
        border = 1.0 if weight is None else 1.0 + 4.0 * float(weight) / largest
        yield Box(float(p), int(x), int(y), width, height, weight, border)


def histogram_plot(run: Histogram, known: Histogram | None, largest: float = 1.0) -> dict[str, Any]:
    """Return the geometry of a run's histogram as bars and the known one as a line, both as shares.

    `largest` is the number at the right end of the axis.
    """
    shares = [[count / one.n for count in one.counts] for one in (run, known) if one is not None]
    top = max(max(values) for values in shares)
    base = HEIGHT - BELOW
    bars = [
        {"x": _x(i) + 1, "y": _y(share, top), "width": _x(1) - _x(0) - 2, "height": base - _y(share, top)}
        for i, share in enumerate(shares[0])
        if share
    ]
    line = ""
    if known is not None:
        steps = "".join(f"V{_y(share, top):.1f}H{_x(i + 1):.1f}" for i, share in enumerate(shares[1]))
        line = f"M{_x(0):.1f} {base}{steps}V{base}"
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "bars": bars,
        "known": line,
        "axis": f"M{LEFT} {base}H{WIDTH - 8}",
        "ticks": [{"x": _x(at * BINS), "y": base + 16, "text": f"{at * largest:g}"} for at in (0, 0.25, 0.5, 0.75, 1)],
        "top": f"{top:.0%}",
        "top_y": _y(top, top) + 4,
    }


def _x(place: float) -> float:
    return LEFT + place * (WIDTH - LEFT - 8) / BINS


def _y(share: float, top: float) -> float:
    return HEIGHT - BELOW - share / top * (HEIGHT - BELOW - 16)


def timeline_plot(slides: Sequence[Bar], busy: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the geometry of a timeline: slides as bars in lanes, and the model's busy spans below."""
    lanes = list(_lanes(slides))
    last = max([bar.end for bar in slides] + [end for _, end in busy] + [1e-3])
    below = TOP + (max(lanes, default=0) + 1) * LANE_HEIGHT
    anchors = ("start", "middle", "middle", "middle", "end")
    return {
        "width": TIMELINE_WIDTH,
        "height": below + LANE_HEIGHT + 20,
        "bars": [
            {
                "state": bar.state,
                "x": _at(bar.begin, last),
                "y": TOP + lane * LANE_HEIGHT,
                "width": _length(bar.begin, bar.end, last),
                "height": LANE_HEIGHT - 3,
                "title": bar.title,
            }
            for bar, lane in zip(slides, lanes, strict=True)
        ],
        "busy": "".join(
            f"M{_at(a, last):.1f} {below}h{_length(a, b, last):.1f}v{LANE_HEIGHT - 3}H{_at(a, last):.1f}z"
            for a, b in busy
        ),
        "label_y": below + 11,
        "ticks": [
            {
                "x": _at(last * i / 4, last),
                "y": below + LANE_HEIGHT + 12,
                "anchor": anchor,
                "text": f"{last * i / 4:.0f} s",
            }
            for i, anchor in enumerate(anchors)
        ],
    }


def _lanes(slides: Sequence[Bar]) -> Iterator[int]:
    """Yield the lane of each bar, in order of their begins: the first that is free by then."""
    ends: list[float] = []
    for bar in slides:
        lane = next((lane for lane, end in enumerate(ends) if end <= bar.begin), len(ends))
        ends[lane : lane + 1] = [bar.end]
        yield lane


def _at(seconds: float, last: float) -> float:
    return 44 + seconds / last * (TIMELINE_WIDTH - 56)


def _length(begin: float, end: float, last: float) -> float:
    return max((end - begin) / last * (TIMELINE_WIDTH - 56), MIN_BAR_WIDTH)
