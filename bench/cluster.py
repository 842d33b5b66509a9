"""Compare the cluster plan's predicted seconds with real runs on 1 and 2 workers.

Run it with `python -m bench.cluster`. A synthetic split of varied sizes is planned: up to 16 of its slides are cut, and
the rest is predicted from them. Then it is tiled for real: on one machine with one thread, on one with two, and on two
Dask workers of one thread each on loopback. Two threads, or workers, share the cores of this machine, so the cost of a
slide is measured with as many at a time. A new prediction is made before each run.

The exit code is 1 if a median is off by more than WITHIN; build/cluster.json has the figures. They mean little on a
busy machine.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clotkit.competitions import load_competition
from clotkit.files import atomic_write_json
from clotkit.synthetic.phantom import write_split

ROOT = Path(__file__).resolve().parents[1]
CASES = ((1, 1), (1, 2), (2, 1))  # (machines, threads of each)
WITHIN = 0.25  # allowed error, of the measured seconds
COLUMNS = ("machines", "threads", "predicted_s", "measured_s", "ratio")


def main() -> int:
    """Draw the split if it is missing, plan and tile it, print the table, and return the exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers end with this process
    split = varied_split(options.folder / f"split-{options.slides}-{options.seed}-{options.size}", options)
    rows = [compare(split, options, *case) for case in CASES]
    atomic_write_json(options.out, rows)
    print(f"{options.slides} slides, {_stored_mb(split):,.0f} MB; {options.recipe}; median of {options.rounds} runs")
    print(*table(rows), sep="\n")
    return int(any(abs(row["ratio"] - 1) > WITHIN for row in rows))


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    line.add_argument("--slides", type=int, default=120)
    line.add_argument("--seed", type=int, default=40)
    line.add_argument("--size", default="small", help="size of the slides, as for clotkit phantom")
    line.add_argument("--recipe", default="strip_ai")
    line.add_argument("--rounds", type=int, default=3)
    line.add_argument("--folder", type=Path, default=ROOT / "build" / "cluster")
    line.add_argument("--out", type=Path, default=ROOT / "build" / "cluster.json")
    return line.parse_args()


def varied_split(folder: Path, options: argparse.Namespace) -> Path:
    """Return a synthetic train split with the spread of the real sizes."""
    if not (folder / "train.csv").exists():  # the table is written last
        shutil.rmtree(folder, ignore_errors=True)
        drawn = options.slides, options.seed, load_competition()
        write_split(folder, "train", *drawn, size=options.size, log=lambda _: None)
    return folder


def _stored_mb(split: Path) -> float:
    return sum(path.stat().st_size for path in (split / "train").iterdir()) / 1e6


def compare(split: Path, options: argparse.Namespace, machines: int, threads: int) -> dict[str, Any]:
    """Plan and run one case in turns, and return its row of the table; each figure is a median."""
    at_a_time = machines * threads  # two workers here are two threads of one machine
    predicted, measured = list[float](), list[float]()
    with workers(machines) as backend:
        for _ in range(options.rounds):
            predicted.append(predict(split, options.recipe, at_a_time))
            measured.append(tile(split, ["--recipe", options.recipe, "--jobs", str(threads), *backend]))
    ratio = statistics.median(p / m for p, m in zip(predicted, measured, strict=True))
    figures = machines, threads, statistics.median(predicted), statistics.median(measured), ratio
    return {**dict(zip(COLUMNS, figures, strict=True)), "rounds_s": list(zip(predicted, measured, strict=True))}


def predict(split: Path, recipe: str, threads: int) -> float:
    """Return the seconds that `clotkit plan --cluster` predicts for the split on this machine's threads."""
    words = ["plan", str(split), "--recipe", recipe, "--cluster", "1", "--jobs", str(threads), "--json"]
    return float(json.loads(clotkit(words))["own"][0]["wall_s"])


def clotkit(words: Sequence[str]) -> str:
    """Run a verb in a process of its own, as a user does, and return its output."""
    command = [sys.executable, "-m", "clotkit.cli", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"clotkit {words[0]} ended with {ended.returncode}: {ended.stderr.strip()}")
    return ended.stdout


@contextmanager
def workers(machines: int) -> Iterator[Sequence[str]]:
    """Yield the options of `clotkit tile` for one machine, or for Dask workers that run meanwhile."""
    if machines == 1:
        yield ()
        return
    from tests.cluster import Cluster

    with tempfile.TemporaryDirectory(prefix="clotkit-cluster-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start_scheduler()
            for _ in range(machines):
                cluster.start_worker()
            yield "--backend", "dask", "--scheduler", cluster.address
        finally:
            cluster.close()


def tile(split: Path, words: Sequence[str]) -> float:
    """Return the seconds of one `clotkit tile` of the split."""
    with tempfile.TemporaryDirectory(prefix="clotkit-shards-") as out:
        started = time.perf_counter()
        clotkit(["tile", str(split), out, *words])
        return time.perf_counter() - started


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the rows in Markdown."""
    yield "| machines | threads | predicted, s | measured, s | ratio |"
    yield "|---|---|---|---|---|"
    for row in rows:
        figures = "{predicted_s:.1f} | {measured_s:.1f} | {ratio:.2f}".format_map(row)
        yield f"| {row['machines']} | {row['threads']} | {figures} |"


if __name__ == "__main__":
    sys.exit(main())
