"""Measure the tiler against other readers on every layout: `python -m bench`.

Prints one table and the targets, and writes build/bench.json. Every measurement is a process of its own (`--one NAME
FILE`) with one libvips thread; the contenders take turns, round by round. The exit code is 1 if a target is missed.
"""

import argparse
import json
import sys
from pathlib import Path

from bench.contenders import KIT_NAMES, OF_ONE_LEVEL, OF_PYRAMIDS
from bench.jobs import PYRAMIDS
from bench.measuring import ROOT, compare, measure
from bench.results import CAPTION, header, table
from bench.targets import LARGEST, targets


def main() -> int:
    """Run the benchmark, or one measurement of it, and return the exit code."""
    options = _options()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]))))
        return 0
    from bench.layouts import largest, slides

    rows = []
    for side in options.side:
        paths = slides(options.folder, side, options.layouts, _say)
        for layout, path in paths.items():
            names = list(OF_PYRAMIDS if layout in PYRAMIDS else OF_ONE_LEVEL)
            rows += compare(layout, side, path, options.rounds, names)
    if options.largest:
        rows += compare(LARGEST, None, largest(options.folder, _say), options.rounds, KIT_NAMES)
    lines = targets(rows)
    print(header(), "", *table(rows), "", CAPTION.format(rounds=options.rounds), "", sep="\n")
    print("Targets:", *(text for _, text in lines), sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(met for met, _ in lines) else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _options() -> argparse.Namespace:
    from bench.layouts import ALL_LAYOUTS

    line = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    line.add_argument(
        "--side",
        type=int,
        nargs="+",
        default=[10_000, 30_000],
        help="sides of the square slides, px (default: 10000 30000)",
    )
    line.add_argument(
        "--largest",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure memory on a slide of 48,284 x 101,408 px, 2.4 GB",
    )
    line.add_argument("--rounds", type=int, default=3, help="measurements of each contender (default: 3)")
    line.add_argument("--layouts", nargs="+", choices=ALL_LAYOUTS, default=list(ALL_LAYOUTS), metavar="LAYOUT")
    line.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "bench", help="folder of the slides, kept for the next run"
    )
    line.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json", help="the JSON file to write")
    line.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help="run one measurement and print a line of JSON")
    return line.parse_args()


if __name__ == "__main__":
    sys.exit(main())
