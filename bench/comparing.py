"""Compare contenders on one slide: processes of their own, one thread of libvips each, by turns."""

import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench.contenders import LIMIT, SEPARATE, tissue_limit
from bench.environments import ENVIRONMENTS
from bench.peer_scripts.common import Tiles
from bench.processes import MemoryWatch, run

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ("cpu_s", "wall_s", "peak_mb", "tiles")
LIMIT_S = 1800  # time limit of one measurement
ONE_THREAD = {"VIPS_CONCURRENCY": "1", "OMP_NUM_THREADS": "1", "VIPS_WARNING": "0"}

Row = dict[str, Any]


class State(StrEnum):
    """Ends of a contender's measurement: `state` of a row."""

    DONE = "done"
    REFUSED = "refused"  # it raised an error
    CRASHED = "crashed"  # it died of a signal
    KILLED = "killed"  # it passed the memory limit
    TIMEOUT = "timeout"  # it passed the time limit
    NOT_INSTALLED = "not installed"  # pip could not install it


@dataclass(frozen=True)
class Limits:
    """Limits on one measurement."""

    seconds: float = LIMIT_S
    memory_mb: float = math.inf  # of its processes, shared pages counted once


ON_LARGEST = Limits(600, 8192)


@dataclass
class Result:
    """The measurements of one contender, or the end of the one that failed."""

    figures: list[Row]
    state: State = State.DONE
    reason: str | None = None


def compare(
    layout: str,
    side: int | None,
    path: Path,
    rounds: int,
    names: Sequence[str],
    pythons: Mapping[str, Path | str],
    limits: Limits,
) -> list[Row]:
    """Measure contenders on one slide, and return one row each: medians, or the reason of a failure.

    Args:
        layout: the slide's layout.
        side: its side in pixels.
        path: its file.
        rounds: measurements of each contender.
        names: the contenders.
        pythons: the Python of each peer's environment, or why there is none.
        limits: what one measurement may take.
    """
    results = {name: _before(name, pythons) for name in names}
    with path.open("rb") as file:  # fill the page cache, for the first round too
        while file.read(2**24):
            pass
    for _ in range(rounds):
        for name, result in results.items():
            if result.state is State.DONE:
                _measure(name, path, pythons, limits, result)
    rows = [_row(layout, side, name, result) for name, result in results.items()]
    cpu_s = {row["name"]: row["cpu_s"] for row in rows}
    for row in rows:
        row["ratio_to_libvips_decode"] = _ratio(row["cpu_s"], cpu_s.get(LIMIT))
        row["ratio_to_tissue_decode"] = _ratio(row["cpu_s"], cpu_s.get(tissue_limit(row["name"])))
        row["reason"] = results[row["name"]].reason
    return rows


def _before(name: str, pythons: Mapping[str, Path | str]) -> Result:
    python = pythons[SEPARATE[name].environment] if name in SEPARATE else Path(sys.executable)
    return Result([]) if isinstance(python, Path) else Result([], State.NOT_INSTALLED, python)


def _measure(name: str, path: Path, pythons: Mapping[str, Path | str], limits: Limits, result: Result) -> None:
    """Run one contender once, and add its figures to its result, or the state and reason of its end."""
    watch = MemoryWatch(limits.memory_mb)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        code, cost = run(
            _command(name, path, pythons),
            output,
            watch,
            limits.seconds,
            os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        )
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    if not code:
        result.figures.append(next(json.loads(line) for line in reversed(lines) if line.startswith('{"cpu_s"')))
        return
    result.figures.clear()
    if watch.passed:
        result.state, reason = State.KILLED, f"more than {limits.memory_mb:,.0f} MB after {cost.seconds:.0f} s"
    elif cost.seconds > limits.seconds:
        result.state, reason = State.TIMEOUT, f"more than {limits.seconds:g} s"
    elif code < 0:
        result.state, reason = State.CRASHED, ": ".join([f"ended with code {code}", *lines[-1:]])
    else:
        result.state, reason = State.REFUSED, (lines or [f"ended with code {code}"])[-1]
    result.reason = reason[:200]


def _command(name: str, path: Path, pythons: Mapping[str, Path | str]) -> list[object]:
    peer = SEPARATE.get(name)
    if peer is None:
        return [sys.executable, "-m", "bench", "--one", name, path]
    job = {key: value for key, value in asdict(peer.job).items() if key in Tiles.__dataclass_fields__}
    return [pythons[peer.environment], "-m", f"bench.peer_scripts.with_{peer.environment}", path, json.dumps(job)]


def _row(layout: str, side: int | None, name: str, result: Result) -> Row:
    version = ENVIRONMENTS[SEPARATE[name].environment].version if name in SEPARATE else None
    figures = {key: _median([one[key] for one in result.figures]) for key in FIGURES}
    return {"layout": layout, "side_px": side, "name": name, "version": version, "state": result.state, **figures}


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def _ratio(cpu_s: float | None, limit_s: float | None) -> float | None:
    return round(cpu_s / limit_s, 4) if cpu_s is not None and limit_s else None
