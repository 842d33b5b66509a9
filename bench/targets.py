"""Compare the benchmark's rows with what they are to reach."""

import math
from collections.abc import Callable
from typing import Any

from bench.comparing import Row
from bench.contenders import LOOP, OURS, OURS_EVERY, is_peer, of_job
from bench.jobs import EVERY, EVERY_16, LARGEST, PYRAMIDS

MAX_MB, MAX_GROWTH = 300, 1.20  # peak memory on the largest slide, and over that at the first size

# Maximum CPU seconds over those of libvips decoding the whole slide.
TARGETS = {
    OURS: {"deflate": 0.20, "lzw": 0.20, "jpeg": 0.20, "strips": 1.15, "noisy": 1.15},
    OURS_EVERY: {"deflate": 0.60, "lzw": 0.60, "jpeg": 0.40, "strips": 1.15, "noisy": 1.15},
}
MAX_OVER_LOOP = 0.9  # CPU seconds over those of OpenSlide's loop, on a pyramid


def targets(rows: list[Row]) -> list[tuple[bool, str]]:
    """Return each target that these rows can answer: whether it is met, and a line with both figures."""
    by_key = {(row["layout"], row["side_px"], row["name"]): row for row in rows}
    everywhere = list(dict.fromkeys((row["layout"], row["side_px"]) for row in rows if row["layout"] != LARGEST))
    places = [place for place in everywhere if place[0] not in PYRAMIDS]
    lines = []
    for name, limits in TARGETS.items():
        for layout, side in places:
            reached = by_key[layout, side, name]["ratio_to_libvips_decode"]
            what = f"{layout}, {side:,} px: {name}, x decode"
            lines.append(_target(what, reached, limits[layout], "at most", lambda value, limit: value <= limit))
    for layout, side in places:
        ours = by_key[layout, side, OURS]["cpu_s"]
        here = [row for row in rows if (row["layout"], row["side_px"]) == (layout, side)]
        name, reached = _fastest_peer(ours, here)
        what = f"{layout}, {side:,} px: CPU of the fastest peer ({name}) over that of {OURS}"
        lines.append(_target(what, reached, 1.0, "more than", lambda value, limit: value > limit))
    pyramids = [place for place in everywhere if place[0] in PYRAMIDS]
    return lines + _pyramid_targets(by_key, pyramids) + _memory_targets(by_key, places)


def _pyramid_targets(by_key: dict[tuple[str, int | None, str], Row], places: list[Any]) -> list[tuple[bool, str]]:
    """Return the targets for CPU over that of OpenSlide's loop, on pyramids."""
    lines = []
    for layout, side in places:
        for job in (EVERY, EVERY_16):
            ours, loop = (by_key[layout, side, of_job(who, job)]["cpu_s"] for who in ("clotkit", LOOP))
            what = f"{layout}, {side:,} px: {job.name}, CPU over that of the {LOOP}"
            reached = ours / loop if ours is not None and loop else None
            lines.append(_target(what, reached, MAX_OVER_LOOP, "at most", lambda value, limit: value <= limit))
    return lines


def _memory_targets(by_key: dict[tuple[str, int | None, str], Row], places: list[Any]) -> list[tuple[bool, str]]:
    """Return the targets for peak memory on the largest slide, and over that on the first slide."""
    lines = []
    for name in (OURS, OURS_EVERY):
        if (LARGEST, None, name) in by_key:
            peak = by_key[LARGEST, None, name]["peak_mb"]
            what = f"{LARGEST}: {name}, peak"
            lines.append(_target(f"{what} MB", peak, MAX_MB, "at most", lambda value, limit: value <= limit))
            if not places:
                continue
            first = by_key[*places[0], name]["peak_mb"]
            growth = peak / first if peak and first else None
            what = f"{what} over that at {places[0][1]:,} px"
            lines.append(_target(what, growth, MAX_GROWTH, "at most", lambda value, limit: value <= limit))
    return lines


def _fastest_peer(ours_s: float | None, rows: list[Row]) -> tuple[str, float | None]:
    """Return the fastest peer of a layout, and its CPU seconds over ours."""
    cpu_s_of = {row["name"]: row["cpu_s"] for row in rows if is_peer(row["name"]) and row["cpu_s"] is not None}
    if not cpu_s_of:
        return "none read it", math.inf
    name = min(cpu_s_of, key=lambda peer: cpu_s_of[peer])
    return name, cpu_s_of[name] / ours_s if ours_s else None


def _target(
    what: str, reached: float | None, wanted: float, word: str, good: Callable[[float, float], bool]
) -> tuple[bool, str]:
    met = reached is not None and good(reached, wanted)
    figure = "no figure" if reached is None else f"{reached:.2f}"
    return met, f"{'met   ' if met else 'MISSED'} {what}: {figure}, wanted {word} {wanted:.2f}"
