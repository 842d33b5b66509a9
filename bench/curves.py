"""Measure slides against loss, and what each step of a recipe is worth: `python -m bench.curves`.

Learning curve: the recipe `phantom` on the first n slides of a drawn split, scored out of fold and on the last slides
of the split, which are the same for every n, beside the best that the generator allows (bench.separation). Where there
are slides enough, further trainings take the next n slides.

Ablations: `phantom` on a part of these slides, and `brain` on the pictures of --data (left out without it), whole and
with each step taken away once, with several seeds. The change of the loss has a bootstrap interval by patient, of
paired predictions, averaged over the seeds.

Slides, tiles, features and one row for each training are kept under build/curves, so the same command goes on after a
kill. The figures are written to bench/curves.json, where parts and steps that were not asked for stay, and drawn into
docs/images; --plots only draws.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.curves_figures import changed, figures, merged, possible, read_figures
from bench.curves_plots import draw, tables
from bench.curves_subject import Subject, cut_slide, fewest_patients, folds_of, quiet, timed_row
from bench.curves_variants import BRAIN, ONE_NETWORK, PHANTOM, WHOLE, Variant
from clotkit.competitions import DEFAULT, Competition, load_competition
from clotkit.config import Recipe, load_recipe
from clotkit.data.folds import Mask
from clotkit.data.grouped import read_grouped
from clotkit.data.tiles import TileSet
from clotkit.errors import ClotkitError, UsageError
from clotkit.evaluation.scores import (
    calibrated,
    constant,
    rows_to_score,
)
from clotkit.files import atomic_write_json
from clotkit.splits import SYNTHETIC, read_slides
from clotkit.synthetic.phantom import write_split
from clotkit.tuning.folds import outer_folds

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "bench" / "curves.json"
IMAGES = ROOT / "docs" / "images"
DRAWN_SEED = 2022  # of the slides
SLIDES = (24, 48, 96, 160, 320)
MOST_DRAWS = 3  # trainings at one number of slides
PARTS = ("brain", "curve", "phantom")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, write the figures, draw them, and return 0; 2 for wrong input."""
    options = _options(arguments)
    try:
        figures = read_figures(options.json)
        if not options.plots:
            figures = merged(figures, _Bench(options).measured(), keep_steps=bool(options.only))
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
            brain = self._subject(recipe, read_grouped(recipe, options.data, self.competition, None, quiet))
            parts["brain"] = self._ablations(brain, BRAIN, brain.pool) + self._nested(brain)
        if {"curve", "phantom"} & set(options.parts):
            recipe = load_recipe(options.phantom)
            phantom = self._subject(recipe, self._drawn_tiles(recipe), max(options.slides))
            found |= self._curve(phantom) if "curve" in options.parts else {}
            if "phantom" in options.parts:
                parts["phantom"] = self._ablations(phantom, PHANTOM, phantom.slides_from(0, options.ablation_slides))
        return found | {"ablations": parts}

    def _subject(self, recipe: Recipe, tiles: TileSet, pool: int | None = None) -> Subject:
        out, backbones = Path(self.options.out), Path(self.options.backbones)
        return Subject(recipe, tiles, self.competition, out, backbones, pool)

    def _curve(self, phantom: Subject) -> dict[str, Any]:
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
            write_split(self.drawn, "train", count, DRAWN_SEED, self.competition, size=self.options.size, log=quiet)
        slides = read_slides(self.drawn, "train", self.competition, quiet)
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

    def _point(self, phantom: Subject, slides: int, start: int) -> dict[str, Any]:
        """Return the figures of the whole recipe on `slides` slides from number `start` on."""
        chosen = phantom.slides_from(start, slides)
        row = self._row(phantom, PHANTOM[0], chosen, phantom.recipe.training.seed)
        bound = possible(self.drawn, phantom.images(chosen), phantom.target)
        kept = {
            key: row[key] for key in ("folds", "loss", "low", "high", "test_loss", "test_low", "test_high", "cpu_s")
        }
        return {"slides": slides, "first": start, "patients": row["patients"], "possible": bound, **kept}

    def _ablations(self, subject: Subject, variants: Sequence[Variant], chosen: Mask) -> list[dict[str, Any]]:
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

    def _row(self, subject: Subject, variant: Variant, chosen: Mask, seed: int) -> dict[str, Any]:
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
        return self._kept((recipe.name, variant.name, variant, images, recipe), measure, subject)

    def _nested(self, subject: Subject) -> list[dict[str, Any]]:
        """Return the figures of one network in place of the mean of the folds', on pictures new to both."""
        if not self._is_wanted(ONE_NETWORK):
            return []
        seeds, rows = self._seeds(subject.recipe), {}
        for variant in (Variant(WHOLE), ONE_NETWORK):
            rows[variant.name] = [self._nested_row(subject, variant, seed) for seed in seeds]
        return [changed(ONE_NETWORK.name, rows[ONE_NETWORK.name], rows[WHOLE], subject.target)]

    def _nested_row(self, subject: Subject, variant: Variant, seed: int) -> dict[str, Any]:
        """Return the row of what ships, trained with inner folds and scored on outer ones."""
        recipe = variant.of(subject.recipe)
        recipe = replace(recipe, training=replace(recipe.training, seed=seed))

        def measure() -> dict[str, Any]:
            run, parts, folds = subject.run(recipe), [], recipe.training.folds
            for outer in outer_folds(subject.tiles, recipe, folds, folds):
                trained = run.train_folds(outer.inner)
                units = rows_to_score(run.predict(trained.networks, outer.fold.held_out), subject.target)
                parts.append(calibrated(units, trained.fit.calibration, subject.target))
            return figures(pd.concat(parts, ignore_index=True), subject.target)

        return self._kept((f"{recipe.name}-nested", variant.name, subject.key(subject.pool), recipe), measure, subject)

    def _kept(self, key: tuple[Any, ...], measure: Callable[[], dict[str, Any]], subject: Subject) -> dict[str, Any]:
        """Return the row of this key from its file, measured first if there is none."""
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
        path = self.options.out / "rows" / f"{key[0]}-{digest}.json"
        if not path.is_file():
            row = timed_row(measure, subject.features_spent)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(path, {"of": [str(one) for one in key[:2]], **row})
            print(f"{key[0]}, {key[1]}: {row['loss']:.4f}, {row['seconds']:.0f} s", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))


def draws(slides: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (slides, first slide) of each training: up to MOST_DRAWS that share no slide."""
    for count in slides:
        for number in range(min(MOST_DRAWS, max(slides) // count)):
            yield count, number * count


if __name__ == "__main__":
    sys.exit(main())
