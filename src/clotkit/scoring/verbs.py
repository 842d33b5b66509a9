"""Add `clotkit run` and `clotkit check` to the command line."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from clotkit.options import (
    DONE,
    FALLBACKS,
    WRONG,
    Result,
    Verbs,
    add_backend,
    add_deadline,
    add_slide_limits,
    add_verb,
    out_folder,
)
from clotkit.stores import place
from clotkit.units import many


def register(verbs: Verbs) -> None:
    """Add the verbs of this package to the command line."""
    _add_run(verbs)
    _add_check(verbs)


def _add_run(verbs: Verbs) -> None:
    verb = add_verb(verbs, "run", "score a test split: submission.csv, and report.html to read, in RUN_DIR")
    verb.add_argument(
        "split",
        type=place,
        metavar="SPLIT",
        help="a folder with test.csv, the sample submission and the slides; or its URL",
    )
    verb.add_argument(
        "--weights", type=place, required=True, metavar="DIR", help="a member, or a folder of members; or its URL"
    )
    verb.add_argument("--out", type=out_folder, required=True, metavar="RUN_DIR", help="folder for the results")
    add_backend(verb, ("local", "dask"), "local: slides are read in processes of this machine")
    add_deadline(verb)
    add_slide_limits(verb)
    verb.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="score without this member, in whose place the ensemble's others are used; may be given several times",
    )
    verb.add_argument(
        "--without-missing",
        action="store_true",
        help="score without the members of an ensemble whose folder is missing, instead of ending; the kernel does",
    )
    verb.add_argument("--resume", action="store_true", help="continue from the report in RUN_DIR")
    verb.set_defaults(verb=_run)


def _run(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.engines import Backend, check_backend
    from clotkit.report import records
    from clotkit.scoring.inputs import local_weights
    from clotkit.scoring.pipeline import run
    from clotkit.scoring.settings import RunSettings
    from clotkit.splits import tables_of

    competition = load_competition(arguments.competition)
    backend = Backend(arguments.backend, arguments.jobs, arguments.scheduler)
    local = arguments.backend == "local" and not arguments.scheduler
    check_backend(backend)  # now: loading the members takes longer
    with tables_of(arguments.split, competition) as split_dir, local_weights(arguments.weights) as weights_dir:
        settings = RunSettings(
            split_dir=split_dir,
            weights_dir=weights_dir,
            run_dir=arguments.out,
            jobs=arguments.jobs,
            deadline_s=arguments.deadline or competition.limits.deadline_s,
            memory_mb=arguments.memory or competition.limits.slide_memory_mb,
            resume=arguments.resume,
            source=arguments.split,
            weights_source=arguments.weights,
            backend=None if local else backend,
            without=arguments.without,
            without_missing=arguments.without_missing,
        )
        counts = run(settings, competition)
    slides = {state: counts.pop(state) for state in records.STATES}
    facts = {"run_dir": arguments.out, "submission": arguments.out / competition.submission_csv, "slides": slides}
    incomplete = counts or slides["done"] != sum(slides.values())
    return Result(FALLBACKS if incomplete else DONE, {**facts, "shortfalls": counts})


def _add_check(verbs: Verbs) -> None:
    verb = add_verb(verbs, "check", "check whether Kaggle can score a submission, and print its expected score")
    verb.add_argument("submission", type=Path, help="the file to check")
    verb.add_argument("--sample", type=Path, required=True, help="the competition's sample submission")
    verb.set_defaults(verb=_check)


def _check(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.submission.checking import check_submission

    verdict = check_submission(arguments.submission, arguments.sample, load_competition(arguments.competition))
    for problem in verdict.problems:
        print(f"{arguments.submission}: {problem}", file=sys.stderr)
    for note in verdict.notes:
        print(note)
    print(f"{arguments.submission}: " + ("valid" if verdict.valid else many(len(verdict.problems), "problem")))
    expected = None if verdict.expected is None else asdict(verdict.expected)
    facts = {
        "submission": arguments.submission,
        "valid": verdict.valid,
        "problems": [{"code": one.code, "message": str(one)} for one in verdict.problems],
        "notes": verdict.notes,
        "rows": max(len(verdict.rows), len(verdict.labels)),
        "fallback_rows": verdict.fallback_rows,
        "expected": expected,
    }
    return Result(DONE if verdict.valid else WRONG, facts)
