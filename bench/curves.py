"""Measure slides against loss, and what each step of a recipe is worth: `python -m bench.curves`.

Learning curve: the recipe `phantom` on the first n slides of a drawn split, scored out of fold and on the last slides
of the split, which are the same for every n, beside the best that the generator allows (bench.separation). Where there
are slides enough, further trainings take the next n slides.

Ablations: `phantom` on a part of these slides, and `brain` on the pictures of --data (left out without it), whole and
with each step taken away once, with several seeds. The change of the loss has a bootstrap interval by patient, of
paired predictions, averaged over the seeds.

Slides, tiles, features and one row for each training are kept under build/curves, so the same command goes on after a
kill. The figures are written to bench/curves.json, where parts that were not asked for stay, and drawn into
docs/images; --plots only draws.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.curves_plots import draw, tables
from bench.separation import best_probabilities
from clotkit.competitions import DEFAULT, Competition, load_competition
from clotkit.config import AugmentConfig, ModelConfig, Recipe, load_recipe
from clotkit.data.folds import Fold, Mask, make_folds
from clotkit.data.grouped import read_grouped
from clotkit.data.tiles import TileSet
from clotkit.errors import ClotkitError, ConfigError, UsageError
from clotkit.evaluation.figures import unit_losses, weighted_mean
from clotkit.evaluation.scores import (
    EvaluationTarget,
    calibrated,
    constant,
    rows_to_score,
    score,
    scored_of,
    target_of,
)
from clotkit.files import atomic_write, atomic_write_json
from clotkit.members.calibration import Calibration
from clotkit.members.networks import Network
from clotkit.metric import balanced_log_loss
from clotkit.progress import Log
from clotkit.slides.pixels import Pixels
from clotkit.splits import SYNTHETIC, SlideRow, read_slides
from clotkit.synthetic.phantom import write_split
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.training.devices import create_context
from clotkit.training.frozen import FeatureCache, FrozenFeatures
from clotkit.training.member_folder import TrainedMember
from clotkit.training.train import TrainingRun
from clotkit.tuning.folds import outer_folds, spread

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "bench" / "curves.json"
IMAGES = ROOT / "docs" / "images"
DRAWN_SEED = 2022  # of the slides
SLIDES = (24, 48, 96, 160, 320)
MOST_DRAWS = 3  # trainings at one number of slides
RESAMPLES = 2000
STRAIGHT = {"augment.mirror": False, "augment.rotate_deg": 0.0, "augment.scale": 0.0, "augment.shift": 0.0}
PARTS = ("brain", "curve", "phantom")
LOSS = "weighted_log_loss"
WHOLE = "whole recipe"
NO_AUGMENT = AugmentConfig(rotate_flip=False, channel_gain=0.0)


@dataclass(frozen=True)
class Variant:
    """A recipe with one step taken away."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # "table.key" of the recipe: its value
    calibrate: bool = True
    tile_step: int = 1  # keep every so many-th tile of a slide

    def thinned(self, tiles: TileSet) -> Mask:
        """Return a mask of every `tile_step`-th tile of each image, its first tile among them."""
        order = pd.Series(tiles.images).groupby(tiles.images).cumcount().to_numpy()
        thinned: Mask = order % self.tile_step == 0
        return thinned

    def scored(self, trained: TrainedMember, target: EvaluationTarget) -> pd.DataFrame:
        """Return the predictions out of fold, calibrated if the variant is."""
        if self.calibrate:
            return trained.scored
        raw = rows_to_score(trained.out_of_fold, target)
        return calibrated(raw, self.calibration(trained, target), target)

    def calibration(self, trained: TrainedMember, target: EvaluationTarget) -> Calibration:
        """Return the calibration that ships; one that is taken away leaves the floor."""
        identity = Calibration(1.0, (0.0,) * len(target.classes), target.floor)
        return trained.calibration if self.calibrate else identity

    def of(self, recipe: Recipe) -> Recipe:
        """Return the recipe without the step."""
        for key, value in self.changes.items():
            table, name = key.split(".")
            old = getattr(recipe, table)
            changed = (replace(old[0], **{name: value}),) if table == "model" else replace(old, **{name: value})
            tables: dict[str, Any] = {table: changed}
            recipe = replace(recipe, **tables)
        return recipe


PHANTOM = (
    Variant(WHOLE),
    Variant("no channel gain", {"augment.channel_gain": 0.0}),
    Variant("no turns and mirror images", {"augment.rotate_flip": False}),
    Variant("no augmentation", {"augment.rotate_flip": False, "augment.channel_gain": 0.0}),
    Variant("random weights, not ImageNet's", {"model.weights": "none"}),
    Variant("backbone not cut", {"model.last_layer": ""}),
    Variant("features not standardised", {"model.standardise": False}),
    Variant("no L2 penalty", {"model.l2": 0.0}),
    Variant("mean of tiles' probabilities, no L2", {"inference.pooling": "mean", "model.l2": 0.0}),
    Variant("classes and patients not balanced", {"training.balance": "none"}),
    Variant("constant learning rate", {"training.schedule": "constant"}),
    Variant("every second tile only", tile_step=2),
    Variant("no test-time augmentation", {"inference.tta": 1}),
    Variant("no calibration", calibrate=False),
)
BRAIN = (
    Variant(WHOLE),
    Variant("no turns, moves and mirror images", STRAIGHT),
    Variant("no change of contrast", {"augment.contrast": 0.0}),
    Variant("no augmentation", {**STRAIGHT, "augment.contrast": 0.0}),
    Variant("random weights, not ImageNet's", {"model.weights": "none"}),
    Variant("backbone not cut", {"model.last_layer": ""}),
    Variant("no weight decay", {"training.weight_decay": 0.0}),
    Variant("features not standardised", {"model.standardise": False}),
    Variant("no test-time augmentation", {"inference.tta": 1}),
    Variant("no calibration", calibrate=False),
)
ONE_NETWORK = Variant("one network, not the folds' five", {"training.final": "all"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, write the figures, draw them, and return 0; 2 for wrong input."""
    options = _options(arguments)
    try:
        figures = read_figures(options.json)
        if not options.plots:
            figures = merged(figures, _Bench(options).measured())
            atomic_write_json(options.json, figures)
        draw(figures, options.json, options.images)
        print(tables(figures))
    except (ClotkitError, OSError) as error:
        print(f"bench.curves: {error}", file=sys.stderr)
        return 2
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    line = argparse.ArgumentParser(
        prog="python -m bench.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument("--data", type=Path, help="folder of the recipe brain's pictures; without it brain is left out")
    line.add_argument("--plots", action="store_true", help="only draw the figures of --json")
    line.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    line.add_argument("--out", type=Path, default=ROOT / "build" / "curves", help="where to keep what is measured")
    line.add_argument("--json", type=Path, default=FIGURES, help="the file of figures")
    line.add_argument("--images", type=Path, default=IMAGES, help="folder of the plots")
    line.add_argument("--slides", type=int, nargs="+", default=SLIDES, metavar="N", help="numbers of slides, rising")
    line.add_argument("--test-slides", type=int, default=160, metavar="N")
    line.add_argument("--ablation-slides", type=int, default=160, metavar="N")
    line.add_argument("--size", default="small", help="of the slides, see clotkit phantom")
    line.add_argument("--seeds", type=int, default=3, help="seeds of each ablation")
    line.add_argument("--only", nargs="+", metavar="STEP", help="the steps to take away, by their names (default: all)")
    line.add_argument("--phantom", default="phantom", metavar="RECIPE")
    line.add_argument("--brain", default="brain", metavar="RECIPE")
    line.add_argument("--backbones", type=Path, default=ROOT / "build" / "backbones")
    options = line.parse_args(arguments)
    if options.data is not None and not options.data.is_dir():
        line.error(
            f"--data is {options.data}, which is no folder; give the folder of brain's pictures, or leave it out"
        )
    known = dict.fromkeys(variant.name for variant in (*PHANTOM[1:], *BRAIN[1:], ONE_NETWORK))
    if unknown := [name for name in options.only or () if name not in known]:
        line.error(f"--only is {unknown[0]!r}; known: {', '.join(known)}")
    if options.only and options.json == FIGURES:
        line.error(f"--only measures some steps, and {FIGURES.name} has all; give --json FILE too")
    if list(options.slides) != sorted(set(options.slides)) or options.slides[0] < 1:
        line.error(f"--slides is {' '.join(map(str, options.slides))}; allowed: rising numbers from 1 on")
    for name, value in (("--seeds", options.seeds), ("--test-slides", options.test_slides)):
        if value < 1:
            line.error(f"{name} is {value}; allowed: 1 and more")
    if options.parts == ["brain"] and options.data is None and not options.plots:
        line.error("--parts is brain, and no --data is given; give the folder of brain's pictures")
    if not 1 <= options.ablation_slides <= max(options.slides):
        line.error(f"--ablation-slides is {options.ablation_slides}; allowed: 1 to {max(options.slides)}")
    return options


@dataclass(frozen=True, kw_only=True)
class SharedFeatures(FeatureCache):
    """Features of one set of tiles for all variants and seeds of a recipe.

    Augmented copies are those of the recipe's own seed. Where a variant does not augment, they are the tiles.
    """

    recipe: Recipe  # with every step
    pixels: Pixels  # of the tiles, [n, S, S, 3]

    def get(
        self, config: ModelConfig, recipe: Recipe, tiles: Pixels, build: Callable[[], Network], log: Log
    ) -> tuple[Network, FrozenFeatures]:
        """Return a network whose backbone all may share, and its features of the tiles."""
        own, augments = self.recipe, recipe.augment != NO_AUGMENT
        first = replace(
            recipe,
            training=replace(recipe.training, seed=own.training.seed),
            augment=recipe.augment if augments else own.augment,
            inference=own.inference,
        )
        network, features = super().get(config, first, self.pixels, build, log)
        views = features.views[: recipe.inference.tta]
        return network, FrozenFeatures(features.augmented if augments else views[:1], views)


@dataclass(frozen=True)
class _Bench:
    """The measurements of one command."""

    options: argparse.Namespace

    @cached_property
    def competition(self) -> Competition:
        return load_competition(DEFAULT)

    def measured(self) -> dict[str, Any]:
        """Return the figures of the parts that were asked for, as the file of figures has them."""
        options, parts = self.options, {}
        found: dict[str, Any] = {}
        if "brain" in options.parts and options.data is None:
            print("brain is left out: no --data, the folder of its pictures", flush=True)
        elif "brain" in options.parts:
            recipe = load_recipe(options.brain)
            brain = _Subject(recipe, read_grouped(recipe, options.data, self.competition, None, _quiet), self)
            parts["brain"] = self._ablations(brain, BRAIN, brain.pool) + self._nested(brain)
        if {"curve", "phantom"} & set(options.parts):
            recipe = load_recipe(options.phantom)
            phantom = _Subject(recipe, self._drawn_tiles(recipe), self, max(options.slides))
            found |= self._curve(phantom) if "curve" in options.parts else {}
            if "phantom" in options.parts:
                parts["phantom"] = self._ablations(phantom, PHANTOM, phantom.slides_from(0, options.ablation_slides))
        return found | {"ablations": parts}

    def _curve(self, phantom: "_Subject") -> dict[str, Any]:
        """Return the learning curve, and what its slides are."""
        test = phantom.images(phantom.test)
        return {
            "drawn": {"seed": DRAWN_SEED, "size": self.options.size},
            "constant": round(constant(phantom.target), 6),
            "test": {"slides": len(test), "possible": possible(self.drawn, test, phantom.target)},
            "curve": [self._point(phantom, count, start) for count, start in draws(self.options.slides)],
        }

    @property
    def drawn(self) -> Path:
        """Return the folder of the drawn slides."""
        return Path(self.options.out) / "slides"

    def _drawn_tiles(self, recipe: Recipe) -> TileSet:
        """Draw the slides, unless that is done, and cut them.

        They are cut in this process, because they are sound: a process for each takes ten times as long.
        """
        count = max(self.options.slides) + self.options.test_slides
        if not (self.drawn / "train.csv").is_file():
            write_split(self.drawn, "train", count, DRAWN_SEED, self.competition, size=self.options.size, log=_quiet)
        slides = read_slides(self.drawn, "train", self.competition, _quiet)
        drawn = json.loads((self.drawn / SYNTHETIC).read_text(encoding="utf-8"))["splits"]["train"]
        there, wanted = (len(slides), drawn["size"], drawn["seed"]), (count, self.options.size, DRAWN_SEED)
        if there != wanted:
            raise UsageError(f"{self.drawn}: slides, size and seed are {there}; wanted: {wanted}; give another --out")
        folder = Path(self.options.out) / f"tiles-{hashlib.sha256(repr(recipe.tiling).encode()).hexdigest()[:12]}"
        folder.mkdir(exist_ok=True)
        cut = [cut_slide(slide, recipe, folder / f"{slide.image_id}.npy") for slide in slides]
        counts = [len(tiles) for tiles in cut]

        def column(values: Sequence[Any]) -> Any:
            return np.repeat(np.array(values), counts)

        return TileSet(
            tiles=np.concatenate(cut),
            labels=column([slide.label for slide in slides]),
            patients=column([slide.patient_id for slide in slides]),
            images=column([slide.image_id for slide in slides]),
            centres=column([slide.centre for slide in slides]),
            parts=column(["" for _ in slides]),
            classes=self.competition.classes.names,
        )

    def _is_wanted(self, variant: Variant) -> bool:
        return variant.name == WHOLE or not self.options.only or variant.name in self.options.only

    def _seeds(self, recipe: Recipe) -> list[int]:
        return [recipe.training.seed, *range(1, self.options.seeds)]

    def _point(self, phantom: "_Subject", slides: int, start: int) -> dict[str, Any]:
        """Return the figures of the whole recipe on `slides` slides from number `start` on."""
        chosen = phantom.slides_from(start, slides)
        row = self._row(phantom, PHANTOM[0], chosen, phantom.recipe.training.seed)
        bound = possible(self.drawn, phantom.images(chosen), phantom.target)
        kept = {
            key: row[key] for key in ("folds", "loss", "low", "high", "test_loss", "test_low", "test_high", "cpu_s")
        }
        return {"slides": slides, "first": start, "patients": row["patients"], "possible": bound, **kept}

    def _ablations(self, subject: "_Subject", variants: Sequence[Variant], chosen: Mask) -> list[dict[str, Any]]:
        """Return the figures of each variant, averaged over the seeds."""
        seeds = self._seeds(subject.recipe)
        rows = {
            one.name: [self._row(subject, one, chosen, seed) for seed in seeds]
            for one in variants
            if self._is_wanted(one)
        }
        images = len(subject.images(chosen))
        return [
            changed(name, found, rows[WHOLE], subject.target) | {"images": images, "seeds": seeds}
            for name, found in rows.items()
        ]

    def _row(self, subject: "_Subject", variant: Variant, chosen: Mask, seed: int) -> dict[str, Any]:
        """Return the row of one training, from its file if it is there."""
        recipe = variant.of(subject.recipe)
        folds = min(recipe.training.folds, fewest_patients(subject.tiles.where(chosen)))
        recipe = replace(recipe, training=replace(recipe.training, seed=seed, folds=folds))

        def measure() -> dict[str, Any]:
            run, kept = subject.run(recipe), variant.thinned(subject.tiles)
            trained = run.train_folds(folds_of(subject.tiles, chosen & kept, recipe))
            row = {"folds": folds, **figures(variant.scored(trained, subject.target), subject.target)}
            if subject.test.any():
                units = rows_to_score(run.predict(trained.networks, subject.test & kept), subject.target)
                found = figures(
                    calibrated(units, variant.calibration(trained, subject.target), subject.target), subject.target
                )
                row |= {f"test_{key}": value for key, value in found.items()}
            return row

        images = [subject.key(mask) for mask in (chosen, subject.test)]
        return self._kept((recipe.name, variant.name, variant, images, recipe), measure)

    def _nested(self, subject: "_Subject") -> list[dict[str, Any]]:
        """Return the figures of one network in place of the mean of the folds', on pictures new to both."""
        if not self._is_wanted(ONE_NETWORK):
            return []
        seeds, rows = self._seeds(subject.recipe), {}
        for variant in (Variant(WHOLE), ONE_NETWORK):
            rows[variant.name] = [self._nested_row(subject, variant, seed) for seed in seeds]
        return [changed(ONE_NETWORK.name, rows[ONE_NETWORK.name], rows[WHOLE], subject.target)]

    def _nested_row(self, subject: "_Subject", variant: Variant, seed: int) -> dict[str, Any]:
        """Return the row of what ships, trained with inner folds and scored on outer ones."""
        recipe = variant.of(subject.recipe)
        recipe = replace(recipe, training=replace(recipe.training, seed=seed))

        def measure() -> dict[str, Any]:
            run, parts, folds = subject.run(recipe), [], recipe.training.folds
            for outer in outer_folds(subject.tiles, recipe, folds, folds):
                trained = run.train_folds(outer.inner)
                units = rows_to_score(run.predict(trained.networks, outer.fold.held_out), subject.target)
                parts.append(calibrated(units, trained.calibration, subject.target))
            return figures(pd.concat(parts, ignore_index=True), subject.target)

        return self._kept((f"{recipe.name}-nested", variant.name, subject.key(subject.pool), recipe), measure)

    def _kept(self, key: tuple[Any, ...], measure: Any) -> dict[str, Any]:
        """Return the row of this key from its file, measured first if there is none."""
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
        path = self.options.out / "rows" / f"{key[0]}-{digest}.json"
        if not path.is_file():
            started, spent = time.monotonic(), time.process_time()
            row = measure()
            seconds = {"seconds": round(time.monotonic() - started, 1), "cpu_s": round(time.process_time() - spent, 1)}
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(path, {"of": [str(one) for one in key[:2]], **seconds, **row})
            print(f"{key[0]}, {key[1]}: {row['loss']:.4f}, {seconds['seconds']:.0f} s", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))


class _Subject:
    """A recipe and its labelled tiles, with the features that its variants share."""

    def __init__(self, recipe: Recipe, tiles: TileSet, bench: _Bench, pool: int | None = None) -> None:
        """Take the first `pool` images to train on, and the others to test; None: no image is for tests."""
        self.recipe = recipe
        self.tiles = replace(tiles, tiles=np.zeros((len(tiles), 0), np.uint8))  # features stand for the pixels
        self.target: EvaluationTarget = target_of(recipe, tiles.labels, tiles.classes, bench.competition)
        self.pool = self.slides_from(0, len(set(tiles.images)) if pool is None else pool)
        self.test = ~self.pool & ~np.isin(tiles.patients, tiles.patients[self.pool])  # no patient is on both sides
        self._backbones = bench.options.backbones
        self._pixels = tiles.digests()
        folder = Path(bench.options.out) / f"features-{recipe.name}-{self.key(np.ones(len(tiles), bool))[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        self._features = SharedFeatures(folder=folder, recipe=recipe, pixels=tiles.tiles)

    def run(self, recipe: Recipe) -> TrainingRun:
        """Return the training of a recipe on the features of these tiles."""
        context = create_context(recipe.training.strategy, _quiet)
        return TrainingRun(
            recipe, self.tiles, self.target, self._backbones, None, _quiet, context, features=self._features
        )

    def slides_from(self, start: int, slides: int) -> Mask:
        """Return a mask of the tiles of images `start` to `start + slides`."""
        names = list(dict.fromkeys(self.tiles.images.tolist()))[start : start + slides]
        return np.isin(self.tiles.images, names)

    def key(self, chosen: Mask) -> str:
        """Return a sha256 of the images of a mask's tiles: their names, pixels, labels and patients."""
        columns = (self.tiles.images, self.tiles.labels, self.tiles.patients)
        rows = dict.fromkeys(zip(*(column[chosen].tolist() for column in columns), strict=True))
        lines = sorted(f"{image}\t{self._pixels[image]}\t{label}\t{patient}" for image, label, patient in rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def images(self, chosen: Mask) -> set[str]:
        """Return the names of the images of a mask's tiles."""
        return set(self.tiles.images[chosen].tolist())


def read_figures(path: Path) -> dict[str, Any]:
    """Return a file of figures; an empty one if there is none. Raises ConfigError for another file."""
    if not path.is_file():
        return {"curve": [], "ablations": {}}
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return figures | {"curve": list(figures["curve"]), "ablations": dict(figures["ablations"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no file of figures: {error!r}; delete it, or restore it") from error


def merged(figures: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return the figures with those that were measured in place of earlier ones; other parts stay."""
    parts = figures["ablations"] | measured["ablations"]
    return figures | measured | {"ablations": dict(sorted(parts.items(), reverse=True))}


def folds_of(tiles: TileSet, allowed: Mask, recipe: Recipe) -> list[Fold]:
    """Return the folds of the allowed tiles, as masks of all tiles."""
    made = make_folds(tiles.where(allowed), recipe.data, recipe.training, None)
    return [Fold(*(spread(mask, allowed) for mask in (one.train, one.validation, one.held_out))) for one in made]


def fewest_patients(tiles: TileSet) -> int:
    """Return how many patients the rarest class has: there are no more folds."""
    return min(len(set(tiles.patients[tiles.labels == label])) for label in range(len(tiles.classes)))


def cut_slide(slide: SlideRow, recipe: Recipe, kept: Path) -> Pixels:
    """Return the tiles of a slide, uint8[n, S, S, 3], from the file `kept`, or cut them and write it."""
    if not kept.is_file():
        pieces = tile_slide(slide.path, recipe.tiling)
        tiles = np.concatenate([piece.tiles for piece in pieces if isinstance(piece, Batch)])
        with atomic_write(kept) as temporary, temporary.open("wb") as file:
            np.save(file, tiles)
    return np.load(kept)


def draws(slides: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (slides, first slide) of each training: up to MOST_DRAWS that share no slide."""
    for count in slides:
        for number in range(min(MOST_DRAWS, max(slides) // count)):
            yield count, number * count


def possible(drawn: Path, images: set[str], target: EvaluationTarget) -> float:
    """Return the loss of the exact probabilities of the patients of some drawn slides."""
    best = best_probabilities(drawn, images)
    rows = [[1 - p, p] for p in best["p"]]
    return round(balanced_log_loss(rows, best["label"].tolist(), target.weights, target.clip), 6)


def figures(units: pd.DataFrame, target: EvaluationTarget) -> dict[str, Any]:
    """Return the loss with its interval, and each unit's -ln p of its class, to pair it with another's."""
    found, units = score(units, target), units.sort_values(["patient", "image"])
    return {
        "loss": found[LOSS],
        "low": found[f"{LOSS}_low"],
        "high": found[f"{LOSS}_high"],
        "patients": found["patients"],
        "units": {
            "patient": units["patient"].astype(str).tolist(),
            "label": units["label"].tolist(),
            "loss": unit_losses(scored_of(units, target), target.clip).round(6).tolist(),
        },
    }


def changed(
    name: str, rows: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]], target: EvaluationTarget
) -> dict[str, Any]:
    """Return the mean loss of a variant over its seeds, and how it differs from that of the whole recipe."""
    result: dict[str, Any] = {"name": name, "cpu_s": round(float(np.mean([row["cpu_s"] for row in rows])), 1)}
    for prefix in ("", "test_"):
        if f"{prefix}loss" not in rows[0]:
            continue
        losses = [row[f"{prefix}loss"] for row in rows]
        before = [row[f"{prefix}loss"] for row in whole]
        low, high = paired_interval(rows, whole, f"{prefix}units", target)
        result |= {
            f"{prefix}loss": round(float(np.mean(losses)), 6),
            f"{prefix}whole": round(float(np.mean(before)), 6),
            f"{prefix}change": round(float(np.mean(losses) - np.mean(before)), 6),
            f"{prefix}low": low,
            f"{prefix}high": high,
            f"{prefix}changes": [round(one - other, 6) for one, other in zip(losses, before, strict=True)],
        }
    return result


def paired_interval(
    rows: Sequence[dict[str, Any]], whole: Sequence[dict[str, Any]], key: str, target: EvaluationTarget
) -> tuple[float, float]:
    """Return the 95 % interval of the mean change over the seeds, in bootstrap samples of the patients."""
    units = rows[0][key]
    change = np.mean([row[key]["loss"] for row in rows], axis=0) - np.mean([row[key]["loss"] for row in whole], axis=0)
    found = weighted_mean(
        change, np.array(units["label"]), np.array(units["patient"]), target.weights, resamples=RESAMPLES
    )
    low, high = (float("nan") if end is None else round(end, 6) for end in (found["low"], found["high"]))
    return low, high


def _quiet(_: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
