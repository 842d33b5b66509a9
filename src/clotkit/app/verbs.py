"""The command line of the application."""

import argparse
from pathlib import Path

from clotkit.options import DONE, Verbs, add_verb


def register(verbs: Verbs) -> None:
    """Add the verbs of this room to the command line."""
    _add_app(verbs)


def _add_app(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "app", "serve the pages: classify pictures, look at slides, check submissions, see trainings"
    )
    verb.add_argument("--port", type=int, default=8501, help="default: 8501")
    verb.add_argument(
        "--address", default="127.0.0.1", help="whom to listen to (default: 127.0.0.1, this machine alone)"
    )
    verb.add_argument(
        "--weights", type=Path, default=Path("weights"), metavar="DIR", help="a folder of members (default: weights)"
    )
    verb.add_argument(
        "--root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder whose splits and runs may be opened; may be given again; nothing outside is read",
    )
    verb.set_defaults(verb=_app)


def _app(arguments: argparse.Namespace) -> int:
    from clotkit.app.serve import AppSettings, serve

    serve(
        AppSettings(arguments.weights, tuple(arguments.root), arguments.competition, arguments.port, arguments.address)
    )
    return DONE
