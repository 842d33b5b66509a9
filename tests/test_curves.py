"""Test the benchmark of learning curves and ablations: a tiny run, its plots, tables and intervals."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import curves, curves_plots, curves_subject
from bench.curves_figures import merged, paired_interval, read_figures
from bench.curves_subject import SharedFeatures, timed_row
from bench.curves_variants import BRAIN, ONE_NETWORK, PHANTOM
from clotkit.competitions import DEFAULT, Competition, load_competition
from clotkit.config import RECIPES, load_recipe
from clotkit.evaluation.scores import EvaluationTarget
from clotkit.files import sha256
from clotkit.members.networks import Network
from clotkit.synthetic.phantom import write_split
from clotkit.training.train import TrainSettings, train

from .conftest import ROOT

DOCUMENT = ROOT / "docs" / "explanation" / "benchmarks.md"
QUICK = {
    'weights = "imagenet"': 'weights = "none"',
    "max_tiles = 200": "max_tiles = 4",
    "tile_px = 64": "tile_px = 32",
    "epochs = 40": "epochs = 2",
    "folds = 8": "folds = 2",
    "block14_add": "block02_add",
    "channel_gain = 0.03": "channel_gain = 0",  # its draws depend on the tiles after a slide's
}
MOST_BYTES = 150_000  # of a plot


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    text = (RECIPES / "phantom.toml").read_text(encoding="utf-8")
    for slow, quick in QUICK.items():
        assert slow in text
        text = text.replace(slow, quick)
    (tmp_path / "quick.toml").write_text(text, encoding="utf-8")
    return tmp_path / "quick.toml"


def first_slides(split: Path, count: int, out: Path) -> Path:
    """Make a split of the first slides of another one."""
    out.mkdir()
    (out / "train").symlink_to(split / "train")
    (out / "train.csv").write_text("".join((split / "train.csv").read_text().splitlines(keepends=True)[: count + 1]))
    return out


@pytest.mark.soak
def test_a_tiny_run_measures_as_clotkit_train_and_resumes(recipe: Path, tmp_path: Path, strip_ai: Competition) -> None:
    tiny = ["--slides", "14", "--test-slides", "8", "--ablation-slides", "14", "--size", "640x640", "--seeds", "1"]
    tiny += ["--parts", "curve", "phantom", "--only", "no weight decay", "--phantom", str(recipe)]
    tiny += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "c.json"), "--images", str(tmp_path / "images")]
    assert curves.main(tiny) == 0
    measured = json.loads((tmp_path / "c.json").read_text())
    assert [(point["slides"], point["first"]) for point in measured["curve"]] == [(14, 0)]
    assert [row["name"] for row in measured["ablations"]["phantom"]] == ["whole recipe"]
    assert all(0 < point["possible"] < point["high"] for point in measured["curve"])
    check_plot(tmp_path / "images" / curves_plots.CURVE, tmp_path / "c.json")
    split = first_slides(tmp_path / "out" / "slides", 14, tmp_path / "split")
    whole = train(TrainSettings(str(recipe), split, tmp_path / "member"), strip_ai, lambda _: None)
    assert measured["curve"][0]["loss"] == pytest.approx(whole["weighted_log_loss"], abs=1e-4)
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "rows").iterdir()}
    assert len(rows) == 1  # of the whole recipe, for the curve too; no weight decay is a step of brain
    (tmp_path / "c.json").unlink()
    assert curves.main(tiny) == 0
    assert {path: path.stat().st_mtime_ns for path in rows} == rows
    assert json.loads((tmp_path / "c.json").read_text()) == measured


def change(name: str, by: float, tested: bool) -> dict[str, Any]:
    row = {"loss": 0.4 + by, "whole": 0.4, "change": by, "low": by - 0.01, "high": by + 0.01, "changes": [by, by]}
    return {
        "name": name,
        "cpu_s": 1.0,
        "images": 48,
        "seeds": [3, 4],
        **row,
        **({f"test_{key}": value for key, value in row.items()} if tested else {}),
    }


def point(slides: int, first: int) -> dict[str, Any]:
    losses = {"loss": 0.5, "low": 0.4, "high": 0.6, "test_loss": 0.45, "test_low": 0.4, "test_high": 0.6}
    return {"slides": slides, "first": first, "patients": slides, "folds": 2, "possible": 0.3, "cpu_s": 9.0, **losses}


FIGURES: dict[str, Any] = {
    "constant": 0.693147,
    "test": {"slides": 50, "possible": 0.31},
    "curve": [point(24, 0), point(24, 24), point(48, 0)],
    "ablations": {
        "phantom": [change("whole recipe", 0.0, True), change("no care", 0.1, True), change("no luck", -0.02, True)],
        "brain": [change("whole recipe", 0.0, False), change("no care", 0.01, False)],
    },
}


def test_plots_are_drawn_from_given_figures_and_name_them(tmp_path: Path) -> None:
    source = tmp_path / "figures.json"
    source.write_text(json.dumps(FIGURES))
    assert curves.main(["--plots", "--json", str(source), "--images", str(tmp_path / "images")]) == 0
    for name in (curves_plots.CURVE, curves_plots.ABLATIONS):
        check_plot(tmp_path / "images" / name, source)


def check_plot(path: Path, source: Path) -> None:
    with Image.open(path) as image:
        assert image.info[curves_plots.SOURCE] == f"{source.name} sha256 {sha256(source)}"
        assert image.width > 900
    assert path.stat().st_size < MOST_BYTES


def test_tables_have_a_row_for_each_number_of_slides_and_each_step() -> None:
    curve, phantom, brain = curves_plots.tables(FIGURES).split("\n\n")
    assert [line.split(" | ")[0] for line in curve.splitlines()[2:]] == ["| 24", "| 48"]
    assert [line.split(" | ")[0] for line in phantom.splitlines()[2:]] == ["| whole recipe", "| no care", "| no luck"]
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in (curve, phantom, brain))


def test_a_change_that_all_patients_share_has_no_width() -> None:
    units = {"patient": ["a", "a", "b", "c"], "label": [0, 0, 1, 1], "loss": [0.1, 0.2, 0.3, 0.4]}
    moved = {**units, "loss": [loss + 0.5 for loss in (0.1, 0.2, 0.3, 0.4)]}
    target = EvaluationTarget(("x", "y"), (0.5, 0.5), "y", 1e-15, 0.02, by_patient=False)
    low, high = paired_interval([{"units": moved}], [{"units": units}], "units", target)
    assert (low, high) == pytest.approx((0.5, 0.5))
    half = {**units, "loss": [0.6, 0.7, 0.3, 0.4]}  # of one class alone
    low, high = paired_interval([{"units": half}], [{"units": units}], "units", target)
    assert (low, high) == pytest.approx((0.25, 0.25))


def test_the_seconds_of_features_that_rows_share_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        calls = 0

        def predict_on_batch(self, inputs: Any) -> Any:
            Slow.calls += 1
            return np.zeros((len(inputs), 3))

        @staticmethod
        def clock() -> float:
            return 0.1 * Slow.calls

    monkeypatch.setattr(curves_subject, "time", SimpleNamespace(monotonic=Slow.clock, process_time=Slow.clock))

    recipe, pixels = load_recipe("phantom"), np.zeros((2, 8, 8, 3), np.uint8)
    shared, network = SharedFeatures(folder=tmp_path, recipe=recipe, pixels=pixels), Network(None, Slow(), None, None)

    def measure() -> dict[str, Any]:
        shared.get(recipe.model[0], recipe, pixels, lambda: network, lambda _: None)
        return {"loss": 0.5}

    first, second = (timed_row(measure, shared.spent) for _ in range(2))
    calls = recipe.training.frozen_augmentations + recipe.inference.tta
    assert Slow.calls == calls
    assert first["features_cpu_s"] >= round(0.1 * calls, 1) > second["features_cpu_s"]
    assert max(first["cpu_s"], second["cpu_s"]) < 0.1 * calls
    assert first["loss"] == second["loss"] == 0.5


def test_draws_share_no_slide() -> None:
    assert list(curves.draws((10, 20, 45))) == [(10, 0), (10, 10), (10, 20), (20, 0), (20, 20), (45, 0)]


@pytest.mark.parametrize("recipe", ["phantom", "brain"])
def test_every_step_changes_its_recipe(recipe: str) -> None:
    loaded = load_recipe(recipe)
    variants = {"phantom": PHANTOM, "brain": (*BRAIN, ONE_NETWORK)}[recipe]
    whole, *others = (replace(one, name="") for one in variants)
    assert whole.of(loaded) == loaded
    assert all(one.of(loaded) != loaded or not one.calibrate or one.tile_step > 1 for one in others)
    assert len({repr((one.of(loaded), one.calibrate, one.tile_step)) for one in others}) == len(others)


def test_wrong_input_ends_with_2(tmp_path: Path) -> None:
    for wrong in (
        ["--only", "no care"],
        ["--data", str(tmp_path / "none")],
        ["--ablation-slides", "9999"],
        ["--slides", "-3"],
        ["--slides", "48", "24"],
        ["--seeds", "0"],
        ["--test-slides", "0"],
        ["--parts", "brain"],
    ):
        with pytest.raises(SystemExit) as ended:
            curves.main([*wrong, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"curve": 3, "ablations": {}}'])
def test_a_damaged_file_of_figures_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    source = tmp_path / "figures.json"
    source.write_text(text)
    assert curves.main(["--plots", "--json", str(source), "--images", str(tmp_path / "images")]) == 2
    assert source.read_text() == text


def test_parts_that_were_not_measured_stay() -> None:
    rows = [change("whole recipe", 0.2, False)]
    after = merged(FIGURES, {"ablations": {"brain": rows}})
    assert after == {**FIGURES, "ablations": {**FIGURES["ablations"], "brain": rows}}
    assert merged({"curve": [], "ablations": {}}, FIGURES) == FIGURES
    of_brain = merged(FIGURES, {"ablations": {"brain": rows}}, keep_steps=True)["ablations"]["brain"]
    assert of_brain == [*rows, *FIGURES["ablations"]["brain"][1:]]


def test_slides_of_another_size_are_refused(tmp_path: Path) -> None:
    command = ["--parts", "curve", "--slides", "2", "--test-slides", "1", "--ablation-slides", "1"]
    command += ["--json", str(tmp_path / "c.json"), "--out", str(tmp_path / "out"), "--images", str(tmp_path)]
    drawn, competition = tmp_path / "out" / "slides", load_competition(DEFAULT)
    write_split(drawn, "train", 3, curves.DRAWN_SEED, competition, size="640x640", log=lambda _: None)
    assert curves.main([*command, "--size", "640x700"]) == 2
    assert not (tmp_path / "c.json").exists()


def test_the_documentation_has_the_measured_figures_and_their_plots() -> None:
    found = read_figures(curves.FIGURES)
    page = DOCUMENT.read_text(encoding="utf-8")
    for table in curves_plots.tables(found).split("\n\n"):
        assert table in page
    for name in (curves_plots.CURVE, curves_plots.ABLATIONS):
        assert f"images/{name}" in page
        check_plot(curves.IMAGES / name, curves.FIGURES)
