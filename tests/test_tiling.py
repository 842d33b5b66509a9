"""Tiles of a slide: where they lie, how many, in what order, and that a plain reading gives the same pixels."""

from pathlib import Path

import numpy as np
import pytest
import pyvips

from clotkit.config import TilingConfig
from clotkit.errors import ConfigError, NoTissue
from clotkit.slides.tiling import Batch, choose, tile_slide
from clotkit.slides.tissue import find_tissue

CONFIG = TilingConfig("grid", tile_px=32, shrink=4, max_tiles=6, batch_tiles=4)


def tiles_of(path: Path, config: TilingConfig = CONFIG) -> tuple[dict[str, object], list[Batch]]:
    facts, *batches = tile_slide(path, config)
    assert isinstance(facts, dict)
    return facts, [batch for batch in batches if isinstance(batch, Batch)]


def test_batches_are_bounded_and_tiles_unique(test_split: Path) -> None:
    for path in sorted((test_split / "test").glob("*.tif")):
        facts, batches = tiles_of(path)
        corners = [tuple(corner) for batch in batches for corner in batch.xy]
        assert all(len(batch.tiles) <= CONFIG.batch_tiles for batch in batches)
        assert all(batch.tiles.shape[1:] == (32, 32, 3) and batch.tiles.dtype == np.uint8 for batch in batches)
        assert len(set(corners)) == len(corners) <= CONFIG.max_tiles
        assert all(x % 128 == 0 and y % 128 == 0 for x, y in corners)
        assert facts["decoder"] == "libvips"


def test_tiles_are_those_of_a_plain_reading(test_split: Path) -> None:
    path = sorted((test_split / "test").glob("*.tif"))[0]
    whole = pyvips.Image.new_from_file(str(path)).numpy()
    for batch in tiles_of(path)[1]:
        for (x, y), tile in zip(batch.xy, batch.tiles, strict=True):
            plain = whole[y : y + 128, x : x + 128].reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
            assert np.abs(tile - plain).max() <= 1


def test_strips_and_tiles_give_the_same(test_split: Path, tmp_path: Path) -> None:
    path = sorted((test_split / "test").glob("*.tif"))[0]
    strips = tmp_path / "strips.tif"
    pyvips.Image.new_from_file(str(path)).tiffsave(str(strips), compression="lzw")
    one, other = tiles_of(path)[1], tiles_of(strips)[1]
    assert np.array_equal(np.concatenate([b.xy for b in one]), np.concatenate([b.xy for b in other]))
    assert np.array_equal(np.concatenate([b.tiles for b in one]), np.concatenate([b.tiles for b in other]))


def test_the_best_come_by_tissue(tmp_path: Path) -> None:
    """Three squares of a 3 x 3 grid have tissue: all of one, most of one, a little of one."""
    view = np.full((48, 48, 3), 255, np.uint8)
    view[0:16, 0:16] = 90
    view[16:32, 16:28] = 90
    view[32:48, 32:36] = 90
    tissue = find_tissue(view)
    assert choose(tissue, 128, 8, most=1) == ([(0, 0)], 0.5)
    assert choose(tissue, 128, 8, most=9) == ([(0, 0), (128, 128)], 0.5)
    view[0:32] = 255
    assert choose(find_tissue(view), 128, 8, most=9) == ([(256, 256)], 0.25)


def test_a_slide_smaller_than_a_tile_gives_one(tmp_path: Path) -> None:
    pixels = np.full((60, 50, 3), 250, np.uint8)
    pixels[20:40, 10:40] = (170, 60, 90)
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path))
    _, (batch,) = tiles_of(path)
    assert batch.xy.tolist() == [[0, 0]]
    assert (batch.tiles[0, 20:, 20:] == 250).all()  # beyond the edge: the slide's background


def test_tile_sides_that_divide_unevenly_keep_their_place(tmp_path: Path) -> None:
    pixels = np.full((930, 930, 3), 255, np.uint8)
    pixels[620:930, 310:620] = 100
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path))
    _, (batch,) = tiles_of(path, TilingConfig("grid", tile_px=62, shrink=5, max_tiles=9, batch_tiles=9))
    assert batch.xy.tolist() == [[310, 620]]
    assert (batch.tiles == 100).all()


def test_no_tissue_and_no_tiler_are_named(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(np.full((300, 300, 3), 250, np.uint8)).tiffsave(str(path))
    with pytest.raises(NoTissue):
        tiles_of(path)
    with pytest.raises(ConfigError, match="spiral"):
        tiles_of(path, TilingConfig("spiral", 32, 4, 6, 4))
