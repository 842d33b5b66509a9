"""Plan `clotkit tile` on a cluster: hours, dollars and the slowest slide, before a machine is rented.

Costs are measured on this machine, on some slides of the split, as many at a time as a machine of the cluster has
threads. Slides are drawn from the competition's sizes, or without those are the split's own, and a simulation gives
them to the threads of the machines as `clotkit tile` does, the largest first. MB and GB are 10**6 and 10**9 bytes here,
as for networks and published sizes.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle, islice
from typing import Any

from clotkit.competitions import UNKNOWN, Competition
from clotkit.errors import UsageError
from clotkit.planning.cluster_costs import DECIMAL_MB, CostModel, SplitMeasurements, measure_split
from clotkit.planning.cluster_simulation import Fleet, Job, simulate, stops_helping_at, with_machines
from clotkit.stores import Place
from clotkit.synthetic.phantom_sizes import draw_slides

GB = 1e9
SEED = 0
TASK_S = 0.001  # of a scheduler, for each task: "about 1ms of overhead" by Dask's documentation
MAXIMA = {"--cluster": 10_000, "--slides": 1_000_000}


@dataclass(frozen=True)
class ClusterSettings:
    """The settings of one cluster plan."""

    split_dir: Place
    recipe: str  # name, or path of a .toml
    split: str | None  # train or test; None: train if there is one
    machines: int
    threads: int  # of each machine; a thread has one slide at a time
    memory_mb: int  # address space of a slide's process
    slides: int | None = None  # slides to draw; None: as many as the competition has, or the split
    price_usd: float | None = None  # of a machine-hour
    bandwidth_mb_s: float | None = None  # of each machine; 0: slides are local; None: as measured here
    startup_s: float | None = None  # until a machine takes slides; None: as measured here
    seed: int = SEED


@dataclass(frozen=True)
class SimulatedRun:
    """A simulated run; all machines are paid for from their start until the last slide is done."""

    machines: int
    wall_s: float
    machine_hours: float
    cost_usd: float | None
    efficiency: float  # wall_s of one machine / (machines * wall_s)
    tail_s: float  # from the first idle thread to the end
    last: str  # the last slide
    last_mb: float


@dataclass(frozen=True)
class ClusterPlan:
    """The predicted tiling of a competition's slides, and of the split's own, on a cluster."""

    split: str
    recipe: str
    threads: int
    probed_at_a_time: int  # slides that were cut here at a time
    fetched_mb: float  # fetched from an object store to be measured
    fetched_mb_s: float
    bandwidth_mb_s: float
    startup_s: float
    task_s: float
    price_usd: float | None
    seed: int
    slides: int  # drawn slides, or repeated ones
    file_gb: float
    real_gb: float | None  # of as many real slides; None: unknown
    raw_gb: float  # when decoded
    largest_mb: float
    beyond: float  # share of the drawn slides that are larger than any that was cut here
    slide_limit_s: float
    over_limit: int  # drawn slides that need more than slide_limit_s
    costs: CostModel
    stops_helping_at: int  # machines, see cluster_simulation.stops_helping_at
    slowest_s: float
    outcomes: list[SimulatedRun]  # of the drawn slides, by rising number of machines
    own_slides: int
    own_gb: float
    own: list[SimulatedRun]  # of the split's own slides
    failing: list[str] = field(default_factory=list)  # of the split's own slides
    sizes_known: bool = True  # slides are drawn from the competition's sizes; else they are the split's own, repeated

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints; infinite numbers are null."""
        costs = {**asdict(self.costs), "full_mb": _finite(self.costs.full_mb)}
        speeds = {name: _finite(getattr(self, name)) for name in ("bandwidth_mb_s", "fetched_mb_s")}
        return {**asdict(self), **speeds, "costs": costs}


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def plan_cluster(settings: ClusterSettings, competition: Competition) -> ClusterPlan:
    """Plan the tiling of a competition's slides on a cluster, from the costs of a split's own slides here.

    Raises:
        UsageError, ConfigError, SplitError: The input is wrong, or too few slides can be cut.
        StoreError: Slides cannot be fetched.
    """
    _check(settings, competition)
    jobs = min(settings.threads, os.cpu_count() or 1)  # more would share cores here, but not on the cluster
    split_dir, recipe, split = settings.split_dir, settings.recipe, settings.split
    measured = measure_split(split_dir, recipe, split, jobs, settings.memory_mb, competition)
    bandwidth_mb_s = measured.network_mb_s if settings.bandwidth_mb_s is None else settings.bandwidth_mb_s
    fleet = Fleet(
        settings.machines,
        settings.threads,
        bandwidth_mb_s or math.inf,
        measured.start_s if settings.startup_s is None else settings.startup_s,
        TASK_S,
    )
    known = competition.sizes != UNKNOWN
    drawn, raw_bytes = drawn_jobs(settings, competition, measured.costs) if known else repeated_jobs(settings, measured)
    return _total(settings, competition, measured, fleet, drawn, raw_bytes)


def _check(settings: ClusterSettings, competition: Competition) -> None:
    counts = {"--cluster": settings.machines, "--slides": 1 if settings.slides is None else settings.slides}
    for option, count in counts.items():
        if not 1 <= count <= MAXIMA[option]:
            raise UsageError(f"{option} is {count}; allowed: 1 to {MAXIMA[option]}")
    for option, value in (("--price", settings.price_usd), ("--bandwidth", settings.bandwidth_mb_s)):
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"{option} is {value}; allowed: 0 or more")


def drawn_jobs(settings: ClusterSettings, competition: Competition, costs: CostModel) -> tuple[list[Job], float]:
    """Draw slides from the competition's sizes; return them, and their bytes when decoded."""
    drawn = draw_slides(competition.sizes, settings.slides or competition.sizes.slides, settings.seed)
    jobs = [
        Job(f"drawn {number}", mb, mb + costs.shard_mb, costs.seconds(mb))
        for number, mb in enumerate(slide.file_bytes / DECIMAL_MB for slide in drawn)
    ]
    return jobs, 3.0 * sum(slide.width_px * slide.height_px for slide in drawn)


def repeated_jobs(settings: ClusterSettings, measured: SplitMeasurements) -> tuple[list[Job], float]:
    """Return the split's own slides, repeated, and their bytes when decoded."""
    own = own_jobs(measured)
    jobs = list(islice(cycle(own), settings.slides or len(own)))
    jobs = [replace(job, name=f"{job.name} {number}") for number, job in enumerate(jobs)]
    raw = {slide.image_id: 3.0 * slide.width_px * slide.height_px for slide in measured.plan.slides}
    file_mb = sum(measured.file_mb[image_id] for image_id in raw)  # of a stored split, of the fetched ones
    return jobs, sum(raw.values()) * sum(job.file_mb for job in jobs) / max(file_mb, 1e-9)


def own_jobs(measured: SplitMeasurements) -> list[Job]:
    """Return the split's own slides, with measured seconds if they were cut, else with those of the model."""
    known, costs = {cost.image_id: cost for cost in measured.cut}, measured.costs
    failed_s = {slide.image_id: slide.decode_s for slide in measured.plan.failing}  # seconds until it failed
    jobs = []
    for name, file_mb in measured.file_mb.items():
        if name in known:
            work_s, shard_mb = known[name].work_s, known[name].shard_mb
        elif name in failed_s:
            work_s, shard_mb = failed_s[name], 0.0
        else:
            work_s, shard_mb = costs.seconds(file_mb), costs.shard_mb
        jobs.append(Job(name, file_mb, file_mb + shard_mb, work_s))
    return jobs


def simulate_runs(
    jobs: Sequence[Job], fleet: Fleet, counts: Sequence[int], price_usd: float | None
) -> list[SimulatedRun]:
    """Simulate a run on each of these numbers of machines."""
    one_s = simulate(jobs, with_machines(fleet, 1))[0]
    runs = []
    for machines in counts:
        wall_s, tail_s, last = simulate(jobs, with_machines(fleet, machines))
        hours = machines * wall_s / 3600
        cost_usd = None if price_usd is None else hours * price_usd
        efficiency = one_s / (machines * wall_s)
        runs.append(SimulatedRun(machines, wall_s, hours, cost_usd, efficiency, tail_s, last.name, last.file_mb))
    return runs


def _machine_counts(*counts: int) -> list[int]:
    """Return these counts, and 1, 2, 4 … below the largest of them."""
    doubled = [1 << power for power in range(max(counts).bit_length())]
    return sorted({*doubled, *counts})


def _total(
    settings: ClusterSettings,
    competition: Competition,
    measured: SplitMeasurements,
    fleet: Fleet,
    jobs: list[Job],
    raw_bytes: float,
) -> ClusterPlan:
    plan, costs, own, sizes = measured.plan, measured.costs, own_jobs(measured), competition.sizes
    stop, limit_s = stops_helping_at(jobs, fleet), competition.limits.slide_s
    return ClusterPlan(
        split=str(settings.split_dir),
        recipe=plan.members[0],
        threads=fleet.threads,
        probed_at_a_time=measured.jobs,
        fetched_mb=measured.fetched_mb,
        fetched_mb_s=measured.network_mb_s,
        bandwidth_mb_s=fleet.bandwidth_mb_s,
        startup_s=fleet.startup_s,
        task_s=fleet.task_s,
        price_usd=settings.price_usd,
        seed=settings.seed,
        slides=len(jobs),
        file_gb=sum(job.file_mb for job in jobs) * DECIMAL_MB / GB,
        real_gb=sizes.total_bytes / GB * len(jobs) / sizes.slides if sizes.slides else None,
        raw_gb=raw_bytes / GB,
        largest_mb=max(job.file_mb for job in jobs),
        beyond=sum(job.file_mb > costs.most_mb for job in jobs) / len(jobs),
        slide_limit_s=limit_s,
        over_limit=sum(fleet.alone_s(job) > limit_s for job in jobs),
        costs=costs,
        stops_helping_at=stop,
        slowest_s=max(map(fleet.alone_s, jobs)),
        outcomes=simulate_runs(jobs, fleet, _machine_counts(fleet.machines, stop, 2 * stop), settings.price_usd),
        own_slides=len(own),
        own_gb=sum(job.file_mb for job in own) * DECIMAL_MB / GB,
        own=simulate_runs(own, fleet, _machine_counts(fleet.machines), settings.price_usd),
        failing=[slide.image_id for slide in plan.failing],
        sizes_known=sizes.slides > 0,
    )
