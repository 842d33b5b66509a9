"""Run `clotkit VERB`.

Each package registers its own verbs. Nothing heavy is imported before a verb runs, so that --help stays fast.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from clotkit import __version__
from clotkit.answer import Parser, WrongUsage, add_json, answer, refused
from clotkit.console import guarded, kept_going, lost, one_line_a_thread
from clotkit.options import DONE, FALLBACKS, WRONG, verbs_of
from clotkit.spawning import without_main

# In the order of `clotkit --help`. A kernel's bundle carries only the packages that it runs.
VERBS = (
    "drafting.verbs",
    "synthetic.verbs",
    "planning.verbs",
    "shards.verbs",
    "features.verbs",
    "training.mil.verbs",
    "tuning.verbs",
    "evaluation.verbs",
    "members.verbs",
    "importing.verbs",
    "ensembling.verbs",
    "scoring.verbs",
    "serving.verbs",
    "report.verbs",
    "bundle.verbs",
    "rehearsal.verbs",
    "containers.verbs",
    "app.web.verbs",
    "kaggle.verbs",
)
PRINTED = ("plan", "predict", "check", "list")  # verbs whose work is what they print


def entry() -> None:
    """Run the console script: `main` on sys.argv, its result as exit code."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    Returns:
        0 when done, 1 for an error that nobody foresaw, 2 for wrong usage or input, 3 when done with fallbacks, 130
        when interrupted.
    """
    with kept_going(), one_line_a_thread(), without_main():
        return guarded(lambda: _run(_parsed(argv)))


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of a command line. Raises WrongUsage."""
    try:
        return parser().parse_args(argv)
    except WrongUsage as usage:
        refused(usage, sys.argv if argv is None else argv)
        raise


def _run(arguments: argparse.Namespace) -> int:
    """Run the verb of a command line and return its exit code."""
    out = getattr(arguments, "out", None)
    code = answer(arguments, out if isinstance(out, Path) else None)
    return code if not (why := lost()) else _with_lost_log(code, why, arguments)


def _with_lost_log(code: int, why: str, arguments: argparse.Namespace) -> int:
    """Say that part of the log is lost; return WRONG if what is printed is the work itself."""
    print(f"clotkit: {why}; what was printed after that is lost", file=sys.stderr)
    is_work = arguments.verb_name in PRINTED or arguments.json
    return WRONG if is_work and code in (DONE, FALLBACKS) else code


def parser() -> argparse.ArgumentParser:
    """Return the parser of every verb whose package is installed."""
    top = Parser(
        prog="clotkit",
        description="Kaggle code competitions over whole-slide images: "
        "from slides to a rehearsed kernel and a validated submission.csv.",
    )
    top.add_argument("--version", action="version", version=f"clotkit {__version__}")
    verbs = top.add_subparsers(title="verbs", dest="verb_name", metavar="VERB", required=True)
    for name in VERBS:
        package = name.partition(".")[0]
        if find_spec(f"clotkit.{package}") and find_spec(f"clotkit.{name}"):
            import_module(f"clotkit.{name}").register(verbs)
    for words, verb in verbs_of(top).items():
        add_json(verb, words)
    return top


if __name__ == "__main__":
    entry()
