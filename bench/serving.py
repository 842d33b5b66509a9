"""Serve small slides through a gateway, with broken ones and resets: `python -m bench.serving`.

The bundle of kernels/serve runs in the rehearsal's sandbox; the gateway sends 280 slides in random order, 5 % of them
broken, with a deadline of 30 s for every batch, the first ones too. Three times the server is killed and started again
in an empty folder. `clotkit run` scores the same files. Requirements: no exception, no deadline missed, no row missing
or null, every start up in less than 60 s, answers as in file mode to 1e-6, and the same states of slides. The exit code
is 1 if one does not hold; build/serving.json has the figures.
"""

import argparse
import csv
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.processes import run
from clotkit.competitions import Competition, load_competition
from clotkit.files import atomic_write_json
from clotkit.rehearsal.gateway import Failure, Gateway
from clotkit.rehearsal.sandbox import LAYOUTS, Rehearsal, Stage, make_sandbox
from clotkit.rehearsal.scoring import datasets_of
from clotkit.rehearsal.server import Server
from clotkit.rehearsal.serving import lay_out_data
from clotkit.report.records import REPORT, SlideReport, counts, read_report
from clotkit.splits import read_slides
from clotkit.synthetic.phantom import write_split

ROOT = Path(__file__).resolve().parents[1]
KERNEL, MEMBERS, WHEELS = ROOT / "kernels" / "serve", ROOT / "weights" / "demo", ROOT / "build" / "wheels"
BATCH_S, UP_S, CLOSE = 30.0, 60.0, 1e-6
RESETS, BROKEN_SHARE, SEED = 3, 0.05, 28
SERVING = "\n[serving]\ndeadline_s = {seconds}\n"


def main() -> int:
    """Draw slides if they are missing, serve and score them, print the figures, return the exit code."""
    options = _options()
    options.folder.mkdir(parents=True, exist_ok=True)
    toml = options.folder / "served.toml"
    competition = load_competition("strip_ai")
    toml.write_text(competition.source.read_text(encoding="utf-8") + SERVING.format(seconds=BATCH_S), encoding="utf-8")
    competition = load_competition(str(toml))
    split = options.folder / f"split-{options.slides}"
    if not (split / ".broken").is_file():
        write_split(split, "test", options.slides, 9, competition, size="640x960", log=lambda _: None)
        break_slides(split, competition)
    facts = measured(split, options.folder, toml, competition)
    atomic_write_json(options.out, facts)
    print(json.dumps(facts, indent=2))
    return 0 if facts["holds"] else 1


def break_slides(split: Path, competition: Competition) -> None:
    """Break a share of the slides, by turns: cut short, of random bytes, empty."""
    slides = read_slides(split, "test", competition, lambda _: None)
    chosen = random.Random(SEED).sample(slides, round(BROKEN_SHARE * len(slides)))
    for number, slide in enumerate(chosen):
        data = slide.path.read_bytes()
        broken = (data[: len(data) // 3], random.Random(number).randbytes(len(data)), b"")[number % 3]
        slide.path.write_bytes(broken)
    (split / ".broken").write_text("\n".join(slide.image_id for slide in chosen))


def measured(split: Path, folder: Path, toml: Path, competition: Competition) -> dict[str, Any]:
    """Serve the slides, score them from files, and return the figures."""
    gateway, server, lines, seconds = _serve(split, folder / "rehearsal", toml, competition)
    command = ["run", str(split), "--weights", str(MEMBERS), "--out", str(folder / "run"), "--competition", str(toml)]
    with (folder / "run.log").open("w", encoding="utf-8") as log:
        _, cost = run([sys.executable, "-m", "clotkit.cli", *command], log)
    in_files = {line.image_id: line for line in read_report(folder / "run" / REPORT)}
    return facts_of(gateway, server.up_s, lines, in_files, _submission(folder / "run" / "submission.csv")) | {
        "seconds": round(seconds, 1),
        "peak_mb": round(server.peak_mb),
        "file_mode_seconds": round(cost.seconds, 1),
        "cores": os.cpu_count(),
    }


def _serve(
    split: Path, out: Path, toml: Path, competition: Competition
) -> tuple[Gateway, Server, dict[str, SlideReport], float]:
    """Play the gateway over a split; return it, the server, the last line of each slide, and the seconds."""
    rehearsal = Rehearsal(KERNEL, str(toml), WHEELS, "new", out, print)
    sandbox, attached = make_sandbox(rehearsal), datasets_of(rehearsal, MEMBERS)
    data = lay_out_data(split, out / "data-hidden", competition, slides=False)
    stage = Stage(out / "new-rerun", LAYOUTS["new"], competition.slug, attached, data, sandbox.namespace)
    slides = read_slides(split, "test", competition, lambda _: None)
    started = time.monotonic()
    with Server(stage, sandbox, competition.serving, print) as server:
        gateway = Gateway(server, slides, split, competition)
        batches = gateway.batches(SEED)
        resets = [(number + 1) * len(batches) // (RESETS + 1) for number in range(RESETS)]
        gateway.play(batches, resets)
    folders = [*server.workings, stage.working]
    lines = {line.image_id: line for folder in folders for line in read_report(folder / REPORT)}
    return gateway, server, lines, time.monotonic() - started


def facts_of(
    gateway: Gateway,
    up_s: Sequence[float],
    served: dict[str, SlideReport],
    in_files: dict[str, SlideReport],
    submission: dict[str, list[float]],
) -> dict[str, Any]:
    """Return the figures of a run, and whether they hold.

    `served` and `in_files` are the lines of the two reports by slide, `submission` the answers of file mode by id.
    """
    results = gateway.results
    farthest = max(
        abs(one - other)
        for key, answers in submission.items()
        for one, other in zip(results.answers.get(key, answers), answers, strict=True)
    )
    facts = results.facts | {
        "resets": len(up_s) - 1,
        "up_s": list(up_s),
        "ids_without_answer": len(submission.keys() - results.answers.keys()),
        "slides": counts(list(served.values())),
        "slides_in_file_mode": counts(list(in_files.values())),
        "other_state": sum(served[one].state != line.state for one, line in in_files.items()),
        "farthest_from_file_mode": farthest,
    }
    held = not results.failures and farthest <= CLOSE and max(up_s) < UP_S and results.count(Failure.HELD) == 0
    return facts | {"holds": held and not facts["ids_without_answer"] and not facts["other_state"]}


def _submission(path: Path) -> dict[str, list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return {one: [float(cell) for cell in cells] for one, *cells in rows}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--slides", type=int, default=280, help="default: 280")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench-serving", help="for the slides and runs")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "serving.json", help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
