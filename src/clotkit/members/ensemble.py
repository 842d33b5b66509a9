"""Combine the members' predictions for slides into one prediction per patient.

Either the members are calibrated and averaged, or a fitted ensemble combines them. numpy only.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.errors import ConfigError, WeightsError
from clotkit.members.blending import Blend
from clotkit.members.decision import Decision
from clotkit.members.pooling import TINY

Probabilities = npt.NDArray[np.float64]
ENSEMBLE, ENSEMBLE_CALIBRATION = "ensemble.toml", "calibration.json"  # beside the member folders


@dataclass(frozen=True)
class Calibration:
    """A calibration of probabilities: p_c -> softmax(slope * ln p_c + offset_c), clipped.

    The clipped probabilities are rescaled to sum to 1. For two classes this is Platt scaling on the logit; for more,
    temperature scaling with a bias (Guo et al. 2017, "On calibration of modern neural networks"). It is fitted for the
    metric's class weights, not for the class shares.
    """

    slope: float
    offsets: tuple[float, ...]  # one per class
    floor: float  # probabilities are clipped to [floor, 1 - floor]

    def apply(self, probabilities: npt.ArrayLike) -> Probabilities:
        """Return the calibrated probabilities [..., C] of raw ones [..., C]."""
        logs = np.log(np.clip(np.asarray(probabilities, np.float64), TINY, 1 - TINY))
        scores = self.slope * logs + np.array(self.offsets)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        clipped = np.clip(scores / scores.sum(axis=-1, keepdims=True), self.floor, 1 - self.floor)
        calibrated: Probabilities = clipped / clipped.sum(axis=-1, keepdims=True)
        return calibrated

    def to_json(self) -> dict[str, Any]:
        """Return the contents of calibration.json."""
        return {"method": "platt", "slope": self.slope, "offsets": list(self.offsets), "floor": self.floor}

    @classmethod
    def from_json(cls, raw: Any, where: str, classes: int | None = None) -> "Calibration":
        """Read the contents of calibration.json, `where` in messages. Raises ConfigError for others.

        Raises WeightsError for a NaN or an infinity, a negative slope, another number of offsets than `classes`, or a
        floor that leaves no probability; None: any number of offsets.
        """
        try:
            if raw["method"] != "platt":
                raise ConfigError(f"{where}: method is {raw['method']!r}; known: platt")
            found = cls(float(raw["slope"]), tuple(float(value) for value in raw["offsets"]), float(raw["floor"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: needs method, slope, offsets and floor: {error!r}") from error
        classes = max(len(found.offsets), 1) if classes is None else classes
        finite = np.isfinite([found.slope, found.floor, *found.offsets]).all()
        if not finite or found.slope < 0 or len(found.offsets) != classes or not 0 <= found.floor < 1 / classes:
            raise WeightsError(
                f"{where}: slope {found.slope}, offsets {found.offsets}, floor {found.floor}; needed: finite numbers, "
                f"a slope of at least 0, {classes} offsets, a floor from 0 to below {1 / classes:.3g}"
            )
        return found


def patient_mean(
    slides: Mapping[str, Mapping[str, Probabilities]], patient_of: Mapping[str, str]
) -> dict[str, dict[str, Probabilities]]:
    """Return the mean over each patient's slides: {image: {member: [C]}} -> {patient: {member: [C]}}."""
    grouped: dict[str, dict[str, list[Probabilities]]] = {}
    for image_id in sorted(slides):  # sorted, because slides finish in any order and a float sum depends on it
        for member, probabilities in slides[image_id].items():
            grouped.setdefault(patient_of[image_id], {}).setdefault(member, []).append(probabilities)
    return {
        patient: {member: np.mean(values, axis=0) for member, values in members.items()}
        for patient, members in grouped.items()
    }


def blend(members: Mapping[str, Probabilities], calibrations: Mapping[str, Calibration]) -> Sequence[float]:
    """Return one patient's probabilities [C]: the mean of its members' calibrated ones."""
    calibrated = [calibrations[member].apply(members[member]) for member in sorted(members)]
    return [float(value) for value in np.mean(calibrated, axis=0)]


@dataclass(frozen=True)
class Ensemble:
    """The ensemble of a folder of members, as `clotkit blend` fitted it."""

    blend: Blend
    decision: Decision | None = None  # from its probabilities to a label

    def apply(
        self, slides: Mapping[str, Mapping[str, Probabilities]], patient_of: Mapping[str, str]
    ) -> dict[str, list[float]]:
        """Return {patient: [2]} from {image: {member: [2]}} and the patient of each image.

        A member that is missing on a slide is imputed from the others. A slide that no member of the ensemble has seen
        does not count.
        """
        members = self.blend.members
        images = [image for image in sorted(slides) if any(name in members for name in slides[image])]
        if not images:
            return {}
        p = np.array(
            [[slides[image][name][1] if name in slides[image] else np.nan for name in members] for image in images]
        )  # [slides, members], nan where a member is missing
        patients, owner = np.unique([patient_of[image] for image in images], return_inverse=True)
        found = self.blend.apply(p, owner)
        return {patient: [1 - value, value] for patient, value in zip(patients.tolist(), found.tolist(), strict=True)}


def read_ensemble(weights_dir: Path, competition: Competition) -> Ensemble | None:
    """Return the ensemble of a folder of members, None if it has none.

    Raises ConfigError for an ensemble that cannot be read, or that is of another competition or an older clotkit.
    """
    path = weights_dir / ENSEMBLE
    if not path.is_file():
        return None
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        calibration = weights_dir / str(raw["calibration"])
        fitted = Blend.from_json(json.loads(calibration.read_text(encoding="utf-8")), str(calibration))
        slug, positive = raw["competition"], raw["positive"]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}; run clotkit blend again") from error
    wanted = (competition.slug, competition.classes.names[-1])
    if (slug, positive) != wanted:
        raise ConfigError(f"{path}: is for {positive} of {slug}; wanted: {wanted[1]} of {wanted[0]}")
    return Ensemble(fitted)
