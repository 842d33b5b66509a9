"""Test a slide's background on every real colour, and its tissue on synthetic overviews."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clotkit.errors import NoTissue
from clotkit.reasons import Reason
from clotkit.tissue.rules import RULES, TissueMap, TissueRule, find_tissue, sample_background
from tests.plain import ArraySlide

# Of real slides in the competition's data set: white, pinkish, grey, lilac, green-grey.
BACKGROUNDS = [(255, 255, 255), (255, 250, 255), (255, 241, 255), (244, 244, 243), (234, 216, 254), (196, 211, 192),
               (211, 226, 207)]  # fmt: skip


def slide(
    background: tuple[int, int, int], tissue: tuple[int, int, int], share: float, noise: float = 15
) -> np.ndarray:
    """Return an overview with a square of textured tissue in the middle, on a slightly noisy background."""
    rng = np.random.default_rng(0)
    view = np.clip(np.array(background) + rng.integers(-1, 2, (200, 300, 3)), 0, 255)
    side = round((share * view.shape[0] * view.shape[1]) ** 0.5)
    top, left = (200 - side) // 2, (300 - side) // 2
    view[top : top + side, left : left + side] = np.clip(tissue + rng.normal(0, noise, (side, side, 3)), 0, 255)
    return view.astype(np.uint8)


def tissue_of(view: np.ndarray) -> TissueMap:
    return find_tissue(view, sample_background(ArraySlide(view)))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("share", [0.002, 0.125, 0.5])
def test_background_and_tissue_on_every_real_colour(background: tuple[int, int, int], share: float) -> None:
    tissue_map = tissue_of(slide(background, (180, 80, 120), share))
    assert np.abs(np.array(tissue_map.background) - background).max() <= 1
    assert tissue_map.share == pytest.approx(share, rel=0.06)


def test_faint_tissue_is_found_at_a_lower_threshold() -> None:
    tissue_map = tissue_of(slide((255, 250, 255), (247, 238, 246), 0.02, noise=1))
    assert tissue_map.rule.threshold < 24
    assert tissue_map.share > 0.01


def test_a_slide_of_one_colour_has_no_tissue() -> None:
    with pytest.raises(NoTissue) as raised:
        tissue_of(np.full((50, 60, 3), 240, np.uint8))
    assert raised.value.reason is Reason.NO_TISSUE


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    spread=st.integers(1, 255),
)
def test_the_background_is_within_the_slides_colours(shape: tuple[int, int], seed: int, spread: int) -> None:
    view = np.random.default_rng(seed).integers(0, spread, (*shape, 3)).astype(np.uint8)
    background: npt.NDArray[np.int64] = np.array(sample_background(ArraySlide(view)))
    assert (background >= view.min(axis=(0, 1))).all()
    assert (background <= view.max(axis=(0, 1))).all()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_ink_and_shadow_are_not_tissue_beside_tissue(background: tuple[int, int, int]) -> None:
    view = slide(background, (180, 80, 120), 0.05, noise=4)
    view[10:20, 30:120] = np.array(background) * 0.12  # black ink
    view[180:190, 30:280] = np.array(background) * (0.15, 0.3, 0.75)  # blue ink
    view[30:190, 280:290] = np.array(background) * 0.75  # a shadow
    tissue_map = tissue_of(view)
    assert tissue_map.rule == TissueRule(24)
    assert not tissue_map.mask[10:20, 30:120].any()
    assert not tissue_map.mask[180:190, 30:280].any()
    assert not tissue_map.mask[30:190, 280:290].any()
    assert tissue_map.share == pytest.approx(0.05, rel=0.06)


def test_a_grey_picture_counts_marks_as_tissue() -> None:
    """By the rules for H&E a grey picture is all marks, so marks count as tissue."""
    view = slide((240, 240, 240), (90, 90, 90), 0.1, noise=0)
    view[:] = view.mean(axis=2, keepdims=True)
    tissue_map = tissue_of(view)
    assert tissue_map.rule.with_marks
    assert tissue_map.share == pytest.approx(0.1, rel=0.06)


def test_rules_relax() -> None:
    order = [(rule.with_marks, -rule.threshold) for rule in RULES]
    assert order == sorted(order)
    view = slide((240, 240, 240), (180, 80, 120), 0.1)
    masks = [rule.mask(view, (240, 240, 240)) for rule in RULES[:5]]
    assert all((less <= more).all() for less, more in pairwise(masks))


def test_too_little_tissue_is_still_found() -> None:
    """One pixel in 60,000 is less than the smallest real share, and is used all the same."""
    view = np.full((200, 300, 3), 240, np.uint8)
    view[100, 100] = (180, 80, 120)
    tissue_map = tissue_of(view)
    assert tissue_map.mask.sum() == 1
