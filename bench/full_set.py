"""Run the kernel on a full hidden test set, one slide in twenty broken: `python -m bench.full_set`.

The slides, as many as the hidden set has, have the real size distribution at an eighth of the sides. The run must show
that no patient with a valid slide is lost, that the pipeline's memory is flat, and that the run ends well before its
deadline. It also projects the time for the real sizes from the time of each slide. The exit code is 1 if one of these
does not hold; build/full_set.json has the figures. `--competition` is a name that ships, or the path of a .toml.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from clotkit.bundle.build import write_bundle
from clotkit.bundle.places import build_path, demo_weights
from clotkit.competitions import DEFAULT, Competition, load_competition
from clotkit.files import atomic_write_json
from clotkit.report.records import SlideReport, counts, read_report
from clotkit.splits import SlideRow, read_slides
from clotkit.submission.checking import check_submission
from clotkit.synthetic.phantom import write_split

ROOT = Path(__file__).resolve().parents[1]
SLIDES = 280  # where the number of the hidden set's is unknown
SIDES = 8  # sides of the real slides over the sides here
FAULTY = 20  # one slide in this many is broken
FLAT = 1.1  # maximum ratio of the pipeline's memory in the second half of the slides to the first half
FAULTS = ("truncated", "empty", "text", "damaged", "missing")


def main() -> int:
    """Draw the split if it is missing, run the kernel on it, print the figures, and return the exit code."""
    options = _options()
    name, competition = options.competition, load_competition(options.competition)
    slides = options.slides or competition.limits.hidden_slides or SLIDES
    folder = options.folder or ROOT / build_path("full-set", name)
    split = faulty_split(folder / f"split-{slides}-{options.seed}", slides, options.seed, competition)
    stage(folder / "kaggle", split, options.weights or ROOT / demo_weights(name), competition)
    seconds, memory = run_kernel(folder / "kaggle")
    facts = figures_of(folder / "kaggle", split, seconds, memory, competition)
    atomic_write_json(options.out or ROOT / build_path("full_set", name).with_suffix(".json"), facts)
    print(json.dumps(facts, indent=2))
    return 0 if facts["holds"] else 1


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.full_set", description=__doc__)
    line.add_argument("--competition", default=DEFAULT)
    line.add_argument("--slides", type=int)
    line.add_argument("--seed", type=int, default=280)
    line.add_argument("--weights", type=Path)
    line.add_argument("--folder", type=Path)
    line.add_argument("--out", type=Path)
    return line.parse_args()


def faulty_split(folder: Path, slides: int, seed: int, competition: Competition) -> Path:
    """Return a synthetic test split with every twentieth slide broken, each fault in turn."""
    if not (folder / "broken.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_split(folder, "test", slides, seed, competition, size="small", log=lambda _: None)
        rows = read_slides(folder, "test", competition)[FAULTY // 2 :: FAULTY]
        broken = {row.image_id: FAULTS[number % len(FAULTS)] for number, row in enumerate(rows)}
        for row in rows:
            break_slide(row.path, broken[row.image_id])
        atomic_write_json(folder / "broken.json", broken)
    return folder


def break_slide(path: Path, fault: str) -> None:
    """Damage a slide's file the way real ones have been damaged."""
    data = bytearray(path.read_bytes())
    if fault == "truncated":
        data = data[: len(data) // 2]
    elif fault == "damaged":
        data[len(data) // 3 : len(data) // 3 * 2] = os.urandom(len(data) // 3 * 2 - len(data) // 3)
    elif fault == "text":
        data = bytearray(b"<html>404 not found</html>\n")
    path.unlink()
    if fault != "missing":
        path.write_bytes(b"" if fault == "empty" else bytes(data))


def stage(root: Path, split: Path, weights: Path, competition: Competition) -> None:
    """Lay out Kaggle's folders, with the wheels if they have been collected."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("input/datasets", "working", "src"):
        (root / name).mkdir(parents=True)
    (root / "input" / competition.slug).symlink_to(split.resolve())
    (root / "input" / "datasets" / "weights").symlink_to(weights.resolve())
    wheels = ROOT / "build" / "wheels"
    if wheels.is_dir():
        (root / "input" / "datasets" / "wheels").symlink_to(wheels)
    write_bundle(ROOT / "kernels" / "infer", str(competition.source), root / "src" / "script.py")


def run_kernel(root: Path) -> tuple[float, list[float]]:
    """Run the kernel; return its seconds, and the pipeline's memory in MB at the end of each slide."""
    started, memory = time.monotonic(), []
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), "CLOTKIT_KAGGLE_ROOT": str(root)}
    command = [sys.executable, "-I", str(root / "src" / "script.py")]
    with subprocess.Popen(command, cwd=root / "working", env=environment, text=True, stdout=subprocess.PIPE) as kernel:
        for line in kernel.stdout or ():
            if line.startswith("[") and (pipeline := psutil.Process(kernel.pid).children()):
                memory.append(pipeline[0].memory_info().rss / 2**20)
            if not line.startswith("["):
                print(f"  | {line.rstrip()}", file=sys.stderr)
    if kernel.returncode:
        raise SystemExit(f"the kernel ended with {kernel.returncode}")
    return time.monotonic() - started, memory


def figures_of(
    root: Path, split: Path, seconds: float, memory: list[float], competition: Competition
) -> dict[str, Any]:
    """Return the figures of the run, and whether the requirements hold."""
    lines = {line.image_id: line for line in read_report(root / "working" / "report.jsonl")}
    slides = read_slides(split, "test", competition)
    broken = json.loads((split / "broken.json").read_text())
    lost = sorted(set(lost_patients(slides, lines, broken)))
    half = len(memory) // 2
    growth = max(memory[half:]) / max(memory[:half])
    verdict = check_submission(root / "working" / "submission.csv", competition.sample_path(split), competition)
    projected = projection(slides, lines)
    holds = verdict.valid and not lost and growth <= FLAT and projected["hours"] * 3600 < competition.limits.deadline_s
    return {
        "competition": competition.source.stem,
        "slides": len(slides),
        "broken": len(broken),
        "sides_over": SIDES,
        "states": counts(list(lines.values())),
        "patients": len(verdict.rows),
        "lost_patients": lost,
        "valid": verdict.valid,
        "seconds": round(seconds, 1),
        "pipeline_mb": {"first_half": round(max(memory[:half])), "second_half": round(max(memory[half:]))},
        "slide_mb": round(max(line.peak_mb for line in lines.values())),
        "projection": projected,
        "holds": holds,
    }


def lost_patients(slides: list[SlideRow], lines: dict[str, SlideReport], broken: dict[str, str]) -> Iterator[str]:
    """Yield patients with a valid slide but without a probability from any slide."""
    for slide in slides:
        own = [other.image_id for other in slides if other.patient_id == slide.patient_id]
        if slide.image_id not in broken and not any(lines[image_id].p for image_id in own):
            yield slide.patient_id


def projection(slides: list[SlideRow], lines: dict[str, SlideReport]) -> dict[str, float]:
    """Fit slide seconds as a constant plus a part per Mpx, and return hours at the real sizes.

    The hours are for the cores of this machine.
    """
    done = [lines[slide.image_id] for slide in slides if lines[slide.image_id].state == "done"]
    mpx = np.array([line.facts["width_px"] * line.facts["height_px"] / 1e6 for line in done])
    per_mpx, constant = np.polyfit(mpx, [line.seconds for line in done], 1)
    total_s = len(slides) * max(constant, 0) + max(per_mpx, 0) * mpx.sum() * SIDES**2 * len(slides) / len(done)
    cores = len(os.sched_getaffinity(0))
    return {
        "s_per_slide": round(float(constant), 3),
        "s_per_mpx": round(float(per_mpx), 5),
        "real_mpx_mean": round(float(mpx.mean()) * SIDES**2),
        "hours": round(float(total_s) / cores / 3600, 2),
        "cores": cores,
    }


if __name__ == "__main__":
    sys.exit(main())
