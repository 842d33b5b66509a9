"""Combine the members' predictions for slides into one prediction per patient.

Either the members are calibrated and averaged, or a fitted ensemble combines them. It needs numpy and scipy only.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition
from clotkit.errors import ConfigError
from clotkit.members.blending import Blend, ClassBlend, cell_of, read_blend
from clotkit.members.calibration import Calibration
from clotkit.members.decision import Decision

Probabilities = npt.NDArray[np.float64]
ENSEMBLE, ENSEMBLE_CALIBRATION = "ensemble.toml", "calibration.json"  # beside the member folders


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

    blend: Blend | ClassBlend

    @property
    def shares(self) -> dict[str, float]:
        """Return the weight of each member; they sum to 1."""
        return dict(zip(self.blend.members, self.blend.calibrator.weights, strict=True))

    @property
    def decision(self) -> Decision | None:
        """Return the decision that was fitted with the ensemble; None if its answers are probabilities."""
        return self.blend.decision

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of slides' rows that it uses."""
        return self.blend.columns

    def missing_columns(self, facts: Mapping[str, str]) -> list[str]:
        """Return the columns that a slide's row lacks, whatever their spelling."""
        return [name for name in self.columns if cell_of(facts, name) is None]

    def apply(
        self,
        slides: Mapping[str, Mapping[str, Probabilities]],
        patient_of: Mapping[str, str],
        facts_of: Mapping[str, Mapping[str, str]] | None = None,
    ) -> dict[str, list[float]]:
        """Return {patient: [C]} from {image: {member: [C]}} and the patient of each image.

        A member that is missing on a slide is imputed from the others. A slide that no member of the ensemble has seen
        does not count. `facts_of` has the row of each image, for an ensemble that uses columns of it; a fact that is
        missing counts as an average one.
        """
        members = self.blend.members
        images = [image for image in sorted(slides) if any(name in members for name in slides[image])]
        if not images:
            return {}
        seen = next(iter(slides[images[0]].values()))
        missing = np.full(len(seen), np.nan)
        p = np.array([[slides[image].get(name, missing) for name in members] for image in images])  # [slides, M, C]
        patients, owner = np.unique([patient_of[image] for image in images], return_inverse=True)
        found = self.blend.probabilities(p, owner, [(facts_of or {}).get(image, {}) for image in images])
        return dict(zip(patients.tolist(), found.tolist(), strict=True))


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
        fitted = read_blend(json.loads(calibration.read_text(encoding="utf-8")), str(calibration))
        slug, classes = raw["competition"], tuple(raw.get("classes", [raw["positive"]]))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error!r}; run clotkit blend again") from error
    names = competition.classes.names
    wanted = names if "classes" in raw else names[-1:]  # the toml of two classes has the positive one only
    if (slug, classes) != (competition.slug, wanted) or fitted.classes != len(names):
        found = ", ".join(map(str, classes))
        raise ConfigError(f"{path}: is for {found} of {slug}; wanted: {', '.join(wanted)} of {competition.slug}")
    return Ensemble(fitted)
