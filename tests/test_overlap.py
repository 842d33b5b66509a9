"""Test the arithmetic of the overlap benchmark, and make one small measurement."""

from pathlib import Path

import pytest

from bench.overlap import CORES, KINDS, SCENES, bounds, measure, nearest_width, table, target

from .conftest import RECIPE

FIGURES = {"cpu_s": 0.0, "tiles": 96, "others": 0.0}


def scene_row(name: str, decode: dict[str, float], model: dict[str, float], run_s: float) -> dict[str, object]:
    kinds = {"decode": FIGURES | decode, "model": FIGURES | model, "run": FIGURES | {"wall_s": run_s}}
    return {"scene": name, **SCENES[name]._asdict(), "cores": CORES, "size": 8, **kinds, **bounds(kinds)}


def test_with_a_core_each_the_slower_of_the_two_is_the_bound() -> None:
    row = scene_row("a core each", {"wall_s": 10.0, "cpu_s": 10.0}, {"wall_s": 8.0, "cpu_s": 8.0}, 11.0)
    assert row["max_alone_s"] == 10
    assert target(row) == (True, "met    a core each: run over max alone: 1.10, wanted at most 1.15")


def test_with_all_cores_the_cpu_of_both_is_the_bound() -> None:
    cpu_s = 10.0 * CORES
    row = scene_row("all cores", {"wall_s": 10.0, "cpu_s": cpu_s}, {"wall_s": 10.0, "cpu_s": cpu_s}, 24.0)
    assert (row["max_alone_s"], row["cpu_bound_s"]) == (10, 20)
    assert row["ratio_to_max_alone"] == pytest.approx(2.4)
    assert target(row) == (False, "MISSED all cores: run over cpu bound: 1.20, wanted at most 1.15")
    assert len(table([row])) == 1 + len(KINDS) + 1


def test_the_network_is_the_one_that_costs_what_decoding_costs() -> None:
    costs = {"8": 0.001, "16": 0.004, "32": 0.016}
    assert [nearest_width(wanted_s, costs) for wanted_s in (1e-4, 0.003, 0.007, 0.009, 1)] == [8, 16, 16, 32, 32]


def test_decoding_alone_is_measured(test_split: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    row = measure("decode", test_split, tmp_path, jobs=2)
    assert row["tiles"] > 0
    assert row["wall_s"] > 0
    assert row["cpu_s"] > 0
    assert "others" in row
