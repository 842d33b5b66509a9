"""Import of ONNX files as members, and export of members as ONNX files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clotkit.app.prediction import load
from clotkit.app.training import card_of, training_of
from clotkit.batching import noise
from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.errors import ConfigError
from clotkit.files import sha256
from clotkit.members.calibration import Calibration
from clotkit.members.folder import SPLIT_TRAIN, find_members, read_member
from clotkit.members.loading import load_member
from clotkit.options import DONE, WRONG
from clotkit.training.member_folder import write_manifest

from . import onnx_models as models
from .onnx_members import TABLE, onnx_recipe, write_onnx_member

CLASSES = ("CE", "LAA")
SLIDES = 60
Files = dict[str, Path]


@pytest.fixture
def inputs(tmp_path: Path) -> Files:
    """Write a sound model, its recipe, labels and out-of-fold predictions that are too sure of themselves."""
    rng = np.random.default_rng(3)
    patients = [f"{number:06x}" for number in range(1, SLIDES + 1)]
    images = [f"{patient}_0" for patient in patients]
    label = rng.integers(0, 2, SLIDES)
    p = 1 / (1 + np.exp(-4 * (label - 0.5) - 4 * rng.normal(size=SLIDES)))
    table = {"image_id": images, "center_id": rng.integers(1, 4, SLIDES), "patient_id": patients, "image_num": 0}
    pd.DataFrame(table | {"label": np.array(CLASSES)[label]}).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"image_id": images, "predictions": p}).to_csv(tmp_path / "oof.csv", index=False)
    (tmp_path / "other.toml").write_text(onnx_recipe())
    return {
        "model": models.save(models.model(output="logits"), tmp_path / "net.onnx"),
        "recipe": tmp_path / "other.toml",
        "oof": tmp_path / "oof.csv",
        "labels": tmp_path / "train.csv",
        "out": tmp_path / "weights" / "other",
    }


def imported(files: Files, *more: str) -> int:
    """Run `clotkit member import` and return its exit code."""
    options = [word for key in ("recipe", "oof", "labels", "out") for word in (f"--{key}", str(files[key]))]
    return main(["member", "import", str(files["model"]), *options, *more])


def test_an_imported_member_is_a_member(inputs: Files, strip_ai: Competition) -> None:
    assert imported(inputs) == DONE
    member = load_member(inputs["out"], CLASSES, strip_ai.slug)
    assert member.predict(noise(32, 3)).shape == (3, 2)
    assert member.calibration.slope < 0.8  # the predictions are too sure
    metrics = json.loads((inputs["out"] / "metrics.json").read_text())
    assert metrics["weighted_log_loss"] < metrics["weighted_log_loss_uncalibrated"]
    assert metrics["onnx"]["sha256"] == member.weights_sha256 == sha256(inputs["model"])
    assert (metrics["onnx"]["opset"], metrics["onnx"]["producer"]) == (models.OPSET, "tests")
    assert metrics["oof_sha256"] == sha256(inputs["oof"])
    assert write_manifest(inputs["out"].parent) == 1
    assert [path.name for path in inputs["out"].parent.iterdir() if path.name.startswith(".")] == []


def test_slides_without_a_prediction_are_known_to_the_member(inputs: Files) -> None:
    """The network was trained on all labelled slides."""
    table(lambda rows: rows[:50])(inputs)
    assert imported(inputs) == DONE
    split = pd.read_csv(inputs["out"] / "split.csv", dtype=str).set_index("image")["fold"]
    assert len(split) == SLIDES
    assert (split[split == SPLIT_TRAIN].index == pd.read_csv(inputs["labels"])["image_id"][50:]).all()


def test_what_a_killed_import_left_and_folders_in_a_member_do_not_count(inputs: Files) -> None:
    assert imported(inputs) == DONE
    weights = inputs["out"].parent
    (weights / ".other.left").mkdir()
    (weights / ".other.left" / "recipe.toml").write_bytes(inputs["recipe"].read_bytes())
    (inputs["out"] / ".cache").mkdir()
    assert find_members(weights) == [inputs["out"]]
    assert main(["manifest", str(weights)]) == DONE
    assert {name.split("/")[0] for name in json.loads((weights / "MANIFEST.json").read_text())} == {"other"}


def test_the_application_shows_an_imported_member(inputs: Files) -> None:
    assert imported(inputs) == DONE
    training = training_of(inputs["out"], load(inputs["out"]))
    assert training.units == SLIDES
    assert set(training.plots) == {"Confusion matrix", "ROC", "Calibration"}
    assert "Not for clinical use" in card_of(inputs["out"])


def test_the_calibration_of_a_fold_is_fitted_on_the_others(inputs: Files) -> None:
    table = pd.read_csv(inputs["oof"]).assign(fold=np.arange(SLIDES) % 3)
    table.to_csv(inputs["oof"], index=False)
    assert imported(inputs) == DONE
    calibration = json.loads((inputs["out"] / "calibration.json").read_text())
    assert len(calibration["folds"]) == 3
    assert pd.read_csv(inputs["out"] / "oof.csv")["fold"].tolist() == (np.arange(SLIDES) % 3).tolist()
    fold = pd.read_csv(inputs["out"] / "split.csv")
    assert fold["fold"].nunique() == 3
    assert all(Calibration.from_json(one, "", 2).slope > 0 for one in calibration["folds"])


def test_the_network_is_checked_on_tiles_of_a_split(
    inputs: Files, make_split: Callable[..., Path], tmp_path: Path, strip_ai: Competition
) -> None:
    split = make_split(tmp_path / "split", strip_ai, split="train", slides=3)
    assert imported(inputs, "--data", str(split)) == DONE
    metrics = json.loads((inputs["out"] / "metrics.json").read_text())
    assert metrics["onnx"]["checked_on"] == "split"
    assert metrics["onnx"]["checked_tiles"] > 0


def test_external_data_comes_along(inputs: Files) -> None:
    models.save_external(models.model(output="logits"), inputs["model"])
    assert imported(inputs) == DONE
    assert (inputs["out"] / "weights.bin").is_file()
    assert set(json.loads((inputs["out"] / "metrics.json").read_text())["onnx"]["files"]) == {"weights.bin"}
    load_member(inputs["out"], CLASSES)


def keep(made: Any) -> Callable[[Files], None]:
    """Return a function that saves another model."""

    def change(files: Files) -> None:
        models.save(made, files["model"])

    return change


def recipe(table: str) -> Callable[[Files], None]:
    """Return a function that writes another table onnx."""

    def change(files: Files) -> None:
        files["recipe"].write_text(onnx_recipe(table))

    return change


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Files], None]:
    """Return a function that changes the table of predictions."""

    def changed(files: Files) -> None:
        change(pd.read_csv(files["oof"])).to_csv(files["oof"], index=False)

    return changed


def relabel(files: Files) -> None:
    """Give all slides one class."""
    pd.read_csv(files["labels"], dtype=str).assign(label="CE").to_csv(files["labels"], index=False)


WRONGS: dict[str, tuple[Callable[[Files], object], str]] = {
    "no model": (lambda files: files["model"].unlink(), "net.onnx: No such file"),
    "text": (lambda files: files["model"].write_text("PK"), "no ONNX file"),
    "cut": (lambda files: files["model"].write_bytes(files["model"].read_bytes()[:-9]), "cut short"),
    "opset": (keep(models.model(output="logits", opset=99)), "has opset 99 of ai.onnx, onnxruntime"),
    "custom operator": (keep(models.foreign()), "custom operators (Stain of my.ops)"),
    "data missing": (
        lambda files: models.save_external(models.model(), files["model"], told="gone.bin"),
        "external data gone.bin is missing",
    ),
    "data of a URL": (
        lambda files: models.save_external(models.model(), files["model"], told="http://host/w.bin"),
        "'http://host/w.bin'; only a file beside it",
    ),
    "data in a member's file": (
        lambda files: models.save_external(models.model(output="logits"), files["model"], "metrics.json"),
        "metrics.json has the name",
    ),
    "classes": (keep(models.model(output="logits", classes=5)), "returns 5 values a tile; there are 2 classes"),
    "side": (keep(models.model(("n", 3, 48, 48))), "has to be [n, 3, 32, 32]"),
    "channels": (keep(models.model(("n", 4, 32, 32))), "has to be [n, 3, 32, 32]"),
    "logits as probabilities": (recipe("[onnx]\n"), 'set onnx.output = "logits"'),
    "probabilities as logits": (keep(models.model()), 'set onnx.output = "probabilities"'),
    "a sigmoid as logit": (keep(models.sigmoids(1)), 'set onnx.output = "probabilities"'),
    "sigmoids as logits": (keep(models.sigmoids(2)), "before the sigmoid"),
    "a sequence": (keep(models.sequence()), "the output out is seq(tensor(float))"),
    "no columns": (keep(models.no_columns()), "has to be [n, K]"),
    "exchanged": (table(lambda rows: rows.assign(predictions=1 - rows["predictions"])), "columns of the classes"),
    "nan": (keep(models.not_a_number()), "NaN or infinity for 24 of 24 tiles"),
    "batch": (keep(models.centred_in_batch()), "depend on the tiles beside it"),
    "chance": (keep(models.random()), "answers differently when asked again"),
    "blind": (keep(models.blind()), "the same values for all 24 tiles"),
    "keras recipe": (lambda files: files["recipe"].write_text(load_demo()), 'to import it is "onnx"'),
    "no predictions": (lambda files: files["oof"].unlink(), "oof.csv"),
    "probability": (table(lambda rows: rows.assign(predictions=2.0)), "no probability"),
    "strangers": (table(lambda rows: rows.assign(image_id="x")), "0 of its 60 images"),
    "few": (table(lambda rows: rows[:20]), "lack a prediction"),
    "no patient of a class": (relabel, "predicts 0 patients of class LAA"),
    "constant": (table(lambda rows: rows.assign(predictions=0.5)), "constant"),
    "there already": (lambda files: files["out"].mkdir(parents=True), "exists already"),
}


def load_demo() -> str:
    """Return the text of a recipe of Keras networks."""
    from clotkit.config import recipe_path

    return recipe_path("demo").read_text(encoding="utf-8")


@pytest.mark.parametrize("wrong", WRONGS)
def test_wrong_input_is_one_line_and_leaves_nothing(
    wrong: str, inputs: Files, capfd: pytest.CaptureFixture[str]
) -> None:
    change, told = WRONGS[wrong]
    change(inputs)
    before = sorted(inputs["out"].parent.glob("*"))
    assert imported(inputs) == WRONG
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    weights = inputs["out"].parent
    assert sorted(weights.glob("*")) == before
    assert not weights.exists() or not [path for path in weights.iterdir() if path.name.startswith(".")]


def test_a_file_that_changed_after_the_import_is_refused(inputs: Files, capfd: pytest.CaptureFixture[str]) -> None:
    assert imported(inputs) == DONE
    models.save(models.model(output="logits", opset=16), inputs["out"] / "model.onnx")
    with pytest.raises(ConfigError, match="sha256"):
        read_member(inputs["out"])


@pytest.mark.slow
def test_an_exported_member_answers_as_the_member(keras_member: Path, tmp_path: Path) -> None:
    assert main(["member", "export", str(keras_member), "--out", str(tmp_path / "out")]) == DONE
    tiles = noise(32, 9)
    one, other = load_member(keras_member, CLASSES), load_member(tmp_path / "out", CLASSES)
    np.testing.assert_allclose(one.predict(tiles), other.predict(tiles), atol=1e-5)
    assert load_recipe(tmp_path / "out" / "recipe.toml").tiling == one.recipe.tiling


def test_an_onnx_member_is_not_exported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_onnx_member(tmp_path / "one", CLASSES, None, onnx_recipe(TABLE))
    assert main(["member", "export", str(folder), "--out", str(tmp_path / "out")]) == WRONG
    assert not (tmp_path / "out").exists()
