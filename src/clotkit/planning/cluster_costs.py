"""What tiling a slide costs, measured: some of a split's slides are cut for good, and a line through their seconds.

MB are 10**6 bytes here, as networks and published sizes have them.
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
from clotkit.config import Recipe, TilingConfig, load_recipe
from clotkit.errors import SplitError
from clotkit.planning.plan import Plan, PlanSettings, SlidePlan, plan_slides
from clotkit.shards.cut import ShardTask, shard_task
from clotkit.splits import SlideRow, in_store, read_slides, split_of, tables_of
from clotkit.stores import Folder, Place
from clotkit.tiling.tilers import check_tiler
from clotkit.units import MB
from clotkit.workers import Ended, Limits, Task, check_limits, fetch, stream

DECIMAL_MB = 1e6
SAMPLED = 16  # slides of the split that are cut to see what they cost
LEAST = 3  # of them: with fewer nothing is known of how well the line fits

T = TypeVar("T")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """What cutting one slide took: `work_s` from the start of its process to its end; its shard's size."""

    image_id: str
    file_mb: float
    work_s: float
    shard_mb: float


@dataclass(frozen=True)
class CostModel:
    """Seconds of a slide: `slide_s + s_per_mb * its MB`, at most `full_mb` of them.

    `miss` is the mean relative error at each slide when it is left out of the fit.
    """

    slide_s: float
    s_per_mb: float
    full_mb: float
    miss: float
    slides: int
    least_mb: float
    most_mb: float
    shard_mb: float  # of a slide, in the mean

    def seconds(self, file_mb: float) -> float:
        """What a slide of this size takes."""
        return self.slide_s + self.s_per_mb * min(file_mb, self.full_mb)


@dataclass(frozen=True)
class Probed:
    """What was measured on a split: its slides looked at, some of them cut, `at_a_time` of them at a time.

    Of a split in an object store only what was fetched is looked at, `fetched_mb`, and `network_mb_s` is how fast that
    came; `file_mb` is of all slides, by image id.
    """

    plan: Plan
    cut: list[Cost]
    costs: CostModel
    at_a_time: int
    file_mb: dict[str, float]
    fetched_mb: float = 0.0
    network_mb_s: float = math.inf

    @property
    def start_s(self) -> float:
        """What starting a process with the kit in it took, in the median: a machine's start is at least that."""
        return float(np.median([slide.process_s for slide in self.plan.slides if not slide.reason]))


def probe_split(
    where: Place, name: str, wanted: str | None, at_a_time: int, memory_mb: int, competition: Competition
) -> Probed:
    """Look at a split's slides as `clotkit plan` does, and cut some of them with the recipe `name`.

    `where` is the split's folder, or its URL, of which SAMPLED slides are fetched, for the time being. `wanted` None
    takes train where there is one, as `clotkit tile` does. Raises UsageError, ConfigError or SplitError for wrong
    input, or where fewer than LEAST slides can be cut; StoreError where they cannot be fetched.
    """
    check_limits(at_a_time, memory_mb)
    recipe, limits = load_recipe(name), Limits(competition.limits.slide_s, memory_mb)
    check_tiler(recipe.tiling, name)
    with tables_of(where, competition) as folder:
        split = wanted or split_of(folder, competition, ("train", "test"))
        slides = in_store(read_slides(folder, split, competition, log=lambda _: None), folder, where)
        file_mb = {slide.image_id: slide.size_bytes / DECIMAL_MB for slide in slides}
        looked, fetched_s = _fetched(slides, at_a_time)
        settings = PlanSettings(folder, None, name, split, at_a_time, competition.limits.deadline_s, memory_mb)
        plan = plan_slides(looked, settings, competition)
        cut = cut_sample(plan, looked, recipe, limits, at_a_time, where)
    costs = fit_costs(cut, full_mb(plan, recipe.tiling))
    if not fetched_s:
        return Probed(plan, cut, costs, at_a_time, file_mb)
    fetched_mb = sum(file_mb[slide.image_id] for slide in looked)
    return Probed(plan, cut, costs, at_a_time, file_mb, fetched_mb, fetched_mb / fetched_s)


def _fetched(slides: Sequence[SlideRow], at_a_time: int) -> tuple[Sequence[SlideRow], float]:
    """The slides that can be looked at here, and the seconds that fetching them took: 0 for those of a folder.

    Of an object store these are SAMPLED, spread over their sizes, each now at its path.
    """
    stored = sorted((slide for slide in slides if slide.stored is not None), key=lambda slide: -slide.size_bytes)
    if not stored:
        return slides, 0.0
    chosen = _spread(stored)
    tasks = [Task(slide.image_id, slide.path, (), stored=slide.stored) for slide in chosen]
    started = time.monotonic()
    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(fetch, tasks))
    return chosen, time.monotonic() - started


def _spread(ordered: Sequence[T]) -> list[T]:
    """Up to SAMPLED of them, the first and the last, and others at equal steps between."""
    chosen = np.unique(np.linspace(0, len(ordered) - 1, min(SAMPLED, len(ordered))).astype(int)).tolist()
    return [ordered[index] for index in chosen]


def cut_sample(
    plan: Plan, rows: Sequence[SlideRow], recipe: Recipe, limits: Limits, at_a_time: int, where: Place
) -> list[Cost]:
    """Cut up to SAMPLED of a plan's sound slides, spread over their sizes, as `clotkit tile` does; what each took.

    Their shards are thrown away. Raises SplitError where fewer than LEAST of them give one.
    """
    sound = sorted((slide for slide in plan.slides if not slide.reason), key=lambda slide: -slide.stored_mb)
    sample = {slide.image_id: slide for slide in _spread(sound)}
    path_of = {row.image_id: row.path for row in rows}
    with tempfile.TemporaryDirectory(prefix="clotkit-plan-") as folder:
        tasks = [
            ShardTask(name, path_of[name], (recipe.tiling,), store=Folder(Path(folder)), shard=f"{name}.npy", key="")
            for name in sample
        ]
        with closing(stream(tasks, limits, at_a_time, shard_task)) as events:
            ended = [event for event in events if isinstance(event, Ended) and not event.reason]
    if len(ended) < LEAST:
        found = f"{len(ended)} of {len(plan.slides)} slides can be cut"
        raise SplitError(f"{where}: {found}, {LEAST} are needed to know what one costs; clotkit plan says why")
    return [_cost(sample[one.image_id], one) for one in ended]


def _cost(slide: SlidePlan, ended: Ended) -> Cost:
    shard_mb = ended.facts["size_bytes"] / DECIMAL_MB
    return Cost(slide.image_id, file_mb_of(slide), ended.seconds, shard_mb)


def file_mb_of(slide: SlidePlan) -> float:
    """The MB of a slide's file."""
    return slide.stored_mb * MB / DECIMAL_MB


def full_mb(plan: Plan, tiling: TilingConfig) -> float:
    """From how many MB on a slide has all the tiles that are wanted of it, and a search is over; infinite: never.

    Only the search of patches ends early, once it has max_tiles; how many a MB gives is that of the plan's slides.
    """
    if tiling.name != "patches":
        return math.inf
    sound = [slide for slide in plan.slides if not slide.reason]
    short = [slide for slide in sound if slide.tiles < tiling.max_tiles] or sound
    return tiling.max_tiles * sum(map(file_mb_of, short)) / max(1, sum(slide.tiles for slide in short))


def fit_costs(costs: Sequence[Cost], full_mb: float = math.inf) -> CostModel:
    """Fit the seconds of LEAST slides or more: so much a slide, and so much a MB up to `full_mb`.

    Non-negative least squares of relative errors, so that small slides count as large ones do.
    """
    # By MB, because background is hardly stored and hardly read. On synthetic slides of 0.1 to 16 MB, cut with three
    # recipes, MB miss what is left out by 3, 8 and 13 %, Mpx by 5, 8 and 14 %; on ones of 25 to 94 MB seconds by MB
    # come out at 0.9 to 2.2 times the real ones, by Mpx at 1.1 to 2.4.
    mb = np.array([min(cost.file_mb, full_mb) for cost in costs])
    seconds = np.array([cost.work_s for cost in costs])
    slide_s, s_per_mb = _fitted(mb, seconds)
    others = [np.arange(len(costs)) != index for index in range(len(costs))]
    found = np.array([_fitted(mb[rest], seconds[rest]) @ (1, mb[index]) for index, rest in enumerate(others)])
    return CostModel(
        slide_s=float(slide_s),
        s_per_mb=float(s_per_mb),
        full_mb=full_mb,
        miss=float(np.mean(np.abs(found / seconds - 1))),
        slides=len(costs),
        least_mb=min(cost.file_mb for cost in costs),
        most_mb=max(cost.file_mb for cost in costs),
        shard_mb=float(np.mean([cost.shard_mb for cost in costs])),
    )


def _fitted(mb: Floats, seconds: Floats) -> Floats:
    """Seconds of a slide and of a MB, of slides' MB [n] and seconds [n]."""
    from scipy.optimize import nnls

    sizes = np.stack([np.ones(len(mb)), mb], axis=1)
    return np.asarray(nnls(sizes / seconds[:, None], np.ones(len(mb)))[0])
