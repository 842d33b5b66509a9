"""Compare a member of Keras networks with its ONNX export: `python -m bench.onnx_member`.

`clotkit run` and the rehearsed kernel score the embedded split with each, in turn, `--rounds` times. It prints the
largest difference of a probability in submission.csv, and the ratios of the seconds of ONNX to those of Keras: the
median of the rounds. The exit code is 1 if a difference is above 1e-5 or a ratio above 1.2.
"""

import argparse
import csv
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clotkit.importing.exporting import export_member

ROOT = Path(__file__).resolve().parents[1]
SPLIT = ROOT / "build" / "phantom"
KINDS = ("keras", "onnx")
MOST_DIFFERENCE, MOST_RATIO = 1e-5, 1.2
Run = Callable[[Path, Path], Path]  # (folder of members, output) -> submission.csv


def main() -> int:
    """Export the member, alternate the runs, print the figures, and return the exit code."""
    line = argparse.ArgumentParser(prog="python -m bench.onnx_member", description=__doc__)
    line.add_argument("--member", type=Path, default=ROOT / "weights" / "demo")
    line.add_argument("--rounds", type=int, default=5)
    options = line.parse_args()
    folder = ROOT / "build" / "onnx_member"
    shutil.rmtree(folder, ignore_errors=True)
    export_member(options.member, folder / "onnx" / "member")
    (folder / "keras").mkdir()
    shutil.copytree(options.member, folder / "keras" / "member")
    figures = {name: compare(run, folder, options.rounds) for name, run in (("run", _run), ("kernel", _rehearse))}
    print(json.dumps(figures, indent=2))
    return int(any(one["difference"] > MOST_DIFFERENCE or one["wall_ratio"] > MOST_RATIO for one in figures.values()))


def compare(run: Run, folder: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of one way to score, over alternating runs."""
    wall: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    submissions: dict[str, list[float]] = {}
    for _ in range(rounds):
        for kind in KINDS:
            started, before = time.perf_counter(), _children_s()
            submissions[kind] = _probabilities(run(folder / kind, folder / "out" / kind))
            wall[kind].append(time.perf_counter() - started)
            cpu[kind].append(_children_s() - before)
    pairs = zip(submissions["keras"], submissions["onnx"], strict=True)
    return {
        "difference": max(abs(one - other) for one, other in pairs),
        "wall_ratio": round(statistics.median(wall["onnx"]) / statistics.median(wall["keras"]), 3),
        "cpu_ratio": round(statistics.median(cpu["onnx"]) / statistics.median(cpu["keras"]), 3),
        "wall_s": {kind: round(statistics.median(values), 2) for kind, values in wall.items()},
        "cpu_s": {kind: round(statistics.median(values), 2) for kind, values in cpu.items()},
    }


def _run(weights: Path, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    _clotkit("run", SPLIT, "--weights", weights, "--out", out)
    return out / "submission.csv"


def _rehearse(weights: Path, out: Path) -> Path:
    _clotkit("rehearse", "--weights", weights, "--layout", "new", "--out", out)
    return out / "submission.csv"


def _clotkit(*words: str | Path) -> None:
    command: Sequence[str] = [sys.executable, "-m", "clotkit.cli", *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def _children_s() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def _probabilities(path: Path) -> list[float]:
    with path.open(encoding="utf-8", newline="") as file:
        return [float(cell) for row in list(csv.reader(file))[1:] for cell in row[1:]]


if __name__ == "__main__":
    sys.exit(main())
