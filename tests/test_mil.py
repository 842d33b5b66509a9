"""Test heads over features: what they compute, learn and write, from features with a planted signal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.heads import HEADS as HEADS_COMPARED
from bench.heads import Settings, recipe_text
from clotkit.competitions import Competition
from clotkit.config import HEADS, Recipe, load_recipe, tiling_for
from clotkit.errors import ConfigError, SplitError
from clotkit.features.files import TILING, open_features, tiling_text, write_features
from clotkit.members.encoders.heads import BAG_TILES, Head, build_head, build_heads, pooling_of_heads
from clotkit.members.loading import start_keras
from clotkit.reasons import Reason
from clotkit.shards.table import ShardRow, table_text
from clotkit.training.mil.bags import SlideFeatures
from clotkit.training.mil.fit import Compiled, fit_head
from clotkit.training.mil.linear import solve_logistic, solve_ridge
from clotkit.training.mil.losses import instance_loss
from clotkit.training.mil.sources import read_features
from clotkit.training.mil.train import train_any
from clotkit.training.train import TrainSettings

from .feature_files import write_trident
from .mil_data import WIDTH, write_recipe, write_slides

FILES = ("model.weights.h5", "calibration.json", "metrics.json", "oof.csv", "history.csv", "split.csv", "README.md")


@pytest.fixture(scope="module", autouse=True)
def keras() -> None:
    start_keras()


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Recipe, Head]]:
    """Return a recipe and a head with random weights of each kind."""
    start_keras()
    import keras

    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("recipes")
    recipes = {name: load_recipe(write_recipe(folder / f"{name}.toml", name)) for name in HEADS}
    return {name: (recipe, build_head(recipe.model[0], WIDTH, 3)) for name, recipe in recipes.items()}


def rows_of(recipe: Recipe, head: Head, features: np.ndarray) -> np.ndarray:
    """Return the rows of tiles [n, D], as prediction makes them."""
    if recipe.model[0].name == "transformer":
        return features.astype(np.float16)
    return np.asarray(head.model(features.astype(np.float16).astype(np.float32)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tiles=st.integers(1, 40), name=st.sampled_from(HEADS))
def test_the_order_of_tiles_does_not_matter(
    heads: dict[str, tuple[Recipe, Head]], seed: int, tiles: int, name: str
) -> None:
    (recipe, head), rng = heads[name], np.random.default_rng(seed)
    features, order = rng.normal(size=(tiles, WIDTH)), rng.permutation(tiles)
    pooling, rows = pooling_of_heads(recipe, head.model, head.bag.output[0].shape[-1]), rows_of(recipe, head, features)
    p = pooling.pool(rows)
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    np.testing.assert_allclose(pooling.pool(rows[order]), p, atol=1e-5)
    attention = pooling.attention(rows)
    if attention is not None:
        assert attention.sum() == pytest.approx(1)
        turned = pooling.attention(rows[order])
        assert turned is not None
        np.testing.assert_allclose(turned, attention[order], atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_padded_bag_is_pooled_in_training_as_in_prediction(heads: dict[str, tuple[Recipe, Head]], name: str) -> None:
    recipe, head = heads[name]
    features = np.random.default_rng(2).normal(size=(2, 9, WIDTH)).astype(np.float16).astype(np.float32)
    mask = np.ones((2, 9), np.float32)
    mask[1, 4:] = 0
    p = np.asarray(head.bag({"features": features, "mask": mask})[0])
    pooling = pooling_of_heads(recipe, head.model, head.bag.output[0].shape[-1])
    for number, count in ((0, 9), (1, 4)):
        rows = rows_of(recipe, head, features[number, :count])
        np.testing.assert_allclose(pooling.pool(rows), p[number], atol=1e-5)
        one = pooling.tile_probabilities(rows)
        np.testing.assert_allclose(one[2], pooling.pool(rows[2:3]), atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_several_heads_are_averaged(heads: dict[str, tuple[Recipe, Head]], name: str) -> None:
    recipe, features = heads[name][0], np.random.default_rng(4).normal(size=(6, WIDTH)).astype(np.float16)
    several, model = build_heads(recipe, WIDTH, 3, 2)
    alone = [pooling_of_heads(recipe, one.model, 3).pool(rows_of(recipe, one, features)) for one in several]
    both = pooling_of_heads(recipe, model, 3)
    rows = features if name == "transformer" else np.asarray(model(features.astype(np.float32)))
    np.testing.assert_allclose(both.pool(rows), np.mean(alone, axis=0), atol=1e-5)


def test_a_transformer_pools_many_tiles_in_parts(heads: dict[str, tuple[Recipe, Head]]) -> None:
    recipe, head = heads["transformer"]
    pooling = pooling_of_heads(recipe, head.model, head.bag.output[0].shape[-1])
    rows = np.random.default_rng(5).normal(size=(BAG_TILES + 2, WIDTH)).astype(np.float16)
    parts = np.array_split(rows, 2)
    np.testing.assert_allclose(pooling.pool(rows), np.mean([pooling.pool(part) for part in parts], axis=0), atol=1e-6)
    attention = pooling.attention(rows)
    assert attention is not None
    assert len(attention) == len(rows)
    assert attention.sum() == pytest.approx(1)


def test_the_instance_loss_and_its_gradient() -> None:
    import tensorflow as tf

    rng = np.random.default_rng(6)
    logits, attention = rng.normal(size=(1, 6, 3)).astype(np.float32), np.array([[3, 1, 2, -1, -2, 9]], np.float32)
    mask, classes = np.array([[1, 1, 1, 1, 1, 0]], np.float32), np.array([[0, 1, 0]], np.float32)
    with tf.GradientTape() as tape:
        values = tf.constant(logits)
        tape.watch(values)
        loss = instance_loss(values, attention, mask, classes, 2)
    high, low = logits[0, [0, 2]].astype(float), logits[0, [4, 3]].astype(float)  # the padding's attention is ignored
    own = (np.log1p(np.exp(-high[:, 1])) + np.log1p(np.exp(low[:, 1]))) / 2
    expected = (own + np.log1p(np.exp(high[:, [0, 2]])).sum(axis=1)).mean() / 3
    assert float(loss[0]) == pytest.approx(expected, rel=1e-5)
    gradient = np.asarray(tape.gradient(loss, values))[0]  # [6, 3]
    assert (gradient[[0, 2], 1] < 0).all()
    assert (gradient[[3, 4], 1] > 0).all()
    assert (gradient[[0, 2]][:, [0, 2]] > 0).all()  # of no other class
    assert not gradient[[1, 5]].any()  # the middle and the padding


def test_the_instance_loss_of_few_tiles() -> None:
    mask = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], np.float32)
    logits, attention = np.full((3, 4, 2), 2.0, np.float32), np.tile(np.arange(4, dtype=np.float32), (3, 1))
    losses = np.asarray(instance_loss(logits, attention, mask, np.eye(2, dtype=np.float32)[[0, 1, 0]], 8))
    assert losses[0] == 0
    assert losses[1] > 0
    assert losses[2] == 0


@pytest.mark.parametrize(
    ("name", "bags"),
    [
        ("abmil", "patient"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("abmil", "slide"), ("clam", "slide"), ("clam", "patient"))
        ),
    ],
)
def test_attention_finds_the_planted_tile(
    slides: Path, strip_ai: Competition, tmp_path: Path, name: str, bags: str
) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.toml", name, mil=f'bags = "{bags}"'))
    read = read_features(recipe, slides, None, strip_ai, None, tmp_path, lambda _: None)
    head, _ = fit_head(recipe, read, read.where(np.zeros(len(read), bool)), 1, None, lambda epoch, logs: None)
    pooling, right, found = pooling_of_heads(recipe, head.model, head.bag.output[0].shape[-1]), 0, 0
    for number, label in enumerate(read.labels):
        file = open_features(slides / f"s{number:03}.h5")
        rows = rows_of(recipe, head, file.read())
        attention = pooling.attention(rows)
        assert attention is not None
        right += int(pooling.pool(rows).argmax() == label)
        found += int(label == 1 and attention.argmax() == number % file.count)
    assert right >= 22
    assert found >= 10


@pytest.mark.parametrize(
    ("name", "copies", "count"), [("mean_pool", 1, 24), pytest.param("abmil", 2, 96, marks=pytest.mark.soak)]
)
def test_a_member_is_trained_on_folds(
    strip_ai: Competition, tmp_path: Path, name: str, copies: int, count: int
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", name, model=f"copies = {copies}")
    slides = write_slides(tmp_path / "features", count)
    metrics = train_any(TrainSettings(str(recipe), slides, tmp_path / "m"), strip_ai, lambda _: None)
    assert name == "mean_pool" or metrics["auc"] > 0.8  # the mean of features hides one tile of twelve
    assert metrics["encoder"] == {"name": "x", "sha256": "1", "width": WIDTH}
    tiles = sum(open_features(path).count for path in slides.glob("*.h5"))
    assert metrics["material"] == {"patients": count // 2, "images": count, "tiles": tiles}
    oof = pd.read_csv(tmp_path / "m" / "oof.csv", dtype={"centre": str})
    assert set(oof["image"]) == {f"s{number:03}" for number in range(count)}
    assert set(oof["fold"]) == {0, 1}
    assert oof.groupby("patient")["fold"].nunique().max() == 1
    history = pd.read_csv(tmp_path / "m" / "history.csv")
    assert set(history["network"]) == set(range(copies))
    assert set(history["fold"].astype(str)) == {"0", "1", "all"}
    assert {path.name for path in (tmp_path / "m").iterdir()} >= {*FILES, "recipe.toml", "curves.png"}


class KilledError(Exception):
    """A fit that ends in the middle."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clam", pytest.param("transformer", marks=pytest.mark.soak)])
def test_a_killed_fit_resumes_as_if_it_had_not_been(
    slides: Path, strip_ai: Competition, tmp_path: Path, name: str
) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path / "r.toml", name, epochs=4, model="dropout = 0.3", mil="drop_tiles = 0.2")
    )
    read = read_features(recipe, slides, None, strip_ai, None, tmp_path, lambda _: None)
    train, validation = read.where(np.arange(24) < 16), read.where(np.arange(24) >= 16)

    def killed(epoch: int, logs: Any) -> None:
        if epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        fit_head(recipe, train, validation, 1, tmp_path / "a", killed)
    resumed = fit_head(recipe, train, validation, 1, tmp_path / "a", lambda epoch, logs: None)
    compiled: Compiled = {}  # a model that has been trained with another seed gives the same
    fit_head(recipe, train, validation, 2, None, lambda epoch, logs: None, compiled)
    whole = fit_head(recipe, train, validation, 1, tmp_path / "b", lambda epoch, logs: None, compiled)
    assert (tmp_path / "a" / "history.csv").read_text() == (tmp_path / "b" / "history.csv").read_text()
    for one, other in zip(resumed[0].bag.get_weights(), whole[0].bag.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_linear_solutions_are_minima() -> None:
    rng = np.random.default_rng(8)
    x, labels, weights = rng.normal(size=(30, 4)), rng.integers(0, 3, 30), rng.uniform(0.5, 2, 30)

    def logistic(kernel: np.ndarray, bias: np.ndarray) -> float:
        z = x @ kernel + bias
        losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(30), labels]
        return float(np.average(losses, weights=weights) + 0.1 * np.square(kernel).sum())

    def ridge(kernel: np.ndarray, bias: np.ndarray) -> float:
        errors = np.square(x @ kernel + bias - (2 * np.eye(3)[labels] - 1)).sum(axis=1)
        return float(np.average(errors, weights=weights) + 0.1 * np.square(kernel).sum())

    for solve, loss in ((solve_logistic, logistic), (solve_ridge, ridge)):
        kernel, bias = solve(x, labels, weights, 0.1)
        least = loss(kernel, bias)
        for _ in range(20):
            nearby = loss(kernel + 0.01 * rng.normal(size=kernel.shape), bias + 0.01 * rng.normal(size=3))
            assert nearby > least


def test_bags_with_fewer_tiles_than_the_instance_loss_takes_are_trained_on(
    strip_ai: Competition, tmp_path: Path
) -> None:
    """The folds differ in their largest bag, and share a compiled model."""
    rows = ["image_id,center_id,patient_id,image_num,label"]
    for number in range(12):
        count = 7 if number == 0 else 5
        features, corners = np.random.default_rng(number).normal(size=(count, 8)), np.zeros((count, 2))
        write_features(tmp_path / f"s{number:03}.h5", features, corners, {"encoder": "x", "encoder_sha256": "1"})
        rows.append(f"s{number:03},1,p{number:03},0,{'CE' if number % 2 else 'LAA'}")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    recipe = write_recipe(tmp_path / "r.toml", "clam", epochs=2)
    metrics = train_any(TrainSettings(str(recipe), tmp_path, tmp_path / "m"), strip_ai, lambda _: None)
    assert metrics["material"]["images"] == 12


def test_a_file_with_a_bad_row_costs_its_slide(strip_ai: Competition, tmp_path: Path) -> None:
    slides, lines = write_slides(tmp_path / "features", facts={"encoder": "uni"}), list[str]()
    bad = np.ones((6, 8), np.float32)
    bad[3, 2] = np.inf
    write_trident(slides / "s005.h5", bad, np.zeros((6, 2), np.int64))
    recipe = load_recipe(write_recipe(tmp_path / "r.toml", "abmil"))
    assert len(read_features(recipe, slides, None, strip_ai, None, tmp_path, lines.append)) == 23
    assert [line for line in lines if line.startswith("s005 ")]


def test_wrong_features_are_refused(slides: Path, strip_ai: Competition, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.toml", "abmil"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in [*slides.glob("*.h5")]:
        (bare / path.name).symlink_to(path)
    lines: list[str] = []

    def read(data: Path, split: Path | None = None, of: Recipe = recipe) -> int:
        return len(read_features(of, data, split, strip_ai, None, tmp_path, lines.append))

    with pytest.raises(SplitError, match="--split"):
        read(bare)
    assert read(bare, slides) == 24
    (bare / "s003.h5").unlink()
    (bare / "s004.h5").unlink()
    (bare / "s004.h5").write_bytes(b"no HDF5")
    assert read(bare, slides) == 22
    assert any("s003" in line for line in lines)
    assert any("s004" in line for line in lines)
    other = load_recipe(write_recipe(tmp_path / "o.toml", "abmil", encoder='x"\nsha256 = "2'))
    with pytest.raises(ConfigError, match="encoder"):
        read(slides, of=other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('[encoder]\nname = "x"\n', ""),
        ('name = "x"', 'name = ""'),
        ('name = "x"', 'name = "../x"'),
        ('name = "x"', 'name = "x.onnx"'),
        ('name = "abmil"', 'name = "cnn"'),
        ('name = "abmil"', 'name = "transformer"\nhead = []'),
        ('name = "abmil"', 'name = "mean_pool"'),
        ('name = "abmil"', 'name = "abmil"\nl2 = 0.1'),
        ("[mil]", "[inference]\ntta = 2\n[mil]"),
        ("bag_tiles = 24", "drop_tiles = 1.0"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, old: str, new: str) -> None:
    text = write_recipe(tmp_path / "r.toml", "abmil").read_text()
    assert old in text
    if "head = []" in new or "mean_pool" in new:
        text = text.replace("head = [8]\n", "")
    (tmp_path / "r.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("head", HEADS_COMPARED)
def test_compared_heads_are_recipes(tmp_path: Path, head: str) -> None:
    compared = Settings("drawn", tmp_path, "strip_ai", "breakhis", "x", tmp_path, 3)
    path = tmp_path / "head.toml"
    path.write_text(recipe_text(compared, head))
    recipe = load_recipe(path)
    assert recipe.encoder is not None
    assert recipe.tiling == load_recipe("breakhis").tiling
    assert recipe.training.folds == 3


def test_slides_that_failed_are_left_out(strip_ai: Competition, tmp_path: Path) -> None:
    folder, table = write_slides(tmp_path / "features"), tmp_path / "features" / "features.csv"
    labels = pd.read_csv(folder / "train.csv", dtype=str)
    rows = [
        ShardRow(image, patient, int(label == "LAA"), file=f"{image}.h5", tiles=6)
        for image, patient, label in zip(labels.image_id, labels.patient_id, labels.label, strict=True)
    ]
    rows[0] = replace(rows[0], file="", code=Reason.BAD_FEATURES)
    table.write_text(table_text(rows, strip_ai))
    stale = open_features(folder / "s000.h5")  # of another encoder, and the first by name
    write_features(stale.path, np.ones((4, WIDTH + 1)), np.zeros((4, 2)), {"encoder": "y", "encoder_sha256": "2"})
    recipe = load_recipe(write_recipe(tmp_path / "r.toml", "abmil"))
    for split in (None, folder):
        read = read_features(recipe, folder, split, strip_ai, None, tmp_path, lambda _: None)
        assert read.images.tolist() == [f"s{number:03}" for number in range(1, 24)]


def test_a_fingerprint_changes_with_the_features_of_other_tools(tmp_path: Path) -> None:
    def fingerprint(value: float) -> bytes:
        write_trident(tmp_path / "s.h5", np.full((9, 5), value, np.float32), np.zeros((9, 2), np.int64))
        return SlideFeatures((open_features(tmp_path / "s.h5"),)).fingerprint()

    assert fingerprint(1) == fingerprint(1) != fingerprint(2)


def test_features_of_another_tiling_are_refused(strip_ai: Competition, tmp_path: Path) -> None:
    text, rule = write_recipe(tmp_path / "r.toml", "abmil").read_text(), 'downsample_if = ["center_id = 1: 4"]'
    text = text.replace("downsample = 1", f"downsample = 1\n{rule}")
    lines: list[str] = []

    def read(data: Path, old: str = "", new: str = "") -> int:
        (tmp_path / "r.toml").write_text(text.replace(old, new))
        recipe = load_recipe(tmp_path / "r.toml")
        return len(read_features(recipe, data, None, strip_ai, None, tmp_path, lines.append))

    ours, theirs = write_slides(tmp_path / "ours"), write_slides(tmp_path / "theirs")
    assert read(ours) == 24
    assert any("24 slides" in line for line in lines)  # they state nothing
    tiling = load_recipe(write_recipe(tmp_path / "r.toml", "abmil")).tiling
    ruled = replace(tiling, downsample_if=("center_id = 1: 4",))
    for number in range(24):
        name = f"s{number:03}.h5"
        of_slide = tiling_for(ruled, {"center_id": str(number % 3)})
        write_features(ours / name, np.ones((2, WIDTH)), np.zeros((2, 2)), {TILING: tiling_text(of_slide)})
        write_trident(theirs / name, np.ones((2, WIDTH), np.float32), np.zeros((2, 2), np.int64), patch_px=32)
    lines.clear()
    assert read(ours) == read(ours, "batch_tiles = 8", "batch_tiles = 4") == 24
    for old, new in (("downsample = 1", "downsample = 2"), (rule, ""), ("max_tiles = 12", "max_tiles = 8")):
        with pytest.raises(ConfigError, match="tiling") as caught:
            read(ours, old, new)
        assert "\n" not in str(caught.value)
    assert read(theirs, f"downsample = 1\n{rule}", "downsample = 2") == 24
    assert len(lines) == 3  # the counts of tiles
    for old, new in ((rule, ""), ("tile_px = 32", "tile_px = 64")):
        with pytest.raises(ConfigError, match="tiling"):
            read(theirs, old, new)
