"""The plan of `clotkit tile` on a cluster: hours, dollars and the last slide, before a machine is rented.

Costs are measured here, on some slides of the split, as many at a time as a machine has threads. Slides are drawn from
the competition's sizes, and go through a simulation of machines whose threads take them as `clotkit tile` gives them
out, largest first. MB and GB are 10**6 and 10**9 bytes here, as networks and published sizes have them.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from clotkit.competitions import UNKNOWN, Competition
from clotkit.errors import ConfigError, UsageError
from clotkit.planning.cluster_costs import DECIMAL_MB, CostModel, Probed, probe_split
from clotkit.planning.cluster_simulation import GAIN, Fleet, Job, simulate, sized, stops_helping_at
from clotkit.planning.plan import as_time
from clotkit.stores import Place
from clotkit.synthetic.phantom_sizes import draw_slides

GB = 1e9
SEED = 0
TASK_S = 0.001  # that a scheduler takes for a task: "about 1ms of overhead", says Dask's documentation
MOST = {"--cluster": 10_000, "--slides": 1_000_000}


@dataclass(frozen=True)
class ClusterSettings:
    """What is planned: `machines` of `threads` each, each taking a slide at a time.

    `slides` None takes the competition's count; `price_usd` is of a machine-hour; `bandwidth_mb_s` of a machine, shared
    by its threads, 0 where slides are local, None: as they came here; `startup_s` until a machine takes slides, None:
    measured here.
    """

    split_dir: Place
    recipe: str
    split: str | None
    machines: int
    threads: int
    memory_mb: int  # address space of a slide's process
    slides: int | None = None
    price_usd: float | None = None
    bandwidth_mb_s: float | None = None
    startup_s: float | None = None
    seed: int = SEED


@dataclass(frozen=True)
class Outcome:
    """A simulated run. All machines are paid for from their start until the last slide is done.

    `tail_s` is how long the first thread with nothing to do waits for the end; `efficiency` is the time of one machine
    over that of all of these, summed.
    """

    machines: int
    wall_s: float
    machine_hours: float
    cost_usd: float | None
    efficiency: float
    tail_s: float
    last: str
    last_mb: float


@dataclass(frozen=True)
class ClusterPlan:
    """The whole plan; `outcomes` by rising number of machines, `own` the same for the split's own slides."""

    split: str
    recipe: str
    threads: int
    probed_at_a_time: int
    fetched_mb: float  # from an object store, to be looked at
    fetched_mb_s: float
    bandwidth_mb_s: float
    startup_s: float
    task_s: float
    price_usd: float | None
    seed: int
    slides: int
    file_gb: float
    real_gb: float  # of as many real slides
    raw_gb: float
    largest_mb: float
    beyond: float  # share of the drawn slides that are larger than any that was cut here
    slide_limit_s: float
    over_limit: int  # drawn slides that need more than a slide may take
    costs: CostModel
    stops_helping_at: int
    slowest_s: float
    outcomes: list[Outcome]
    own_slides: int
    own_gb: float
    own: list[Outcome]
    failing: list[str] = field(default_factory=list)  # of the split's own

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it; what is infinite is null there."""
        costs = {**asdict(self.costs), "full_mb": _finite(self.costs.full_mb)}
        speeds = {name: _finite(getattr(self, name)) for name in ("bandwidth_mb_s", "fetched_mb_s")}
        return {**asdict(self), **speeds, "costs": costs}


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def plan_cluster(settings: ClusterSettings, competition: Competition) -> ClusterPlan:
    """Plan the tiling of a competition's slides on a cluster, from the costs of a split's own slides here.

    Raises UsageError, ConfigError or SplitError for wrong input, or where fewer than LEAST of its slides can be cut.
    """
    _check(settings, competition)
    at_a_time = min(settings.threads, os.cpu_count() or 1)  # more would share cores, as they do not there
    split_dir, recipe, split = settings.split_dir, settings.recipe, settings.split
    probed = probe_split(split_dir, recipe, split, at_a_time, settings.memory_mb, competition)
    bandwidth_mb_s = probed.network_mb_s if settings.bandwidth_mb_s is None else settings.bandwidth_mb_s
    fleet = Fleet(
        settings.machines,
        settings.threads,
        bandwidth_mb_s or math.inf,
        probed.start_s if settings.startup_s is None else settings.startup_s,
        TASK_S,
    )
    jobs, raw_bytes = drawn_jobs(settings, competition, probed.costs)
    return _whole(settings, competition, probed, fleet, jobs, raw_bytes)


def _check(settings: ClusterSettings, competition: Competition) -> None:
    counts = {"--cluster": settings.machines, "--slides": 1 if settings.slides is None else settings.slides}
    for option, count in counts.items():
        if not 1 <= count <= MOST[option]:
            raise UsageError(f"{option} is {count}; allowed: 1 to {MOST[option]}")
    for option, value in (("--price", settings.price_usd), ("--bandwidth", settings.bandwidth_mb_s)):
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"{option} is {value}; allowed: 0 or more")
    if competition.sizes == UNKNOWN:
        raise ConfigError(f"{competition.source}: no table sizes; --cluster draws its slides from it: add one")


def drawn_jobs(settings: ClusterSettings, competition: Competition, costs: CostModel) -> tuple[list[Job], float]:
    """The slides that there are to tile, drawn from the competition's sizes, and their bytes when decoded."""
    drawn = draw_slides(competition.sizes, settings.slides or competition.sizes.slides, settings.seed)
    jobs = [
        Job(f"drawn {number}", mb, mb + costs.shard_mb, costs.seconds(mb))
        for number, mb in enumerate(slide.file_bytes / DECIMAL_MB for slide in drawn)
    ]
    return jobs, 3.0 * sum(slide.width_px * slide.height_px for slide in drawn)


def own_jobs(probed: Probed) -> list[Job]:
    """The split's own slides: with the seconds they took where they were cut, else with those of the model."""
    known, costs = {cost.image_id: cost for cost in probed.cut}, probed.costs
    failed_s = {slide.image_id: slide.decode_s for slide in probed.plan.failing}  # what it took to fail
    jobs = []
    for name, file_mb in probed.file_mb.items():
        if name in known:
            work_s, shard_mb = known[name].work_s, known[name].shard_mb
        elif name in failed_s:
            work_s, shard_mb = failed_s[name], 0.0
        else:
            work_s, shard_mb = costs.seconds(file_mb), costs.shard_mb
        jobs.append(Job(name, file_mb, file_mb + shard_mb, work_s))
    return jobs


def outcomes(jobs: Sequence[Job], fleet: Fleet, counts: Sequence[int], price_usd: float | None) -> list[Outcome]:
    """What runs on each of these numbers of machines come to."""
    one_s = simulate(jobs, sized(fleet, 1))[0]
    found = []
    for machines in counts:
        wall_s, tail_s, last = simulate(jobs, sized(fleet, machines))
        hours = machines * wall_s / 3600
        cost_usd = None if price_usd is None else hours * price_usd
        efficiency = one_s / (machines * wall_s)
        found.append(Outcome(machines, wall_s, hours, cost_usd, efficiency, tail_s, last.name, last.file_mb))
    return found


def _counts(*most: int) -> list[int]:
    """1, 2, 4 … below the largest of these, and these."""
    doubled = [1 << power for power in range(max(most).bit_length())]
    return sorted({*doubled, *most})


def _whole(
    settings: ClusterSettings,
    competition: Competition,
    probed: Probed,
    fleet: Fleet,
    jobs: list[Job],
    raw_bytes: float,
) -> ClusterPlan:
    plan, costs, own, sizes = probed.plan, probed.costs, own_jobs(probed), competition.sizes
    stop, limit_s = stops_helping_at(jobs, fleet), competition.limits.slide_s
    return ClusterPlan(
        split=str(settings.split_dir),
        recipe=plan.members[0],
        threads=fleet.threads,
        probed_at_a_time=probed.at_a_time,
        fetched_mb=probed.fetched_mb,
        fetched_mb_s=probed.network_mb_s,
        bandwidth_mb_s=fleet.bandwidth_mb_s,
        startup_s=fleet.startup_s,
        task_s=fleet.task_s,
        price_usd=settings.price_usd,
        seed=settings.seed,
        slides=len(jobs),
        file_gb=sum(job.file_mb for job in jobs) * DECIMAL_MB / GB,
        real_gb=sizes.total_bytes / GB * len(jobs) / sizes.slides,
        raw_gb=raw_bytes / GB,
        largest_mb=max(job.file_mb for job in jobs),
        beyond=sum(job.file_mb > costs.most_mb for job in jobs) / len(jobs),
        slide_limit_s=limit_s,
        over_limit=sum(fleet.alone_s(job) > limit_s for job in jobs),
        costs=costs,
        stops_helping_at=stop,
        slowest_s=max(map(fleet.alone_s, jobs)),
        outcomes=outcomes(jobs, fleet, _counts(fleet.machines, stop, 2 * stop), settings.price_usd),
        own_slides=len(own),
        own_gb=sum(job.file_mb for job in own) * DECIMAL_MB / GB,
        own=outcomes(own, fleet, _counts(fleet.machines), settings.price_usd),
        failing=[slide.image_id for slide in plan.failing],
    )


def lines(plan: ClusterPlan) -> Iterator[str]:
    """The plan for a person: what was drawn and measured, a line a number of machines, and where to stop."""
    yield (
        f"{plan.slides:,} slides drawn (seed {plan.seed}): {plan.file_gb:,.1f} GB of files (of as many real ones: "
        f"{plan.real_gb:,.1f}), {plan.raw_gb:,.0f} GB decoded, the largest {plan.largest_mb:,.0f} MB; {plan.recipe}"
    )
    yield from _cost_lines(plan)
    if plan.fetched_mb:
        yield f"fetched    {plan.fetched_mb:,.0f} MB of slides to look at, at {plan.fetched_mb_s:,.0f} MB/s"
    network = "slides are local" if math.isinf(plan.bandwidth_mb_s) else f"{plan.bandwidth_mb_s:,.0f} MB/s"
    price = "no --price" if plan.price_usd is None else f"{plan.price_usd:.2f} USD an hour"
    yield f"machine    {plan.threads} threads, {network}, {plan.startup_s:.1f} s to start, {price}"
    yield from _table(plan.outcomes)
    slowest = as_time(plan.slowest_s)
    yield (
        f"adding machines stops helping at {plan.stops_helping_at}: twice as many save less than {GAIN:.0%}; "
        f"the slowest slide alone takes {slowest}"
    )
    if plan.over_limit:
        yield f"{plan.over_limit} of the drawn slides need more than the {plan.slide_limit_s:.0f} s that one may take"
    own = ", ".join(f"{as_time(one.wall_s)} on {one.machines}" for one in plan.own)
    yield f"this split's own {plan.own_slides} slides, {plan.own_gb:,.2f} GB: {own}"
    if plan.failing:
        yield f"{len(plan.failing)} of them will fail; clotkit plan says why, where the slides lie in a folder"


def _cost_lines(plan: ClusterPlan) -> Iterator[str]:
    costs = plan.costs
    terms = [f"{costs.slide_s:.2f} s"]
    most = "" if math.isinf(costs.full_mb) else f" up to {costs.full_mb:,.0f} MB"
    terms += [f"{costs.s_per_mb * 1000:.2f} ms a MB{most}"] if costs.s_per_mb else []
    yield (
        f"a slide    {' + '.join(terms)}: {costs.slides} slides cut here, {plan.probed_at_a_time} at a time; "
        f"one left out is missed by {costs.miss:.0%}"
    )
    yield (
        f"           they have {costs.least_mb:,.1f} to {costs.most_mb:,.1f} MB; {plan.beyond:.0%} of the drawn ones "
        f"are larger: theirs is extrapolated"
    )


def _table(found: Sequence[Outcome]) -> Iterator[str]:
    yield (
        f"{'machines':>8} {'time':>10} {'machine-hours':>14} {'USD':>9} {'efficiency':>11} {'tail':>10} {'last, MB':>9}"
    )
    for one in found:
        cost = "-" if one.cost_usd is None else f"{one.cost_usd:,.2f}"
        yield (
            f"{one.machines:>8} {_clock(one.wall_s):>10} {one.machine_hours:>14.2f} {cost:>9} {one.efficiency:>11.0%} "
            f"{as_time(one.tail_s):>10} {one.last_mb:>9,.0f}"
        )


def _clock(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else as_time(seconds)
