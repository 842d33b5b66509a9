"""The background of a slide, on every colour that real slides have; tissue against the synthetic slide's truth."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clotkit.errors import NoTissue
from clotkit.slides.tissue import estimate_background, find_tissue

# As seen on real slides (facts of the competition's data set): white, pinkish, grey, lilac, green-grey.
BACKGROUNDS = [(255, 255, 255), (255, 250, 255), (255, 241, 255), (244, 244, 243), (234, 216, 254), (196, 211, 192),
               (211, 226, 207)]  # fmt: skip


def slide(
    background: tuple[int, int, int], tissue: tuple[int, int, int], share: float, noise: float = 15
) -> np.ndarray:
    """An overview with a square of textured tissue in the middle, on a slightly noisy background."""
    rng = np.random.default_rng(0)
    view = np.clip(np.array(background) + rng.integers(-1, 2, (200, 300, 3)), 0, 255)
    side = round((share * view.shape[0] * view.shape[1]) ** 0.5)
    top, left = (200 - side) // 2, (300 - side) // 2
    view[top : top + side, left : left + side] = np.clip(tissue + rng.normal(0, noise, (side, side, 3)), 0, 255)
    return view.astype(np.uint8)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("share", [0.002, 0.125, 0.5])
def test_background_and_tissue_on_every_real_colour(background: tuple[int, int, int], share: float) -> None:
    found = find_tissue(slide(background, (180, 80, 120), share))
    assert np.abs(np.array(found.background) - background).max() <= 1
    assert found.share == pytest.approx(share, rel=0.06)


def test_faint_tissue_is_found_at_a_later_step() -> None:
    found = find_tissue(slide((255, 250, 255), (247, 238, 246), 0.02, noise=1))
    assert found.step < 24
    assert found.share > 0.01


def test_a_slide_of_one_colour_has_no_tissue() -> None:
    with pytest.raises(NoTissue, match="no tissue"):
        find_tissue(np.full((50, 60, 3), 240, np.uint8))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    spread=st.integers(1, 255),
)
def test_any_overview_has_a_background_of_its_own(shape: tuple[int, int], seed: int, spread: int) -> None:
    view = np.random.default_rng(seed).integers(0, spread, (*shape, 3)).astype(np.uint8)
    background = np.array(estimate_background(view))
    assert (background >= view.min(axis=(0, 1))).all()
    assert (background <= view.max(axis=(0, 1))).all()


def test_the_truth_of_synthetic_slides_is_found(test_split: Path) -> None:
    from clotkit.slides.reader import open_slide

    for path in sorted((test_split / "test").glob("*.tif")):
        overview = open_slide(path).overview(16)
        found = find_tissue(overview)
        # A pixel without any tissue in it is the background colour, give or take the noise of 1.
        bare = np.abs(overview.astype(int) - found.background).max(axis=2) <= 1
        assert not (found.mask & bare).any()
        assert found.share > 0
