"""Training, small and real: folds by patient, a member that loads, the same result for the same seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.errors import ConfigError
from clotkit.learn.manifest import write_manifest
from clotkit.learn.models import load_member
from clotkit.learn.train import TileSet, augment, out_of_fold_parts, train

from .conftest import RECIPE, ROOT


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return str(path)


def test_a_member_is_trained_and_runs(
    make_split: Callable[..., Path], recipe: str, tmp_path: Path, strip_ai: Competition, test_split: Path
) -> None:
    data = make_split(tmp_path / "train", strip_ai, split="train", slides=8)
    (data / "train" / "broken").touch()
    broken = sorted((data / "train").glob("*.tif"))[0]
    broken.write_bytes(broken.read_bytes()[:2000])
    lines: list[str] = []
    for name in ("one", "two"):
        train(recipe, data, tmp_path / "weights" / name, strip_ai, folds=None, limit=None, log=lines.append)
    one, two = (json.loads((tmp_path / "weights" / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert f"{broken.stem} is left out" in lines[0]
    assert one["slides"] == 7
    assert one["data"].startswith("synthetic, seed 5")
    assert one["out_of_fold"] == pytest.approx(two["out_of_fold"], abs=1e-3)
    assert write_manifest(tmp_path / "weights") == 2
    assert load_member(tmp_path / "weights" / "one", strip_ai.classes.names).recipe.name == "tiny"
    out = tmp_path / "run"
    assert main(["run", str(test_split), "--weights", str(tmp_path / "weights" / "one"), "--out", str(out)]) == 0
    history = pd.read_csv(tmp_path / "weights" / "one" / "history.csv")
    assert len(history) == (2 + 1) * 2  # folds and the final network, two epochs each
    with pytest.raises(ConfigError, match="--folds is 50"):
        train(recipe, data, tmp_path / "many", strip_ai, folds=50, limit=None, log=lines.append)
    assert not (tmp_path / "many").exists()


def test_no_patient_is_on_both_sides_of_a_fold() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(12), 5).astype(str)
    tiles = TileSet(
        rng.integers(0, 255, (60, 4, 4, 3)).astype(np.uint8), np.repeat(np.arange(12) % 2, 5), patients, patients
    )
    held_out: list[str] = []
    for seen, held in out_of_fold_parts(tiles, 3, seed=1):
        assert not set(seen.patients) & set(held.patients)
        assert len(set(held.labels)) == 2
        held_out += sorted(set(held.patients))
    assert sorted(held_out) == sorted(set(patients))


def test_augmentation_keeps_shape_range_and_its_input() -> None:
    tiles = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    before = tiles.copy()
    augmented = augment(tiles, np.random.default_rng(2))
    assert augmented.shape == tiles.shape
    assert augmented.dtype == np.float32
    assert augmented.min() >= 0
    assert augmented.max() <= 255
    assert np.array_equal(tiles, before)
    assert np.array_equal(augmented, augment(tiles, np.random.default_rng(2)))
    means = augmented.mean(axis=(1, 2)) / tiles.mean(axis=(1, 2))
    assert 0.85 < means.min() <= means.max() < 1.15


def test_the_member_that_ships_is_what_its_manifest_says(strip_ai: Competition) -> None:
    manifest = json.loads((ROOT / "weights" / "MANIFEST.json").read_text())
    member = load_member(ROOT / "weights" / "demo", strip_ai.classes.names)
    assert manifest["demo/model.weights.h5"]["sha256"] == member.weights_sha256
    assert manifest["demo/model.weights.h5"]["bytes"] < 5 * 2**20
    assert "synthetic" in manifest["demo/model.weights.h5"]["provenance"]
    metrics = json.loads((ROOT / "weights" / "demo" / "metrics.json").read_text())
    assert metrics["out_of_fold"]["log_loss_raw"] < metrics["constant"]
