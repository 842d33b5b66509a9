"""Run the benchmark at a small size and check that every row is whole; its figures mean nothing."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import pyvips
import tifffile

from bench import competitions, processes
from bench.comparing import Limits, State, compare
from bench.contenders import names_of, of_job
from bench.environments import ENVIRONMENTS, install
from bench.jobs import BEST, PYRAMIDS
from bench.layouts import LAYOUTS as LAYOUT_OPTIONS
from bench.layouts import slides
from bench.limits import tissue_decode
from bench.peer_scripts.common import naive_loop
from bench.results import markdown
from clotkit.competitions import load_competition
from clotkit.config import load_recipe

from .conftest import ROOT

ONE_LEVEL = ["deflate", "strips"]
LAYOUTS = [*ONE_LEVEL, "svs"]
FIGURES = ["cpu_s", "wall_s", "peak_mb", "tiles", "ratio_to_libvips_decode", "ratio_to_tissue_decode"]
PEER = "fastslide"  # which cannot be installed: pip has no index


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("bench")
    out = folder / "bench.json"
    small = ["--side", "1000", "--no-largest", "--rounds", "1", "--layouts", *LAYOUTS]
    peers = ["--peers", PEER, "--environments", str(folder / "peers")]
    command = [sys.executable, "-m", "bench", *small, "--folder", str(folder), "--out", str(out), *peers]
    offline = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=offline), out


def test_every_contender_has_a_whole_row(ended: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    process, out = ended
    assert process.returncode in (0, 1), process.stderr
    rows = json.loads(out.read_text())
    assert all(list(row) == ["layout", "side_px", "name", "version", "state", *FIGURES, "reason"] for row in rows)
    expected = [(layout, name) for layout in LAYOUTS for name in names_of(layout, [PEER])]
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
    peer = {(layout, name) for layout in LAYOUTS for name in names_of(layout, [PEER]) if name.startswith(PEER)}
    assert set(failed) == {("strips", "OpenSlide grid loop"), ("strips", "Approach 1 as it was"), *peer}
    assert all(reason in process.stdout for reason in failed.values())
    states = {(row["layout"], row["name"]): row["state"] for row in json.loads(out.read_text())}
    assert {key for key, state in states.items() if state == State.NOT_INSTALLED} == peer
    assert {states[key] for key in failed.keys() - peer} == {State.REFUSED}


def test_the_rows_are_printed_as_markdown(ended: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    rows = json.loads(ended[1].read_text())
    lines = [line for line in markdown(rows) if line.startswith("| ")]
    assert sum(len(line.split("|")) - 3 for line in lines) == len(rows) + len(LAYOUTS)


FAKE = {  # of each state: what opening a slide does in a peer's environment
    State.DONE: "return Slide()",
    State.REFUSED: "raise ValueError('no such layout')",
    State.CRASHED: "os.kill(os.getpid(), 11)",
    State.KILLED: "kept = bytearray(b'1') * 2**29\n    while kept: pass",
    State.TIMEOUT: "while True: pass",
}
FAKE_MODULE = """
import os
import numpy as np
class Region:
    def numpy(self): return np.zeros((64, 64, 3), np.uint8)
class Slide:
    dimensions, level_downsamples = (64, 64), [1.0]
    def read_region(self, corner, level, size): return Region()
class FastSlide:
    @staticmethod
    def from_file_path(path):
    """


@pytest.mark.parametrize("state", FAKE)
def test_a_peer_in_its_environment_has_a_row_however_it_ends(state: State, tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "fastslide.py").write_text(FAKE_MODULE + "    " + FAKE[state].replace("\n", "\n    "))
    python = tmp_path / PEER / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}/modules" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / PEER / "installed.txt").write_text("\n".join(ENVIRONMENTS[PEER].requirements))
    assert install(PEER, tmp_path, lambda _: None) == python  # as it is
    slide = tmp_path / "slide.tif"
    slide.write_bytes(b"II")
    limits = Limits(seconds=3 if state is State.TIMEOUT else 60, memory_mb=300)
    (row,) = compare("deflate", 64, slide, 2, [of_job(PEER, BEST)], {PEER: python}, limits)
    assert (row["state"], row["version"]) == (state, ENVIRONMENTS[PEER].version)
    assert (row["reason"] is None) == (row["cpu_s"] is not None) == (state is State.DONE)
    assert row["tiles"] == (0 if state is State.DONE else None)  # black all over: no tissue


def test_a_process_that_passed_its_memory_has_passed_it_when_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MEMORY_POLL_S", 0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    watch = processes.MemoryWatch(1.0)
    assert not watch(ended.pid)
    assert watch(os.getpid())
    assert watch(ended.pid)
    assert watch.passed


@pytest.mark.parametrize("layout", ["deflate", "lzw", "jpeg", "strips"])
def test_the_limit_decodes_the_tiles_with_tissue_and_no_other(layout: str, tmp_path: Path) -> None:
    picture = np.full((768, 512, 3), 240, np.uint8)
    picture[300:310, 20:30] = picture[600:610, 500:510] = 90
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(picture).tiffsave(str(path), pyramid=layout == "jpeg", **LAYOUT_OPTIONS[layout])
    assert tissue_decode(path, 1)(path) == 2
    if layout == "jpeg":  # at 1/2: a column of two tiles
        assert tissue_decode(path, 2)(path) == 2


def test_the_loop_of_a_plain_reader_takes_tissue_tiles_from_the_best_level() -> None:
    slide = np.full((4096, 4096, 3), 240, np.uint8)
    slide[:1024, :1024] = slide[3072:, 2048:3072] = 90
    levels = [slide, slide[::4, ::4], slide[::16, ::16]]
    read: list[tuple[int, int, int]] = []

    def region(left: int, top: int, level: int, width: int, height: int) -> Any:
        read.append((level, left, top))
        return levels[level][top : top + height, left : left + width]

    assert naive_loop((4096, 4096), [1.0, 4.0, 16.0], region, BEST) == 2
    assert read == [(2, 0, 0), (1, 0, 0), (1, 512, 768)]  # an overview, two tiles
    assert naive_loop((4096, 4096), [1.0], region, BEST) == 2
    assert read[-2:] == [(0, 0, 0), (0, 2048, 3072)]


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
