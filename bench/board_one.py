"""Train and evaluate one member: `python -m bench.board_one RECIPE DATA DATA_KEY MEMBER RESULT`.

`clotkit train` and `clotkit evaluate` do the work, in this process, so that its peak memory and its CPU seconds are
those of one training. DATA_KEY is a hash of the data: a member of other data
is trained again. RESULT is a JSON file, written last. Run the same command again after a kill.
"""

import argparse
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from clotkit.competitions import load_competition
from clotkit.errors import ClotkitError
from clotkit.evaluation.evaluate import EvaluateSettings, evaluate
from clotkit.files import atomic_write_json
from clotkit.forking import die_with
from clotkit.members.folder import METRICS, RECIPE, SPLIT, SPLIT_TRAIN, SPLIT_VALIDATION, WEIGHTS
from clotkit.training.train import CHECKPOINTS_DIR, TrainSettings, train
from clotkit.units import MB

FIGURES = ("accuracy", "auc", "weighted_log_loss")
DATA_KEY = "data_key"
ROUNDING = 1e-6  # largest difference of a figure between training and evaluating


def main() -> int:
    """Train, evaluate and write the result; return the exit code of `clotkit train`."""
    options = _options()
    die_with(os.getppid())  # or the next board would train in the same folder beside this process
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the training too
    try:
        spent = _trained(options)
        result = result_of(options.member, options.data, spent)
    except ClotkitError as error:
        print(error, file=sys.stderr)
        return 2
    atomic_write_json(options.result, result)
    return 0


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.board_one", description=__doc__)
    line.add_argument("recipe", type=Path)
    line.add_argument("data", type=Path)
    line.add_argument("data_key")
    line.add_argument("member", type=Path)
    line.add_argument("result", type=Path)
    line.add_argument("--backbones", type=Path)
    return line.parse_args()


def _trained(options: argparse.Namespace) -> dict[str, Any]:
    """Train the member unless it is there, and return what the training took.

    A resumed training gives the figures of its last part, and `resumed` true.
    """
    kept, member = options.result.with_suffix(".spent.json"), options.member
    if kept.is_file() and (member / METRICS).is_file() and _same_text(member / RECIPE, options.recipe):
        spent = dict(json.loads(kept.read_text(encoding="utf-8")))
        if spent.pop(DATA_KEY, None) == options.data_key:
            return spent
    kept.unlink(missing_ok=True)
    resumed = (member / CHECKPOINTS_DIR).is_dir()
    started = time.monotonic()
    settings = TrainSettings(str(options.recipe), options.data, member, backbones=options.backbones)
    train(settings, load_competition(), lambda line: print(line, flush=True))
    spent = {"wall_s": round(time.monotonic() - started, 1), **_usage(), "resumed": resumed}
    atomic_write_json(kept, spent | {DATA_KEY: options.data_key})
    return spent


def _same_text(one: Path, other: Path) -> bool:
    return one.read_text(encoding="utf-8") == other.read_text(encoding="utf-8")


def _usage() -> dict[str, float]:
    """Return the CPU seconds of this process and its children, and the peak memory of the largest in MB."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "cpu_s": round(sum(one.ru_utime + one.ru_stime for one in used), 1),
        "peak_mb": round(max(one.ru_maxrss for one in used) / 1024),
        "cores": len(os.sched_getaffinity(0)),
    }


def result_of(member: Path, data: Path, spent: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of training, those of evaluating the weights, and what the training took."""
    metrics = json.loads((member / METRICS).read_text(encoding="utf-8"))
    settings = EvaluateSettings(member, data, member.with_name(f"{member.name}-evaluated"))
    found = evaluate(settings, load_competition(), lambda line: print(line, flush=True))
    trained, evaluated = (_figures(one) for one in (metrics, found))
    return {
        "trained": trained,
        "evaluated": evaluated,
        "agree": agree(trained, evaluated),
        "pictures": _pictures(member),
        "left_out": metrics["material"].get("dropped_near_duplicates"),
        "weights_mb": round((member / WEIGHTS).stat().st_size / MB, 1),
        **spent,
    }


def _figures(metrics: dict[str, Any]) -> dict[str, float | None]:
    return {name + end: metrics[name + end] for name in FIGURES for end in ("", "_low", "_high")}


def agree(one: dict[str, float | None], other: dict[str, float | None]) -> bool:
    """Tell whether two sets of figures, rounded to six digits, differ by ROUNDING at most."""
    for name, value in one.items():
        found = other[name]
        if (value is None) != (found is None):
            return False
        if value is not None and found is not None and round(abs(value - found), 6) > ROUNDING:
            return False
    return True


def _pictures(member: Path) -> dict[str, int]:
    """Return the number of pictures that were trained on, that chose the epoch, and that are scored.

    Where every fold trains, all pictures are scored and the first two are 0.
    """
    fold = pd.read_csv(member / SPLIT, dtype=str)["fold"]
    train_, validation = (int((fold == word).sum()) for word in (SPLIT_TRAIN, SPLIT_VALIDATION))
    return {"train": train_, "validation": validation, "scored": int(fold.str.isdecimal().sum())}


if __name__ == "__main__":
    sys.exit(main())
