"""Measure what a cluster gains: one worker against two, and 10 slides against 300.

Run it with `python -m bench.scale`. Real `clotkit tile --backend dask` runs use a real scheduler and one-thread workers
on this machine, one and two by turns; loky with one and two processes shows what the machine's cores give.
Requirements: two workers are at least 1.7 times as fast as one if there are two cores for them; a slide costs the same
among 300 as among 10; the client's memory is flat. The exit code is 1 if one of these does not hold; build/scale.json
has the figures.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clotkit.competitions import load_competition
from clotkit.files import atomic_write_json
from clotkit.synthetic.phantom import write_split
from tests.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
FASTER, FLAT = 1.7, 1.1  # minimum speed of two workers over one; maximum growth of a flat figure
RECIPE, SMALL_RECIPE = "strip_ai", "demo"  # for the large and the small slides
CLIENT = (  # runs the command, then prints the process's peak memory
    "import sys\nfrom clotkit.cli import main\nfrom clotkit.workers import peak_mb\n"
    "code = main(sys.argv[1:])\nprint(f'peak {peak_mb():.1f}')\nsys.exit(code)\n"
)


@dataclass(frozen=True)
class Run:
    """One run of the client."""

    backend: str
    slides: int
    workers: int
    seconds: float  # from its first line of output to its end
    peak_mb: float

    @property
    def slide_s(self) -> float:
        """Cost of a slide in worker seconds."""
        return self.seconds * self.workers / self.slides


def main() -> int:
    """Draw the splits if they are missing, run, print the figures, and return the exit code."""
    options = _options()
    large = _split(options.folder / f"large-{options.large}", options.large, options.side)
    small = {count: _split(options.folder / f"small-{count}", count, "1280x1920") for count in options.slides}
    with tempfile.TemporaryDirectory(prefix="clotkit-scale-") as scratch:
        cluster = Cluster(Path(scratch))
        try:
            cluster.start_scheduler()
            cluster.start_worker()
            runs = [run for _ in range(options.repeats) for run in _by_turns(cluster, large, options)]
            cluster.start_worker()
            flat = [_dask(cluster, split, count, SMALL_RECIPE) for count, split in small.items()]
        finally:
            cluster.close()
    facts = _facts(runs, flat)
    atomic_write_json(options.out, facts)
    print(json.dumps(facts, indent=2))
    return 0 if facts["holds"] else 1


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    line.add_argument(
        "--large", type=int, default=100, help="number of large slides, for one worker against two (default: 100)"
    )
    line.add_argument("--side", default="8192x12288", help="size of the large slides in pixels (default: 8192x12288)")
    line.add_argument("--recipe", default=RECIPE, help=f"recipe for the large slides (default: {RECIPE})")
    line.add_argument(
        "--slides",
        type=int,
        nargs="+",
        default=[10, 30, 100, 300],
        help="numbers of small slides (default: 10 30 100 300)",
    )
    line.add_argument("--repeats", type=int, default=3, help="runs per figure, of which the median counts (default: 3)")
    line.add_argument("--folder", type=Path, default=ROOT / "build" / "scale")
    line.add_argument("--out", type=Path, default=ROOT / "build" / "scale.json")
    return line.parse_args()


def _split(folder: Path, slides: int, size: str) -> Path:
    if not (folder / "train.csv").is_file():
        write_split(folder, "train", slides, 9, load_competition("strip_ai"), size=size, log=lambda _: None)
    return folder


def _by_turns(cluster: Cluster, split: Path, options: argparse.Namespace) -> Iterator[Run]:
    """Yield runs with one worker, with two, and both by loky; afterwards one worker is left."""
    yield _loky(cluster.folder, split, options.large, options.recipe, 1)
    yield _dask(cluster, split, options.large, options.recipe)
    cluster.start_worker()
    yield _dask(cluster, split, options.large, options.recipe)
    cluster.stop_worker()
    yield _loky(cluster.folder, split, options.large, options.recipe, 2)


def _dask(cluster: Cluster, split: Path, slides: int, recipe: str) -> Run:
    """Tile a split from scratch with the current workers."""
    words = ["--recipe", recipe, "--backend", "dask", "--scheduler", cluster.address]
    return _tile("dask", cluster.folder, split, slides, len(cluster.workers), words)


def _loky(folder: Path, split: Path, slides: int, recipe: str, jobs: int) -> Run:
    return _tile("loky", folder, split, slides, jobs, ["--recipe", recipe, "--jobs", str(jobs)])


def _tile(backend: str, folder: Path, split: Path, slides: int, workers: int, words: list[str]) -> Run:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", CLIENT, "tile", str(split), str(out), *words]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    lines = [client.stdout.readline()]
    began = time.monotonic()
    lines += client.stdout.readlines()
    seconds = time.monotonic() - began
    if client.wait():
        raise SystemExit("".join(lines))
    return Run(backend, slides, workers, round(seconds, 2), float(lines[-1].split()[1]))


def _facts(runs: list[Run], flat: list[Run]) -> dict[str, Any]:
    faster, own = _faster(runs, "dask"), _faster(runs, "loky")
    slide = flat[-1].slide_s / flat[0].slide_s
    memory = flat[-1].peak_mb / flat[0].peak_mb
    return {
        "by_workers": [asdict(run) for run in runs],
        "two_over_one": round(faster, 3),
        "two_over_one_loky": round(own, 3),
        "by_slides": [asdict(run) | {"slide_s": round(run.slide_s, 4)} for run in flat],
        "slide_growth": round(slide, 3),
        "client_memory_growth": round(memory, 3),
        "holds": faster >= FASTER and slide <= FLAT and memory <= FLAT,
    }


def _faster(runs: list[Run], backend: str) -> float:
    """Return how many times as fast two workers of a backend are as one, by median seconds."""
    one, two = (
        statistics.median(run.seconds for run in runs if (run.backend, run.workers) == (backend, workers))
        for workers in (1, 2)
    )
    return one / two


if __name__ == "__main__":
    sys.exit(main())
