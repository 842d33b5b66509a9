"""Add `clotkit report` to the command line."""

import argparse
from pathlib import Path

from clotkit.options import DONE, Result, Verbs


def register(verbs: Verbs) -> None:
    """Add the verbs of this package to the command line."""
    _add_report(verbs)


def _add_report(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "report", help="make report.html from the files of a run: verdict, slides, patients and timeline on one page"
    )
    verb.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the --out folder of a clotkit run")
    verb.set_defaults(verb=_report)


def _report(arguments: argparse.Namespace) -> Result:
    from clotkit.report.page import write_page

    page = write_page(arguments.run_dir)
    print(page)
    return Result(DONE, {"page": page})
