"""Studies of `clotkit tune` with a stub for training: what is searched, settled, kept and compared.

The folds, the study, the figures and the files are real; test_tune.py trains networks too.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clotkit.cli import main
from clotkit.competitions import Competition
from clotkit.config import load_recipe, read_recipe, recipe_of
from clotkit.data.folds import Fold
from clotkit.errors import ConfigError, StoreError
from clotkit.evaluation.scores import fit_by_fold
from clotkit.reasons import TrialEnd, TuningVerdict
from clotkit.training import devices
from clotkit.training.frozen import FeatureCache
from clotkit.tuning import objective, outer
from clotkit.tuning.comparison import verdict_on
from clotkit.tuning.search import read_search
from clotkit.tuning.study import JOURNAL, TuningStudy
from clotkit.tuning.tune import summary_lines

from .conftest import ROOT
from .test_tune import read, study_settings, write_search

RECIPE = """
name = "stub"
[data]
source = "folders"
[tiling]
name = "whole"
tile_px = 16
downsample = 1
max_tiles = 1
batch_tiles = 32
[model]
name = "cnn"
filters = [4]
dropout = 0.0
[training]
seed = 1
epochs = 2
batch_tiles = 16
learning_rate = 0.00123456
"""
SEARCH = """
[training.learning_rate]
low = 1e-4
high = 1e-1
log = true

[model.dropout]
choices = [0, 0.5]
"""
CLASSES = ("no", "yes")
COMPETITIONS = ROOT / "src" / "clotkit" / "competitions"


class StubTraining:
    """A training whose loss is lowest at a learning rate of 0.01 and grows with dropout."""

    fails: ClassVar[Callable[[Any], BaseException | None]] = staticmethod(lambda recipe: None)  # raised by a recipe
    diverges: ClassVar[Callable[[Any], bool]] = staticmethod(lambda recipe: False)  # on the outer part
    predicted: ClassVar[list[Any]] = []  # the recipes that were trained for the outer part

    def __init__(self, **facts: Any) -> None:
        self.recipe, self.tiles, self.target, self.watch = (facts[k] for k in ("recipe", "tiles", "target", "watch"))

    def rows(self, mask: Any, seed: int) -> pd.DataFrame:
        tiles, model = self.tiles.where(mask), self.recipe.model[0]
        quality = np.exp(-abs(np.log10(self.recipe.training.learning_rate) + 2)) * (1 - model.dropout)
        rows = []
        facts = zip(tiles.tiles, tiles.images, tiles.labels, tiles.patients, tiles.centres, strict=True)
        for pixels, image, label, patient, centre in facts:
            digest = hashlib.sha256(f"{image} {seed}".encode() + pixels.tobytes()).digest()
            logits = np.random.default_rng(list(digest)).normal(0, 1, len(tiles.classes))
            logits[label] += 2 * quality
            p = np.exp(logits) / np.exp(logits).sum()
            known = {"image": image, "patient": patient, "centre": centre, "label": int(label)}
            rows.append(known | dict(zip(tiles.classes, p, strict=True)))
        return pd.DataFrame(rows)

    def cross_validate(self, folds: Sequence[Fold]) -> Any:
        if error := StubTraining.fails(self.recipe):
            raise error
        for epoch in range(1, self.recipe.training.epochs + 1):
            if self.watch:
                self.watch(epoch, {"held_out_loss": 1 / epoch})
        held_out = [self.rows(fold.held_out, number).assign(fold=number) for number, fold in enumerate(folds)]
        return SimpleNamespace(fit=fit_by_fold(pd.concat(held_out, ignore_index=True), len(folds), self.target))

    def train_folds(self, folds: Sequence[Fold]) -> Any:
        done = StubTraining(**vars(self) | {"watch": None}).cross_validate(folds)
        return SimpleNamespace(networks=[], fit=done.fit)

    def predict(self, networks: object, mask: Any) -> pd.DataFrame:
        StubTraining.predicted.append(self.recipe)
        rows = self.rows(mask, 99)
        if StubTraining.diverges(self.recipe):
            rows[list(self.tiles.classes)] = np.nan
        return rows


class StubBackbone:
    """A network whose features are all one value."""

    def __init__(self, value: float) -> None:
        self.value, self.features = value, self

    def predict_on_batch(self, inputs: Any) -> Any:
        return np.full((len(inputs), 3), self.value)

    def itself(self) -> Any:
        return self


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "TrainingRun", StubTraining)
    monkeypatch.setattr(devices, "create_context", lambda *_: None)
    monkeypatch.setattr(StubTraining, "predicted", [])


def write_pictures(folder: Path, classes: Sequence[str] = CLASSES, count: int = 12, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "stub.toml").write_text(RECIPE)
    write_search(tmp_path, SEARCH)
    return write_pictures(tmp_path / "data")


def tune(data: Path, trials: int = 3, out: str = "study", *more: str) -> int:
    """Run `clotkit tune` beside the data, with the recipe and the search that lie there."""
    beside = data.parent
    words = ["--trials", str(trials), "--search", str(beside / "search.toml"), "--inner", "2", *more]
    return main(["tune", str(beside / "stub.toml"), "--data", str(data), "--out", str(beside / out), *words])


# -- the search


def searched(tmp_path: Path, text: str) -> Any:
    return read_search(write_search(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "[training.validation_share]\nlow = 0.0\nhigh = 0.3",
        "[training.final]\nchoices = ['all', 'folds']",
        "[inference.floor]\nlow = 0.0\nhigh = 0.2",
        "[inference.tta]\nlow = 1\nhigh = 8",
        "[model.dropout]\nchoices = [0, 0.0]",
        "[model.dropout]\nchoices = [0.1, 0.2]\nlow = 0.1",
        "[model.dropout]\nchoices = [0.1, 0.2]\nhigh = 0.1",
        "'model.dropout' = {low = 0.0, high = 0.5}\n[model.dropout]\nlow = 0.1\nhigh = 0.2",
        "[model.last_layer]\nchoices = [2020-01-01, 2020-01-02]",
        *(f"[model.dropout]\nlow = 0.0\nhigh = 0.5\nstep = {step}" for step in ("0", "nan", "inf", "1e-320", "-0.1")),
    ],
)
def test_a_search_that_cannot_be_run_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        searched(tmp_path, text)
    assert len(str(raised.value).splitlines()) == 1
    assert "search.toml" in str(raised.value)


def test_values_have_the_type_of_their_key(tmp_path: Path) -> None:
    text = "[training.weight_decay]\nlow = 0\nhigh = 1\n[augment.rotate_deg]\nlow = 0\nhigh = 20\nstep = 5\n"
    search = searched(
        tmp_path, text + "[model.dropout]\nchoices = [0, 0.5]\n[training.batch_tiles]\nlow = 8\nhigh = 16"
    )
    study = TuningStudy(study_settings(tmp_path / "study", (tmp_path / "search.toml").read_text()))
    drawn: list[Mapping[str, Any]] = []
    for _ in range(4):
        with study.claim(4) as trial:
            assert trial is not None
            drawn.append(dict(trial.params))
            study.tell(trial, 0.5, {})
    assert search.entries["model.dropout"].choices == (0.0, 0.5)
    assert {type(one["model.dropout"]) for one in drawn} == {float}
    assert {type(one["training.batch_tiles"]) for one in drawn} == {int}
    assert any(0 < one["training.weight_decay"] < 1 for one in drawn)
    assert {one["augment.rotate_deg"] for one in drawn} <= {0.0, 5.0, 10.0, 15.0, 20.0}


def test_an_output_scales_the_loss(tmp_path: Path) -> None:
    assert searched(tmp_path, "[model.output]\nchoices = ['softmax', 'ordinal']").scales_loss


def test_a_network_that_no_trial_could_build_is_refused_before_anything_is_read(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data.parent / "search.toml").write_text(SEARCH + "[model.name]\nchoices = ['cnn', 'nope']")
    assert tune(data) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert "nope" in printed.err
    assert not (data.parent / "study").exists()


def test_a_network_that_needs_the_choice_of_another_key_is_taken(data: Path, tmp_path: Path) -> None:
    names = "[model.name]\nchoices = ['cnn', 'efficientnet_lite0']\n"
    search = searched(tmp_path, names + "[model.freeze]\nchoices = [false, true]\n")
    seen = []

    def check(models: Any) -> None:
        seen.append((models[0].name, models[0].freeze))
        if seen[-1] == ("cnn", True):
            raise ConfigError("a cnn has no backbone")

    search.check_models(load_recipe(tmp_path / "stub.toml"), check)
    assert ("efficientnet_lite0", True) in seen


# -- the options


@pytest.mark.parametrize("more", [("--jobs", "0"), ("--jobs", "-1")])
def test_no_jobs_are_refused_before_a_study_begins(data: Path, more: tuple[str, ...]) -> None:
    assert tune(data, 1, "study", *more) == 2
    assert not (data.parent / "study").exists()


@pytest.mark.parametrize("verb", ["tune", "train"])
def test_results_among_the_classes_are_refused(data: Path, verb: str) -> None:
    assert main([verb, str(data.parent / "stub.toml"), "--data", str(data), "--out", str(data / "out")]) == 2
    assert sorted(path.name for path in data.iterdir()) == list(CLASSES)


# -- trial 0


def test_the_recipes_own_values_are_tried_and_kept_exactly(data: Path) -> None:
    assert tune(data, 1) == 0
    summary, trials = read(data.parent / "study")
    assert trials["training.learning_rate"].tolist() == [0.00123456]
    assert summary["best"]["values"]["training.learning_rate"] == 0.00123456
    assert load_recipe(data.parent / "study" / "best.toml") == load_recipe(data.parent / "stub.toml")
    assert summary["verdict"] == TuningVerdict.SAME
    assert summary["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert len(StubTraining.predicted) == 1  # the winner is the untuned recipe: it is trained once


def test_trial_0_that_died_between_two_values_keeps_the_recipes(data: Path) -> None:
    assert tune(data) == 0
    whole = read(data.parent / "study")
    journal = data.parent / "study" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if b'"param_name"' in line) + 1
    journal.write_bytes(b"".join(lines[:cut]))
    assert tune(data) == 0
    again = read(data.parent / "study")
    pd.testing.assert_frame_equal(again[1].drop(columns="seconds"), whole[1].drop(columns="seconds"))
    assert again[0]["inner_loss_untuned"] == whole[0]["inner_loss_untuned"]


def test_a_trial_0_with_other_values_is_not_the_untuned_recipe(data: Path) -> None:
    assert tune(data) == 0
    journal = data.parent / "study" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b'"param_name":"model.dropout"' in line)
    lines[at] = lines[at].replace(b'"param_value_internal":0', b'"param_value_internal":1')
    journal.write_bytes(b"".join(lines))
    assert tune(data) == 0
    assert read(data.parent / "study")[0]["inner_loss_untuned"] is None


def test_values_that_the_search_lacks_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(read_recipe(data.parent / "stub.toml")[0], "stub")
    assert read_search(None).values_outside(recipe) == {"training.weight_decay": 0.0}
    (data.parent / "search.toml").write_text("[training.weight_decay]\nlow = 1e-5\nhigh = 0.5\nlog = true\n")
    assert tune(data, 1) == 0
    assert "training.weight_decay 0.0" in capsys.readouterr().out
    assert read(data.parent / "study")[0]["inner_loss_untuned"] is None


# -- trials that fail


def failing(error: BaseException, dropout: float | None = 0.5) -> Callable[[Any], BaseException | None]:
    """Return what raises an error for trials with this dropout; None: for all."""
    return lambda recipe: error if dropout is None or recipe.model[0].dropout == dropout else None


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("OOM when allocating\na tensor"), TrialEnd.FAILED), (ConfigError("no such layer"), TrialEnd.UNFIT)],
)
def test_a_trial_whose_training_fails_is_settled_and_the_study_goes_on(
    error: Exception, reason: TrialEnd, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StubTraining, "fails", staticmethod(failing(error)))
    assert tune(data, 8) == 0
    summary, trials = read(data.parent / "study")
    failed = trials[trials["model.dropout"] == 0.5]
    assert len(failed) == summary["failed"] > 0
    assert summary["pruned"] == 0
    assert set(failed["reason"]) == {reason}
    assert failed["loss"].isna().all()
    assert trials.loc[trials["model.dropout"] == 0, "reason"].isna().all()


def test_a_study_whose_trials_all_fail_ends_with_one_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StubTraining, "fails", staticmethod(failing(RuntimeError("out of memory"), None)))
    for _ in range(2):
        assert tune(data) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "out of memory" in error


def test_an_error_of_the_data_settles_no_trial(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StubTraining, "fails", staticmethod(failing(StoreError("the store is gone"), None)))
    assert tune(data) == 2
    monkeypatch.setattr(StubTraining, "fails", staticmethod(lambda recipe: None))
    assert tune(data) == 0
    assert set(read(data.parent / "study")[1]["state"]) == {"complete"}


def test_a_fit_of_the_outer_part_that_fails_is_one_line_and_tried_again(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(data) == 0
    before = read(data.parent / "study")[1]
    shutil.rmtree(data.parent / "study" / outer.FOLDER)
    monkeypatch.setattr(StubTraining, "fails", staticmethod(failing(RuntimeError("out of memory"), None)))
    capsys.readouterr()
    assert tune(data) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "RuntimeError: out of memory" in error
    monkeypatch.setattr(StubTraining, "fails", staticmethod(lambda recipe: None))
    assert tune(data) == 0
    pd.testing.assert_frame_equal(read(data.parent / "study")[1], before)


@pytest.mark.parametrize("is_winner", [True, False])
def test_a_fit_that_diverges_on_the_outer_part_is_a_code(
    is_winner: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untuned = load_recipe(data.parent / "stub.toml").training.learning_rate
    diverges = lambda recipe: (recipe.training.learning_rate != untuned) == is_winner  # noqa: E731
    monkeypatch.setattr(StubTraining, "diverges", staticmethod(diverges))
    for _ in range(2):  # the second time from the file
        assert tune(data, 8) == 0
        summary, _trials = read(data.parent / "study")
        name, other = ("tuned", "untuned") if is_winner else ("untuned", "tuned")
        assert summary["verdict"] == TuningVerdict.DIVERGED
        assert summary["diverged"] == [name]
        assert summary["outer"][name]["weighted_log_loss"] is None
        assert summary["outer"][name]["n"] == summary["outer"][other]["n"] > 0
        assert summary["outer"][other]["weighted_log_loss"] > 0
        assert (summary["optimism"] is None) == is_winner
        assert summary["gain"]["value"] is None


# -- what is compared


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "unclear"), (None, None, "unclear")],
)
def test_the_verdict_follows_the_interval_of_the_gain(low: float | None, high: float | None, verdict: str) -> None:
    gain = {"value": 0.0, "low": low, "high": high}
    assert verdict_on(gain, is_same=False) == TuningVerdict(verdict)
    assert verdict_on(gain, is_same=True) == TuningVerdict.SAME


def test_a_study_that_goes_on_with_fewer_trials_counts_all(data: Path) -> None:
    assert tune(data, 4) == 0
    assert tune(data, 1) == 0
    summary, _ = read(data.parent / "study")
    assert summary["trials"] == 4
    heading = (data.parent / "study" / "best.toml").read_text().splitlines()[0]
    assert heading.endswith(f"trial {summary['best']['number']} of 4")


def test_a_difference_that_rounds_to_nothing_has_no_minus(data: Path) -> None:
    assert tune(data, 1) == 0
    summary, _ = read(data.parent / "study")
    text = "\n".join(summary_lines(summary | {"optimism": -0.00001, "inner_gain": -0.00004}))
    assert "-0.0000" not in text
    assert text.count("+0.0000") == 5  # with the gain of the outer part and the ends of its interval


@pytest.mark.parametrize("classes", [("inner", "outer"), ("recipe", "x"), ("outer", "recipe", "recipe_")])
def test_a_class_may_have_the_name_of_a_column(classes: tuple[str, ...], tmp_path: Path, data: Path) -> None:
    assert tune(write_pictures(tmp_path / "named", classes)) == 0
    table = pd.read_csv(tmp_path / "study" / "outer.csv")
    assert table[list(classes)].sum(axis=1).to_numpy() == pytest.approx(1)
    assert table.columns.is_unique
    recipe = next(name for name in ("recipe", "recipe_", "recipe__") if name not in classes)
    assert set(table[recipe]) == {"tuned", "untuned"}


@pytest.mark.parametrize("outer_folds", [1, 2])
def test_a_nested_search_says_that_its_figures_are_not_of_the_best_recipe(
    outer_folds: int, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(data, 2, "study", *([] if outer_folds == 1 else ["--outer", str(outer_folds)])) == 0
    summary, trials = read(data.parent / "study")
    assert (summary["outer_folds"], summary["trials"]) == (outer_folds, 2 * outer_folds)
    assert summary["best_is_judged"] is (outer_folds == 1)
    heading = [line for line in (data.parent / "study" / "best.toml").read_text().splitlines() if line[:1] == "#"]
    assert len(heading) == outer_folds
    assert capsys.readouterr().out.splitlines()[-1].startswith("best.toml: ") is (outer_folds > 1)
    lowest = trials.iloc[int(trials["loss"].to_numpy().argmin())]
    assert (summary["best"]["outer"], summary["best"]["number"]) == (lowest["outer"], lowest["number"])


# -- what is kept in the folder


def test_predictions_of_other_data_are_not_taken(data: Path, tmp_path: Path) -> None:
    assert tune(data, 2) == 0
    (tmp_path / "study" / JOURNAL).unlink()
    other = write_pictures(tmp_path / "other", seed=7)
    assert tune(other, 2) == 0
    assert tune(other, 2, "fresh") == 0
    assert (tmp_path / "study" / "outer.csv").read_text() == (tmp_path / "fresh" / "outer.csv").read_text()
    assert read(tmp_path / "study")[0]["outer"] == read(tmp_path / "fresh")[0]["outer"]


def test_features_of_other_tiles_are_not_taken(data: Path, tmp_path: Path) -> None:
    recipe, tiles, read_as = load_recipe(tmp_path / "stub.toml"), np.zeros((2, 16, 16, 3), np.uint8), []
    for tiles_hash, value in (("one", 1.0), ("other", 2.0), ("one", 3.0)):
        network = StubBackbone(value)
        cache = FeatureCache(tmp_path, tiles_hash)
        features = cache.get(recipe.model[0], recipe, tiles, network.itself, lambda _: None)[1]
        read_as.append(features.plain[0, 0])
    assert read_as == [1.0, 2.0, 1.0]


def test_a_study_is_not_resumed_with_renamed_classes_or_pictures(data: Path, tmp_path: Path) -> None:
    assert tune(data, 1) == 0
    (data / "yes").rename(data / "zebra")
    assert tune(data, 1) == 2
    (data / "zebra").rename(data / "yes")
    assert tune(data, 1) == 0
    (data / "no" / "00.png").rename(data / "no" / "00x.png")
    assert tune(data, 1) == 2


@pytest.mark.slow
def test_a_study_of_another_competition_is_refused(
    make_split: Callable[..., Path], strip_ai: Competition, recipe: Path, tmp_path: Path
) -> None:
    split = make_split(tmp_path / "train", strip_ai, split="train", slides=16)
    text = (COMPETITIONS / "strip_ai.toml").read_text()
    codes = []
    for clip in ("1e-15", "1e-6"):
        (tmp_path / "other.toml").write_text(text.replace("clip = 1e-15", f"clip = {clip}"))
        words = ["--competition", str(tmp_path / "other.toml"), "--trials", "1", "--inner", "2"]
        codes.append(main(["tune", str(recipe), "--data", str(split), "--out", str(tmp_path / "study"), *words]))
    assert codes == [0, 2]


def test_a_damaged_journal_is_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(data, 2) == 0
    journal = data.parent / "study" / JOURNAL
    sound = journal.read_bytes()
    for damaged in (sound[:300] + b"\0\0\0" + sound[303:], sound.replace(b'"trial_id":0', b'"trial":0', 1)):
        journal.write_bytes(damaged)
        capsys.readouterr()
        assert tune(data, 2) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert JOURNAL in error
