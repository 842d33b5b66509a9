"""The steps of the recipes phantom and brain that bench.curves takes away."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from clotkit.config import Recipe
from clotkit.data.folds import Mask
from clotkit.data.tiles import TileSet
from clotkit.evaluation.scores import (
    EvaluationTarget,
    calibrated,
    rows_to_score,
)
from clotkit.members.calibration import Calibration
from clotkit.training.member_folder import TrainedMember

STRAIGHT = {"augment.mirror": False, "augment.rotate_deg": 0.0, "augment.scale": 0.0, "augment.shift": 0.0}
WHOLE = "whole recipe"


@dataclass(frozen=True)
class Variant:
    """A recipe with one step taken away."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # "table.key" of the recipe: its value
    calibrate: bool = True
    tile_step: int = 1  # keep every so many-th tile of a slide

    def thinned(self, tiles: TileSet) -> Mask:
        """Return a mask of every `tile_step`-th tile of each image, its first tile among them."""
        order = pd.Series(tiles.images).groupby(tiles.images).cumcount().to_numpy()
        thinned: Mask = order % self.tile_step == 0
        return thinned

    def scored(self, trained: TrainedMember, target: EvaluationTarget) -> pd.DataFrame:
        """Return the predictions out of fold, calibrated if the variant is."""
        if self.calibrate:
            return trained.fit.scored
        raw = rows_to_score(trained.out_of_fold, target)
        return calibrated(raw, self.calibration(trained, target), target)

    def calibration(self, trained: TrainedMember, target: EvaluationTarget) -> Calibration:
        """Return the calibration that ships; one that is taken away leaves the floor."""
        identity = Calibration(1.0, (0.0,) * len(target.classes), target.floor)
        return trained.fit.calibration if self.calibrate else identity

    def of(self, recipe: Recipe) -> Recipe:
        """Return the recipe without the step."""
        for key, value in self.changes.items():
            table, name = key.split(".")
            old = getattr(recipe, table)
            changed = (replace(old[0], **{name: value}),) if table == "model" else replace(old, **{name: value})
            tables: dict[str, Any] = {table: changed}
            recipe = replace(recipe, **tables)
        return recipe


PHANTOM = (
    Variant(WHOLE),
    Variant("no channel gain", {"augment.channel_gain": 0.0}),
    Variant("no turns and mirror images", {"augment.rotate_flip": False}),
    Variant("no augmentation", {"augment.rotate_flip": False, "augment.channel_gain": 0.0}),
    Variant("random weights, not ImageNet's", {"model.weights": "none"}),
    Variant("backbone not cut", {"model.last_layer": ""}),
    Variant("features not standardised", {"model.standardise": False}),
    Variant("no L2 penalty", {"model.l2": 0.0}),
    Variant("mean of tiles' probabilities, no L2", {"inference.pooling": "mean", "model.l2": 0.0}),
    Variant("classes and patients not balanced", {"training.balance": "none"}),
    Variant("constant learning rate", {"training.schedule": "constant"}),
    Variant("every second tile only", tile_step=2),
    Variant("no test-time augmentation", {"inference.tta": 1}),
    Variant("no calibration", calibrate=False),
)
BRAIN = (
    Variant(WHOLE),
    Variant("no augmentation", STRAIGHT),
    Variant("no mirror images", {"augment.mirror": False}),
    Variant("random weights, not ImageNet's", {"model.weights": "none"}),
    Variant("backbone not cut", {"model.last_layer": ""}),
    Variant("no weight decay", {"training.weight_decay": 0.0}),
    Variant("features not standardised", {"model.standardise": False}),
    Variant("no calibration", calibrate=False),
)
ONE_NETWORK = Variant("one network, not the folds' five", {"training.final": "all"})
