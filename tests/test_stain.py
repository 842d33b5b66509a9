"""Test normalisers on any pixels, on mixtures of two known stains, and on real fields."""

import csv
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clotkit.errors import ConfigError
from clotkit.tiling.stain import (
    LMS_TO_LAB,
    NORMALISERS,
    REFERENCE_DEVIATION,
    REFERENCE_MEAN,
    RGB_TO_LMS,
    TISSUE_OD,
    find_stains,
    fit_normaliser,
)

from .conftest import ROOT

FIELDS = ROOT.parent / "shared" / "data" / "breakhis"

WHITE, LILAC, GREEN_GREY = (255, 255, 255), (234, 216, 254), (196, 211, 192)
# Optical densities of haematoxylin and eosin in red, green and blue, of two laboratories.
ONE = np.array([[0.65, 0.70, 0.29], [0.15, 0.92, 0.35]])
OTHER = np.array([[0.55, 0.72, 0.42], [0.25, 0.84, 0.48]])

colours = st.tuples(*[st.integers(0, 255)] * 3)


def concentrations(tiles: int = 6, side: int = 96, seed: int = 0) -> np.ndarray:
    """Return concentrations of two stains, [tiles, side, side, 2]: dense nuclei, matrix, and empty glass."""
    rng = np.random.default_rng(seed)
    shape = (tiles, side, side)
    nucleus, matrix = rng.random(shape) < 0.25, rng.random(shape) < 0.8
    haematoxylin = np.where(nucleus, rng.gamma(4, 0.25, shape), rng.gamma(1, 0.08, shape))
    glass = rng.random(shape) < 0.1
    return np.stack([haematoxylin, matrix * rng.gamma(4, 0.15, shape)], axis=-1) * ~glass[..., None]


def stained(mixed: np.ndarray, stains: np.ndarray, background: tuple[int, int, int], noise: float = 0) -> np.ndarray:
    """Return tiles stained by the Beer-Lambert law: concentrations [..., 2] times densities [2, 3]."""
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    light = (np.array(background) + 1) * np.exp(-mixed @ unit) - 1
    return np.clip(np.rint(light + np.random.default_rng(1).normal(0, noise, light.shape)), 0, 255).astype(np.uint8)


def densities(tiles: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Return the optical densities of the tiles' tissue pixels, [n, 3]."""
    every = np.log((np.array(background) + 1) / (tiles.reshape(-1, 3) + 1.0))
    return every[np.linalg.norm(np.maximum(every, 0), axis=1) >= TISSUE_OD]


@pytest.mark.parametrize("name", sorted(NORMALISERS))
@settings(deadline=None, max_examples=40)
@given(
    background=colours,
    low=st.integers(0, 255),
    high=st.integers(0, 255),
    shape=st.tuples(st.integers(0, 4), st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
)
@example(background=(0, 0, 0), low=0, high=255, shape=(4, 40, 40), seed=0)
@example(background=(255, 0, 255), low=0, high=255, shape=(4, 40, 40), seed=0)
@example(background=(254, 255, 255), low=0, high=2, shape=(4, 40, 40), seed=0)
def test_any_pixels_can_be_normalised(
    name: str, background: tuple[int, int, int], low: int, high: int, shape: tuple[int, int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sample = rng.integers(min(low, high), max(low, high) + 1, (*shape, 3)).astype(np.uint8)
    other = rng.integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)  # colours that the sample may lack
    before = sample.copy(), other.copy()
    normaliser = fit_normaliser(name, background, sample)
    again = fit_normaliser(name, background, sample.copy())
    assert normaliser.used in {name, "background"}
    # Warnings are errors here: a NaN or infinity converted to uint8 fails the test.
    for tiles in (sample, other):
        done = normaliser(tiles)
        assert done.dtype == np.uint8
        assert done.shape == tiles.shape
        assert not np.shares_memory(done, tiles)
        np.testing.assert_array_equal(done, again(tiles))
    np.testing.assert_array_equal(sample, before[0])
    np.testing.assert_array_equal(other, before[1])


@pytest.mark.parametrize("name", sorted(NORMALISERS))
def test_a_tile_does_not_depend_on_its_batch(name: str) -> None:
    tiles = stained(concentrations(), ONE, LILAC, noise=2)
    normaliser = fit_normaliser(name, LILAC, tiles)
    assert normaliser.used == name
    np.testing.assert_array_equal(normaliser(tiles)[2:3], normaliser(tiles[2:3]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(normaliser))(tiles), normaliser(tiles))


def test_none_changes_nothing() -> None:
    tiles = stained(concentrations(), ONE, GREEN_GREY)
    np.testing.assert_array_equal(fit_normaliser("none", GREEN_GREY, tiles)(tiles), tiles)


@settings(deadline=None)
@given(background=colours.filter(all), pixel=colours)
def test_background_is_a_rounded_division(background: tuple[int, int, int], pixel: tuple[int, int, int]) -> None:
    tiles = np.array([[[background, pixel]]], np.uint8)
    done = fit_normaliser("background", background, tiles)(tiles)[0, 0]
    assert done[0].tolist() == [255, 255, 255]
    exact = np.minimum(255, np.array(pixel) * 255 / np.array(background))
    assert np.abs(done[1] - exact).max() <= 0.5


@pytest.mark.parametrize("background", [WHITE, LILAC, GREEN_GREY])
@pytest.mark.parametrize("name", ["background", "reinhard", "macenko"])
def test_the_background_becomes_white(name: str, background: tuple[int, int, int]) -> None:
    normaliser = fit_normaliser(name, background, stained(concentrations(), ONE, background))
    assert normaliser.used == name
    assert (normaliser(np.full((1, 8, 8, 3), background, np.uint8)) == 255).all()


def tiny_tissue() -> np.ndarray:
    tile = np.full((1, 64, 64, 3), LILAC, np.uint8)
    tile[0, :20, :20] = stained(concentrations(1, 20), ONE, LILAC)[0]
    return tile


def grey_tissue() -> np.ndarray:
    """Return grey as seen through the background: each channel transmits the same share of light."""
    share = np.random.default_rng(0).uniform(0.3, 0.9, (4, 64, 64, 1))
    return np.rint(share * LILAC).astype(np.uint8)


DEGENERATE = {
    "no tiles": np.empty((0, 64, 64, 3), np.uint8),
    "background only": np.full((2, 64, 64, 3), LILAC, np.uint8),
    "one colour": np.full((2, 64, 64, 3), (180, 80, 120), np.uint8),
    "black": np.zeros((2, 64, 64, 3), np.uint8),
    "brighter than the background": np.full((2, 64, 64, 3), 255, np.uint8),
    "tiny tissue": tiny_tissue(),
    "grey": grey_tissue(),
}


@pytest.mark.parametrize("what", DEGENERATE)
@pytest.mark.parametrize("name", ["reinhard", "macenko"])
def test_a_degenerate_sample_falls_back_to_the_background(name: str, what: str) -> None:
    normaliser = fit_normaliser(name, LILAC, DEGENERATE[what])
    assert (normaliser.name, normaliser.used) == (name, "background")
    tiles = stained(concentrations(2), ONE, LILAC)
    np.testing.assert_array_equal(normaliser(tiles), fit_normaliser("background", LILAC, tiles)(tiles))


@pytest.mark.parametrize("stain", [0, 1], ids=["haematoxylin", "eosin"])
def test_one_stain_and_noise_are_not_two_stains(stain: int) -> None:
    mixed = concentrations()
    mixed[..., 1 - stain] = 0
    assert fit_normaliser("macenko", LILAC, stained(mixed, ONE, LILAC, noise=1)).used == "background"


def test_an_unknown_name_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"vahadane.*background, macenko, none, reinhard"):
        fit_normaliser("vahadane", WHITE, np.empty((0, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("background", [WHITE, LILAC, GREEN_GREY])
@pytest.mark.parametrize("stains", [ONE, OTHER], ids=["one", "other"])
@pytest.mark.parametrize(("noise", "degrees"), [(0, 0.5), (1, 1.0), (3, 3.0)])
def test_macenko_recovers_known_stains(
    background: tuple[int, int, int], stains: np.ndarray, noise: float, degrees: float
) -> None:
    found = find_stains(densities(stained(concentrations(), stains, background, noise), background))
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    cosines = (found.T * unit).sum(axis=1)
    assert np.degrees(np.arccos(np.minimum(cosines, 1))).max() < degrees


def test_macenko_makes_two_stainings_alike() -> None:
    mixed = concentrations()
    # The same tissue from the other laboratory and microscope, with less haematoxylin and more eosin.
    first, second = stained(mixed, ONE, LILAC, 1), stained(mixed * (0.7, 1.2), OTHER, GREEN_GREY, 1)
    done = [
        fit_normaliser("macenko", background, tiles)(tiles).astype(int)
        for tiles, background in ((first, LILAC), (second, GREEN_GREY))
    ]
    apart = np.abs(first.astype(int) - second).mean()
    error = np.abs(done[0] - done[1])
    assert apart > 15
    assert error.mean() < 3
    assert np.percentile(error, 99) < 12


def lab(tiles: np.ndarray) -> np.ndarray:
    """Return l, alpha, beta of pixels as in the paper, with natural logarithms and 256 for white."""
    red, green, blue = (tiles.reshape(-1, 3) + 1.0).T
    long = np.log(0.3811 * red + 0.5783 * green + 0.0402 * blue)
    medium = np.log(0.1967 * red + 0.7244 * green + 0.0782 * blue)
    short = np.log(0.0241 * red + 0.1288 * green + 0.8444 * blue)
    axes = [(long + medium + short) / 3**0.5, (long + medium - 2 * short) / 6**0.5, (long - medium) / 2**0.5]
    return np.stack(axes, axis=1)


@pytest.mark.parametrize("background", [WHITE, LILAC, GREEN_GREY])
def test_reinhard_meets_the_reference_in_its_colour_space(background: tuple[int, int, int]) -> None:
    # Few colours, so that none clips: clipped pixels miss the reference.
    tiles = stained(np.clip(concentrations(), 0, 0.8), ONE, background, 1)
    every = np.log((np.array(background) + 1) / (tiles.reshape(-1, 3) + 1.0))
    tissue = np.linalg.norm(np.maximum(every, 0), axis=1) >= TISSUE_OD
    done = lab(fit_normaliser("reinhard", background, tiles)(tiles))[tissue]
    # The remaining difference is rounding to grey levels.
    np.testing.assert_allclose(done.mean(axis=0), REFERENCE_MEAN, atol=2e-3)
    np.testing.assert_allclose(done.std(axis=0), REFERENCE_DEVIATION, rtol=0.02)


def test_reinhard_tints_no_pale_pixel() -> None:
    """Colours change without a step from glass to tissue: neighbours on a density ramp stay close."""
    tiles = stained(concentrations(), ONE, WHITE)
    ramp = stained(np.linspace(0, 1, 2000)[:, None] * (0.2, 0.8), ONE, WHITE)[None, None]
    done = fit_normaliser("reinhard", WHITE, tiles)(ramp)[0, 0].astype(int)
    assert done[0].tolist() == [255, 255, 255]
    assert np.abs(np.diff(done, axis=0)).max() <= 8


def test_l_alpha_beta_is_a_rotation() -> None:
    np.testing.assert_allclose(LMS_TO_LAB @ LMS_TO_LAB.T, np.eye(3), atol=1e-12)
    assert np.linalg.cond(RGB_TO_LMS) < 40


def glass(tiles: np.ndarray) -> tuple[int, int, int]:
    """Return the background of fields without a border: the median of the brightest 2 % of pixels."""
    pixels = tiles.reshape(-1, 3)
    darkest = pixels.min(axis=1)
    red, green, blue = np.median(pixels[darkest >= np.percentile(darkest, 98)], axis=0)
    return round(float(red)), round(float(green)), round(float(blue))


@pytest.mark.skipif(not (FIELDS / "labels.csv").exists(), reason=f"no BreakHis fields at {FIELDS}")
def test_patients_come_closer_on_real_fields() -> None:
    fields: dict[str, list[Path]] = defaultdict(list)
    with (FIELDS / "labels.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            fields[row["patient_slide"]].append(FIELDS / row["file"])
    means: dict[str, list[np.ndarray]] = defaultdict(list)
    for paths in fields.values():
        tiles = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(paths)[:8]])
        background = glass(tiles)
        seen = tiles[:, ::4, ::4]  # enough for a mean, as normalisers work per pixel
        every = np.log((np.array(background) + 1) / (seen + 1.0))
        tissue = np.linalg.norm(np.maximum(every, 0), axis=-1) >= TISSUE_OD
        for name in NORMALISERS:
            means[name].append(fit_normaliser(name, background, tiles)(seen)[tissue].mean(axis=0))
    # Deviation of the mean tissue colour between patients in grey levels, averaged over channels.
    spread = {name: float(np.std(colour, axis=0).mean()) for name, colour in means.items()}
    assert spread["background"] < spread["none"]
    assert spread["macenko"] < 0.85 * spread["none"]
    assert spread["reinhard"] < 0.2 * spread["none"]
