"""The tile index against a plain reading: the same overview, the same tiles; and where it must step aside."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st

from clotkit.competitions import Competition
from clotkit.slides.index import Index, background_bytes, read_index
from clotkit.slides.reader import VipsSlide
from clotkit.slides.tiling import choose
from clotkit.slides.tissue import find_tissue

SAVED: dict[str, dict[str, object]] = {
    "deflate": {"compression": "deflate", "predictor": "horizontal", "tile_width": 128, "tile_height": 128},
    "lzw": {"compression": "lzw", "tile_width": 128, "tile_height": 128},
    "jpeg": {"compression": "jpeg", "Q": 85, "tile_width": 256, "tile_height": 256},
}


@pytest.fixture(scope="module")
def slides(
    make_split: Callable[..., Path], strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Slides of other backgrounds and shapes than the shared split's."""
    split = make_split(tmp_path_factory.mktemp("index") / "split", strip_ai, slides=6, seed=11)
    return sorted((split / "test").glob("*.tif"))


@pytest.mark.parametrize("layout", SAVED)
def test_the_overview_and_the_tiles_are_those_of_a_plain_reading(
    layout: str, slides: list[Path], tmp_path: Path
) -> None:
    skipped = []
    for path in slides:
        copy = tmp_path / path.name
        pyvips.Image.new_from_file(str(path)).tiffsave(str(copy), tile=True, **SAVED[layout])
        fast, plain = VipsSlide(copy, tiled=True), VipsSlide(copy, tiled=True, indexed=False)
        view, whole = fast.overview(16), plain.overview(16)
        assert view.shape == whole.shape
        assert np.abs(view.astype(int) - whole).max() <= 2
        (fast_corners, fast_least), (corners, least) = (
            choose(find_tissue(seen), 128, 16, 12) for seen in (view, whole)
        )
        assert np.array_equal(fast_corners, corners)
        assert fast_least == least
        skipped.append(fast.skipped_share)
        assert plain.skipped_share == 0
    assert max(skipped) > 0.7


def test_strips_and_plain_tiles_have_no_index(slides: list[Path], tmp_path: Path) -> None:
    image = pyvips.Image.new_from_file(str(slides[0]))
    for name, saved in (("strips", {"compression": "deflate"}), ("plain", {"tile": True, "compression": "none"})):
        path = tmp_path / f"{name}.tif"
        image.tiffsave(str(path), **saved)
        assert read_index(path) is None


def test_a_noisy_background_is_read_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(225, 256, (1024, 1024, 3)).astype(np.uint8)
    noise[300:700, 300:700] //= 2
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(noise).tiffsave(str(path), tile=True, **SAVED["deflate"])
    slide = VipsSlide(path, tiled=True)
    assert np.array_equal(slide.overview(16), VipsSlide(path, tiled=True, indexed=False).overview(16))


def test_flat_tissue_that_compresses_like_background_is_noticed(tmp_path: Path) -> None:
    """Sizes alone would skip it: the sample sees another colour, and the slide is read whole."""
    pixels = np.full((2048, 2048, 3), 250, np.uint8)
    pixels[512:1280, 512:1280] = (170, 60, 90)
    pixels[:256, :256] = np.random.default_rng(0).integers(0, 255, (256, 256, 3))
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True, **SAVED["deflate"])
    slide = VipsSlide(path, tiled=True)
    assert read_index(path) is not None
    view = slide.overview(16)
    assert slide.skipped_share == 0
    assert tuple(view[50, 50]) == (170, 60, 90)


@given(background=st.integers(60, 400), spread=st.integers(0, 12), share=st.floats(0.0, 0.45), seed=st.integers(0, 99))
def test_sizes_of_background_are_told_from_those_of_tissue(
    background: int, spread: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tissue = int(2000 * share)
    sizes = np.concatenate(
        [rng.integers(background - spread, background + spread + 1, 2000 - tissue), rng.integers(9000, 40000, tissue)]
    )
    limit = background_bytes(sizes)
    assert background + spread <= limit < 9000


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=6))
def test_runs_are_the_wanted_tiles(wanted: list[list[bool]]) -> None:
    index = Index(128, np.ones((len(wanted), 7), np.int64), np.array(wanted))
    covered = np.zeros_like(index.wanted)
    for row, start, stop in index.runs():
        assert not covered[row, start:stop].any()
        covered[row, start:stop] = True
    assert np.array_equal(covered, index.wanted)
    if not index.wanted.all():
        assert not any(index.wanted[row, column] for row, column in index.sample())
