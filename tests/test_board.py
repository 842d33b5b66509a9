"""Test the board on tiny pictures, and hold its table in the documentation to bench/board.json."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import board, board_one, board_table
from bench.board_table import BOARD, ENTRIES, MARKS, OFFICIAL, PAGE, WITHOUT, Entry
from bench.markdown import with_table
from clotkit.config import load_recipe
from clotkit.errors import ConfigError, UsageError

from .test_train import colours

BEGIN, END = MARKS
FIGURES = [name + end for name in board_one.FIGURES for end in ("", "_low", "_high")]


def test_the_table_in_the_documentation_is_that_of_the_rows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = board_table.board_table(board_table.read_rows(BOARD))
    assert with_table(page, table, MARKS) == page, "run python -m bench.board --table"


def test_every_row_has_figures_that_evaluating_gave_again() -> None:
    for row in board_table.read_rows(BOARD):
        assert row["agree"] is board_one.agree(row["trained"], row["evaluated"]) is True, row
        assert list(row["trained"]) == FIGURES


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.name}-{entry.protocol}")
def test_recipes_of_the_board_differ_in_seed_and_near_duplicates_alone(entry: Entry, tmp_path: Path) -> None:
    path = tmp_path / f"{entry.name}.toml"
    path.write_text(board_table.recipe_text(entry, 7), encoding="utf-8")
    made, shipped = load_recipe(path), load_recipe(entry.recipe)
    data = replace(shipped.data, near_duplicates="drop") if entry.protocol == WITHOUT else shipped.data
    assert made == replace(shipped, data=data, training=replace(shipped.training, seed=7))
    assert board_table.recipe_key(entry, 7) != board_table.recipe_key(entry, 1)


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, list[str], tuple[Entry, ...]]:
    """Write pictures, two of which are in train and in test; return a folder, a command and entries."""
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    recipe = colours(folder, epochs=1)
    with np.load(folder / "colours.npz") as archive:
        arrays = dict(archive)
    arrays["train_images"][[0, 5]] = arrays["test_images"][[0, 3]]
    np.savez(folder / "colours.npz", **arrays)
    moved = Path(recipe).rename(tmp_path / "colours.toml")
    (tmp_path / "page.md").write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    files = {"--work": "work", "--board": "board.json", "--page": "page.md"}
    command = [str(tmp_path / "data"), "--seeds", "1"]
    command += [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    return tmp_path, command, (Entry(str(moved), WITHOUT, "tiny"),)


@pytest.mark.slow
def test_a_board_is_trained_once_and_again_for_another_recipe(tiny: tuple[Path, list[str], tuple[Entry, ...]]) -> None:
    folder, command, entries = tiny
    assert board.main(command, entries) == 0
    (row,) = rows = board_table.read_rows(folder / "board.json")
    assert (row["recipe"], row["protocol"], row["seed"], row["agree"]) == ("colours", WITHOUT, 1, True)
    assert row["pictures"] == {"train": 38, "validation": 16, "scored": 16}
    assert row["left_out"] == {"train": 2, "val": 0}
    assert row["cpu_s"] > 0
    assert 100 < row["peak_mb"] < 8000
    assert not row["resumed"]
    metrics = json.loads((folder / "work" / f"colours-{WITHOUT}-1" / "metrics.json").read_text())
    assert row["trained"] == {name: metrics[name] for name in FIGURES}
    page = (folder / "page.md").read_text()
    assert "38 + 16 + 16 | 2 + 0" in page
    assert "1 of 5" in page
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")

    assert board.main(command, entries) == 0  # nothing is left to do
    assert board_table.read_rows(folder / "board.json") == rows

    (folder / "board.json").write_text(board_table.rows_text([{**row, "agree": False}]))
    assert board.main(command, entries) == 0  # evaluated again, without a training
    assert board_table.read_rows(folder / "board.json") == rows

    with np.load(folder / "data" / "tiny" / "colours.npz") as archive:
        arrays = dict(archive)
    np.savez(folder / "data" / "tiny" / "colours.npz", **arrays | {"train_labels": arrays["train_labels"][::-1]})
    assert board.main(command, entries) == 0  # trained again on the other data
    (other,) = board_table.read_rows(folder / "board.json")
    assert other["data_key"] != row["data_key"]
    assert other["trained"] != row["trained"]
    rows = [other]

    recipe = Path(entries[0].recipe)
    recipe.write_text("# a comment\n" + recipe.read_text())
    assert board_table.rows_of(rows, entries[0]) == rows
    recipe.write_text(recipe.read_text().replace("learning_rate = 1e-2", "learning_rate = 0"))
    assert board_table.rows_of(rows, entries[0]) == []
    assert board.main([*command, "--table"], entries) == 0
    assert "0 of 5" in (folder / "page.md").read_text()
    assert board.main(command, entries) == 1  # no learning rate of 0 is allowed, so the training fails
    assert board_table.read_rows(folder / "board.json") == rows


def test_a_wrong_command_is_one_line(
    tiny: tuple[Path, list[str], tuple[Entry, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, command, entries = tiny
    wrong = [
        [*command, "--recipes", "none"],
        [str(folder), *command[1:]],
        command[1:],
        [*command, "--page", str(folder / "missing.md")],
        [*command, "--table", "--page", str(folder / "colours.toml")],
    ]
    for arguments in wrong:
        assert board.main(arguments, entries) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (folder / "board.json").exists()


def row_of(entry: Entry, seed: int, **changes: Any) -> board_table.Row:
    figures = dict.fromkeys(FIGURES, 0.5) | {"accuracy": 0.7 + seed / 100}
    start = {"recipe": entry.name, "protocol": entry.protocol, "seed": seed, "data_key": "a"}
    rest = {"pictures": {"train": 0, "validation": 0, "scored": 1253}, "left_out": None, "weights_mb": 4.04}
    spent = {"wall_s": 60.0, "cpu_s": 90.0, "peak_mb": 1200 + seed, "cores": 2, "resumed": False, "agree": True}
    key = {"recipe_key": board_table.recipe_key(entry, seed), "trained": figures, "evaluated": figures}
    return start | key | rest | spent | changes


def test_a_line_of_the_table_has_mean_spread_and_interval() -> None:
    entry = Entry("brain", OFFICIAL, "brain_mri")
    rows = [row_of(entry, seed) for seed in (1, 2, 3)]
    line = board_table.board_table(rows, [entry]).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "`brain`, official"
    assert cells[1:3] == ["3 of 5", "0.7200 (0.7100 to 0.7300); 0.500 to 0.500"]
    assert cells[5:] == ["1,253 in folds", "-", "1.0; 1.5", "1,203", "4.0"]
    resumed = board_table.board_table([row_of(entry, 1, resumed=True)], [entry]).splitlines()[2]
    assert "| above 1.0; 1.5 |" in resumed
    assert board_table.rows_of([row_of(entry, 9)], entry) == []  # no seed of the board


def test_rows_that_do_not_agree_are_not_shown() -> None:
    entry = Entry("brain", OFFICIAL, "brain_mri")
    rows = [row_of(entry, 1), row_of(entry, 2, agree=False)]
    assert board_table.rows_of(rows, entry) == rows[:1]


def test_numbers_of_pictures_that_differ_by_seed_are_spans() -> None:
    entry = Entry("brain", OFFICIAL, "brain_mri")
    counts = [{"train": train, "validation": 9, "scored": 1000 - train} for train in (100, 120)]
    rows = [row_of(entry, seed, pictures=one) for seed, one in enumerate(counts, 1)]
    cells = [cell.strip() for cell in board_table.board_table(rows, [entry]).splitlines()[2].strip("|").split("|")]
    assert cells[5] == "(100 to 120) + 9 + (880 to 900)"


def test_rows_of_other_data_are_replaced(tmp_path: Path) -> None:
    entry, other = Entry("brain", OFFICIAL, ""), Entry("brain_cnn", OFFICIAL, "")
    path = tmp_path / "board.json"
    for row in (row_of(entry, 1), row_of(entry, 2), row_of(other, 1), row_of(entry, 2, peak_mb=1)):
        board_table.add_row(path, row)
    assert [(row["recipe"], row["seed"]) for row in board_table.read_rows(path)] == [
        ("brain", 1), ("brain", 2), ("brain_cnn", 1)
    ]  # fmt: skip
    board_table.add_row(path, row_of(entry, 3, data_key="b"))
    found = [(row["recipe"], row["seed"]) for row in board_table.read_rows(path)]
    assert found == [("brain", 3), ("brain_cnn", 1)]
    path.write_text("{}")
    assert board_table.read_rows(path) == []
    path.write_text("[1]")
    with pytest.raises(ConfigError):
        board_table.read_rows(path)


def test_figures_agree_to_six_digits() -> None:
    one: dict[str, float | None] = {"auc": 0.5, "accuracy": None}
    assert board_one.agree(one, {"auc": 0.500001, "accuracy": None})
    assert not board_one.agree(one, {"auc": 0.500002, "accuracy": None})
    assert not board_one.agree(one, {"auc": 0.5, "accuracy": 0.1})


def test_a_page_without_markers_is_refused() -> None:
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb", "new", MARKS) == f"a\n{BEGIN}\n\nnew\n\n{END}\nb"
    for page in ("", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(UsageError):
            with_table(page, "new", MARKS)
