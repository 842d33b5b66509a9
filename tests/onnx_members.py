"""Write member folders with small ONNX files."""

import json
from pathlib import Path
from typing import Any

from clotkit.members import folder as files
from clotkit.members.calibration import Calibration

from . import onnx_models as models
from .conftest import RECIPE

TABLE = '[onnx]\noutput = "logits"\n'


def onnx_recipe(table: str = TABLE, inference: str = "") -> str:
    """Return the small recipe of the tests with an ONNX file in the place of its network."""
    tiling = RECIPE.split("[model]")[0]
    return f'{tiling}[model]\nname = "onnx"\n\n{table}{inference}'


def write_onnx_member(folder: Path, classes: tuple[str, ...], made: Any = None, recipe: str | None = None) -> Path:
    """Write a member with an ONNX file and the identity as calibration, and return its folder."""
    folder.mkdir(parents=True)
    models.save(made or models.model(output="logits", classes=len(classes)), folder / "model.onnx")
    (folder / files.RECIPE).write_text(recipe or onnx_recipe())
    facts = {"classes": list(classes), "networks_of_folds": 1, "class_weights": [0.5, 0.5], "clip": 1e-15}
    facts |= {"positive": classes[-1], "unit": "patient"}
    (folder / files.METRICS).write_text(json.dumps(facts))
    identity = Calibration(slope=1.0, offsets=(0.0,) * len(classes), floor=0.01)
    (folder / files.CALIBRATION).write_text(json.dumps(identity.to_json()))
    return folder
