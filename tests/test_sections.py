"""Test that repeated sections of a clot are found anywhere, and that different clots are all kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from clotkit.synthetic.phantom import slide_plan, tissue_mask
from clotkit.tiling.sections import Mask, duplicates, sections

masks = st.builds(
    lambda height, width, seed, grain, share: (
        ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), grain) > share
    ),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.floats(-0.1, 1.0),
)


def clot(seed: int, radius: float = 40.0) -> Mask:
    """Return one fragment with a random shape, in a box of 5 radii."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    waves = (rng.normal(0, 0.5 / wave) * np.cos(wave * angle + rng.uniform(0, 7)) for wave in range(2, 12))
    reach = 1.0 + np.sum([*waves], axis=0)
    side = np.arange(-2.5 * radius, 2.5 * radius)
    turn = (np.arctan2(side[:, None], side) % (2 * np.pi) / (2 * np.pi) * 720).astype(int) % 720
    return np.asarray(np.hypot(side[:, None], side) < radius * np.clip(reach[turn], 0.2, 2.4))


def askew(mask: Mask, degrees: float) -> Mask:
    return np.asarray(ndimage.rotate(mask.astype(np.float32), degrees, order=1, reshape=False) >= 0.5)


def fragments(seed: int) -> Mask:
    """Return a clot of three fragments."""
    sizes = np.random.default_rng(seed).permutation([14.0, 20.0, 26.0])
    whole = np.zeros((190, 190), bool)
    for number, (size, (top, left)) in enumerate(zip(sizes, [(0, 20), (40, 60), (60, 0)], strict=True)):
        piece = clot(seed + 1000 * (number + 1), size)
        whole[top : top + len(piece), left : left + len(piece)] |= piece
    return whole


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("make", [clot, fragments])
def test_copies_are_found_and_one_is_kept(make: type, copies: int, axis: int) -> None:
    shapes = [askew(make(3), turn) for turn in (0.0, 7.0, -5.0)[:copies]]
    mask = np.concatenate(shapes, axis=axis)
    labels = sections(mask)
    for number, (part, shape) in enumerate(zip(np.array_split(labels, copies, axis=axis), shapes, strict=True)):
        assert (part == (number + 1) * shape).all()
    left_out = duplicates(mask)
    assert len(np.unique(labels[mask & ~left_out])) == 1
    assert (mask & ~left_out).sum() == max(shape.sum() for shape in shapes)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_different_clots_are_all_kept(seed: int, axis: int) -> None:
    mask = np.concatenate([clot(seed), clot(seed + 50)], axis=axis)
    assert sections(mask).max() == 1
    assert not duplicates(mask).any()


def test_a_clot_and_its_mirror_image_are_different() -> None:
    mask = np.concatenate([clot(3), clot(3)[:, ::-1]])
    assert not duplicates(mask).any()


def test_round_clots_are_not_copies() -> None:
    y, x = np.mgrid[-40:41, -40:41]
    assert not duplicates(np.tile(np.hypot(y, x) < 30, (1, 2))).any()
    assert not duplicates(np.tile((y / 20) ** 2 + (x / 35) ** 2 < 1, (3, 1))).any()


def test_a_bar_is_one_section() -> None:
    mask = np.zeros((300, 60), bool)
    mask[10:290, 20:40] = True
    assert sections(mask).max() == 1


def test_half_a_copy_is_not_a_copy() -> None:
    whole = clot(3)
    half = whole.copy()
    half[: len(half) // 2] = False
    assert not duplicates(np.concatenate([whole, half])).any()


def test_one_section_of_fragments_has_one_label() -> None:
    mask = fragments(5)
    assert (sections(mask) == mask).all()


@settings(deadline=None, max_examples=40)
@given(mask=masks)
def test_some_tissue_is_always_kept(mask: Mask) -> None:
    labels, left_out = sections(mask), duplicates(mask)
    assert labels.shape == left_out.shape == mask.shape
    assert (labels.dtype.name, left_out.dtype.name) == ("int32", "bool")
    assert ((labels > 0) == mask).all()
    assert not (left_out & ~mask).any()
    assert (mask & ~left_out).any() == mask.any()
    assert not set(np.unique(labels[left_out])) & set(np.unique(labels[mask & ~left_out]))


@settings(deadline=None, max_examples=15)
@given(
    shape=st.sampled_from(["copies", "different"]),
    margins=st.tuples(*[st.integers(0, 70)] * 4),
)
def test_the_position_of_the_tissue_does_not_matter(shape: str, margins: tuple[int, int, int, int]) -> None:
    mask = np.concatenate([clot(3), askew(clot(3), 4) if shape == "copies" else clot(8)])
    top, bottom, left, right = margins
    moved = np.pad(mask, ((top, bottom), (left, right)))
    back = duplicates(moved)[top : top + mask.shape[0], left : left + mask.shape[1]]
    assert (back == duplicates(mask)).all()
    assert back.any() == (shape == "copies")


def test_dust_and_a_thread_between_the_sections_do_not_matter() -> None:
    mask = np.concatenate([clot(3), askew(clot(3), 4)])
    mask[:, 100] = True  # one pixel wide, from end to end
    rng = np.random.default_rng(2)
    mask[rng.integers(0, mask.shape[0], 30), rng.integers(0, mask.shape[1], 30)] = True
    assert sections(mask).max() == 2


def test_masks_of_any_size() -> None:
    assert sections(np.zeros((0, 5), bool)).shape == (0, 5)
    assert not duplicates(np.zeros((7, 9), bool)).any()
    assert not duplicates(np.ones((1, 1), bool)).any()
    large = np.repeat(np.repeat(np.concatenate([clot(3), clot(3)]), 7, 0), 7, 1)
    assert duplicates(large).sum() == 49 * clot(3).sum()


def test_sections_of_synthetic_slides_match_their_plans() -> None:
    plans = [slide_plan(7, "test", f"s{number}", 2400, 4800) for number in range(40)]
    found = [int(sections(tissue_mask(plan, 16)).max()) for plan in plans]
    assert all(number in (1, plan.sections) for number, plan in zip(found, plans, strict=True))
    several = [number for number, plan in zip(found, plans, strict=True) if plan.sections > 1]
    assert sum(number > 1 for number in several) >= 0.85 * len(several) > 8
