"""Test the tile index: what it skips, when there is none, and that overviews do not change."""

from pathlib import Path

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st

from clotkit.slides.header.table import SegmentTable, background_bytes
from clotkit.slides.index import TileIndex, slide_index, verified_index
from clotkit.slides.reader import open_slide
from clotkit.tiling.overview import read_overview
from clotkit.tissue.rules import sample_background

SAVED: dict[str, dict[str, object]] = {
    "deflate": {"compression": "deflate", "predictor": "horizontal", "tile_width": 128, "tile_height": 128},
    "lzw": {"compression": "lzw", "tile_width": 128, "tile_height": 128},
    "jpeg": {"compression": "jpeg", "Q": 85, "tile_width": 256, "tile_height": 256},
}


@pytest.mark.parametrize("layout", SAVED)
def test_skipped_tiles_are_background(layout: str, slides: list[Path], tmp_path: Path) -> None:
    skipped = []
    for path in slides:
        copy = tmp_path / path.name
        pyvips.Image.new_from_file(str(path)).tiffsave(str(copy), tile=True, **SAVED[layout])
        slide = open_slide(copy)
        background = sample_background(slide)
        whole = read_overview(slide, 16, background)
        for threshold in (24, 6):
            index = slide_index(slide, background, threshold)
            skipped.append(0.0 if index is None else 1 - index.wanted_share)
            view = read_overview(slide, 16, background, index)
            differs = np.abs(view.astype(int) - whole).max(axis=2)
            # A skipped tile may differ from the background by half of what makes a pixel tissue (see slide_index).
            assert differs.max() <= threshold / 2
    assert max(skipped) > 0.7


def test_strips_and_plain_tiles_have_no_index(slides: list[Path], tmp_path: Path) -> None:
    image = pyvips.Image.new_from_file(str(slides[0]))
    for name, saved in (("strips", {"compression": "deflate"}), ("plain", {"tile": True, "compression": "none"})):
        path = tmp_path / f"{name}.tif"
        image.tiffsave(str(path), **saved)
        assert slide_index(open_slide(path), (255, 255, 255), 24) is None


def test_a_noisy_background_has_no_index(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(225, 256, (1024, 1024, 3)).astype(np.uint8)
    noise[300:700, 300:700] //= 2
    assert saved_index(tmp_path, noise) is None


def test_flat_tissue_that_compresses_like_background_is_noticed(tmp_path: Path) -> None:
    """By size alone it would be skipped; the sample finds its colour."""
    pixels = np.full((2048, 2048, 3), 250, np.uint8)
    pixels[512:1280, 512:1280] = (170, 60, 90)
    pixels[:256, :256] = np.random.default_rng(0).integers(0, 255, (256, 256, 3))
    index = saved_index(tmp_path, pixels)
    assert index is None or index.wanted[4:10, 4:10].all()


def test_a_few_slivers_lower_the_limit_and_leave_an_index(tmp_path: Path) -> None:
    """Tissue that fills only a tile's corner adds few bytes, and must be wanted all the same."""
    pixels = np.full((2048, 2048, 3), 250, np.uint8)
    pixels[512:1100, 512:1100] = np.random.default_rng(0).integers(80, 180, (588, 588, 3))
    for x, y in ((1500, 300), (300, 1500), (1700, 1700)):
        pixels[y : y + 16, x : x + 16] = (170, 60, 90)
    index = saved_index(tmp_path, pixels)
    assert index is not None
    assert index.wanted_share < 0.3
    assert all(index.wanted[y // 128, x // 128] for x, y in ((1500, 300), (300, 1500), (1700, 1700)))


def saved_index(folder: Path, pixels: np.ndarray) -> TileIndex | None:
    path = folder / "slide.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True, **SAVED["deflate"])
    slide = open_slide(path)
    return slide_index(slide, sample_background(slide), 24)


@given(background=st.integers(60, 400), spread=st.integers(0, 12), share=st.floats(0.0, 0.45), seed=st.integers(0, 99))
def test_background_sizes_are_separated_from_tissue_sizes(
    background: int, spread: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tissue = int(2000 * share)
    sizes = np.concatenate(
        [rng.integers(background - spread, background + spread + 1, 2000 - tissue), rng.integers(9000, 40000, tissue)]
    )
    mode, limit = background_bytes(sizes)
    assert background - spread <= mode <= background + spread <= limit < 9000


@given(
    counts=st.lists(st.lists(st.integers(100, 5000), min_size=9, max_size=9), min_size=9, max_size=12),
    hidden=st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=4),
)
def test_tiles_decoded_far_from_the_background_are_not_skipped(
    counts: list[list[int]], hidden: set[tuple[int, int]]
) -> None:
    decoded: dict[tuple[int, int], int] = {}

    def distance(row: int, column: int) -> int:
        decoded[row, column] = 40 if (row, column) in hidden else 0
        return decoded[row, column]

    sizes = np.array(counts, np.int64)
    table = SegmentTable(True, True, 8, False, False, b"", 128, 128, sizes, sizes)
    index = verified_index(table, distance, 12)
    if index is not None:
        assert all(index.wanted[place] for place, far in decoded.items() if far > 12)
        assert index.wanted_share <= 0.8


@given(
    st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=6),
    st.integers(-40, 900), st.integers(-40, 700), st.integers(1, 500),
)  # fmt: skip
def test_bounds_are_upper_bounds_of_the_tissue_share(wanted: list[list[bool]], x: int, y: int, side: int) -> None:
    index = TileIndex(100, np.array(wanted), 12.0)
    pixels = np.kron(np.array(wanted), np.ones((100, 100), bool))
    inside = pixels[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
    bound = index.bounds(np.array([[x, y]]), side)[0]
    assert inside.sum() / side**2 - 1e-9 <= bound <= 1
