"""Test that ink and shadows are found on every real background, and that tissue is not a mark."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clotkit.slides.pixels import Colour, Pixels, box_mean
from clotkit.tissue.marks import BLOCK_PX, marks

from .conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
BACKGROUNDS = [(255, 255, 255), (255, 250, 255), (255, 241, 255), (244, 244, 243), (234, 216, 254), (196, 211, 192),
               (211, 226, 207)]  # fmt: skip

# Colours on white. Blue and green are within the pen filters of IBM's deep-histopath.
INKS = {
    "blue": (60, 120, 190),
    "pale blue": (145, 180, 210),
    "dark blue": (30, 65, 130),
    "green": (45, 115, 100),
    "pale green": (140, 165, 150),
    "black": (35, 35, 37),
    "thin black": (110, 111, 112),
    "shadow": (190, 190, 190),
    "light shadow": (220, 220, 220),
}
TISSUES = {
    "fibrin": (225, 170, 200),
    "red cells": (190, 62, 74),
    "bright red cells": (230, 50, 60),
    "dense clot": (60, 20, 30),
    "nearly black clot": (25, 8, 14),
    "brown clot": (120, 70, 50),
    "nucleus": (90, 60, 140),
    "faint pink": (248, 236, 242),
    "faint lilac": (236, 222, 240),
    "haematoxylin": (132, 122, 190),
}

colours = st.tuples(*[st.integers(0, 255)] * 3)
backgrounds = st.sampled_from(BACKGROUNDS) | st.tuples(*[st.integers(150, 255)] * 3)


def on_background(colour: Colour, background: Colour, strength: float = 1.0) -> Pixels:
    """Return one pixel, uint8[1, 1, 3], of a dye that has `colour` on white (Beer-Lambert law)."""
    light = (np.array(colour) / 255) ** strength
    return np.rint(light * background).astype(np.uint8)[None, None]


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("ink", INKS)
def test_ink_and_shadows_are_marks(ink: str, background: Colour) -> None:
    assert marks(on_background(INKS[ink], background), background).all()


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("tissue", TISSUES)
def test_tissue_is_not_a_mark(tissue: str, strength: float, background: Colour) -> None:
    assert not marks(on_background(TISSUES[tissue], background, strength), background).any()


@settings(deadline=None)
@given(background=backgrounds, noise=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_the_background_is_not_a_mark(background: Colour, noise: int, seed: int) -> None:
    grain = np.random.default_rng(seed).integers(-noise, noise + 1, (16, 16, 3))
    pixels = np.clip(np.array(background) + grain, 0, 255).astype(np.uint8)
    assert not marks(pixels, background).any()


@settings(deadline=None)
@given(
    background=backgrounds,
    haematoxylin=st.floats(0, 2.5),
    eosin=st.floats(0, 2.5),
)
def test_no_mixture_of_haematoxylin_and_eosin_is_a_mark(background: Colour, haematoxylin: float, eosin: float) -> None:
    density = haematoxylin * np.array([0.65, 0.70, 0.29]) + eosin * np.array([0.07, 0.99, 0.11])
    # A scanner's sensor never reports 0: light scatters into the darkest pixel.
    pixel = np.rint(2 + np.array(background) * 10.0**-density).clip(0, 255).astype(np.uint8)
    if pixel.max() >= 16:  # darker ones have no colour in 8 bits
        assert not marks(pixel[None, None], background).any()


@settings(deadline=None)
@given(
    pixel=colours,
    background=backgrounds,
    height=st.integers(0, 5),
    width=st.integers(0, 40),
)
def test_pixels_are_judged_one_by_one(pixel: Colour, background: Colour, height: int, width: int) -> None:
    pixels = np.full((height, width, 3), pixel, np.uint8)
    mask = marks(pixels, background)
    assert mask.shape == (height, width)
    assert mask.dtype == np.bool_
    assert (mask == marks(pixels[:1, :1], background)).all()


def test_blocks_of_large_pictures_join_without_a_seam() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3 * BLOCK_PX // 100 + 7, 100, 3), np.uint8)
    whole = marks(pixels, (255, 250, 255))
    rows = np.concatenate([marks(pixels[row : row + 1], (255, 250, 255)) for row in range(len(pixels))])
    assert (whole == rows).all()
    assert (marks(pixels[::-1, ::-1], (255, 250, 255)) == whole[::-1, ::-1]).all()


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("ink", ["blue", "green", "black"])
def test_only_a_stroke_with_soft_edges_is_found(ink: str, background: Colour) -> None:
    y, x = np.mgrid[:120, :120]
    cover = np.clip(5.5 - np.abs(x - y + 8 * np.sin(x / 20)) / 1.4, 0, 1)[..., None]
    tissue = np.hypot(y - 60, x - 95) < 20
    clot = np.where(tissue[..., None], np.array((190, 62, 74)) / 255, 1.0)
    light = np.array(background) * clot * (1 - cover + cover * np.array(INKS[ink]) / 255)
    noise = np.random.default_rng(1).normal(0, 0.5, light.shape)
    mask = marks(np.clip(np.rint(light + noise), 0, 255).astype(np.uint8), background)
    assert mask[(cover[..., 0] >= 0.5) & ~tissue].mean() > 0.98
    assert not mask[cover[..., 0] == 0].any()


def test_synthetic_slides_have_no_marks(test_split: Path) -> None:
    import tifffile

    from clotkit.synthetic.phantom import read_plans

    for image_id, plan in read_plans(test_split).items():
        pixels = tifffile.imread(test_split / "test" / f"{image_id}.tif")
        height, width = (side // 16 * 16 for side in pixels.shape[:2])
        assert not marks(box_mean(np.ascontiguousarray(pixels[:height, :width]), 16), plan.background).any()


@pytest.mark.skipif(not (DATA / "breakhis").is_dir(), reason="needs the BreakHis fields of the shared data")
def test_real_fields_keep_their_tissue() -> None:
    tissue = marked = 0
    for path in sorted((DATA / "breakhis").rglob("*.jpg")):
        field = np.asarray(Image.open(path).convert("RGB"))
        grey = field.mean(axis=2)
        background = np.median(field[grey >= np.percentile(grey, 97)], axis=0)
        bare = np.abs(field - background).max(axis=2) < 8
        if bare.mean() < 0.08:  # all tissue, no background to compare with
            continue
        height, width = (side // 8 * 8 for side in field.shape[:2])
        view = box_mean(np.ascontiguousarray(field[:height, :width]), 8)  # about 32 px of a slide at 40x
        dense = ((view + 1.0) / (background + 1)).min(axis=2) < 10**-0.08  # paler pixels include the lamp's falloff
        red, green, blue = (int(value) for value in background)
        tissue += int(dense.sum())
        marked += int((marks(view, (red, green, blue)) & dense).sum())
    assert tissue > 20_000
    assert marked < 0.005 * tissue


@pytest.mark.skipif(not (DATA / "slides").is_dir(), reason="needs the slides of the shared data")
@pytest.mark.parametrize(
    ("name", "background", "most"),
    [
        ("tcga-cr-7395-01a-01-ts1.svs", (242, 237, 240), 0.0),
        ("CMU-1-Small-Region.svs", (246, 246, 245), 0.01),  # its margin has green ink, 0.9 % of its tissue
    ],
)
def test_real_slides_keep_their_tissue(name: str, background: Colour, most: float) -> None:
    openslide = pytest.importorskip("openslide", reason="needs OpenSlide to read SVS")
    with openslide.OpenSlide(str(DATA / "slides" / name)) as slide:
        level = slide.level_count - 1
        pixels = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
        downsample = 16 // round(slide.level_downsamples[level])
    height, width = (side // downsample * downsample for side in pixels.shape[:2])
    view = box_mean(np.ascontiguousarray(pixels[:height, :width]), downsample)
    tissue = np.abs(view - np.array(background)).max(axis=2) > 24
    assert tissue.sum() > 5_000
    assert (marks(view, background) & tissue).sum() <= most * tissue.sum()
