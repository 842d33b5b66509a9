"""Register the verb `clotkit bundle`."""

import argparse
from pathlib import Path

from clotkit.options import DONE, Verbs, add_verb


def register(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    _add_bundle(verbs)


def _add_bundle(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "bundle", "build the single script that Kaggle runs from a kernel's main.py and the kit's modules"
    )
    verb.add_argument("--kernel", type=Path, default=Path("kernels/infer"), help="default: kernels/infer")
    verb.add_argument(
        "--out", type=Path, default=Path("build/kernel/script.py"), help="default: build/kernel/script.py"
    )
    verb.set_defaults(verb=_bundle)


def _bundle(arguments: argparse.Namespace) -> int:
    from clotkit.bundle.build import write_bundle
    from clotkit.bundle.checkout import in_checkout

    print(write_bundle(in_checkout(arguments.kernel, "--kernel DIR"), arguments.competition, arguments.out))
    return DONE
