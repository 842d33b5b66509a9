"""Measure one contender on one slide, in this process."""

import resource
import time
from pathlib import Path
from typing import Any

from bench.contenders import CONTENDERS
from clotkit.workers import peak_mb


def measure(name: str, path: Path) -> dict[str, Any]:
    """Return the figures of one contender on one slide, from after its imports and preparation."""
    run = CONTENDERS[name].prepared(path)
    cpu, wall = cpu_s(), time.perf_counter()
    tiles = run(path)
    cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    return {"cpu_s": cpu, "wall_s": wall, "peak_mb": peak_mb(), "tiles": tiles}


def cpu_s() -> float:
    """Return the CPU seconds of this process and its ended children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
