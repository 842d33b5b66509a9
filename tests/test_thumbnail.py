"""Test a slide's thumbnail: what was read is drawn, holes are filled in, and failures cost no slide."""

from pathlib import Path

import numpy as np
import pytest

from clotkit.config import TilingConfig
from clotkit.errors import NoTissue
from clotkit.slides.reader import open_slide
from clotkit.tiling.overview import read_overview
from clotkit.tiling.thumbnail import LONG_PX, Thumbnail, ThumbnailRecorder, thumbnail_downsample
from clotkit.tiling.tilers import TILERS, Batch, tile_slide
from clotkit.tissue.rules import TissueRule
from clotkit.workers import Task, tile_task

from .plain import ArraySlide

WHITE, RED = (250, 250, 250), (180, 40, 90)
RULE = TissueRule(24)
TILING = TilingConfig("patches", tile_px=32, downsample=8, max_tiles=6, batch_tiles=4)


def drawn(height: int = 900, width: int = 1300) -> np.ndarray:
    """Return a white slide with a red square from (400, 200) to (800, 600)."""
    pixels = np.full((height, width, 3), WHITE, np.uint8)
    pixels[200:600, 400:800] = RED
    return pixels


@pytest.mark.parametrize(("size", "downsample"), [((320, 10), 1), ((321, 10), 2), ((48_284, 101_408), 512)])
def test_the_long_side_is_within_its_bound(size: tuple[int, int], downsample: int) -> None:
    assert thumbnail_downsample(*size) == thumbnail_downsample(*size[::-1]) == downsample
    assert LONG_PX / 2 < -(-max(size) // downsample) <= LONG_PX


def test_what_is_read_is_drawn_in_place() -> None:
    """With every tile of the grid read, the thumbnail is the overview and the tissue is the square."""
    pixels = drawn()
    recorder = ThumbnailRecorder()
    slide = recorder.watch(ArraySlide(pixels))
    corners = [(x, y) for y in range(0, 900, 256) for x in range(0, 1300, 256)]
    plain = list(ArraySlide(pixels).tiles(corners, 64, 4, WHITE))
    for tile, wanted in zip(slide.tiles(corners, 64, 4, WHITE), plain, strict=True):
        np.testing.assert_array_equal(tile, wanted)
    thumbnail = recorder.thumbnail(WHITE, RULE)
    assert thumbnail is not None
    assert (thumbnail.downsample, thumbnail.pixels.shape, thumbnail.read_share) == (8, (113, 163, 3), 1.0)
    assert (thumbnail.tissue[25:75, 50:100]).all()
    assert thumbnail.tissue.sum() == 50 * 50
    assert tuple(thumbnail.pixels[50, 75]) == RED
    assert tuple(thumbnail.pixels[5, 5]) == WHITE


def test_holes_are_filled_from_nearby_and_not_black() -> None:
    recorder = ThumbnailRecorder()
    slide = recorder.watch(ArraySlide(drawn()))
    list(slide.tiles([(448, 256)], 32, 4, WHITE))
    thumbnail = recorder.thumbnail(WHITE, RULE)
    assert thumbnail is not None
    assert 0 < thumbnail.read_share < 0.05
    assert thumbnail.pixels.min() >= 40
    assert tuple(thumbnail.pixels[100, 150]) == RED  # without an index it may be tissue, and all that is known is red


def test_nothing_read_is_no_sketch_and_no_rule_is_no_tissue() -> None:
    recorder = ThumbnailRecorder()
    assert recorder.thumbnail(WHITE, RULE) is None
    slide = recorder.watch(ArraySlide(drawn()))
    assert recorder.thumbnail(WHITE, RULE) is None
    list(slide.tiles([(0, 0)], 300, 4, WHITE))
    thumbnail = recorder.thumbnail(WHITE, None)
    assert thumbnail is not None
    assert not thumbnail.tissue.any()


@pytest.mark.parametrize("corner", [(0, 0), (1296, 896), (1000, 512), (5000, 5000)])
@pytest.mark.parametrize(("tile_px", "downsample"), [(1, 1), (7, 3), (64, 16), (300, 8)])
def test_any_tile_can_be_recorded(corner: tuple[int, int], tile_px: int, downsample: int) -> None:
    recorder = ThumbnailRecorder()
    recorder.watch(ArraySlide(drawn()))
    recorder.record(corner, np.full((tile_px, tile_px, 3), 7, np.uint8), downsample)


@pytest.mark.parametrize("name", TILERS)
def test_a_slides_process_gives_its_tiles_and_then_its_sketch(name: str, slides: list[Path]) -> None:
    tiling = TilingConfig(name, tile_px=32, downsample=8, max_tiles=6, batch_tiles=4)
    pieces = [piece for _, piece in tile_task(Task("one", slides[0], (tiling,)))]
    assert [isinstance(piece, Thumbnail) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    plain = [piece for piece in tile_slide(slides[0], tiling) if isinstance(piece, Batch)]
    for batch, wanted in zip([piece for piece in pieces if isinstance(piece, Batch)], plain, strict=True):
        np.testing.assert_array_equal(batch.tiles, wanted.tiles)
        np.testing.assert_array_equal(batch.xy, wanted.xy)


def test_a_thumbnail_looks_like_the_slide(slides: list[Path]) -> None:
    for path in slides:
        *_, (_, thumbnail) = tile_task(Task("one", path, (TILING,)))
        assert isinstance(thumbnail, Thumbnail)
        slide = open_slide(path)
        true = read_overview(slide, thumbnail.downsample, WHITE)
        assert (thumbnail.width_px, thumbnail.height_px) == (slide.width_px, slide.height_px)
        assert thumbnail.pixels.shape == true.shape
        assert np.abs(thumbnail.pixels.astype(int) - true).mean() < 8
        assert 0 < thumbnail.tissue.mean() < 0.6


def test_a_slide_that_is_refused_is_sketched_as_far_as_it_was_read(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (900, 700), WHITE).save(tmp_path / "blank.tif")
    pieces = []
    with pytest.raises(NoTissue):  # noqa: PT012 - the pieces before the error count
        for _, piece in tile_task(Task("blank", tmp_path / "blank.tif", (TILING,))):
            pieces.append(piece)
    assert isinstance(pieces[-1], Thumbnail)
    assert not pieces[-1].tissue.any()
    assert pieces[-1].pixels.min() >= 249


def test_a_failed_drawing_costs_the_thumbnail_alone() -> None:
    """A slide yields tiles of a shape that cannot be drawn."""

    class Odd(ArraySlide):
        def tiles(self, xy, tile_px, downsample, background):  # type: ignore[no-untyped-def]
            for _ in xy:
                yield np.zeros((3, 3), np.uint8)

    recorder = ThumbnailRecorder()
    assert len(list(recorder.watch(Odd(drawn())).tiles([(0, 0)] * 3, 32, 4, WHITE))) == 3
    assert recorder.thumbnail(WHITE, RULE) is None
