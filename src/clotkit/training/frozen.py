"""Prepare the inputs of a head over a frozen backbone, whose features are computed once.

A head that pools by attention or logits sees bags: the features of some tiles of one slide. See members.pooling.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.batching import Predictor, tta_views
from clotkit.config import ModelConfig, Recipe, TrainingConfig
from clotkit.data.tiles import TileSet, rows_by_name
from clotkit.files import atomic_write
from clotkit.locks import exclusive_file
from clotkit.members.heads import link
from clotkit.members.networks import SHRINK_NOVEL, STANDARDISE, Network
from clotkit.progress import Log
from clotkit.training.augment import Floats, augment
from clotkit.training.feed import TrainingInputs, training_inputs
from clotkit.training.resampling import Rows, draw_evenly

FEATURE_TILES = 32  # tiles of one step of a backbone: a fixed number, so that features do not depend on the recipe's
BAG_TILES = 24  # tiles of a slide in a training bag, drawn anew in every step
VALIDATION_BAG_TILES = 2 * BAG_TILES
# The keys of [model] that are of the head: the features of a frozen backbone depend on all others.
HEAD_KEYS = (
    "standardise", "shrink_novel", "head", "dropout", "l2", "share", "copies", "attention_units", "output",
)  # fmt: skip


@dataclass(frozen=True)
class FrozenFeatures:
    """The features that a frozen backbone gives tiles; they are the same in all folds."""

    augmented: Floats  # of augmented copies of each tile, [copies, n, D]
    views: Floats  # of the test-time augmentations of each tile, the first the tile itself, [tta, n, D]

    @property
    def plain(self) -> Floats:
        """Return the features of the tiles as they are, [n, D]."""
        plain: Floats = self.views[0]
        return plain

    def where(self, mask: npt.NDArray[np.bool_]) -> "FrozenFeatures":
        """Return the features of the tiles that a boolean mask [n] picks."""
        return FrozenFeatures(self.augmented[:, mask], self.views[:, mask])


@dataclass(frozen=True)
class FeatureCache:
    """The features that frozen backbones give one set of tiles, each computed once.

    They are shared by folds, and by recipes that differ in the head or in the optimisation alone.
    """

    folder: Path | None = None  # of features that several processes share; None: memory alone
    tiles_hash: str = ""  # of the tiles, which names the files of `folder`
    found: dict[str, tuple[Network, FrozenFeatures]] = field(default_factory=dict)

    def get(
        self, config: ModelConfig, recipe: Recipe, tiles: npt.NDArray[np.uint8], build: Callable[[], Network], log: Log
    ) -> tuple[Network, FrozenFeatures]:
        """Return a network whose backbone all may share, and its features of the tiles uint8[n, S, S, 3]."""
        key = backbone_key(config, recipe)
        if key not in self.found:
            network = build()
            self.found[key] = network, self._features(key, partial(_logged, network, config, tiles, recipe, log))
        return self.found[key]

    def _features(self, key: str, compute: Callable[[], FrozenFeatures]) -> FrozenFeatures:
        """Read the features from the folder, or compute them and write them there; one process computes."""
        if self.folder is None:
            return compute()
        name = hashlib.sha256(f"{key} {self.tiles_hash}".encode()).hexdigest()[:16]
        path = self.folder / f"features-{name}.npz"
        with exclusive_file(path.with_suffix(".lock")):
            if not path.is_file():
                features = compute()
                with atomic_write(path) as temporary:
                    np.savez(temporary, augmented=features.augmented, views=features.views)
        with np.load(path) as arrays:
            return FrozenFeatures(arrays["augmented"], arrays["views"])


def changes_features(name: str) -> bool:
    """Tell if backbone_key depends on a key of a recipe, named as in "training.frozen_augmentations"."""
    table, key = name.split(".")
    if table == "model":
        return key not in HEAD_KEYS
    return table == "augment" or name in {"training.frozen_augmentations", "training.seed", "inference.tta"}


def backbone_key(config: ModelConfig, recipe: Recipe) -> str:
    """Return a hash of all that the features of a frozen backbone depend on, besides the tiles."""
    fields = [(name, value) for name, value in vars(config).items() if name not in HEAD_KEYS]
    settings = [recipe.augment, recipe.training.frozen_augmentations, recipe.training.seed, recipe.inference.tta]
    return hashlib.sha256(repr([*fields, *settings]).encode()).hexdigest()[:16]


def _logged(network: Network, config: ModelConfig, tiles: Any, recipe: Recipe, log: Log) -> FrozenFeatures:
    log(f"{config.name} is frozen: computing the features of {len(tiles)} tiles once")
    return compute_features(network, tiles, recipe)


def is_frozen(model: ModelConfig, recipe: Recipe) -> bool:
    """Tell if the backbone keeps its weights and the recipe wants its features computed once."""
    return model.is_frozen and recipe.training.frozen_augmentations > 0


def compute_features(network: Network, tiles: npt.NDArray[np.uint8], recipe: Recipe) -> FrozenFeatures:
    """Return the features of tiles uint8[n, S, S, 3]: of augmented copies, and of each view."""

    def augmented(copy: int, part: npt.NDArray[np.uint8], start: int) -> Floats:
        return augment(part, recipe.augment, np.random.default_rng([recipe.training.seed, copy, start]))

    def view(number: int, part: npt.NDArray[np.uint8], start: int) -> Floats:
        return tta_views(part, recipe.inference.tta)[number].astype(np.float32)

    copies = [_features(network, tiles, partial(augmented, n)) for n in range(recipe.training.frozen_augmentations)]
    views = [_features(network, tiles, partial(view, n)) for n in range(recipe.inference.tta)]
    return FrozenFeatures(np.stack(copies), np.stack(views))  # [copies, n, D], [tta, n, D]


def _features(
    network: Network, tiles: npt.NDArray[np.uint8], changed: Callable[[npt.NDArray[np.uint8], int], Floats]
) -> Floats:
    """Return the features float32[n, D] of the tiles, each part of them [b, S, S, 3] changed first."""
    rows = []
    for start in range(0, len(tiles), FEATURE_TILES):
        part = tiles[start : start + FEATURE_TILES]  # [b, S, S, 3]
        padding = np.zeros((FEATURE_TILES - len(part), *part.shape[1:]), np.float32)
        inputs = np.concatenate([changed(part, start), padding])
        features = network.features.predict_on_batch(inputs)  # [FEATURE_TILES, D]
        rows.append(np.asarray(features, np.float32)[: len(part)])
    return np.concatenate(rows)  # [n, D]


def predict_features(network: Network, features: FrozenFeatures, batch_tiles: int) -> Floats:
    """Return what a network predicts for tiles by their features, the mean of their views: float32[n, C]."""
    head = Predictor([network.head.predict_on_batch], batch_tiles)
    return np.asarray(np.mean([head(view) for view in features.views], axis=0), np.float32)


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
    augmented, bags = features[0].augmented, train.rows_by_image()  # [copies, n, D]
    fixed, validation_bags = np.random.default_rng(0), validation.rows_by_image()
    drawn = [draw_evenly(bag, VALIDATION_BAG_TILES, fixed) for bag in validation_bags]
    inputs = np.array([features[1].plain[rows] for rows in drawn])  # [slides, VALIDATION_BAG_TILES, D]

    def draw(chosen: Rows, rng: np.random.Generator) -> npt.NDArray[Any]:
        rows = np.stack([draw_evenly(bags[bag], BAG_TILES, rng) for bag in chosen])  # [b, BAG_TILES]
        return augmented[rng.integers(len(augmented), size=rows.shape), rows]  # [b, BAG_TILES, D]

    slides, validation_slides = _first_tiles(train), _first_tiles(validation)
    return training_inputs(bag_model(network), draw, slides, validation_slides, inputs, config)


def set_standardisation(network: Network, plain: Floats, images: list[str]) -> None:
    """Set the head's standardisation layer, if it has one, to the statistics of the images' mean features.

    A layer that shrinks novel features gets those of the standardised tiles. `plain` [n, D] are the features of tiles,
    and `images` [n] their images.
    """
    names = {layer.name for layer in network.head.layers}
    if STANDARDISE not in names:
        return
    standardise = network.head.get_layer(STANDARDISE)
    means = np.stack([plain[rows].mean(axis=0) for rows in rows_by_name(np.array(images))])  # [images, D]
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


def _first_tiles(tiles: TileSet) -> TileSet:
    """Return the first tile of each image, which has the image's class and patient."""
    mask = np.zeros(len(tiles), bool)
    mask[tiles.first_rows()] = True
    return tiles.where(mask)
