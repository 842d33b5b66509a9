"""From tiles to patients: means over tiles, slides and members, and the calibration in between. numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import ConfigError

Probabilities = npt.NDArray[np.float64]
TINY = 1e-4  # probabilities are clipped here before the logarithm: a net's 1.0 is not evidence without end


@dataclass(frozen=True)
class Calibration:
    """p_c -> softmax(slope * ln p_c + offset_c), then clipped to [floor, 1 - floor] and rescaled.

    For two classes this is Platt scaling on the logit; for more, temperature scaling with a bias (Guo et al. 2017,
    "On calibration of modern neural networks"). Fitted for the metric's class weights, not the class shares.
    """

    slope: float
    offsets: tuple[float, ...]
    floor: float

    def apply(self, probabilities: npt.ArrayLike) -> Probabilities:
        """Calibrated probabilities [..., C] of raw ones [..., C]."""
        logs = np.log(np.clip(np.asarray(probabilities, np.float64), TINY, 1 - TINY))
        scores = self.slope * logs + np.array(self.offsets)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        clipped = np.clip(scores / scores.sum(axis=-1, keepdims=True), self.floor, 1 - self.floor)
        calibrated: Probabilities = clipped / clipped.sum(axis=-1, keepdims=True)
        return calibrated

    def to_json(self) -> dict[str, Any]:
        """As calibration.json has it."""
        return {"method": "platt", "slope": self.slope, "offsets": list(self.offsets), "floor": self.floor}

    @classmethod
    def from_json(cls, raw: Any, where: str) -> "Calibration":
        """Of what calibration.json says; raises ConfigError when it says something else."""
        try:
            if raw["method"] != "platt":
                raise ConfigError(f"{where}: method is {raw['method']!r}; known: platt")
            return cls(float(raw["slope"]), tuple(float(value) for value in raw["offsets"]), float(raw["floor"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: needs method, slope, offsets and floor: {error!r}") from error


def patient_mean(
    slides: Mapping[str, Mapping[str, Probabilities]], patient_of: Mapping[str, str]
) -> dict[str, dict[str, Probabilities]]:
    """Mean over each patient's slides: {image: {member: [C]}} -> {patient: {member: [C]}}."""
    gathered: dict[str, dict[str, list[Probabilities]]] = {}
    for image_id in sorted(slides):  # in a fixed order: a float sum depends on it, and slides finish in any
        for member, probabilities in slides[image_id].items():
            gathered.setdefault(patient_of[image_id], {}).setdefault(member, []).append(probabilities)
    return {
        patient: {member: np.mean(values, axis=0) for member, values in members.items()}
        for patient, members in gathered.items()
    }


def blend(members: Mapping[str, Probabilities], calibrations: Mapping[str, Calibration]) -> Sequence[float]:
    """One patient's probabilities: each member's, calibrated, then their plain mean."""
    calibrated = [calibrations[member].apply(members[member]) for member in sorted(members)]
    return [float(value) for value in np.mean(calibrated, axis=0)]
