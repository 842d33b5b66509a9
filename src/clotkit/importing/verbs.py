"""Add the verbs of ONNX members to the command line: member import and member export."""

import argparse
from functools import partial
from pathlib import Path

from clotkit.options import DONE, Result, Verbs, add_competition, out_folder


def register(verbs: Verbs) -> None:
    """Add this package's verbs to the command line."""
    text = "make a member of an ONNX file from any framework, or an ONNX file of a member"
    top = verbs.add_parser("member", help=text, description=text)
    inner = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_import(inner)
    _add_export(inner)


def _add_import(verbs: Verbs) -> None:
    text = "check an ONNX file on tiles, fit its calibration to out-of-fold predictions, and write a member folder"
    verb = verbs.add_parser("import", help=text, description=text)
    verb.add_argument(
        "model", type=Path, metavar="MODEL.onnx", help="the network; external data lies in the same folder"
    )
    verb.add_argument(
        "--recipe", required=True, metavar="TOML", help='a recipe with model.name = "onnx" and the table [onnx]'
    )
    verb.add_argument(
        "--oof",
        type=Path,
        required=True,
        metavar="CSV",
        help="out-of-fold predictions: image_id, predictions (p of the last class) or a column a class, perhaps fold",
    )
    verb.add_argument("--labels", type=Path, required=True, metavar="FILE", help="the table of labels, train.csv")
    verb.add_argument(
        "--out", type=out_folder, required=True, metavar="MEMBER_DIR", help="a folder that does not exist yet"
    )
    verb.add_argument(
        "--data",
        type=Path,
        metavar="SPLIT",
        help="a train split, or its tiles: check the network on two slides of each class (default: on noise)",
    )
    add_competition(verb)
    verb.set_defaults(verb=_import)


def _import(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.importing.importer import ImportSettings, import_member

    settings = ImportSettings(
        arguments.model, arguments.recipe, arguments.oof, arguments.labels, arguments.out, arguments.data
    )
    metrics = import_member(settings, load_competition(arguments.competition), partial(print, flush=True))
    return Result(DONE, {"member": arguments.out, "metrics": metrics})


def _add_export(verbs: Verbs) -> None:
    text = "write a member's Keras networks as one ONNX file, in a member folder of its own (needs tf2onnx)"
    verb = verbs.add_parser("export", help=text, description=text)
    verb.add_argument("member", type=Path, metavar="MEMBER_DIR", help="the member of Keras networks")
    verb.add_argument("--out", type=out_folder, required=True, metavar="DIR", help="a folder that does not exist yet")
    verb.set_defaults(verb=_export)


def _export(arguments: argparse.Namespace) -> Result:
    from clotkit.importing.exporting import export_member

    difference = export_member(arguments.member, arguments.out, partial(print, flush=True))
    return Result(DONE, {"member": arguments.out, "largest_difference": difference})
