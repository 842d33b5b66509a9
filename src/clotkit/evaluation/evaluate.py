"""Evaluate a member on labelled data: its figures, plots, predictions, and a page of its worst errors."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.data.grouped import read_grouped
from clotkit.data.pictures import check_out_of_data
from clotkit.data.tiles import TileSet
from clotkit.errors import SplitError, UsageError
from clotkit.evaluation import plots
from clotkit.evaluation.errors_page import ErrorRow, worst_first, write_errors
from clotkit.evaluation.figures import NAMES
from clotkit.evaluation.known_images import UNKNOWN, Match
from clotkit.evaluation.loaded_member import LoadedMember, load_for_evaluation
from clotkit.evaluation.scores import (
    EvaluationTarget,
    competition_figures,
    metric_line,
    predicted_images,
    rows_to_score,
    score,
    scored_of,
)
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.members.folder import METRICS, RECIPE, SPLIT_DROPPED, SPLIT_TRAIN, SPLIT_VALIDATION
from clotkit.progress import Log


@dataclass(frozen=True)
class EvaluateSettings:
    """The settings of one `clotkit evaluate`."""

    member: Path
    data: Path
    out: Path
    limit: int | None = None  # images of each class; None: all


def evaluate(settings: EvaluateSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Score a member; write metrics.json, predictions.csv, plots and errors.html into `out`.

    Images that the member was trained on are left out: pictures are known by their pixels, else by their names, and new
    images by their patient or by a known picture that they are near-identical to. Where it has one network per fold,
    each image is scored by the fold that held it out. If the member was trained on all images of the data, they are
    scored anyway, and the metrics have `in_sample` true.

    Returns:
        The metrics, as metrics.json has them.

    Raises:
        ConfigError: The folder has no member, or a damaged one.
        SplitError: The data cannot be read, or have other classes than the member.
        UsageError: A setting does not fit the data, or `out` is a member's folder, or among the data.
    """
    _check_out(settings.out)
    member = load_for_evaluation(settings.member)
    target = member.target
    tiles, known, in_sample = _held_out(_read_tiles(settings, member, competition, log), member, log)
    folds, distances = known.folds, member.distances(tiles, known)
    outputs = member.predict(tiles.tiles, folds)
    images = predicted_images(outputs, tiles, member.pooling)
    images["fold"] = folds[tiles.first_rows()]
    units = member.calibrated(rows_to_score(images, target))
    metrics = {
        "member": settings.member.name,
        "data": settings.data.name,
        "in_sample": in_sample,
        "renamed": known.renamed,
        "other_pixels": known.other_pixels,
        "of_known_patients": known.of_known_patients,
        **_unlike(distances),
        "unit": "patient" if target.by_patient else "image",
        "classes": list(target.classes),
        "positive": target.positive,
        **score(units, target),
        "competition_metric": _by_competition(units, member, competition),
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    _draw(settings.out, units, target)
    _write_page(settings, metrics, member, tiles, folds, outputs, images)
    if distances is not None and not target.by_patient:
        units = units.join(distances, on="image")
    atomic_write_text(settings.out / "predictions.csv", units.round(6).to_csv(index=False, lineterminator="\n"))
    atomic_write_json(settings.out / "metrics.json", metrics)
    return metrics


def _check_out(out: Path) -> None:
    """Raise UsageError for a folder of results that would overwrite a member."""
    if (out / RECIPE).is_file():
        raise UsageError(f"--out is {out}, the folder of a member, whose {METRICS} would be lost; give another folder")


def _read_tiles(settings: EvaluateSettings, member: LoadedMember, competition: Competition, log: Log) -> TileSet:
    """Return the labelled tiles. Raises SplitError if their classes are not the member's."""
    check_out_of_data(settings.out, settings.data, member.recipe.data)
    tiles = read_grouped(member.recipe, settings.data, competition, settings.limit, log)
    if tiles.classes != member.target.classes:
        found, wanted = ", ".join(tiles.classes), ", ".join(member.target.classes)
        raise SplitError(f"{settings.data}: its classes are {found}; the member's: {wanted}; give data of these")
    return tiles


def _unlike(distances: pd.DataFrame | None) -> dict[str, float | int | None]:
    """Return how many images could be judged, and the share of unlike ones; None where there are none."""
    if distances is None:
        return {"unlike_training_images": None, "unlike_training_share": None}
    share = round(float(distances["unlike_training"].mean()), 6) if len(distances) else None
    return {"unlike_training_images": len(distances), "unlike_training_share": share}


def _by_competition(units: pd.DataFrame, member: LoadedMember, competition: Competition) -> dict[str, Any] | None:
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
    unlike, judged = metrics["unlike_training_share"], metrics["unlike_training_images"]
    by_competition = metrics["competition_metric"]
    return [
        f"{metrics['member']} on {metrics['n']} {metrics['unit']}s of {metrics['data']}{in_sample}",
        *figures,
        *([] if by_competition is None else [f"by the competition: {metric_line(by_competition)}"]),
        *([] if unlike is None else [f"{100 * unlike:.1f} % of {judged} images are unlike its training pictures"]),
        f"{out}/errors.html",
    ]


def _interval(metrics: dict[str, Any], name: str) -> str:
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return "" if low is None else f"{low:.4f} to {high:.4f}"


def _held_out(tiles: TileSet, member: LoadedMember, log: Log) -> tuple[TileSet, Match, bool]:
    """Return the tiles to score, what the member knows of them, and if it was trained on them."""
    known = member.known.match(tiles)
    if known.renamed:
        log(f"{known.renamed} images have the pixels of images that the member was made with, and other names")
    if known.other_pixels:
        taken = "are new" if member.known.are_indices else "are taken for these: rename those that are others"
        log(f"{known.other_pixels} images have names that the member was made with, and other pixels; they {taken}")
    if known.of_known_patients:
        log(
            f"{known.of_known_patients} new images are of patients that the member was made with, or near-identical to "
            "their pictures, and count as theirs"
        )
    trained_on = np.isin(known.words, [SPLIT_TRAIN, SPLIT_VALIDATION])
    if member.trained_on_all:
        trained_on |= known.folds != UNKNOWN
    left_out = trained_on | (known.words == SPLIT_DROPPED)
    if left_out.any() and not left_out.all():
        log(f"{int(left_out.sum())} of {len(tiles)} tiles are left out: the member was made with them")
        tiles, known, trained_on = tiles.where(~left_out), known.where(~left_out), trained_on[~left_out]
    in_sample = bool(trained_on.any())
    if in_sample:
        log(
            "the member was trained on these images: the figures are in sample and too good; "
            "its metrics.json has the out-of-fold figures"
        )
    return tiles, known, in_sample


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
    shown, target = member.calibrated(images), member.target
    probabilities = shown[list(target.classes)].to_numpy(np.float64)  # [images, C]
    facts = shown[["image", "patient", "centre", "label"]].to_dict("records")
    errors = [
        ErrorRow(**row, probabilities=p)  # type: ignore[arg-type]
        for row, p in zip(facts, probabilities, strict=True)
    ]
    # Of tiles, [n, C]: with softmax the logits of rows, which tell more than probabilities near 1.
    are_values = member.recipe.output == "softmax" and member.recipe.encoder is None
    evidence = outputs if are_values else member.pooling.tile_probabilities(outputs)
    rows = tiles.rows_by_image()  # in the order of `images`
    for index in worst_first(errors, target.clip):
        of_image = rows[index]
        predicted = target.predicted_index(errors[index].probabilities)
        clearest = of_image[evidence[of_image, predicted].argmax()]
        heat = member.heat(tiles.tiles[clearest], predicted, int(folds[clearest]))
        errors[index] = replace(errors[index], tile=tiles.tiles[clearest], heat=heat)
    title = f"{settings.member.name} on {settings.data.name}"
    write_errors(settings.out / "errors.html", title, _numbers(metrics), target, errors)


def _numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Return the metrics that are numbers, or None in place of one."""
    return {
        name: value
        for name, value in metrics.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }
