"""Recipes and competitions: what they may say, and what is said of a mistake."""

from pathlib import Path

import pytest

from clotkit.competitions import Competition, load_competition
from clotkit.config import RECIPES, load_recipe
from clotkit.errors import ConfigError

from .conftest import OTHER, RECIPE, ROOT


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_loads(path: Path) -> None:
    assert load_recipe(path.stem).name == path.stem


def test_the_recipe_in_a_member_is_the_one_it_was_trained_with() -> None:
    assert load_recipe(ROOT / "weights" / "demo" / "recipe.toml") == load_recipe("demo")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("tile_px = 32", "tile_px = 32\ntile_mm = 3"), "tiling: unknown key tile_mm; known: batch_tiles"),
        (("downsample = 8\n", ""), "tiling: missing key downsample"),
        (("tile_px = 32", 'tile_px = "32"'), "tiling: tile_px is '32'; expected int"),
        (("tile_px = 32", "tile_px = true"), "tile_px is True; expected int"),
        (("filters = [4, 8]", 'filters = [4, "8"]'), r"filters\[1\] is '8'; expected int"),
        (("tile_px = 32", "tile_px = 4"), "tiling.tile_px is 4; allowed: 16 to 2048"),
        (("folds = 2", "folds = 1"), "training.folds is 1; allowed: 2 to 100"),
        (("[model]", "[model"), "not a TOML file"),
        (("folds = 2", 'folds = 2\nbalance = "smote"'), "training.balance is 'smote'; allowed: weights, patients"),
        (("folds = 2", "folds = 2\nclass_weights = [1, -5]"), "training.class_weights is -5.0; allowed: 0 to"),
        (("folds = 2", 'folds = 2\n[inference]\npool = "attention"'), "takes one network, frozen"),
        (("dropout = 0.0", "standardise = true"), "standardise is true; it takes a frozen network"),
        (("dropout = 0.0", "l2 = 1"), "l2 is set, inference.pooling 'mean'"),
        (("dropout = 0.0", "share = 0"), "the shares of the models sum to 0"),
        (
            ("[tiling]", '[data]\nclasses = ["a", "b"]\npositive = "c"\n[tiling]'),
            "data.positive_class is 'c'; allowed: a, b",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_named(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace(*change))
    with pytest.raises(ConfigError, match=words):
        load_recipe(path)


def test_one_network_or_several(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    assert len(load_recipe(path).model) == 1
    two = RECIPE.replace("[model]", "[[model]]").replace(
        "[training]", '[[model]]\nname = "cnn_flat"\nfilters = [4]\nshare = 0.5\n\n[training]'
    )
    path.write_text(two)
    assert [(model.name, model.share) for model in load_recipe(path).model] == [("cnn", 1.0), ("cnn_flat", 0.5)]
    frozen = RECIPE.replace('name = "cnn"', 'name = "vgg16"\nfreeze = true').replace(
        "folds = 2", 'folds = 2\nfinal = "folds"\n[inference]\npool = "attention"'
    )
    path.write_text(frozen)
    with pytest.raises(ConfigError, match=r"training\.final is 'folds'"):
        load_recipe(path)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match=r"known: .*demo"):
        load_recipe("demoo")
    with pytest.raises(ConfigError, match="known: strip_ai"):
        load_competition("strip")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("weights = [0.5, 0.25, 0.25]", "weights = [0.5, 0.5]"), "classes.weights has 2 entries, classes.names 3"),
        (("fallback = [0.2, 0.3, 0.5]", "fallback = [0.0, 0.0, 0.0]"), "positive sum"),
        (('names = ["blue", "green", "white"]', 'names = ["blue"]'), "at least 2"),
        (('name = "balanced_log_loss"', 'name = "auc"'), "known: balanced_log_loss"),
        (("slide_s = 60", "slide_m = 1"), "limits: unknown key slide_m"),
    ],
)
def test_a_mistake_in_a_competition_is_named(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "competition.toml"
    path.write_text(OTHER.replace(*change))
    with pytest.raises(ConfigError, match=words):
        load_competition(str(path))


def test_the_competition_is_the_real_one(strip_ai: Competition) -> None:
    assert strip_ai.header == ("patient_id", "CE", "LAA")
    assert strip_ai.classes.fallback == (0.5, 0.5)
    assert strip_ai.slide_path(Path("x"), "test", "006388_0") == Path("x/test/006388_0.tif")
