"""Add the verb of this package to the command line: tune."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from clotkit.errors import needs_extra
from clotkit.options import (
    DONE,
    Result,
    Verbs,
    add_backbones_dir,
    add_backend,
    add_recipe,
    add_training_data,
    add_verb,
    out_folder,
)
from clotkit.stores import place


def register(verbs: Verbs) -> None:
    """Add this package's verb to the command line."""
    verb = add_verb(verbs, "tune", "search a recipe's hyperparameters, judged on patients that the search never saw")
    add_recipe(verb)
    verb.add_argument("--data", type=place, required=True, metavar="PATH", help="what clotkit train takes as --data")
    verb.add_argument(
        "--out",
        type=out_folder,
        required=True,
        metavar="DIR",
        help="folder of the study; the same command again goes on if it was killed, or takes part if it runs",
    )
    verb.add_argument(
        "--search", type=Path, metavar="TOML", help="keys to tune, with ranges or choices (default: the one that ships)"
    )
    verb.add_argument("--trials", type=int, default=30, help="trials of a study, pruned ones too (default: 30)")
    verb.add_argument(
        "--outer",
        type=int,
        metavar="K",
        help="nest it: K outer folds, each with a study of its own (default: one outer part, a third of the patients; "
        "with data.split given or holdout the test part)",
    )
    verb.add_argument(
        "--inner", type=int, default=3, metavar="K", help="folds of the other patients, which judge trials (default: 3)"
    )
    add_training_data(verb)
    verb.add_argument("--jobs", type=int, default=1, help="trials at a time on this machine (default: 1)")
    add_backend(verb, ("loky", "dask"), "loky: processes of this machine")
    add_backbones_dir(verb)
    verb.set_defaults(verb=_tune)


def _tune(arguments: argparse.Namespace) -> Result:
    with needs_extra("tune"):
        import optuna  # noqa: F401 - a missing one is one line
    from clotkit.engines import Backend
    from clotkit.tuning.objective import TuneSettings
    from clotkit.tuning.tune import tune

    settings = TuneSettings(
        recipe=arguments.recipe,
        data=arguments.data,
        out=arguments.out,
        trials=arguments.trials,
        search=arguments.search,
        outer=arguments.outer,
        inner=arguments.inner,
        limit=arguments.limit,
        backbones=arguments.backbones,
        cache=arguments.cache,
        competition=arguments.competition,
        jobs=arguments.jobs,
    )
    backend = Backend(arguments.backend, arguments.jobs, arguments.scheduler)
    summary = tune(replace(settings, **_absolute(settings)), backend, partial(print, flush=True))
    return Result(DONE, {"study": arguments.out, "summary": summary})


def _absolute(settings: object) -> dict[str, Any]:
    """Return the paths among the settings as absolute ones: workers start in other folders."""
    found: dict[str, Any] = {
        name: value.absolute() for name, value in vars(settings).items() if isinstance(value, Path)
    }
    recipe = str(vars(settings)["recipe"])
    return found | ({"recipe": str(Path(recipe).absolute())} if recipe.endswith(".toml") else {})
