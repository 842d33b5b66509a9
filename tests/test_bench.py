"""Run the benchmark at a small size and check that every row is whole; its figures mean nothing."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from bench import competitions
from bench.contenders import OF_ONE_LEVEL, OF_PYRAMIDS
from bench.jobs import PYRAMIDS
from bench.layouts import slides
from clotkit.competitions import load_competition
from clotkit.config import load_recipe

from .conftest import ROOT

ONE_LEVEL = ["deflate", "strips"]
LAYOUTS = [*ONE_LEVEL, "svs"]
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
    contenders = {layout: OF_PYRAMIDS if layout in PYRAMIDS else OF_ONE_LEVEL for layout in LAYOUTS}
    expected = [(layout, name) for layout, names in contenders.items() for name in names]
    assert [(row["layout"], row["name"]) for row in rows] == expected
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
    assert len(lines) == 3 * len(ONE_LEVEL) + 2
    assert all(line.startswith(("met ", "MISSED ")) and ", wanted " in line for line in lines)
    assert process.returncode == int(any(line.startswith("MISSED") for line in lines))


def test_pyramids_hold_one_picture_with_the_levels_that_readers_look_for(tmp_path: Path) -> None:
    paths = slides(tmp_path, 1300, list(PYRAMIDS), lambda _: None)
    views, levels, vendors = [], {}, {}
    for layout, path in paths.items():
        with openslide.OpenSlide(path) as slide:
            views.append(np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), np.int16))
            vendors[layout] = slide.properties["openslide.vendor"]
            assert float(slide.properties["openslide.mpp-x"]) == 0.25
            levels[layout] = slide.level_dimensions
            if layout == "svs":
                assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
        with tifffile.TiffFile(path) as tiff:
            subifds = [len(page.subifds or ()) for page in tiff.pages]
            assert subifds == {"pyramid": [0] * 4, "subifd": [3], "svs": [0] * 6}[layout]
    assert vendors == {"pyramid": "generic-tiff", "subifd": "generic-tiff", "svs": "aperio"}
    assert levels["pyramid"] == ((1300, 1300), (650, 650), (325, 325), (162, 162))
    assert levels["svs"] == ((1300, 1300), (325, 325), (82, 82))
    assert all(np.abs(view - views[0]).mean() < 2 for view in views)


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
