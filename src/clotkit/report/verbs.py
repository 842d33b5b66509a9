"""The command line of the report of a run."""

import argparse
from pathlib import Path

from clotkit.options import DONE, Verbs


def register(verbs: Verbs) -> None:
    """Add the verbs of this room to the command line."""
    _add_report(verbs)


def _add_report(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "report", help="make report.html of a run: its verdict, slides, patients and timeline on one page"
    )
    verb.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the --out of a clotkit run")
    verb.set_defaults(verb=_report)


def _report(arguments: argparse.Namespace) -> int:
    from clotkit.report.page import write_page

    print(write_page(arguments.run_dir))
    return DONE
