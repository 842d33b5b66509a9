"""Plans and forecasts agree with runs, and slides that cannot be read are named."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clotkit.cli import main
from clotkit.competitions import Competition, Limits
from clotkit.config import TilingConfig, load_recipe
from clotkit.planning.forecast import Forecast, Probe, box_shares, forecast, searched
from clotkit.planning.plan import Plan, PlanSettings, plan_split, plan_task, wall_seconds
from clotkit.planning.text import plan_lines
from clotkit.reasons import Reason
from clotkit.tiling.tilers import TILERS, Batch, tile_slide
from clotkit.workers import Task

from .conftest import RECIPE

TILING = TilingConfig("patches", tile_px=32, downsample=8, max_tiles=6, batch_tiles=4)
TISSUE, BACKGROUND = (150, 60, 90), (245, 245, 245)


@pytest.fixture
def plan(split: Path, recipe: Path, strip_ai: Competition) -> Callable[..., Plan]:
    """Return a function that plans the split, two slides at a time; its arguments change the settings."""

    def run(competition: Competition = strip_ai, **changed: Any) -> Plan:
        work = changed.pop("work", None)
        settings = PlanSettings(split, None, str(recipe), None, 2, 600.0, 2048)
        return plan_split(replace(settings, **changed), competition, work)

    return run


def slides_of(split: Path) -> list[Path]:
    return sorted((split / "test").glob("*.tif"))


def facts_of(path: Path, *tilings: TilingConfig) -> dict[str, Any]:
    """Return all facts of a slide's forecast."""
    return {key: value for facts in forecast(path, tilings) for key, value in facts.items()}


def forecast_of(path: Path, tiling: TilingConfig) -> Forecast:
    (found,) = facts_of(path, tiling)["forecasts"]
    return Forecast(**found)


def cut(path: Path, tiling: TilingConfig) -> tuple[int, dict[str, Any]]:
    """Cut a slide; return its number of tiles, and its facts."""
    facts, tiles = dict[str, Any](), 0
    for piece in tile_slide(path, tiling):
        if isinstance(piece, Batch):
            tiles += len(piece.tiles)
        else:
            facts.update(piece)
    return tiles, facts


def write_blocks(path: Path, tissue: np.ndarray[Any, Any], **options: Any) -> Path:
    """Write a slide whose cells of 128 px are textured tissue where `tissue` bool[rows, columns] is set."""
    import tifffile

    rng = np.random.default_rng(3)
    mask = tissue.repeat(128, axis=0).repeat(128, axis=1)
    pixels = np.where(mask[..., None], np.array(TISSUE), np.array(BACKGROUND))
    pixels = pixels + mask[..., None] * rng.integers(-20, 21, pixels.shape)
    tifffile.imwrite(path, pixels.astype(np.uint8), photometric="rgb", compression="zlib", **options)
    return path


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a slide of 16 x 20 cells, 6 x 5 of which are tissue; read-only."""
    tissue = np.zeros((16, 20), bool)
    tissue[2:8, 3:8] = True
    return write_blocks(tmp_path_factory.mktemp("blocks") / "a.tif", tissue, tile=(128, 128))


@pytest.mark.parametrize("max_tiles", [3, 12, 500])
def test_forecast_squares_and_tiles_are_those_of_the_tiler(blocks: Path, max_tiles: int) -> None:
    tiling = TilingConfig("patches", tile_px=32, downsample=4, max_tiles=max_tiles, batch_tiles=4)
    found = forecast_of(blocks, tiling)
    tiles, facts = cut(blocks, tiling)
    assert found.tiles == tiles
    assert found.squares == round((1 - facts["skipped_share"]) * 16 * 20)
    assert tiles <= found.most_tiles


@pytest.mark.parametrize("name", TILERS)
def test_every_tiler_has_its_forecast(blocks: Path, name: str) -> None:
    tiling = TilingConfig(name, tile_px=32, downsample=8, max_tiles=6, batch_tiles=4)
    found = forecast_of(blocks, tiling)
    tiles, _ = cut(blocks, tiling)
    assert abs(found.tiles - tiles) <= 1
    assert tiles <= found.most_tiles
    assert found.decode_s > 0
    assert found.extra_mb > 0


def test_phantoms_give_about_as_many_tiles_as_forecast(test_split: Path) -> None:
    expected, real = 0, 0
    for slide in slides_of(test_split):
        found, (tiles, _) = forecast_of(slide, TILING), cut(slide, TILING)
        assert tiles <= found.most_tiles
        expected, real = expected + found.tiles, real + tiles
    assert abs(expected - real) <= 2


@pytest.mark.parametrize("name", TILERS)
def test_a_slide_in_rows_has_its_forecast(tmp_path: Path, name: str) -> None:
    tissue = np.zeros((8, 10), bool)
    tissue[2:5, 3:8] = True
    path = write_blocks(tmp_path / "a.tif", tissue, rowsperstrip=16)
    tiling = TilingConfig(name, tile_px=32, downsample=4, max_tiles=60, batch_tiles=4)
    facts = facts_of(path, tiling)
    tiles, _ = cut(path, tiling)
    assert (facts["layout"], facts["decoder"]) == ("strips", "direct")
    assert "wanted_share" not in facts
    assert abs(facts["forecasts"][0]["tiles"] - tiles) <= 1
    assert tiles <= facts["forecasts"][0]["most_tiles"]


def test_a_slide_read_only_from_the_top_counts_as_all_tissue(tmp_path: Path) -> None:
    tissue = np.zeros((8, 10), bool)
    tissue[2:5, 3:8] = True
    path = write_blocks(tmp_path / "a.tif", tissue, rowsperstrip=16, metadata={}, extratags=[(274, "H", 1, 3, True)])
    tiling = TilingConfig("patches", tile_px=32, downsample=4, max_tiles=60, batch_tiles=4)
    facts = facts_of(path, tiling)
    assert facts["decoder"] == "libvips"
    assert facts["forecasts"][0]["tiles"] == facts["forecasts"][0]["most_tiles"] == 60


def test_pictures_without_a_tile_table_are_forecast(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.full((600, 800, 3), BACKGROUND, np.uint8)
    pixels[100:400, 100:500] = TISSUE
    Image.fromarray(pixels).save(tmp_path / "a.png")
    facts = facts_of(tmp_path / "a.png", TILING)
    assert (facts["codec"], facts["decoder"], facts["width_px"]) == ("PNG or JPEG file", "libvips", 800)
    assert facts["forecasts"][0]["most_tiles"] == 6


def test_without_an_index_every_cell_is_wanted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    import tifffile

    noise = rng.integers(200, 256, (1024, 1024, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, tile=(128, 128), photometric="rgb")
    assert facts_of(tmp_path / "a.tif", TILING)["wanted_share"] == 1.0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_shares_of_boxes_are_means_of_pixels(data: st.DataObject) -> None:
    cell = data.draw(st.sampled_from([4, 8]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    share = rng.random((data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))))
    pixels = np.zeros((200, 200))
    whole = share.repeat(cell, axis=0).repeat(cell, axis=1)
    pixels[: whole.shape[0], : whole.shape[1]] = whole
    corners = rng.integers(0, 48, (5, 2))
    width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    expected = [pixels[y : y + height, x : x + width].mean() for x, y in corners]
    found = box_shares(Probe(cell, share), corners, (width, height))
    assert np.allclose(found, expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_search_never_finds_more_than_there_is(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    bounds = np.round(rng.random(count), 1)
    shares = bounds * rng.random(count)
    config = replace(
        TILING, name=data.draw(st.sampled_from(["patches", "darkest"])), max_tiles=int(rng.integers(1, 70))
    )
    read, tiles = searched(config, bounds, shares)
    assert tiles <= min(config.max_tiles, len(read)) <= (bounds > 0).sum()
    assert (tiles > 0) == (shares.max() > 0)


def test_a_search_skips_squares_below_the_needed_share() -> None:
    """Once one square has the share, squares with a lower bound are not read."""
    bounds = np.array([0.2, 0.9, 0.45, 0.9, 0.3, 0.6])
    config = replace(TILING, max_tiles=5, min_tissue_share=0.5)
    read, tiles = searched(config, bounds, bounds)
    assert (sorted(read.tolist()), tiles) == ([1, 3, 5], 3)
    read, tiles = searched(config, bounds, bounds / 2)
    assert (len(read), tiles) == (6, 3)  # none has it: all are read for the five best, and a quarter is needed


@pytest.mark.parametrize(
    ("slides", "jobs", "seconds"),
    [
        ([], 2, 0.0),
        ([(3.0, 1.0), (2.0, 1.0)], 1, 7.0),  # one after the other
        ([(3.0, 0.0), (3.0, 0.0), (1.0, 0.0)], 2, 4.0),
        ([(1.0, 5.0), (1.0, 5.0), (1.0, 5.0)], 3, 16.0),  # the network takes longest
        ([(1.0, 2.0), (4.0, 1.0)], 2, 5.0),  # the first is predicted while the second is decoded
    ],
)
def test_wall_seconds_are_those_of_a_run(slides: list[tuple[float, float]], jobs: int, seconds: float) -> None:
    assert wall_seconds(slides, jobs) == seconds


def test_a_plan_adds_up(plan: Callable[..., Plan], test_split: Path) -> None:
    found = plan()
    assert found.sound
    assert (found.tiles, found.most_tiles) == tuple(
        sum(getattr(slide, name) for slide in found.slides) for name in ("tiles", "most_tiles")
    )
    assert {slide.image_id for slide in found.slides} == {path.stem for path in slides_of(test_split)}
    assert all(slide.seconds > 0 and slide.peak_mb > 10 and slide.codec == "deflate" for slide in found.slides)
    assert found.peak_mb == found.parent_mb + 2 * max(slide.peak_mb for slide in found.slides)
    assert not found.network_measured
    assert found.predict_s == found.load_s == 0
    assert "--weights" in "\n".join(plan_lines(found))
    assert (found.hidden_slides, found.default_limits) == (280, False)
    assert found.hidden_s == pytest.approx(found.wall_s * 280 / 4)


def test_a_competition_without_limits_is_planned_all_the_same(plan: Callable[..., Plan], strip_ai: Competition) -> None:
    found = plan(competition=replace(strip_ai, limits=Limits()))
    assert found.wall_s > 0
    assert (found.hidden_slides, found.hidden_s, found.default_limits) == (0, None, True)
    lines = "\n".join(plan_lines(found))
    assert "[limits]" in lines
    assert "limits.hidden_slides" in lines


def test_slides_that_cannot_be_read_are_named(plan: Callable[..., Plan], split: Path) -> None:
    missing, empty, damaged, good = slides_of(split)
    missing.unlink()
    empty.write_bytes(b"")
    damaged.write_bytes(damaged.read_bytes()[:2000])
    found = plan()
    assert {slide.image_id for slide in found.failing} == {missing.stem, empty.stem, damaged.stem}
    assert all(slide.tiles == 0 and "\n" not in slide.reason for slide in found.failing)
    assert {slide.code for slide in found.failing} == {Reason.DAMAGED}
    assert found.tiles == next(slide.tiles for slide in found.slides if slide.image_id == good.stem) > 0
    named = [line for line in plan_lines(found) if any(line.startswith(one.image_id) for one in found.failing)]
    assert len(named) == 3
    assert not found.sound


def test_an_unsupported_codec_is_named(plan: Callable[..., Plan], split: Path) -> None:
    import tifffile

    slide = slides_of(split)[0]
    pixels = np.random.default_rng(1).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    tifffile.imwrite(slide, pixels, tile=(128, 128), photometric="rgb")
    with tifffile.TiffFile(slide, mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(34661)
    (failing,) = plan().failing
    assert failing.codec == "JBIG"
    assert failing.code is Reason.UNSUPPORTED


def killed(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Forecast a slide; the process of the slide named in the file `doomed` crashes."""
    if (task.path.parents[1] / "doomed").read_text() == task.image_id:
        os.kill(os.getpid(), signal.SIGSEGV)
    yield from plan_task(task)


def test_a_reader_that_crashes_costs_only_its_slide(plan: Callable[..., Plan], split: Path) -> None:
    doomed = slides_of(split)[1].stem
    (split / "doomed").write_text(doomed)
    (failing,) = plan(work=killed).failing
    assert failing.image_id == doomed
    assert failing.code is Reason.CRASHED


def test_a_slide_over_its_limits_will_fall_back(plan: Callable[..., Plan], strip_ai: Competition) -> None:
    hurried = replace(strip_ai, limits=replace(strip_ai.limits, slide_s=1e-6))
    found = plan(hurried)
    assert {slide.code for slide in found.slides} == {Reason.TIMEOUT}
    assert found.tiles == 0
    found = plan(memory_mb=1100, work=greedy)
    assert {slide.code for slide in found.slides} == {Reason.OUT_OF_MEMORY}


def greedy(task: Task) -> Iterator[tuple[int, dict[str, Any] | Batch]]:
    """Forecast a slide, with a memory peak above any limit."""
    for index, facts in plan_task(task):
        assert isinstance(facts, dict)
        yield index, facts | ({"probe_mb": 1e6} if "probe_mb" in facts else {})


def test_the_networks_of_the_members_are_timed(plan: Callable[..., Plan], member: Path) -> None:
    found = plan(weights_dir=member)
    assert found.network_measured
    assert found.members == [member.name]
    assert found.load_s > 0
    assert found.predict_s > 0
    assert found.wall_s > found.load_s
    assert any("predicting" in line for line in plan_lines(found))


def test_members_share_a_tiling(plan: Callable[..., Plan], make_member: Callable[..., Path], tmp_path: Path) -> None:
    one, more = RECIPE, RECIPE.replace("max_tiles = 6", "max_tiles = 2")
    for seed, text in enumerate((one, one, more)):
        make_member(tmp_path / "members" / f"member{seed}", ("CE", "LAA"), seed + 1, text)
    found = plan(weights_dir=tmp_path / "members")
    assert all(len(slide.forecasts) == 2 for slide in found.slides)
    assert all(slide.tiles == sum(each["tiles"] for each in slide.forecasts) for slide in found.slides)


def test_without_weights_there_is_no_tensorflow(split: Path, recipe: Path) -> None:
    code = (
        "import sys; from clotkit.cli import main\n"
        "code = main(['plan', *sys.argv[1:]])\n"
        "sys.exit(9 if {'tensorflow', 'keras'} & set(sys.modules) else code)"
    )
    words = [sys.executable, "-c", code, str(split), "--recipe", str(recipe)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) <= 12


def test_one_json_object_and_nothing_else(split: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(split), "--recipe", str(recipe), "--json", "--jobs", "1"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["fits"] is True
    assert found["failing"] == []
    assert {slide["code"] for slide in found["slides"]} == {None}
    assert len(found["slides"]) == 4
    assert found["tiles"] == sum(slide["tiles"] for slide in found["slides"])
    assert load_recipe(recipe).name == found["members"][0]


def test_exit_codes(split: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(split), "--recipe", str(recipe)]
    assert main([*words, "--deadline", "0.001s"]) == 3
    missing = slides_of(split)[0]
    missing.unlink()
    assert main([*words, "--json"]) == 3
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(one["image_id"], one["code"]) for one in found["slides"] if one["code"]] == [(missing.stem, "damaged")]


def test_a_train_split_is_planned_too(
    make_split: Callable[..., Path], strip_ai: Competition, recipe: Path, tmp_path: Path
) -> None:
    data = make_split(tmp_path / "both", strip_ai, split="train", slides=2)
    assert main(["plan", str(data), "--recipe", str(recipe)]) == 0
    assert main(["plan", str(data), "--recipe", str(recipe), "--split-name", "test"]) == 2


def test_wrong_input_ends_with_2_in_one_line(
    split: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(RECIPE.replace('"patches"', '"crumbs"'))
    cases = [
        ([str(tmp_path / "none")], "test.csv"),
        ([str(split), "--recipe", "unknown"], "unknown"),
        ([str(split), "--recipe", str(wrong)], "crumbs"),
        ([str(split), "--weights", str(tmp_path)], str(tmp_path)),
        ([str(split), "--recipe", str(recipe), "--jobs", "0"], "--jobs"),
        ([str(split), "--recipe", str(recipe), "--memory", "100MB"], "100 MB"),
    ]
    for words, named in cases:
        assert main(["plan", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line
