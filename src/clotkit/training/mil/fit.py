"""Fit one head to bags of tiles: by epochs, or in closed form for a linear model of mean features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.config import ModelConfig, Recipe
from clotkit.data.tiles import TileSet
from clotkit.features.files import FeatureFile
from clotkit.members.encoders.heads import CLAM, MEAN_POOL, TRANSFORMER, Head, build_head, pooling_of_heads
from clotkit.members.networks import STANDARDISE
from clotkit.training.checkpoints import create_checkpoints
from clotkit.training.epochs import EpochCallback, run_epochs
from clotkit.training.feed import one_hot
from clotkit.training.fit import compile_model, keras_loss
from clotkit.training.mil.bags import Bag, bags_of, batch_of, features_of
from clotkit.training.mil.linear import fit_linear
from clotkit.training.mil.losses import instance_loss_layer
from clotkit.training.resampling import epoch_order, sample_weights
from clotkit.training.trainers import Logs, averaged_weights, use_averages

Floats = npt.NDArray[np.float64]
Compiled = dict[int, tuple[Head, Any, list[Any]]]  # by steps of an epoch: head, compiled model, optimizer's variables


def fit_head(
    recipe: Recipe,
    train: TileSet,
    validation: TileSet,
    seed: int,
    checkpoints_dir: Path | None,
    on_epoch: EpochCallback,
    compiled: Compiled | None = None,
) -> tuple[Head, pd.DataFrame]:
    """Train one head on slides and return it with its history, a row an epoch.

    Args:
        recipe: of a head over features.
        train: slides to learn from, with SlideFeatures as their tiles.
        validation: slides that choose the best epoch; may be empty.
        seed: of weights, order, bags and dropout.
        checkpoints_dir: folder of this fit's checkpoints; None: it does not resume.
        on_epoch: called after every epoch.
        compiled: models of earlier fits of the same recipe, which are used again.
    """
    import keras

    keras.utils.set_random_seed(seed)
    config, classes = recipe.model[0], len(train.classes)
    head = build_head(config, features_of(train).width, classes)  # in float32 on a GPU too: it is small
    if config.standardise:
        _standardise(head, config, train)
    if config.name == MEAN_POOL:
        logs = fit_linear(head, recipe, train)
        on_epoch(1, logs)
        return head, pd.DataFrame([{"epoch": 1, **logs}])
    bags, slides_of_bags = _training_bags(train, recipe)
    steps = -(-len(epoch_order(slides_of_bags.labels, recipe.training, classes, seed, 0)) // bags.size)
    fresh = _training_model(head, recipe, classes)
    trained, model = _compiled(fresh, head, recipe, steps, {} if compiled is None else compiled)
    checkpoints = create_checkpoints(checkpoints_dir, model, recipe.training.keep)
    if checkpoints.is_done:
        checkpoints.restore(checkpoints.epochs_done)
    else:
        checkpoints.restore(checkpoints.epochs_done if checkpoints.can_restore(checkpoints.epochs_done) else 0)
        trainer = BagTrainer(model, trained, bags, slides_of_bags, validation, recipe, seed)
        run_epochs(trainer, checkpoints, recipe.training, seed, on_epoch)
    history = checkpoints.finish()
    use_averages(model)
    fresh.set_weights(model.get_weights())
    return head, history


def _compiled(fresh: Any, head: Head, recipe: Recipe, steps: int, compiled: Compiled) -> tuple[Head, Any]:
    """Return a head and its compiled model with the weights of `fresh` and a new optimizer.

    A model of an earlier fit is used again: to trace one takes longer than to train it.
    """
    if steps not in compiled:
        classes = fresh.output.shape[-1]
        own = build_head(recipe.model[0], head.bag.input["features"].shape[-1], classes)
        model = _training_model(own, recipe, classes)
        compile_model(model, recipe.training, steps, keras_loss(recipe.training, own.output))
        compiled[steps] = own, model, [np.array(variable) for variable in model.optimizer.variables]
    own, model, initial = compiled[steps]
    model.set_weights(fresh.get_weights())
    for variable, value in zip(model.optimizer.variables, initial, strict=True):
        variable.assign(value)
    return own, model


def predict_slide(heads: Sequence[Head], recipe: Recipe, file: FeatureFile) -> Floats:
    """Return the mean probabilities [C] that heads give a slide, from all of its tiles, as in inference."""
    features = file.read()
    return np.asarray(np.mean([_predict(head, recipe, features) for head in heads], axis=0))


def _predict(head: Head, recipe: Recipe, features: npt.NDArray[np.float16]) -> Floats:
    from keras import ops

    pooling = pooling_of_heads(recipe, head.model, head.bag.output[0].shape[-1])
    if recipe.model[0].name == TRANSFORMER:
        return pooling.pool(features)
    return pooling.pool(np.asarray(ops.convert_to_numpy(head.model(features.astype(np.float32)))))


@dataclass(frozen=True)
class TrainingBags:
    """The bags of a fit, and the shape of its batches."""

    bags: list[Bag]
    size: int  # bags of a batch
    tiles: int  # tiles of a padded bag


def _training_bags(train: TileSet, recipe: Recipe) -> tuple[TrainingBags, TileSet]:
    slides, bags = bags_of(train, recipe.mil)
    most = min(recipe.mil.bag_tiles, max(bag.count for bag in bags))
    return TrainingBags(bags, min(recipe.training.batch_tiles, len(bags)), most), slides


def _training_model(head: Head, recipe: Recipe, classes: int) -> Any:
    """Return the Keras model of bags that is compiled: of `clam` it has the instance loss too."""
    from keras import Input, Model, layers

    bag = head.bag.input
    probabilities, _, attention, hidden = head.bag.output
    if recipe.model[0].name != CLAM:
        return Model(bag, probabilities, name="training")
    wanted = Input((classes,), name="classes")
    logits = layers.Dense(classes, name="instances")(hidden)  # [b, T, C]
    loss = instance_loss_layer()(recipe.mil.instance_weight, recipe.mil.instance_tiles, name="instance_loss")
    outputs = loss([logits, attention, bag["mask"], wanted, probabilities])
    return Model({**bag, "classes": wanted}, outputs, name="training")


class BagTrainer:
    """Trains a compiled model of bags, one step after the other; see trainers.Trainer."""

    def __init__(
        self,
        model: Any,
        head: Head,
        bags: TrainingBags,
        slides: TileSet,
        validation: TileSet,
        recipe: Recipe,
        seed: int,
    ) -> None:
        """Prepare the steps: `slides` has one row a bag, and `validation` one a slide."""
        self.model, self.monitor = model, "val_loss" if len(validation) else "loss"
        self._head, self._bags, self._slides, self._validation = head, bags, slides, validation
        self._recipe, self._seed = recipe, seed
        self._weights = sample_weights(slides, recipe.training)

    def train(self, epoch: int) -> Logs:
        """See Trainer."""
        config, slides, size = self._recipe.training, self._slides, self._bags.size
        order = epoch_order(slides.labels, config, len(slides.classes), self._seed, epoch + 1)
        self.model.reset_metrics()
        logs: dict[str, Any] = {}
        for step, start in enumerate(range(0, len(order), size)):
            rows = order[start : start + size]
            rng = np.random.default_rng([self._seed, epoch + 1, step])
            bags = [self._bags.bags[row] for row in rows]
            inputs = batch_of(bags, size, self._recipe.mil, self._bags.tiles, rng)
            classes, weights = np.zeros((size, len(slides.classes)), np.float32), np.zeros(size, np.float32)
            classes[: len(rows)] = one_hot(slides.labels[rows], len(slides.classes))
            classes[len(rows) :, 0] = 1.0
            weights[: len(rows)] = self._weights[rows]
            if len(self.model.inputs) > len(inputs):
                inputs["classes"] = classes
            logs = self.model.train_on_batch(inputs, classes, weights, return_dict=True)
        return {name: float(value) for name, value in logs.items()}

    def validate(self) -> Logs:
        """See Trainer: of whole slides, as they are predicted."""
        if not len(self._validation):
            return {}
        slides, recipe = self._validation, self._recipe
        with averaged_weights(self.model):
            files = features_of(slides).files
            p = np.stack([predict_slide([self._head], recipe, file) for file in files]).astype(np.float32)
        losses = keras_loss(recipe.training, self._head.output, None)(one_hot(slides.labels, len(slides.classes)), p)
        weights = sample_weights(slides, recipe.training)
        hits = (p.argmax(axis=1) == slides.labels).astype(np.float64)
        return {
            "val_loss": float(np.average(np.asarray(losses, np.float64), weights=weights)),
            "val_accuracy": float(np.average(hits, weights=weights)),
        }


def _standardise(head: Head, config: ModelConfig, train: TileSet) -> None:
    """Set the head's standardisation: of mean features for mean_pool, of tiles for heads that see these."""
    moments = features_of(train).moments().astype(np.float64)  # [slides, 2, D]
    mean = moments[:, 0].mean(axis=0)
    squares = np.square(moments[:, 0]) if config.name == MEAN_POOL else moments[:, 1]
    variance = np.maximum(squares.mean(axis=0) - np.square(mean), 0.0)
    model = head.bag if config.name == TRANSFORMER else head.model
    model.get_layer(STANDARDISE).set_weights([mean, variance])
