"""Evaluate a member on labelled data: its figures, plots, predictions, and a page of its worst errors."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import Recipe
from clotkit.data.familiarity import Familiarity, read_familiarity
from clotkit.data.grouped import read_grouped
from clotkit.data.tiles import TileSet
from clotkit.errors import SplitError, WeightsError
from clotkit.evaluation import plots
from clotkit.evaluation.errors_page import ErrorRow, worst_first, write_errors
from clotkit.evaluation.figures import NAMES
from clotkit.evaluation.scores import (
    EvaluationTarget,
    competition_figures,
    cross_calibrated,
    metric_line,
    predicted_images,
    rows_to_score,
    score,
    scored_of,
)
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.members import loading
from clotkit.members.calibration import Calibration
from clotkit.members.decision import Decision
from clotkit.members.encoders.network import EncodedHeads, load_encoded_heads
from clotkit.members.folder import (
    CALIBRATION,
    FAMILIARITY,
    SPLIT,
    SPLIT_DROPPED,
    SPLIT_TRAIN,
    SPLIT_VALIDATION,
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
from clotkit.progress import Log

UNKNOWN = -1  # the fold of an image that the member was not made with


@dataclass(frozen=True)
class EvaluateSettings:
    """The settings of one `clotkit evaluate`."""

    member: Path
    data: Path
    out: Path
    limit: int | None = None  # images of each class; None: all
    worst: int = 48  # images on the page of errors


def evaluate(settings: EvaluateSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Score a member; write metrics.json, predictions.csv, plots and errors.html into `out`.

    Images that the member was trained on are left out. Where it has one network per fold, each image is scored by the
    fold that held it out. If the member was trained on all images, they are scored anyway, and the metrics have
    `in_sample` true.

    Returns:
        The metrics, as metrics.json has them.

    Raises:
        ConfigError: The folder has no member, or a damaged one.
        SplitError: The data cannot be read, or have other classes than the member.
        UsageError: A setting does not fit the data.
    """
    member = load_for_evaluation(settings.member)
    target = member.target
    tiles = read_grouped(member.recipe, settings.data, competition, settings.limit, log)
    if tiles.classes != target.classes:
        found, wanted = ", ".join(tiles.classes), ", ".join(target.classes)
        raise SplitError(f"{settings.data}: its classes are {found}; the member's: {wanted}; give data of these")
    tiles, folds, in_sample = _held_out(tiles, member, log)
    outputs = member.predict(tiles.tiles, folds)
    images = predicted_images(outputs, tiles, member.pooling)
    images["fold"] = folds[_first_tiles(tiles)]
    units = member.calibrated(rows_to_score(images, target))
    metrics = {
        "member": settings.member.name,
        "data": settings.data.name,
        "in_sample": in_sample,
        "unlike_training_share": member.unlike_share(tiles),
        "unit": "patient" if target.by_patient else "image",
        "classes": list(target.classes),
        "positive": target.positive,
        **score(units, target),
        "competition_metric": _by_competition(units, member, competition),
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    _draw(settings.out, units, target)
    _write_page(settings, metrics, member, tiles, folds, outputs, images)
    atomic_write_text(settings.out / "predictions.csv", units.round(6).to_csv(index=False, lineterminator="\n"))
    atomic_write_json(settings.out / "metrics.json", metrics)
    return metrics


def _by_competition(units: pd.DataFrame, member: "LoadedMember", competition: Competition) -> dict[str, Any] | None:
    """Return the competition's metric, as metric_figures; None for pictures and for other classes."""
    if member.recipe.data.source != "slides" or competition.classes.names != member.target.classes:
        return None
    target, decision = replace(member.target, competition=competition), member.decision
    by_rule = decision is not None and decision.rule is competition.submission.rule
    answers = decision.apply(scored_of(units, target).probabilities) if decision is not None and by_rule else None
    return competition_figures(units, answers, target)


def lines(metrics: dict[str, Any], out: Path) -> list[str]:
    """Return the figures as lines for people, and the path of the page of errors."""
    figures = [
        f"{name.replace('_', ' '):18} {metrics[name]:.4f}   {_interval(metrics, name)}"
        for name in NAMES
        if metrics[name] is not None
    ]
    in_sample = ", in sample: the member was trained on them" if metrics["in_sample"] else ""
    unlike, by_competition = metrics["unlike_training_share"], metrics["competition_metric"]
    return [
        f"{metrics['member']} on {metrics['n']} {metrics['unit']}s of {metrics['data']}{in_sample}",
        *figures,
        *([] if by_competition is None else [f"by the competition: {metric_line(by_competition)}"]),
        *([] if unlike is None else [f"{100 * unlike:.1f} % of the images are unlike the member's training pictures"]),
        f"{out}/errors.html",
    ]


def _interval(metrics: dict[str, Any], name: str) -> str:
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return "" if low is None else f"{low:.4f} to {high:.4f}"


@dataclass(frozen=True)
class LoadedMember:
    """A member loaded outside a run, with the network and the calibration of each fold at hand."""

    recipe: Recipe
    target: EvaluationTarget
    model: Any  # Keras model of all its networks; an OnnxNetwork, or EncodedHeads
    networks: list[list[Network | OnnxNetwork | EncodedHeads]]  # by fold; one list if they were trained on all folds
    calibration: Calibration
    fold_calibrations: list[Calibration]  # by fold, each fitted on the other folds
    folds: dict[str, str]  # the fold of each image that it was made with, as split.csv has it
    where: Path  # its folder
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

    def unlike_share(self, tiles: TileSet) -> float | None:
        """Return the share of images that are unlike its training pictures; None without their statistics."""
        if self.familiarity is None:
            return None
        unlike = self.familiarity.distances(tiles) > self.familiarity.threshold
        return round(float(unlike.mean()), 6)

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
    recipe, metrics = files.recipe, files.metrics
    classes, folds = tuple(metrics["classes"]), int(metrics["networks_of_folds"])
    networks, model = _load_networks(folder, files, len(classes), folds)
    where = str(folder / CALIBRATION)
    split = pd.read_csv(folder / SPLIT, dtype=str) if (folder / SPLIT).is_file() else pd.DataFrame()
    return LoadedMember(
        recipe=recipe,
        target=EvaluationTarget(
            classes=classes,
            weights=tuple(metrics["class_weights"]),
            positive=metrics["positive"],
            clip=float(metrics["clip"]),
            floor=recipe.inference.floor,
            by_patient=metrics["unit"] == "patient",
        ),
        model=model,
        networks=networks,
        calibration=Calibration.from_json(files.calibration, where, len(classes)),
        fold_calibrations=[
            Calibration.from_json(one, where, len(classes)) for one in files.calibration.get("folds", [])
        ],
        where=folder,
        decision=read_decision(files.calibration, where, len(classes)),
        familiarity=read_familiarity(folder / FAMILIARITY),
        folds=dict(zip(split["image"], split["fold"], strict=True)) if len(split) else {},
    )


def _load_networks(folder: Path, files: MemberFiles, classes: int, folds: int) -> tuple[list[list[Any]], Any]:
    """Load the networks of a member by fold, and the model of all of them."""
    recipe = files.recipe
    if recipe.is_onnx:
        network = load_onnx_network(network_file(folder), recipe, classes)
        return [[network]], network
    if recipe.encoder is not None:
        heads, model = load_encoded_heads(folder, recipe, files.metrics, classes)
        return [[one] for one in heads], model
    networks, model = loading.load_networks(folder, recipe, classes, folds)
    per_fold = len(networks) // folds
    return [networks[start : start + per_fold] for start in range(0, len(networks), per_fold)], model


def _held_out(tiles: TileSet, member: LoadedMember, log: Log) -> tuple[TileSet, npt.NDArray[np.int64], bool]:
    """Return the tiles to score, the fold of each, and whether the networks were trained on them."""
    names = np.array([member.folds.get(image, "") for image in tiles.images])
    trained_on = (names == SPLIT_TRAIN) | (names == SPLIT_VALIDATION)
    left_out = trained_on | (names == SPLIT_DROPPED)
    if left_out.any() and not left_out.all():
        log(f"{int(left_out.sum())} of {len(tiles)} tiles are left out: the member was made with them")
        tiles, names, trained_on = tiles.where(~left_out), names[~left_out], trained_on[~left_out]
    folds = np.array([int(name) if name.isdecimal() else UNKNOWN for name in names], np.int64)
    trained_on_all = len(member.networks) == 1 and len(member.fold_calibrations) > 1
    in_sample = bool(trained_on.any() or (trained_on_all and (folds != UNKNOWN).any()))
    if in_sample:
        log(
            "the member was trained on these images: the figures are in sample and too good; "
            "its metrics.json has the out-of-fold figures"
        )
    return tiles, folds, in_sample


def _first_tiles(tiles: TileSet) -> list[int]:
    """Return the index of each image's first tile, in the order of the images."""
    first: dict[str, int] = {}
    for number, image in enumerate(tiles.images.tolist()):
        first.setdefault(image, number)
    return list(first.values())


def _draw(out: Path, units: pd.DataFrame, target: EvaluationTarget) -> None:
    scored = scored_of(units, target)
    for draw, name in (
        (plots.draw_confusion, "confusion"),
        (plots.draw_roc, "roc"),
        (plots.draw_calibration, "calibration"),
    ):
        draw(out / f"{name}.png", scored, target.classes, target.positive)


def _write_page(
    settings: EvaluateSettings,
    metrics: dict[str, Any],
    member: LoadedMember,
    tiles: TileSet,
    folds: npt.NDArray[np.int64],
    outputs: npt.NDArray[np.float64],
    images: pd.DataFrame,
) -> None:
    """Write errors.html: its tables count every image, its cards show the worst images."""
    shown, classes = member.calibrated(images), member.target.classes
    probabilities = shown[list(classes)].to_numpy(np.float64)  # [images, C]
    facts = shown[["image", "patient", "centre", "label"]].to_dict("records")
    errors = [
        ErrorRow(**row, probabilities=p)  # type: ignore[arg-type]
        for row, p in zip(facts, probabilities, strict=True)
    ]
    # Of tiles, [n, C]: with softmax the logits of rows, which tell more than probabilities near 1.
    are_values = member.recipe.output == "softmax" and member.recipe.encoder is None
    evidence = outputs if are_values else member.pooling.tile_probabilities(outputs)
    for index in worst_first(errors, settings.worst):
        of_image = np.flatnonzero(tiles.images == errors[index].image)
        predicted = int(errors[index].probabilities.argmax())
        clearest = of_image[evidence[of_image, predicted].argmax()]
        heat = member.heat(tiles.tiles[clearest], predicted, int(folds[clearest]))
        errors[index] = replace(errors[index], tile=tiles.tiles[clearest], heat=heat)
    title = f"{settings.member.name} on {settings.data.name}"
    write_errors(settings.out / "errors.html", title, _numbers(metrics), classes, errors, settings.worst)


def _numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Return the metrics that are numbers, or None in place of one."""
    return {
        name: value
        for name, value in metrics.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def grad_cam(network: Network, tile: npt.NDArray[np.uint8], target: int) -> npt.NDArray[np.float32]:
    """Return the Grad-CAM heat map float32[S, S], 0 to 1, of a class for a tile uint8[S, S, 3]."""
    pool, rows = network.features.get_layer("pooled"), network.head.layers[-1].name == "rows"

    def head(maps: Any) -> Any:
        return class_scores(network.head(pool(maps)), network.output, rows)  # [n, C]

    heat: npt.NDArray[np.float32] = heat_maps(network.maps, head, tile[None], np.array([target]))[0]
    return heat
