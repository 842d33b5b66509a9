"""Test heads of classes in order: links, losses and heat, and that networks learn the order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clotkit.batching import noise
from clotkit.config import AugmentConfig, InferenceConfig, ModelConfig, Recipe, TilingConfig, TrainingConfig, loss_of
from clotkit.data.tiles import TileSet
from clotkit.members.folder import WEIGHTS
from clotkit.members.heads import item_loss, link
from clotkit.members.heat import class_scores
from clotkit.members.loading import load_networks
from clotkit.members.networks import Network, build_network
from clotkit.members.pooling import linked, pool_attention, pooled, tile_probabilities
from clotkit.members.predict import predict_committee
from clotkit.members.weights import check_outputs
from clotkit.training.devices import DistributedContext
from clotkit.training.fit import fit
from clotkit.training.frozen import FrozenFeatures, bag_model
from clotkit.training.member_folder import write_weights

CLASSES, SLIDES, TILES, SIDE = 4, 16, 3, 16
ORDERED = ("ordinal", "value")
finite = st.floats(-40, 40)


def recipe_of(output: str, pool: str, **training: Any) -> Recipe:
    """Return the recipe of a small network, whose backbone counts as frozen."""
    model = ModelConfig("cnn", filters=(4,), standardise=True, output=output, attention_units=4)
    config = TrainingConfig(seed=1, epochs=8, batch_tiles=2, learning_rate=0.1, **training)
    plain = AugmentConfig(rotate_flip=False, channel_gain=0.0)
    tiling = TilingConfig("patches", SIDE, downsample=1, max_tiles=TILES, batch_tiles=8)
    return Recipe("ordered", tiling, (model,), config, augment=plain, inference=InferenceConfig(pooling=pool))


def ordered_tiles() -> TileSet:
    """Return slides of some tiles each, whose class is their brightness."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(SLIDES) % CLASSES, TILES)
    levels = 20 + 25 * labels + rng.normal(0, 3, len(labels))
    pixels = levels[:, None, None, None] + rng.normal(0, 5, (len(labels), SIDE, SIDE, 3))
    names = np.repeat([f"s{number}" for number in range(SLIDES)], TILES)
    none = np.full(len(labels), "")
    tiles = np.clip(pixels, 0, 255).astype(np.uint8)
    return TileSet(tiles, labels.astype(np.int64), names, names, none, none, tuple("0123"))


def trained(recipe: Recipe, folder: Path, context: DistributedContext | None = None) -> Network:
    import keras

    keras.utils.set_random_seed(1)
    tiles, network = ordered_tiles(), build_network(recipe.model[0], SIDE, CLASSES, recipe.inference.pooling)
    features = np.asarray(network.features(tiles.tiles.astype(np.float32)), np.float32)
    frozen = (FrozenFeatures(features[None], features[None]),) * 2
    fit(network, tiles, tiles, recipe, seed=1, checkpoints_dir=folder, frozen_features=frozen, context=context)
    return network


def probabilities_of(network: Network, recipe: Recipe) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the probabilities of the slides [slides, C], and their classes."""
    tiles = ordered_tiles()
    rows = predict_committee([network], tiles.tiles, recipe, 64).reshape(SLIDES, TILES, -1)
    assert check_outputs(rows.reshape(SLIDES * TILES, -1), recipe.inference.pooling == "mean") == ""
    p = np.array([pooled(slide, recipe.inference.pooling, recipe.output) for slide in rows])
    return p, tiles.labels[::TILES]


def expected(p: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(p @ np.arange(p.shape[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "pool"),
    [
        ("ordinal", "attention"),
        ("value", "mean"),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in (("ordinal", "mean"), ("ordinal", "logits"), ("value", "attention"))
        ),
    ],
)
def test_a_small_network_learns_the_order_and_loads_again(output: str, pool: str, tmp_path: Path) -> None:
    recipe = recipe_of(output, pool)
    network = trained(recipe, tmp_path / "checkpoints")
    p, labels = probabilities_of(network, recipe)
    assert (p >= 0).all()
    assert p.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert (np.diff(p[:, ::-1].cumsum(axis=1)[:, ::-1]) <= 1e-6).all()  # P(y >= k) falls with k
    assert np.abs(expected(p) - labels).mean() < 0.5
    means = [expected(p)[labels == label].mean() for label in range(CLASSES)]
    assert (np.diff(means) > 0.1).all()
    write_weights(tmp_path / WEIGHTS, recipe, [[network]], CLASSES)
    (loaded,), _ = load_networks(tmp_path, recipe, CLASSES, 1)
    again, _ = probabilities_of(loaded, recipe)
    assert again == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("output", ["softmax", *ORDERED])
def test_bags_are_pooled_in_training_as_in_prediction(output: str) -> None:
    network = build_network(ModelConfig("cnn", filters=(4,), output=output), SIDE, CLASSES, "attention")
    rng = np.random.default_rng(3)
    network.model.set_weights([rng.normal(0, 0.5, value.shape) ** 2 for value in network.model.get_weights()])
    tiles = noise(SIDE, 5).astype(np.float32)
    features = np.asarray(network.features(tiles))
    bag = np.asarray(bag_model(network)(features[None]))[0]
    assert bag == pytest.approx(pool_attention(np.asarray(network.model(tiles)), output), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("output", ORDERED)
def test_a_strategy_trains_as_keras_does(output: str, tmp_path: Path) -> None:
    import tensorflow as tf

    settings = {"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 1.0, 1.0)}
    recipe = recipe_of(output, "mean", **settings)
    recipe = replace(recipe, training=replace(recipe.training, epochs=2))
    alone = probabilities_of(trained(recipe, tmp_path / "alone"), recipe)[0]
    context = DistributedContext(tf.distribute.OneDeviceStrategy("/cpu:0"))
    spread = probabilities_of(trained(recipe, tmp_path / "spread", context), recipe)[0]
    assert spread == pytest.approx(alone, abs=2e-3)


@settings(deadline=None, max_examples=60)
@given(st.lists(finite, min_size=1, max_size=9))
def test_cumulative_logits_in_order_give_probabilities(logits: list[float]) -> None:
    values = np.array([*sorted(logits, reverse=True), 0.0])
    p = linked(values, "ordinal")
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1)
    above = 1 / (1 + np.exp(-values[:-1]))
    assert p[::-1].cumsum()[::-1][1:] == pytest.approx(above)
    assert np.asarray(link(values.astype(np.float32), "ordinal")) == pytest.approx(p, abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(finite, st.integers(2, 9))
def test_a_value_is_the_expectation_of_the_two_classes_beside_it(logit: float, classes: int) -> None:
    values = np.array([logit] + [0.0] * (classes - 1))
    p = linked(values, "value")
    value = (classes - 1) / (1 + np.exp(-logit))
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(1)
    assert expected(p) == pytest.approx(value, abs=1e-9)
    assert set(np.flatnonzero(p > 1e-9)) <= {int(np.floor(value)), int(np.ceil(value))}
    assert np.asarray(link(values.astype(np.float32), "value")) == pytest.approx(p, abs=1e-5)


def test_a_fresh_ordinal_head_favours_no_class_and_never_leaves_the_order() -> None:
    network = build_network(ModelConfig("cnn", filters=(4,), output="ordinal"), SIDE, 5)
    layer = network.head.get_layer("cumulative")
    assert np.asarray(link(layer(np.zeros((1, 1), np.float32)), "ordinal")) == pytest.approx(np.full((1, 5), 0.2))
    layer.set_weights([np.array([1.0, -9, 3, -30], np.float32)])
    assert (np.diff(np.asarray(layer(np.zeros((1, 1), np.float32)))[0, :4]) <= 0).all()


def test_losses_of_classes_in_order() -> None:
    classes = np.eye(3, dtype=np.float32)[[0, 2]]
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32)
    ordinal = [-np.log(1 - 0.5) - np.log(1 - 0.2), -np.log(0.9) - np.log(0.7)]
    assert np.asarray(item_loss("ordinal", 0.0)(classes, p)) == pytest.approx(ordinal, rel=1e-5)
    assert np.asarray(item_loss("squared", 0.0)(classes, p)) == pytest.approx([0.7**2, 0.4**2], rel=1e-5)
    assert np.asarray(item_loss("squared", 0.3)(classes, p)) == pytest.approx([0.4**2, 0.1**2], rel=1e-4)
    config = TrainingConfig(seed=1, epochs=1, batch_tiles=1, learning_rate=1)
    assert [loss_of(config, output) for output in ("softmax", *ORDERED)] == ["categorical", "ordinal", "squared"]
    assert loss_of(replace(config, loss="binary"), "ordinal") == "binary"


def test_heat_is_of_what_raises_the_class() -> None:
    rows = np.array([[0.7, 0.1, 0.0, 5.0]], np.float32)
    assert np.asarray(class_scores(rows, "ordinal", rows=True)) == pytest.approx(np.array([[-0.7, 0.7, 0.7]]))
    p = linked(rows[:, :-1].astype(np.float64), "value").astype(np.float32)
    assert np.asarray(class_scores(p, "value", rows=False)) == pytest.approx(np.array([[-0.7, 0.7, 0.7]]), abs=1e-5)
    assert np.asarray(class_scores(rows, "softmax", rows=True)) == pytest.approx(rows[:, :-1])


def test_tiles_have_probabilities_of_their_own() -> None:
    rows = np.array([[2.0, 1.0, 0.0, 9.0], [-2.0, -3.0, 0.0, 1.0]])
    p = tile_probabilities(rows, "attention", "ordinal")
    assert p.argmax(axis=1).tolist() == [2, 0]
    assert p.sum(axis=1) == pytest.approx(1)
