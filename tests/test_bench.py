"""Run the benchmark at a small size and check that every row is whole; its figures mean nothing."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench import competitions
from clotkit.competitions import load_competition
from clotkit.config import load_recipe

from .conftest import ROOT

LAYOUTS = ["deflate", "strips"]
FIGURES = ["cpu_s", "wall_s", "peak_mb", "tiles", "ratio_to_libvips_decode"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("bench")
    out = folder / "bench.json"
    small = ["--side", "1000", "--no-largest", "--rounds", "1", "--layouts", *LAYOUTS]
    command = [sys.executable, "-m", "bench", *small, "--folder", str(folder), "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False), out


def test_every_contender_has_a_whole_row(ended: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    process, out = ended
    assert process.returncode in (0, 1), process.stderr
    rows = json.loads(out.read_text())
    assert all(list(row) == ["layout", "side_px", "name", *FIGURES, "reason"] for row in rows)
    names = [row["name"] for row in rows if row["layout"] == LAYOUTS[0]]
    assert len(names) == 11
    assert [(row["layout"], row["name"]) for row in rows] == [(layout, name) for layout in LAYOUTS for name in names]
    for row in rows:
        figures = [row[key] for key in FIGURES]
        if row["reason"]:
            assert figures == [None] * len(FIGURES)
        else:
            assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
    assert {row["ratio_to_libvips_decode"] for row in rows if row["name"] == "libvips whole decode"} == {1.0}


def test_what_a_contender_cannot_read_has_its_reason(
    ended: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    process, out = ended
    failed = {(row["layout"], row["name"]): row["reason"] for row in json.loads(out.read_text()) if row["reason"]}
    assert set(failed) == {("strips", "OpenSlide grid loop"), ("strips", "Approach 1 as it was")}
    assert all(reason in process.stdout for reason in failed.values())


def test_each_target_is_printed_and_decides_the_exit_code(
    ended: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    process, _ = ended
    lines = process.stdout.split("Targets:\n")[1].splitlines()
    assert len(lines) == 3 * len(LAYOUTS)
    assert all(line.startswith(("met ", "MISSED ")) and ", wanted " in line for line in lines)
    assert process.returncode == int(any(line.startswith("MISSED") for line in lines))


RIGHT = {  # of each case: (true labels, cells of right answers, cells of one answer for all)
    "panda": (["0", "3", "5"], [["0"], ["3"], ["5"]], ["1"]),
    "ubc": (["CC", "EC", "Other"], [["CC"], ["EC"], ["Other"]], ["EC"]),
    "visiomel": (["0", "1", "1"], [["0.1"], ["0.9"], ["0.8"]], ["0.6"]),
    "prob": (
        ["benign", "atypical", "malignant"],
        [["0.8", "0.1", "0.1"], ["0.1", "0.8", "0.1"], ["0.1", "0.1", "0.8"]],
        ["0.3", "0.3", "0.4"],
    ),
    "camelyon16": (["normal", "tumor", "tumor"], [["0.2"], ["0.7"], ["0.6"]], ["0.5"]),
}


@pytest.mark.parametrize("case", competitions.CASES, ids=lambda case: case.folder)
def test_right_answers_meet_the_targets_of_a_split_and_a_constant_does_not(
    case: competitions.Case, tmp_path: Path
) -> None:
    labels, answers, constant = RIGHT[case.folder]
    write_csv(tmp_path / "truth.csv", [[f"s{at}", label] for at, label in enumerate(labels)])
    write_csv(tmp_path / "right.csv", [[f"s{at}", *cells] for at, cells in enumerate(answers)][::-1])
    write_csv(tmp_path / "constant.csv", [[f"s{at}", *constant] for at in range(len(labels))])
    right, constants = (
        competitions.judged(case.judge, tmp_path / "truth.csv", tmp_path / f"{name}.csv")
        for name in ("right", "constant")
    )
    assert all(figure.is_met for figure in right)
    assert not any(figure.is_met for figure in constants)
    assert load_recipe(case.recipe).data.source == "slides"
    assert load_competition(case.competition).kaggle.kernel


def write_csv(path: Path, rows: list[list[str]]) -> None:
    path.write_text("".join(",".join(row) + "\n" for row in [["id", "cells"], *rows]))
