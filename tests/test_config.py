"""Recipes and competitions: valid files load, and each mistake is a ConfigError that names its key."""

from dataclasses import replace
from pathlib import Path

import pytest

from clotkit import config
from clotkit.competitions import Competition, load_competition, schema
from clotkit.config import RECIPES, TilingConfig, load_recipe, missing_facts, rule_facts, tiling_for
from clotkit.errors import ConfigError
from tools import reference

from .conftest import OTHER, RECIPE, ROOT


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_ships_loads(path: Path) -> None:
    assert load_recipe(path.stem).name == path.stem


def test_the_recipe_in_a_member_is_the_one_it_was_trained_with() -> None:
    assert load_recipe(ROOT / "weights" / "demo" / "recipe.toml") == load_recipe("demo")


@pytest.mark.parametrize("path", [Path(config.__file__), Path(schema.__file__)], ids=lambda path: path.stem)
def test_every_key_has_its_text_in_the_reference(path: Path) -> None:
    comments, summaries = reference.field_comments(path)
    assert [name for name, text in {**comments, **summaries}.items() if not text] == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("tile_px = 32", "tile_px = 32\ntile_mm = 3"), "tile_mm"),
        (("tile_px = 32", 'tile_px = 32\ndownsample_if = ["is_tma = True"]'), r"downsample_if.*'is_tma = True'"),
        (("tile_px = 32", 'tile_px = 32\ndownsample_if = ["is_tma = True: 0"]'), r"downsample_if.*1 to 256"),
        (("tile_px = 32", 'tile_px = 32\ndownsample_if = "is_tma = True: 4"'), r"tiling: downsample_if"),
        (("[tiling]", '[data]\nsource = "npz"\n[tiling]\ndownsample_if = ["a = b: 4"]'), r"downsample_if.*npz"),
        (("downsample = 8\n", ""), "downsample"),
        (("tile_px = 32", 'tile_px = "32"'), "tile_px"),
        (("tile_px = 32", "tile_px = true"), "tile_px"),
        (("filters = [4, 8]", 'filters = [4, "8"]'), r"filters\[1\]"),
        (("tile_px = 32", "tile_px = 4"), r"tiling\.tile_px.*16.*2048"),
        (("folds = 2", "folds = 1"), r"training\.folds.*2.*100"),
        (("[model]", "[model"), "TOML"),
        (("folds = 2", 'folds = 2\nbalance = "smote"'), r"training\.balance.*weights, patients"),
        (("folds = 2", "folds = 2\nclass_weights = [1, -5]"), r"training\.class_weights.*-5"),
        (("folds = 2", 'folds = 2\n[inference]\npool = "attention"'), r"inference\.pooling"),
        (("dropout = 0.0", "standardise = true"), r"model\.standardise"),
        (("dropout = 0.0", "shrink_novel = true"), r"model\.shrink_novel"),
        (("dropout = 0.0", "l2 = 1"), r"model\.l2"),
        (("dropout = 0.0", 'output = "rank"'), r"model\.output.*softmax, ordinal, value"),
        (
            ("dropout = 0.0\n\n[training]", 'output = "value"\n\n[training]\nloss = "ordinal"'),
            r"training\.loss.*squared",
        ),
        (("folds = 2", 'folds = 2\noptimizer = "lion"'), r"training\.optimizer.*adamw, adam"),
        (("folds = 2", 'folds = 2\noptimizer = "adam"\nweight_decay = 0.1'), r"training\.weight_decay.*adamw"),
        (("folds = 2", "folds = 2\nwarmup_epochs = 2"), r"training\.warmup_epochs.*0 to 1"),
        (
            ("folds = 2", 'folds = 2\nwarmup_epochs = 1\nschedule = "constant"'),
            r"training\.warmup_epochs.*constant.*cosine",
        ),
        (("folds = 2", "folds = 2\nema = 1"), r"training\.ema.*0 to 0\.99999"),
        (
            (
                "[training]\nseed = 1\nepochs = 2\nbatch_tiles = 16",
                "[augment]\nmixup = 0.4\n\n[training]\nseed = 1\nepochs = 2\nbatch_tiles = 1",
            ),
            r"augment\.mixup.*batch_tiles",
        ),
        (
            (
                'name = "cnn"\nfilters = [4, 8]\ndropout = 0.0',
                'name = "vgg16"\nfreeze = true\n[augment]\ncutmix = 1.0',
            ),
            r"augment\.cutmix.*frozen_augmentations",
        ),
        (
            (
                'name = "cnn"\nfilters = [4, 8]\ndropout = 0.0',
                'name = "vgg16"\nfreeze = true\n[augment]\nmixup = 0.4\n[inference]\npooling = "logits"',
            ),
            r"augment\.mixup.*logits",
        ),
        (("dropout = 0.0", "share = 0"), "shares"),
        (("[tiling]", '[data]\nclasses = ["a", "b"]\npositive = "c"\n[tiling]'), r"data\.positive_class.*a, b"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(change: tuple[str, str], key: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace(*change))
    with pytest.raises(ConfigError, match=key):
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
    with pytest.raises(ConfigError, match=r"training\.final"):
        load_recipe(path)


def test_a_slides_row_chooses_its_downsample() -> None:
    plain = TilingConfig("patches", tile_px=32, downsample=8, max_tiles=6, batch_tiles=4)
    tiling = replace(plain, downsample_if=("is_tma = True: 4", "scanner name =  Aperio AT2 :2", "is_tma = maybe: 1"))
    facts = {"is_tma": "False", "scanner name": "Hamamatsu", "sex": "f"}
    for cells, downsample in [
        ({}, 8),
        ({"is_tma": " TRUE "}, 4),
        ({"scanner name": "aperio at2"}, 2),
        ({"is_tma": "true", "scanner name": "Aperio AT2"}, 4),  # the first entry that fits
        ({"is_tma": "Maybe"}, 1),
    ]:
        assert tiling_for(tiling, facts | cells) == replace(plain, downsample=downsample)
    assert tiling_for(tiling, {}) == plain
    assert tiling_for(plain, facts) is plain
    assert rule_facts(tiling, facts) == {"is_tma": "False", "scanner name": "Hamamatsu"}
    assert rule_facts(plain, facts) == {}
    assert missing_facts(tiling, {"is_tma": "True"}) == ["scanner name"]


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match=r"known: .*demo"):
        load_recipe("demoo")
    with pytest.raises(ConfigError, match=r"known: .*strip_ai"):
        load_competition("strip")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("weights = [0.5, 0.25, 0.25]", "weights = [0.5, 0.5]"), r"classes\.weights.*2.*classes\.names.*3"),
        (("fallback = [0.2, 0.3, 0.5]", "fallback = [0.0, 0.0, 0.0]"), r"classes\.fallback"),
        (('names = ["blue", "green", "white"]', 'names = ["blue"]'), r"classes\.names.*2"),
        (('name = "balanced_log_loss"', 'name = "gini"'), r"metric\.name.*balanced_log_loss"),
        (("slide_s = 60", "slide_m = 1"), "limits.*slide_m"),
    ],
)
def test_a_mistake_in_a_competition_is_named(change: tuple[str, str], key: str, tmp_path: Path) -> None:
    path = tmp_path / "competition.toml"
    path.write_text(OTHER.replace(*change))
    with pytest.raises(ConfigError, match=key):
        load_competition(str(path))


def test_the_competition_is_the_real_one(strip_ai: Competition) -> None:
    assert strip_ai.header == ("patient_id", "CE", "LAA")
    assert strip_ai.classes.fallback == (0.5, 0.5)
    assert strip_ai.slide_path(Path("x"), "test", "006388_0") == Path("x/test/006388_0.tif")


ONNX_RECIPE = """name = "other"
[tiling]
name = "patches"
tile_px = 32
downsample = 8
max_tiles = 8
batch_tiles = 4
[model]
name = "onnx"
[onnx]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
output = "logits"
"""


def test_an_onnx_recipe_needs_no_training(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(ONNX_RECIPE, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.is_onnx
    assert recipe.onnx == config.OnnxConfig(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), output="logits")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("[onnx]", "[augment]"), "unknown key"),
        (('output = "logits"', 'layout = "chw"'), r"onnx\.layout.*nchw, nhwc"),
        (('output = "logits"', 'output = "softmax"'), r"onnx\.output.*probabilities, logits, features"),
        (('output = "logits"', 'dtype = "int8"'), r"onnx\.dtype.*float32"),
        (('output = "logits"', 'dtype = "uint8"'), r"onnx\.dtype.*no mean"),
        (('output = "logits"', "scale = 0"), r"onnx\.scale"),
        (("std = [0.229, 0.224, 0.225]", "std = [0.229, 0.224]"), r"onnx\.std has 2 numbers"),
        (("std = [0.229, 0.224, 0.225]", "std = [0]"), r"onnx\.std is 0"),
        (('name = "onnx"', 'name = "onnx"\ncopies = 2'), "one network"),
        (('name = "onnx"', 'name = "onnx"\n[inference]\npooling = "attention"'), r"inference\.pooling"),
        (('output = "logits"', '[inference]\npooling = "logits"'), r"inference\.pooling.*probabilities"),
    ],
)
def test_a_mistake_in_an_onnx_recipe_names_its_key(change: tuple[str, str], key: str, tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text(ONNX_RECIPE.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=key):
        load_recipe(path)
