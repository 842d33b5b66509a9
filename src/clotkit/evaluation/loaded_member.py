"""Load a member outside a run, with the networks, the calibration and the images of each fold."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import Recipe
from clotkit.data.familiarity import Familiarity, read_familiarity
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, WeightsError
from clotkit.evaluation.known_images import UNKNOWN, KnownImages, Match, read_known_images
from clotkit.evaluation.scores import EvaluationTarget, cross_calibrated
from clotkit.members import loading
from clotkit.members.calibration import Calibration
from clotkit.members.decision import Decision
from clotkit.members.encoders.network import EncodedHeads, load_encoded_heads
from clotkit.members.folder import (
    CALIBRATION,
    FAMILIARITY,
    METRICS,
    SPLIT,
    MemberFiles,
    network_file,
    read_decision,
    read_member,
)
from clotkit.members.heat import class_scores, heat_maps, occlusion_map
from clotkit.members.networks import Network
from clotkit.members.onnx.network import OnnxNetwork, load_onnx_network
from clotkit.members.pooling import SlidePooling, pooling_of
from clotkit.members.predict import predict_committee, predictor
from clotkit.members.weights import check_outputs


@dataclass(frozen=True)
class LoadedMember:
    """A member loaded outside a run, with the network and the calibration of each fold at hand."""

    recipe: Recipe
    target: EvaluationTarget
    model: Any  # Keras model of all its networks; an OnnxNetwork, or EncodedHeads
    networks: list[list[Network | OnnxNetwork | EncodedHeads]]  # by fold; one list if they were trained on all folds
    calibration: Calibration
    fold_calibrations: list[Calibration]  # by fold, each fitted on the other folds
    where: Path  # its folder
    known: KnownImages = field(default_factory=KnownImages)  # that it was made with
    decision: Decision | None = None  # from probabilities to a label; None: it was trained without
    familiarity: Familiarity | None = None  # None: it keeps no statistics of its training pictures

    @property
    def pooling(self) -> SlidePooling:
        """Return what turns its rows into the probabilities of an image."""
        return self.model.pooling if isinstance(self.model, EncodedHeads) else pooling_of(self.recipe)

    def label(self, probabilities: npt.NDArray[np.float64], competition: Competition) -> str:
        """Return the label of calibrated probabilities [C].

        It follows from the decision, if the competition asks for labels by its rule; else it is the likeliest class.
        """
        known = self.decision is not None and self.decision.rule is competition.submission.rule
        if self.decision is None or not known or competition.classes.names != self.target.classes:
            return self.target.predicted_class(probabilities)
        return competition.answers[int(self.decision.apply(probabilities)[0])]

    def predict(self, tiles: npt.NDArray[np.uint8], folds: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the outputs of the networks for tiles uint8[n, S, S, 3].

        Each tile goes through the networks of its fold `folds` [n], or through all networks for UNKNOWN.

        Returns:
            Probabilities [n, C]; under attention logits [n, C + 1].

        Raises:
            WeightsError: They are not finite, or no probabilities.
        """
        parts = [(folds == fold, self._predict_fold(int(fold), tiles[folds == fold])) for fold in np.unique(folds)]
        outputs = np.zeros((len(tiles), parts[0][1].shape[1]))
        for mask, of_fold in parts:
            outputs[mask] = of_fold
        if problem := check_outputs(outputs, self.pooling.rows_are_probabilities):
            raise WeightsError(f"{self.where}: {problem}; train the member again")
        return outputs

    def predict_new(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Return the outputs for tiles of images that no fold held out; see `predict`."""
        return self.predict(tiles, np.full(len(tiles), UNKNOWN))

    @property
    def trained_on_all(self) -> bool:
        """Tell if its networks were trained on the images of all folds, which other networks held out."""
        return len(self.networks) == 1 and len(self.fold_calibrations) > 1

    def distances(self, tiles: TileSet, known: Match) -> pd.DataFrame | None:
        """Return the `distance` of each image from its training pictures, and if it is `unlike_training`.

        The rows are by image, without the images that its statistics are of. None: it keeps no statistics.
        """
        if self.familiarity is None:
            return None
        first = tiles.first_rows()
        in_statistics = (known.words != "") & (self.known.all_in_folds() | (known.folds == UNKNOWN))
        distances = self.familiarity.distances(tiles)
        unlike = self.familiarity.unlike(distances)
        table = pd.DataFrame({"distance": distances, "unlike_training": unlike}, index=tiles.images[first])
        new: pd.DataFrame = table[~in_statistics[first]]
        return new

    def calibrated(self, units: pd.DataFrame) -> pd.DataFrame:
        """Return the units with probabilities calibrated on the other folds, or on all for UNKNOWN."""
        calibrations = {UNKNOWN: self.calibration, **dict(enumerate(self.fold_calibrations))}
        return cross_calibrated(units, calibrations, self.target)

    def heat(self, tile: npt.NDArray[np.uint8], target: int, fold: int = UNKNOWN) -> npt.NDArray[np.float32]:
        """Return the heat map float32[S, S], 0 to 1, of a class for a tile uint8[S, S, 3].

        It is of the first network that predicts the images of the fold: Grad-CAM, or occlusion for an ONNX file.
        """
        network = self.networks[fold if fold != UNKNOWN and len(self.networks) > 1 else 0][0]
        if isinstance(network, Network):
            return grad_cam(network, tile, target)

        def probabilities(tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
            return self.pooling.tile_probabilities(network.predict_on_batch(tiles))

        return occlusion_map(probabilities, tile, target)

    def _predict_fold(self, fold: int, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        batch, tta = self.recipe.tiling.batch_tiles, self.recipe.inference.tta
        if fold == UNKNOWN or len(self.networks) == 1:
            return predictor(self.model, batch, tta)(tiles).astype(np.float64)
        heads = self.networks[fold][0]
        if isinstance(heads, EncodedHeads):  # rows as wide as those of all folds: each head's again for every fold
            return np.tile(predictor(heads, batch)(tiles).astype(np.float64), (1, len(self.networks)))
        committee = [network for network in self.networks[fold] if isinstance(network, Network)]
        return predict_committee(committee, tiles, self.recipe, batch)


def load_for_evaluation(folder: Path) -> LoadedMember:
    """Load a member with the networks of each fold. Raises ConfigError for no member, or a damaged one."""
    files = read_member(folder)
    target = _target(files, folder)
    classes, where = len(target.classes), str(folder / CALIBRATION)
    networks, model = _load_networks(folder, files, classes)
    calibrations = [Calibration.from_json(one, where, classes) for one in files.calibration.get("folds", [])]
    return LoadedMember(
        recipe=files.recipe,
        target=target,
        model=model,
        networks=networks,
        calibration=Calibration.from_json(files.calibration, where, classes),
        fold_calibrations=calibrations,
        where=folder,
        known=read_known_images(folder / SPLIT, len(calibrations), files.recipe.data.source == "npz"),
        decision=read_decision(files.calibration, where, classes),
        familiarity=_familiarity(folder, files.metrics),
    )


def _target(files: MemberFiles, folder: Path) -> EvaluationTarget:
    """Return what a member is scored by. Raises ConfigError."""
    metrics = files.metrics
    try:
        return EvaluationTarget(
            classes=tuple(metrics["classes"]),
            weights=tuple(metrics["class_weights"]),
            positive=metrics["positive"],
            clip=float(metrics["clip"]),
            floor=files.recipe.inference.floor,
            by_patient=metrics["unit"] == "patient",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / METRICS}: has no usable entry: {error!r}; train the member again") from error


def _familiarity(folder: Path, metrics: dict[str, Any]) -> Familiarity | None:
    """Return a member's statistics of its training pictures; None if it was made without.

    Raises ConfigError if they are damaged, or missing although it was made with them: nothing would be unlike.
    """
    found = read_familiarity(folder / FAMILIARITY)
    if found is None and metrics.get("familiarity") is not None:
        raise ConfigError(
            f"{folder / FAMILIARITY}: is missing, and {METRICS} says that the member was made with it; copy the whole "
            "folder again"
        )
    return found


def _load_networks(folder: Path, files: MemberFiles, classes: int) -> tuple[list[list[Any]], Any]:
    """Load the networks of a member by fold, and the model of all of them."""
    recipe = files.recipe
    if recipe.is_onnx:
        network = load_onnx_network(network_file(folder), recipe, classes)
        return [[network]], network
    if recipe.encoder is not None:
        heads, model = load_encoded_heads(folder, files, classes)
        return [[one] for one in heads], model
    networks, model = loading.load_networks(folder, recipe, classes, files.folds)
    per_fold = len(networks) // files.folds
    return [networks[start : start + per_fold] for start in range(0, len(networks), per_fold)], model


def grad_cam(network: Network, tile: npt.NDArray[np.uint8], target: int) -> npt.NDArray[np.float32]:
    """Return the Grad-CAM heat map float32[S, S], 0 to 1, of a class for a tile uint8[S, S, 3]."""
    pool, rows = network.features.get_layer("pooled"), network.head.layers[-1].name == "rows"

    def head(maps: Any) -> Any:
        return class_scores(network.head(pool(maps)), network.output, rows)  # [n, C]

    heat: npt.NDArray[np.float32] = heat_maps(network.maps, head, tile[None], np.array([target]))[0]
    return heat
