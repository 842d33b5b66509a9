#!/usr/bin/env python3
"""Create submission.csv from a split and weights and validate it, or only validate a file.

Nothing is sent to Kaggle: `make kernel-push submit` does that.

python submit.py [--split DIR] [--weights DIR] [--out submission.csv] [--check FILE]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clotkit.competitions import Competition

ROOT = Path(__file__).resolve().parent
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
EMBEDDED = ROOT / "build" / "phantom"


def main() -> int:
    """Run the program and return its exit code.

    Returns:
        0 when done, 1 for an error that nobody foresaw, 2 for wrong usage or input, 3 when done with fallbacks.
    """
    arguments = parse()
    if not (ROOT / ".venv" / ".runtime").exists():
        print(f"submit.py: clotkit is not set up here; type: make -C {ROOT} setup", file=sys.stderr)
        return 2
    if Path(sys.prefix) != ROOT / ".venv":
        os.execv(VENV_PYTHON, [str(VENV_PYTHON), str(Path(__file__).resolve()), *sys.argv[1:]])
    from clotkit.console import guarded

    return guarded(lambda: submit(arguments))


def submit(arguments: argparse.Namespace) -> int:
    """Check a file, or create one and check it; return the exit code."""
    from clotkit.competitions import load_competition

    competition = load_competition()
    sample = str(competition.sample_path(arguments.split))
    if arguments.split == EMBEDDED and not (EMBEDDED / "test.csv").exists():
        made = subprocess.run(["make", "--silent", "-C", str(ROOT), "build/phantom/test.csv"], check=False)
        if made.returncode:
            return 2
    if arguments.check:
        return clotkit("check", str(arguments.check), "--sample", sample)
    return create(arguments, competition, sample)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="submit.py", description="Create and validate submission.csv.")
    parser.add_argument(
        "--split",
        type=Path,
        default=EMBEDDED,
        metavar="DIR",
        help="a test split (default: build/phantom, a synthetic one that is made if it is missing)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=ROOT / "weights" / "demo",
        metavar="DIR",
        help="a member, or a folder of members (default: weights/demo)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("submission.csv"), help="file to write (default: submission.csv)"
    )
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="only validate FILE against the split's sample submission"
    )
    return parser.parse_args()


def create(arguments: argparse.Namespace, competition: "Competition", sample: str) -> int:
    """Run in a temporary folder, check the submission there, then copy it to --out."""
    from clotkit.files import atomic_write

    if not arguments.out.absolute().parent.is_dir():
        print(
            f"submit.py: {arguments.out.absolute().parent}: no such folder; create it or choose another --out",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="clotkit-submit-") as scratch:
        ran = clotkit("run", str(arguments.split), "--weights", str(arguments.weights), "--out", scratch)
        written = Path(scratch) / competition.files.submission
        if ran not in (0, 3):
            return ran
        if clotkit("check", str(written), "--sample", sample):
            return 2
        with atomic_write(arguments.out.absolute()) as temporary:
            shutil.copyfile(written, temporary)
    print(f"{arguments.out}: written and valid")
    return ran


def clotkit(*words: str) -> int:
    """Run a verb of clotkit in this process."""
    from clotkit.cli import main as verb

    return verb(words)


if __name__ == "__main__":
    sys.exit(main())
