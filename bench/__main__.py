"""Measure the tiler against other readers on every layout: `python -m bench`.

Prints one table and the targets, and writes build/bench.json. Every measurement is a process of its own (`--one NAME
FILE`) with one libvips thread; the contenders take turns, round by round. The exit code is 1 if a target is missed.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.peers import CONTENDERS, KIT_NAMES, LIMIT, OURS, OURS_EVERY
from clotkit.workers import peak_mb

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("clotkit", "pyvips", "openslide-python", "tiffslide", "tifffile", "imagecodecs", "numpy", "pillow")
FIGURES = ("cpu_s", "wall_s", "peak_mb", "tiles")
LIMIT_S = 1800  # time limit of one measurement

LARGEST = "largest"  # layout name of the competition's largest slide, for which only memory has a target
MAX_MB, MAX_GROWTH = 300, 1.20  # peak memory on the largest slide, and over that at the first size

# Maximum CPU seconds over those of libvips decoding the whole slide.
TARGETS = {
    OURS: {"deflate": 0.20, "lzw": 0.20, "jpeg": 0.20, "strips": 1.15, "noisy": 1.15},
    OURS_EVERY: {"deflate": 0.60, "lzw": 0.60, "jpeg": 0.40, "strips": 1.15, "noisy": 1.15},
}

CAPTION = """\
The job: a tissue map and the 16 best tiles of 1024 px as uint8 of 256 px. "every tissue tile": all tiles of 224 px at
1/4 with at least 1 % tissue. clotkit's best tiles have at least 50 % tissue if a slide has such tiles. The three
recipes choose in their own ways, so their tiles differ; the column has the number of tiles.
CPU and wall seconds start after the imports; peak is VmHWM of the process, imports included; medians of {rounds}.
"x decode" is CPU over that of libvips decoding the whole slide once. One libvips thread; files in the page cache."""

Row = dict[str, Any]


def main() -> int:
    """Run the benchmark, or one measurement of it, and return the exit code."""
    options = _options()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]))))
        return 0
    from bench.layouts import largest, slides

    rows = []
    for side in options.side:
        paths = slides(options.folder, side, options.layouts, _say)
        rows += [row for layout, path in paths.items() for row in compare(layout, side, path, options.rounds)]
    if options.largest:
        rows += compare(LARGEST, None, largest(options.folder, _say), options.rounds, KIT_NAMES)
    lines = targets(rows)
    print(header(), "", *table(rows), "", CAPTION.format(rounds=options.rounds), "", sep="\n")
    print("Targets:", *(text for _, text in lines), sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(met for met, _ in lines) else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _options() -> argparse.Namespace:
    from bench.layouts import LAYOUTS

    line = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    line.add_argument(
        "--side",
        type=int,
        nargs="+",
        default=[10_000, 30_000],
        help="sides of the square slides, px (default: 10000 30000)",
    )
    line.add_argument(
        "--largest",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure memory on a slide of 48,284 x 101,408 px, 2.4 GB",
    )
    line.add_argument("--rounds", type=int, default=3, help="measurements of each contender (default: 3)")
    line.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    line.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "bench", help="folder of the slides, kept for the next run"
    )
    line.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json", help="the JSON file to write")
    line.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help="run one measurement and print a line of JSON")
    return line.parse_args()


def measure(name: str, path: Path) -> Row:
    """Measure one contender on one slide in this process, after its imports."""
    contender = CONTENDERS[name]
    contender.load()
    cpu, wall = cpu_s(), time.perf_counter()
    tiles = contender.run(path)
    cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    return {"cpu_s": cpu, "wall_s": wall, "peak_mb": peak_mb(), "tiles": tiles}


def cpu_s() -> float:
    """Return the CPU seconds of this process and its ended children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def compare(layout: str, side: int | None, path: Path, rounds: int, names: Sequence[str] = ()) -> list[Row]:
    """Measure contenders on one slide, and return one row each: medians, or the reason of a failure.

    `names` are the contenders to measure, all of them if empty.
    """
    names = names or list(CONTENDERS)
    measured: dict[str, list[Row]] = {name: [] for name in names}
    reasons: dict[str, str] = {}
    with path.open("rb") as file:  # fill the page cache, for the first round too
        while file.read(2**24):
            pass
    for _ in range(rounds):
        for name in names:
            if name not in reasons:
                result = _in_a_process(name, path)
                if isinstance(result, str):
                    reasons[name] = result
                else:
                    measured[name].append(result)
    rows = [
        {"layout": layout, "side_px": side, "name": name, **_figures([] if name in reasons else measured[name])}
        for name in names
    ]
    limit = next(row["cpu_s"] for row in rows if row["name"] == LIMIT)
    for row in rows:
        has_ratio = limit and row["cpu_s"] is not None
        row["ratio_to_libvips_decode"] = round(row["cpu_s"] / limit, 4) if has_ratio else None
        row["reason"] = reasons.get(row["name"])
    return rows


def _in_a_process(name: str, path: Path) -> Row | str:
    """Return the figures of one contender, or the last line of its error output if it failed."""
    command = [sys.executable, "-m", "bench", "--one", name, str(path)]
    environment = os.environ | {"VIPS_CONCURRENCY": "1", "OMP_NUM_THREADS": "1", "VIPS_WARNING": "0"}
    try:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"took more than {LIMIT_S} s"
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        return lines[-1].strip()[:200] if ended.returncode > 0 and lines else f"ended with code {ended.returncode}"
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def _figures(measured: list[Row]) -> Row:
    return {key: _median([one[key] for one in measured]) for key in FIGURES}


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def header() -> str:
    """Return the date, the machine and the versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    import openslide
    import pyvips

    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    return "\n".join(
        [
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores "
            f"({platform.machine()}), {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}",
            f"libvips {'.'.join(str(pyvips.version(part)) for part in range(3))}, "
            f"OpenSlide {openslide.__library_version__}",
            ", ".join(versions),
        ]
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def table(rows: list[Row]) -> list[str]:
    """Return the rows as lines of text, with a blank line between layouts."""
    names, figures = ("layout", "px", "contender"), ("CPU s", "wall s", "peak MB", "tiles", "x decode")
    lines = ["{:8} {:>6} {:27} {:>8} {:>8} {:>8} {:>6} {:>9}".format(*names, *figures)]
    for row in rows:
        if row["name"] == LIMIT:
            lines.append("")
        start = f"{row['layout']:8} {row['side_px'] or '':>6} {row['name']:27}"
        if row["reason"]:
            lines.append(f"{start} {'-':>8} {row['reason']}")
            continue
        ratio = row["ratio_to_libvips_decode"]
        lines.append(
            f"{start} {row['cpu_s']:8.2f} {row['wall_s']:8.2f} {row['peak_mb']:8.0f} {row['tiles']:6.0f} "
            + (f"{'-':>9}" if ratio is None else f"{ratio:9.2f}")
        )
    return lines


def targets(rows: list[Row]) -> list[tuple[bool, str]]:
    """Return each target that these rows can answer: whether it is met, and a line with both figures."""
    by_key = {(row["layout"], row["side_px"], row["name"]): row for row in rows}
    places = list(dict.fromkeys((row["layout"], row["side_px"]) for row in rows if row["layout"] != LARGEST))
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
    return lines + _memory_targets(by_key, places)


def _memory_targets(by_key: dict[tuple[str, int | None, str], Row], places: list[Any]) -> list[tuple[bool, str]]:
    """Return the targets for peak memory on the largest slide, and over that on the first slide."""
    lines = []
    for name in (OURS, OURS_EVERY):
        if (LARGEST, None, name) in by_key:
            peak, first = by_key[LARGEST, None, name]["peak_mb"], by_key[*places[0], name]["peak_mb"]
            growth = peak / first if peak and first else None
            what = f"{LARGEST}: {name}, peak"
            lines.append(_target(f"{what} MB", peak, MAX_MB, "at most", lambda value, limit: value <= limit))
            what = f"{what} over that at {places[0][1]:,} px"
            lines.append(_target(what, growth, MAX_GROWTH, "at most", lambda value, limit: value <= limit))
    return lines


def _fastest_peer(ours_s: float | None, rows: list[Row]) -> tuple[str, float | None]:
    """Return the fastest peer of a layout, and its CPU seconds over ours."""
    cpu_s_of = {row["name"]: row["cpu_s"] for row in rows if CONTENDERS[row["name"]].peer and row["cpu_s"] is not None}
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


if __name__ == "__main__":
    sys.exit(main())
