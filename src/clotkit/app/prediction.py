"""Predict the tiles of one image, one visitor at a time."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.config import tiling_for
from clotkit.evaluation.loaded_member import LoadedMember, load_for_evaluation
from clotkit.members.heat import overlay
from clotkit.slides.pixels import Pixels

_predicting = threading.Lock()


def load(folder: Path) -> LoadedMember:
    """Load a member for single images, in batches no larger than one image's tiles. Raises ConfigError."""
    member = load_for_evaluation(folder)
    tiling = member.recipe.tiling
    small = replace(tiling, batch_tiles=min(tiling.batch_tiles, tiling.max_tiles))
    return replace(member, recipe=replace(member.recipe, tiling=small))


def for_slide(member: LoadedMember, facts: Mapping[str, str]) -> LoadedMember:
    """Return the member with the tiling of one slide, by the facts of its row."""
    tiling = tiling_for(member.recipe.tiling, facts)
    return replace(member, recipe=replace(member.recipe, tiling=tiling))


def predict_tiles(member: LoadedMember, tiles: Pixels) -> npt.NDArray[np.float64]:
    """Return the member's rows for tiles uint8[n, S, S, 3].

    They are probabilities [n, C]; with attention, logits and a weight [n, C + 1].
    """
    with _predicting:
        return member.predict_new(tiles)


def decide(
    member: LoadedMember, rows: npt.NDArray[np.float64], competition: Competition
) -> tuple[str, dict[str, float]]:
    """Return the label and the calibrated probability of each class of an image, from its tiles' rows.

    The label is that of a submission where the competition asks for labels.
    """
    probabilities = member.calibration.apply(member.pooling.pool(rows))  # [C]
    by_class = dict(zip(member.target.classes, map(float, probabilities.round(6)), strict=True))
    return member.label(probabilities, competition), by_class


def heat_map(member: LoadedMember, tiles: Pixels, rows: npt.NDArray[np.float64], label: str) -> Pixels:
    """Return the tile with the highest probability of `label` under its heat map, uint8[S, S, 3].

    Probabilities are weighted by the attention of the member, if it has any. For a label that is no class, an outlier,
    it is that of the class which is likeliest on average.
    """
    p = member.pooling.tile_probabilities(rows)  # [n, C]
    known = label in member.target.classes
    target = member.target.classes.index(label) if known else int(p.mean(axis=0).argmax())
    attention = member.pooling.attention(rows)
    best = int((p[:, target] * (1.0 if attention is None else attention)).argmax())
    with _predicting:
        heat = member.heat(tiles[best], target)
    return overlay(tiles[best], heat)
