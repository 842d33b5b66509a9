"""The command line of bundles."""

import argparse
from pathlib import Path

from clotkit.options import DONE, Verbs, add_verb


def register(verbs: Verbs) -> None:
    """Add the verbs of this room to the command line."""
    _add_bundle(verbs)


def _add_bundle(verbs: Verbs) -> None:
    verb = add_verb(verbs, "bundle", "build the one script that Kaggle runs, from src/ and a kernel's main.py")
    verb.add_argument("--kernel", type=Path, default=Path("kernels/infer"), help="default: kernels/infer")
    verb.add_argument(
        "--out", type=Path, default=Path("build/kernel/script.py"), help="default: build/kernel/script.py"
    )
    verb.set_defaults(verb=_bundle)


def _bundle(arguments: argparse.Namespace) -> int:
    from clotkit.bundle.build import write_bundle

    print(write_bundle(arguments.kernel, arguments.competition, arguments.out))
    return DONE
