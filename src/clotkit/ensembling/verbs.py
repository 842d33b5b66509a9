"""The command line of ensembling: `clotkit blend`."""

import argparse
from functools import partial
from pathlib import Path

from clotkit.options import DONE, Result, Verbs, add_verb, out_folder


def register(verbs: Verbs) -> None:
    """Add the verbs of this package to the command line."""
    _add_blend(verbs)


def _add_blend(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "blend", "fit an ensemble to out-of-fold predictions, and estimate its score by nested folds"
    )
    verb.add_argument(
        "predictions",
        type=Path,
        nargs="+",
        metavar="PRED.csv",
        help="a member's out-of-fold predictions: image_id, and predictions (p of the last class) or a column a class",
    )
    verb.add_argument("--labels", type=Path, required=True, metavar="FILE", help="the table of labels, train.csv")
    verb.add_argument(
        "--out",
        type=out_folder,
        required=True,
        metavar="ENSEMBLE_DIR",
        help="write ensemble.toml and calibration.json here: the members' folder, for run --weights",
    )
    verb.add_argument(
        "--covariates", type=Path, metavar="FILE", help="ignored: slide sizes did not improve the nested score"
    )
    verb.add_argument(
        "--tabular",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of the labels' table as further inputs, used if they lower the nested log loss",
    )
    verb.add_argument("--trust", nargs="+", default=[], metavar="NAME", help="skip the leakage check for these members")
    verb.set_defaults(verb=_blend)


def _blend(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.ensembling.blend import blend, lines
    from clotkit.ensembling.data import BlendSettings

    settings = BlendSettings(
        arguments.predictions,
        arguments.labels,
        arguments.out,
        arguments.covariates,
        arguments.trust,
        tabular=arguments.tabular,
    )
    figures = blend(settings, load_competition(arguments.competition), partial(print, flush=True))
    print("\n".join(lines(figures, arguments.out)))
    return Result(DONE, figures)
