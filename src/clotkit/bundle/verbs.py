"""Register the verb `clotkit bundle`."""

import argparse
from pathlib import Path

from clotkit.options import DONE, Result, Verbs, add_kernel_type, add_verb, out_file


def register(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    _add_bundle(verbs)


def _add_bundle(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "bundle", "build the single script that Kaggle runs from a kernel's main.py and the kit's modules"
    )
    verb.add_argument("--kernel", type=Path, default=Path("kernels/infer"), help="default: kernels/infer")
    add_kernel_type(verb)
    verb.add_argument("--out", type=out_file, help="default: build/kernel/script.py, or script.ipynb")
    verb.set_defaults(verb=_bundle)


def _bundle(arguments: argparse.Namespace) -> Result:
    from clotkit.bundle.build import write_bundle
    from clotkit.bundle.checkout import in_checkout
    from clotkit.bundle.notebook import type_of

    kernel = in_checkout(arguments.kernel, "--kernel DIR")
    kernel_type = type_of(kernel, arguments.kernel_type)
    out = arguments.out or Path("build/kernel") / kernel_type.file_name
    print(write_bundle(kernel, arguments.competition, out, kernel_type))
    return Result(DONE, {"file": out, "bytes": out.stat().st_size})
