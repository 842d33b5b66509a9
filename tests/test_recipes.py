"""Test every recipe that ships on a small generated sample: train, evaluate, predict."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.config import RECIPES, Recipe, load_recipe
from clotkit.synthetic.contours import write_contours

QUICK = {  # settings that make a recipe quick; all others stay
    r"^epochs = .*": "epochs = 1",
    r"^copies = .*": "copies = 2",
    r"^frozen_augmentations = .*": "frozen_augmentations = 1",
    r'^weights = "imagenet"': 'weights = "none"',
    r"^max_tiles = .*": "max_tiles = 2",
    r"^folds = .*": "folds = 2",
    r"^validation_share = .*": "validation_share = 0.3",
    r"^tile_px = 2..": "tile_px = 80",
    r"^downsample_if = .*": "",  # STRIP AI has no such column
    r"^input_px = 1..|^input_px = 2..": "input_px = 64",
}


@pytest.fixture(scope="module")
def slides(make_split: Callable[..., Path], strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_split(tmp_path_factory.mktemp("slides"), strip_ai, split="train", slides=14)


def pictures(folder: Path, recipe: Recipe) -> Path:
    """Write pictures of noise in the form of the recipe's source."""
    rng = np.random.default_rng(1)
    classes = recipe.data.classes or ("bird", "cat", "dog")
    if recipe.data.source == "npz":
        labels = np.arange(4 * len(classes)) % len(classes)
        arrays: dict[str, Any] = {f"{part}_labels": labels[:, None] for part in ("train", "val", "test")}
        arrays |= {
            f"{part}_images": rng.integers(0, 255, (len(labels), 28, 28, 3)).astype(np.uint8)
            for part in ("train", "val", "test")
        }
        np.savez(folder / "pictures.npz", **arrays)
        return folder / "pictures.npz"
    rows = ["file,patient"]
    for name in classes:
        (folder / name).mkdir()
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (80, 90, 3)).astype(np.uint8)).save(folder / name / f"{number}.png")
            rows.append(f"{name}/{number}.png,{name}{number // 2}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


NAMES = sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem != "mil")  # of features, see test_mil
SOAK = {  # large networks, or much the same as another recipe
    "strip_ai_chunks", "strip_ai_patches", "clot_binary", "bloodmnist_vgg16", "breakhis", "phantom", "panda",
    "visiomel", "camelyon16", "folders", "brain", "brain_cnn", "breastmnist",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.soak] * (name in SOAK)) for name in NAMES])
def test_a_recipe_trains_evaluates_and_predicts(
    name: str, slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (RECIPES / f"{name}.toml").read_text()
    for pattern, quick in QUICK.items():
        text = re.sub(pattern, quick, text, flags=re.MULTILINE)
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    recipe = load_recipe(path)
    if name == "double_contour":
        write_contours(tmp_path / "data", 60, 1, lambda _: None)
        data, limit = tmp_path / "data", "8"
    else:
        (tmp_path / "data").mkdir()
        data = slides if recipe.data.source == "slides" else pictures(tmp_path / "data", recipe)
        limit = "9"
    member, out = tmp_path / "member", tmp_path / "evaluated"
    train = ["train", str(path), "--data", str(data), "--out", str(member), "--limit", limit]
    assert main([*train, "--backbones", str(tmp_path / "none")]) == 0
    assert main(["evaluate", str(member), "--data", str(data), "--out", str(out), "--limit", limit]) == 0
    image = next(iter(sorted((data / "train").glob("*.tif")) or sorted(data.rglob("*.png"))), None) or _picture(
        tmp_path
    )
    capsys.readouterr()
    assert main(["predict", str(member), str(image), "--json"]) == 0
    prediction = json.loads(capsys.readouterr().out)["predictions"][0]
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert prediction["label"] in prediction["probabilities"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n"] > 0
    has_statistics = (member / "familiarity.json").is_file()
    assert has_statistics == (json.loads((member / "metrics.json").read_text())["familiarity"] is not None)
    assert has_statistics == (metrics["unlike_training_images"] is not None)
    assert has_statistics == (prediction["unlike_training"] is not None)
    assert has_statistics or name != "bloodmnist"  # of 8 classes: enough pictures also in this small training
    assert recipe.card.use
    assert recipe.card.limits


def _picture(folder: Path) -> Path:
    Image.fromarray(np.full((28, 28, 3), 90, np.uint8)).save(folder / "one.png")
    return folder / "one.png"
