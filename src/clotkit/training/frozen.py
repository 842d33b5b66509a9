"""Prepare the inputs of a head over a frozen backbone, whose features are computed once.

A head that pools by attention or logits sees bags: the features of some tiles of one slide. See members.pooling.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import ModelConfig, Recipe, TrainingConfig
from clotkit.data.tiles import TileSet
from clotkit.members.heads import link
from clotkit.members.networks import SHRINK_NOVEL, STANDARDISE, Network
from clotkit.training.augment import Floats, augment
from clotkit.training.feed import TrainingInputs, training_inputs
from clotkit.training.resampling import Rows, draw_evenly

BAG_TILES = 24  # tiles of a slide in a training bag, drawn anew in every step
VALIDATION_BAG_TILES = 2 * BAG_TILES


@dataclass(frozen=True)
class FrozenFeatures:
    """The features that a frozen backbone gives tiles; they are the same in all folds."""

    augmented: Floats  # of augmented copies of each tile, [copies, n, D]
    plain: Floats  # of the tiles as they are, [n, D]

    def where(self, mask: npt.NDArray[np.bool_]) -> "FrozenFeatures":
        """Return the features of the tiles that a boolean mask [n] picks."""
        return FrozenFeatures(self.augmented[:, mask], self.plain[mask])


def is_frozen(model: ModelConfig, recipe: Recipe) -> bool:
    """Tell if the backbone keeps its weights and the recipe wants its features computed once."""
    return model.is_frozen and recipe.training.frozen_augmentations > 0


def compute_features(network: Network, tiles: npt.NDArray[np.uint8], recipe: Recipe) -> FrozenFeatures:
    """Return the features of tiles uint8[n, S, S, 3], and of training.frozen_augmentations copies of each."""
    copies = [_features(network, tiles, recipe, number) for number in range(recipe.training.frozen_augmentations)]
    return FrozenFeatures(np.stack(copies), _features(network, tiles, recipe, None))  # [copies, n, D], [n, D]


def _features(network: Network, tiles: npt.NDArray[np.uint8], recipe: Recipe, copy: int | None) -> Floats:
    """Return the features float32[n, D] of an augmented copy of the tiles; of the tiles for None."""
    seed, batch_tiles = recipe.training.seed, recipe.training.batch_tiles
    rows = []
    for start in range(0, len(tiles), batch_tiles):
        part = tiles[start : start + batch_tiles]  # [b, S, S, 3]
        rng = np.random.default_rng([seed, copy or 0, start])
        inputs = part.astype(np.float32) if copy is None else augment(part, recipe.augment, rng)
        padding = np.zeros((batch_tiles - len(part), *part.shape[1:]), np.float32)
        features = network.features.predict_on_batch(np.concatenate([inputs, padding]))  # [batch_tiles, D]
        rows.append(np.asarray(features, np.float32)[: len(part)])
    return np.concatenate(rows)  # [n, D]


def frozen_inputs(
    network: Network,
    train: TileSet,
    validation: TileSet,
    recipe: Recipe,
    features: tuple[FrozenFeatures, FrozenFeatures],
) -> TrainingInputs:
    """Return the inputs of a head: features of tiles, or bags of them when the head pools whole slides.

    `features` are those of `train` and of `validation`. The head's standardisation is set to those of `train`.
    """
    augmented = features[0].augmented  # [copies, n, D]
    set_standardisation(network, features[0].plain, train.images.tolist())
    if recipe.inference.pooling != "mean":
        return _bag_inputs(network, train, validation, recipe.training, features)

    def draw(rows: Rows, rng: np.random.Generator) -> npt.NDArray[Any]:
        return augmented[rng.integers(len(augmented), size=len(rows)), rows]  # [b, D]

    return training_inputs(network.head, draw, train, validation, features[1].plain, recipe.training)


def _bag_inputs(
    network: Network,
    train: TileSet,
    validation: TileSet,
    config: TrainingConfig,
    features: tuple[FrozenFeatures, FrozenFeatures],
) -> TrainingInputs:
    """Return inputs whose items are slides: bags of BAG_TILES tiles' features, drawn in every step."""
    augmented, bags = features[0].augmented, tiles_by_image(train)  # [copies, n, D]
    fixed, validation_bags = np.random.default_rng(0), tiles_by_image(validation)
    drawn = [draw_evenly(bag, VALIDATION_BAG_TILES, fixed) for bag in validation_bags]
    inputs = np.array([features[1].plain[rows] for rows in drawn])  # [slides, VALIDATION_BAG_TILES, D]

    def draw(chosen: Rows, rng: np.random.Generator) -> npt.NDArray[Any]:
        rows = np.stack([draw_evenly(bags[bag], BAG_TILES, rng) for bag in chosen])  # [b, BAG_TILES]
        return augmented[rng.integers(len(augmented), size=rows.shape), rows]  # [b, BAG_TILES, D]

    slides, validation_slides = _first_tiles(train, bags), _first_tiles(validation, validation_bags)
    return training_inputs(bag_model(network), draw, slides, validation_slides, inputs, config)


def set_standardisation(network: Network, plain: Floats, images: list[str]) -> None:
    """Set the head's standardisation layer, if it has one, to the statistics of the images' mean features.

    A layer that shrinks novel features gets those of the standardised tiles. `plain` [n, D] are the features of tiles,
    and `images` [n] their images.
    """
    names = {layer.name for layer in network.head.layers}
    if STANDARDISE not in names:
        return
    image_of_tile, standardise = np.array(images), network.head.get_layer(STANDARDISE)
    means = np.stack([plain[image_of_tile == image].mean(axis=0) for image in dict.fromkeys(images)])  # [images, D]
    standardise.set_weights([means.mean(axis=0), means.var(axis=0)])
    if SHRINK_NOVEL in names:
        tiles = np.asarray(standardise(plain), np.float64)  # [n, D]
        network.head.get_layer(SHRINK_NOVEL).set_weights([tiles.mean(axis=0), _whitening(tiles)])


def _whitening(tiles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the matrix [D, D] that whitens centred tiles [n, D], to a mean squared norm of 1.

    The covariance is shrunk (Ledoit and Wolf 2004), because tiles of one slide are alike.
    """
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(tiles)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(covariance) / len(covariance)), np.float64)


def bag_model(network: Network) -> Any:
    """Return a Keras model of bags: features [b, K, D] of K tiles -> a slide's probabilities [b, C].

    It applies the network's own head to every tile and pools as members.pooling.pool_attention does.
    """
    from keras import Input, Model, layers, ops

    width = network.head.inputs[0].shape[-1]
    bag = Input((None, width))  # [b, K, D]
    rows = layers.TimeDistributed(network.head)(bag)  # [b, K, C + 1]
    attention = ops.softmax(rows[..., -1:], axis=1)  # [b, K, 1]
    values = ops.sum(rows[..., :-1] * attention, axis=1)  # [b, C]
    return Model(bag, link(values, network.output))


def tiles_by_image(tiles: TileSet) -> list[Rows]:
    """Return the tile numbers of each image, in the order of the images' first tiles."""
    return [np.flatnonzero(tiles.images == image) for image in dict.fromkeys(tiles.images.tolist())]


def _first_tiles(tiles: TileSet, bags: list[Rows]) -> TileSet:
    """Return the first tile of each bag, which has the bag's class and patient."""
    mask = np.zeros(len(tiles), bool)
    mask[[bag[0] for bag in bags]] = True
    return tiles.where(mask)
