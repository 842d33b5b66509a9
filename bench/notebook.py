"""Rehearse the scoring kernel as a script and as a notebook, in turns: `python -m bench.notebook`.

Both run the same bundle over the embedded split. The submissions must be the same, byte for byte. The figures are the
CPU seconds of a rehearsal, as ratios within a round, and the peak memory. The exit code is 1 if a submission differs;
build/notebook.json has the figures.
"""

import argparse
import json
import resource
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.full_set import ROOT
from clotkit.bundle.notebook import KernelType
from clotkit.bundle.places import demo_weights
from clotkit.competitions import DEFAULT
from clotkit.files import atomic_write_json
from clotkit.rehearsal.sandbox import Rehearsal
from clotkit.rehearsal.scoring import rehearse

ROUNDS = 3


def main() -> int:
    """Rehearse in turns, print the figures, and return the exit code."""
    line = argparse.ArgumentParser(prog="python -m bench.notebook", description=__doc__)
    line.add_argument("--rounds", type=int, default=ROUNDS)
    line.add_argument("--split", type=Path, default=ROOT / "build" / "phantom")
    line.add_argument("--folder", type=Path, default=ROOT / "build" / "notebook")
    options = line.parse_args()
    if not options.split.is_dir():
        line.error(f"{options.split}: no split there; make dry-run draws it")
    rounds = [
        {kind: rehearsed(kind, options.split, options.folder / kind) for kind in KernelType}
        for _ in range(options.rounds)
    ]
    script, notebook = ([one[kind] for one in rounds] for kind in KernelType)
    facts = {
        "rounds": options.rounds,
        "equal": len({one["submission"] for one in (*script, *notebook)}) == 1,
        "script_cpu_s": statistics.median(one["cpu_s"] for one in script),
        "ratio": round(statistics.median(n["cpu_s"] / s["cpu_s"] for s, n in zip(script, notebook, strict=True)), 2),
        "script_mb": max(one["peak_mb"] for one in script),
        "notebook_mb": max(one["peak_mb"] for one in notebook),
        "script_bytes": script[0]["bytes"],
        "notebook_bytes": notebook[0]["bytes"],
    }
    atomic_write_json(ROOT / "build" / "notebook.json", facts)
    print(json.dumps(facts, indent=2))
    return 0 if facts["equal"] else 1


def rehearsed(kind: KernelType, split: Path, out: Path) -> dict[str, Any]:
    """Rehearse the kernel as this type, and return what it cost and left."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wheels, kernel = ROOT / "build" / "wheels", ROOT / "kernels" / "infer"
    how = Rehearsal(kernel, DEFAULT, wheels, "new", out, lambda _: None, kind)
    rehearse(str(split), ROOT / demo_weights(DEFAULT), how)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    layouts = json.loads((out / "rehearsal.json").read_text(encoding="utf-8"))["layouts"]
    return {
        "cpu_s": round(cpu_s, 2),
        "peak_mb": layouts["new"]["peak_mb"],
        "bytes": (out / kind.file_name).stat().st_size,
        "submission": (out / "submission.csv").read_bytes(),
    }


if __name__ == "__main__":
    sys.exit(main())
