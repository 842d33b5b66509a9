"""Test where a slide's tiles lie, how many there are, their order, and their pixels."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st

from clotkit.config import TilingConfig
from clotkit.errors import ConfigError, NoTissue
from clotkit.tiling.overview import box_means
from clotkit.tiling.overview_tilers import spread
from clotkit.tiling.tilers import TILERS, Batch, tile_slide

TISSUE = (170, 60, 90)
CONFIG = TilingConfig("patches", tile_px=32, downsample=4, max_tiles=6, batch_tiles=4)


def tiles_of(path: Path, config: TilingConfig = CONFIG) -> tuple[dict[str, object], list[Batch]]:
    facts: dict[str, object] = {}
    batches = []
    for piece in tile_slide(path, config):
        if isinstance(piece, Batch):
            batches.append(piece)
        else:
            facts |= piece
    return facts, batches


def test_batches_are_bounded_and_tiles_unique(test_split: Path) -> None:
    for path in sorted((test_split / "test").glob("*.tif")):
        facts, batches = tiles_of(path)
        corners = [tuple(corner) for batch in batches for corner in batch.xy]
        assert all(len(batch.tiles) <= CONFIG.batch_tiles for batch in batches)
        assert all(batch.tiles.shape[1:] == (32, 32, 3) and batch.tiles.dtype == np.uint8 for batch in batches)
        assert len(set(corners)) == len(corners) <= CONFIG.max_tiles
        assert all(x % 128 == 0 and y % 128 == 0 for x, y in corners)
        assert facts["decoder"] == "direct"


@pytest.mark.parametrize("name", sorted(TILERS))
def test_strips_and_tiles_give_the_same(name: str, test_split: Path, tmp_path: Path) -> None:
    path = sorted((test_split / "test").glob("*.tif"))[0]
    strips = tmp_path / "strips.tif"
    pyvips.Image.new_from_file(str(path)).tiffsave(str(strips), compression="lzw")
    config = TilingConfig(name, tile_px=32, downsample=4, max_tiles=6, batch_tiles=4)
    one, other = tiles_of(path, config)[1], tiles_of(strips, config)[1]
    assert np.array_equal(np.concatenate([b.xy for b in one]), np.concatenate([b.xy for b in other]))
    assert np.array_equal(np.concatenate([b.tiles for b in one]), np.concatenate([b.tiles for b in other]))


def test_the_best_come_by_tissue(tmp_path: Path) -> None:
    """Three squares of a 3 x 3 grid have tissue: one is full, one mostly, one a little."""
    pixels = np.full((384, 384, 3), 255, np.uint8)
    pixels[0:128, 0:128] = TISSUE
    pixels[128:256, 128:224] = TISSUE
    pixels[256:384, 256:292] = TISSUE
    path = write(tmp_path / "slide.tif", pixels)
    assert corners_of(path, "patches", max_tiles=1) == [(0, 0)]
    assert corners_of(path, "patches") == [(0, 0), (128, 128)]
    pixels[0:256] = 255
    assert corners_of(write(tmp_path / "less.tif", pixels), "patches") == [(256, 256)]


def test_a_slide_smaller_than_a_tile_gives_one(tmp_path: Path) -> None:
    pixels = np.full((60, 50, 3), 250, np.uint8)
    pixels[20:40, 10:40] = TISSUE
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path))
    _, (batch,) = tiles_of(path)
    assert batch.xy.tolist() == [[0, 0]]
    assert (batch.tiles[0, 20:, 20:] == 250).all()  # beyond the edge is the slide's background


def test_tile_sides_that_divide_unevenly_keep_their_place(tmp_path: Path) -> None:
    pixels = np.full((930, 930, 3), 255, np.uint8)
    pixels[620:930, 310:620] = TISSUE
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path))
    _, (batch,) = tiles_of(path, TilingConfig("patches", tile_px=62, downsample=5, max_tiles=9, batch_tiles=9))
    assert batch.xy.tolist() == [[310, 620]]
    assert (batch.tiles == TISSUE).all()


def test_no_tissue_and_an_unknown_tiler_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(np.full((300, 300, 3), 250, np.uint8)).tiffsave(str(path))
    with pytest.raises(NoTissue):
        tiles_of(path)
    with pytest.raises(ConfigError, match="spiral"):
        tiles_of(path, TilingConfig("spiral", 32, 4, 6, 4))


def write(path: Path, pixels: np.ndarray) -> Path:
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True, compression="deflate")
    return path


def speckled(height: int, width: int, *spots: tuple[int, int, int, int, int]) -> np.ndarray:
    """Return a white slide with spots (top, left, height, width, red), pink and slightly textured."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    rng = np.random.default_rng(2)
    for top, left, high, wide, red in spots:
        colour = np.array([red, red * 0.5, red * 0.8]) + rng.integers(-6, 7, (high, wide, 3))
        pixels[top : top + high, left : left + wide] = np.clip(colour, 0, 255)
    return pixels


def corners_of(path: Path, name: str, **changed: Any) -> list[tuple[int, int]]:
    config = replace(TilingConfig(name, tile_px=32, downsample=4, max_tiles=6, batch_tiles=4), **changed)
    _, batches = tiles_of(path, config)
    assert all(batch.tiles.shape[1:] == (config.tile_px, config.tile_px, 3) for batch in batches)
    return [(int(x), int(y)) for batch in batches for x, y in batch.xy]


def test_darkest_takes_the_darkest_squares_whatever_their_share(tmp_path: Path) -> None:
    spots = [(0, 0, 128, 128, 180), (128, 256, 128, 64, 10), (384, 384, 128, 128, 90)]
    path = write(tmp_path / "slide.tif", speckled(512, 512, *spots))
    assert corners_of(path, "darkest", max_tiles=2) == [(256, 128), (384, 384)]
    assert corners_of(path, "patches", max_tiles=2) == [(0, 0), (384, 384)]


@pytest.mark.parametrize("name", ["darkest", "windows"])
def test_a_square_with_a_trace_of_tissue_is_taken_only_if_there_is_no_better(name: str, tmp_path: Path) -> None:
    trace, spot = (136, 264, 24, 24, 10), (384, 0, 128, 128, 120)
    assert corners_of(write(tmp_path / "both.tif", speckled(512, 512, trace, spot)), name) == [(0, 384)]
    assert len(corners_of(write(tmp_path / "trace.tif", speckled(512, 512, trace)), name)) == 1


def test_darkest_is_the_brute_force_ranking(test_split: Path) -> None:
    path = sorted((test_split / "test").glob("*.tif"))[0]
    grey = pyvips.Image.new_from_file(str(path)).numpy().mean(axis=2)
    means = {(x, y): grey[y : y + 128, x : x + 128].mean() for y in range(0, 1920, 128) for x in range(0, 1280, 128)}
    taken = corners_of(path, "darkest", max_tiles=4)
    assert sorted(taken) == sorted(sorted(means, key=means.__getitem__)[:4])


def test_windows_do_not_overlap_and_follow_the_tissue(tmp_path: Path) -> None:
    """A spot of a window's size, off the windows' grid, has a window within one stride."""
    path = write(tmp_path / "slide.tif", speckled(1024, 1024, (300, 420, 128, 128, 120), (800, 60, 60, 60, 120)))
    taken = corners_of(path, "windows")
    for i, (x, y) in enumerate(taken):
        assert all(abs(x - other_x) >= 128 or abs(y - other_y) >= 128 for other_x, other_y in taken[i + 1 :])
    assert any(abs(x - 420) <= 16 and abs(y - 300) <= 16 for x, y in taken)
    assert any(-68 <= x - 60 <= 16 for x, _ in taken)  # the small spot, at a lower minimum share
    assert corners_of(path, "windows", max_tiles=1) == [min(taken, key=lambda xy: abs(xy[0] - 420) + abs(xy[1] - 300))]


@given(long_px=st.integers(1, 120_000), side_px=st.integers(1, 50_000))
def test_chunks_are_spread_from_edge_to_edge(long_px: int, side_px: int) -> None:
    side_px = min(side_px, long_px)
    count = -(-long_px // side_px)
    offsets = spread(long_px, side_px, count)
    assert len(offsets) == count
    assert offsets[0] == 0
    assert offsets[-1] == (long_px - side_px if count > 1 else 0)
    assert all(0 <= after - before <= side_px for before, after in pairwise(offsets))


@pytest.mark.parametrize("wide", [True, False])
def test_chunks_never_lose_the_last_and_leave_out_the_empty(wide: bool, tmp_path: Path) -> None:
    """Four squares of 300 px along 1,130 px; tissue in the first and at the far end of the last."""
    pixels = speckled(300, 1130, (20, 30, 200, 200, 120), (100, 1000, 190, 129, 120))
    path = write(tmp_path / "slide.tif", pixels if wide else pixels.transpose(1, 0, 2).copy())
    taken = corners_of(path, "chunks")
    assert taken == ([(0, 0), (830, 0)] if wide else [(0, 0), (0, 830)])
    assert corners_of(path, "chunks", max_tiles=1) == taken[:1]


def test_a_chunk_is_the_square_resized(tmp_path: Path) -> None:
    pixels = speckled(256, 512, (40, 50, 100, 300, 120))
    path = write(tmp_path / "slide.tif", pixels)
    _, batches = tiles_of(path, TilingConfig("chunks", 64, 1, 6, 4))
    tiles = np.concatenate([batch.tiles for batch in batches])
    plain = pixels.reshape(64, 4, 2, 64, 4, 3).mean(axis=(1, 4)).transpose(1, 0, 2, 3)
    assert np.abs(tiles - plain).mean() < 3


def test_strips_cover_the_slide_squeezed(tmp_path: Path) -> None:
    """A slide 2.49 times as long as wide gives two strips that cover all of the long side."""
    path = write(tmp_path / "slide.tif", speckled(400, 996, (50, 20, 300, 950, 120)))
    assert corners_of(path, "strips") == [(0, 0), (498, 0)]


@pytest.mark.parametrize("name", sorted(TILERS))
def test_every_tiler_on_every_slide(name: str, test_split: Path, tmp_path: Path) -> None:
    for path in sorted((test_split / "test").glob("*.tif")):
        assert 1 <= len(corners_of(path, name)) <= 6
    tiny = write(tmp_path / "tiny.tif", speckled(30, 30, (10, 10, 15, 10, 100)))
    assert corners_of(tiny, name) == [(0, 0)]
    thread = write(tmp_path / "thread.tif", speckled(3, 4000, (0, 2000, 3, 500, 100)))
    assert 1 <= len(corners_of(thread, name)) <= 6
    blank = write(tmp_path / "blank.tif", speckled(300, 300))
    with pytest.raises(NoTissue):
        corners_of(blank, name)


@given(
    st.integers(1, 30), st.integers(1, 40), st.integers(1, 9), st.integers(0, 200), st.integers(0, 200),
    st.integers(1, 120), st.integers(1, 120),
)  # fmt: skip
def test_box_means_are_means(height: int, width: int, fine: int, x: int, y: int, wide: int, high: int) -> None:
    values = np.random.default_rng(height * width).random((height, width))
    left, top = round(x / fine), round(y / fine)
    right, bottom = max(round((x + wide) / fine), left + 1), max(round((y + high) / fine), top + 1)
    padded = np.zeros((max(height, bottom), max(width, right)))
    padded[:height, :width] = values
    whole = round((x + wide) / fine) > left and round((y + high) / fine) > top
    expected = padded[top:bottom, left:right].mean() if whole else 0
    assert box_means(values, np.array([[x, y]]), (wide, high), fine)[0] == pytest.approx(expected, abs=1e-9)


def test_a_repeated_section_is_left_out_on_request(tmp_path: Path) -> None:
    """Of two copies of one shape side by side, one is tiled; different shapes are both tiled."""
    shape = np.zeros((400, 400), bool)
    shape[40:360, 60:160] = shape[260:360, 60:330] = True
    copies, others = (np.full((480, 960, 3), 245, np.uint8) for _ in range(2))
    for left, part in ((20, shape), (500, shape)):
        copies[40:440, left : left + 400][part] = TISSUE
    for left, part in ((20, shape), (500, shape[::-1])):
        others[40:440, left : left + 400][part] = TISSUE
    config = TilingConfig("patches", 32, 2, 99, 9, min_tissue_share=0.1, duplicates="drop")
    for name in TILERS:
        facts, batches = tiles_of(write(tmp_path / "copies.tif", copies), replace(config, name=name))
        assert facts["duplicates_left_out"]
        if name not in ("chunks", "strips"):
            assert max(int(batch.xy[:, 0].max()) for batch in batches) < 500
    facts, batches = tiles_of(write(tmp_path / "others.tif", others), config)
    assert not facts["duplicates_left_out"]
    assert max(int(batch.xy[:, 0].max()) for batch in batches) > 500


@pytest.mark.parametrize("name", ["background", "reinhard", "macenko"])
def test_colours_are_normalised_on_request(name: str, test_split: Path) -> None:
    path = sorted((test_split / "test").glob("*.tif"))[0]
    own, batches = tiles_of(path)
    facts, normalised = tiles_of(path, replace(CONFIG, normalise=name))
    assert facts["normalised"] in (name, "background")
    assert [b.xy.tolist() for b in normalised] == [b.xy.tolist() for b in batches]
    background = np.array(own["background"])
    bare = np.concatenate([(b.tiles == background).all(axis=3) for b in batches])
    assert np.concatenate([b.tiles for b in normalised])[bare].min(initial=255) >= 254
    assert facts["background"] == own["background"]
