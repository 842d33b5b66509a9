"""The plan: slides, tiles, minutes and peak memory of a run, before anything of it is done.

Each slide is opened and sampled in a process of its own (slides.forecast says what of it is decoded), `jobs` at a time,
so that one that hangs or crashes costs itself alone, here as in the run. No constant comes from another machine:

- a slide's decoding: the time for its own background and index, and for a sample of its own cells or rows;
- a slide's process: what spawning it took here, beyond the work done in it;
- the network: the time to load every member, and that of one batch each, if weights are given; else it is left out;
- the whole: these seconds in the order and at the width of a run, whose parent predicts one batch at a time.
"""

import heapq
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.competitions import Competition
from clotkit.config import Recipe, TilingConfig, load_recipe
from clotkit.members.folder import RECIPE
from clotkit.members.loading import load_member
from clotkit.planning.forecast import forecast
from clotkit.scoring.inputs import find_ensemble
from clotkit.splits import SlideRow, kind_of, read_slides, split_of
from clotkit.tiling.tilers import Batch, check_tiler
from clotkit.units import MB
from clotkit.workers import Ended, Limits, Task, Work, check_limits, peak_mb, stream

PROBE_S = 30.0  # that a slide's process may take here
SHOWN = 5  # slides in the table, those that take longest


@dataclass(frozen=True)
class PlanSettings:
    """What is planned: `split` None takes test where there is one, else train; `recipe` stands in for no weights."""

    split_dir: Path
    weights_dir: Path | None
    recipe: str
    split: str | None
    jobs: int
    deadline_s: float
    memory_mb: int  # address space of a slide's process


@dataclass(frozen=True)
class Network:
    """The members, measured here: `load_s` until the first prediction; `batch_s` of one batch each, by member."""

    load_s: float
    batch_s: tuple[float, ...]


@dataclass(frozen=True)
class SlidePlan:
    """What one slide will cost. `reason` is empty, or says why it will fall back; then no tiles are expected of it."""

    image_id: str
    stored_mb: float
    codec: str = ""
    decoder: str = ""
    layout: str = ""  # tiled, strips, or rows where it is neither
    width_px: int = 0
    height_px: int = 0
    wanted_share: float | None = None  # by the tile index; None where the slide is read in rows
    tiles: int = 0  # of all distinct tilings
    most_tiles: int = 0
    process_s: float = 0.0  # its process, less its work
    decode_s: float = 0.0
    predict_s: float = 0.0
    peak_mb: float = 0.0  # of its process
    reason: str = ""
    forecasts: list[dict[str, Any]] = field(default_factory=list)  # slides.forecast.Forecast, one a tiling

    @property
    def seconds(self) -> float:
        """From the start of its process to its last prediction, if nothing else waits for the network."""
        return self.process_s + self.decode_s + self.predict_s


@dataclass(frozen=True)
class Plan:
    """The whole run, predicted. Seconds and MB (2**20 bytes)."""

    split: str
    synthetic: bool
    members: list[str]  # or the recipe, where no weights were given
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

    @property
    def fits(self) -> bool:
        """Whether the run ends by its deadline."""
        return self.wall_s <= self.deadline_s

    @property
    def failing(self) -> list[SlidePlan]:
        """The slides that will fall back."""
        return [slide for slide in self.slides if slide.reason]

    @property
    def peak_mb(self) -> float:
        """The parent and its slides' processes at their worst, all at once."""
        return self.parent_mb + self.jobs * self.child_mb

    @property
    def sound(self) -> bool:
        """Whether it fits and every slide can be read."""
        return self.fits and not self.failing

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        failing = [slide.image_id for slide in self.failing]
        slides = [{**asdict(slide), "seconds": slide.seconds} for slide in self.slides]
        totals = {"fits": self.fits, "failing": failing, "peak_mb": self.peak_mb, **asdict(self), "slides": slides}
        found: dict[str, Any] = _rounded(totals)
        return found


def plan_split(settings: PlanSettings, competition: Competition, work: Work | None = None) -> Plan:
    """Predict a run over a split: what it gives, how long it takes, and which slides will fail.

    `work` is what a slide's process does (plan_task). TensorFlow is imported only if there are weights. Raises
    UsageError, ConfigError or SplitError for wrong input; no slide makes it raise.
    """
    split = settings.split or split_of(settings.split_dir, competition, ("test", "train"))
    return plan_slides(read_slides(settings.split_dir, split, competition), settings, competition, work)


def plan_slides(
    slides: Sequence[SlideRow], settings: PlanSettings, competition: Competition, work: Work | None = None
) -> Plan:
    """The same for slides of the split that have been read from its table, one or more."""
    check_limits(settings.jobs, settings.memory_mb)
    folders = [] if settings.weights_dir is None else find_ensemble(settings.weights_dir, competition)[1]
    recipes = [load_recipe(folder / RECIPE) for folder in folders] or [load_recipe(settings.recipe)]
    for recipe in recipes:
        check_tiler(recipe.tiling, recipe.name)
    slides = sorted(slides, key=lambda slide: slide.size_bytes)  # as a run takes them
    tilings = tuple(dict.fromkeys(recipe.tiling for recipe in recipes))
    network = _measure(folders, competition) if folders else None
    ended = _probe(slides, tilings, settings, work or plan_task)
    limit_s = competition.limits.slide_s
    plans = [
        _checked(_slide_plan(slide, ended[slide.image_id], recipes, tilings, network, limit_s), settings, limit_s)
        for slide in slides
    ]
    return _whole(plans, network, [folder.name for folder in folders] or [recipes[0].name], settings)


def plan_task(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """The work of a slide's process: its forecast, as facts, with what making it took. Raises SlideError."""
    started = time.perf_counter()
    for facts in forecast(task.path, task.tilings):
        opened = {} if "forecasts" in facts else {"probe_mb": peak_mb()}  # before the forecast's own arrays
        yield 0, {**facts, **opened, "probe_s": time.perf_counter() - started}


def wall_seconds(slides: Sequence[tuple[float, float]], jobs: int) -> float:
    """Seconds until the last of `slides` is done, `jobs` at a time: each (seconds in its process, of predicting it).

    The parent predicts them one by one. In a run a slide's place is free once it is decoded (scoring.prefetch), here
    once it is predicted: the more of the time is the network's, the sooner a run is done than this says.
    """
    waiting, running, now = list(reversed(slides)), list[tuple[float, float]](), 0.0
    while waiting or running:
        while waiting and len(running) < jobs:
            child_s, predict_s = waiting.pop()
            heapq.heappush(running, (now + child_s, predict_s))
        ready, predict_s = heapq.heappop(running)
        now = max(now, ready) + predict_s
    return now


def lines(plan: Plan) -> Iterator[str]:
    """The plan for a person: a summary, the slides that take longest, and every slide that will fall back."""
    kind = "synthetic slides" if plan.synthetic else "slides"
    stored_mb = sum(slide.stored_mb for slide in plan.slides)
    yield f"{len(plan.slides)} {kind} in {plan.split}, {stored_mb:,.0f} MB; {', '.join(plan.members)}, jobs {plan.jobs}"
    yield f"tiles      {plan.tiles:,} expected, {plan.most_tiles:,} at most"
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    yield f"time       {as_time(plan.wall_s)} of {as_time(plan.deadline_s)}: {verdict}"
    network = (
        f"loading {plan.load_s:.1f} s, predicting {plan.predict_s:.1f} s"
        if plan.network_measured
        else "the network not counted: give --weights"
    )
    yield f"           decoding {plan.decode_s:.1f} s, processes {plan.process_s:.1f} s, {network}"
    parent = f"parent {plan.parent_mb:,.0f}" + ("" if plan.network_measured else " without a network")
    yield f"memory     {plan.peak_mb:,.0f} MB: {parent}, {plan.jobs} x {plan.child_mb:,.0f} a slide"
    yield f"fallbacks  {len(plan.failing)} slides" + (", named below" if plan.failing else "")
    good = sorted((slide for slide in plan.slides if not slide.reason), key=lambda slide: -slide.seconds)[:SHOWN]
    yield from _table(good)
    for slide in plan.failing:
        yield f"{slide.image_id} will fall back: {slide.reason}"


def _table(slides: Sequence[SlidePlan]) -> Iterator[str]:
    if not slides:
        return
    width = max(len("slowest"), *(len(slide.image_id) for slide in slides))
    yield (
        f"{'slowest':<{width}} {'size, px':>16} {'codec':>10} {'layout':>6} {'MB':>7} {'wanted':>7}"
        f" {'tiles':>6} {'seconds':>8} {'peak MB':>8}"
    )
    for slide in slides:
        wanted = "-" if slide.wanted_share is None else f"{slide.wanted_share:.1%}"
        size = f"{slide.width_px} x {slide.height_px}"
        yield (
            f"{slide.image_id:<{width}} {size:>16} {slide.codec:>10} {slide.layout:>6} {slide.stored_mb:>7.1f}"
            f" {wanted:>7} {slide.tiles:>6} {slide.seconds:>8.1f} {slide.peak_mb:>8.0f}"
        )


def as_time(seconds: float) -> str:
    """Seconds for a person: in s, or in min from one minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:,.1f} min"


def _rounded(value: Any) -> Any:
    """The same with every float to four places."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _probe(
    slides: Sequence[SlideRow], tilings: tuple[TilingConfig, ...], settings: PlanSettings, work: Work
) -> dict[str, Ended]:
    """Every slide's end, with its facts, by image id; a bar on a terminal."""
    from tqdm import tqdm

    tasks = [Task(slide.image_id, slide.path, tilings) for slide in slides]
    found = {}
    limits = Limits(PROBE_S, settings.memory_mb)
    running = stream(tasks, limits, settings.jobs, work)
    with closing(running) as events, tqdm(total=len(tasks), unit="slide", disable=not sys.stderr.isatty()) as bar:
        for event in events:
            if isinstance(event, Ended):
                found[event.image_id] = event
                bar.update()
    return found


def _measure(folders: Sequence[Path], competition: Competition) -> Network:
    """Load the members and time one batch of each, once they have seen one: the first traces the network."""
    started = time.perf_counter()
    members = [load_member(folder, competition.classes.names) for folder in folders]
    batches = []
    for member in members:
        tiling = member.recipe.tiling
        batches.append(np.zeros((tiling.batch_tiles, tiling.tile_px, tiling.tile_px, 3), np.uint8))
        member.predict(batches[-1])
    load_s = time.perf_counter() - started
    return Network(load_s, tuple(_timed(m.predict, batch) for m, batch in zip(members, batches, strict=True)))


def _timed(predict: Callable[[Any], Any], batch: Any) -> float:
    """The median of three."""
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
    network: Network | None,
    limit_s: float,
) -> SlidePlan:
    """What its process found out, and what follows from it; the members are in the order of `recipes`."""
    facts = dict(ended.facts)
    probe_s, probe_mb = facts.pop("probe_s", ended.seconds), facts.pop("probe_mb", ended.peak_mb)
    forecasts = facts.get("forecasts", [])
    stored_mb = slide.size_bytes / MB
    if ended.reason or not forecasts:
        hung = ended.seconds >= PROBE_S  # it would in the run, too, to the run's own limit
        decode_s = limit_s if hung else ended.seconds
        reason = ended.reason or "its process ended without a forecast"
        return SlidePlan(slide.image_id, stored_mb, decode_s=decode_s, peak_mb=ended.peak_mb, reason=reason, **facts)
    predict_s = 0.0
    for recipe, batch_s in zip(recipes, network.batch_s if network else (), strict=False):
        tiles = forecasts[tilings.index(recipe.tiling)]["tiles"]
        predict_s += batch_s * -(-tiles // recipe.tiling.batch_tiles)  # a batch that is not full takes as long
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


def _checked(plan: SlidePlan, settings: PlanSettings, limit_s: float) -> SlidePlan:
    """The plan of a slide, with a reason where it is sound but asks for more than a slide may have."""
    if plan.reason:
        return plan
    reason = ""
    if plan.process_s + plan.decode_s > limit_s:
        reason = f"time limit: {plan.process_s + plan.decode_s:.0f} s expected; {limit_s:.0f} s are allowed"
    if plan.peak_mb > settings.memory_mb:
        reason = f"memory limit: {plan.peak_mb:.0f} MB expected; {settings.memory_mb} MB are allowed"
    return replace(plan, reason=reason, tiles=0, most_tiles=0) if reason else plan


def _whole(slides: list[SlidePlan], network: Network | None, members: Sequence[str], settings: PlanSettings) -> Plan:
    load_s = 0.0 if network is None else network.load_s
    seconds = [(slide.process_s + slide.decode_s, slide.predict_s) for slide in slides]
    return Plan(
        split=str(settings.split_dir),
        synthetic=bool(kind_of(settings.split_dir)),
        members=list(members),
        network_measured=network is not None,
        jobs=settings.jobs,
        deadline_s=settings.deadline_s,
        wall_s=load_s + wall_seconds(seconds, settings.jobs),
        load_s=load_s,
        process_s=sum(slide.process_s for slide in slides),
        decode_s=sum(slide.decode_s for slide in slides),
        predict_s=sum(slide.predict_s for slide in slides),
        tiles=sum(slide.tiles for slide in slides),
        most_tiles=sum(slide.most_tiles for slide in slides),
        parent_mb=peak_mb(),
        child_mb=max(slide.peak_mb for slide in slides),
        slides=slides,
    )
