"""Measure the cost of tiling a slide: cut some slides of a split, and fit a line to their seconds.

MB are 10**6 bytes here, as for networks and published sizes.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.config import Recipe, TilingConfig, load_recipe, tiling_for
from clotkit.errors import SplitError
from clotkit.looking import with_sizes
from clotkit.planning.plan import Plan, PlanSettings, SlidePlan, plan_slides
from clotkit.shards.cut import ShardTask, shard_task
from clotkit.slides.pixels import evenly_spread
from clotkit.splits import SlideRow, in_store, read_slides, split_of, tables_of
from clotkit.stores import Folder, Place
from clotkit.tiling.tilers import check_tiler
from clotkit.units import MB
from clotkit.workers import Ended, Limits, Task, check_limits, fetch, stream

DECIMAL_MB = 1e6
SAMPLED = 16  # slides of the split that are cut to measure their cost
MIN_CUT = 3  # slides that must be cut; with fewer the error of the fit is unknown

T = TypeVar("T")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SlideCost:
    """The measured cost of cutting one slide."""

    image_id: str
    file_mb: float
    work_s: float  # from the start of its process to its end
    shard_mb: float


@dataclass(frozen=True)
class CostModel:
    """The fitted seconds of a slide: `slide_s + s_per_mb * min(its MB, full_mb)`."""

    slide_s: float
    s_per_mb: float
    full_mb: float  # see full_mb()
    miss: float  # mean relative leave-one-out error
    slides: int  # slides in the fit
    least_mb: float  # the smallest of them
    most_mb: float  # the largest of them
    shard_mb: float  # mean size of their shards

    def seconds(self, file_mb: float) -> float:
        """Return the seconds of a slide of this size."""
        return self.slide_s + self.s_per_mb * min(file_mb, self.full_mb)


@dataclass(frozen=True)
class SplitMeasurements:
    """The measurements on the slides of a split; in an object store, on those that were fetched."""

    plan: Plan
    cut: list[SlideCost]
    costs: CostModel
    jobs: int  # slides that were cut at a time
    file_mb: dict[str, float]  # of all slides of the split, by image id
    fetched_mb: float = 0.0
    network_mb_s: float = math.inf  # at which they were fetched

    @property
    def start_s(self) -> float:
        """The median seconds to start a process with the kit; starting a machine takes at least that."""
        return float(np.median([slide.process_s for slide in self.plan.slides if slide.code is None]))


def measure_split(
    where: Place, recipe_name: str, split: str | None, jobs: int, memory_mb: int, competition: Competition
) -> SplitMeasurements:
    """Plan a split's slides as `clotkit plan` does, and cut some of them.

    Args:
        where: The folder of the split, or its URL, of which SAMPLED slides are fetched temporarily.
        recipe_name: The recipe to cut with.
        split: train or test; None: train if there is one, as in `clotkit tile`.
        jobs: The number of slides at a time.
        memory_mb: The address space of a slide's process.
        competition: The competition of the split.

    Raises:
        UsageError, ConfigError, SplitError: The input is wrong, or fewer than MIN_CUT slides can be cut.
        StoreError: Slides cannot be fetched.
    """
    check_limits(jobs, memory_mb)
    recipe, limits = load_recipe(recipe_name), Limits(competition.limits.slide_s, memory_mb)
    check_tiler(recipe.tiling, recipe_name)
    with tables_of(where, competition) as folder:
        split = split or split_of(folder, competition, ("train", "test"))
        slides = in_store(read_slides(folder, split, competition, log=lambda _: None), folder, where, competition)
        slides = with_sizes(slides, log=lambda _: None)
        file_mb = {slide.image_id: slide.size_bytes / DECIMAL_MB for slide in slides}
        local, fetched_s = _fetched(slides, jobs)
        settings = PlanSettings(folder, None, recipe_name, split, jobs, competition.limits.deadline_s, memory_mb)
        plan = plan_slides(local, settings, competition)
        cut = cut_sample(plan, local, recipe, limits, jobs, where)
    costs = fit_costs(cut, full_mb(plan, recipe.tiling))
    if not fetched_s:
        return SplitMeasurements(plan, cut, costs, jobs, file_mb)
    fetched_mb = sum(file_mb[slide.image_id] for slide in local)
    return SplitMeasurements(plan, cut, costs, jobs, file_mb, fetched_mb, fetched_mb / fetched_s)


def _fetched(slides: Sequence[SlideRow], jobs: int) -> tuple[Sequence[SlideRow], float]:
    """Return local slides, and the seconds that fetching them took.

    These are all slides of a folder, in 0 s, or SAMPLED slides of an object store, spread over their sizes and fetched
    to their paths.
    """
    stored = sorted((slide for slide in slides if slide.stored is not None), key=lambda slide: -slide.size_bytes)
    if not stored:
        return slides, 0.0
    chosen = _spread(stored)
    tasks = [Task(slide.image_id, slide.path, (), stored=slide.stored) for slide in chosen]
    started = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(fetch, tasks))
    return chosen, time.monotonic() - started


def _spread(ordered: Sequence[T]) -> list[T]:
    """Choose up to SAMPLED of them: the first, the last, and others at equal steps between."""
    return [ordered[index] for index in evenly_spread(len(ordered), SAMPLED).tolist()]


def cut_sample(
    plan: Plan, rows: Sequence[SlideRow], recipe: Recipe, limits: Limits, jobs: int, where: Place
) -> list[SlideCost]:
    """Cut up to SAMPLED sound slides of a plan, spread over their sizes, and return the cost of each.

    Their shards are deleted. Raises SplitError if fewer than MIN_CUT slides can be cut.
    """
    sound = sorted((slide for slide in plan.slides if slide.code is None), key=lambda slide: -slide.stored_mb)
    sample = {slide.image_id: slide for slide in _spread(sound)}
    row_of = {row.image_id: row for row in rows}
    with tempfile.TemporaryDirectory(prefix="clotkit-plan-") as folder:
        tasks = [
            ShardTask(name, row.path, (tiling,), store=Folder(Path(folder)), shard=f"{name}.npy", key="")
            for name in sample
            for row in [row_of[name]]
            for tiling in [tiling_for(recipe.tiling, row.facts)]
        ]
        with closing(stream(tasks, limits, jobs, shard_task)) as events:
            ended = [event for event in events if isinstance(event, Ended) and event.code is None]
    if len(ended) < MIN_CUT:
        raise SplitError(
            f"{where}: {len(ended)} of {len(plan.slides)} slides can be cut, {MIN_CUT} are needed to measure their "
            "cost; run clotkit plan to see the reasons"
        )
    return [_cost(sample[one.image_id], one) for one in ended]


def _cost(slide: SlidePlan, ended: Ended) -> SlideCost:
    shard_mb = ended.facts["size_bytes"] / DECIMAL_MB
    return SlideCost(slide.image_id, file_mb_of(slide), ended.seconds, shard_mb)


def file_mb_of(slide: SlidePlan) -> float:
    """Return the MB of a slide's file."""
    return slide.stored_mb * MB / DECIMAL_MB


def full_mb(plan: Plan, tiling: TilingConfig) -> float:
    """Return the MB from which on a slide gives `max_tiles` and the tiler's search ends early.

    Infinite for every tiler except patches, whose search alone ends early. The tiles per MB are those of the plan's
    slides.
    """
    if tiling.name != "patches":
        return math.inf
    sound = [slide for slide in plan.slides if slide.code is None]
    short = [slide for slide in sound if slide.tiles < tiling.max_tiles] or sound
    return tiling.max_tiles * sum(map(file_mb_of, short)) / max(1, sum(slide.tiles for slide in short))


def fit_costs(costs: Sequence[SlideCost], full_mb: float = math.inf) -> CostModel:
    """Fit seconds per slide and per MB, up to `full_mb`, to MIN_CUT slides or more.

    Non-negative least squares of relative errors, so that small slides count as much as large ones.
    """
    # By MB and not by Mpx, because background hardly takes space or time. On synthetic slides of 0.1 to 16 MB, cut with
    # three recipes, the leave-one-out error is 3, 8 and 13 % by MB and 5, 8 and 14 % by Mpx; on slides of 25 to 94 MB
    # predicted seconds are 0.9 to 2.2 times the real ones by MB, and 1.1 to 2.4 times by Mpx.
    mb = np.array([min(cost.file_mb, full_mb) for cost in costs])
    seconds = np.array([cost.work_s for cost in costs])
    slide_s, s_per_mb = _fitted(mb, seconds)
    others = [np.arange(len(costs)) != index for index in range(len(costs))]
    predicted = np.array([_fitted(mb[rest], seconds[rest]) @ (1, mb[index]) for index, rest in enumerate(others)])
    return CostModel(
        slide_s=float(slide_s),
        s_per_mb=float(s_per_mb),
        full_mb=full_mb,
        miss=float(np.mean(np.abs(predicted / seconds - 1))),
        slides=len(costs),
        least_mb=min(cost.file_mb for cost in costs),
        most_mb=max(cost.file_mb for cost in costs),
        shard_mb=float(np.mean([cost.shard_mb for cost in costs])),
    )


def _fitted(mb: Floats, seconds: Floats) -> Floats:
    """Fit the seconds of a slide and of a MB to slides' MB [n] and seconds [n]."""
    from scipy.optimize import nnls

    sizes = np.stack([np.ones(len(mb)), mb], axis=1)
    return np.asarray(nnls(sizes / seconds[:, None], np.ones(len(mb)))[0])
