"""Test the benchmark of whole recipes: its recipes, its split, its scores and its going on."""

import json
import math
from pathlib import Path

import pytest

from bench import recipes
from bench.recipes import CASES, SLIDES, Case, divided, figures, main
from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.errors import UsageError
from clotkit.members.backbones import LITE0
from clotkit.members.networks import MODEL_REGISTRY
from clotkit.splits import read_slides
from clotkit.synthetic.phantom import write_split

from .conftest import ROOT


def write_train(folder: Path, competition: Competition, patients: int) -> Path:
    """Write the table of a train split: `patients` of each class with two slides each, no files."""
    rows = ["image_id,center_id,patient_id,image_num,label"]
    for number in range(2 * patients):
        label = competition.classes.names[number % 2]
        rows += [f"{number:06x}_{slide},1,{number:06x},{slide},{label}" for slide in range(2)]
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder


def call(monkeypatch: pytest.MonkeyPatch, data: Path, *options: str) -> int:
    """Call the command with its results beside the data."""
    beside = ["--work", str(data.parent / "work"), "--out", str(data.parent / "out.json")]
    monkeypatch.setattr("sys.argv", ["bench.recipes", str(data), *beside, *options])
    return main()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_row_is_a_recipe_with_the_weights_that_are_there(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(case.text(tmp_path), encoding="utf-8")
    recipe, shipped = load_recipe(path), load_recipe(case.recipe)
    assert {model.weights for model in recipe.model} == {"none"}
    assert (recipe.name, recipe.training.folds, recipe.card) == (case.name, 2, shipped.card)
    (tmp_path / LITE0).touch()
    path.write_text(case.text(tmp_path), encoding="utf-8")
    assert all((model.weights == "imagenet") == ("lite0" in model.name) for model in load_recipe(path).model)


def test_the_rows_have_every_network_with_a_backbone() -> None:
    names = {model.name for case in CASES for model in load_recipe(case.recipe).model}
    names |= {case.changes["model"]["name"] for case in CASES if "model" in case.changes}
    assert names == {name for name, spec in MODEL_REGISTRY.items() if spec.backbone} | {"cnn"}


def test_the_held_out_patients_are_not_trained_on(tmp_path: Path, strip_ai: Competition) -> None:
    slides = read_slides(write_train(tmp_path / "train", strip_ai, 7), "train", strip_ai)
    train, test = divided(slides, 5, 3)
    for label in (0, 1):
        patients, held_out = ({one.patient_id for one in part if one.label == label} for part in (train, test))
        assert (len(patients), len(held_out)) == (4, 3)
        assert not patients & held_out
    assert (len(train), len(test)) == (10, 12)
    with pytest.raises(UsageError):
        divided(slides, 5, 4)


def test_the_scores_of_a_submission(tmp_path: Path, strip_ai: Competition) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("patient_id,CE,LAA\na,0.5,0.5\nb,0.8,0.2\nc,0.1,0.9\n")
    found = figures(path, {"c": 1, "a": 0, "b": 0}, strip_ai)
    loss = (-(math.log(0.5) + math.log(0.8)) / 2 - math.log(0.9)) / 2
    assert found == {"n": 3, "weighted_log_loss": pytest.approx(loss), "accuracy": 1.0, "auc": 1.0}


def test_rows_that_are_done_stay_and_the_others_are_started_again(
    tmp_path: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_train(tmp_path / "data" / SLIDES, strip_ai, 8)
    started: list[str] = []

    def row(case: Case, *_: object) -> dict[str, object]:
        started.append(case.name)
        return {"failed": "broken" if case.name == "strip_ai" else None, "data": SLIDES, "steps": {}, **DONE}

    monkeypatch.setattr(recipes, "_row", row)
    names = ["patches_cnn", "strip_ai"]
    assert call(monkeypatch, tmp_path / "data", "--only", *names) == 1
    assert call(monkeypatch, tmp_path / "data", "--only", *names) == 1
    assert started == ["strip_ai", "patches_cnn", "strip_ai"]
    assert call(monkeypatch, tmp_path / "data", "--only", "patches_cnn") == 0
    assert call(monkeypatch, tmp_path / "data", "--only", "patches_cnn", "--limit", "7") == 0
    assert started[3:] == ["patches_cnn"]
    assert call(monkeypatch, tmp_path / "data", "--only", "patches_vgg16", "--minutes", "0") == 1
    assert len(started) == 4
    assert call(monkeypatch, tmp_path / "data" / SLIDES) == 2


COST = {"seconds": 1.0, "cpu_s": 1.0, "peak_mb": 1.0}
DONE = {
    "material": {"images": 1, "tiles": 1}, "estimate": "out of fold", "unit": "patient", "n": 1, "constant": 0.7,
    "weighted_log_loss": 0.7, "accuracy": 0.5, "auc": None, "weights": "none", "weights_mb": 1.0, "total": COST,
}  # fmt: skip


@pytest.mark.soak
def test_a_row_goes_the_whole_way(
    tmp_path: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path / "data" / SLIDES, "train", 28, 5, strip_ai, size="1280x1920", log=lambda _: None)
    options = ["--only", "patches_cnn", "--limit", "4", "--held-out", "1"]
    assert call(monkeypatch, tmp_path / "data", *options, "--wheels", str(ROOT / "build" / "wheels")) == 0
    assert "patches_cnn" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["failed"] is None
    codes = {step: facts["code"] for step, facts in row["steps"].items()}
    assert codes == {"train": 0, "killed": -9, "resumed": 0, "evaluate": 0, "rehearse": 0}
    assert row["material"]["images"] == 8
    assert row["test"]["n"] == 2
    assert 0 < row["test"]["weighted_log_loss"] < 5
