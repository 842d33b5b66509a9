"""Measure what a process a slide costs on small slides: `python -m bench.small_slides`.

`clotkit tile` and `clotkit run` go over the same slides, an eighth of the competition's in each side, with processes
that are spawned and with processes that are forked from a prepared server, by turns. 40 slides are drawn, and linked
under as many names as it takes. Cells are medians over the rounds, of whole commands. Requirement: forked, both
commands do at least twice as many slides a second, which takes an idle machine. The exit code is 1 if one does not;
build/small_slides.json has the figures, by the CPU seconds too.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from bench.processes import run
from clotkit.competitions import load_competition
from clotkit.files import atomic_write_json
from clotkit.forking import METHOD, SPAWN
from clotkit.report.records import read_report
from clotkit.splits import read_slides
from clotkit.synthetic.phantom import write_split

ROOT = Path(__file__).resolve().parents[1]
FASTER = 2.0  # minimum slides a second of forked processes over spawned ones
DRAWN = 40  # slides; the others are links to them
METHODS = (SPAWN, "fork")
RECIPE, MEMBERS = "demo", ROOT / "weights" / "demo"


@dataclass(frozen=True)
class Timing:
    """One command over all slides."""

    verb: str
    method: str
    seconds: float
    cpu_s: float  # of all its processes
    slide_mb: float | None  # median of the peaks of the slides' processes, where a report has them


def main() -> int:
    """Draw the slides if they are missing, run, print the figures, and return the exit code."""
    options = _options()
    split = options.folder / f"split-{options.slides}"
    if not (split / "test.csv").is_file():
        drawn = options.folder / "drawn"
        write_split(drawn, "test", DRAWN, 9, load_competition("strip_ai"), size="small", log=lambda _: None)
        link_slides(drawn, split, options.slides)
    timings = list(_timings(split, options.rounds, options.jobs))
    facts = facts_of(timings, options.slides)
    atomic_write_json(options.out, facts | {"timings": [asdict(timing) for timing in timings]})
    print(json.dumps(facts, indent=2))
    return 0 if facts["holds"] else 1


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.small_slides", description=__doc__)
    line.add_argument("--slides", type=int, default=280, help="number of slides (default: 280)")
    line.add_argument("--jobs", type=int, default=2, help="slides at a time (default: 2)")
    line.add_argument("--rounds", type=int, default=3, help="runs per figure, of which the median counts (default: 3)")
    line.add_argument("--folder", type=Path, default=ROOT / "build" / "small_slides")
    line.add_argument("--out", type=Path, default=ROOT / "build" / "small_slides.json")
    return line.parse_args()


def link_slides(drawn: Path, split: Path, slides: int) -> None:
    """Make a split of `slides` patients, whose slides are links to the drawn ones, over and over."""
    (split / "test").mkdir(parents=True, exist_ok=True)
    rows = read_slides(drawn, "test", load_competition("strip_ai"))
    patients = [f"{number:06x}" for number in range(slides)]
    for patient, row in zip(patients, cycle(rows), strict=False):
        (split / "test" / f"{patient}_0.tif").hardlink_to(row.path)
    heading = (drawn / "sample_submission.csv").read_text(encoding="utf-8").splitlines()[0]
    sample = [heading, *(f"{patient},0.5,0.5" for patient in patients)]
    (split / "sample_submission.csv").write_text("\n".join(sample) + "\n", encoding="utf-8")
    table = ["image_id,center_id,patient_id,image_num", *(f"{patient}_0,1,{patient},0" for patient in patients)]
    (split / "test.csv").write_text("\n".join(table) + "\n", encoding="utf-8")


def _timings(split: Path, rounds: int, jobs: int) -> Iterator[Timing]:
    """Yield the timing of both commands with both methods, by turns."""
    for _ in range(rounds):
        for verb in ("tile", "run"):
            for method in METHODS:
                with tempfile.TemporaryDirectory(prefix="clotkit-small-") as scratch:
                    yield _timing(verb, method, split, Path(scratch), jobs)


def _timing(verb: str, method: str, split: Path, folder: Path, jobs: int) -> Timing:
    out = folder / "out"
    words = {
        "tile": [split, out, "--recipe", RECIPE, "--split", "test"],
        "run": [split, "--weights", MEMBERS, "--out", out],
    }[verb]
    os.environ[METHOD] = method
    with (folder / "log").open("w+", encoding="utf-8") as log:
        code, cost = run([sys.executable, "-m", "clotkit.cli", verb, *words, "--jobs", jobs], log)
        log.seek(0)
        if code:
            raise SystemExit(log.read())
    if verb == "tile":
        return Timing(verb, method, cost.seconds, cost.cpu_s, None)
    lines = read_report(out / "report.jsonl")
    return Timing(verb, method, cost.seconds, cost.cpu_s, statistics.median(line.peak_mb for line in lines))


def facts_of(timings: list[Timing], slides: int) -> dict[str, Any]:
    """Return the medians of each verb and method, and how many times as fast the second method is."""
    facts, faster = dict[str, Any](), []
    for verb in ("tile", "run"):
        of = {method: [t for t in timings if (t.verb, t.method) == (verb, method)] for method in METHODS}
        seconds = {method: statistics.median(t.seconds for t in of[method]) for method in METHODS}
        cpu_s = {method: statistics.median(t.cpu_s for t in of[method]) for method in METHODS}
        facts[verb] = {
            method: {
                "slides_a_second": round(slides / seconds[method], 2),
                "cpu_s_a_slide": round(cpu_s[method] / slides, 3),
                "slide_mb": of[method][0].slide_mb and round(statistics.median(t.slide_mb or 0 for t in of[method]), 1),
            }
            for method in METHODS
        }
        faster.append(seconds[SPAWN] / seconds["fork"])
        facts[verb]["times_as_fast"] = round(faster[-1], 2)
        facts[verb]["times_as_fast_by_cpu"] = round(cpu_s[SPAWN] / cpu_s["fork"], 2)
    return facts | {"slides": slides, "holds": min(faster) >= FASTER}


if __name__ == "__main__":
    sys.exit(main())
