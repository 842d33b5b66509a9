"""The command line of what a run will take."""

import argparse
import json
from pathlib import Path

from clotkit.errors import UsageError
from clotkit.options import DONE, FALLBACKS, Verbs, add_deadline, add_slide_limits, add_verb, refuse, seconds
from clotkit.stores import is_url, place


def register(verbs: Verbs) -> None:
    """Add the verbs of this room to the command line."""
    _add_plan(verbs)


def _add_plan(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "plan", "say what a run will take, before it: slides, tiles, minutes, memory, slides that fail"
    )
    verb.add_argument(
        "split",
        type=place,
        metavar="SPLIT",
        help="a folder with test.csv or train.csv, and the slides; with --cluster also its URL, like s3://…",
    )
    what = verb.add_mutually_exclusive_group()
    what.add_argument(
        "--weights", type=Path, metavar="DIR", help="a member, or a folder of members: they are timed too"
    )
    what.add_argument(
        "--recipe",
        default="demo",
        metavar="NAME",
        help="without weights: a recipe that ships with the kit, or the path of a .toml (default: demo)",
    )
    add_deadline(verb)
    add_slide_limits(verb)
    verb.add_argument(
        "--split-name",
        choices=("train", "test"),
        help="which table to read (default: test where there is one; with --cluster train)",
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    _add_plan_cluster(verb)
    verb.set_defaults(verb=_plan)


def _add_plan_cluster(verb: argparse.ArgumentParser) -> None:
    cluster = verb.add_argument_group("tiling the whole competition on a cluster")
    cluster.add_argument(
        "--cluster",
        type=int,
        metavar="N",
        help="plan clotkit tile on up to N machines of --jobs threads: hours, dollars, where more stop helping",
    )
    cluster.add_argument(
        "--slides", type=int, metavar="K", help="slides drawn from the competition's sizes (default: as many as it has)"
    )
    cluster.add_argument("--price", type=float, metavar="USD", help="of a machine-hour, in US dollars")
    cluster.add_argument(
        "--bandwidth",
        type=float,
        metavar="MB/S",
        help="of a machine to the slides, 10**6 bytes a second, shared by its threads (default: as they come from a "
        "URL, here; else slides are local)",
    )
    cluster.add_argument(
        "--startup",
        type=seconds,
        metavar="TIME",
        help="until a machine takes slides, like 90s (default: the start of a process, measured here)",
    )


def _plan(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.planning.plan import PlanSettings, lines, plan_split

    if arguments.cluster is not None:
        return _plan_cluster(arguments)
    refuse(arguments, ("slides", "price", "bandwidth", "startup"), "is for a cluster; give --cluster N too")
    if is_url(arguments.split):
        raise UsageError(f"{arguments.split}: without --cluster every slide is looked at; give a local folder")
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
    print(json.dumps(plan.to_json(), ensure_ascii=False) if arguments.json else "\n".join(lines(plan)))
    return DONE if plan.sound else FALLBACKS


def _plan_cluster(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.planning.cluster_plan import ClusterSettings, lines, plan_cluster

    refuse(arguments, ("weights", "deadline"), "is for a run that scores; --cluster plans tiling: leave one out")
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
    print(json.dumps(plan.to_json(), ensure_ascii=False) if arguments.json else "\n".join(lines(plan)))
    return FALLBACKS if plan.failing else DONE
