"""What a cluster is worth, `python -m bench.scale`: one worker against two, ten slides against three hundred.

Real `clotkit tile --backend dask` runs over a real scheduler and workers of one thread each, on this machine. What it
must show: two workers are at least 1.7 times as fast as one where there are two cores for them; a slide costs the same
among 300 as among 10; the client's memory is flat. Exit code 1 when one of these does not hold; build/scale.json has
the figures.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clotkit.competitions import load_competition
from clotkit.files import publish_json
from clotkit.slides.phantom import write_split
from tests.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
FASTER, FLAT = 1.7, 1.1  # two workers over one, at least; the most by which a flat figure may grow
RECIPE = "demo"
CLIENT = (  # the command, and then what its process took at its peak
    "import sys\nfrom clotkit.cli import main\nfrom clotkit.infer.workers import peak_mb\n"
    "code = main(sys.argv[1:])\nprint(f'peak {peak_mb():.1f}')\nsys.exit(code)\n"
)


@dataclass(frozen=True)
class Run:
    """One run of the client: slides, workers, seconds from its first line to its end, its peak memory."""

    slides: int
    workers: int
    seconds: float
    peak_mb: float

    @property
    def slide_s(self) -> float:
        """What a slide costs, in seconds of a worker."""
        return self.seconds * self.workers / self.slides


def main() -> int:
    """Draw the splits unless they stand, run, say what it shows. Returns the exit code."""
    options = _options()
    large = _split(options.folder / "large", options.large, options.side)
    small = {count: _split(options.folder / f"small-{count}", count, "1280x1920") for count in options.slides}
    with tempfile.TemporaryDirectory(prefix="clotkit-scale-") as scratch:
        cluster = Cluster(Path(scratch))
        try:
            cluster.start_scheduler()
            cluster.start_worker()
            one = [_tile(cluster, large, options.large) for _ in range(options.repeats)]
            cluster.start_worker()
            two = [_tile(cluster, large, options.large) for _ in range(options.repeats)]
            flat = [_tile(cluster, split, count) for count, split in small.items()]
        finally:
            cluster.close()
    facts = _facts(one, two, flat)
    publish_json(options.out, facts)
    print(json.dumps(facts, indent=2))
    return 0 if facts["holds"] else 1


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    line.add_argument("--large", type=int, default=40, help="slides for one worker against two (default: 40)")
    line.add_argument("--side", default="8192x12288", help="their size in pixels (default: 8192x12288)")
    line.add_argument("--slides", type=int, nargs="+", default=[10, 30, 100, 300], help="small ones (10 30 100 300)")
    line.add_argument("--repeats", type=int, default=3, help="of which the median counts (default: 3)")
    line.add_argument("--folder", type=Path, default=ROOT / "build" / "scale")
    line.add_argument("--out", type=Path, default=ROOT / "build" / "scale.json")
    return line.parse_args()


def _split(folder: Path, slides: int, size: str) -> Path:
    if not (folder / "train.csv").is_file():
        write_split(folder, "train", slides, 9, load_competition("strip_ai"), size=size, log=lambda _: None)
    return folder


def _tile(cluster: Cluster, split: Path, slides: int) -> Run:
    """Tile a split anew with the workers that there are."""
    out = cluster.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = ["tile", str(split), str(out), "--recipe", RECIPE, "--backend", "dask", "--scheduler", cluster.address]
    client = subprocess.Popen([sys.executable, "-c", CLIENT, *words], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    lines = [client.stdout.readline()]
    began = time.monotonic()
    lines += client.stdout.readlines()
    seconds = time.monotonic() - began
    if client.wait():
        raise SystemExit("".join(lines))
    return Run(slides, len(cluster.workers), round(seconds, 2), float(lines[-1].split()[1]))


def _facts(one: list[Run], two: list[Run], flat: list[Run]) -> dict[str, Any]:
    faster = statistics.median(run.seconds for run in one) / statistics.median(run.seconds for run in two)
    slide = flat[-1].slide_s / flat[0].slide_s
    memory = flat[-1].peak_mb / flat[0].peak_mb
    return {
        "one_worker": [asdict(run) for run in one],
        "two_workers": [asdict(run) for run in two],
        "two_over_one": round(faster, 3),
        "by_slides": [asdict(run) | {"slide_s": round(run.slide_s, 4)} for run in flat],
        "slide_growth": round(slide, 3),
        "client_memory_growth": round(memory, 3),
        "holds": faster >= FASTER and slide <= FLAT and memory <= FLAT,
    }


if __name__ == "__main__":
    sys.exit(main())
