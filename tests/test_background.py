"""Test what is taken for padding and for glass, and the benchmark of padded slides on one slide."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.padding import compared, measure, saved_slide
from clotkit.config import TilingConfig
from clotkit.slides.pixels import Colour
from clotkit.tiling.overview import slide_context
from clotkit.tiling.tilers import Batch, tile_slide
from clotkit.tissue.background import find_glass

from .plain import ArraySlide

SHAPE = (480, 640)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
TISSUE = np.hypot(Y - 240, X - 330) < 90


def drawn(glass: Colour, noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    grain = rng.random((60, 80)).repeat(8, 0).repeat(8, 1)[..., None]
    dyed = (np.array((205, 120, 165)) * grain + np.array((120, 70, 140)) * (1 - grain)) * np.array(glass) / 255
    pixels = np.where(TISSUE[..., None], dyed, glass) + rng.normal(0, 1, (*SHAPE, 1)) * noise
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def framed(pixels: np.ndarray, fill: Colour, px: int = 60) -> np.ndarray:
    padded = np.empty_like(pixels)
    padded[:] = fill
    padded[px:-px, px:-px] = pixels[px:-px, px:-px]
    return padded


def surrounded(pixels: np.ndarray, widths_px: tuple[int, int, int, int], noise: int = 0) -> np.ndarray:
    """Return pixels with black to the left, above, to the right and below, of up to `noise` grey levels."""
    left, top, right, bottom = widths_px
    shape = (pixels.shape[0] + top + bottom, pixels.shape[1] + left + right, 3)
    canvas = np.random.default_rng(3).integers(0, noise + 1, shape).astype(np.uint8)
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("fill", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (0, 90, 160), (255, 0, 255)])
def test_a_frame_is_padding(fill: Colour, noise: float) -> None:
    glass = find_glass(ArraySlide(framed(drawn((216, 214, 218), noise), fill)))
    assert np.abs(np.subtract(glass.colour, (216, 214, 218))).max() <= 1
    assert glass.padding_colours == (fill,)
    assert glass.padding_share == pytest.approx(1 - 520 * 360 / (640 * 480), abs=0.01)


@pytest.mark.parametrize("colour", [(255, 255, 255), (243, 241, 244)])
def test_glass_of_one_exact_colour_is_no_padding(colour: Colour) -> None:
    assert find_glass(ArraySlide(drawn(colour))).facts() == {
        "background": list(colour),
        "background_model": "colour",
        "padding_share": 0.0,
        "grey": False,
    }
    framed_glass = find_glass(ArraySlide(framed(drawn(colour), (0, 0, 0))))
    assert framed_glass.colour == colour
    assert framed_glass.padding_colours == ((0, 0, 0),)


def test_padding_shows_glass_and_nothing_else_changes() -> None:
    pixels = drawn((243, 241, 244), 1.0)
    pixels[:160, :128] = 0
    (tile,) = slide_context(ArraySlide(pixels)).slide.tiles([(0, 0)], 480, 1, (1, 2, 3))
    assert (tile[192:, 160:] == pixels[192:, 160:480]).all()
    assert (tile[:160, :128] == (243, 241, 244)).all()


def test_a_black_surround_is_beyond_the_edge() -> None:
    plain = drawn((243, 241, 244), 1.0)
    (tile,) = slide_context(ArraySlide(surrounded(plain, (70, 1, 0, 33)))).slide.tiles([(320, 0)], 480, 1, (1, 2, 3))
    assert (tile[:, :320] == plain[:, 320:]).all()
    assert (tile[:, 320:] == (1, 2, 3)).all()


CUTS = (("patches", 32, 1), ("patches", 24, 4), ("darkest", 32, 2), ("windows", 32, 2), ("chunks", 48, 1))
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": (".png", {"compression": 1}),
    "strips": (".tif", {"compression": "lzw", "predictor": "horizontal"}),
    "pyramid": (".tif", {"tile": True, "pyramid": True, "tile_width": 64, "tile_height": 64, "compression": "lzw"}),
}


def cut(path: Path, cuts: Sequence[tuple[str, int, int]] = CUTS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut a slide with several tilers: corners [n, 2] and tiles of each."""
    results = []
    for name, side, downsample in cuts:
        pieces = [
            piece
            for piece in tile_slide(path, TilingConfig(name, side, downsample, 12, 32, levels="full"))
            if isinstance(piece, Batch)
        ]
        results.append((np.concatenate([piece.xy for piece in pieces]), np.concatenate([p.tiles for p in pieces])))
    return results


def scene(kind: str, noise: float) -> np.ndarray:
    """Draw tissue on glass, tissue that touches three borders, or a core: tissue from side to side."""
    plain = drawn((243, 241, 244), noise)
    if kind == "glass":
        return plain
    return plain[160:320, 230:430] if kind == "touching" else plain[190:290, 280:380].repeat(3, 0).repeat(3, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    kind=st.sampled_from(["glass", "touching", "core"]),
    widths=st.tuples(*[st.integers(0, 150)] * 2, *[st.sampled_from([0, 5, 64, 130])] * 2),
    noise=st.sampled_from([0.0, 1.0]),
    black=st.integers(0, 3),
)
@settings(max_examples=4, deadline=None, derandomize=True)
def test_a_slide_gives_the_same_tiles_in_a_black_surround(
    layout: str, kind: str, widths: tuple[int, int, int, int], noise: float, black: int
) -> None:
    suffix, saved = LAYOUTS[layout]
    pixels = scene(kind, noise)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}{suffix}" for name in ("plain", "surrounded")]
        for path, part in zip(paths, (pixels, surrounded(pixels, widths, black)), strict=True):
            pyvips.Image.new_from_array(np.ascontiguousarray(part)).write_to_file(str(path), **saved)
        for (xy, tiles), (there, same) in zip(*map(cut, paths), strict=True):
            np.testing.assert_array_equal(there, xy + np.array(widths[:2]))
            np.testing.assert_array_equal(same, tiles)


def test_jpeg_surrounds_leave_no_black_tile_and_the_same_corners(tmp_path: Path) -> None:
    """JPEG rings beside the surround, within its blocks of 16 px."""
    saved = {"tile": True, "tile_width": 256, "tile_height": 256, "compression": "jpeg", "Q": 80}
    pixels = drawn((238, 232, 240), 1.0)
    cuts = CUTS[:4]
    plain = cut(saved_slide(tmp_path / "plain.tif", pixels, saved), cuts)
    for widths in ((256, 256, 256, 256), (48, 160, 0, 16), (37, 61, 90, 11)):
        path = saved_slide(tmp_path / "surrounded.tif", surrounded(pixels, widths, 3), saved)
        for (xy, _), (there, tiles) in zip(plain, cut(path, cuts), strict=True):
            assert (tiles.max(axis=3) <= 64).mean(axis=(1, 2)).max() < 0.1
            moved = xy + np.array(widths[:2])
            assert np.mean([(np.abs(there - corner).max(axis=1) <= 1).any() for corner in moved]) >= 0.9


@pytest.mark.parametrize("noise", [0, 3])
def test_no_tile_of_a_core_on_black_is_black(noise: int, tmp_path: Path) -> None:
    tissue = drawn((243, 241, 244))[190:290, 280:380].repeat(4, 0).repeat(4, 1)
    y, x = np.mgrid[:400, :400]
    canvas = surrounded(tissue, (90, 20, 10, 200), noise)
    outside = np.ones(canvas.shape[:2], bool)
    outside[20:420, 90:490] = np.hypot(y - 200, x - 200) > 199
    canvas[outside] = np.random.default_rng(1).integers(0, noise + 1, (int(outside.sum()), 3))
    path = saved_slide(tmp_path / "core.tif", canvas, {"compression": "lzw"})
    for xy, _ in cut(path, CUTS[:3]):
        assert all(outside[y : y + 32, x : x + 32].mean() < 0.9 for x, y in xy)


def test_tissue_and_padding_without_glass() -> None:
    """Black is never the background."""
    grain = np.random.default_rng(1).random((60, 80)).repeat(8, 0).repeat(8, 1)[..., None]
    dyed = np.array((205, 120, 165)) * grain + np.array((120, 70, 140)) * (1 - grain)
    pixels = framed(dyed.astype(np.uint8), (0, 0, 0))
    glass = find_glass(ArraySlide(pixels))
    assert glass.model == "brightest"
    assert min(glass.colour) > 100


def test_two_glasses_are_flattened_to_one() -> None:
    pixels = drawn((243, 241, 244), 1.0)
    pixels[:, :200] = np.rint(pixels[:, :200] * 0.88).astype(np.uint8)
    context = slide_context(ArraySlide(pixels))
    assert context.glass.model == "local"
    assert len(context.glass.colours) == 2
    (flat,) = context.judged.tiles([(0, 0)], 480, 1, context.background)
    bare = np.abs(flat[~TISSUE[:, :480]].astype(int) - context.background).max(axis=1)
    assert np.percentile(bare, 99.5) <= 6


@pytest.mark.parametrize("noise", [0, 2])
def test_a_slide_is_grey_as_a_whole(noise: int) -> None:
    grey = drawn((240, 240, 240), 1.0).mean(axis=2, keepdims=True).repeat(3, axis=2)
    chroma = np.random.default_rng(2).integers(-noise, noise + 1, grey.shape)
    pixels = np.clip(np.rint(grey + chroma), 0, 255).astype(np.uint8)
    assert find_glass(ArraySlide(pixels)).grey
    assert not find_glass(ArraySlide(drawn((240, 240, 240), 1.0))).grey


def test_one_drawn_slide_gives_the_same_tiles_under_every_padding(tmp_path: Path) -> None:
    rows = list(measure(tmp_path, range(4, 5), ["patches"]))
    assert len(rows) == 14
    assert min(row["agreeing"] for row in rows) >= 0.9
    assert sum(row["bare"] for row in rows) == 0


def test_agreement_counts_both_ways() -> None:
    tissue = np.ones((512, 512), bool)
    mine, other = np.array([[0, 0]]), np.array([[100, 0], [384, 384]])
    assert compared(mine, other, tissue, 128)["agreeing"] == 0.5
    assert compared(other, other, tissue, 128) == {"agreeing": 1.0, "tissue": 1.0, "bare": 0.0}
