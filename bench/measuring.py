"""Measure contenders, each in a process of its own with one libvips thread, by turns."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS, LIMIT
from clotkit.workers import peak_mb

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("cpu_s", "wall_s", "peak_mb", "tiles")
LIMIT_S = 1800  # time limit of one measurement

Row = dict[str, Any]


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


def compare(layout: str, side: int | None, path: Path, rounds: int, names: Sequence[str]) -> list[Row]:
    """Measure contenders on one slide, and return one row each: medians, or the reason of a failure."""
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
