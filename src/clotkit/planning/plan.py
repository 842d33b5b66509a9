"""Predict a run before it starts: slides, tiles, minutes and peak memory.

Each slide is opened and sampled in a process of its own (see planning.forecast), `jobs` at a time, so that one that
hangs or crashes costs only itself, as in the run. Every constant is measured on this machine:

- decoding: the time of each slide's own background and index, and of a sample of its own cells or rows;
- processes: the time to start each slide's process, beyond the work in it;
- network: the time to load every member, and of one batch of each, if weights are given; else it is not included;
- in all: these seconds in the order and with the parallelism of a run, whose parent predicts one batch at a time.
"""

import heapq
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clotkit import competitions
from clotkit.competitions import Competition
from clotkit.config import Recipe, TilingConfig, load_recipe, tiling_for
from clotkit.looking import with_sizes
from clotkit.members.encoders.loading import load_member
from clotkit.members.folder import RECIPE
from clotkit.planning.forecast import forecast
from clotkit.reasons import Reason
from clotkit.scoring.inputs import check_complete, find_ensemble
from clotkit.splits import SlideRow, kind_of, read_slides, split_of
from clotkit.tiling.tilers import Batch, check_tiler
from clotkit.units import MB
from clotkit.workers import Ended, Limits, Task, Work, check_limits, peak_mb, stream

FORECAST_LIMIT_S = 30.0  # time limit of a slide's process here


@dataclass(frozen=True)
class PlanSettings:
    """The settings of one plan."""

    split_dir: Path
    weights_dir: Path | None  # members to time; None: the recipe stands in for them
    recipe: str  # name, or path of a .toml
    split: str | None  # train or test; None: test if there is one, else train
    jobs: int  # slides at a time
    deadline_s: float  # of the run
    memory_mb: int  # address space of a slide's process


@dataclass(frozen=True)
class NetworkTiming:
    """The time that the members take on this machine."""

    load_s: float  # to load all of them, with their first predictions
    batch_s: tuple[float, ...]  # to predict one batch, by member


@dataclass(frozen=True)
class SlidePlan:
    """The predicted cost of one slide; no tiles are expected of a slide that will fall back."""

    image_id: str
    stored_mb: float
    codec: str = ""
    decoder: str = ""
    layout: str = ""  # tiled or strips; rows if it is neither
    page: int = 0  # of the file's pages, the one that is the slide
    subifd: list[int] = field(default_factory=list)  # numbers below that page, one a level; empty: the page itself
    notes: list[Reason] = field(default_factory=list)  # about the choice of the page
    width_px: int = 0
    height_px: int = 0
    wanted_share: float | None = None  # of the slide, by the tile index; None if it is read in rows
    tiles: int = 0  # of all distinct tilings
    most_tiles: int = 0
    process_s: float = 0.0  # to start its process
    decode_s: float = 0.0
    predict_s: float = 0.0
    peak_mb: float = 0.0  # of its process
    reason: str = ""  # why it will fall back, a sentence for people
    forecasts: list[dict[str, Any]] = field(default_factory=list)  # planning.forecast.Forecast, one a tiling
    code: Reason | None = None  # why it will fall back; None: it will not

    @property
    def seconds(self) -> float:
        """Seconds from the start of its process to its last prediction, if it never waits for the network."""
        return self.process_s + self.decode_s + self.predict_s


@dataclass(frozen=True)
class Plan:
    """A predicted run, in seconds and MB (2**20 bytes)."""

    split: str
    synthetic: bool
    members: list[str]  # their names, or the recipe's if no weights are given
    network_measured: bool
    jobs: int
    deadline_s: float
    wall_s: float
    load_s: float
    process_s: float
    decode_s: float
    predict_s: float
    tiles: int
    most_tiles: int
    parent_mb: float
    child_mb: float
    slides: list[SlidePlan]
    hidden_slides: int = 0  # of the scoring run; 0: unknown
    hidden_s: float | None = None  # for as many slides, by the mean of these; None: unknown
    default_limits: bool = False  # the competition's file has no limits of its own

    @property
    def fits(self) -> bool:
        """True if the run ends by its deadline."""
        return self.wall_s <= self.deadline_s

    @property
    def failing(self) -> list[SlidePlan]:
        """The slides that will fall back."""
        return [slide for slide in self.slides if slide.code is not None]

    @property
    def peak_mb(self) -> float:
        """The memory of the parent and of `jobs` slides' processes, if all peak at once."""
        return self.parent_mb + self.jobs * self.child_mb

    @property
    def sound(self) -> bool:
        """True if the run fits and every slide can be read."""
        return self.fits and not self.failing

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        failing = [slide.image_id for slide in self.failing]
        slides = [{**asdict(slide), "seconds": slide.seconds} for slide in self.slides]
        totals = {"fits": self.fits, "failing": failing, "peak_mb": self.peak_mb, **asdict(self), "slides": slides}
        found: dict[str, Any] = _rounded(totals)
        return found


def plan_split(settings: PlanSettings, competition: Competition, work: Work | None = None) -> Plan:
    """Predict a run over a split: its tiles, its duration, and the slides that will fail.

    TensorFlow is imported only if there are weights. A slide never raises an error.

    Args:
        settings: The settings of the plan.
        competition: The competition of the split.
        work: The work of a slide's process; None: plan_task.

    Raises:
        UsageError, ConfigError, SplitError: The input is wrong.
    """
    split = settings.split or split_of(settings.split_dir, competition, ("test", "train"))
    slides = with_sizes(read_slides(settings.split_dir, split, competition), partial(print, file=sys.stderr))
    return plan_slides(slides, settings, competition, work)


def plan_slides(
    slides: Sequence[SlideRow], settings: PlanSettings, competition: Competition, work: Work | None = None
) -> Plan:
    """Predict a run over some slides of a split, at least one; see plan_split."""
    check_limits(settings.jobs, settings.memory_mb)
    folders = [] if settings.weights_dir is None else _members_of(settings.weights_dir, competition)
    recipes = [load_recipe(folder / RECIPE) for folder in folders] or [load_recipe(settings.recipe)]
    for recipe in recipes:
        check_tiler(recipe.tiling, recipe.name)
    slides = sorted(slides, key=lambda slide: slide.size_bytes)  # the order of a run
    tilings = tuple(dict.fromkeys(recipe.tiling for recipe in recipes))
    network = _time_members(folders, competition) if folders else None
    ended = _forecast_slides(slides, tilings, settings, work or plan_task)
    limit_s = competition.limits.slide_s
    plans = [
        _limited(_slide_plan(slide, ended[slide.image_id], recipes, tilings, network, limit_s), settings, limit_s)
        for slide in slides
    ]
    return _total(
        plans, network, [folder.name for folder in folders] or [recipes[0].name], settings, competition.limits
    )


def plan_task(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Forecast a slide in its own process, and yield facts, with the cost of the forecast itself.

    Raises SlideError.
    """
    started = time.perf_counter()
    for facts in forecast(task.path, task.tilings):
        opened = {} if "forecasts" in facts else {"probe_mb": peak_mb()}  # before the arrays of the forecast
        yield 0, {**facts, **opened, "probe_s": time.perf_counter() - started}


def wall_seconds(slides: Sequence[tuple[float, float]], jobs: int) -> float:
    """Return the seconds until the last slide is predicted, `jobs` at a time, by one parent.

    A run frees a slide's place once the slide is decoded (scoring.prefetch), but this only once it is predicted. So the
    larger the network's share of the time, the sooner a run ends than predicted here.

    Args:
        slides: (seconds in its process, seconds of its prediction) of each slide.
        jobs: The number of slides at a time.
    """
    waiting, running, now = list(reversed(slides)), list[tuple[float, float]](), 0.0
    while waiting or running:
        while waiting and len(running) < jobs:
            child_s, predict_s = waiting.pop()
            heapq.heappush(running, (now + child_s, predict_s))
        ready, predict_s = heapq.heappop(running)
        now = max(now, ready) + predict_s
    return now


def _rounded(value: Any) -> Any:
    """Return the value with every float rounded to four decimals."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _forecast_slides(
    slides: Sequence[SlideRow], tilings: tuple[TilingConfig, ...], settings: PlanSettings, work: Work
) -> dict[str, Ended]:
    """Run every slide's process, with a bar on a terminal; return how each ended, by image id."""
    from tqdm import tqdm

    tasks = [
        Task(slide.image_id, slide.path, tuple(tiling_for(tiling, slide.facts) for tiling in tilings))
        for slide in slides
    ]
    found = {}
    limits = Limits(FORECAST_LIMIT_S, settings.memory_mb)
    running = stream(tasks, limits, settings.jobs, work)
    with closing(running) as events, tqdm(total=len(tasks), unit="slide", disable=not sys.stderr.isatty()) as bar:
        for event in events:
            if isinstance(event, Ended):
                found[event.image_id] = event
                bar.update()
    return found


def _members_of(weights_dir: Path, competition: Competition) -> list[Path]:
    """Return the folders of the members that a run would load. Raises ConfigError as it would."""
    ensemble, folders = find_ensemble(weights_dir, competition)
    check_complete(weights_dir, ensemble, folders)
    return folders


def _time_members(folders: Sequence[Path], competition: Competition) -> NetworkTiming:
    """Load the members and time one batch of each, after a first one that traces the network."""
    started = time.perf_counter()
    members = [load_member(folder, competition.classes.names, competition.slug) for folder in folders]
    batches = []
    for member in members:
        tiling = member.recipe.tiling
        batches.append(np.zeros((tiling.batch_tiles, tiling.tile_px, tiling.tile_px, 3), np.uint8))
        member.predict(batches[-1])
    load_s = time.perf_counter() - started
    return NetworkTiming(load_s, tuple(_median_s(m.predict, batch) for m, batch in zip(members, batches, strict=True)))


def _median_s(predict: Callable[[Any], Any], batch: Any) -> float:
    """Return the median seconds of three predictions."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        predict(batch)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[1]


def _slide_plan(
    slide: SlideRow,
    ended: Ended,
    recipes: Sequence[Recipe],
    tilings: Sequence[TilingConfig],
    network: NetworkTiming | None,
    limit_s: float,
) -> SlidePlan:
    """Return the plan of a slide by the facts of its process; members are in the order of `recipes`."""
    facts = dict(ended.facts)
    probe_s, probe_mb = facts.pop("probe_s", ended.seconds), facts.pop("probe_mb", ended.peak_mb)
    forecasts = facts.get("forecasts", [])
    stored_mb = slide.size_bytes / MB
    if ended.code is not None or not forecasts:
        return _failed_plan(slide, ended, limit_s, facts)
    predict_s = 0.0
    for recipe, batch_s in zip(recipes, network.batch_s if network else (), strict=False):
        tiles = forecasts[tilings.index(recipe.tiling)]["tiles"]
        predict_s += batch_s * -(-tiles // recipe.tiling.batch_tiles)  # a partial batch takes as long
    return SlidePlan(
        slide.image_id,
        stored_mb,
        tiles=sum(each["tiles"] for each in forecasts),
        most_tiles=sum(each["most_tiles"] for each in forecasts),
        process_s=max(0.0, ended.seconds - probe_s),
        decode_s=sum(each["decode_s"] for each in forecasts),
        predict_s=predict_s,
        peak_mb=probe_mb + max(each["extra_mb"] for each in forecasts),
        **facts,
    )


def _failed_plan(slide: SlideRow, ended: Ended, limit_s: float, facts: dict[str, Any]) -> SlidePlan:
    """Return the plan of a slide that has no forecast."""
    hung = ended.seconds >= FORECAST_LIMIT_S  # in the run it would hang until the run's own limit
    return SlidePlan(
        slide.image_id,
        slide.size_bytes / MB,
        decode_s=limit_s if hung else ended.seconds,
        peak_mb=ended.peak_mb,
        code=ended.code or Reason.CRASHED,
        reason=ended.reason if ended.code else "its process ended without a forecast",
        **facts,
    )


def _limited(plan: SlidePlan, settings: PlanSettings, limit_s: float) -> SlidePlan:
    """Return the plan of a slide, as a fallback if it needs more time or memory than a slide may have."""
    if plan.code is not None:
        return plan
    if plan.peak_mb > settings.memory_mb:
        code = Reason.OUT_OF_MEMORY
        reason = f"memory limit: {plan.peak_mb:.0f} MB expected; {settings.memory_mb} MB are allowed"
    elif plan.process_s + plan.decode_s > limit_s:
        code = Reason.TIMEOUT
        reason = f"time limit: {plan.process_s + plan.decode_s:.0f} s expected; {limit_s:.0f} s are allowed"
    else:
        return plan
    return replace(plan, code=code, reason=reason, tiles=0, most_tiles=0)


def _total(
    slides: list[SlidePlan],
    network: NetworkTiming | None,
    members: Sequence[str],
    settings: PlanSettings,
    limits: competitions.Limits,
) -> Plan:
    load_s = 0.0 if network is None else network.load_s
    seconds = [(slide.process_s + slide.decode_s, slide.predict_s) for slide in slides]
    slides_s = wall_seconds(seconds, settings.jobs)
    hidden_s = load_s + slides_s / len(slides) * limits.hidden_slides
    return Plan(
        split=str(settings.split_dir),
        synthetic=bool(kind_of(settings.split_dir)),
        members=list(members),
        network_measured=network is not None,
        jobs=settings.jobs,
        deadline_s=settings.deadline_s,
        wall_s=load_s + slides_s,
        load_s=load_s,
        process_s=sum(slide.process_s for slide in slides),
        decode_s=sum(slide.decode_s for slide in slides),
        predict_s=sum(slide.predict_s for slide in slides),
        tiles=sum(slide.tiles for slide in slides),
        most_tiles=sum(slide.most_tiles for slide in slides),
        parent_mb=peak_mb(),
        child_mb=max(slide.peak_mb for slide in slides),
        slides=slides,
        hidden_slides=limits.hidden_slides,
        hidden_s=hidden_s if limits.hidden_slides else None,
        default_limits=limits == competitions.Limits(),
    )
