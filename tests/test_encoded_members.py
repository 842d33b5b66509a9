"""Members that are heads over an encoder are loaded, run, planned and explained as others."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clotkit.batching import noise
from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.errors import ConfigError
from clotkit.evaluation.known_images import UNKNOWN
from clotkit.evaluation.loaded_member import load_for_evaluation
from clotkit.evaluation.predict import predict
from clotkit.kaggle.datasets import weights_files
from clotkit.members.backbones import BACKBONES, LITE0, BackboneFile, arrays_sha256, lite0_backbone
from clotkit.members.encoders import network
from clotkit.members.encoders.encoder import Encoder, load_encoder
from clotkit.members.encoders.folder import check_encoders
from clotkit.members.encoders.loading import load_member
from clotkit.members.loading import start_keras
from clotkit.planning.plan import PlanSettings, plan_split
from clotkit.scoring.inputs import local_weights, read_inputs
from clotkit.scoring.pipeline import run
from clotkit.scoring.settings import RunSettings
from clotkit.training.mil.train import train_any
from clotkit.training.train import TrainSettings

from . import onnx_models as models
from .cluster import copy_in
from .conftest import ROOT
from .mil_data import WIDTH, write_recipe, write_slides
from .onnx_members import write_onnx_member

pytestmark = pytest.mark.slow  # three heads are trained first
CLASSES = ("CE", "LAA")
HEADS = ("abmil", "mean_pool", "transformer")  # clam is abmil once it is trained
ENCODER = '[onnx]\noutput = "features"\n'


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, strip_ai: Competition) -> Path:
    """Return a folder with a head of each kind over one small encoder, and a member of an ONNX file."""
    folder = tmp_path_factory.mktemp("encoded") / "weights"
    write_encoder(folder / "tiny")
    sha256 = load_encoder("tiny", 32, [folder]).sha256
    features = write_slides(folder.parent / "features", facts={"encoder": "tiny", "encoder_sha256": sha256})
    for name in HEADS:
        recipe = write_recipe(folder.parent / f"{name}.toml", name, 1, encoder="tiny")
        if name == "abmil":
            recipe.write_text(recipe.read_text().replace("folds = 2", 'folds = 2\nfinal = "folds"'))
        train_any(TrainSettings(str(recipe), features, folder / name), strip_ai, lambda _: None)
    write_onnx_member(folder / "other", CLASSES)
    return folder


def write_encoder(folder: Path) -> None:
    """Write an encoder whose features are the mean colour times random weights."""
    folder.mkdir(parents=True)
    models.save(models.model(output="logits", classes=WIDTH), folder / "model.onnx")
    (folder / "encoder.toml").write_text(ENCODER)


def expected_features(tiles: np.ndarray) -> np.ndarray:
    return (tiles / 255).mean(axis=(1, 2)) @ models.weights(WIDTH)


@pytest.mark.parametrize("name", HEADS)
def test_rows_are_those_of_the_head_over_the_features(weights: Path, name: str) -> None:
    member, tiles = load_member(weights / name, CLASSES), noise(32, 21)
    rows = member.predict(tiles)
    if name == "transformer":
        np.testing.assert_allclose(rows, expected_features(tiles), atol=2e-3)
    parts = np.concatenate([member.predict(tiles[:5]), member.predict(tiles[5:])])
    np.testing.assert_allclose(parts, rows, atol=1e-6)
    p = member.pooling.pool(rows)
    assert p.shape == (2,)
    assert p.sum() == pytest.approx(1)
    assert member.pooling.tile_probabilities(rows).shape == (21, 2)
    assert (member.pooling.attention(rows) is None) is (name == "mean_pool")
    assert member.predict(tiles[:0]).shape[0] == 0


def test_an_ensemble_of_all_kinds_shares_the_encoder(
    weights: Path, test_split: Path, tmp_path: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, encoded = [], list[int]()

    def counting(*arguments: Any, **settings: Any) -> Encoder:
        encoder = load_encoder(*arguments, **settings)
        loaded.append(encoder.name)

        def encode(tiles: np.ndarray) -> np.ndarray:
            encoded.append(len(tiles))
            return encoder.encode(tiles)

        return replace(encoder, encode=encode)

    monkeypatch.setattr(network, "load_encoder", counting)
    (tmp_path / "weights").mkdir()
    for folder in (*weights.iterdir(), ROOT / "weights" / "demo"):
        (tmp_path / "weights" / folder.name).symlink_to(folder)
    settings = RunSettings(test_split, tmp_path / "weights", tmp_path / "run", deadline_s=300.0, memory_mb=4096, jobs=1)
    assert run(settings, strip_ai, lambda _: None)["done"] == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "report.jsonl").read_text().splitlines()]
    assert all(set(line["p"]) == {*HEADS, "other", "demo"} for line in lines)
    groups = [json.loads(line)["tiles"] for line in (tmp_path / "run" / "slides.jsonl").read_text().splitlines()]
    attention = [group["attention"] for of_slide in groups for group in of_slide if "attention" in group]
    assert len(attention) == 4
    for weight in attention:
        assert sum(weight) == pytest.approx(1, abs=1e-3)
    assert loaded == ["tiny"]
    assert sum(encoded) == sum(map(len, attention))  # once for three heads


def test_another_encoder_is_refused_and_the_run_goes_on(
    weights: Path, test_split: Path, tmp_path: Path, strip_ai: Competition
) -> None:
    copy = tmp_path / "copies" / "abmil"
    copy.mkdir(parents=True)
    for path in (weights / "abmil").iterdir():
        (copy / path.name).symlink_to(path)
    with pytest.raises(ConfigError, match="tiny"):
        load_member(copy, CLASSES)
    write_encoder(copy.parent / "tiny")
    write_onnx_member(copy.parent / "other", CLASSES)
    settings = RunSettings(test_split, copy.parent, tmp_path / "run", deadline_s=300.0, memory_mb=4096, jobs=1)
    key = read_inputs(settings, strip_ai, print).key
    (copy.parent / "tiny" / "encoder.toml").write_text(f"{ENCODER}mean = [0.5]\n")
    with pytest.raises(ConfigError, match="features"):
        load_member(copy, CLASSES)
    counts = run(settings, strip_ai, lambda _: None)
    assert (counts["done"], counts["left_out"]) == (4, 1)
    assert read_inputs(settings, strip_ai, print).key != key


def test_the_encoder_travels_with_the_member(weights: Path, tmp_path: Path) -> None:
    names = set(weights_files(weights / "abmil"))
    assert {"tiny/encoder.toml", "tiny/model.onnx", "abmil/model.weights.h5"} <= names
    assert set(weights_files(weights)) > names
    (tmp_path / "abmil").mkdir()
    (tmp_path / "abmil" / "recipe.toml").write_bytes((weights / "abmil" / "recipe.toml").read_bytes())
    with pytest.raises(ConfigError, match="tiny"):
        check_encoders(tmp_path)


def test_a_run_and_its_plan_end_without_the_encoder(weights: Path, test_split: Path, tmp_path: Path) -> None:
    shutil.copytree(weights / "abmil", tmp_path / "members" / "abmil")
    words = [str(test_split), "--weights", str(tmp_path / "members")]
    run = ["run", *words, "--out", str(tmp_path / "run")]
    assert main(run) == 2
    assert not (tmp_path / "run").exists()
    assert main(["plan", *words]) == 2
    assert main([*run, "--without-missing"]) == 3  # as the kernel: every patient gets the fallback


def test_only_the_encoder_beside_a_member_counts(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_encoder(tmp_path / "tiny")
    (tmp_path / "tiny" / "encoder.toml").write_text(f"{ENCODER}mean = [0.5]\n")
    monkeypatch.chdir(tmp_path)
    tiles = noise(32, 3)
    expected = load_member(weights / "mean_pool", CLASSES).predict(tiles)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "mean_pool").symlink_to(weights / "mean_pool")
    with pytest.raises(ConfigError, match="tiny"):
        load_member(Path("linked") / "mean_pool", CLASSES)
    (tmp_path / "linked" / "tiny").symlink_to(weights / "tiny")
    np.testing.assert_array_equal(load_member(Path("linked") / "mean_pool", CLASSES).predict(tiles), expected)


def test_a_backbone_is_an_encoder_if_its_weights_lie_beside_the_member(
    test_split: Path, tmp_path: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_keras()
    name, file, folder = "efficientnet_lite0", tmp_path / LITE0, tmp_path / "weights"
    lite0_backbone(32).save_weights(file)
    monkeypatch.setitem(BACKBONES, name, BackboneFile(LITE0, arrays_sha256(file), "arrays"))
    encoder = load_encoder(name, 32, [tmp_path])
    facts = {"encoder": name, "encoder_sha256": encoder.sha256}
    features = write_slides(tmp_path / "features", 8, facts=facts, width=encoder.width)
    recipe = write_recipe(tmp_path / "r.toml", "mean_pool", 1, encoder=name)
    train_any(TrainSettings(str(recipe), features, folder / "head"), strip_ai, lambda _: None)
    with pytest.raises(ConfigError, match=LITE0):
        check_encoders(folder)
    with pytest.raises(ConfigError, match=LITE0):
        load_member(folder / "head", CLASSES)
    (folder / LITE0).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=LITE0):
        check_encoders(folder)
    (folder / LITE0).write_bytes(file.read_bytes())
    check_encoders(folder)
    assert {LITE0, "head/recipe.toml"} <= set(weights_files(folder / "head"))
    settings = RunSettings(test_split, folder, tmp_path / "run", deadline_s=300.0, memory_mb=4096, jobs=1)
    counts = run(settings, strip_ai, lambda _: None)
    assert counts["done"] == 4
    assert "left_out" not in counts


def test_a_url_of_one_head_is_refused(weights: Path) -> None:
    copy_in(weights, "memory://heads/weights")
    with (
        pytest.raises(ConfigError, match=r"memory://heads/weights[, ].*--without"),
        local_weights("memory://heads/weights/abmil"),
    ):
        pass
    with local_weights("memory://heads/weights") as folder:
        check_encoders(folder)
    with local_weights("memory://heads/weights/other") as folder:
        assert load_member(folder, CLASSES).recipe.encoder is None


def test_it_is_planned_evaluated_and_explained(
    weights: Path, slides: list[Path], test_split: Path, strip_ai: Competition
) -> None:
    plan = plan_split(PlanSettings(test_split, weights, "", "test", 1, 600.0, 4096), strip_ai)
    assert plan.network_measured
    for name in ("abmil", "transformer"):
        (one,) = predict(weights / name, slides[:1], strip_ai)
        assert one.label in CLASSES
    member = load_for_evaluation(weights / "abmil")
    assert len(member.networks) == 2
    tiles = noise(32, 6)
    of_all = member.predict(tiles, np.full(6, UNKNOWN))
    of_folds = [member.pooling.pool(member.predict(tiles, np.full(6, fold))) for fold in (0, 1)]
    np.testing.assert_allclose(np.mean(of_folds, axis=0), member.pooling.pool(of_all), atol=1e-6)
    heat = member.heat(tiles[0], 1)
    assert heat.shape == (32, 32)
    assert 0 <= heat.min() <= heat.max() <= 1
