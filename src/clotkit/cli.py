"""Run `clotkit VERB`.

Each package registers its own verbs. Nothing heavy is imported before a verb runs, so that --help stays fast.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from clotkit import __version__
from clotkit.errors import ClotkitError
from clotkit.options import WRONG

# In the order of `clotkit --help`. A kernel's bundle carries only the packages that it runs.
VERBS = (
    "synthetic.verbs",
    "planning.verbs",
    "shards.verbs",
    "training.verbs",
    "evaluation.verbs",
    "members.verbs",
    "ensembling.verbs",
    "scoring.verbs",
    "report.verbs",
    "bundle.verbs",
    "rehearsal.verbs",
    "app.verbs",
    "kaggle.verbs",
)


def entry() -> None:
    """Run the console script: `main` on sys.argv, its result as exit code."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    Returns:
        0 when done, 2 for wrong usage or input, 3 when done with fallbacks, 130 when interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text of the locale
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.verb(arguments)
    except ClotkitError as error:
        print(f"clotkit: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("clotkit: interrupted; files that were already written are complete", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has closed it: `clotkit … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG
    return code


def parser() -> argparse.ArgumentParser:
    """Return the parser of every verb whose package is installed."""
    top = argparse.ArgumentParser(
        prog="clotkit",
        description="Kaggle code competitions over whole-slide images: "
        "from slides to a rehearsed kernel and a validated submission.csv.",
    )
    top.add_argument("--version", action="version", version=f"clotkit {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in VERBS:
        package = name.partition(".")[0]
        if find_spec(f"clotkit.{package}") and find_spec(f"clotkit.{name}"):
            import_module(f"clotkit.{name}").register(verbs)
    return top


if __name__ == "__main__":
    entry()
