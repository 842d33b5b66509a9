"""Take earlier systems' recipes the whole way, from data to card: `python -m bench.recipes DATA`.

DATA is a folder with one or more of: slides, a train split of the default competition; pictures, the folders negative
and positive, and metadata.csv with the patients; bloodmnist, a MedMNIST file. A row whose data are missing is left out.
Each row is a recipe made small: fewer tiles, epochs and folds, and random weights where --backbones has no file of
ImageNet weights. It is trained; trained again, killed after an epoch and resumed; and evaluated. Of slides, some
patients are held out: the kernel is rehearsed on them, and its submission scored by their labels.

The scores say that the ways work, and nothing more. build/bench_recipes.json has the rows; run the command again to go
on after a kill: what is done for the same recipe and data is not done again. The exit code is 1 if a row failed, or the
time was over before it.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import metrics

from bench.markdown import markdown_table
from bench.processes import Cost, run
from clotkit.competitions import Competition, load_competition
from clotkit.config import recipe_path
from clotkit.errors import ClotkitError, UsageError
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.locks import exclusive_folder
from clotkit.members import folder as files
from clotkit.members.backbones import BACKBONES
from clotkit.splits import SlideRow, read_slides
from clotkit.submission.checking import check_submission
from clotkit.synthetic.folder import write_table
from clotkit.typed_toml import recipe_text

ROOT = Path(__file__).resolve().parents[1]
CLOTKIT = Path(sys.executable).with_name("clotkit")
SLIDES, PICTURES, BLOOD = "slides", "pictures", "bloodmnist"  # folders of DATA
MEMBER, RESUMED, STEPS = "member", "resumed", "steps.json"  # in the folder of a row
SLIDES_OF_A_PATIENT = 2  # most of them in the test split
SCORES = ("weighted_log_loss", "accuracy", "auc")  # figures of metrics.json that are shown
THREADS = "TF_NUM_INTRAOP_THREADS"  # TensorFlow's setting
SAME = 1e-6  # largest difference of a figure of train and of evaluate

Changes = Mapping[str, Mapping[str, Any]]  # {table of a recipe: {key: value}}

SMALL: Changes = {
    "tiling": {"tile_px": 96, "max_tiles": 6},
    "training": {"epochs": 4, "folds": 2, "frozen_augmentations": 1, "batch_tiles": 16},
}
SQUARES: Changes = {"tiling": {"downsample": 2}}


@dataclass(frozen=True)
class Case:
    """One row: a recipe that ships, its data, and what is changed in it besides SMALL."""

    name: str
    recipe: str
    data: str
    changes: Changes = field(default_factory=dict)
    limit: int | None = None  # pictures of each class

    def text(self, backbones: Path) -> str:
        """Return the TOML of the recipe, made small."""
        raw = tomllib.loads(recipe_path(self.recipe).read_text(encoding="utf-8"))
        for table, keys in chain(SMALL.items(), self.changes.items()):
            raw[table] = [one | keys for one in raw[table]] if isinstance(raw[table], list) else raw[table] | keys
        for model in raw["model"] if isinstance(raw["model"], list) else [raw["model"]]:
            model["weights"] = "imagenet" if _has_weights(model["name"], backbones) else "none"
        return recipe_text(raw | {"name": self.name})


def _variant(network: str, name: str = "", **model: Any) -> Case:
    """Return a case of the patches recipe with another network."""
    return Case(
        f"patches_{name or network}", "strip_ai_patches", SLIDES, {**SQUARES, "model": {"name": network, **model}}
    )


CASES = (
    Case("strip_ai_chunks", "strip_ai_chunks", SLIDES),
    Case("strip_ai_patches", "strip_ai_patches", SLIDES, SQUARES),  # InceptionV3
    Case("strip_ai", "strip_ai", SLIDES, SQUARES),
    _variant("cnn", filters=[16, 32], freeze=False, head=[]),
    _variant("resnet50"),
    _variant("resnet101"),
    _variant("vgg16"),
    _variant("vgg19"),
    _variant("efficientnetb0"),
    _variant("efficientnet_lite0", "lite0"),
    _variant("efficientnet_lite0", "lite0_tuned", unfreeze_top=4),
    Case("clot_binary", "clot_binary", PICTURES, limit=40),
    Case("bloodmnist_vgg16", "bloodmnist_vgg16", BLOOD, {"tiling": {"tile_px": 28}}, limit=24),
)


def main() -> int:
    """Run the rows that are not done yet, print them all, and return the exit code."""
    options = _options()
    try:
        with exclusive_folder(options.work, "bench.recipes"):
            rows = run_cases(options)
    except ClotkitError as error:
        print(f"bench.recipes: {error}", file=sys.stderr)
        return 2
    print(caption(options), "", table(rows), "", approaches(rows), sep="\n")
    return 0 if all(row["failed"] is None for row in rows) else 1


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(prog="python -m bench.recipes", description=__doc__)
    line.add_argument("data", type=Path, metavar="DATA")
    line.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="these rows")
    line.add_argument("--limit", type=int, default=8, help="slides of each class to train on (default: 8)")
    line.add_argument("--held-out", type=int, default=4, help="test patients of each class (default: 4)")
    line.add_argument("--minutes", type=float, default=60, help="start no row after this time (default: 60)")
    line.add_argument("--backbones", type=Path, default=ROOT / "build" / "backbones")
    line.add_argument("--wheels", type=Path, default=ROOT / "build" / "wheels")
    line.add_argument("--work", type=Path, default=ROOT / "build" / "bench_recipes")
    line.add_argument("--out", type=Path, default=ROOT / "build" / "bench_recipes.json")
    return line.parse_args()


# -- what the rows are made of


def _has_weights(network: str, backbones: Path) -> bool:
    wanted = BACKBONES.get(network)
    return wanted is not None and any(chain(backbones.glob(wanted.file), backbones.glob(f"*/{wanted.file}")))


def divided(slides: Iterable[SlideRow], limit: int, held_out: int) -> tuple[list[SlideRow], list[SlideRow]]:
    """Return the slides to train on and to test on: of each class `limit` slides, `held_out` patients.

    Patients come in the order of a hash of their ids, their slides by turns, so that few slides are of many patients.
    Raises UsageError if a class has too few patients.
    """
    train, test = [], []
    slides = list(slides)
    for label in sorted({slide.label or 0 for slide in slides}):
        patients: dict[str, list[SlideRow]] = {}
        for slide in slides:
            if slide.label == label:
                patients.setdefault(slide.patient_id, []).append(slide)
        order = sorted(patients, key=lambda patient: hashlib.sha256(patient.encode()).hexdigest())
        if len(order) < held_out + 4:  # two folds, each with two patients: one to train on, one for validation
            raise UsageError(
                f"class {label} has {len(order)} patients, at least {held_out + 4} are needed; give fewer --held-out"
            )
        test += [slide for patient in order[:held_out] for slide in patients[patient][:SLIDES_OF_A_PATIENT]]
        turns = zip_longest(*(patients[patient] for patient in order[held_out:]))
        train += [slide for turn in turns for slide in turn if slide is not None][:limit]
    return train, test


def write_split(folder: Path, split: str, slides: Sequence[SlideRow], competition: Competition) -> Path:
    """Write a split whose slides are links, anew; a test split has no labels."""
    shutil.rmtree(folder, ignore_errors=True)
    columns = competition.columns
    names = [columns.image, columns.patient, columns.center, columns.number]
    names = [*filter(None, [*names, columns.label if split == "train" else ""])]
    for slide in slides:
        path = competition.slide_path(folder, split, slide.image_id, slide.patient_id, slide.facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(slide.path.resolve())
    rows = [[slide.facts.get(name, "") for name in names] for slide in slides]
    write_table(competition.table_path(folder, split), names, rows)
    if split == "test":
        patients = dict.fromkeys(slide.patient_id for slide in slides)
        fallback = competition.classes.fallback
        write_table(competition.sample_path(folder), competition.header, [[one, *fallback] for one in patients])
    return folder


# -- running the rows


@dataclass(frozen=True)
class Material:
    """The data of a case."""

    data: Path  # to train on
    contents: list[str]  # what the row's key depends on
    competition: Competition
    test: Path | None = None  # a test split; None: pictures
    truth: dict[str, int] = field(default_factory=dict)  # class of each test patient


def run_cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of the cases whose data are there, those done before included."""
    started = time.monotonic()
    known = {row["name"]: row for row in json.loads(options.out.read_text())} if options.out.is_file() else {}
    materials = dict(_materials(options))
    if not materials:
        raise UsageError(f"{options.data}: has none of {SLIDES}, {PICTURES}, {BLOOD}; at least 1 is needed")
    wanted = options.only or [case.name for case in CASES]
    cases = [case for case in CASES if case.data in materials and case.name in wanted]
    for case in cases:
        text, material = case.text(options.backbones), materials[case.data]
        key = hashlib.sha256("\n".join([text, str(case.limit), *material.contents]).encode()).hexdigest()
        if known.get(case.name, {}).get("key") == key and known[case.name]["failed"] is None:
            continue
        row: dict[str, Any] = {"name": case.name, "key": key}
        if time.monotonic() - started > options.minutes * 60:
            known[case.name] = row | {"failed": f"not started: {options.minutes:g} minutes were over"}
            continue
        known[case.name] = row | _row(case, text, key, material, options)
        atomic_write_json(options.out, list(known.values()))
        if known[case.name]["failed"] is None:
            _clean(options.work / case.name)
    return [known[case.name] for case in cases]


def _materials(options: argparse.Namespace) -> Iterator[tuple[str, Material]]:
    competition = load_competition()
    if (options.data / SLIDES).is_dir():
        slides = read_slides(options.data / SLIDES, "train", competition, _say)
        train, test = divided(slides, options.limit, options.held_out)
        folder = write_split(options.work / "train", "train", train, competition)
        test_folder = write_split(options.work / "test", "test", test, competition)
        truth = {slide.patient_id: slide.label or 0 for slide in test}
        contents = [f"{slide.image_id} {slide.size_bytes}" for slide in [*train, *test]]
        yield SLIDES, Material(folder, contents, competition, test_folder, truth)
    for name in (PICTURES, BLOOD):
        folder = options.data / name
        if folder.is_dir():
            listed = sorted(f"{path.relative_to(folder)} {path.stat().st_size}" for path in folder.rglob("*.*"))
            yield name, Material(folder, listed, competition)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _clean(folder: Path) -> None:
    """Delete the members of a row that is done.

    The list of its commands goes first: without its members a row must not go on.
    """
    (folder / STEPS).unlink(missing_ok=True)
    for member in (MEMBER, RESUMED):
        shutil.rmtree(folder / member, ignore_errors=True)


class StepError(Exception):
    """A command that a row needs has failed."""


def _row(case: Case, text: str, key: str, material: Material, options: argparse.Namespace) -> dict[str, Any]:
    """Run one case and return its figures; `failed` is None, or says what failed."""
    way = Way(options.work / case.name, key)
    recipe = way.folder / "recipe.toml"
    atomic_write_text(recipe, text)
    row: dict[str, Any] = {"recipe": case.recipe, "data": case.data, "steps": way.steps, "failed": None}
    try:
        row |= _trained(way, recipe, material, case, options)
        if material.test is not None:
            row |= _rehearsed(way, material, options)
    except StepError as failure:
        row["failed"] = str(failure)
    row |= {"weights": _initial(text), "total": asdict(way.total), "threads": os.environ.get(THREADS, "")}
    _say(f"{case.name}: {row['failed'] or 'done'}, {way.total.seconds:.0f} s")
    return row


class Way:
    """The commands of one row: their exit codes and costs in steps.json, what they print in log.txt."""

    def __init__(self, folder: Path, key: str) -> None:
        """Open the folder of the row, and go on if the commands in it were of the same key."""
        self.folder = folder
        self.member, self.resumed, self.evaluated = folder / MEMBER, folder / RESUMED, folder / "evaluated"
        self._log, self._done, self._key = folder / "log.txt", folder / STEPS, key
        known = json.loads(self._done.read_text()) if self._done.is_file() else {}
        if known.get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.steps: dict[str, dict[str, Any]] = known["steps"] if known.get("key") == key else {}

    @property
    def total(self) -> Cost:
        """The cost of all commands."""
        return sum((Cost(step["seconds"], step["cpu_s"], step["peak_mb"]) for step in self.steps.values()), Cost())

    def clotkit(self, step: str, *arguments: object, anew: Path | None = None, code: int = 0, **watch: Any) -> None:
        """Run a verb unless it is done, after removing the folder `anew`.

        Raises StepError if its exit code is another than `code`.
        """
        if step in self.steps:
            return
        if anew is not None:
            shutil.rmtree(anew, ignore_errors=True)
        with self._log.open("a", encoding="utf-8") as log:
            ended, cost = run([CLOTKIT, *arguments], log, **watch)
        if ended != code:
            last = self._log.read_text(encoding="utf-8").splitlines()[-1:]
            raise StepError(f"{step} ended with {ended}, not {code}: {''.join(last)}")
        self.steps[step] = {"code": ended, **asdict(cost)}
        atomic_write_json(self._done, {"key": self._key, "steps": self.steps})


def _trained(way: Way, recipe: Path, material: Material, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Train, train with a kill and resume, evaluate; return the figures of the member."""
    limit = [] if case.limit is None else ["--limit", case.limit]
    train = ["train", recipe, "--data", material.data, "--backbones", options.backbones, *limit, "--out"]
    checkpoints = way.resumed / ".training"
    way.clotkit("train", *train, way.member, anew=way.member)
    way.clotkit(
        "killed",
        *[*train, way.resumed],
        anew=way.resumed,
        code=-signal.SIGKILL,
        kill_if=lambda _: any(checkpoints.glob("*/history.csv")),
    )
    if "resumed" not in way.steps and not any(checkpoints.glob("*/history.csv")):
        raise StepError("killed before the first epoch was over")
    way.clotkit("resumed", *train, way.resumed)
    if (way.member / files.HISTORY).read_bytes() != (way.resumed / files.HISTORY).read_bytes():
        raise StepError(f"{way.resumed}: its history differs from that of a training that was not killed")
    way.clotkit("evaluate", "evaluate", way.member, "--data", material.data, "--out", way.evaluated, *limit)
    trained, evaluated = (
        json.loads((folder / files.METRICS).read_text(encoding="utf-8")) for folder in (way.member, way.evaluated)
    )
    for name in SCORES:
        if not _close(trained[name], evaluated[name]):
            raise StepError(f"evaluate has another {name}: {evaluated[name]}, train {trained[name]}")
    kept = ("material", "estimate", "unit", "n", "constant", *SCORES)
    return {name: trained[name] for name in kept} | {"weights_mb": (way.member / files.WEIGHTS).stat().st_size / 2**20}


def _close(one: float | None, other: float | None) -> bool:
    return one is other or (one is not None and other is not None and abs(one - other) <= SAME)


def _rehearsed(way: Way, material: Material, options: argparse.Namespace) -> dict[str, Any]:
    """Rehearse the kernel with the member, check its submission, and return the figures of that."""
    out = options.work / "rehearsal"
    way.clotkit(
        "rehearse",
        *["rehearse", "--split", material.test, "--weights", way.member, "--wheels", options.wheels],
        *["--kernel", ROOT / "kernels" / "infer", "--layout", "new", "--out", out],
    )
    competition = material.competition
    submission = out / competition.files.submission
    verdict = check_submission(submission, competition.sample_path(material.test or out), competition)
    if not verdict.valid:
        raise StepError(f"the submission is not valid: {verdict.problems[0]}")
    return {"test": figures(submission, material.truth, competition)}


def figures(submission: Path, truth: Mapping[str, int], competition: Competition) -> dict[str, float]:
    """Return the figures of a submission: by scikit-learn, and the weighted log loss by its formula."""
    with submission.open(encoding="utf-8", newline="") as file:
        answers = {row[competition.submission.id]: row for row in csv.DictReader(file)}
    labels = np.array(list(truth.values()))
    p = np.array([[float(answers[one][name]) for name in competition.classes.names] for one in truth])  # [n, C]
    losses = -np.log(np.clip(p[np.arange(len(p)), labels], 1e-15, 1))  # [n]
    by_class = [losses[labels == label].mean() for label in range(p.shape[1])]
    return {
        "n": len(labels),
        "weighted_log_loss": float(np.average(by_class, weights=competition.classes.weights)),
        "accuracy": float(metrics.accuracy_score(labels, p.argmax(1))),
        "auc": float(metrics.roc_auc_score(labels, p[:, 1])),
    }


def _initial(text: str) -> str:
    """Return where the weights of a recipe's networks start from."""
    raw = tomllib.loads(text)["model"]
    return ", ".join(dict.fromkeys(model["weights"] for model in (raw if isinstance(raw, list) else [raw])))


# -- tables


HEADING = (
    "row", "weights from", "scored on", "log loss (constant)", "accuracy", "AUC", "kernel's exit code",
    "test: log loss, accuracy, AUC", "minutes", "CPU minutes", "peak MB", "weights MB",
)  # fmt: skip


def caption(options: argparse.Namespace) -> str:
    """Return a line that says how small the rows are."""
    changed = ", ".join(f"{key} {value}" for keys in SMALL.values() for key, value in keys.items())
    return (
        f"Changed in every recipe: {changed}. Slides: {options.limit} of each class to train on, {options.held_out} "
        f"test patients of each class. {THREADS} is {os.environ.get(THREADS, 'not set')}."
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    return "\n".join(markdown_table([HEADING, *map(_cells, rows)]))


def _cells(row: Mapping[str, Any]) -> list[str]:
    if row["failed"] is not None:
        return [row["name"], row["failed"], *[""] * (len(HEADING) - 2)]
    test, total, counts = row.get("test"), row["total"], row["material"]
    what = f"{row['n']} {row['unit']}s, {row['estimate']}, of {counts['images']} {row['data']}, {counts['tiles']} tiles"
    return [
        row["name"],
        row["weights"],
        what,
        f"{row['weighted_log_loss']:.4f} ({row['constant']:.4f})",
        _number(row["accuracy"]),
        _number(row["auc"]),
        "-" if test is None else str(row["steps"]["rehearse"]["code"]),
        "-" if test is None else ", ".join(_number(test[name]) for name in SCORES),
        f"{total['seconds'] / 60:.1f}",
        f"{total['cpu_s'] / 60:.1f}",
        f"{total['peak_mb']:,.0f}",
        f"{row['weights_mb']:.1f}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


APPROACHES = {"strip_ai_chunks": "Approach 1, chunks", "strip_ai_patches": "Approach 2, patches"}
SHOWN_STEPS = {"train": "training", "evaluate": "evaluation", "rehearse": "rehearsal"}


def approaches(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return Approach 1 and Approach 2 side by side; they had the same slides."""
    shown = [
        [
            APPROACHES[row["name"]],
            *(", ".join(_number(scores[name]) for name in SCORES) for scores in (row, row["test"])),
            *(
                f"{row['steps'][step]['seconds'] / 60:.2f}, {row['steps'][step]['peak_mb']:,.0f}"
                for step in SHOWN_STEPS
            ),
        ]
        for row in rows
        if row["name"] in APPROACHES and row["failed"] is None
    ]
    scores = [f"{where}: log loss, accuracy, AUC" for where in ("out of fold", "test")]
    return "\n".join(
        markdown_table([["", *scores, *(f"{step}: minutes, MB" for step in SHOWN_STEPS.values())], *shown])
    )


if __name__ == "__main__":
    sys.exit(main())
