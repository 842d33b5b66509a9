"""Test that each member that ships loads, is small enough for git, and has a complete card."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.evaluation.figures import NAMES
from clotkit.evaluation.predict import has_double_contour, predict
from clotkit.members.folder import find_members, read_member
from clotkit.synthetic.contours import write_contours
from clotkit.training.member_folder import card

from .conftest import ROOT

MEMBERS = sorted(path.parent for path in (ROOT / "weights").glob("*/recipe.toml"))
IN_GUIDE = {"accuracy": "accuracy", "auc": "AUC", "weighted_log_loss": "weighted log loss"}


def test_the_members_are_the_documented_ones() -> None:
    assert {path.name for path in MEMBERS} == {"bloodmnist", "brain", "breastmnist", "demo", "double_contour"}
    assert find_members(ROOT / "weights") == MEMBERS


@pytest.mark.parametrize("member", MEMBERS, ids=lambda path: path.name)
def test_the_files_of_a_member_agree(member: Path) -> None:
    files = read_member(member)  # compares the hashes with MANIFEST.json
    metrics = files.metrics
    assert files.recipe == load_recipe(member.name)
    assert all((member / name).stat().st_size < 5 * 2**20 for name in ("model.weights.h5", "oof.csv"))
    assert {"method", "slope", "offsets", "floor"} <= set(files.calibration)
    for name in NAMES:
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert metrics["n"] > 20
    assert metrics["weighted_log_loss"] < metrics["constant"]
    assert (member / "README.md").read_text() == card(files.recipe, metrics)
    provenance = json.loads((ROOT / "weights" / "MANIFEST.json").read_text())[f"{member.name}/model.weights.h5"]
    assert f"seed {metrics['seed']}" in provenance["provenance"]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda path: path.name)
def test_the_guide_has_the_figures_of_a_member(member: Path) -> None:
    metrics = read_member(member).metrics
    shipped = (ROOT / "docs" / "guides" / "train.md").read_text().partition("## Members that ship")[2]
    (row,) = [line for line in shipped.splitlines() if line.startswith(f"| `{member.name}` |")]
    figures = ", ".join(f"{words} {metrics[name]:.3f}" for name, words in IN_GUIDE.items())
    assert f"| {figures} (a constant: {metrics['constant']:.3f}) |" in row
    assert row.endswith(f" {metrics['n']:,} {metrics['unit']}s |")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bloodmnist", "breastmnist", "brain"])
def test_a_member_predicts_pictures(name: str, tmp_path: Path, strip_ai: Competition) -> None:
    rng = np.random.default_rng(2)
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (60, 50, 3)).astype(np.uint8)).save(path)
    answers = predict(ROOT / "weights" / name, paths, strip_ai)
    assert [answer.image for answer in answers] == paths
    for answer in answers:
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-4)
        assert answer.label in answer.probabilities


@pytest.mark.slow
def test_the_double_contour_is_recognised(tmp_path: Path, strip_ai: Competition) -> None:
    write_contours(tmp_path / "fresh", 48, 77, lambda _: None)  # another seed than that of training
    member = ROOT / "weights" / "double_contour"
    decisions = {
        name: [has_double_contour(path, member, strip_ai) for path in sorted((tmp_path / "fresh" / name).glob("*.png"))]
        for name in ("no", "yes")
    }
    assert decisions["yes"].count(True) > 0.6 * len(decisions["yes"])
    assert decisions["no"].count(True) < 0.2 * len(decisions["no"])
