"""Plans as text for a terminal."""

import math
from collections.abc import Iterator, Sequence

from clotkit.planning.cluster_plan import ClusterPlan, SimulatedRun
from clotkit.planning.cluster_simulation import MIN_GAIN
from clotkit.planning.plan import Plan, SlidePlan

SHOWN = 5  # slides in the table of the slowest


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield a summary of a plan, its slowest slides, and every slide that will fall back."""
    kind = "synthetic slides" if plan.synthetic else "slides"
    stored_mb = sum(slide.stored_mb for slide in plan.slides)
    yield f"{len(plan.slides)} {kind} in {plan.split}, {stored_mb:,.0f} MB; {', '.join(plan.members)}, jobs {plan.jobs}"
    yield f"tiles      {plan.tiles:,} expected, {plan.most_tiles:,} at most"
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    yield f"time       {format_seconds(plan.wall_s)} of {format_seconds(plan.deadline_s)}: {verdict}"
    if plan.default_limits:
        yield "           the competition's file has no table [limits]: these are usual ones"
    network = (
        f"loading {plan.load_s:.1f} s, predicting {plan.predict_s:.1f} s"
        if plan.network_measured
        else "network not included; give --weights to time it"
    )
    yield f"           decoding {plan.decode_s:.1f} s, processes {plan.process_s:.1f} s, {network}"
    yield _hidden_line(plan)
    parent = f"parent {plan.parent_mb:,.0f}" + ("" if plan.network_measured else " without a network")
    yield f"memory     {plan.peak_mb:,.0f} MB: {parent}, {plan.jobs} x {plan.child_mb:,.0f} for slides"
    yield f"fallbacks  {len(plan.failing)} slides" + (", listed below" if plan.failing else "")
    good = sorted((slide for slide in plan.slides if slide.code is None), key=lambda slide: -slide.seconds)[:SHOWN]
    yield from _slide_table(good)
    for slide in plan.failing:
        yield f"{slide.image_id} will fall back: {slide.reason}"


def cluster_plan_lines(plan: ClusterPlan) -> Iterator[str]:
    """Yield the slides, costs and machine of a cluster plan, and a line for each number of machines."""
    drawn = f"drawn (seed {plan.seed})" if plan.sizes_known else "of the split, repeated"
    real = "" if plan.real_gb is None else f" (as many real ones have {plan.real_gb:,.1f})"
    yield (
        f"{plan.slides:,} slides {drawn}: {plan.file_gb:,.1f} GB of files{real}, {plan.raw_gb:,.0f} GB decoded, the "
        f"largest {plan.largest_mb:,.0f} MB; {plan.recipe}"
    )
    if not plan.sizes_known:
        yield "           the competition's file has no table [sizes] to draw slides from; add one for its real sizes"
    yield from _cost_lines(plan)
    if plan.fetched_mb:
        yield f"fetched    {plan.fetched_mb:,.0f} MB of slides to measure, at {plan.fetched_mb_s:,.0f} MB/s"
    network = "slides are local" if math.isinf(plan.bandwidth_mb_s) else f"{plan.bandwidth_mb_s:,.0f} MB/s"
    price = "no --price" if plan.price_usd is None else f"{plan.price_usd:.2f} USD an hour"
    yield f"machine    {plan.threads} threads, {network}, {plan.startup_s:.1f} s to start, {price}"
    yield from _run_table(plan.outcomes)
    yield (
        f"adding machines stops helping at {plan.stops_helping_at}: twice as many save less than {MIN_GAIN:.0%}; "
        f"the slowest slide alone takes {format_seconds(plan.slowest_s)}"
    )
    if plan.over_limit:
        yield f"{plan.over_limit} of the drawn slides need more than the limit of {plan.slide_limit_s:.0f} s a slide"
    own = ", ".join(f"{format_seconds(run.wall_s)} on {run.machines}" for run in plan.own)
    yield f"this split's own {plan.own_slides} slides, {plan.own_gb:,.2f} GB: {own}"
    if plan.failing:
        yield f"{len(plan.failing)} of them will fail; run clotkit plan on a local folder of them to see why"


def format_seconds(seconds: float) -> str:
    """Return seconds in s, or in min from one minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:,.1f} min"


def _hidden_line(plan: Plan) -> str:
    """Return the forecast for as many slides as the scoring run has."""
    if plan.hidden_s is None:
        return "scoring    number of slides unknown: the competition's file has no limits.hidden_slides"
    verdict = "fits" if plan.hidden_s <= plan.deadline_s else "DOES NOT FIT"
    return f"scoring    {plan.hidden_slides:,} slides like these: {format_seconds(plan.hidden_s)}, {verdict}"


def _slide_table(slides: Sequence[SlidePlan]) -> Iterator[str]:
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


def _cost_lines(plan: ClusterPlan) -> Iterator[str]:
    costs = plan.costs
    terms = [f"{costs.slide_s:.2f} s"]
    cap = "" if math.isinf(costs.full_mb) else f" up to {costs.full_mb:,.0f} MB"
    terms += [f"{costs.s_per_mb * 1000:.2f} ms a MB{cap}"] if costs.s_per_mb else []
    yield (
        f"a slide    {' + '.join(terms)}: {costs.slides} slides cut here, {plan.probed_at_a_time} at a time; "
        f"leave-one-out error {costs.miss:.0%}"
    )
    yield (
        f"           they have {costs.least_mb:,.1f} to {costs.most_mb:,.1f} MB; {plan.beyond:.0%} of the drawn slides "
        "are larger, so their seconds are extrapolated"
    )


def _run_table(runs: Sequence[SimulatedRun]) -> Iterator[str]:
    yield (
        f"{'machines':>8} {'time':>10} {'machine-hours':>14} {'USD':>9} {'efficiency':>11} {'tail':>10} {'last, MB':>9}"
    )
    for run in runs:
        cost = "-" if run.cost_usd is None else f"{run.cost_usd:,.2f}"
        wall = f"{run.wall_s / 3600:.2f} h" if run.wall_s >= 3600 else format_seconds(run.wall_s)
        yield (
            f"{run.machines:>8} {wall:>10} {run.machine_hours:>14.2f} {cost:>9} {run.efficiency:>11.0%} "
            f"{format_seconds(run.tail_s):>10} {run.last_mb:>9,.0f}"
        )
