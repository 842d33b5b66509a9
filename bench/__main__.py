"""Measure the tiler against other readers on every layout: `python -m bench`.

Prints one table and the targets, and writes build/bench.json. Every measurement is a process of its own (`--one NAME
FILE`) with one libvips thread; the contenders take turns, round by round. The exit code is 1 if a target is missed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the benchmark, or one measurement of it, and return the exit code."""
    options = _options()
    if options.one:
        from bench.measuring import measure  # alone: what else is imported would be in the peak memory

        print(json.dumps(measure(options.one[0], Path(options.one[1]))))
        return 0
    if options.markdown:
        from bench.results import markdown

        print(*markdown(json.loads(options.out.read_text(encoding="utf-8"))), sep="\n")
        return 0
    return _bench(options)


def _bench(options: argparse.Namespace) -> int:
    from bench.comparing import ON_LARGEST
    from bench.results import CAPTION, header, table
    from bench.targets import targets

    rows = _rows(options)
    lines = targets(rows)
    caption = CAPTION.format(rounds=options.rounds, memory_mb=ON_LARGEST.memory_mb, seconds=ON_LARGEST.seconds)
    print(header(), "", *table(rows), "", caption, "", sep="\n")
    print("Targets:", *(text for _, text in lines), sep="\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if all(met for met, _ in lines) else 1


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Install the peers, draw the slides and measure every contender on each."""
    from bench.comparing import ON_LARGEST, Limits, compare
    from bench.contenders import names_of
    from bench.environments import install
    from bench.jobs import LARGEST
    from bench.layouts import largest, slides

    pythons = {name: install(name, options.environments, _say) for name in options.peers}
    rows = []
    for side in options.side:
        for layout, path in slides(options.folder, side, options.layouts, _say).items():
            names = names_of(layout, options.peers)
            rows += compare(layout, side, path, options.rounds, names, pythons, Limits())
    if options.largest:
        names = names_of(LARGEST, options.peers)
        rows += compare(LARGEST, None, largest(options.folder, _say), 1, names, pythons, ON_LARGEST)
    return rows


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _options() -> argparse.Namespace:
    from bench.environments import ENVIRONMENTS
    from bench.jobs import ALL_LAYOUTS

    line = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    line.add_argument(
        "--side",
        type=int,
        nargs="*",
        default=[10_000, 30_000],
        help="sides of the square slides, px (default: 10000 30000; none: the largest slide alone)",
    )
    line.add_argument(
        "--largest",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure on a slide of 48,284 x 101,408 px, 2.4 GB",
    )
    line.add_argument("--rounds", type=int, default=3, help="measurements of each contender (default: 3)")
    line.add_argument("--layouts", nargs="+", choices=ALL_LAYOUTS, default=list(ALL_LAYOUTS), metavar="LAYOUT")
    line.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "bench", help="folder of the slides, kept for the next run"
    )
    line.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json", help="the JSON file to write")
    line.add_argument(
        "--peers",
        nargs="*",
        choices=ENVIRONMENTS,
        default=list(ENVIRONMENTS),
        metavar="PEER",
        help="peers that pip installs into environments of their own (default: all)",
    )
    line.add_argument(
        "--environments", type=Path, default=ROOT / "build" / "peers", help="folder of the peers' environments"
    )
    line.add_argument("--markdown", action="store_true", help="measure nothing: print the file's rows as Markdown")
    line.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help="run one measurement and print a line of JSON")
    return line.parse_args()


if __name__ == "__main__":
    sys.exit(main())
