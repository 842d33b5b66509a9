"""Test the search of hyperparameters: search files, studies that are killed or shared, honest figures."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clotkit.cli import main
from clotkit.config import load_recipe, read_recipe, recipe_of
from clotkit.data.folds import Fold
from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, UsageError
from clotkit.tuning.folds import outer_folds
from clotkit.tuning.search import DEFAULT, Value, read_search
from clotkit.tuning.study import JOURNAL, StudySettings, TuningStudy, number_of
from clotkit.typed_toml import recipe_text

from .cluster import Cluster
from .test_train import colours

SEARCH = """
[training.learning_rate]
low = 1e-3
high = 1e-1
log = true

[model.dropout]
choices = [0.0, 0.2]

[training.epochs]
low = 1
high = 2
"""
PARALLEL = ["history.png", "importance.png", "parallel.png"]


def write_search(folder: Path, text: str = SEARCH) -> Path:
    path = folder / "search.toml"
    path.write_text(text)
    return path


def command(folder: Path, trials: int, out: str = "study", *more: str) -> list[str]:
    """Return the words of `clotkit tune` on the pictures of `colours`, written into the folder beforehand."""
    recipe, data = str(folder / "colours.toml"), str(folder / "colours.npz")
    search = ["--search", str(folder / "search.toml"), "--inner", "2"]
    return ["tune", recipe, "--data", data, "--out", str(folder / out), "--trials", str(trials), *search, *more]


def read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    return json.loads((folder / "summary.json").read_text()), pd.read_csv(folder / "trials.csv")


def study_settings(folder: Path, text: str = SEARCH, **more: Any) -> StudySettings:
    folder.mkdir(exist_ok=True)
    search = read_search(write_search(folder, text))
    settings: dict[str, Any] = {"fingerprints": {"recipe": "1"}, "seed": 3, "epochs": 10, "prunes": True, "first": None}
    return StudySettings(folder=folder, name="outer-0", search=search, **(settings | more))


# -- the search file


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "no key"),
        ("[training.learning]\nlow = 1e-3\nhigh = 1e-2", "training.learning"),
        ("[tiling.tile_px]\nlow = 16\nhigh = 32", "tiling.tile_px"),
        ("[training.seed]\nlow = 1\nhigh = 3", "training.seed"),
        ("[training.learning_rate]\nlow = 1e-3\nhigh = 5", "5"),
        ("[training.learning_rate]\nlow = 1e-2\nhigh = 1e-3", "low 0.01"),
        ("[training.learning_rate]\nlow = 1e-2", "low and high"),
        ("[training.learning_rate]\nlow = 0.0\nhigh = 0.1\nlog = true", "low 0.0"),
        ("[training.batch_tiles]\nlow = 8.5\nhigh = 16", "8.5"),
        ("[training.batch_tiles]\nlow = 8\nhigh = 16\nstep = 3", "step is 3"),
        ("[training.schedule]\nchoices = ['cosine', 'linear']", "linear"),
        ("[training.schedule]\nchoices = ['cosine']", "choices"),
        ("[training.schedule]\nchoices = ['cosine', 'plateau']\nlog = true", "choices"),
        ("[model.dropout]\nchoices = [0.1, 'much']", "much"),
        ("[model.dropout]\nlow = 0.1\nhigh = 0.2\nlogarithm = true", "logarithm"),
        ("training = 3", "training"),
        ("[training]\nlearning_rate = 3", "training.learning_rate"),
    ],
)
def test_a_bad_search_is_one_line_with_what_it_has(
    text: str, seen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours(tmp_path)
    write_search(tmp_path, text)
    assert main(command(tmp_path, 1)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert seen in error
    assert "search.toml" in error
    assert not (tmp_path / "study").exists()


def test_the_search_that_ships_fits_every_network_of_a_recipe() -> None:
    search = read_search(None)
    tables, _ = read_recipe("strip_ai_chunks")
    changed = recipe_of(search.apply(tables, {"model.dropout": 0.45, "training.batch_tiles": 16}), "changed")
    assert {model.dropout for model in changed.model} == {0.45}
    assert len(changed.model) == len(load_recipe("strip_ai_chunks").model)
    assert search.source == str(DEFAULT)


def test_a_recipe_is_written_as_it_is_read() -> None:
    tables = {
        "name": '\x7f"\\\n',
        "card": {"title": "é", "low": 1e-9, "high": 1e16},
        "model": [{"head": []}, {"l2": 0.0}],
    }
    assert tomllib.loads(recipe_text(tables, "a heading\nof two lines")) == tables


def test_values_reach_the_recipe_and_its_own_are_found(tmp_path: Path) -> None:
    text = SEARCH + "[model.head]\nchoices = [[], [8, 4]]\n['training.balance']\nchoices = ['none', 'weights']\n"
    search = read_search(write_search(tmp_path, text))
    tables, _ = read_recipe(colours(tmp_path))
    values: dict[str, Value] = {"training.learning_rate": 0.0123456, "model.head": "[8, 4]", "training.epochs": 2}
    changed = search.apply(tables, values)
    tuned = recipe_of(changed, "tuned")
    assert (tuned.training.learning_rate, tuned.model[0].head, tuned.training.epochs) == (0.01235, (8, 4), 2)
    (tmp_path / "best.toml").write_text(recipe_text(changed, "a heading\nof two lines"))
    assert load_recipe(tmp_path / "best.toml") == tuned
    own = search.labels_of(recipe_of(tables | {"training": tables["training"] | {"epochs": 1}}, "own"))
    assert own == {
        "training.learning_rate": 0.01,
        "model.dropout": 0.2,
        "training.epochs": 1,
        "model.head": "[]",
        "training.balance": "weights",
    }
    assert search.labels_of(recipe_of(tables, "with 3 epochs")) is None
    assert search.scales_loss


# -- the folds


def tiles(patients: int, parts: str = "") -> TileSet:
    number = np.arange(2 * patients) // 2
    return TileSet(
        tiles=np.zeros((2 * patients, 4, 4, 3), np.uint8),
        labels=number % 2,
        patients=number.astype(np.str_),
        images=np.arange(2 * patients).astype(np.str_),
        centres=np.full(2 * patients, ""),
        parts=np.array([parts[patient % len(parts)] if parts else "" for patient in number]),
        classes=("a", "b"),
    )


def masks(fold: Fold) -> np.ndarray:
    return np.stack([fold.train, fold.validation, fold.held_out])


@pytest.mark.parametrize(("outer", "count"), [(None, 1), (4, 4)])
def test_inner_folds_have_no_outer_patient(outer: int | None, count: int, tmp_path: Path) -> None:
    made, data = load_recipe(colours(tmp_path, "folds", training="validation_share = 0.2")), tiles(24)
    folds = outer_folds(data, made, outer, 3)
    assert len(folds) == count
    held_out = np.stack([fold.fold.held_out for fold in folds])
    assert held_out.sum(axis=0).max() == 1
    assert held_out.sum(axis=0).mean() == pytest.approx(1 if outer else 1 / 3)
    for fold in folds:
        known = set(data.patients[fold.fold.held_out])
        seen = np.stack([masks(inner) for inner in fold.inner])  # [inner, 3, n]
        assert not known & set(data.patients[seen.any(axis=(0, 1))])
        assert (seen.sum(axis=1) == ~fold.fold.held_out).all()
        assert (seen[:, 2].sum(axis=0) == ~fold.fold.held_out).all()
        assert seen[:, 1].any(axis=1).all()
        for inner in fold.inner:
            assert not set(data.patients[inner.train]) & set(data.patients[inner.held_out])


def test_the_test_part_of_a_split_is_the_outer_one(tmp_path: Path) -> None:
    made, data = load_recipe(colours(tmp_path)), tiles(24)
    data = TileSet(
        **{**vars(data), "parts": np.array([("train", "train", "val", "test")[i // 2 // 2 % 4] for i in range(48)])}
    )
    (fold,) = outer_folds(data, made, None, 2)
    assert (fold.fold.held_out == (data.parts == "test")).all()
    for inner in fold.inner:
        assert (inner.validation == (data.parts == "val")).all()
        assert (inner.train | inner.held_out == (data.parts == "train")).all()
    with pytest.raises(UsageError):
        outer_folds(data, made, 3, 2)
    with pytest.raises(UsageError):
        outer_folds(data, made, None, 1)
    with pytest.raises(ConfigError):
        outer_folds(data, made, None, 9)


# -- the study


def test_a_trial_of_a_dead_process_is_run_again_with_its_values_and_number(tmp_path: Path) -> None:
    study = TuningStudy(study_settings(tmp_path / "one"))
    whole = TuningStudy(study_settings(tmp_path / "other"))
    found: list[list[dict[str, Any]]] = []
    for one, dies_at in ((study, {1, 4}), (whole, set[int]())):
        values, deaths = list[dict[str, Any]](), set(dies_at)
        while True:
            with one.claim(7) as trial:
                if trial is None:
                    break
                number = int(trial.user_attrs["number"])
                if number in deaths:  # the lock ends, and nobody settles the trial
                    deaths.remove(number)
                    continue
                assert number == len(values)
                values.append(dict(trial.params))
                one.tell(trial, trial.params["training.learning_rate"], {"seconds": 1.0})
        found.append(values)
    assert found[0] == found[1]
    assert [number_of(trial) for trial in study.settled()] == list(range(7))
    winner = study.winner()
    assert winner is not None
    assert winner.value == min(values["training.learning_rate"] for values in found[0])


def test_trials_that_run_elsewhere_are_not_taken(tmp_path: Path) -> None:
    one, other = (TuningStudy(study_settings(tmp_path / "study")) for _ in range(2))
    with one.claim(2) as first, other.claim(2) as second:
        assert first is not None
        assert second is not None
        assert {first.number, second.number} == {0, 1}
        with one.claim(2) as third:
            assert third is None
        one.tell(first, 0.5, {})
        other.tell(second, None, {})
    with one.claim(2) as fourth:
        assert fourth is None
    assert [trial.state.name for trial in one.settled()] == ["COMPLETE", "PRUNED"]


def test_a_line_that_was_cut_short_is_dropped_and_the_study_goes_on(tmp_path: Path) -> None:
    study = TuningStudy(
        study_settings(
            tmp_path / "study", first={"training.learning_rate": 0.05, "model.dropout": 0.2, "training.epochs": 1}
        )
    )
    with study.claim(3) as trial:
        assert trial is not None
        assert trial.params["training.learning_rate"] == 0.05
        study.tell(trial, 0.5, {})
    with (tmp_path / "study" / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    again = TuningStudy(study_settings(tmp_path / "study"))
    with again.claim(2) as trial:
        assert trial is not None
        again.tell(trial, 0.4, {})
    assert len(TuningStudy(study_settings(tmp_path / "study")).settled()) == 2


def test_a_study_of_another_recipe_is_refused(tmp_path: Path) -> None:
    TuningStudy(study_settings(tmp_path / "study"))
    with pytest.raises(ConfigError, match="recipe"):
        TuningStudy(study_settings(tmp_path / "study", fingerprints={"recipe": "2"}))


# -- the whole way


@pytest.mark.slow
def test_a_study_gives_a_recipe_and_figures_of_patients_that_it_never_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours(tmp_path, "folds", epochs=2)
    write_search(tmp_path)
    assert main(command(tmp_path, 3)) == 0
    summary, trials = read(tmp_path / "study")
    assert len(trials) == summary["trials"] == 3
    assert trials["number"].tolist() == [0, 1, 2]
    complete = trials[trials["state"] == "complete"]
    best = complete.iloc[int(complete["loss"].to_numpy().argmin())]
    assert summary["best"]["number"] == best["number"]
    assert summary["inner_loss"] == pytest.approx(best["loss"], abs=1e-5)
    assert summary["inner_loss_untuned"] == trials["loss"][0]  # trial 0 has the recipe's own values
    assert summary["inner_gain"] == pytest.approx(trials["loss"][0] - best["loss"], abs=1e-5)
    assert summary["optimism"] == pytest.approx(summary["outer_loss"] - summary["inner_loss"], abs=1e-5)
    outer = pd.read_csv(tmp_path / "study" / "outer.csv", dtype=str)
    held_out = outer[outer["recipe"] == "tuned"]
    assert len(held_out) == len(outer) / 2 == 24
    assert summary["outer"]["tuned"]["n"] == 24
    tuned = load_recipe(tmp_path / "study" / "best.toml")
    assert tuned.training.learning_rate == pytest.approx(best["training.learning_rate"])
    assert all((tmp_path / "study" / name).stat().st_size > 5000 for name in PARALLEL)
    capsys.readouterr()
    assert main(command(tmp_path, 3)) == 0  # nothing is left to do
    again, same_trials = read(tmp_path / "study")
    assert again == summary
    pd.testing.assert_frame_equal(same_trials, trials)
    (tmp_path / "search.toml").write_text(SEARCH.replace("0.2", "0.3"))
    assert main(command(tmp_path, 3)) == 2
    assert "search" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_study_and_one_that_two_processes_share_have_as_many_trials(tmp_path: Path) -> None:
    colours(tmp_path, epochs=2)
    write_search(tmp_path)
    words = [sys.executable, "-m", "clotkit.cli", *command(tmp_path, 3)]
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    journal = tmp_path / "study" / JOURNAL
    end = time.monotonic() + 300
    while not (journal.is_file() and journal.read_bytes().count(b'"intermediate_value"') > 1):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    summary, trials = read(tmp_path / "study")
    assert trials["number"].tolist() == [0, 1, 2]
    assert summary["trials"] == 3
    run = [line.split(":")[0] for one in lines for line in one if line.startswith("trial ")]
    assert len(run) == len(set(run)) >= 2  # no trial was settled twice
    assert set(trials["state"]) == {"complete"}  # the kill failed none, and so few trials prune none
    assert trials["loss"].notna().all()


@pytest.mark.soak
def test_workers_of_a_cluster_run_trials_and_one_that_dies_loses_none(tmp_path: Path) -> None:
    colours(tmp_path, epochs=2)
    write_search(tmp_path)
    cluster = Cluster(tmp_path)
    try:
        cluster.start_scheduler()
        cluster.start_worker()
        more = ["--backend", "dask", "--scheduler", cluster.address]
        words = [sys.executable, "-m", "clotkit.cli", *command(tmp_path, 3, "study", *more)]
        running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        journal = tmp_path / "study" / JOURNAL
        end = time.monotonic() + 300
        while not (journal.is_file() and b'"intermediate_value"' in journal.read_bytes()):
            assert running.poll() is None, "it ended before its worker could be killed"
            assert time.monotonic() < end
        for pid in cluster.worker_pids().values():
            os.kill(pid, signal.SIGKILL)  # its nanny starts another one
        lines = running.communicate()[0].splitlines()
    finally:
        cluster.close()
    assert running.returncode == 0
    assert read(tmp_path / "study")[1]["number"].tolist() == [0, 1, 2]
    assert sum(line.startswith("trial ") for line in lines) >= 2
