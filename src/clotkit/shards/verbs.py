"""The command `clotkit tile`."""

import argparse
from dataclasses import asdict
from functools import partial

from clotkit.errors import UsageError
from clotkit.options import (
    DONE,
    FALLBACKS,
    Result,
    Verbs,
    add_backend,
    add_slide_limits,
    add_verb,
    megabytes,
    out_place,
    seconds,
)
from clotkit.stores import place


def register(verbs: Verbs) -> None:
    """Add the verbs of this package to the command line."""
    verb = add_verb(verbs, "tile", "cut every slide of a split into a shard of tiles; shards that are up to date stay")
    verb.add_argument(
        "split", type=place, metavar="SPLIT", help="folder or URL with train.csv or test.csv, and the slides"
    )
    verb.add_argument(
        "out",
        type=out_place,
        metavar="OUT",
        help="folder for the shards and shards.csv; or a URL like s3://bucket/tiles",
    )
    verb.add_argument("--recipe", metavar="NAME", help="name of a built-in recipe, or path of a .toml")
    verb.add_argument(
        "--verify",
        action="store_true",
        help="cut nothing, but compare every shard of OUT with shards.csv, and with --recipe if it is given",
    )
    add_backend(verb, ("loky", "dask"), "loky: processes of this machine")
    verb.add_argument("--split-name", choices=("train", "test"), help="table to read (default: train if there is one)")
    add_slide_limits(verb)
    verb.add_argument(
        "--preview", action="store_true", help="draw each slide with its kept and rejected tiles into OUT/preview"
    )
    verb.add_argument(
        "--undated", action="store_true", help="ignore the slides' modification times, for slides that are copies"
    )
    verb.add_argument(
        "--deadline", type=seconds, metavar="TIME", help="start no slide later than this, like 11h (default: none)"
    )
    verb.add_argument("--most", dest="max_output", type=megabytes, help=argparse.SUPPRESS)  # of earlier versions
    verb.add_argument(
        "--max-output",
        type=megabytes,
        metavar="SIZE",
        help="start no slide once the shards have this size, like 19GB; local OUT only (default: none)",
    )
    verb.set_defaults(verb=_tile)


def _tile(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.engines import Backend
    from clotkit.shards.tile import TileSettings, tile_split

    competition = load_competition(arguments.competition)
    backend = Backend(arguments.backend, arguments.jobs, arguments.scheduler)
    if arguments.verify:
        from clotkit.shards.verify import verification_lines, verify

        log = partial(print, flush=True)
        found = verify(arguments.split, arguments.out, arguments.recipe, competition, backend, log)
        print("\n".join(verification_lines(found, arguments.out)))
        return Result(DONE if found.sound else FALLBACKS, {"out": arguments.out, **asdict(found)})
    if arguments.recipe is None:
        raise UsageError("clotkit tile: no --recipe; name one, or give --verify to check the shards of OUT")
    settings = TileSettings(
        split_dir=arguments.split,
        out=arguments.out,
        recipe=arguments.recipe,
        split=arguments.split_name,
        jobs=arguments.jobs,
        memory_mb=arguments.memory or competition.limits.slide_memory_mb,
        preview=arguments.preview,
        use_mtime=not arguments.undated,
        deadline_s=arguments.deadline,
        max_output_mb=arguments.max_output,
        backend=backend,
    )
    counts = tile_split(settings, competition)
    return Result(FALLBACKS if counts["failed"] else DONE, {"out": arguments.out, "slides": counts})
