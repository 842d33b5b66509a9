"""Test that every network builds, scales pixels, freezes, names and shares its layers as it should."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clotkit.batching import noise
from clotkit.config import ModelConfig
from clotkit.errors import ConfigError
from clotkit.members.networks import MODEL_REGISTRY, Network, build_committee, build_network
from clotkit.members.pooling import pool_attention, pool_logits
from clotkit.members.weights import check_loaded, pack_weights
from clotkit.training.frozen import set_standardisation

from .conftest import ROOT

SIDES = {"inceptionv3": 75}
PARAMETERS = {  # without the classifier, as keras.applications' documentation and summaries have them
    "resnet50": 23_587_712,
    "resnet101": 42_658_176,
    "vgg16": 14_714_688,
    "vgg19": 20_024_384,
    "inceptionv3": 21_802_784,
    "efficientnetb0": 4_049_571,
    "efficientnetb1": 6_575_239,
    "efficientnet_lite0": 3_413_024,
}


def config(name: str, **settings: Any) -> ModelConfig:
    has_filters = name in MODEL_REGISTRY and MODEL_REGISTRY[name].backbone is None
    return replace(ModelConfig(name, filters=(4, 8) if has_filters else ()), **settings)


def output(model: Any, tiles: np.ndarray) -> np.ndarray:
    """Return the output of a model, called directly to save the seconds of compiling predict."""
    return np.asarray(model(tiles.astype(np.float32), training=False))


def cnn(side: int = 16, classes: int = 3, pool: str = "mean", **settings: object) -> Network:
    return build_network(config("cnn", **settings), side, classes, pool)


def randomise(model: Any, seed: int = 1) -> None:
    """Set every weight to a random value: fresh networks have biases of 0 and statistics of 0 and 1."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0.1, 0.3, value.shape) ** 2 for value in model.get_weights()])


@pytest.mark.parametrize("name", MODEL_REGISTRY)
def test_every_network_gives_probabilities_and_has_the_published_size(name: str) -> None:
    side = SIDES.get(name, 32)
    network = build_network(config(name, head=(8,), dropout=0.2), side, 2)
    tiles = noise(side, 2)
    p = output(network.model, tiles)
    assert p.shape == (2, 2)
    assert p.dtype == np.float32
    assert p.sum(axis=1) == pytest.approx(1, abs=1e-5)
    features = output(network.features, tiles)
    assert network.maps.output.shape[1:3] == network.maps.output.shape[2:0:-1]
    assert output(network.head, features) == pytest.approx(p, abs=1e-5)
    if name in PARAMETERS:
        assert network.features.count_params() == PARAMETERS[name]
        width = features.shape[1]
        assert network.head.count_params() == width * 8 + 8 + 4 * 8 + 8 * 2 + 2
    assert not [layer.name for layer in network.model.layers if "random" in type(layer).__name__.lower()]


def scaled(network: Network, tiles: np.ndarray) -> np.ndarray:
    """Return the pixels as the first convolution or the backbone gets them."""
    import keras

    model = network.maps
    backbone = model.layers[-1] if isinstance(model.layers[-1], keras.Model) else None
    if backbone is not None and backbone.name.startswith("efficientnetb"):
        return np.asarray(keras.Model(backbone.input, backbone.layers[2].output)(tiles.astype(np.float32)))
    layer = model.get_layer("scale")
    return np.asarray(keras.Model(model.input, layer.output)(tiles.astype(np.float32)))


@pytest.mark.parametrize(
    ("name", "module"),
    [("resnet50", "resnet"), ("vgg16", "vgg16"), ("inceptionv3", "inception_v3"), ("cnn", "inception_v3")],
)
def test_pixels_are_scaled_as_keras_scales_them(name: str, module: str) -> None:
    import keras

    side = SIDES.get(name, 32)
    tiles = noise(side, 2)
    wanted = getattr(keras.applications, module).preprocess_input(tiles.astype(np.float32))
    assert scaled(build_network(config(name), side, 2), tiles) == pytest.approx(wanted, abs=1e-4)


def test_pixels_are_scaled_as_the_other_originals_scale_them() -> None:
    tiles = noise(32, 2).astype(np.float64)
    lite0 = scaled(build_network(config("efficientnet_lite0"), 32, 2), tiles)
    assert lite0 == pytest.approx((tiles - 127) / 128, abs=1e-6)
    assert scaled(build_network(config("cnn_flat"), 32, 2), tiles) == pytest.approx(tiles / 255, abs=1e-6)
    wanted = (tiles / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert scaled(build_network(config("efficientnetb0"), 32, 2), tiles) == pytest.approx(wanted, abs=1e-5)


def test_tiles_of_another_side_are_resized_with_antialiasing() -> None:
    plain, resizing = cnn(16), cnn(64, input_px=16)
    resizing.model.set_weights(plain.model.get_weights())
    tiles = np.repeat(np.repeat(noise(16, 2), 4, axis=1), 4, axis=2)
    small = np.asarray(resizing.model.get_layer("resize")(tiles.astype(np.float32)))
    assert output(resizing.model, tiles) == pytest.approx(output(plain.model, small), abs=1e-5)
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * np.float32(255)
    grey = np.asarray(resizing.model.get_layer("resize")(np.stack([checkers] * 3, axis=-1)[None]))
    assert grey[:, 2:-2, 2:-2] == pytest.approx(127.5, abs=2)  # without antialiasing: 0 or 255


def test_blocks_pool_while_the_map_stays_at_least_two_wide() -> None:
    assert cnn(16, filters=(4, 4, 4)).maps.output.shape == (None, 2, 2, 4)
    assert cnn(16, filters=(4, 4, 4, 4, 6)).maps.output.shape == (None, 2, 2, 6)
    two = cnn(16, filters=(4, 6), convolutions=2)
    assert two.features.count_params() == 9 * (3 * 4 + 4 * 4 + 4 * 6 + 6 * 6) + 4 * (4 + 4 + 6 + 6)


def test_residual_stages_halve_the_map_and_project_shortcuts_of_another_shape() -> None:
    network = build_network(config("resnet", filters=(4, 4, 6), convolutions=2), 28, 3)
    assert network.maps.output.shape == (None, 7, 7, 6)
    stem, first = 9 * 3 * 4 + 16, 4 * (9 * 4 * 4 + 16)
    second = first + 4 * 4 + 16  # the halved map is projected
    third = 9 * (4 * 6 + 3 * 6 * 6) + 4 * 6 * 4 + 4 * 6 + 24
    assert network.features.count_params() == stem + first + second + third
    assert build_network(config("resnet", filters=(4,) * 6), 16, 2).maps.output.shape == (None, 2, 2, 4)
    assert not [weight.path for weight in network.features.weights if "bias" in weight.path]


def test_a_residual_block_passes_its_input_on() -> None:
    """With convolutions of 0 in its branch, a block without projection is the ReLU of its input."""
    network = build_network(config("resnet", filters=(4,)), 16, 2)
    before = np.asarray(layer_output(network, "stem_relu", noise(16, 2)))
    layer = network.maps.get_layer("stage0_0_1_conv")
    layer.set_weights([np.zeros_like(value) for value in layer.get_weights()])
    assert output(network.maps, noise(16, 2)) == pytest.approx(before, abs=1e-6)
    assert before.max() > 0


def layer_output(network: Network, name: str, tiles: np.ndarray) -> Any:
    import keras

    model = network.maps
    return keras.Model(model.input, model.get_layer(name).output)(tiles.astype(np.float32))


def test_the_shipped_member_s_weights_fit_the_cnn() -> None:
    network = build_network(ModelConfig("cnn", filters=(16, 32, 64), dropout=0.3), 128, 2)
    network.model.load_weights(ROOT / "weights" / "demo" / "model.weights.h5")
    assert output(network.model, noise(128, 2)).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_frozen_backbone_has_nothing_to_train_but_the_head() -> None:
    network = build_network(config("efficientnet_lite0", freeze=True, head=(8,)), 32, 2)
    assert network.features.trainable_weights == []
    assert len(network.model.trainable_weights) == 2 + 2 + 2  # dense, batch normalisation, dense


def test_unfrozen_layers_are_the_top_ones_without_batch_normalisation() -> None:
    network = build_network(config("efficientnet_lite0", freeze=True, unfreeze_top=3), 32, 2)
    backbone = network.maps.layers[-1]
    opened = [layer.name for layer in backbone.layers if layer.trainable_weights]
    assert opened == ["block15_depthwise", "block15_project", "head"]
    assert len(network.features.trainable_weights) == 3
    assert len(network.model.trainable_weights) == 3 + 2


def test_half_weights_halve_the_file_and_lose_nothing(tmp_path: Path) -> None:
    half = config("efficientnet_lite0", freeze=True, half_weights=True)
    network, path = build_network(half, 32, 2), tmp_path / "half.weights.h5"
    network.model.save_weights(path)
    full_bytes = path.stat().st_size
    pack_weights(path)
    assert path.stat().st_size < 0.5 * full_bytes
    loaded = build_network(half, 32, 2)
    loaded.model.load_weights(path)
    check_loaded(path, loaded.model, [loaded.features, loaded.head])
    for ours, theirs in zip(network.model.get_weights(), loaded.model.get_weights(), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        assert np.array_equal(ours, theirs)
    whole = build_network(replace(half, half_weights=False), 32, 2)
    whole.model.save_weights(path)
    pack_weights(path)  # numbers that half precision lacks stay as they are
    assert path.stat().st_size > 0.8 * full_bytes


@pytest.mark.parametrize("opened", [0, 2])
def test_training_changes_neither_statistics_nor_features_of_a_frozen_backbone(opened: int) -> None:
    network = build_network(config("efficientnetb0", freeze=True, unfreeze_top=opened), 32, 2)
    tiles = noise(32, 4)
    before = network.features.get_weights()
    trained = np.asarray(network.features(tiles.astype(np.float32), training=True))
    assert np.array_equal(trained, output(network.features, tiles))
    for ours, theirs in zip(before, network.features.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_training_changes_the_statistics_when_nothing_is_frozen() -> None:
    network = build_network(config("efficientnet_lite0"), 32, 2)
    norm = network.maps.layers[-1].get_layer("head_bn")
    before = np.asarray(norm.moving_variance)
    network.model(noise(32, 4).astype(np.float32), training=True)
    assert not np.array_equal(before, np.asarray(norm.moving_variance))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "cnn",
        *(pytest.param(one, marks=pytest.mark.soak) for one in ("inceptionv3", "efficientnetb0")),
        "efficientnet_lite0",
    ],
)
def test_two_builds_have_the_same_names_and_load_each_other_s_weights(name: str, tmp_path: Path) -> None:
    side = SIDES.get(name, 32)
    one, two = (build_network(config(name, head=(8,)), side, 2) for _ in range(2))
    assert names(one.model) == names(two.model)
    one.model.save_weights(tmp_path / "one.weights.h5")
    two.model.load_weights(tmp_path / "one.weights.h5")
    for ours, theirs in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    tiles = noise(side, 2)
    assert np.array_equal(output(one.model, tiles), output(two.model, tiles))


def names(model: Any) -> list[str]:
    """Return the names of a model's layers and of the layers inside them."""
    return [name for layer in model.layers for name in (layer.name, *names(layer))] if hasattr(model, "layers") else []


def test_a_committee_is_the_mean_weighted_by_shares_and_loads_as_one(tmp_path: Path) -> None:
    configs = (config("cnn", share=3.0, copies=2), config("cnn_flat", share=2.0))
    networks, model = build_committee(configs, 32, 2)
    assert len(networks) == 3
    randomise(model)
    tiles = noise(32, 4)
    p = output(model, tiles)
    one, two, three = (output(network.model, tiles) for network in networks)
    assert not np.allclose(one, two, atol=1e-3)
    assert p == pytest.approx((3 * one + 3 * two + 2 * three) / 8, abs=1e-6)
    model.save_weights(tmp_path / "m.weights.h5")
    _, again = build_committee(configs, 32, 2)
    again.load_weights(tmp_path / "m.weights.h5")
    assert np.array_equal(output(again, tiles), p)
    assert names(model) == names(again)


def test_a_committee_of_one_is_that_network() -> None:
    networks, model = build_committee([config("cnn")], 16, 2, "attention")
    assert len(networks) == 1
    assert model is networks[0].model


def test_attention_rows_give_what_gated_attention_over_the_features_gives() -> None:
    network = cnn(16, 3, "attention", attention_units=5)
    randomise(network.model)
    tiles = noise(16, 6)
    rows = output(network.model, tiles)
    assert rows.shape == (6, 4)
    h = output(network.features, tiles).astype(np.float64)
    w, b = (np.asarray(value, np.float64) for value in network.head.get_layer("classes").get_weights())
    v, v0 = network.head.get_layer("attention_v").get_weights()
    u, u0 = network.head.get_layer("attention_u").get_weights()
    (weight,) = network.head.get_layer("attention_w").get_weights()
    attention = (np.tanh(h @ v + v0) / (1 + np.exp(-(h @ u + u0)))) @ weight  # [n, 1]
    shares = np.exp(attention) / np.exp(attention).sum()
    pooled = (shares * h).sum(axis=0)  # [D]: the slide's one feature
    logits = pooled @ w + b
    assert np.ptp(shares) > 1e-4
    assert pool_logits(rows) == pytest.approx(logits, abs=1e-4)
    assert pool_attention(rows) == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-4)


def test_rows_of_logits_pooling_give_the_logits_of_the_standardised_mean_feature() -> None:
    network = cnn(16, 3, "logits", standardise=True, l2=2.0)
    randomise(network.model)
    tiles = noise(16, 6)
    features = output(network.features, tiles).astype(np.float64)
    set_standardisation(network, features.astype(np.float32), ["a", "a", "a", "a", "b", "b"])
    means = np.array([features[:4].mean(axis=0), features[4:].mean(axis=0)])
    w, b = (np.asarray(value, np.float64) for value in network.head.get_layer("classes").get_weights())
    scaled = (means[0] - means.mean(axis=0)) / np.sqrt(means.var(axis=0) + 1e-3)
    rows = output(network.model, tiles[:4])
    rows = np.column_stack([rows[:, :-1], np.zeros(4)])  # the zero attention was randomised as well
    assert pool_logits(rows) == pytest.approx(scaled @ w + b, abs=1e-3)
    assert float(sum(network.head.losses)) == pytest.approx(2 * (w**2).sum(), rel=1e-4)
    assert not network.head.get_layer("standardise").trainable_weights


def test_features_far_from_those_of_training_are_shrunk_to_no_answer() -> None:
    network = cnn(16, 3, "logits", standardise=True, shrink_novel=True)
    width = network.features.output.shape[-1]
    rng = np.random.default_rng(1)
    known = rng.normal(size=(400, width)).astype(np.float32)
    set_standardisation(network, known, [str(number) for number in range(400)])
    network.head.get_layer("classes").set_weights([rng.normal(size=(width, 3))])
    near, far, farther = (np.linalg.norm(output(network.head, known * times)[:, :3]) for times in (1, 10, 100))
    assert near > 10 * far
    assert far == pytest.approx(farther * 10**3, rel=0.1)  # ten times the feature, over ten to the fourth power
    assert not network.head.get_layer("shrink_novel").trainable_weights


def test_the_flat_network_s_one_unit_gives_both_probabilities() -> None:
    network = build_network(config("cnn_flat", filters=(4, 6)), 28, 2)
    assert network.maps.output.shape == (None, 5, 5, 6)
    assert network.features.output.shape == (None, 150)
    assert network.head.count_params() == 151


def test_half_precision_gives_rows_that_sum_to_one() -> None:
    import keras

    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = build_network(config("efficientnetb0", head=(8,)), 32, 2)
    finally:
        keras.config.set_dtype_policy("float32")
    p = output(network.model, noise(32, 3))
    assert p.dtype == np.float32
    assert p.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert network.maps.layers[-1].compute_dtype == "float16"


@pytest.mark.parametrize(
    ("settings", "side", "classes", "message"),
    [
        ({"name": "resnet49"}, 32, 2, "resnet49.*cnn, cnn_flat, eff"),
        ({"freeze": True}, 32, 2, "freeze"),
        ({"weights": "imagenet"}, 32, 2, "imagenet"),
        ({"filters": ()}, 32, 2, "filters"),
        ({"name": "vgg16", "unfreeze_top": 2}, 32, 2, "unfreeze_top"),
        ({"name": "vgg16", "freeze": True, "unfreeze_top": 14}, 32, 2, "14.*13"),
        ({"name": "vgg16", "half_weights": True}, 32, 2, "half_weights"),
        ({"name": "vgg16", "freeze": True, "unfreeze_top": 1, "half_weights": True}, 32, 2, "half_weights"),
        ({"name": "inceptionv3"}, 64, 2, "64.*75"),
        ({"name": "inceptionv3", "input_px": 74}, 96, 2, "74.*75"),
        ({"name": "cnn_flat"}, 32, 3, "3 classes"),
        ({"name": "cnn_flat"}, 8, 2, "the map is 3 px before block 2 of 2"),
        ({"name": "vgg16", "weights": "imagenet"}, 32, 2, "vgg16_weights"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, Any], side: int, classes: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_network(config(**{"name": "cnn"} | settings), side, classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("shares", "pool"), [((1.0, 1.0), "attention"), ((0.0, 0.0), "mean"), ((), "mean")])
def test_impossible_committees_are_refused(shares: tuple[float, ...], pool: str) -> None:
    with pytest.raises(ConfigError, match=str(len(shares))):
        build_committee([config("cnn", share=share) for share in shares], 16, 2, pool)


def test_a_backbone_ends_at_the_last_layer() -> None:
    config = ModelConfig("efficientnet_lite0", freeze=True, last_layer="block10_add")
    network, whole = build_network(config, 64, 2), build_network(replace(config, last_layer=""), 64, 2)
    assert network.maps.output.shape == (None, 4, 4, 112)
    assert network.model.count_params() < whole.model.count_params() / 4
    tiles = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    assert network.model.predict_on_batch(tiles).shape == (2, 2)
    with pytest.raises(ConfigError, match=r"block99_add.*block10_add"):
        build_network(replace(config, last_layer="block99_add"), 64, 2)
    with pytest.raises(ConfigError, match="last_layer"):
        build_network(ModelConfig("cnn", filters=(4,), last_layer="block0_relu"), 64, 2)
