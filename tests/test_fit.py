"""Test optimizers, schedules and averaged weights by the steps that a fit makes."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clotkit.competitions import Competition
from clotkit.config import ModelConfig, Recipe, load_recipe
from clotkit.data.sources import read_source
from clotkit.data.tiles import TileSet
from clotkit.members.networks import Network, build_network
from clotkit.training.devices import training_scope
from clotkit.training.fit import fit
from clotkit.training.frozen import FrozenFeatures

from .test_train import colours

Weights = list[np.ndarray]
Inputs = tuple[Recipe, TileSet, TileSet]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory, strip_ai: Competition) -> Inputs:
    """Return a recipe without augmentation, 40 tiles to train on, of one batch, and 16 for validation."""
    folder = tmp_path_factory.mktemp("colours")
    recipe = load_recipe(colours(folder))
    plain = replace(recipe.augment, rotate_flip=False, shift=0.0, channel_gain=0.0)
    training = replace(recipe.training, batch_tiles=40, keep="last", schedule="constant", epochs=4)
    tiles = read_source(recipe, folder / "colours.npz", strip_ai, None, lambda _: None)
    recipe = replace(recipe, augment=plain, training=training, model=(ModelConfig("cnn", filters=(4,)),))
    return recipe, tiles.where(tiles.parts == "train"), tiles.where(tiles.parts == "val")


def initial(recipe: Recipe) -> Network:
    import keras

    keras.utils.set_random_seed(1)
    return build_network(recipe.model[0], recipe.tiling.tile_px, 2)


def fitted(
    read: Inputs, folder: Path, features: tuple[FrozenFeatures, FrozenFeatures] | None = None, **training: Any
) -> tuple[Network, pd.DataFrame, list[Weights]]:
    """Return a fitted network, its history, and the weights after every epoch, which is one step."""
    recipe = replace(read[0], training=replace(read[0].training, **training))
    steps: list[Weights] = []
    with training_scope():
        network = initial(recipe)
        history = fit(
            network, *read[1:], recipe, seed=1, checkpoints_dir=folder, frozen_features=features,
            on_epoch=lambda epoch, logs: steps.append(trained_weights(network)),
        )  # fmt: skip
    return network, history, steps


def trained_weights(network: Network) -> Weights:
    return [np.array(variable) for variable in network.model.trainable_variables]


@pytest.fixture(scope="module")
def plain(read: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, list[Weights]]:
    """Return the history and the weights of a fit by the defaults."""
    return fitted(read, tmp_path_factory.mktemp("plain"))[1:]


def assert_averaged(network: Network, steps: list[Weights], ema: float) -> None:
    """Assert that a network has the averages of the weights of these steps."""
    average = steps[0]
    for number, weights in enumerate(steps[1:], start=1):
        decay = min(ema, number / (9 + number))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights, strict=True)]
    for found, wanted in zip(trained_weights(network), average, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert max(np.abs(one - other).max() for one, other in zip(average, steps[-1], strict=True)) > 1e-4


def test_averaged_weights_are_validated_and_kept_and_training_continues_from_the_raw_ones(
    read: Inputs, plain: tuple[pd.DataFrame, list[Weights]], tmp_path: Path
) -> None:
    network, history, steps = fitted(read, tmp_path, ema=0.2)
    for found, wanted in zip(steps[-1], plain[1][-1], strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    pd.testing.assert_series_equal(history["loss"], plain[0]["loss"], atol=1e-4)
    assert_averaged(network, steps, 0.2)
    probabilities = np.asarray(network.model.predict_on_batch(read[2].tiles))
    loss = -np.log(probabilities[np.arange(16), read[2].labels]).mean()
    assert history["val_loss"].iloc[-1] == pytest.approx(loss, abs=1e-4)
    assert history["val_loss"].iloc[-1] != pytest.approx(plain[0]["val_loss"].iloc[-1], abs=1e-4)


def test_a_head_over_features_is_averaged_and_sees_mixed_features(read: Inputs, tmp_path: Path) -> None:
    mixed = replace(read[0], augment=replace(read[0].augment, mixup=0.4))
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(len(part), 4)).astype(np.float32) for part in read[1:]]
    train, validation = (FrozenFeatures(array[None], array[None]) for array in arrays)
    losses: list[float] = []
    for name, recipe in (("plain", read[0]), ("mixed", mixed)):
        network, history, steps = fitted((recipe, *read[1:]), tmp_path / name, (train, validation), ema=0.2)
        assert_averaged(network, steps, 0.2)
        losses.append(history["loss"].iloc[0])
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)


def test_the_learning_rate_rises_before_it_falls(read: Inputs, tmp_path: Path) -> None:
    _, history, _ = fitted(read, tmp_path, schedule="cosine", learning_rate=0.1, warmup_epochs=2)
    np.testing.assert_allclose(history["learning_rate"], [0.05, 0.1, 0.05, 0], atol=1e-6)


def test_adam_is_adamw_without_decay_and_rmsprop_another(
    read: Inputs, plain: tuple[pd.DataFrame, list[Weights]], tmp_path: Path
) -> None:
    adam, rmsprop = (fitted(read, tmp_path / name, optimizer=name)[1] for name in ("adam", "rmsprop"))
    pd.testing.assert_frame_equal(adam, plain[0], atol=1e-5)
    assert rmsprop["loss"].iloc[-1] < rmsprop["loss"].iloc[0]
    assert rmsprop["loss"].iloc[-1] != pytest.approx(adam["loss"].iloc[-1], abs=1e-5)


def test_sgd_has_momentum_and_decoupled_weight_decay(read: Inputs, tmp_path: Path) -> None:
    """The first step of two runs differs by rate * decay * initial weights, the second one by momentum."""
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e-3, "epochs": 2}
    slow, decayed, fast = (
        fitted(read, tmp_path / str(number), momentum=momentum, weight_decay=decay, **settings)[2]
        for number, (momentum, decay) in enumerate([(0.0, 0.0), (0.0, 0.5), (0.9, 0.0)])
    )
    network = initial(read[0])
    for start, one, other, third in zip(trained_weights(network), slow[0], decayed[0], fast[0], strict=True):
        np.testing.assert_allclose(one - other, 1e-3 * 0.5 * start, atol=1e-7)
        np.testing.assert_allclose(third, one, atol=1e-7)
    steps = [max(np.abs(two - one).max() for one, two in zip(*run, strict=True)) for run in (slow, fast)]
    assert 1.7 < steps[1] / steps[0] < 2.1


def test_the_tiles_of_a_fit_are_let_go_when_it_ends(read: Inputs, tmp_path: Path) -> None:
    """TensorFlow keeps what a dataset's functions hold until the process ends."""
    pixels = read[1].tiles.copy()
    alive = weakref.ref(pixels)
    fitted((read[0], replace(read[1], tiles=pixels), read[2]), tmp_path)
    del pixels
    gc.collect()
    assert alive() is None
