"""The command `clotkit plan`."""

import argparse
from pathlib import Path

from clotkit.errors import UsageError
from clotkit.options import DONE, FALLBACKS, Result, Verbs, add_deadline, add_slide_limits, add_verb, refuse, seconds
from clotkit.stores import is_url, place


def register(verbs: Verbs) -> None:
    """Add the verbs of this package to the command line."""
    verb = add_verb(verbs, "plan", "predict a run before it starts: tiles, minutes, memory, and slides that will fail")
    verb.add_argument(
        "split",
        type=place,
        metavar="SPLIT",
        help="folder with test.csv or train.csv, and the slides; with --cluster also a URL like s3://bucket/train",
    )
    network = verb.add_mutually_exclusive_group()
    network.add_argument(
        "--weights", type=Path, metavar="DIR", help="a member, or a folder of members, to include and time"
    )
    network.add_argument(
        "--recipe",
        default="demo",
        metavar="NAME",
        help="without --weights: name of a built-in recipe, or path of a .toml (default: demo)",
    )
    add_deadline(verb)
    add_slide_limits(verb)
    verb.add_argument(
        "--split-name",
        choices=("train", "test"),
        help="table to read (default: test if there is one; with --cluster train)",
    )
    _add_cluster_options(verb)
    verb.set_defaults(verb=_plan)


def _add_cluster_options(verb: argparse.ArgumentParser) -> None:
    cluster = verb.add_argument_group("tiling the whole competition on a cluster")
    cluster.add_argument(
        "--cluster",
        type=int,
        metavar="N",
        help="plan clotkit tile on up to N machines with --jobs threads each: hours, dollars, and how many pay off",
    )
    cluster.add_argument(
        "--slides",
        type=int,
        metavar="K",
        help="number of slides to draw from the competition's sizes (default: as many as it has); without sizes the "
        "split's own slides are repeated",
    )
    cluster.add_argument("--price", type=float, metavar="USD", help="price of a machine-hour in US dollars")
    cluster.add_argument(
        "--bandwidth",
        type=float,
        metavar="MB/S",
        help="network speed of a machine to the slides, in 10**6 bytes a second, shared by its threads (default: as "
        "measured here for a URL; else slides are local)",
    )
    cluster.add_argument(
        "--startup",
        type=seconds,
        metavar="TIME",
        help="time until a machine takes slides, like 90s (default: the start of a process, measured here)",
    )


def _plan(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.planning.plan import PlanSettings, plan_split
    from clotkit.planning.text import plan_lines

    if arguments.cluster is not None:
        return _plan_cluster(arguments)
    refuse(arguments, ("slides", "price", "bandwidth", "startup"), "needs --cluster N")
    if is_url(arguments.split):
        raise UsageError(f"{arguments.split}: without --cluster every slide is read; give a local folder")
    competition = load_competition(arguments.competition)
    settings = PlanSettings(
        split_dir=arguments.split,
        weights_dir=arguments.weights,
        recipe=arguments.recipe,
        split=arguments.split_name,
        jobs=arguments.jobs,
        deadline_s=arguments.deadline or competition.limits.deadline_s,
        memory_mb=arguments.memory or competition.limits.slide_memory_mb,
    )
    plan = plan_split(settings, competition)
    print("\n".join(plan_lines(plan)))
    return Result(DONE if plan.sound else FALLBACKS, plan.to_json())


def _plan_cluster(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.planning.cluster_plan import ClusterSettings, plan_cluster
    from clotkit.planning.text import cluster_plan_lines

    refuse(
        arguments,
        ("weights", "deadline"),
        "belongs to a run that scores, but --cluster plans tiling; leave one of them out",
    )
    competition = load_competition(arguments.competition)
    settings = ClusterSettings(
        split_dir=arguments.split,
        recipe=arguments.recipe,
        split=arguments.split_name,
        machines=arguments.cluster,
        threads=arguments.jobs,
        memory_mb=arguments.memory or competition.limits.slide_memory_mb,
        slides=arguments.slides,
        price_usd=arguments.price,
        bandwidth_mb_s=arguments.bandwidth,
        startup_s=arguments.startup,
    )
    plan = plan_cluster(settings, competition)
    print("\n".join(cluster_plan_lines(plan)))
    return Result(FALLBACKS if plan.failing else DONE, plan.to_json())
