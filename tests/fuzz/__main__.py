"""Read mutations of the seed files and count the outcomes: `python -m tests.fuzz [NUMBER [SEED]]`."""

import sys
import tempfile
from pathlib import Path

from .run import FULL, SEED, fuzz, lines

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        number, seed = [int(word) for word in sys.argv[1:]] + [FULL, SEED][len(sys.argv) - 1 :]
        outcome = fuzz(number, Path(folder), seed)
    print("\n".join(lines(outcome)))
    sys.exit(1 if outcome.findings else 0)
