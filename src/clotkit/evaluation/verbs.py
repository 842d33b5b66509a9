"""The command line of evaluation: `clotkit evaluate` and `clotkit predict`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clotkit.errors import UsageError, on_one_line
from clotkit.options import DONE, FALLBACKS, WRONG, Result, Verbs, add_verb, out_folder
from clotkit.progress import Log

if TYPE_CHECKING:
    from clotkit.evaluation.predict import Prediction, Unpredicted


def register(verbs: Verbs) -> None:
    """Add the verbs of this package to the command line."""
    _add_evaluate(verbs)
    _add_predict(verbs)


def _add_evaluate(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "evaluate", "score a member on labelled data: figures with intervals, plots, its worst errors"
    )
    verb.add_argument("member", type=Path, metavar="MEMBER_DIR", help="a member's folder")
    verb.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="labelled data of the kind in the member's recipe, as for train",
    )
    verb.add_argument(
        "--out",
        type=out_folder,
        required=True,
        metavar="DIR",
        help="write metrics.json, the plots and errors.html here",
    )
    verb.add_argument("--limit", type=int, help="use only the first N images of each class")
    verb.set_defaults(verb=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.evaluation.evaluate import EvaluateSettings, evaluate, lines

    settings = EvaluateSettings(arguments.member, arguments.data, arguments.out, arguments.limit)
    metrics = evaluate(settings, load_competition(arguments.competition), partial(print, flush=True))
    print("\n".join(lines(metrics, arguments.out)))
    return Result(DONE, metrics)


def _add_predict(verbs: Verbs) -> None:
    verb = add_verb(verbs, "predict", "predict images with a member: one line each, with label and probabilities")
    verb.add_argument("member", type=Path, metavar="MEMBER_DIR", help="a member's folder")
    verb.add_argument(
        "images",
        type=Path,
        nargs="*",
        default=[],
        metavar="IMAGE",
        help="slides or pictures, as the member's recipe says",
    )
    verb.add_argument(
        "--watch",
        type=Path,
        metavar="FOLDER",
        help="instead of IMAGE: predict each new picture of a folder once it is complete, until Ctrl-C; with --json "
        "one object each",
    )
    verb.set_defaults(verb=_predict)


def _predict(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.evaluation.predict import Prediction, Unpredicted, predict_each

    log = partial(print, file=sys.stderr, flush=True)
    if bool(arguments.images) == (arguments.watch is not None):
        raise UsageError("clotkit predict: name images, or a folder with --watch; one of the two is needed")
    if arguments.watch is not None:
        return _watch(arguments, log)
    found = predict_each(arguments.member, arguments.images, load_competition(arguments.competition), log)
    predictions = [one for one in found if isinstance(one, Prediction)]
    failed = [one for one in found if isinstance(one, Unpredicted)]
    for one in sorted(found, key=lambda one: isinstance(one, Unpredicted)):
        _say(one, log)
    content = {"member": arguments.member.name, "predictions": _rows(predictions), "failed": _rows(failed)}
    return Result((FALLBACKS if failed else DONE) if predictions else WRONG, content)


def _watch(arguments: argparse.Namespace, log: Log) -> Result:
    """Answer each new picture of a folder until Ctrl-C, which is the end and no error."""
    from clotkit.competitions import load_competition
    from clotkit.evaluation.predict import Prediction
    from clotkit.evaluation.watch import answers

    folder = arguments.watch
    if not folder.is_dir():
        raise UsageError(f"--watch {folder}: is not a folder; make it first")
    counts = {"predictions": 0, "failed": 0}
    with suppress(KeyboardInterrupt):
        for one in answers(folder, arguments.member, load_competition(arguments.competition), log):
            counts["predictions" if isinstance(one, Prediction) else "failed"] += 1
            _say(one, log)
            arguments.emit({"member": arguments.member.name, **_rows([one])[0]})
    return Result(FALLBACKS if counts["failed"] else DONE, {"member": arguments.member.name, "counts": counts})


def _say(one: "Prediction | Unpredicted", log: Log) -> None:
    """Print the line of one image, on standard error if it could not be predicted."""
    from clotkit.evaluation.predict import Prediction, unlike_note

    image = on_one_line(str(one.image))
    if not isinstance(one, Prediction):
        log(f"clotkit: {image}: not predicted ({one.code}): {one.reason}")
        return
    probabilities = " ".join(f"{name}={p:.4f}" for name, p in one.probabilities.items())
    note = unlike_note(one.unlike_training, one.distance, one.distance_threshold)
    print(f"{image}: {one.label} ({probabilities}){note and f'; {note}'}", flush=True)


def _rows(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Return predictions, or images without one, for JSON."""
    return [asdict(one) | {"image": str(one.image)} for one in found]
