"""Test Grad-CAM on networks with hand-set weights that detect brightness, and against its formula."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clotkit.errors import UsageError
from clotkit.members.heat import heat_maps, overlay
from clotkit.members.loading import start_keras

SIZE = 32
QUADRANTS = [(0, 0), (0, 16), (16, 0), (16, 16)]
Parts = tuple[Any, Callable[[Any], Any]]


def blobs() -> np.ndarray:
    """Return one dark tile per quadrant, with a bright blob of 8 x 8 in the middle of that quadrant."""
    tiles = np.full((4, SIZE, SIZE, 3), 20, np.uint8)
    for tile, (top, left) in zip(tiles, QUADRANTS, strict=True):
        tile[top + 4 : top + 12, left + 4 : left + 12] = 240
    return tiles


@pytest.fixture(scope="module")
def brightness_network() -> Parts:
    """Return a convolution with a map of brightness and one of darkness, and a head: class 1 is bright."""
    start_keras()
    import keras
    from keras import layers

    maps = keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(2, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(4),
        ]
    )
    kernel = np.full((3, 3, 3, 2), 1 / 27, np.float32) * [1, -1]
    maps.layers[1].set_weights([kernel, np.zeros(2, np.float32)])
    pool, dense = layers.GlobalAveragePooling2D(), layers.Dense(2)
    dense.build((None, 2))
    dense.set_weights([np.array([[-1, 1], [1, -1]], np.float32), np.zeros(2, np.float32)])
    return maps, lambda features: dense(pool(features))


def test_the_peak_is_in_the_quadrant_with_the_blob(brightness_network: Parts) -> None:
    heat = heat_maps(*brightness_network, blobs(), np.ones(4, np.int64))
    assert heat.shape == (4, SIZE, SIZE)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert heat.max(axis=(1, 2)) == pytest.approx(1)
    for one, (top, left) in zip(heat, QUADRANTS, strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        assert (row // 16 * 16, column // 16 * 16) == (top, left)
        assert one[top : top + 16, left : left + 16].sum() > 0.8 * one.sum()


def test_the_heat_of_the_other_class_is_elsewhere(brightness_network: Parts) -> None:
    heat = heat_maps(*brightness_network, blobs(), np.zeros(4, np.int64))
    for one, (top, left) in zip(heat, QUADRANTS, strict=True):
        assert one[top + 6 : top + 10, left + 6 : left + 10].max() < 0.1


def test_the_heat_of_a_trained_network_is_where_its_classes_differ() -> None:
    """Train on tiles whose class is the presence of a blob, in a random quadrant."""
    start_keras()
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 60, (64, SIZE, SIZE, 3)).astype(np.uint8)
    labels, where = np.arange(64) % 2, rng.integers(4, size=64)
    shown = np.flatnonzero(labels == 1)
    for index in shown:
        top, left = QUADRANTS[where[index]]
        tiles[index, top + 4 : top + 12, left + 4 : left + 12] = 240
    inputs = layers.Input((SIZE, SIZE, 3))
    features = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.Rescaling(1 / 255)(inputs))
    features = layers.MaxPooling2D(4)(features)
    pool, dense = layers.GlobalMaxPooling2D(), layers.Dense(2)
    model = keras.Model(inputs, dense(pool(features)))
    model.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tiles, labels, batch_size=16, epochs=12, verbose=0)
    assert (model.predict(tiles, verbose=0).argmax(1) == labels).mean() > 0.95

    heat = heat_maps(keras.Model(inputs, features), lambda maps: dense(pool(maps)), tiles[shown], labels[shown])
    peaks = np.array([np.unravel_index(one.argmax(), one.shape) for one in heat]) // 16 * 16
    assert (peaks == np.array(QUADRANTS)[where[shown]]).all(axis=1).mean() > 0.9


def test_heat_follows_the_formula(brightness_network: Parts) -> None:
    """Use an average pool, through which a gradient is the dense weight over the number of places."""
    maps, rest = brightness_network
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)
    values = np.asarray(maps(tiles.astype(np.float32)))  # [2, 8, 8, 2]
    wanted = np.maximum(values[..., 1] - values[..., 0], 0)  # class 0: darkness minus brightness
    found = heat_maps(maps, rest, tiles, np.zeros(2, np.int64))
    for one, other in zip(found, wanted, strict=True):
        large = np.asarray(Image.fromarray(other).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(one, large / large.max(), atol=1e-5)


def test_a_map_counts_by_the_mean_of_its_gradient(brightness_network: Parts) -> None:
    """Give each place its own weight in the score: these are the gradients, and alpha is their mean."""
    from keras import ops

    rng = np.random.default_rng(0)
    maps, weights = brightness_network[0], rng.normal(size=(8, 8, 2, 2)).astype(np.float32)  # [h, w, D, C]
    tiles = rng.integers(0, 256, (3, SIZE, SIZE, 3)).astype(np.uint8)
    alpha = weights.mean(axis=(0, 1))[:, 1]  # [D], of class 1
    wanted = np.maximum(np.asarray(maps(tiles.astype(np.float32))) @ alpha, 0)  # [n, 8, 8]
    found = heat_maps(maps, lambda values: ops.einsum("nhwd,hwdc->nc", values, weights), tiles, np.ones(3, np.int64))
    for one, other in zip(found, wanted, strict=True):
        large = np.asarray(Image.fromarray(other).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(one, large / max(large.max(), 1e-30), atol=1e-5)


def test_the_batch_size_changes_nothing(brightness_network: Parts) -> None:
    rng = np.random.default_rng(0)
    tiles, target = rng.integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8), np.array([0, 1, 0, 1, 1])
    whole, parts = heat_maps(*brightness_network, tiles, target), heat_maps(*brightness_network, tiles, target, batch=2)
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_a_tile_without_evidence_has_no_heat(brightness_network: Parts) -> None:
    dark = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    assert (heat_maps(*brightness_network, dark, np.ones(1, np.int64)) == 0).all()
    assert heat_maps(*brightness_network, dark[:0], np.ones(0, np.int64)).shape == (0, SIZE, SIZE)


def test_a_score_that_does_not_use_the_maps_is_no_heat(brightness_network: Parts) -> None:
    from keras import ops

    heat = heat_maps(
        brightness_network[0], lambda features: ops.ones((len(features), 2)), blobs(), np.ones(4, np.int64)
    )
    assert (heat == 0).all()


@pytest.mark.parametrize(
    ("tiles", "target", "batch", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), [0, 0], 8, "float32"),
        (np.zeros((2, 32, 32), np.uint8), [0, 0], 8, r"uint8\[2, 32, 32\]"),
        (np.zeros((2, 32, 32, 3), np.uint8), [0], 8, r"\(1,\)"),
        (np.zeros((2, 32, 32, 3), np.uint8), [0, 2], 8, "0 to 1"),
        (np.zeros((2, 32, 32, 3), np.uint8), [0, -1], 8, "0 to 1"),
        (np.zeros((2, 32, 32, 3), np.uint8), [0, 1], 0, "0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    brightness_network: Parts, tiles: np.ndarray, target: list[int], batch: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        heat_maps(*brightness_network, tiles, np.array(target), batch)


def test_a_layer_without_maps_is_refused(brightness_network: Parts) -> None:
    maps, rest = brightness_network
    with pytest.raises(UsageError, match=r"\(4, 2\)"):
        heat_maps(lambda tiles: maps(tiles)[:, 0, 0], rest, blobs(), np.ones(4, np.int64))
    with pytest.raises(UsageError, match=r"\(4, 8, 8, 2\)"):
        heat_maps(maps, lambda features: features, blobs(), np.ones(4, np.int64))


def test_overlay_leaves_cold_pixels_and_colours_hot_ones() -> None:
    tile, heat = np.full((4, 4, 3), 200, np.uint8), np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    found = overlay(tile, heat)
    assert found.dtype == np.uint8
    assert (found[1:] == 200).all()
    assert found[0, 0].tolist() == [234, 220, 94]  # 35 % of the tile, 65 % of the ramp's last colour
    with pytest.raises(UsageError, match=r"\(2, 4\)"):
        overlay(tile, heat[:2])
