"""The verb `clotkit app`."""

import argparse
from pathlib import Path

from clotkit.errors import needs_extra
from clotkit.options import DONE, Result, Verbs, add_verb


def register(verbs: Verbs) -> None:
    """Add the verbs of this package to the command line."""
    _add_app(verbs)


def _add_app(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "app",
        "serve pages to classify pictures, view slides, start and compare runs, check submissions and review trainings",
    )
    verb.add_argument("--port", type=int, default=8501, help="port to listen on, 1024 to 65535 (default: 8501)")
    verb.add_argument(
        "--address", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    verb.add_argument(
        "--weights",
        type=Path,
        default=Path("weights"),
        metavar="DIR",
        help="a member, or a folder of members (default: weights)",
    )
    verb.add_argument(
        "--root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder whose splits and runs may be opened, repeatable; nothing outside these folders is read",
    )
    verb.set_defaults(verb=_app)


def _app(arguments: argparse.Namespace) -> Result:
    with needs_extra("app"):
        from clotkit.app.web.server import AppSettings, serve

    serve(
        AppSettings(arguments.weights, tuple(arguments.root), arguments.competition, arguments.port, arguments.address)
    )
    return Result(DONE, {"address": arguments.address, "port": arguments.port})
