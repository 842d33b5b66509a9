"""The drawings of report.html, as SVG text: tissue outlines, tile boxes, histograms, the timeline. numpy only."""

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.report.shift import BINS, Histogram

Mask = npt.NDArray[np.bool_]

WIDE, HIGH, LEFT, BELOW = 440, 200, 34, 34  # of a histogram, and its margins, in its own units
LONG, LANE, HEAD = 1200, 16, 6  # of the timeline: its width, a lane's height, what is above the first
LEAST = 1.0  # width of what happened in no time


@dataclass(frozen=True)
class Bar:
    """A span on the timeline, in seconds: a slide's process, with its `state` and what is said of it."""

    begin: float
    end: float
    state: str = ""
    said: str = ""


def unpacked(bits: str, width: int, height: int) -> Mask:
    """A mask bool[height, width] of the base64 of its packed bits. Raises ValueError for other bits."""
    flat = np.unpackbits(np.frombuffer(base64.b64decode(bits, validate=True), np.uint8), count=width * height)
    return flat.reshape(height, width).astype(bool)


def outline_path(mask: Mask, scale: float, most_chars: int) -> str:
    """The edges of a mask as SVG path data, `scale` units a pixel; coarser, until it has at most `most_chars`."""
    step = 1
    while True:
        path = "".join(_edges(mask, round(scale * step))) if _edge_px(mask) <= most_chars else None
        if path is not None and len(path) <= most_chars:
            return path
        if max(mask.shape) <= 2:
            return ""
        mask, step = _halved(mask), step * 2


def _edge_px(mask: Mask) -> int:
    """How many of a mask's pixels are at its edge, about: a quick look before each edge is written down."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def _halved(mask: Mask) -> Mask:
    height, width = mask.shape
    even = np.pad(mask, ((0, height % 2), (0, width % 2)))
    counts = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).sum(axis=(1, 3))
    return np.asarray(counts >= 2)


def _edges(mask: Mask, scale: int) -> Iterator[str]:
    """One piece of path for each straight run of edge between what is mask and what is not."""
    padded = np.pad(mask, 1).astype(np.int8)
    for letter, steps in (("h", np.diff(padded, axis=0)[:, 1:-1]), ("v", np.diff(padded, axis=1)[1:-1].T)):
        for line, start, length in _runs(steps):
            x, y = (start, line) if letter == "h" else (line, start)
            yield f"M{x * scale} {y * scale}{letter}{length * scale}"


def _runs(steps: npt.NDArray[np.int8]) -> Iterator[tuple[int, int, int]]:
    """Row, first column and length of each run of equal steps that are not 0."""
    ends = np.diff(np.pad(steps, ((0, 0), (1, 1))), axis=1) != 0
    for row in np.flatnonzero(ends.any(axis=1)).tolist():
        places = np.flatnonzero(ends[row]).tolist()
        for first, after in pairwise(places):
            if steps[row, first]:
                yield row, first, after - first


def box_rects(tiles: Iterable[Mapping[str, Any]], most: int) -> tuple[str, int, int]:
    """A rect for each tile, in full-resolution pixels, coloured by its probability; how many are drawn, of how many.

    Where there are more than `most`, those that are drawn spread evenly over the probabilities, both ends among them.
    """
    boxes = [
        (float(p), int(x), int(y), int(group["size_px"][0]), int(group["size_px"][1]))
        for group in tiles
        for (x, y), p in zip(group["xy"], group["p"], strict=True)
    ]
    boxes.sort()
    drawn = [boxes[round(i * (len(boxes) - 1) / (most - 1))] for i in range(most)] if 1 < most < len(boxes) else boxes
    rects = (
        f'<rect class="p{tenth(p)}" x="{x}" y="{y}" width="{width}" height="{height}"><title>{p:.2f}</title></rect>'
        for p, x, y, width, height in drawn
    )
    return "".join(rects), len(drawn), len(boxes)


def tenth(p: float) -> int:
    """The class of a probability's colour, 0 to 9."""
    return min(max(int(p * 10), 0), 9) if math.isfinite(p) else 0


def histogram_svg(run: Histogram, known: Histogram | None, said: str) -> str:
    """The run's histogram as bars, the known one as a line over it, both as shares; `said` is its text in words."""
    shares = [[count / one.n for count in one.counts] for one in (run, known) if one is not None]
    top = max(max(values) for values in shares)
    bars = "".join(
        f'<rect class="run" x="{_x(i) + 1:.1f}" y="{_y(share, top):.1f}" width="{_x(1) - _x(0) - 2:.1f}" '
        f'height="{HIGH - BELOW - _y(share, top):.1f}"/>'
        for i, share in enumerate(shares[0])
        if share
    )
    line = ""
    if known is not None:
        steps = "".join(f"V{_y(share, top):.1f}H{_x(i + 1):.1f}" for i, share in enumerate(shares[1]))
        line = f'<path class="known" d="M{_x(0):.1f} {HIGH - BELOW}{steps}V{HIGH - BELOW}"/>'
    ticks = "".join(
        f'<text x="{_x(tick * BINS):.1f}" y="{HIGH - BELOW + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg class="plot" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(said)}">{bars}{line}'
        f'<path class="axis" d="M{LEFT} {HIGH - BELOW}H{WIDE - 8}"/>{ticks}'
        f'<text x="4" y="{_y(top, top) + 4:.1f}">{top:.0%}</text></svg>'
    )


def _x(place: float) -> float:
    return LEFT + place * (WIDE - LEFT - 8) / BINS


def _y(share: float, top: float) -> float:
    return HIGH - BELOW - share / top * (HIGH - BELOW - 16)


def timeline_svg(slides: Sequence[Bar], busy: Sequence[tuple[float, float]], said: str) -> str:
    """Slides as bars, in as many lanes as there were at a time, and the model's busy spans below; seconds across."""
    lanes = list(_lanes(slides))
    last = max([bar.end for bar in slides] + [end for _, end in busy] + [1e-3])
    below = HEAD + (max(lanes, default=0) + 1) * LANE
    bars = "".join(
        f'<rect class="slide {escape(bar.state)}" x="{_at(bar.begin, last):.1f}" y="{HEAD + lane * LANE}" '
        f'width="{_long(bar.begin, bar.end, last):.1f}" height="{LANE - 3}"><title>{escape(bar.said)}</title></rect>'
        for bar, lane in zip(slides, lanes, strict=True)
    )
    spans = "".join(
        f"M{_at(a, last):.1f} {below}h{_long(a, b, last):.1f}v{LANE - 3}H{_at(a, last):.1f}z" for a, b in busy
    )
    ticks = "".join(
        f'<text x="{_at(last * i / 4, last):.0f}" y="{below + LANE + 12}" text-anchor="{anchor}">'
        f"{last * i / 4:.0f} s</text>"
        for i, anchor in enumerate(("start", "middle", "middle", "middle", "end"))
    )
    return (
        f'<svg class="plot wide" viewBox="0 0 {LONG} {below + LANE + 20}" role="img" aria-label="{escape(said)}">{bars}'
        f'<path class="busy" d="{spans}"/><text x="4" y="{below + 11}">model</text>{ticks}</svg>'
    )


def _lanes(slides: Sequence[Bar]) -> Iterator[int]:
    """The lane of each bar, in the order of their begins: the first that is free by then."""
    ends: list[float] = []
    for bar in slides:
        lane = next((lane for lane, end in enumerate(ends) if end <= bar.begin), len(ends))
        ends[lane : lane + 1] = [bar.end]
        yield lane


def _at(seconds: float, last: float) -> float:
    return 44 + seconds / last * (LONG - 56)


def _long(begin: float, end: float, last: float) -> float:
    return max((end - begin) / last * (LONG - 56), LEAST)
