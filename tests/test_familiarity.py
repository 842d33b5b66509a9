"""Test that pictures unlike a member's training pictures are told, and that those like them are not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.data.familiarity import KNOWN, Familiarity, fit_familiarity, read_familiarity, statistics
from clotkit.data.images import edges, read_image
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError
from clotkit.evaluation.loaded_member import load_for_evaluation
from clotkit.evaluation.predict import has_double_contour, predict_each, unlikeness
from clotkit.synthetic.contours import write_contours

from .conftest import ROOT

TILING = load_recipe("double_contour").tiling
MEMBER = ROOT / "weights" / "double_contour"
Picture = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def shipped() -> Familiarity:
    found = read_familiarity(MEMBER / "familiarity.json")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    """Return drawn pictures of a seed that no member was trained on."""
    out = tmp_path_factory.mktemp("drawn") / "out"
    write_contours(out, 60, 91, lambda _: None)
    return [read_image(path) for path in sorted(out.glob("*/*.png"))]


def tile_set(images: int, patients: int, seed: int = 0) -> TileSet:
    """Return dim grey noise, two tiles a picture; the tiles of a picture do not lie side by side."""
    rng = np.random.default_rng(seed)
    tiles = np.repeat(rng.normal(90, 20, (2 * images, 16, 16, 1)).clip(0, 255).astype(np.uint8), 3, axis=3)
    number = np.tile(np.arange(images), 2)
    blank = np.full(2 * images, "")
    names, owners = (
        np.array([f"{kind}{one}" for one in ids]) for kind, ids in (("i", number), ("p", number % patients))
    )
    return TileSet(tiles, number % 2, owners, names, blank, blank, ("no", "yes"))


def nothing_held_out(tiles: TileSet) -> npt.NDArray[np.bool_]:
    return np.zeros(len(tiles), np.bool_)


def grey(values: npt.NDArray[np.float64]) -> Picture:
    return np.repeat(values.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def scan(rng: np.random.Generator) -> Picture:
    """Return speckle without any line, as in the soft tissue of an ultrasound picture."""
    return grey(np.abs(gaussian_filter(rng.normal(size=(192, 192)), 2.0)) * 700 + rng.uniform(20, 70))


def slice_of_a_head(rng: np.random.Generator) -> Picture:
    """Return a bright, smooth ellipse in a black surround, as in an MRI slice."""
    rows, columns = np.mgrid[-1:1:192j, -1:1:192j]
    inside = (rows / rng.uniform(0.7, 0.9)) ** 2 + (columns / rng.uniform(0.5, 0.8)) ** 2 < 1
    return grey(inside * (gaussian_filter(rng.normal(size=(192, 192)), 6) * 600 + 140))


def film(rng: np.random.Generator) -> Picture:
    """Return a white-edged shadow that brightens downwards, as in an X-ray picture."""
    return grey(np.linspace(60, 250, 192)[:, None] + gaussian_filter(rng.normal(size=(192, 192)), 12) * 800)


def stained(rng: np.random.Generator) -> Picture:
    noise = gaussian_filter(rng.normal(size=(192, 192, 3)), (3, 3, 0)) * 200
    return np.asarray((noise + np.array([200, 130, 180])).clip(0, 255), np.uint8)


def one_colour(rng: np.random.Generator) -> Picture:
    return np.full((192, 192, 3), rng.integers(0, 256), np.uint8)


@pytest.mark.parametrize("kind", [scan, slice_of_a_head, film, stained, one_colour])
def test_foreign_pictures_are_unlike(kind: Callable[[np.random.Generator], Picture], shipped: Familiarity) -> None:
    rng = np.random.default_rng(4)
    distances = [shipped.distance(edges(kind(rng), TILING)) for _ in range(20)]
    assert np.isfinite(distances).all()
    assert np.mean(np.array(distances) > shipped.threshold) >= 0.95


def test_pictures_drawn_with_another_seed_are_not(shipped: Familiarity, drawn: list[Picture]) -> None:
    unlike = [shipped.distance(edges(picture, TILING)) > shipped.threshold for picture in drawn]
    assert np.mean(unlike) <= 0.05  # 3 of 60; four pictures may be of one patient


def test_inverted_pictures_are_unlike(shipped: Familiarity, drawn: list[Picture]) -> None:
    assert all(shipped.distance(edges(255 - picture, TILING)) > shipped.threshold for picture in drawn[:10])


@pytest.mark.parametrize("side", [2, 5, 28, 96])
def test_statistics_of_one_colour_are_finite_at_every_size(side: int) -> None:
    tiles = np.stack([np.full((side, side, 3), level, np.uint8) for level in (0, 7, 255)])
    rows = statistics(tiles)
    assert rows.shape == (3, KNOWN)
    assert np.isfinite(rows).all()


def test_the_false_alarm_rate_is_that_of_the_quantile() -> None:
    tiles = tile_set(400, 100)
    fitted = fit_familiarity(tiles, nothing_held_out(tiles))
    assert fitted is not None
    familiarity, facts = fitted
    assert (facts["images"], facts["held_out"]) == (400, 400)
    assert facts["unlike_share"] <= 0.03
    fresh = familiarity.distances(tile_set(400, 100, seed=1)) > familiarity.threshold
    assert fresh.mean() <= 0.03


def test_held_out_pictures_have_no_part_in_the_statistics() -> None:
    tiles = tile_set(200, 50)
    shared = tiles.images == "i7"  # other pictures of its patient are not held out
    held_out = np.char.endswith(tiles.patients, "0") | shared
    fitted = fit_familiarity(tiles, held_out)
    alone = tiles.where(~held_out)
    again = fit_familiarity(alone, nothing_held_out(alone))
    assert fitted is not None
    assert again is not None
    assert fitted[0].to_json() == again[0].to_json()
    assert (fitted[1]["images"], fitted[1]["held_out"]) == (179, 20)
    alone_held_out = fit_familiarity(tiles, shared)
    assert alone_held_out is not None
    assert (alone_held_out[1]["held_out"], alone_held_out[1]["unlike_share"]) == (0, None)


def test_a_picture_alone_has_the_distance_it_has_among_others() -> None:
    tiles = tile_set(60, 30)
    fitted = fit_familiarity(tiles, nothing_held_out(tiles))
    assert fitted is not None
    together = fitted[0].distances(tiles)
    for number in (0, 7, 59):
        assert fitted[0].distance(tiles.tiles[tiles.images == f"i{number}"]) == pytest.approx(together[number])


def test_training_pictures_of_one_colour_leave_finite_distances() -> None:
    tiles = tile_set(60, 30)
    tiles.tiles[:] = 80
    fitted = fit_familiarity(tiles, nothing_held_out(tiles))
    assert fitted is not None
    assert np.isfinite(fitted[0].distances(tile_set(60, 30))).all()


@pytest.mark.parametrize(("images", "patients"), [(49, 49), (60, 4)])
def test_too_few_pictures_or_patients_give_none(images: int, patients: int) -> None:
    tiles = tile_set(images, patients)
    assert fit_familiarity(tiles, nothing_held_out(tiles)) is None


def test_a_file_is_read_as_it_was_written(tmp_path: Path, shipped: Familiarity) -> None:
    path = tmp_path / "familiarity.json"
    assert read_familiarity(path) is None
    path.write_text(json.dumps(shipped.to_json()))
    again = read_familiarity(path)
    assert again is not None
    assert again.to_json() == shipped.to_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", float("nan")),
        ("threshold", 0),
        ("threshold", 10**400),
        ("mean", [1.0]),
        ("scale", [0.0] * KNOWN),
        ("scale", [1e-310] * KNOWN),
        ("precision", "x"),
        ("precision", np.zeros((KNOWN, KNOWN)).tolist()),
        ("precision", (-np.eye(KNOWN)).tolist()),
    ],
)
def test_a_damaged_file_is_refused(name: str, value: object, tmp_path: Path, shipped: Familiarity) -> None:
    path = tmp_path / "familiarity.json"
    path.write_text(json.dumps({**shipped.to_json(), name: value}))
    with pytest.raises(ConfigError):
        read_familiarity(path)


def test_a_file_of_deep_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "familiarity.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError):
        read_familiarity(path)


def test_a_distance_that_is_no_number_is_unlike(shipped: Familiarity) -> None:
    distances = np.array([np.nan, np.inf, shipped.threshold, shipped.threshold + 1e-6])
    assert shipped.unlike(distances).tolist() == [True, True, False, True]


def test_a_member_that_has_lost_its_statistics_is_refused(tmp_path: Path) -> None:
    member = shutil.copytree(MEMBER, tmp_path / "member")
    (member / "familiarity.json").unlink()
    with pytest.raises(ConfigError):
        load_for_evaluation(member)


def test_a_picture_unlike_its_training_pictures_gets_no_answer_of_a_double_contour(
    tmp_path: Path, drawn: list[Picture], strip_ai: Competition
) -> None:
    for name, picture in (("own", drawn[0]), ("foreign", 255 - drawn[0])):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    assert has_double_contour(tmp_path / "own.png", MEMBER, strip_ai) in (True, False)
    assert has_double_contour(tmp_path / "foreign.png", MEMBER, strip_ai) is None


def test_a_prediction_says_it_and_members_without_statistics_do_not(
    tmp_path: Path, drawn: list[Picture], strip_ai: Competition
) -> None:
    paths = [tmp_path / "own.png", tmp_path / "foreign.png"]
    for path, picture in zip(paths, (drawn[0], 255 - drawn[0]), strict=True):
        Image.fromarray(picture).save(path)
    answers = predict_each(MEMBER, paths, strip_ai, lambda _: None)
    assert [answer.unlike_training for answer in answers] == [False, True]  # type: ignore[union-attr]
    demo = load_for_evaluation(ROOT / "weights" / "demo")
    assert unlikeness(demo, np.zeros((1, 8, 8, 3), np.uint8)) == (None, None, None)
