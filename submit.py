#!/usr/bin/env python3
"""Create submission.csv from a split and weights and validate it, or only validate a file.

Nothing is sent to Kaggle: `make kernel-push submit` does that.

python submit.py [--competition NAME] [--split DIR] [--weights DIR] [--out submission.csv] [--check FILE]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clotkit.competitions import Competition

ROOT = Path(__file__).resolve().parent
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"


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
    from clotkit.bundle.places import DEMO, build_path, demo_weights
    from clotkit.competitions import DEFAULT, load_competition

    name = arguments.competition or DEFAULT
    competition, of = load_competition(name), ("--competition", name)
    embedded, trained = ROOT / build_path("phantom", name), ROOT / demo_weights(name)
    split, weights = arguments.split or embedded, arguments.weights or trained
    targets = [embedded / ("test.csv" if embedded.name == "phantom" else ".made")] if split == embedded else []
    if weights == trained != ROOT / DEMO and not arguments.check:
        targets.append(trained / "metrics.json")
    if not make(name, [target for target in targets if not target.exists()]):
        return 2
    sample = str(competition.sample_path(split))
    if arguments.check:
        return clotkit("check", str(arguments.check), "--sample", sample, *of)
    return create(arguments.out, ("run", str(split), "--weights", str(weights), *of), competition, sample)


def make(competition: str, targets: Sequence[Path]) -> bool:
    """Make the embedded split and the members of a competition; return whether they are there."""
    if not targets:
        return True
    of = str(Path(competition).absolute()) if competition.endswith(".toml") else competition
    names = [str(path.relative_to(ROOT)) for path in targets]
    made = subprocess.run(["make", "--silent", "-C", str(ROOT), f"COMPETITION={of}", *names], check=False)
    return made.returncode == 0


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="submit.py", description="Create and validate submission.csv.")
    parser.add_argument(
        "--competition",
        metavar="NAME",
        help="a competition that ships with the kit, or the path of its .toml (default: the kit's default)",
    )
    parser.add_argument(
        "--split",
        type=Path,
        metavar="DIR",
        help="a test split (default: build/phantom, of another competition build/phantom-NAME: a synthetic one that is "
        "made if it is missing)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="a member, or a folder of members (default: weights/demo, of another competition build/weights-NAME: a "
        "small member that is trained if it is missing)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("submission.csv"), help="file to write (default: submission.csv)"
    )
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="only validate FILE against the split's sample submission"
    )
    return parser.parse_args()


def create(out: Path, run: Sequence[str], competition: "Competition", sample: str) -> int:
    """Run a verb in a temporary folder, check the submission that it writes there, then copy it to `out`."""
    from clotkit.files import atomic_write

    if not out.absolute().parent.is_dir():
        print(
            f"submit.py: {out.absolute().parent}: no such folder; create it or choose another --out",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="clotkit-submit-") as scratch:
        ran = clotkit(*run, "--out", scratch)
        written = Path(scratch) / competition.files.submission
        if ran not in (0, 3):
            return ran
        if clotkit("check", str(written), "--sample", sample, "--competition", str(competition.source)):
            return 2
        with atomic_write(out.absolute()) as temporary:
            shutil.copyfile(written, temporary)
    print(f"{out}: written and valid")
    return ran


def clotkit(*words: str) -> int:
    """Run a verb of clotkit in this process."""
    from clotkit.cli import main as verb

    return verb(words)


if __name__ == "__main__":
    sys.exit(main())
