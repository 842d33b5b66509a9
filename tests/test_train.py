"""Test training end to end on small data: loading, equal runs for equal seeds, resuming a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from clotkit.cli import main
from clotkit.competitions import Competition, Form, Rule, Submission, Unit
from clotkit.competitions.schema import Metric
from clotkit.errors import ConfigError, UsageError, WeightsError
from clotkit.evaluation.loaded_member import load_for_evaluation
from clotkit.locks import exclusive_folder
from clotkit.members.folder import check_member, read_member
from clotkit.members.loading import load_member
from clotkit.training.member_folder import write_manifest
from clotkit.training.train import TrainSettings, train

from .conftest import RECIPE, ROOT

SIDE_PX = 16
COLOURS = """
name = "colours"

[data]
source = "npz"
split = "{split}"
classes = ["red", "blue"]

[tiling]
name = "whole"
tile_px = 16
downsample = 1
max_tiles = 1
batch_tiles = 16

[model]
name = "cnn"
filters = [4]
dropout = 0.2

[augment]
rotate_flip = true
shift = 0.1

[training]
seed = 3
epochs = {epochs}
batch_tiles = 16
learning_rate = 1e-2
folds = 3
{training}
"""


def colours(folder: Path, split: str = "given", epochs: int = 3, training: str = "") -> str:
    """Write noisy pictures that are red or blue and a recipe for them; return the path of the recipe."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 40), ("val", 16), ("test", 16)):
        labels = np.arange(count) % 2
        pictures = rng.integers(0, 160, (count, SIDE_PX, SIDE_PX, 3))
        pictures[labels == 0, :, :, 0] += 40
        pictures[labels == 1, :, :, 2] += 40
        arrays |= {f"{part}_images": pictures.astype(np.uint8), f"{part}_labels": labels[:, None]}
    np.savez(folder / "colours.npz", **arrays)
    path = folder / "colours.toml"
    path.write_text(COLOURS.format(split=split, epochs=epochs, training=training))
    return str(path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def made(
    make_split: Callable[..., Path], recipe: str, tmp_path_factory: pytest.TempPathFactory, strip_ai: Competition
) -> tuple[Path, Path, list[str]]:
    """Return a train split with one broken slide, a folder of two members trained on it, and the log.

    The first line of the log is the id of the broken slide.
    """
    folder = tmp_path_factory.mktemp("made")
    data = make_split(folder / "train", strip_ai, split="train", slides=8)
    broken = sorted((data / "train").glob("*.tif"))[0]
    broken.write_bytes(broken.read_bytes()[:2000])
    lines = [broken.stem]
    for name in ("one", "two"):
        train(TrainSettings(recipe, data, folder / "weights" / name), strip_ai, lines.append)
    return data, folder / "weights", lines


def metrics_of(member: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((member / "metrics.json").read_text())
    return metrics


def mark_first_epoch(history: pd.DataFrame) -> pd.DataFrame:
    """Return a history whose first epoch has an accuracy that training never gives."""
    marked = history.copy()
    marked.loc[0, "accuracy"] = -1.0
    return marked


def assert_same(one: dict[str, Any], other: dict[str, Any], within: float) -> None:
    """Assert that two members' metrics have floats within a distance of each other, and all else equal."""
    assert set(one) == set(other)
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[name], within)
        elif isinstance(value, float):
            assert other[name] == pytest.approx(value, abs=within), name
        else:
            assert other[name] == value, name


def test_a_member_is_trained_and_runs(
    made: tuple[Path, Path, list[str]], tmp_path: Path, strip_ai: Competition, test_split: Path
) -> None:
    _, weights, lines = made
    one, two = (metrics_of(weights / name) for name in ("one", "two"))
    assert any(lines[0] in line for line in lines[1:])
    assert one["material"]["images"] == 7
    assert str(one["data"]).startswith("synthetic, seed 5")
    assert_same(one, two, within=1e-3)
    assert write_manifest(weights) == 2
    assert load_member(weights / "one", strip_ai.classes.names).recipe.name == "tiny"
    assert main(["run", str(test_split), "--weights", str(weights / "one"), "--out", str(tmp_path / "run")]) == 0
    history = pd.read_csv(weights / "one" / "history.csv")
    assert len(history) == (2 + 1) * 2  # folds and the final network, two epochs each
    assert not (weights / "one" / ".training").exists()
    assert "Not for clinical use" in (weights / "one" / "README.md").read_text()


def test_a_member_for_labels_has_a_decision_judged_nested(
    made: tuple[Path, Path, list[str]], recipe: str, tmp_path: Path, strip_ai: Competition
) -> None:
    form = Submission(Form.LABEL, "patient_id", Unit.PATIENT, ("label",), Rule.OUTLIER, "Other")
    asks = replace(strip_ai, submission=form, metric=Metric("balanced_accuracy"))
    lines: list[str] = []
    metrics = train(TrainSettings(recipe, made[0], tmp_path / "m"), asks, lines.append)
    judged = metrics["competition_metric"]
    assert (judged["name"], judged["constant"], judged["higher_is_better"]) == ("balanced_accuracy", 0.5, True)
    assert 0 <= judged["value"] <= 1
    decision = load_member(tmp_path / "m", strip_ai.classes.names).decision
    assert decision is not None
    assert (decision.rule, decision.classes, len(decision.numbers)) == (Rule.OUTLIER, 2, 1)
    assert load_member(made[1] / "one", strip_ai.classes.names).decision is None
    check_member(tmp_path / "m")
    calibration = tmp_path / "m" / "calibration.json"
    content = json.loads(calibration.read_text())
    calibration.write_text(json.dumps(content | {"decision": content["decision"] | {"numbers": [2.0]}}))
    with pytest.raises(WeightsError):
        check_member(tmp_path / "m")


def test_wrong_settings_are_refused_before_a_file_is_written(
    made: tuple[Path, Path, list[str]], recipe: str, tmp_path: Path, strip_ai: Competition
) -> None:
    data = made[0]
    with pytest.raises(ConfigError, match=r"folds is 50"):
        train(TrainSettings(recipe, data, tmp_path / "many", folds=50), strip_ai, print)
    with pytest.raises(UsageError, match=r"--limit.*0"):
        train(TrainSettings(recipe, data, tmp_path / "many", limit=0), strip_ai, print)
    text = RECIPE.replace('name = "cnn"\nfilters = [4, 8]', 'name = "vgg16"\nfreeze = true\nweights = "imagenet"')
    (tmp_path / "vgg.toml").write_text(text)
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"vgg16.*notop\.h5"):
        train(TrainSettings(str(tmp_path / "vgg.toml"), data, tmp_path / "many"), strip_ai, lines.append)
    (tmp_path / "vgg.toml").write_text(RECIPE.replace('"cnn"', '"vgg61"'))
    with pytest.raises(ConfigError, match="vgg61"):
        train(TrainSettings(str(tmp_path / "vgg.toml"), data, tmp_path / "many"), strip_ai, lines.append)
    with pytest.raises(ConfigError, match=r"efficientnet_lite0.*notop"):  # its classes are those of its folders
        train(TrainSettings("folders", data, tmp_path / "many", backbones=tmp_path), strip_ai, lines.append)
    assert not lines  # neither a slide nor a picture was read
    assert not (tmp_path / "many").exists()


def test_evaluating_on_training_slides_is_reported_as_in_sample(
    made: tuple[Path, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, weights, _ = made
    command = ["evaluate", str(weights / "one"), "--data", str(data), "--out", str(tmp_path / "e"), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["in_sample"] is True
    assert found["unit"] == "patient"
    judged = found["competition_metric"]
    assert (judged["name"], judged["value"]) == (
        "balanced_log_loss",
        pytest.approx(found["weighted_log_loss"], abs=1e-6),
    )
    assert {path.name for path in (tmp_path / "e").iterdir()} == {
        "metrics.json", "predictions.csv", "confusion.png", "roc.png", "calibration.png", "errors.html",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "training"),
    [
        ("given", ""),
        pytest.param("holdout", 'schedule = "plateau"\nvalidation_share = 0.2', marks=pytest.mark.soak),
        pytest.param("folds", 'final = "folds"\nbalance = "oversample"', marks=pytest.mark.soak),
        (
            "folds",
            'final = "folds"\nbalance = "synthetic"\nlabel_smoothing = 0.1\npatience = 2\nvalidation_share = 0.2',
        ),
    ],
)
def test_evaluating_the_shipped_weights_gives_the_metrics_of_training(
    split: str, training: str, tmp_path: Path, strip_ai: Competition, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = colours(tmp_path, split, training=training)
    data, member = tmp_path / "colours.npz", tmp_path / "member"
    metrics = train(TrainSettings(recipe, data, member), strip_ai, lambda _: None)
    assert main(["evaluate", str(member), "--data", str(data), "--out", str(tmp_path / "e"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["in_sample"] is False
    shared = set(metrics) & set(found) - {"data"}
    assert_same({name: found[name] for name in shared}, {name: metrics[name] for name in shared}, within=1e-5)
    assert found["n"] == {"given": 16, "holdout": 11, "folds": 72}[split]


def test_pictures_near_identical_to_a_test_picture_are_left_out_of_training(
    tmp_path: Path, strip_ai: Competition, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, data, member = colours(tmp_path), tmp_path / "colours.npz", tmp_path / "member"
    with np.load(data) as archive:
        arrays = dict(archive)
    arrays["train_images"][[0, 5]] = arrays["test_images"][[0, 3]]
    arrays["val_images"][1] = arrays["test_images"][1]
    np.savez(data, **arrays)
    text = Path(recipe).read_text().replace('split = "given"', 'split = "given"\nnear_duplicates = "drop"')
    Path(recipe).write_text(text)
    metrics = train(TrainSettings(recipe, data, member), strip_ai, lambda _: None)
    assert metrics["material"]["dropped_near_duplicates"] == {"train": 2, "val": 1}
    assert metrics["material"]["images"] == 72 - 3
    assert metrics["calibrated"] is True
    split = pd.read_csv(member / "split.csv").set_index("image")["fold"]
    assert split[split == "near_duplicate"].index.tolist() == ["train_0", "train_5", "val_1"]
    evaluate = ["evaluate", str(member), "--data", str(data), "--out", str(tmp_path / "e"), "--json"]
    assert main(evaluate) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["in_sample"]) == (16, False)
    assert found["accuracy"] == metrics["accuracy"]
    assert main([*evaluate, "--limit", "1"]) == 0  # of the test pictures only the first of each class are read
    assert json.loads(capsys.readouterr().out)["n"] == 2


def test_a_recipe_without_classes_takes_those_of_its_folders(
    tmp_path: Path, strip_ai: Competition, capsys: pytest.CaptureFixture[str]
) -> None:
    colours(tmp_path)
    with np.load(tmp_path / "colours.npz") as archive:
        for number, pixels in enumerate(archive["train_images"]):
            folder = tmp_path / "data" / ("blue eyed", "Röt", "x%y")[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            _save_odd(pixels, folder, number)
    (tmp_path / "own.toml").write_text(
        COLOURS.format(split="folds", epochs=1, training='final = "folds"')
        .replace('"npz"', '"folders"')
        .replace('classes = ["red", "blue"]\n', "")
    )
    member, out = tmp_path / "member", tmp_path / "e"
    metrics = train(TrainSettings(str(tmp_path / "own.toml"), tmp_path / "data", member), strip_ai, lambda _: None)
    assert metrics["classes"] == ["Röt", "blue eyed", "x%y"]
    assert metrics["material"]["images"] == 40
    (tmp_path / "data" / "another").mkdir()
    assert main(["evaluate", str(member), "--data", str(tmp_path / "data"), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["classes"], found["in_sample"]) == (40, metrics["classes"], False)
    assert found["weighted_log_loss"] == pytest.approx(metrics["weighted_log_loss"], abs=1e-5)
    images = sorted(map(str, (tmp_path / "data" / "Röt").iterdir()))
    assert main(["predict", str(member), *images, "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert len(predictions) == len(images)
    assert set(predictions[0]["probabilities"]) == set(metrics["classes"])
    odd = Path(shutil.copy(images[0], tmp_path / "two\nlines.png"))
    assert main(["predict", str(member), str(odd)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    check_member(member)
    assert load_for_evaluation(member).recipe.data.classes == tuple(metrics["classes"])


def _save_odd(pixels: npt.NDArray[np.uint8], folder: Path, number: int) -> None:
    """Save a picture in one of eight forms: its mode and its format go by its number."""
    image = Image.fromarray(pixels)
    grey16 = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    forms: list[tuple[Image.Image, str]] = [
        (image.convert("RGBA"), "png"),
        (image.convert("L"), "bmp"),
        (image.quantize(16), "PNG"),
        (grey16, "png"),
        (grey16, "TIF"),
        (image, "jpeg"),
        (image.convert("CMYK"), "tiff"),
        (image.convert("1"), "gif"),
    ]
    form, suffix = forms[number % len(forms)]
    form.save(folder / f"{number}.{suffix}", format={"tif": "TIFF", "jpeg": "JPEG"}.get(suffix.lower()))


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_like_a_whole_one(tmp_path: Path, strip_ai: Competition) -> None:
    recipe = colours(tmp_path, epochs=30, training='schedule = "plateau"\nplateau_patience = 1')
    data = tmp_path / "colours.npz"
    command = [sys.executable, "-m", "clotkit.cli", "train", recipe, "--data", str(data), "--out"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    history = tmp_path / "killed" / ".training" / "0-0" / "history.csv"
    end = time.monotonic() + 120
    while not (history.is_file() and len(history.read_text().splitlines()) > 3):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = pd.read_csv(history)
    assert len(kept) < 30
    mark_first_epoch(kept).to_csv(history, index=False)
    subprocess.run([*command, str(tmp_path / "killed")], capture_output=True, check=True)
    subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, check=True)
    one, other = (pd.read_csv(tmp_path / name / "history.csv") for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(one, mark_first_epoch(other), atol=1e-4)  # the mark: the first epoch was not redone
    found, wanted = (metrics_of(tmp_path / name) for name in ("killed", "whole"))
    assert_same(found, wanted, within=1e-4)


def test_checkpoints_of_another_recipe_are_not_resumed(tmp_path: Path, strip_ai: Competition) -> None:
    state = tmp_path / "member" / ".training"
    state.mkdir(parents=True)
    (state / "key").write_text("another")
    (state / "0-0").mkdir()
    (state / "0-0" / "history.csv").write_text("epoch,loss\n1,9.0\n")
    lines = list[str]()
    train(TrainSettings(colours(tmp_path), tmp_path / "colours.npz", tmp_path / "member"), strip_ai, lines.append)
    assert len(pd.read_csv(tmp_path / "member" / "history.csv")) == 3
    assert len([one for one in lines if "deleted" in one]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("pool", [pytest.param("attention", marks=pytest.mark.soak), "logits"])
def test_a_head_that_pools_whole_slides_is_trained_and_runs(
    pool: str, made: tuple[Path, Path, list[str]], tmp_path: Path, strip_ai: Competition, test_split: Path
) -> None:
    text = RECIPE.replace(
        'name = "cnn"\nfilters = [4, 8]', 'name = "efficientnet_lite0"\nfreeze = true\nstandardise = true'
    ).replace(
        "folds = 2", 'folds = 2\nfrozen_augmentations = 2\nfinal = "all"\n\n[inference]\npooling = "POOL"\ntta = 2'
    )
    (tmp_path / "mil.toml").write_text(text.replace("POOL", pool))
    metrics = train(TrainSettings(str(tmp_path / "mil.toml"), made[0], tmp_path / "mil"), strip_ai, lambda _: None)
    assert metrics["unit"] == "patient"
    assert np.isfinite(metrics["weighted_log_loss"])
    assert main(["run", str(test_split), "--weights", str(tmp_path / "mil"), "--out", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "report.jsonl").read_text().splitlines()]
    assert all(sum(line["p"]["mil"]) == pytest.approx(1) for line in lines)


def test_the_shipped_demo_member_matches_its_manifest(strip_ai: Competition) -> None:
    manifest = json.loads((ROOT / "weights" / "MANIFEST.json").read_text())
    member = load_member(ROOT / "weights" / "demo", strip_ai.classes.names)
    assert manifest["demo/model.weights.h5"]["sha256"] == member.weights_sha256
    assert manifest["demo/model.weights.h5"]["bytes"] < 5 * 2**20
    assert "synthetic" in manifest["demo/model.weights.h5"]["provenance"]
    metrics = metrics_of(ROOT / "weights" / "demo")
    assert metrics["weighted_log_loss"] < metrics["constant"]


def test_a_validation_part_without_a_class_calibrates_nothing_and_says_so(
    tmp_path: Path, strip_ai: Competition
) -> None:
    recipe, data = colours(tmp_path, epochs=1), tmp_path / "colours.npz"
    with np.load(data) as archive:
        arrays = dict(archive)
    arrays["val_labels"][:] = 0
    np.savez(data, **arrays)
    metrics = train(TrainSettings(recipe, data, tmp_path / "member"), strip_ai, lambda _: None)
    assert metrics["calibrated"] is False
    assert json.loads((tmp_path / "member" / "calibration.json").read_text())["slope"] == 1


def test_a_member_that_dies_while_it_is_replaced_is_none(
    tmp_path: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = colours(tmp_path, epochs=1), tmp_path / "member"
    settings = TrainSettings(recipe, tmp_path / "colours.npz", out)
    train(settings, strip_ai, lambda _: None)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clotkit.evaluation.plots.draw_curves", dies)
    with pytest.raises(KeyboardInterrupt):
        train(settings, strip_ai, lambda _: None)
    with pytest.raises(ConfigError):
        read_member(out)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, strip_ai: Competition) -> None:
    recipe, out = colours(tmp_path, epochs=1), tmp_path / "member"
    with exclusive_folder(out, "training"), pytest.raises(UsageError):
        train(TrainSettings(recipe, tmp_path / "colours.npz", out), strip_ai, lambda _: None)
    assert list(out.iterdir()) == []
