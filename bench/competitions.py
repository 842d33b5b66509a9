"""Go the whole way on small splits in the forms of five competitions: `python -m bench.competitions`.

Its argument is a folder with panda, ubc, visiomel, prob and camelyon16: each a train split, a test split, and truth.csv
with the labels of the test slides. Their forms are those of src/clotkit/competitions/*.toml and bench/prob.toml.
clotkit tiles, trains, runs and checks; scikit-learn scores submission.csv. The exit code is 1 if a target is missed.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import metrics

from bench.processes import run
from clotkit.competitions import load_competition

ROOT = Path(__file__).resolve().parents[1]
CLOTKIT = Path(sys.executable).with_name("clotkit")
OTHER = "Other"  # the class of ubc that its train split lacks

Answers = list[list[str]]  # the cells of each row of submission.csv after its id


@dataclass(frozen=True)
class Figure:
    """One figure of a submission, its value for the best constant answer, and its target."""

    metric: str
    score: float
    constant: float
    target: float  # to exceed, or to stay below

    @property
    def is_met(self) -> bool:
        """Tell whether the target is met; where the constant is above the target, lower is better."""
        return self.score < self.target if self.constant > self.target else self.score > self.target


Judge = Callable[[list[str], Answers], list[Figure]]  # from the true labels


@dataclass(frozen=True)
class Case:
    """One split: its folder in SPLITS, its competition and recipe, and how its submission is judged."""

    folder: str
    competition: str
    recipe: str
    judge: Judge


def judge_grades(truth: list[str], answers: Answers) -> list[Figure]:
    """Return the quadratic weighted kappa of grades."""
    grades, given = [int(label) for label in truth], [int(row[0]) for row in answers]
    return [Figure("quadratic weighted kappa", metrics.cohen_kappa_score(grades, given, weights="quadratic"), 0, 0.6)]


def judge_subtypes(truth: list[str], answers: Answers) -> list[Figure]:
    """Return the balanced accuracy over the classes of train, and the recall of the one that train lacks."""
    names, given = sorted({*truth} - {OTHER}), [row[0] for row in answers]
    known = metrics.recall_score(truth, given, labels=names, average="macro", zero_division=0)
    other = metrics.recall_score(truth, given, labels=[OTHER], average="macro", zero_division=0)
    return [
        Figure(f"balanced accuracy of {len(names)} known classes", known, 1 / len(names), 0.6),
        Figure(f"recall of {OTHER}", other, 0, 0),
    ]


def judge_relapse(truth: list[str], answers: Answers) -> list[Figure]:
    """Return the log loss of one probability."""
    labels, p = [int(label) for label in truth], [float(row[0]) for row in answers]
    constant = metrics.log_loss(labels, [np.mean(labels)] * len(labels))
    return [Figure("log loss", metrics.log_loss(labels, p), constant, 0.5)]


def judge_diagnoses(truth: list[str], answers: Answers) -> list[Figure]:
    """Return the mean over the classes of the AUC of each against the others."""
    aucs = [
        metrics.roc_auc_score([label == name for label in truth], [float(row[at]) for row in answers])
        for at, name in enumerate(load_competition(str(ROOT / "bench" / "prob.toml")).classes.names)
    ]
    return [Figure("macro AUC", float(np.mean(aucs)), 0.5, 0.85)]


def judge_tumours(truth: list[str], answers: Answers) -> list[Figure]:
    """Return the AUC of one probability."""
    auc = metrics.roc_auc_score([label == "tumor" for label in truth], [float(row[0]) for row in answers])
    return [Figure("AUC", auc, 0.5, 0.85)]


CASES = (
    Case("panda", "panda", "panda", judge_grades),
    Case("ubc", "ubc_ocean", "ubc_ocean", judge_subtypes),
    Case("visiomel", "visiomel", "visiomel", judge_relapse),
    Case("prob", str(ROOT / "bench" / "prob.toml"), "visiomel", judge_diagnoses),
    Case("camelyon16", "camelyon16", "camelyon16", judge_tumours),
)


def main() -> int:
    """Run the cases, print a table of their figures, and return 1 if a target is missed."""
    options = _options()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.only in {None, case.folder}:
            with tempfile.TemporaryDirectory(prefix="clotkit-bench-") as temporary:
                rows += measured(case, options.splits / case.folder, Path(temporary), options.backbones)
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    return 0 if all(row["is_met"] for row in rows) else 1


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.competitions", description=__doc__)
    line.add_argument("splits", type=Path, metavar="SPLITS")
    line.add_argument("--only", choices=[case.folder for case in CASES], help="one split")
    line.add_argument("--backbones", type=Path, default=ROOT / "build" / "backbones")
    line.add_argument("--json", action="store_true", help="print JSON and no table")
    return line.parse_args()


def measured(case: Case, split: Path, work: Path, backbones: Path) -> list[dict[str, Any]]:
    """Return one row for each figure of a case: the figure, and the seconds and memory of the whole way."""
    sample = split / load_competition(case.competition).files.sample
    verbs = (
        ("tile", split, work / "tiles", "--recipe", case.recipe),
        ("train", case.recipe, "--data", work / "tiles", "--out", work / "member", "--backbones", backbones),
        ("run", split, "--weights", work / "member", "--out", work / "run"),
        ("check", work / "run" / "submission.csv", "--sample", sample),
    )
    started = time.monotonic()
    peaks = [_clotkit([verb, "--competition", case.competition, *rest]) for verb, *rest in verbs]
    spent = {"seconds": round(time.monotonic() - started), "peak_mb": round(max(peaks))}
    figures = judged(case.judge, split / "truth.csv", work / "run" / "submission.csv")
    return [{"split": case.folder, **asdict(figure), "is_met": figure.is_met, **spent} for figure in figures]


def _clotkit(arguments: Sequence[object]) -> float:
    """Run a verb and return the memory of its largest process in MB.

    Raises CalledProcessError when it fails.
    """
    code, cost = run([CLOTKIT, *arguments], sys.stderr)
    if code:
        raise subprocess.CalledProcessError(code, [str(CLOTKIT), *map(str, arguments)])
    return cost.peak_mb


def judged(judge: Judge, truth: Path, submission: Path) -> list[Figure]:
    """Return the figures of a submission; its rows are joined to the true labels by their ids."""
    labels, answers = _by_id(truth), _by_id(submission)
    return judge([cells[0] for cells in labels.values()], [answers[row_id] for row_id in labels])


def _by_id(path: Path) -> dict[str, list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row[0]: row[1:] for row in list(csv.reader(file))[1:]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| split | metric | score | best constant | target | seconds | peak MB |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        target = f"{'below' if row['constant'] > row['target'] else 'above'} {row['target']:g}"
        verdict = "met" if row["is_met"] else "missed"
        scores = f"{row['score']:.4f} | {row['constant']:.4f} | {target}: {verdict}"
        lines.append(f"| {row['split']} | {row['metric']} | {scores} | {row['seconds']} | {row['peak_mb']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
