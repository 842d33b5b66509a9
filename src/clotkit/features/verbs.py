"""The command `clotkit features`."""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

from clotkit.options import (
    DONE,
    FALLBACKS,
    Result,
    Verbs,
    add_backbones_dir,
    add_backend,
    add_slide_limits,
    add_verb,
    megabytes,
    out_place,
)
from clotkit.stores import place


def register(verbs: Verbs) -> None:
    """Add the verbs of this package to the command line."""
    verb = add_verb(verbs, "features", "encode the tiles of every slide of a split: an HDF5 file of features a slide")
    verb.add_argument(
        "split",
        type=place,
        metavar="SPLIT",
        help="folder or URL with train.csv or test.csv, and the slides; or with shards.csv, and tile shards",
    )
    verb.add_argument(
        "out",
        type=out_place,
        metavar="OUT",
        help="folder for the features and features.csv; or a URL like s3://bucket/uni",
    )
    verb.add_argument(
        "--encoder",
        metavar="NAME",
        help="folder of an encoder, or its name in a folder of --encoders; a backbone of the kit; or an .onnx file "
        "(default: the recipe's)",
    )
    verb.add_argument("--recipe", required=True, metavar="NAME", help="name of a built-in recipe, or path of a .toml")
    verb.add_argument(
        "--encoders",
        type=Path,
        default=Path("build/encoders"),
        metavar="DIR",
        help="folder of encoders (default: build/encoders)",
    )
    add_backbones_dir(verb)
    add_backend(verb, ("loky", "dask"), "loky: processes of this machine")
    verb.add_argument("--split-name", choices=("train", "test"), help="table to read (default: train if there is one)")
    add_slide_limits(verb)
    _add_encoder_limits(verb)
    verb.add_argument(
        "--layout",
        choices=("clotkit", "stamp"),
        default="clotkit",
        help="clotkit: as TRIDENT's, with coordinates in pixels; stamp: as STAMP's, in micrometres (default: clotkit)",
    )
    verb.add_argument(
        "--undated", action="store_true", help="ignore the slides' modification times, for slides that are copies"
    )
    verb.add_argument(
        "--verify", action="store_true", help="encode nothing, but compare every file of OUT with features.csv"
    )
    verb.add_argument(
        "--plan", action="store_true", help="encode nothing, but measure: files, MB, minutes and memory of this run"
    )
    verb.set_defaults(verb=_features)


def _add_encoder_limits(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--encoder-memory",
        type=megabytes,
        default=4096,
        metavar="SIZE",
        help="memory that the encoder may take: its batches are halved until they fit (default: 4GB)",
    )
    verb.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="tiles that the encoder gets at a time (default: 8, on a GPU 64, halved until they fit)",
    )


def _features(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.engines import Backend
    from clotkit.features.files import Layout
    from clotkit.features.run import FeatureSettings, extract_split

    competition = load_competition(arguments.competition)
    settings = FeatureSettings(
        split_dir=arguments.split,
        out=arguments.out,
        recipe=arguments.recipe,
        encoder=arguments.encoder,
        search=(arguments.encoders, arguments.backbones),
        split=arguments.split_name,
        jobs=arguments.jobs,
        memory_mb=arguments.memory or competition.limits.slide_memory_mb,
        encoder_memory_mb=arguments.encoder_memory,
        batch_tiles=arguments.batch,
        layout=Layout(arguments.layout),
        use_mtime=not arguments.undated,
        backend=Backend(arguments.backend, arguments.jobs, arguments.scheduler),
    )
    log = partial(print, flush=True)
    if arguments.verify:
        from clotkit.features.verify import verify_features

        found = verify_features(settings, competition, log)
        return Result(DONE if found.sound else FALLBACKS, {"out": arguments.out, **asdict(found)})
    if arguments.plan:
        from clotkit.features.plan import plan_features

        plan = plan_features(settings, competition, log)
        return Result(FALLBACKS if plan.failing else DONE, asdict(plan))
    counts = extract_split(settings, competition, log)
    return Result(FALLBACKS if counts["failed"] else DONE, {"out": arguments.out, "slides": counts})
