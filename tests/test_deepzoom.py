"""Slides in the viewer: levels and tiles, ids, sketches that sharpen, processes that fail, overlays."""

import base64
import io
import json
import os
import re
import select
import shutil
import socket
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from urllib.parse import quote

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clotkit.app.deepzoom.cache import ENTRY_BYTES, BytesCache
from clotkit.app.deepzoom.grid import TILE_PX, Grid
from clotkit.app.deepzoom.ids import id_of, path_of
from clotkit.app.deepzoom.overview import Overview, read_sketch
from clotkit.app.deepzoom.process import INFO, SlideProcess
from clotkit.app.deepzoom.readers import OPEN_SLIDES, ReaderLimits, Readers, SlideFile
from clotkit.app.deepzoom.routes import MOST_WAITING
from clotkit.app.roots import Roots
from clotkit.competitions import Competition
from clotkit.config import TilingConfig
from clotkit.errors import SlideUnreadable, UsageError
from clotkit.reasons import Reason, Refusal
from clotkit.report.records import REPORT, RUN, SLIDES, ReportFile, SlideReport
from clotkit.report.shown import Shown
from clotkit.report.sidecar import Tiled, Trace, sidecar_line
from clotkit.slides.pixels import box_mean
from clotkit.slides.reader import open_slide
from clotkit.tiling.overview import read_overview
from clotkit.tiling.thumbnail import Thumbnail
from clotkit.units import MB

from .app_server import AppServer, app_server

WHITE = (255, 255, 255)
SIDES = st.integers(1, 300_000)
LIMITS = ReaderLimits(memory_mb=2048, request_s=60.0)


@given(SIDES, SIDES)
def test_levels_halve_down_to_one_tile(width: int, height: int) -> None:
    grid = Grid(width, height)
    assert grid.size_px(grid.last) == (width, height)
    assert grid.counts(grid.first) == (1, 1)
    assert grid.first == grid.last or max(grid.counts(grid.first + 1)) == 2
    for level in range(grid.first, grid.last):
        wide, high = grid.size_px(level + 1)
        assert grid.size_px(level) == (-(-wide // 2), -(-high // 2))
    assert grid.downsamples == [grid.downsample(level) for level in range(grid.last, grid.first - 1, -1)]


@given(SIDES, SIDES, st.integers(-5, 40), st.integers(-5, 700), st.integers(-5, 700))
def test_every_tile_of_a_level_has_pixels_and_no_other_is_there(
    width: int, height: int, level: int, column: int, row: int
) -> None:
    grid = Grid(width, height)
    if not grid.has(level, column, row):
        return
    across, down = grid.tile_size_px(level, column, row)
    assert 1 <= across <= TILE_PX
    assert 1 <= down <= TILE_PX
    columns, rows = grid.counts(level)
    last = grid.tile_size_px(level, columns - 1, rows - 1)
    assert ((columns - 1) * TILE_PX + last[0], (rows - 1) * TILE_PX + last[1]) == grid.size_px(level)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(st.lists(NAMES.filter(lambda name: name not in {".", ".."} and len(name.encode()) < 200), max_size=4))
def test_an_id_gives_its_path_back(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    root = tmp_path_factory.mktemp("ids")
    path = root.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    roots = Roots.of([root])
    assert path_of(id_of(path, roots), roots) == path
    shutil.rmtree(root)


@given(st.one_of(st.text(max_size=60), st.from_regex(r"[A-Za-z0-9_-]{0,60}", fullmatch=True)))
def test_a_text_that_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        path_of(text, Roots(()))


def named(path: str) -> str:
    """Return the id that a hostile caller makes of any path."""
    return base64.urlsafe_b64encode(os.fsencode(path)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "path",
    ["0/../secret", "0//etc/passwd", "1/a.tif", "-1/a.tif", "0/./a.tif", "0/a.tif/", "0/a\0b", "0/link", "0/loop", "0"],
)
def test_an_id_leads_nowhere_but_below_its_root(path: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.tif").touch()
    (tmp_path / "secret").touch()
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(UsageError):
        path_of(named(path), Roots.of([root]))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000)), max_size=60))
def test_the_cache_keeps_what_was_used_last_within_its_size(puts: list[tuple[int, int]]) -> None:
    cache = BytesCache[int](6000 / MB)
    for key, size in puts:
        cache.put(key, bytes(size))
        assert cache.size_bytes <= 6000
        assert cache.get(key) == bytes(size)
    kept = [cache.get(key) for key in range(10)]
    assert cache.size_bytes == sum(len(data) + ENTRY_BYTES for data in kept if data is not None)


@pytest.mark.parametrize("downsample", [1, 4, 16])
def test_an_overview_that_was_read_is_the_slide(slides: list[Path], downsample: int) -> None:
    slide = open_slide(slides[0])
    overview = Overview(slide, WHITE, downsample, 32)
    while not overview.is_sharp:
        overview.step()
    wanted = read_overview(open_slide(slides[0]), downsample, WHITE)
    shown, sharp = overview.view(10, 20, (50, 40), downsample)
    assert sharp
    assert np.array_equal(shown, wanted[20:60, 10:60])
    halved, _ = overview.view(3, 5, (8, 6), downsample * 2)
    assert np.array_equal(halved, box_mean(np.ascontiguousarray(wanted[10:22, 6:22]), 2))


def test_a_sketch_is_near_the_slide_and_what_is_looked_at_is_read_first(slides: list[Path]) -> None:
    slide = open_slide(slides[0])
    overview = Overview(slide, WHITE, 1, 1)
    wanted = read_overview(open_slide(slides[0]), 1, WHITE)
    sketched, sharp = overview.view(0, 0, (slide.width_px, slide.height_px), 1)
    assert not sharp
    assert np.abs(sketched.astype(int) - wanted).mean() < 12
    left, top = slide.width_px - 8, slide.height_px - 8
    overview.view(left, top, (8, 8), 1)
    overview.step()
    shown, sharp = overview.view(left, top, (8, 8), 1)
    assert sharp
    assert np.array_equal(shown, wanted[top:, left:])


@pytest.fixture
def png_slide(slides: list[Path], tmp_path: Path) -> Path:
    """Save a slide as a PNG, which is decoded from top to bottom."""
    path = tmp_path / "slide.png"
    Image.fromarray(read_overview(open_slide(slides[0]), 1, WHITE)).save(path)
    return path


def test_a_slide_in_one_piece_is_sketched_and_read(png_slide: Path, slides: list[Path]) -> None:
    slide = open_slide(png_slide)
    assert slide.sequential
    sketch, step = read_sketch(slide, WHITE)
    assert sketch.shape[:2] == (-(-slide.height_px // step), -(-slide.width_px // step))
    overview = Overview(slide, WHITE, 2, 4)
    while not overview.is_sharp:
        overview.step()
    shown, _ = overview.view(0, 0, (64, 64), 2)
    assert np.array_equal(shown, read_overview(open_slide(slides[0]), 2, WHITE)[:64, :64])


@pytest.fixture
def readers() -> Iterator[Readers]:
    """Keep slides open with a long time limit."""
    readers = Readers(LIMITS)
    yield readers
    readers.close()


@pytest.mark.parametrize("level_from_last", [0, 1, 2])
def test_a_tile_shows_what_the_reader_reads(slides: list[Path], readers: Readers, level_from_last: int) -> None:
    file = SlideFile.of(slides[1])
    info = readers.info(file)
    grid = Grid(info["width_px"], info["height_px"])
    level = grid.last - level_from_last
    columns, rows = grid.counts(level)
    tile = readers.tile(file, level, columns - 1, rows - 1)
    pixels = np.asarray(Image.open(io.BytesIO(tile.jpeg)))
    downsample = 1 << level_from_last
    corner = ((columns - 1) * TILE_PX * downsample, (rows - 1) * TILE_PX * downsample)
    (wanted,) = open_slide(slides[1]).tiles([corner], TILE_PX, downsample, tuple(info["background"]))
    assert pixels.shape[:2] == grid.tile_size_px(level, columns - 1, rows - 1)[::-1]
    assert np.abs(pixels.astype(int) - wanted[: pixels.shape[0], : pixels.shape[1]]).mean() < 4  # JPEG
    assert readers.known_tile(file, level, columns - 1, rows - 1) == tile


def test_few_slides_are_open_at_a_time(slides: list[Path], readers: Readers, tmp_path: Path) -> None:
    for number in range(OPEN_SLIDES + 2):
        path = tmp_path / f"{number}.tif"
        shutil.copy(slides[0], path)
        readers.info(SlideFile.of(path))
    assert readers.processes() == OPEN_SLIDES


def newest_process() -> psutil.Process:
    """Return the process that was started last: that of the slide that was opened last."""
    return max(psutil.Process().children(recursive=True), key=lambda child: child.create_time())


def outcome(readers: Readers, file: SlideFile) -> dict[str, Any] | Reason:
    try:
        return readers.info(file)
    except SlideUnreadable as error:
        return error.reason


def test_a_process_that_dies_costs_at_most_one_request(slides: list[Path], readers: Readers) -> None:
    file = SlideFile.of(slides[2])
    before = readers.info(file)
    dying = newest_process()
    dying.kill()
    dying.wait()
    wanted = before | {"opening": ANY}  # another process has opened it
    assert outcome(readers, file) in (Reason.CRASHED, wanted)
    assert outcome(readers, file) == wanted
    assert readers.info(file)["opening"] != before["opening"]


def test_a_process_that_hangs_is_ended(slides: list[Path]) -> None:
    process = SlideProcess(slides[2], LIMITS.memory_mb)
    assert process.ask(60.0, INFO).failed is None
    hanging = newest_process()
    hanging.suspend()
    reply = process.ask(0.2, INFO)
    assert reply.failed is not None
    assert reply.failed.code == Reason.TIMEOUT
    assert not process.is_running
    assert not hanging.is_running() or hanging.status() == psutil.STATUS_ZOMBIE


def test_a_process_without_memory_costs_its_slide_alone(slides: list[Path], readers: Readers) -> None:
    scarce = Readers(ReaderLimits(memory_mb=64))
    assert outcome(scarce, SlideFile.of(slides[0])) in {Reason.OUT_OF_MEMORY, Reason.CRASHED}
    assert outcome(readers, SlideFile.of(slides[0])) not in list(Reason)
    scarce.close()


def test_a_file_that_is_no_slide_is_an_error_with_a_code(readers: Readers, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(b"II*\0 and nothing more")
    for _ in range(2):  # the second answer is remembered
        with pytest.raises(SlideUnreadable) as caught:
            readers.info(SlideFile.of(path))
        assert caught.value.reason == Reason.DAMAGED
        assert str(tmp_path) not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(SlideUnreadable):
        readers.info(SlideFile.of(path))


def test_tissue_is_outlined(slides: list[Path], readers: Readers) -> None:
    tissue = readers.tissue(SlideFile.of(slides[0]))
    assert 0 < tissue["share"] < 1
    assert tissue["outline"].startswith("M")
    assert tissue["sharp"]


@pytest.fixture(scope="module")
def server(test_split: Path, strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    """Serve a copy of the test split, with a run over it."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(test_split, root / "split")
    write_run(root / "run", sorted((root / "split" / "test").glob("*.tif"))[0], strip_ai)
    with app_server([root], strip_ai) as server:
        yield server


def write_run(folder: Path, slide: Path, competition: Competition) -> None:
    """Write the folder of a run over one slide, with two tiles."""
    folder.mkdir()
    opened = open_slide(slide)
    size = (opened.width_px, opened.height_px)
    line = SlideReport(slide.stem, "p", "done", "", 2, 1.0, 40.0, p={"tiny": [0.4, 0.6]})
    with ReportFile(folder / REPORT) as file:
        file.add(line)
    scoring = {"shown": "last_class", "classes": list(competition.classes.names)}
    (folder / RUN).write_text(json.dumps({"arguments": {"split": str(slide.parents[1])}, "scoring": scoring}))
    mask = np.zeros((20, 14), bool)
    mask[5:12, 3:9] = True
    picture = Thumbnail(*size, np.full((20, 14, 3), 200, np.uint8), 128, mask, 1.0)
    tiling = TilingConfig(name="patches", tile_px=32, downsample=8, max_tiles=2, batch_tiles=2)
    xy = np.array([[0, 0], [256, 512]], np.int32)
    tiled = Tiled(tiling, xy, np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0.25, 0.75]))
    shown = Shown.of(competition)
    (folder / SLIDES).write_text(sidecar_line(line, Trace(picture, (tiled,)), 1, 0.0, 1, shown))


def slide_ids(server: AppServer) -> list[str]:
    roots = server.deepzoom.roots
    return [id_of(path, roots) for path in sorted((roots.folders[0] / "split" / "test").glob("*.tif"))]


def json_of(server: AppServer, path: str, status: int = 200) -> dict[str, Any]:
    answer = server.ask(path)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = json.loads(answer.body)
    return found


def test_a_slide_is_served_by_levels(server: AppServer) -> None:
    slide = slide_ids(server)[0]
    info = json_of(server, f"/slides/{slide}/info.json")
    grid = Grid(info["width_px"], info["height_px"])
    assert (info["first_level"], info["last_level"], info["tile_px"]) == (grid.first, grid.last, TILE_PX)
    columns, rows = grid.counts(grid.last)
    for column in range(columns):
        answer = server.ask(f"/slides/{slide}/tiles/{grid.last}/{column}_{rows - 1}.jpg?v={info['version']}")
        assert answer.status == 200
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["x-clotkit-sharp"] == "1"
        assert "max-age" in answer.headers["cache-control"]
        size = grid.tile_size_px(grid.last, column, rows - 1)
        assert Image.open(io.BytesIO(answer.body)).size == size
    overview = server.ask(f"/slides/{slide}/overview.jpg")
    assert Image.open(io.BytesIO(overview.body)).size == grid.tile_size_px(grid.first, 0, 0)
    assert overview.headers["cache-control"] == "no-store"


def test_a_changed_file_is_another_slide(server: AppServer) -> None:
    path = server.deepzoom.roots.folders[0] / "changing.tif"
    shutil.copy(min((server.deepzoom.roots.folders[0] / "split" / "test").glob("*.tif")), path)
    slide = id_of(path, server.deepzoom.roots)
    before = json_of(server, f"/slides/{slide}/info.json")
    Image.new("RGB", (700, 300), (200, 100, 100)).save(path)
    after = json_of(server, f"/slides/{slide}/info.json")
    assert (after["width_px"], after["height_px"]) == (700, 300)
    assert after["version"] != before["version"]
    path.write_bytes(b"II*\0")
    assert json_of(server, f"/slides/{slide}/info.json", 422)["code"] == Reason.DAMAGED
    path.unlink()
    assert json_of(server, f"/slides/{slide}/info.json", 404)["code"] == Refusal.NOT_FOUND


def test_a_name_that_is_no_unicode_is_served(server: AppServer) -> None:
    root = server.deepzoom.roots.folders[0]
    path = root / os.fsdecode(b"\xff.tif")
    shutil.copy(min((root / "split" / "test").glob("*.tif")), path)
    slide = id_of(path, server.deepzoom.roots)
    assert json_of(server, f"/slides/{slide}/info.json")["name"].endswith(".tif")
    assert server.ask(f"/view/{slide}").status == 200
    path.unlink()


def test_what_is_no_regular_file_is_not_opened(server: AppServer) -> None:
    root = server.deepzoom.roots.folders[0]
    os.mkfifo(root / "pipe.tif")
    for path in (root / "pipe.tif", root / "split"):
        slide = id_of(path, server.deepzoom.roots)
        assert json_of(server, f"/slides/{slide}/info.json", 404)["code"] == Refusal.NOT_FOUND
    (root / "pipe.tif").unlink()


def test_the_tiles_of_a_run_are_drawn(server: AppServer) -> None:
    slide, other = slide_ids(server)[:2]
    roots = server.deepzoom.roots
    run = id_of(roots.folders[0] / "run", roots)
    image = path_of(slide, roots).stem
    found = json_of(server, f"/slides/{slide}/overlay.json?run={run}&image={image}")
    assert found["tiles"] == [
        {"size_px": [256, 256], "xy": [[0, 0], [256, 512]], "p": [0.1, 0.8], "attention": [0.25, 0.75]}
    ]
    assert found["legend"]["top"] == 1
    assert found["tissue"]["outline"].startswith("M384 640")
    plain = json_of(server, f"/slides/{other}/overlay.json")
    assert plain["tiles"] == []
    assert plain["tissue"]["outline"]
    json_of(server, f"/slides/{slide}/overlay.json?run={other}&image={image}", 422)


@pytest.mark.parametrize("has_sidecar", [True, False])
def test_a_slide_of_which_a_run_has_no_tiles_has_its_own_tissue(server: AppServer, has_sidecar: bool) -> None:
    slide, roots = slide_ids(server)[0], server.deepzoom.roots
    folder = roots.folders[0] / "without"
    shutil.copytree(roots.folders[0] / "run", folder)
    if not has_sidecar:
        (folder / SLIDES).unlink()
    image = "none" if has_sidecar else path_of(slide, roots).stem
    found = json_of(server, f"/slides/{slide}/overlay.json?run={id_of(folder, roots)}&image={image}")
    plain = json_of(server, f"/slides/{slide}/overlay.json")
    assert (found["missing"]["code"], plain["missing"]) == (Reason.MISSING, None)
    assert str(folder) not in found["missing"]["error"]
    assert found | {"missing": None} == plain
    shutil.rmtree(folder)


def test_no_page_lists_what_lies_beside_a_root(server: AppServer) -> None:
    slide, roots = slide_ids(server)[0], server.deepzoom.roots
    (beside := roots.folders[0].parent / "beside.tif").write_bytes(b"II*\0")
    for folder in (roots.folders[0], roots.folders[0] / "split"):
        for address in (f"/view/{id_of(folder, roots)}", f"/view/{slide}?beside={id_of(folder, roots)}"):
            answer = server.ask(address)
            assert (answer.status, beside.name.encode() in answer.body) == (404, False)
    beside.unlink()


def test_a_folder_beside_a_root_is_not_even_listed(server: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, real = list[str](), os.listdir

    def noted(path: Any = ".") -> list[Any]:
        listed.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", noted)
    roots = server.deepzoom.roots
    assert server.ask(f"/view/{id_of(roots.folders[0], roots)}").status == 404
    assert str(roots.folders[0].parent) not in listed


def test_a_run_with_a_link_out_of_the_roots_is_refused(server: AppServer, tmp_path: Path) -> None:
    slide, roots = slide_ids(server)[0], server.deepzoom.roots
    folder = roots.folders[0] / "linked"
    shutil.copytree(roots.folders[0] / "run", folder)
    (folder / SLIDES).rename(tmp_path / SLIDES)
    (folder / SLIDES).symlink_to(tmp_path / SLIDES)
    image = path_of(slide, roots).stem
    json_of(server, f"/slides/{slide}/overlay.json?run={id_of(folder, roots)}&image={image}", 404)


def test_the_second_of_two_slides_has_its_own_tiles_of_the_run(server: AppServer) -> None:
    slide, other = slide_ids(server)[:2]
    roots = server.deepzoom.roots
    run, image = id_of(roots.folders[0] / "run", roots), path_of(slide, roots).stem
    for first, second, wanted in ((other, slide, image), (slide, other, "")):
        body = server.ask(f"/view/{first}?run={run}&image=x&beside={second}").body.decode()
        assert re.findall(r'data-image="([^"]*)"', body) == ["x", wanted]


def test_a_tile_is_kept_under_the_address_of_its_own_file_alone(server: AppServer) -> None:
    slide = slide_ids(server)[0]
    info = json_of(server, f"/slides/{slide}/info.json")
    tile = f"/slides/{slide}/tiles/{info['last_level']}/0_0.jpg"
    for version, is_kept in ((info["version"], True), (f"{info['version']}.3", True), ("abc", False), ("", False)):
        answer = server.ask(f"{tile}?v={version}" if version else tile)
        assert answer.headers["x-clotkit-sharp"] == "1"
        assert ("immutable" in answer.headers["cache-control"]) == is_kept


@pytest.mark.parametrize(
    "change",
    [
        {"tiles": [{"size_px": [1, 1], "xy": [[0, 0]], "p": [float("nan")]}]},
        {"tiles": [{"size_px": [1, 1], "xy": [[0, 0]], "p": [2.0]}]},
        {"tiles": [{"size_px": [0, 1], "xy": [[0, 0]], "p": [0.5]}]},
        {"tiles": [{"size_px": [1, 1], "xy": [[0, 0]], "p": [0.5, 0.5]}]},
        {"tiles": [{"size_px": [1, 1], "xy": [["<b>", 0]], "p": [0.5]}]},
        {"tiles": [7]},
        {"picture": {"size": [10**9, 10**9], "tissue": "", "downsample": 1, "slide_px": [1, 1]}},
        {"picture": {"size": [4, 4], "tissue": "!", "downsample": 1, "slide_px": [1, 1]}},
    ],
)
def test_a_damaged_line_of_a_run_is_an_error(server: AppServer, change: dict[str, Any]) -> None:
    slide, roots = slide_ids(server)[0], server.deepzoom.roots
    folder = roots.folders[0] / "damaged"
    shutil.copytree(roots.folders[0] / "run", folder)
    (folder / SLIDES).write_text(json.dumps(json.loads((folder / SLIDES).read_text()) | change) + "\n")
    image = path_of(slide, roots).stem
    json_of(server, f"/slides/{slide}/overlay.json?run={id_of(folder, roots)}&image={image}", 422)
    shutil.rmtree(folder)


def hostile_paths(slide: str) -> list[str]:
    """Return the addresses of requests that must be refused."""
    tiles = f"/slides/{slide}/tiles"
    numbers = ["-1", "99", "1e9", "0x10", "NaN", "inf", "9" * 5000, "1.5", "", " 1", "%00", "\u0661", "9" * 9, "../3"]
    paths = [f"{tiles}/{number}/0_0.jpg" for number in numbers]
    paths += [f"{tiles}/10/{number}_0.jpg" for number in numbers] + [f"{tiles}/10/0_{number}.jpg" for number in numbers]
    paths += [f"{tiles}/10/0_0.jpg?{query}" for query in ("tile_px=10000", "v=<script>", "v=1&v=2", "width=10000", "=")]
    hidden = ["0/../../etc/passwd", "0//etc/passwd", "9/x.tif", "0/split/../../x", "0/" + "a/" * 2000, "0/\0", "/", ""]
    paths += [f"/slides/{named(path)}/info.json" for path in hidden]
    words = ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "\\", "x" * 9000, "%ff%fe", "'", "<b>"]
    paths += [f"/slides/{word}/info.json" for word in words] + [f"/static/{word}" for word in words]
    paths += ["/slides/../../../../etc/passwd", "//etc/passwd", "/static/../security.py", "/static/%2e%2e/security.py"]
    paths += [f"/slides/{slide}/overlay.json?run={word}&image=x" for word in words]
    return [quote(path, safe=string.punctuation) for path in paths]


def rss_mb() -> float:
    return float(psutil.Process().memory_info().rss) / MB


def test_a_thousand_hostile_requests_leave_the_server_as_it_was(server: AppServer) -> None:
    slide = slide_ids(server)[0]
    wanted = json_of(server, f"/slides/{slide}/info.json")
    paths = hostile_paths(slide)
    for path in paths:  # once, for what is loaded at the first time
        assert server.ask(path).status >= 400, path
    threads, before, asked = psutil.Process().num_threads(), rss_mb(), 0
    while asked < 1000:
        for path in paths:
            answer = server.ask(path)
            assert 400 <= answer.status < 500, path
            assert b"\n" not in answer.body.strip()
            assert b"root:" not in answer.body
            assert b"Traceback" not in answer.body
            if answer.headers["content-type"] == "application/json":
                assert json.loads(answer.body)["code"] in {*Refusal, *Reason}, path
        asked += len(paths)
    assert rss_mb() - before < 24
    assert psutil.Process().num_threads() <= threads + 8
    assert json_of(server, f"/slides/{slide}/info.json") == wanted


def test_a_crowd_at_a_slide_that_hangs_is_turned_away_and_the_rest_is_answered(
    server: AppServer,
) -> None:
    root = server.deepzoom.roots.folders[0]
    path = root / "hanging.tif"
    shutil.copy(min((root / "split" / "test").glob("*.tif")), path)
    slide, other = id_of(path, server.deepzoom.roots), slide_ids(server)[1]
    wanted = json_of(server, f"/slides/{slide}/info.json")
    hanging = newest_process()
    hanging.suspend()
    request = f"GET /slides/{slide}/info.json HTTP/1.1\r\nHost: 127.0.0.1:{server.door.port}\r\n"
    request += f"Cookie: {server.own_headers()['Cookie']}\r\n\r\n"
    crowd = [socket.create_connection((server.door.address, server.door.port)) for _ in range(MOST_WAITING + 20)]
    for one in crowd:
        one.sendall(request.encode())
    turned_away = 0
    while turned_away < 20:
        turned_away += sum(one.recv(16).startswith(b"HTTP/1.1 503") for one in select.select(crowd, [], [], 60)[0])
    assert server.ask(f"/slides/{other}/info.json").status == 503, "all places are taken"
    for one in crowd:
        one.close()
    hanging.resume()
    assert retried(server, f"/slides/{slide}/info.json") == wanted
    assert server.ask(f"/slides/{other}/info.json").status == 200
    path.unlink()


def retried(server: AppServer, path: str) -> dict[str, Any]:
    """Return the answer once the crowd has gone."""
    while (answer := server.ask(path)).status == 503:
        pass
    found: dict[str, Any] = json.loads(answer.body)
    return found
