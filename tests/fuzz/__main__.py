"""Read mutations of the seed files, 20,000 if no number is given, and count the outcomes."""

import sys
import tempfile
from pathlib import Path

from .run import FULL, fuzz, lines

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        outcome = fuzz(int(sys.argv[1]) if len(sys.argv) > 1 else FULL, Path(folder))
    print("\n".join(lines(outcome)))
    sys.exit(1 if outcome.findings else 0)
