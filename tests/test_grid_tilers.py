"""Test the grid tilers against a plain reading on every layout, tile for tile, and what they skip."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clotkit.competitions import Competition
from clotkit.config import TilingConfig
from clotkit.slides.reader import Slide, open_slide
from clotkit.synthetic import phantom
from clotkit.tiling.grid_tilers import cell_px, spread_order, tenths
from clotkit.tiling.tilers import Batch, cut_slide, tile_slide
from clotkit.tissue.background import find_glass
from clotkit.tissue.glass import Glass
from clotkit.tissue.rules import sample_background
from tests.plain import ArraySlide, decoded, squares
from tests.test_tissue import BACKGROUNDS

SQUARES = {"tile": True, "tile_width": 128, "tile_height": 128}
LAYOUTS: dict[str, dict[str, Any]] = {
    "deflate": {**SQUARES, "compression": "deflate", "predictor": "horizontal"},
    "lzw": {**SQUARES, "compression": "lzw"},
    "jpeg": {"tile": True, "tile_width": 256, "tile_height": 256, "compression": "jpeg", "Q": 85},
    "jpeg rgb": {**SQUARES, "compression": "jpeg", "Q": 95},
    "plain tiles": {**SQUARES, "compression": "none"},
    "packbits": {**SQUARES, "compression": "packbits"},
    "bigtiff": {**SQUARES, "compression": "deflate", "bigtiff": True},
    "strips": {"compression": "deflate", "predictor": "horizontal"},
    "lzw strips": {"compression": "lzw"},
    "jpeg strips": {"compression": "jpeg", "Q": 85},
    "plain strips": {"compression": "none"},
}
CONFIGS = {
    "few": TilingConfig("patches", tile_px=32, downsample=4, max_tiles=5, batch_tiles=3),
    "every": TilingConfig("patches", tile_px=56, downsample=4, max_tiles=100_000, batch_tiles=7, min_tissue_share=0.02),
    "overlapping": TilingConfig("patches", tile_px=64, downsample=2, max_tiles=9, batch_tiles=4, overlap=0.5),
    "off the grid": TilingConfig(
        "patches", tile_px=30, downsample=3, max_tiles=12, batch_tiles=4, min_tissue_share=0.9
    ),
    "full size": TilingConfig("patches", tile_px=100, downsample=1, max_tiles=6, batch_tiles=4),
    "large downsample": TilingConfig("patches", tile_px=16, downsample=24, max_tiles=6, batch_tiles=4),
    "darkest": TilingConfig("darkest", tile_px=32, downsample=4, max_tiles=5, batch_tiles=3),
}


def cuts(path: Path, config: TilingConfig) -> tuple[dict[str, Any], list[tuple[tuple[int, int], np.ndarray]]]:
    facts: dict[str, Any] = {}
    tiles = []
    for piece in tile_slide(path, config):
        if isinstance(piece, Batch):
            tiles += [((int(x), int(y)), tile) for (x, y), tile in zip(piece.xy, piece.tiles, strict=True)]
        else:
            facts |= piece
    return facts, tiles


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tiles_are_those_of_a_plain_reading(layout: str, slides: list[Path], tmp_path: Path) -> None:
    for number, path in enumerate(slides):
        copy = tmp_path / path.name
        pyvips.Image.new_from_file(str(path)).tiffsave(str(copy), **LAYOUTS[layout])
        whole = decoded(copy)
        background = sample_background(ArraySlide(whole))
        chosen = CONFIGS if number == 0 else {name: CONFIGS[name] for name in ("few", "every")}
        for name, config in chosen.items():
            facts, tiles = cuts(copy, config)
            assert facts["background"] == list(background)
            assert tiles
            assert_same(tiles, squares(whole, config, Glass(background)), f"{path.name}, {name}")


def assert_same(tiles: list[Any], plain: list[Any], where: str) -> None:
    assert [corner for corner, _ in tiles] == [corner for corner, _ in plain], where
    for (_, mine), (_, other) in zip(tiles, plain, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=where)


@pytest.mark.parametrize("layout", ["deflate", "strips"])
def test_a_noisy_background(layout: str, slides: list[Path], tmp_path: Path) -> None:
    """There is no tile index, or one pass reads everything: the tiles are the same."""
    whole = decoded(slides[0])
    noise = np.random.default_rng(3).integers(-6, 7, whole.shape)
    pixels = np.clip(whole.astype(int) + noise, 0, 255).astype(np.uint8)
    path = tmp_path / "noisy.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), **LAYOUTS[layout])
    background = sample_background(ArraySlide(pixels))
    for name in ("few", "every"):
        tiles = cuts(path, CONFIGS[name])[1]
        assert tiles
        assert_same(tiles, squares(pixels, CONFIGS[name], Glass(background)), name)


DYES = {"glass": (0.5, 1, 0.5), "two glasses": (0.5, 1, 0.5), "grey": (1, 1, 1), "surround": (0.5, 1, 0.5)}


def drawn(kind: str, shape: tuple[int, int], step: int, seed: int) -> np.ndarray:
    """Return a slide with three squares of tissue that is `step` grey levels darker: uint8[*shape, 3]."""
    rng = np.random.default_rng(seed)
    pixels = np.full((*shape, 3), (238, 238, 238) if kind == "grey" else (240, 235, 238), np.uint8)
    if kind == "two glasses":
        pixels[:, shape[1] // 2 :] = (222, 216, 219)
    for _ in range(3):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        pixels[y : y + 60, x : x + 60] -= (step * np.array(DYES[kind])).astype(np.uint8)
    if kind == "surround":
        top, bottom, left, right = rng.integers(0, 1 + min(shape) // 4, 4)
        black = np.ones(shape, bool)
        black[top : shape[0] - bottom, left : shape[1] - right] = False
        pixels[black] = 0
    return pixels


@settings(deadline=None)
@given(
    kind=st.sampled_from(list(DYES)),
    name=st.sampled_from(["patches", "darkest"]),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    tile_px=st.integers(16, 40),
    downsample=st.integers(1, 5),
    most=st.integers(1, 20),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    step=st.sampled_from([90, 20, 12, 8, 4]),
    seed=st.integers(0, 99),
)
@example("glass", "patches", (17, 2), 16, 1, 1, 0.0, 90, 0)  # tissue from side to side
@example("glass", "patches", (128, 128), 16, 1, 1, 0.0, 90, 1)  # half is padding
@example("glass", "patches", (3, 3), 16, 2, 1, 0.0, 90, 40)  # all tissue is marks
def test_any_slide_and_any_grid(
    kind: str,
    name: str,
    shape: tuple[int, int],
    tile_px: int,
    downsample: int,
    most: int,
    overlap: float,
    step: int,
    seed: int,
) -> None:
    pixels = drawn(kind, shape, step, seed)
    config = TilingConfig(name, tile_px, downsample, most, 4, overlap=overlap)
    pieces = [piece for piece in pieces_or_nothing(ArraySlide(pixels), config) if isinstance(piece, Batch)]
    mine = [((int(x), int(y)), tile) for piece in pieces for (x, y), tile in zip(piece.xy, piece.tiles, strict=True)]
    assert_same(mine, squares(pixels, config, find_glass(ArraySlide(pixels))), "")
    assert len(mine) <= most


def pieces_or_nothing(slide: ArraySlide, config: TilingConfig) -> list[Any]:
    from clotkit.errors import NoTissue

    try:
        return list(cut_slide(slide, config))
    except NoTissue:
        assert sample_background(slide) is not None
        return []


def test_full_squares_are_spread_over_the_slide() -> None:
    """All tissue but a border: 16 of 400 full squares are chosen, in all four quarters."""
    pixels = np.full((800, 800, 3), 245, np.uint8)
    pixels[40:760, 40:760] = (180, 90, 140)
    config = TilingConfig("patches", 32, 1, 16, 16)
    (batch,) = [piece for piece in cut_slide(ArraySlide(pixels), config) if isinstance(piece, Batch)]
    quarters = {(bool(x > 400), bool(y > 400)) for x, y in batch.xy}
    assert len(quarters) == 4
    assert ((batch.tiles == (180, 90, 140)).all(axis=3).mean(axis=(1, 2)) >= 0.9).all()


class CountedSlide(ArraySlide):
    """A slide that counts the tiles read."""

    read_count = 0

    def tiles(self, *arguments: Any) -> Any:
        for tile in super().tiles(*arguments):
            self.read_count += 1
            yield tile


def test_a_search_ends_when_no_square_can_be_better() -> None:
    pixels = np.full((3200, 3200, 3), 245, np.uint8)
    pixels[100:3100, 100:3100] = (180, 90, 140)
    slide = CountedSlide(pixels)
    config = TilingConfig("patches", 32, 2, 8, 8)
    (batch,) = [piece for piece in cut_slide(slide, config) if isinstance(piece, Batch)]
    assert len(batch.tiles) == 8
    assert slide.read_count < 81 + 20  # background samples, and a few of 2,500 squares


def test_tiles_beyond_the_memory_limit_are_read_again(monkeypatch: pytest.MonkeyPatch, slides: list[Path]) -> None:
    expected = {name: cuts(slides[0], CONFIGS[name])[1] for name in ("few", "every")}
    monkeypatch.setattr("clotkit.tiling.grid_tilers.MAX_HELD_BYTES", 0)
    for name, tiles in expected.items():
        assert_same(cuts(slides[0], CONFIGS[name])[1], tiles, name)


@pytest.mark.parametrize("background", [None, *BACKGROUNDS])
def test_almost_all_tissue_is_kept_and_hardly_any_background(
    background: tuple[int, int, int] | None, slides: list[Path], strip_ai: Competition
) -> None:
    """On every real background, by the phantom's ground truth.

    More than 99 % of the tissue is kept, and less than 1 % of the squares without tissue.
    """
    split = slides[0].parents[1]
    for image_id, plan in phantom.read_plans(split).items():
        path = strip_ai.slide_path(split, "test", image_id)
        slide: Slide = open_slide(path) if background is None else ArraySlide(tinted(decoded(path), background))
        truth = phantom.tissue_mask(plan, 4)
        kept, bare = np.zeros_like(truth), 0
        for piece in cut_slide(slide, TilingConfig("patches", 32, 4, 100_000, 16, min_tissue_share=0.01)):
            for x, y in piece.xy // 4 if isinstance(piece, Batch) else ():
                kept[y : y + 32, x : x + 32] = True
                bare += not truth[y : y + 32, x : x + 32].any()
        height, width = truth.shape
        squares = [truth[y : y + 32, x : x + 32] for y in range(0, height, 32) for x in range(0, width, 32)]
        assert (truth & kept).sum() / truth.sum() > 0.99, image_id
        assert bare < 0.01 * sum(not square.any() for square in squares), image_id


def tinted(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Return the slide as its stains look on another background: light is multiplied."""
    own = np.array(sample_background(ArraySlide(pixels)), np.float32)
    return np.clip(np.rint(pixels * (np.array(background, np.float32) / own)), 0, 255).astype(np.uint8)


@given(st.integers(16, 2048))
def test_cells_divide_a_tile_and_are_small_enough(tile_px: int) -> None:
    cell = cell_px(tile_px)
    assert tile_px % cell == 0
    assert tile_px // cell >= 16
    assert cell & (cell - 1) == 0


@given(st.floats(0, 1))
def test_tenths_of_a_share(share: float) -> None:
    assert tenths(share) == min(int(share * 10 + 1e-9), 9)


def test_the_spread_is_even() -> None:
    """The first tenth of the order has about a tenth of the squares in either half of the slide."""
    order = np.argsort(spread_order(1000))[:100]
    assert abs((order < 500).sum() - 50) <= 5
    assert len(set(order.tolist())) == 100
