"""Add the verbs of training to the command line: train and manifest.

They are here, above the rest of training, because `train` trains networks that see tiles and heads over features.
"""

import argparse
from functools import partial
from pathlib import Path

from clotkit.options import (
    DONE,
    Result,
    Verbs,
    add_backbones_dir,
    add_recipe,
    add_training_data,
    add_verb,
    out_folder,
    seconds,
)
from clotkit.stores import place
from clotkit.units import many


def register(verbs: Verbs) -> None:
    """Add this package's verbs to the command line."""
    _add_train(verbs)
    _add_manifest(verbs)


def _add_train(verbs: Verbs) -> None:
    verb = add_verb(verbs, "train", "train a member from a recipe, calibrate it and report its out-of-fold metrics")
    add_recipe(verb)
    verb.add_argument(
        "--data",
        type=place,
        required=True,
        metavar="PATH",
        help="a train split; the shards that clotkit tile made of one, or their URL (s3://…); pictures: a folder, a "
        "table or an .npz file; or, for a recipe with an encoder, a folder or URL of features, one HDF5 file a slide",
    )
    verb.add_argument(
        "--out",
        type=out_folder,
        required=True,
        metavar="MEMBER_DIR",
        help="folder to write the member to; run the same command again to resume a run that was killed",
    )
    verb.add_argument(
        "--folds", type=int, help="number of folds for the out-of-fold predictions (default: the recipe's)"
    )
    verb.add_argument(
        "--split",
        type=Path,
        metavar="DIR",
        help="the train split with the table of the slides, for features that lie without it",
    )
    add_training_data(verb)
    verb.add_argument(
        "--wait",
        type=seconds,
        default=1800.0,
        metavar="TIME",
        help="how long to wait for the other training workers (default: 30m)",
    )
    add_backbones_dir(verb)
    verb.set_defaults(verb=_train)


def _train(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.training.mil.train import train_any
    from clotkit.training.train import TrainSettings

    settings = TrainSettings(
        recipe=arguments.recipe,
        data=arguments.data,
        out=arguments.out,
        folds=arguments.folds,
        limit=arguments.limit,
        backbones=arguments.backbones,
        cache=arguments.cache,
        wait_s=arguments.wait,
        split=arguments.split,
    )
    metrics = train_any(settings, load_competition(arguments.competition), partial(print, flush=True))
    return Result(DONE, {"member": arguments.out, "metrics": metrics})


def _add_manifest(verbs: Verbs) -> None:
    verb = verbs.add_parser("manifest", help="write MANIFEST.json, which lists the hashes of the members in a folder")
    verb.add_argument("weights", type=Path, metavar="DIR", help="a folder of members")
    verb.set_defaults(verb=_manifest)


def _manifest(arguments: argparse.Namespace) -> Result:
    from clotkit.training.member_folder import write_manifest

    members = write_manifest(arguments.weights)
    print(f"{arguments.weights}: {many(members, 'member')} listed")
    return Result(DONE, {"folder": arguments.weights, "members": members})
