"""`clotkit evaluate`: a member's figures on labelled data, from its weights, and where it errs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clotkit.competitions import Competition
from clotkit.config import Recipe
from clotkit.data.grouped import read_grouped
from clotkit.data.tiles import TileSet
from clotkit.errors import SplitError
from clotkit.evaluation import plots
from clotkit.evaluation.errors_page import ErrorRow, worst_first, write_errors
from clotkit.evaluation.figures import NAMES
from clotkit.evaluation.scores import Aim, cross_calibrated, predicted_images, score, scored_of, units_of
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.members import loading
from clotkit.members.ensemble import Calibration
from clotkit.members.folder import CALIBRATION, SPLIT, SPLIT_TRAIN, SPLIT_VALIDATION, read_member
from clotkit.members.heat import heat_maps
from clotkit.members.networks import Network
from clotkit.members.predict import predict_committee, predictor
from clotkit.progress import Log

UNKNOWN = -1  # the fold of an image that the member has never met


@dataclass(frozen=True)
class EvaluateSettings:
    """What `clotkit evaluate` is asked for; `worst` images get a card on the page of errors."""

    member: Path
    data: Path
    out: Path
    limit: int | None = None
    worst: int = 48


def evaluate(settings: EvaluateSettings, competition: Competition, log: Log = print) -> dict[str, Any]:
    """Score a member on its kind of data; write metrics, predictions, pictures and errors.html into `out`.

    Images that the member was trained on are left out, or, where it holds a network a fold, scored by the one that has
    not seen them. When all were trained on, they are scored all the same: `in_sample` in the metrics is then true.
    Returns the metrics. Raises ConfigError, SplitError or UsageError for wrong input.
    """
    asked = load_asked(settings.member)
    tiles = read_grouped(asked.recipe, settings.data, competition, settings.limit, log)
    if tiles.classes != asked.aim.classes:
        seen, wanted = ", ".join(tiles.classes), ", ".join(asked.aim.classes)
        raise SplitError(f"{settings.data}: its classes are {seen}; the member's: {wanted}; give data of these")
    tiles, folds, in_sample = _unseen(tiles, asked, log)
    rows = asked.rows_of(tiles.tiles, folds)
    images = predicted_images(rows, tiles, asked.recipe.inference)
    images["fold"] = folds[_firsts(tiles)]
    units = asked.calibrated(units_of(images, asked.aim))
    metrics = {
        "member": settings.member.name,
        "data": settings.data.name,
        "in_sample": in_sample,
        "unit": "patient" if asked.aim.by_patient else "image",
        "classes": list(asked.aim.classes),
        "positive": asked.aim.positive,
        **score(units, asked.aim),
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    _draw(settings.out, units, asked.aim)
    _write_page(settings, metrics, asked, tiles, folds, rows, images)
    atomic_write_text(settings.out / "predictions.csv", units.round(6).to_csv(index=False, lineterminator="\n"))
    atomic_write_json(settings.out / "metrics.json", metrics)
    return metrics


def lines(metrics: dict[str, Any], out: Path) -> list[str]:
    """The figures as a person reads them, one a line, and where the pictures are."""
    said = [
        f"{name.replace('_', ' '):18} {metrics[name]:.4f}   {_between(metrics, name)}"
        for name in NAMES
        if metrics[name] is not None
    ]
    seen = ", trained on: in sample" if metrics["in_sample"] else ""
    return [
        f"{metrics['member']} on {metrics['n']} {metrics['unit']}s of {metrics['data']}{seen}",
        *said,
        f"{out}/errors.html",
    ]


def _between(metrics: dict[str, Any], name: str) -> str:
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return "" if low is None else f"{low:.4f} to {high:.4f}"


@dataclass(frozen=True)
class Asked:
    """A member that is asked outside a run: the model of all its networks, these fold by fold, their calibrations."""

    recipe: Recipe
    aim: Aim
    model: Any
    networks: list[list[Network]]
    calibration: Calibration
    crossed: list[Calibration]
    folds: dict[str, str]  # of the images that it was made with, as split.csv has them

    def rows_of(self, tiles: npt.NDArray[np.uint8], folds: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """What the networks say of tiles uint8 [n, S, S, 3]: those of a tile's fold [n], or all of them for UNKNOWN.

        Probabilities [n, C]; under attention logits [n, C + 1].
        """
        parts = [(folds == fold, self._of_fold(int(fold), tiles[folds == fold])) for fold in np.unique(folds)]
        found = np.zeros((len(tiles), parts[0][1].shape[1]))
        for chosen, rows in parts:
            found[chosen] = rows
        return found

    def calibrated(self, units: pd.DataFrame) -> pd.DataFrame:
        """Units with calibrated probabilities: by the calibration of their fold, which they had no part in."""
        return cross_calibrated(units, {UNKNOWN: self.calibration, **dict(enumerate(self.crossed))}, self.aim)

    def network(self, fold: int) -> Network:
        """The first network that images of a fold are asked of."""
        return self.networks[fold if fold != UNKNOWN and len(self.networks) > 1 else 0][0]

    def _of_fold(self, fold: int, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        batch, views = self.recipe.tiling.batch_tiles, self.recipe.inference.tta
        if fold == UNKNOWN or len(self.networks) == 1:
            return predictor(self.model, batch, views)(tiles).astype(np.float64)
        return predict_committee(self.networks[fold], tiles, self.recipe, batch)


def load_asked(folder: Path) -> Asked:
    """Load a member with each of its networks at hand. Raises ConfigError for a folder that is none, or damaged."""
    files = read_member(folder)
    recipe, metrics, raw = files.recipe, files.metrics, files.calibration
    classes, many = tuple(metrics["classes"]), int(metrics["networks_of_folds"])
    networks, model = loading.load_networks(folder, recipe, len(classes), many)
    each = len(networks) // many
    aim = Aim(
        classes=classes,
        weights=tuple(metrics["class_weights"]),
        positive=metrics["positive"],
        clip=float(metrics["clip"]),
        floor=recipe.inference.floor,
        by_patient=metrics["unit"] == "patient",
    )
    where = str(folder / CALIBRATION)
    split = pd.read_csv(folder / SPLIT, dtype=str) if (folder / SPLIT).is_file() else pd.DataFrame()
    return Asked(
        recipe,
        aim,
        model,
        [networks[start : start + each] for start in range(0, len(networks), each)],
        Calibration.from_json(raw, where),
        [Calibration.from_json(one, where) for one in raw.get("folds", [])],
        dict(zip(split["image"], split["fold"], strict=True)) if len(split) else {},
    )


def _unseen(tiles: TileSet, asked: Asked, log: Log) -> tuple[TileSet, npt.NDArray[np.int64], bool]:
    """The tiles that may be scored, the fold of each, and whether the networks were trained on them after all."""
    said = np.array([asked.folds.get(image, "") for image in tiles.images])
    seen = (said == SPLIT_TRAIN) | (said == SPLIT_VALIDATION)
    if seen.any() and not seen.all():
        log(f"{int(seen.sum())} of {len(tiles)} tiles were trained on and are left out")
        tiles, said = tiles.where(~seen), said[~seen]
    folds = np.array([int(fold) if fold.isdecimal() else UNKNOWN for fold in said], np.int64)
    trained_on_all = len(asked.networks) == 1 and len(asked.crossed) > 1
    in_sample = bool(seen.all() or (trained_on_all and (folds != UNKNOWN).any()))
    if in_sample:
        log("these images were trained on: the figures are in sample, and too good; metrics.json has those out of fold")
    return tiles, folds, in_sample


def _firsts(tiles: TileSet) -> list[int]:
    """The number of each image's first tile, in the order of the images."""
    first: dict[str, int] = {}
    for number, image in enumerate(tiles.images.tolist()):
        first.setdefault(image, number)
    return list(first.values())


def _draw(out: Path, units: pd.DataFrame, aim: Aim) -> None:
    scored = scored_of(units, aim)
    for draw, name in (
        (plots.draw_confusion, "confusion"),
        (plots.draw_roc, "roc"),
        (plots.draw_calibration, "calibration"),
    ):
        draw(out / f"{name}.png", scored, aim.classes, aim.positive)


def _write_page(
    settings: EvaluateSettings,
    metrics: dict[str, Any],
    asked: Asked,
    tiles: TileSet,
    folds: npt.NDArray[np.int64],
    rows: npt.NDArray[np.float64],
    images: pd.DataFrame,
) -> None:
    """errors.html: every image counts in its tables, the worst are shown by the tile that spoke loudest."""
    shown = asked.calibrated(images)
    said = shown[list(asked.aim.classes)].to_numpy(np.float64)  # [images, C]
    about = shown[["image", "patient", "centre", "label"]].to_dict("records")
    errors = [ErrorRow(**row, probabilities=p) for row, p in zip(about, said, strict=True)]  # type: ignore[arg-type]
    for index in worst_first(errors, settings.worst):
        its = np.flatnonzero(tiles.images == errors[index].image)
        decided = int(errors[index].probabilities.argmax())
        loudest = its[rows[its, decided].argmax()]
        tile = tiles.tiles[loudest]
        heat = heat_of(asked.network(int(folds[loudest])), tile, decided)
        errors[index] = replace(errors[index], tile=tile, heat=heat)
    title = f"{settings.member.name} on {settings.data.name}"
    write_errors(settings.out / "errors.html", title, score_only(metrics), asked.aim.classes, errors, settings.worst)


def score_only(metrics: dict[str, Any]) -> dict[str, float | None]:
    """The numbers among the metrics."""
    return {
        name: value
        for name, value in metrics.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def heat_of(network: Network, tile: npt.NDArray[np.uint8], target: int) -> npt.NDArray[np.float32]:
    """Grad-CAM of one network for one tile uint8[S, S, 3] and class: float32[S, S] in 0..1."""
    from keras import ops

    pool = network.features.get_layer("pooled")

    def rest(maps: Any) -> Any:
        rows = network.head(pool(maps))  # [n, C], under attention [n, C + 1], logits
        if network.head.layers[-1].name == "rows":
            return rows[:, :-1]
        inside = ops.clip(rows, 1e-6, 1 - 1e-6)
        return ops.log(inside) - ops.log(1 - inside)  # a probability near 1 has no slope, its logit has

    heat: npt.NDArray[np.float32] = heat_maps(network.maps, rest, tile[None], np.array([target]))[0]
    return heat
