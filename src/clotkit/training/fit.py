"""Fitting one network: what it is fed, how long, and how it goes on after a kill."""

import io
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.config import ModelConfig, Recipe, TrainingConfig
from clotkit.data.tiles import TileSet
from clotkit.files import atomic_write, atomic_write_text
from clotkit.members.networks import STANDARDISE, Network
from clotkit.shards.reading import ShardTiles
from clotkit.training.augment import augment
from clotkit.training.devices import Team
from clotkit.training.feed import Dataset, Draw, Feed, MemoryFeed, ShardFeed, WatchFeed
from clotkit.training.loop import run_epochs
from clotkit.training.sampler import Lanes

Floats = npt.NDArray[np.float32]
Told = Callable[[int, dict[str, float]], None]
HISTORY, DONE = "history.csv", "done"
BAG_TILES = 24  # of a slide, drawn afresh for every step of a head that sees slides whole
WATCH_BATCH = 256


@dataclass(frozen=True)
class Material:
    """What a model is fitted to: `draw` gives the inputs of items by their numbers; each has a class and a weight.

    `watched` is (inputs, one-hot classes, weights) of those that choose the epoch, None where none do. `shards` is the
    shard of each item, int64[n], None where the items are in memory.
    """

    model: Any
    draw: Draw
    labels: npt.NDArray[np.int64]
    weights: Floats
    watched: tuple[npt.NDArray[Any], Floats, Floats] | None
    shards: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Features:
    """What a frozen backbone makes of every tile, once for all folds: of augmented copies, and of the tile as it is."""

    views: Floats  # [views, n, D]
    plain: Floats  # [n, D]

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Features":
        """Those of the tiles that a boolean mask [n] picks."""
        return Features(self.views[:, chosen], self.plain[chosen])


def fit(
    network: Network,
    seen: TileSet,
    watch: TileSet,
    recipe: Recipe,
    seed: int,
    state: Path,
    features: tuple[Features, Features] | None = None,
    told: Told = lambda epoch, row: None,
    team: Team | None = None,
) -> pd.DataFrame:
    """Train a network in place on the tiles `seen`, choosing the epoch by `watch` unless it is empty; return history.

    `features` are those of seen and watch; with them only the head learns. `told` hears of every epoch. One row an
    epoch: epoch, loss, accuracy, learning_rate, and val_loss, val_accuracy with `watch`. After every epoch all that is
    needed to go on lies in the folder `state`; a fit that finds it there goes on from it and ends with the weights that
    it would have had without the interruption. The same seed gives the same weights on the same machine.
    With a `team` that has a strategy the network was built in its scope, and every worker calls this alike: each has a
    state of its own, and they go on from the last epoch that all of them have. Raises ConfigError where the team cannot
    share the shards, SlideUnreadable for a damaged shard, ClusterError where another worker is gone.
    """
    import keras

    team = team or Team()
    keras.utils.set_random_seed(seed)
    config, classes = recipe.training, len(seen.classes)
    material = _material(network, seen, watch, recipe, seed, features)
    feed = _feed(material, config, classes, seed)
    model = material.model
    with team.together():
        model.compile(_optimizer(config, feed.steps), _loss(config), weighted_metrics=["accuracy"])
        model.optimizer.build(model.trainable_variables)
        kept = _Kept(state, model, config.keep, team.workers > 1)
        past, is_done = _agreed(kept, team)
        if not is_done and not _is_over(past, config):
            watchers = _watchers(config, material.watched is not None)
            callbacks = [*watchers, _keeper(kept, config, seed, watchers, past, told)]
            _run(material, feed, config, (len(past), config.epochs), callbacks, team)
    kept.finish()
    kept.load_best()
    return kept.history


def _agreed(kept: "_Kept", team: Team) -> tuple[pd.DataFrame, bool]:
    """The epochs that every worker has, restored, and whether all came to the end.

    Where one has lost the weights to go on from, all begin again: none may run ahead of the others.
    """
    epochs, is_done = team.gathered([kept.epochs, int(kept.is_done)]).min(axis=0).tolist()  # [workers, 2] -> [2]
    can = team.gathered([int(kept.has(epochs))]).min()
    return kept.restore(epochs if can else 0), bool(is_done and can)


def _run(
    material: Material,
    feed: Feed,
    config: TrainingConfig,
    epochs: tuple[int, int],
    callbacks: list[Any],
    team: Team,
) -> None:
    """Run the epochs that are left: with Keras's `fit`, or the strategy's loop."""
    watched = material.watched
    if team.strategy is not None:
        batch = WATCH_BATCH // team.here  # of a replica: the memory is that of one process
        spread = None if watched is None else WatchFeed(watched, batch, team.replicas)
        run_epochs(material.model, _loss(config, None), team, feed, spread, epochs, callbacks)
        return
    begin, end = epochs
    batches: Any
    if isinstance(feed, MemoryFeed):
        parts, batches, steps = [], _keras_batches(feed, begin), None
    else:
        seen = Dataset(feed)
        parts, batches, steps = [seen], seen.between(begin * feed.steps, end * feed.steps, whole=True), feed.steps
    checked: Any = watched
    if watched is not None and isinstance(watched[0], ShardTiles):
        whole = WatchFeed(watched, WATCH_BATCH)
        parts.append(Dataset(whole))
        checked = parts[-1].between(0, whole.steps, whole=True)
    try:
        material.model.fit(
            batches,
            epochs=end,
            initial_epoch=begin,
            steps_per_epoch=steps,
            validation_data=checked,
            validation_batch_size=WATCH_BATCH if checked is watched else None,
            shuffle=False,  # the feed does it: Keras would draw from a state that a resumed run has not
            callbacks=callbacks,
            verbose=0,
        )
    except Exception as error:  # noqa: BLE001 - TensorFlow wraps what a feed raises in an error of its own
        raise next((part.failure for part in parts if part.failure), error) from None


def balanced(tiles: TileSet, config: TrainingConfig, seed: int) -> TileSet:
    """The tiles, and where the recipe asks for it synthetic ones of the rarer classes, as many as the largest has.

    Each lies between a tile and one of its nearest of the same class (Chawla et al. 2002, "SMOTE: synthetic minority
    over-sampling technique").
    """
    counts = np.bincount(tiles.labels, minlength=len(tiles.classes))
    least = int(counts[counts > 0].min())
    if config.balance != "synthetic" or least < 2 or least == counts.max():
        return tiles
    from imblearn.over_sampling import SMOTE

    flat = tiles.tiles.reshape(len(tiles), -1).astype(np.float32)  # [n, S * S * 3]
    made, labels = SMOTE(random_state=seed, k_neighbors=min(5, least - 1)).fit_resample(flat, tiles.labels)
    count = len(made) - len(tiles)
    new = np.clip(np.rint(made[len(tiles) :]), 0, 255).astype(np.uint8).reshape(count, *tiles.tiles.shape[1:])
    names = np.array([f"synthetic_{number}" for number in range(count)])
    blank = np.full(count, "")
    return replace(
        tiles,
        tiles=np.concatenate([tiles.tiles, new]),
        labels=labels.astype(np.int64),
        patients=np.concatenate([tiles.patients, names]),
        images=np.concatenate([tiles.images, names]),
        centres=np.concatenate([tiles.centres, blank]),
        parts=np.concatenate([tiles.parts, blank]),
    )


def weights_of(tiles: TileSet, config: TrainingConfig) -> Floats:
    """The weight of each tile [n]: as the recipe lists them; so that classes, and their patients, count alike; or 1."""
    if config.class_weights:
        return np.array(config.class_weights, np.float32)[tiles.labels]
    weights = np.ones(len(tiles))
    if config.balance == "patients":
        _, owner, counts = np.unique(tiles.patients, return_inverse=True, return_counts=True)
        weights = 1 / counts[owner]
    if config.balance in {"weights", "patients"}:
        of_class = np.bincount(tiles.labels, weights, len(tiles.classes))  # [C]
        weights = weights * (len(tiles) / (len(tiles.classes) * np.maximum(of_class, 1e-9)))[tiles.labels]
    return weights.astype(np.float32)


def _material(
    network: Network,
    seen: TileSet,
    watch: TileSet,
    recipe: Recipe,
    seed: int,
    features: tuple[Features, Features] | None,
) -> Material:
    """Tiles for a network that learns as a whole; features for a head over a frozen backbone, or bags of them."""
    config = recipe.training
    if features is None:
        seen = balanced(seen, config, seed)

        def cut(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[Any]:
            return augment(seen.tiles[chosen], recipe.augment, rng)  # [b, S, S, 3]

        material = _weighed(network.model, cut, seen, watch.tiles, watch, config)
        return replace(material, shards=seen.tiles.owner) if isinstance(seen.tiles, ShardTiles) else material
    views = features[0].views  # [views, n, D]
    standardise(network, features[0].plain, seen.images.tolist())
    if recipe.inference.pooling != "mean":
        return _bags(network, seen, watch, config, features)

    def draw(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[Any]:
        return views[rng.integers(len(views), size=len(chosen)), chosen]  # [b, D]

    return _weighed(network.head, draw, seen, features[1].plain, watch, config)


def _weighed(
    model: Any, draw: Draw, seen: TileSet, inputs: npt.NDArray[Any], watch: TileSet, config: TrainingConfig
) -> Material:
    """Items with the classes and weights of the rows of `seen`; `inputs` are those of `watch`."""
    watched = None
    if len(watch):
        watched = (inputs, one_hot(watch.labels, len(watch.classes)), weights_of(watch, config))
    return Material(model, draw, seen.labels, weights_of(seen, config), watched)


def _bags(
    network: Network, seen: TileSet, watch: TileSet, config: TrainingConfig, features: tuple[Features, Features]
) -> Material:
    """Bags of tile features, one a slide, for a head that sees slides whole: BAG_TILES of its tiles, ever afresh."""
    views, bags = features[0].views, bags_of(seen)  # [views, n, D]
    steady, watched = np.random.default_rng(0), bags_of(watch)
    inputs = np.array([features[1].plain[drawn(bag, 2 * BAG_TILES, steady)] for bag in watched])  # [w, K, D]

    def draw(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[Any]:
        picked = np.stack([drawn(bags[bag], BAG_TILES, rng) for bag in chosen])  # [b, BAG_TILES]
        return views[rng.integers(len(views), size=picked.shape), picked]  # [b, BAG_TILES, D]

    return _weighed(bag_model(network), draw, _one_each(seen, bags), inputs, _one_each(watch, watched), config)


def standardise(network: Network, plain: Floats, images: list[str]) -> None:
    """Give the head's normalisation, where it has one, the mean and the variance of the images' mean features.

    `plain` [n, D] are the features of tiles, `images` [n] say whose they are.
    """
    if STANDARDISE in {layer.name for layer in network.head.layers}:
        owner = np.array(images)
        means = np.stack([plain[owner == image].mean(axis=0) for image in dict.fromkeys(images)])  # [images, D]
        network.head.get_layer(STANDARDISE).set_weights([means.mean(axis=0), means.var(axis=0)])


def _one_each(tiles: TileSet, bags: list[npt.NDArray[np.int64]]) -> TileSet:
    """The first tile of each bag: it has the bag's class and patient."""
    chosen = np.zeros(len(tiles), bool)
    chosen[[bag[0] for bag in bags]] = True
    return tiles.where(chosen)


def bag_model(network: Network) -> Any:
    """Features of a slide's tiles [b, K, D] -> probabilities of the slide [b, C], by the network's own head."""
    from keras import Input, Model, layers, ops

    width = network.head.inputs[0].shape[-1]
    bag = Input((None, width))
    rows = layers.TimeDistributed(network.head)(bag)  # [b, K, C + 1]
    attention = ops.softmax(rows[..., -1:], axis=1)  # [b, K, 1]
    return Model(bag, ops.softmax(ops.sum(rows[..., :-1] * attention, axis=1), axis=-1))


def bags_of(tiles: TileSet) -> list[npt.NDArray[np.int64]]:
    """The numbers of each image's tiles, in the order of their first ones."""
    return [np.flatnonzero(tiles.images == image) for image in dict.fromkeys(tiles.images.tolist())]


def drawn(rows: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """`count` of `rows`: none twice before all have been once."""
    rounds = [rng.permutation(rows) for _ in range(math.ceil(count / len(rows)))]
    return np.concatenate(rounds)[:count]


def features_of(network: Network, tiles: npt.NDArray[np.uint8], recipe: Recipe) -> Features:
    """Features of tiles uint8 [n, S, S, 3], and of as many augmented copies of each as the recipe asks for."""
    seed, batch = recipe.training.seed, recipe.training.batch_tiles

    def through(view: int | None) -> Floats:
        rows = []
        for start in range(0, len(tiles), batch):
            some = tiles[start : start + batch]
            rng = np.random.default_rng([seed, view or 0, start])
            inputs = some.astype(np.float32) if view is None else augment(some, recipe.augment, rng)
            padded = np.concatenate([inputs, np.zeros((batch - len(some), *some.shape[1:]), np.float32)])
            rows.append(np.asarray(network.features.predict_on_batch(padded), np.float32)[: len(some)])
        return np.concatenate(rows)

    return Features(np.stack([through(view) for view in range(recipe.training.frozen_augmentations)]), through(None))


def is_frozen(model: ModelConfig, recipe: Recipe) -> bool:
    """Whether the backbone stays as it is, so that its features can be computed once."""
    return model.is_frozen and recipe.training.frozen_augmentations > 0


def one_hot(labels: npt.NDArray[np.int64], classes: int) -> Floats:
    """float32 [n, C] of class indices [n]."""
    return np.eye(classes, dtype=np.float32)[labels]


def _optimizer(config: TrainingConfig, steps: int) -> Any:
    import keras

    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, steps * config.epochs)
    return keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)


def _loss(config: TrainingConfig, reduction: str | None = "sum_over_batch_size") -> Any:
    import keras

    kinds = {"categorical": keras.losses.CategoricalCrossentropy, "binary": keras.losses.BinaryCrossentropy}
    return kinds[config.loss](label_smoothing=config.label_smoothing, reduction=reduction)


def _watchers(config: TrainingConfig, watched: bool) -> list[Any]:
    import keras

    monitor = "val_loss" if watched else "loss"
    watchers = []
    if config.schedule == "plateau":
        watchers.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor, config.plateau_factor, config.plateau_patience, min_lr=config.min_learning_rate
            )
        )
    if config.patience:
        watchers.append(keras.callbacks.EarlyStopping(monitor, patience=config.patience))
    return watchers


def _is_over(past: pd.DataFrame, config: TrainingConfig) -> bool:
    if not config.patience or past.empty:
        return len(past) >= config.epochs
    losses = past["val_loss" if "val_loss" in past else "loss"].to_numpy()
    return len(past) >= config.epochs or len(past) - 1 - int(losses.argmin()) >= config.patience


def _order(
    labels: npt.NDArray[np.int64], config: TrainingConfig, classes: int, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """The items of an epoch, shuffled; where the recipe oversamples, each class as often as the largest one."""
    rng = np.random.default_rng([seed, epoch])
    if config.balance != "oversample":
        return rng.permutation(len(labels))
    most = int(np.bincount(labels, minlength=classes).max())
    of_class = [np.flatnonzero(labels == label) for label in range(classes)]
    return rng.permutation(np.concatenate([drawn(rows, most, rng) for rows in of_class if len(rows)]))


def _feed(material: Material, config: TrainingConfig, classes: int, seed: int) -> Feed:
    """Global batches of the items: in any order where they are in memory, else by lanes of shards."""
    labels, known = material.labels, one_hot(material.labels, classes)

    def order(epoch: int) -> npt.NDArray[np.int64]:
        return _order(labels, config, classes, seed, epoch)

    if material.shards is None:
        return MemoryFeed(material.draw, order, known, material.weights, config.batch_tiles, seed)

    def copies(epoch: int) -> npt.NDArray[np.int64]:
        return np.bincount(order(epoch), minlength=len(labels))

    often = copies if config.balance == "oversample" else None
    lanes = Lanes(material.shards, config.batch_tiles, seed, often)
    return ShardFeed(material.draw, lanes, known, material.weights, seed)


def _keras_batches(feed: MemoryFeed, epoch: int) -> Any:
    """The batches of a feed as a keras.utils.PyDataset, from `epoch` on."""
    import keras

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.epoch = epoch

        def __len__(self) -> int:
            return feed.steps

        def on_epoch_end(self) -> None:
            self.epoch += 1

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            return feed.batch(self.epoch, index)

    return Batches()


def _keeper(
    kept: "_Kept", config: TrainingConfig, seed: int, watchers: list[Any], past: pd.DataFrame, told: Told
) -> Any:
    """The callback that starts every epoch from its seed, and keeps what it came to; last in the list of them."""
    import keras

    class Keeper(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            if config.schedule != "cosine":
                self.model.optimizer.learning_rate = config.learning_rate  # the watchers lower it again
            for epoch, row in enumerate(past.to_dict("records")):
                for watcher in watchers:
                    watcher.on_epoch_end(epoch, dict(row))

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            for number, layer in enumerate(self.model._flatten_layers()):
                if getattr(layer, "seed_generator", None) is not None:
                    layer.seed_generator.state.assign([seed % 2**31 + number, epoch])

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
            row = {**{name: float(value) for name, value in (logs or {}).items()}, "learning_rate": rate}
            kept.add(row)
            told(epoch + 1, row)

    return Keeper()


class _Kept:
    """The state of a fit in a folder: the weights of the last epoch and of the best one, and the history.

    The history is written after the weights of its last epoch, so that it never speaks of weights that are not there.
    `shared`: other workers keep the like, and one that was killed may be an epoch behind; so it can go back by one.
    """

    def __init__(self, folder: Path, model: Any, keep: str, shared: bool = False) -> None:
        self._folder, self._model, self._keep, self._shared = folder, model, keep, shared
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / HISTORY
        self.history = pd.read_csv(path) if path.is_file() else pd.DataFrame()

    @property
    def is_done(self) -> bool:
        """Whether the fit came to its end."""
        return (self._folder / DONE).is_file()

    @property
    def epochs(self) -> int:
        """How many epochs are kept."""
        return len(self.history)

    def has(self, epochs: int) -> bool:
        """Whether it can go on after so many epochs: their weights are there, and those of the best of them."""
        past = self.history[:epochs]
        return not epochs or all(self._weights(epoch).is_file() for epoch in (epochs, self._best(past)))

    def restore(self, epochs: int) -> pd.DataFrame:
        """Load the weights after so many epochs, the optimizer's too; return the history up to there."""
        self.history = self.history[:epochs] if epochs else pd.DataFrame()
        if epochs:
            self._model.load_weights(self._weights(epochs))
        return self.history

    def add(self, row: dict[str, float]) -> None:
        """Keep the weights after an epoch, and its row; weights that nobody goes on from go."""
        epoch = self.epochs + 1
        self.history = pd.concat([self.history, pd.DataFrame([{"epoch": epoch, **row}])], ignore_index=True)
        with atomic_write(self._weights(epoch)) as temporary:
            self._model.save_weights(temporary, overwrite=True)
        text = io.StringIO()
        self.history.to_csv(text, index=False, lineterminator="\n")
        atomic_write_text(self._folder / HISTORY, text.getvalue())
        wanted = {self._weights(epoch), self._weights(self.best)}
        if self._shared and epoch > 1:
            wanted |= {self._weights(epoch - 1), self._weights(self._best(self.history[:-1]))}
        for path in self._folder.glob("epoch-*"):
            if path not in wanted:
                path.unlink()

    @property
    def best(self) -> int:
        """The epoch with the lowest watched loss; the last one where the recipe wants that, or nothing was watched."""
        return self._best(self.history)

    def load_best(self) -> None:
        """Give the model the weights of the best epoch."""
        self._model.load_weights(self._weights(self.best))

    def finish(self) -> None:
        """Say that no epoch is left."""
        (self._folder / DONE).touch()

    def _best(self, history: pd.DataFrame) -> int:
        if self._keep == "last" or "val_loss" not in history:
            return len(history)
        return int(history["val_loss"].to_numpy().argmin()) + 1

    def _weights(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:04d}.weights.h5"


def forget(state: Path) -> None:
    """Remove the state of fits that are no longer needed."""
    with suppress(FileNotFoundError):
        shutil.rmtree(state)
