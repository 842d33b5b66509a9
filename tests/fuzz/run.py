"""Run the fuzzer: draw mutations, read each, count the outcomes and keep the findings."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .mutations import mutation
from .reading import Reader

FULL = 20_000  # mutations of a full run
SEED = 2026
MAX_KEPT = 20  # findings whose files are kept


@dataclass
class Outcome:
    """The outcomes of a run of the fuzzer."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, dict[str, Any], bytes]] = field(default_factory=list)  # seed file, answer, bytes
    seconds: float = 0.0


def fuzz(number: int, folder: Path, seed: int = SEED) -> Outcome:
    """Read `number` mutations, the same ones for each seed; `folder` is for the file that is read."""
    outcome, path, started, draw = Outcome(), folder / "mutated.tif", time.monotonic(), random.Random(seed)
    with closing(Reader()) as reader:
        for _ in range(number):
            name, data = mutation(draw)
            path.write_bytes(data)
            answer = reader.read(path)
            outcome.counts[label(answer)] += 1
            if is_finding(answer) and len(outcome.findings) < MAX_KEPT:
                outcome.findings.append((name, answer, data))
    outcome.seconds = time.monotonic() - started
    return outcome


def is_finding(answer: dict[str, Any]) -> bool:
    """Return whether an answer is a hang, a crash, or other pixels without a word."""
    silent = answer["outcome"] == "read" and answer["differs"] and not answer["codes"]
    return silent or answer["outcome"] in ("raised", "crashed", "hung")


def label(answer: dict[str, Any]) -> str:
    """Return the words under which an answer is counted."""
    if answer["outcome"] == "read":
        agreed = "unlike" if answer["differs"] else "like" if answer["seconds"] else "without"
        return f"read by {answer['decoder']}, {agreed} a second decoder{', said so' if answer['codes'] else ''}"
    return " ".join([answer["outcome"], str(answer.get("code", ""))]).rstrip()


def lines(outcome: Outcome) -> Iterator[str]:
    """Yield the lines of the printed report."""
    total = outcome.counts.total()
    yield f"{total:,} mutations in {outcome.seconds:.0f} s, {os.cpu_count()} cores"
    yield from (f"{count:7,}  {words}" for words, count in sorted(outcome.counts.items()))
    yield f"{len(outcome.findings)} findings"
    for number, (name, answer, data) in enumerate(outcome.findings):
        kept = Path(f"build/fuzz/{number:02}_{name}.tif")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(data)
        yield f"{kept}: {answer}"
