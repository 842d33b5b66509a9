"""Do jobs on a full test set in a container's entry point: `python -m bench.container`.

One slide in twenty is broken. The slides are those of `bench.full_set`, several in a job, under the limits of Grand
Challenge as `clotkit rehearse --arena grand-challenge` holds them. No job may fail, no sound slide may be lost, and
every slide must get the probabilities that `clotkit run` gives it. The exit code is 1 if one of these does not hold;
build/container.json has the figures.
"""

import argparse
import json
import shutil
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from bench.full_set import ROOT, SLIDES, faulty_split
from clotkit.bundle.places import demo_weights
from clotkit.cli import main as clotkit
from clotkit.competitions import DEFAULT, load_competition
from clotkit.containers.config import Api, ContainerConfig
from clotkit.files import atomic_write_json
from clotkit.rehearsal.grand_challenge import rehearse_container
from clotkit.report.records import read_report

PER_JOB = 20
TOLERANCE = 1e-6  # of a probability


def main() -> int:
    """Draw the split, do the jobs, run the split, print the figures, and return the exit code."""
    line = argparse.ArgumentParser(prog="python -m bench.container", description=__doc__)
    line.add_argument("--slides", type=int, default=SLIDES)
    line.add_argument("--seed", type=int, default=280)
    line.add_argument("--api", choices=list(Api), default=Api.EXEC)
    line.add_argument("--folder", type=Path, default=ROOT / "build" / "container")
    options = line.parse_args()
    competition, weights = load_competition(DEFAULT), ROOT / demo_weights(DEFAULT)
    split = faulty_split(
        options.folder / f"split-{options.slides}-{options.seed}", options.slides, options.seed, competition
    )
    config, out, started = (
        ContainerConfig(DEFAULT, api=Api(options.api)),
        options.folder / "rehearsal",
        time.monotonic(),
    )
    rehearse_container(split, weights, config, out, lambda _: None, PER_JOB)
    seconds = time.monotonic() - started
    shutil.rmtree(options.folder / "run", ignore_errors=True)
    with redirect_stdout(StringIO()):
        clotkit(["run", str(split), "--weights", str(weights), "--out", str(options.folder / "run")])
    facts = figures_of(out, options.folder / "run", split) | {"seconds": round(seconds, 1)}
    atomic_write_json(ROOT / "build" / "container.json", facts)
    print(json.dumps(facts, indent=2))
    return 0 if facts["holds"] else 1


def figures_of(out: Path, run: Path, split: Path) -> dict[str, Any]:
    """Return the figures of the jobs beside a run, and whether the requirements hold."""
    facts = json.loads((out / "rehearsal.json").read_text(encoding="utf-8"))
    broken = json.loads((split / "broken.json").read_text(encoding="utf-8"))
    slides = {slide["image_id"]: slide for job in facts["jobs"] for slide in job["slides"]}
    lines = {line.image_id: line for line in read_report(run / "report.jsonl")}
    lost = sorted(name for name, slide in slides.items() if slide["state"] == "fallback" and name not in broken)
    apart = [difference(slides[name]["p"], line.p) for name, line in lines.items()]
    return {
        "slides": len(slides),
        "broken": len(broken),
        "jobs": len(facts["jobs"]),
        "states": facts["slides"],
        "codes": facts["codes"],
        "lost": lost,
        "largest_difference": max(apart),
        "engine": facts["engine"],
        "api": facts["api"],
        "limits": facts["limits"],
        "peaks": facts["peaks"],
        "holds": not lost and len(slides) == len(lines) and max(apart) <= TOLERANCE,
    }


def difference(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """Return the largest difference of a slide's probabilities, infinite for other members."""
    if one.keys() != other.keys():
        return float("inf")
    return max((abs(a - b) for name in one for a, b in zip(one[name], other[name], strict=True)), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
