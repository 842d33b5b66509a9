"""Cluster plans: drawn sizes, fitted costs, the simulation, and the printed plan."""

import io
import json
import math
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clotkit.cli import main
from clotkit.competitions import UNKNOWN, Competition, load_competition
from clotkit.config import TilingConfig
from clotkit.errors import ConfigError, UsageError
from clotkit.planning.cluster_costs import SAMPLED, SlideCost, fit_costs, full_mb, measure_split
from clotkit.planning.cluster_plan import ClusterSettings, plan_cluster, simulate_runs
from clotkit.planning.cluster_simulation import MIN_GAIN, Fleet, Job, simulate, stops_helping_at, with_machines
from clotkit.planning.text import cluster_plan_lines
from clotkit.scratch import scratch_base
from clotkit.synthetic.phantom import write_split
from clotkit.synthetic.phantom_sizes import draw_slides, file_quantiles

from .cluster import KEYS, copy_in, object_store
from .conftest import RECIPE, ROOT

SIZES = load_competition().sizes
RAW_BYTES = 2.05e12  # of the 754 train slides when decoded

seconds = st.floats(0.01, 300)
megabytes = st.floats(0.01, 3000)
many_jobs = st.lists(st.builds(Job, st.just("a"), megabytes, megabytes, seconds), min_size=1, max_size=25)
fleets = st.builds(
    Fleet,
    st.integers(1, 6),
    st.integers(1, 4),
    st.one_of(st.just(math.inf), st.floats(1, 500)),
    st.floats(0, 60),
    st.floats(0, 0.1),
)


def reference_wall_s(jobs: list[Job], fleet: Fleet) -> float:
    """Simulate a run another way: count down what is left of every slide from event to event."""
    waiting = sorted(jobs, key=lambda job: -job.file_mb)[::-1]
    places = [machine for _ in range(fleet.threads) for machine in range(fleet.machines)]
    moving, working, now_s = list[list[Any]](), list[list[Any]](), fleet.startup_s
    while True:
        while waiting and places:
            job, machine = waiting.pop(), places.pop(0)
            moving.append([job.moved_mb, machine, job])
        if not moving and not working:
            return now_s
        rates = [fleet.bandwidth_mb_s / sum(other[1] == one[1] for other in moving) for one in moving]
        ends_s = [one[0] / rate for one, rate in zip(moving, rates, strict=True)] + [one[0] for one in working]
        step_s, first = min(ends_s), int(np.argmin(ends_s))
        now_s += step_s
        for one, rate in zip(moving, rates, strict=True):
            one[0] -= rate * step_s if math.isfinite(rate) else one[0]
        for one in working:
            one[0] -= step_s
        if first < len(moving):
            _, machine, job = moving.pop(first)
            working.append([fleet.task_s + job.work_s, machine, job])
        else:
            places.append(working.pop(first - len(moving))[1])


@settings(max_examples=200, deadline=None)
@given(jobs=many_jobs, fleet=fleets)
def test_a_run_is_bounded_by_its_slowest_slide_and_by_its_sums(jobs: list[Job], fleet: Fleet) -> None:
    wall_s, tail_s, last = simulate(jobs, fleet)
    taken_s = wall_s - fleet.startup_s
    alone = [fleet.alone_s(job) for job in jobs]
    worked_s = sum(fleet.task_s + job.work_s for job in jobs)
    least = max(*alone, worked_s / (fleet.machines * fleet.threads), 0.0)
    least = max(least, sum(job.moved_mb for job in jobs) / fleet.machines / fleet.bandwidth_mb_s)
    assert least * (1 - 1e-9) <= taken_s <= sum(alone) * (1 + 1e-9) + 1e-9
    assert 0 <= tail_s <= taken_s * (1 + 1e-9)
    assert last in jobs


@settings(max_examples=200, deadline=None)
@given(jobs=many_jobs, fleet=fleets)
def test_one_machine_with_one_thread_takes_the_sum(jobs: list[Job], fleet: Fleet) -> None:
    alone = replace(fleet, machines=1, threads=1)
    wall_s, tail_s, last = simulate(jobs, alone)
    assert math.isclose(wall_s, alone.startup_s + sum(map(alone.alone_s, jobs)), rel_tol=1e-9)
    assert tail_s == 0
    assert last.file_mb == min(job.file_mb for job in jobs)


@settings(max_examples=200, deadline=None)
@given(jobs=many_jobs, fleet=fleets, more=st.integers(1, 5))
def test_more_machines_are_never_slower_where_threads_share_no_network(
    jobs: list[Job], fleet: Fleet, more: int
) -> None:
    """With a shared network only the bounds above hold: a slide that starts earlier may slow down another."""
    for apart in (replace(fleet, threads=1), replace(fleet, bandwidth_mb_s=math.inf)):
        few_s, many_s = (simulate(jobs, with_machines(apart, apart.machines + extra))[0] for extra in (0, more))
        assert many_s <= few_s * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(jobs=many_jobs, fleet=fleets)
def test_threads_share_a_network_evenly(jobs: list[Job], fleet: Fleet) -> None:
    """Compare with another simulation; sizes are made distinct, because ties may fall either way."""
    apart = [
        replace(job, file_mb=job.file_mb + 1e-3 * n, moved_mb=job.moved_mb + 1e-4 * n * n, work_s=job.work_s + 1e-5 * n)
        for n, job in enumerate(jobs)
    ]
    assert math.isclose(simulate(apart, fleet)[0], reference_wall_s(apart, fleet), rel_tol=1e-6)


def test_a_network_that_is_shared() -> None:
    jobs = [Job("large", 20, 20, 5.0), Job("small", 10, 10, 1.0)]
    # Both move at 5 MB/s until the small one has come at 2 s; the large one has 10 MB left, 1 s of the whole network.
    assert simulate(jobs, Fleet(1, 2, bandwidth_mb_s=10)) == (8.0, 5.0, jobs[0])
    assert simulate(jobs, Fleet(2, 1, bandwidth_mb_s=10)) == (7.0, 5.0, jobs[0])
    assert simulate(jobs, Fleet(2, 2, startup_s=3)) == (8.0, 5.0, jobs[0])
    assert simulate(jobs, Fleet(1, 1, bandwidth_mb_s=10, startup_s=1, task_s=0.5)) == (11.0, 0.0, jobs[1])


def test_a_run_without_slides_is_refused() -> None:
    with pytest.raises(ValueError, match="no slides"):
        simulate([], Fleet(1, 1))


@settings(max_examples=60, deadline=None)
@given(jobs=many_jobs, fleet=fleets)
def test_where_more_machines_stop_helping(jobs: list[Job], fleet: Fleet) -> None:
    stop = stops_helping_at(jobs, fleet)

    def saved(machines: int) -> float:
        return (
            1
            - simulate(jobs, with_machines(fleet, 2 * machines))[0] / simulate(jobs, with_machines(fleet, machines))[0]
        )

    assert stop <= len(jobs)
    assert saved(stop) < MIN_GAIN + 1e-9
    assert stop == 1 or saved(stop - 1) >= MIN_GAIN - 1e-9


def test_the_cost_of_machines() -> None:
    jobs = [Job("large", 20, 0, 1800.0), Job("small", 10, 0, 600.0)]
    one, two = simulate_runs(jobs, Fleet(1, 1, startup_s=600), (1, 2), 3.0)
    assert (one.wall_s, one.machine_hours, one.cost_usd, one.efficiency, one.last) == (
        3000,
        3000 / 3600,
        2.5,
        1,
        "small",
    )
    assert (two.wall_s, two.cost_usd, two.efficiency, two.tail_s) == (2400, 4.0, 3000 / 4800, 1200)
    assert (two.last, two.last_mb) == ("large", 20)
    assert simulate_runs(jobs, Fleet(1, 1), (1,), None)[0].cost_usd is None


@settings(max_examples=100, deadline=None)
@given(
    slide_s=st.floats(0.05, 5),
    s_per_mb=st.floats(1e-3, 1),
    sizes=st.lists(st.floats(0.1, 3000), min_size=4, max_size=SAMPLED, unique=True),
)
def test_a_known_law_is_found(slide_s: float, s_per_mb: float, sizes: list[float]) -> None:
    full = float(np.median(sizes)) + 50
    law = [SlideCost("a", mb, slide_s + s_per_mb * min(mb, full), 2.0) for mb in sizes]
    found = fit_costs(law, full)
    assert all(math.isclose(found.seconds(cost.file_mb), cost.work_s, rel_tol=1e-6) for cost in law)
    assert found.seconds(1e6) == found.seconds(full)
    assert (found.slides, found.least_mb, found.most_mb, found.shard_mb) == (len(law), min(sizes), max(sizes), 2.0)


def test_costs_are_never_negative_and_have_an_error() -> None:
    falling = [SlideCost("a", mb, 10 / mb, 1.0) for mb in (1.0, 2.0, 4.0, 8.0)]
    found = fit_costs(falling)
    assert found.s_per_mb == 0
    assert found.slide_s > 0
    assert found.miss > 0.5
    rising = fit_costs([SlideCost("a", mb, 1 + mb, 1.0) for mb in (1.0, 2.0, 4.0, 8.0)])
    assert rising.miss < 1e-9


def test_drawn_slides_are_those_of_the_competition() -> None:
    drawn = draw_slides(SIZES, SIZES.slides, 0)
    file_bytes = np.array([slide.file_bytes for slide in drawn])
    raw_bytes = 3 * np.array([slide.width_px * slide.height_px for slide in drawn])
    assert abs(file_bytes.sum() / SIZES.total_bytes - 1) < 0.03
    assert abs(raw_bytes.sum() / (RAW_BYTES * SIZES.slides / 754) - 1) < 0.03
    for level, known in zip(SIZES.file_levels, SIZES.file_bytes, strict=True):
        assert abs(np.quantile(file_bytes, level) / known - 1) < 0.03
    for level, known in zip(SIZES.area_levels, SIZES.areas_px, strict=True):
        assert abs(np.quantile(raw_bytes / 3, level) / known - 1) < 0.04
    assert tuple(SIZES.largest_px) in {(slide.width_px, slide.height_px) for slide in drawn}


@pytest.mark.parametrize("seed", range(5))
def test_large_slides_have_large_files(seed: int) -> None:
    drawn = draw_slides(SIZES, 754, seed)
    ratio = [3 * slide.width_px * slide.height_px / slide.file_bytes for slide in drawn]
    assert 6.5 < np.median(ratio) < 9.5  # of the real ones: 8.7
    assert min(ratio) > 1  # nothing is larger than its pixels
    assert sum(slide.file_bytes for slide in drawn) == sum(slide.file_bytes for slide in draw_slides(SIZES, 754, 99))


@settings(max_examples=50, deadline=None)
@given(slides=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_any_number_of_slides_can_be_drawn_again(slides: int, seed: int) -> None:
    drawn = draw_slides(SIZES, slides, seed)
    assert drawn == draw_slides(SIZES, slides, seed)
    assert len(drawn) == slides
    assert all(SIZES.file_bytes[0] <= slide.file_bytes <= SIZES.file_bytes[-1] for slide in drawn)
    levels = np.linspace(0, 1, slides)
    assert (np.diff(file_quantiles(SIZES, levels)) >= 0).all()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("portrait_share = 0.84", "portrait_shore = 0.84", "portrait_shore"),
        ("slides = 1_150", "slides = 0", "0 slides"),
        ("largest_px = [48_284, 101_408]", "largest_px = [48_284]", "largest_px"),
        ("least_side_px = 4_420", "least_side_px = 50_000", "50000"),
        ("file_bytes = [7.4e6, ", "file_bytes = [", "file_bytes.*7.*8"),
        ("file_bytes = [7.4e6, ", "file_bytes = [37.4e6, ", "file_bytes"),
        ("area_levels = [0, ", "area_levels = [0.01, ", "0 to 1"),
    ],
)
def test_a_wrong_table_of_sizes_is_refused(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = (ROOT / "src" / "clotkit" / "competitions" / "strip_ai.toml").read_text()
    assert old in text
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=named):
        load_competition(str(path))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the recipe of these tests: at most 6 tiles a slide."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def cluster_settings(test_split: Path, tiny: Path) -> ClusterSettings:
    return ClusterSettings(test_split, str(tiny), None, 4, 2, 4096, slides=50, price_usd=0.5, bandwidth_mb_s=100.0)


@pytest.fixture(scope="module")
def printed(test_split: Path, tiny: Path) -> dict[str, Any]:
    """Return the object that --json prints for 4 machines of 2 threads."""
    words = ["plan", str(test_split), "--recipe", str(tiny), "--cluster", "4", "--jobs", "2", "--slides", "50"]
    with redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--price", "0.5", "--bandwidth", "100", "--startup", "30s", "--json"]) == 0
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_one_json_object(printed: dict[str, Any]) -> None:
    assert (printed["slides"], printed["own_slides"], printed["threads"], printed["seed"]) == (50, 4, 2, 0)
    assert (printed["bandwidth_mb_s"], printed["startup_s"], printed["price_usd"]) == (100, 30, 0.5)
    assert abs(printed["file_gb"] / printed["real_gb"] - 1) < 0.1
    machines = [one["machines"] for one in printed["outcomes"]]
    assert {1, 2, 4, printed["stops_helping_at"], 2 * printed["stops_helping_at"]} <= set(machines)
    assert machines == sorted(machines)
    for one in printed["outcomes"]:
        assert one["wall_s"] > 30 + printed["slowest_s"] * (1 - 1e-9)
        assert one["machine_hours"] == pytest.approx(one["machines"] * one["wall_s"] / 3600)
        assert one["cost_usd"] == pytest.approx(0.5 * one["machine_hours"])
        assert one["last"].startswith("drawn ")
    assert [one["machines"] for one in printed["own"]] == [1, 2, 4]
    assert printed["failing"] == []


def test_costs_are_measured(printed: dict[str, Any]) -> None:
    costs = printed["costs"]
    assert costs["slides"] == 4
    assert costs["slide_s"] + costs["s_per_mb"] > 0
    assert costs["shard_mb"] * 1e6 <= 6 * 32 * 32 * 3 + 10_000
    assert costs["full_mb"] > 0


def test_the_split_is_predicted_from_what_was_cut(cluster_settings: ClusterSettings, strip_ai: Competition) -> None:
    measured = measure_split(
        cluster_settings.split_dir, cluster_settings.recipe, None, 1, cluster_settings.memory_mb, strip_ai
    )
    assert {cost.image_id for cost in measured.cut} == {slide.image_id for slide in measured.plan.slides}
    assert measured.start_s > 0
    tiles = sum(slide.tiles for slide in measured.plan.slides)
    stored = sum(cost.file_mb for cost in measured.cut)
    wanted = TilingConfig("patches", 32, 8, max_tiles=1000, batch_tiles=4)
    assert full_mb(measured.plan, wanted) == pytest.approx(1000 * stored / tiles)
    assert full_mb(measured.plan, replace(wanted, name="darkest")) == math.inf


def test_lines_for_a_person(split: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a missing slide three are left to measure, and the exit code is 3."""
    sorted((split / "test").glob("*.tif"))[0].unlink()
    assert main(["plan", str(split), "--recipe", str(tiny), "--cluster", "3", "--jobs", "1", "--slides", "20"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("20 slides ")
    assert "3 slides cut here" in lines[1]
    assert lines[3].startswith("machine ")
    assert lines[3].endswith("no --price")
    assert lines[4].split() == ["machines", "time", "machine-hours", "USD", "efficiency", "tail", "last,", "MB"]
    assert {"1", "2", "3"} <= {line.split()[0] for line in lines[5:-3]}
    assert f"{MIN_GAIN:.0%}" in lines[-3]
    assert " 4 slides" in lines[-2]
    assert lines[-1].startswith("1 ")


@pytest.mark.slow
def test_a_split_in_an_object_store_is_planned_from_some_of_its_slides(
    make_split: Callable[..., Path], strip_ai: Competition, tiny: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    split = make_split(tmp_path / "train", strip_ai, split="train", slides=SAMPLED + 4)
    sizes = {path.stem: path.stat().st_size / 1e6 for path in sorted((split / "train").glob("*.tif"))}
    (split / "train" / f"{min(sizes)}.tif").unlink()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "scratch").mkdir()
    words = ["plan", "s3://bucket/train", "--recipe", str(tiny), "--cluster", "2", "--jobs", "2", "--slides", "20"]
    with object_store() as address:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": address}).items():
            monkeypatch.setenv(name, value)
        copy_in(split, "s3://bucket/train")
        assert main([*words, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert main([*words, "--bandwidth", "50"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert main(words[:2]) == 2
        assert main(["plan", "s3://bucket/nothing", *words[2:]]) == 2
    assert (printed["own_slides"], printed["costs"]["slides"]) == (SAMPLED + 4, SAMPLED)
    assert printed["own_gb"] * 1000 == pytest.approx(sum(sizes.values()) - sizes[min(sizes)])
    assert 0 < printed["fetched_mb"] < printed["own_gb"] * 1000
    assert printed["bandwidth_mb_s"] == printed["fetched_mb_s"] > 0
    assert lines[3].startswith("fetched ")
    assert "2 threads, 50 MB/s" in lines[4]
    refused, missing = capsys.readouterr().err.splitlines()
    assert "--cluster" in refused
    assert "s3://bucket/nothing" in missing
    assert not list(scratch_base().iterdir())


def test_too_few_slides_to_measure(split: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((split / "test").glob("*.tif"))[:2]:
        path.unlink()
    assert main(["plan", str(split), "--recipe", str(tiny), "--cluster", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"\b2 of 4 .*\b3 ", line)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--cluster", "0"], ("--cluster", "0", "1 to 10000")),
        (["--cluster", "2", "--slides", "0"], ("--slides", "0", "1 to 1000000")),
        (["--cluster", "2", "--price", "-1"], ("--price", "-1.0")),
        (["--cluster", "2", "--price", "nan"], ("--price", "nan")),
        (["--cluster", "2", "--bandwidth", "-5"], ("--bandwidth", "-5.0")),
        (["--cluster", "2", "--bandwidth", "inf"], ("--bandwidth", "inf")),
        (["--cluster", "2", "--jobs", "0"], ("--jobs", "0")),
        (["--cluster", "2", "--weights", "weights/demo"], ("--weights", "--cluster")),
        (["--cluster", "2", "--deadline", "1h"], ("--deadline", "--cluster")),
        (["--price", "1"], ("--price", "--cluster")),
        (["--slides", "5"], ("--slides", "--cluster")),
    ],
)
def test_wrong_usage_ends_with_2_in_one_line(
    test_split: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: tuple[str, ...]
) -> None:
    assert main(["plan", str(test_split), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert [word for word in named if word not in line] == []


def test_a_competition_without_sizes(cluster_settings: ClusterSettings, strip_ai: Competition) -> None:
    """Its figures come from the split's own slides, repeated."""
    without = replace(strip_ai, sizes=UNKNOWN)
    plan = plan_cluster(replace(cluster_settings, slides=8), without)
    assert (plan.sizes_known, plan.real_gb, plan.slides, plan.own_slides) == (False, None, 8, 4)
    assert plan.file_gb == pytest.approx(2 * plan.own_gb)
    assert plan.beyond == 0
    assert any("[sizes]" in line for line in cluster_plan_lines(plan))
    assert plan.to_json()["real_gb"] is None
    with pytest.raises(UsageError, match=r"--cluster .*20000"):
        plan_cluster(replace(cluster_settings, machines=20_000), without)


def test_a_phantom_without_a_table_of_sizes_has_the_default_sizes(other: Competition, tmp_path: Path) -> None:
    write_split(tmp_path / "a", "test", 1, 0, other, log=lambda _: None)
    assert json.loads((tmp_path / "a" / "phantom.json").read_text())["splits"]["test"]["linear_scale"] == 1 / 8
