"""The command line of tiles on disk."""

import argparse
from functools import partial

from clotkit.errors import UsageError
from clotkit.options import DONE, FALLBACKS, Verbs, add_backend, add_slide_limits, add_verb, megabytes, seconds
from clotkit.stores import place


def register(verbs: Verbs) -> None:
    """Add the verbs of this room to the command line."""
    _add_tile(verbs)


def _add_tile(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "tile", "cut the tiles of a split into OUT, a shard a slide; what is up to date is left alone"
    )
    verb.add_argument(
        "split", type=place, metavar="SPLIT", help="a folder with train.csv or test.csv, and the slides; or its URL"
    )
    verb.add_argument(
        "out", type=place, metavar="OUT", help="the folder of the shards and of shards.csv; or its URL, like s3://…"
    )
    verb.add_argument("--recipe", metavar="NAME", help="a recipe that ships with the kit, or the path of a .toml")
    verb.add_argument(
        "--verify",
        action="store_true",
        help="cut nothing: read every shard of OUT, and say which are not as listed; with a recipe, not cut with it",
    )
    add_backend(verb, ("loky", "dask"), "loky: processes of this machine")
    verb.add_argument(
        "--split-name", choices=("train", "test"), help="which table to read (default: train where there is one)"
    )
    add_slide_limits(verb)
    verb.add_argument(
        "--preview", action="store_true", help="draw each slide with its tiles, kept and rejected, into OUT/preview"
    )
    verb.add_argument(
        "--undated", action="store_true", help="a slide's time of change does not matter: for slides that are copies"
    )
    verb.add_argument(
        "--deadline", type=seconds, metavar="TIME", help="like 11h: no slide is begun after it (default: none)"
    )
    verb.add_argument(
        "--most", type=megabytes, metavar="SIZE", help="like 19GB: no slide is begun once OUT has that (default: none)"
    )
    verb.set_defaults(verb=_tile)


def _tile(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.engines import Backend
    from clotkit.shards.tile import TileSettings, tile_split

    competition = load_competition(arguments.competition)
    backend = Backend(arguments.backend, arguments.jobs, arguments.scheduler)
    if arguments.verify:
        from clotkit.shards.verify import lines, verify

        found = verify(
            arguments.split, arguments.out, arguments.recipe, competition, backend, partial(print, flush=True)
        )
        print("\n".join(lines(found, arguments.out)))
        return DONE if found.sound else FALLBACKS
    if arguments.recipe is None:
        raise UsageError("clotkit tile: no --recipe; name one, or give --verify to look at what was cut")
    settings = TileSettings(
        split_dir=arguments.split,
        out=arguments.out,
        recipe=arguments.recipe,
        split=arguments.split_name,
        jobs=arguments.jobs,
        memory_mb=arguments.memory or competition.limits.slide_memory_mb,
        preview=arguments.preview,
        dated=not arguments.undated,
        deadline_s=arguments.deadline,
        most_mb=arguments.most,
        backend=backend,
    )
    return FALLBACKS if tile_split(settings, competition)["failed"] else DONE
