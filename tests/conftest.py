"""Fixtures that many tests share: a second competition, small splits, an untrained member."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from clotkit.competitions import Competition, load_competition

from .delivery import client, clock, home, lines, server  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("clotkit", deadline=None)  # a slow machine is no fault
settings.load_profile("clotkit")

OTHER = """
slug = "three-moulds"
title = "Three Moulds"

[files]
sample = "blank.csv"
submission = "answer.csv"
table = "{split}_list.csv"
slide = "{split}_pictures/{image_id}.tif"

[columns]
image = "picture"
patient = "person"
center = "site"
number = "part"
label = "mould"

[ids]
patient = "[0-9]{5}"
image = "{patient}-{number}"

[classes]
names = ["blue", "green", "white"]
weights = [0.5, 0.25, 0.25]
priors = [0.4, 0.3, 0.3]
fallback = [0.2, 0.3, 0.5]

[metric]
name = "balanced_log_loss"
clip = 1e-6

[limits]
deadline_s = 600
slide_s = 60
slide_memory_mb = 4096
kernel_memory_mb = 8000
kernel_wall_s = 900
min_tiles = 2
"""

RECIPE = """
name = "tiny"

[tiling]
name = "patches"
tile_px = 32
downsample = 8
max_tiles = 6
batch_tiles = 4

[model]
name = "cnn"
filters = [4, 8]
dropout = 0.0

[training]
seed = 1
epochs = 2
batch_tiles = 16
learning_rate = 1e-2
folds = 2
"""


@pytest.fixture(scope="session")
def strip_ai() -> Competition:
    """Load the default competition."""
    return load_competition("strip_ai")


@pytest.fixture(scope="session")
def other_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the TOML of a competition with other names, three classes and a non-uniform fallback."""
    path = tmp_path_factory.mktemp("competition") / "three_moulds.toml"
    path.write_text(OTHER)
    return path


@pytest.fixture(scope="session")
def other(other_toml: Path) -> Competition:
    """Load that competition."""
    return load_competition(str(other_toml))


@pytest.fixture(scope="session")
def make_split() -> Callable[..., Path]:
    """Return a function that writes a small synthetic split and returns its folder."""
    from clotkit.synthetic.phantom import write_split

    def make(out: Path, competition: Competition, split: str = "test", slides: int = 4, seed: int = 5) -> Path:
        write_split(out, split, slides, seed, competition, size="1280x1920", log=lambda _: None)
        return out

    return make


@pytest.fixture(scope="session")
def test_split(
    make_split: Callable[..., Path], strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Make a test split of four sound slides; tests must not write into it."""
    return make_split(tmp_path_factory.mktemp("split") / "test", strip_ai)


@pytest.fixture(scope="session")
def slides(
    make_split: Callable[..., Path], strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Make five slides of other backgrounds and shapes than `test_split`; tests must not write there."""
    split = make_split(tmp_path_factory.mktemp("slides") / "split", strip_ai, slides=5, seed=11)
    return sorted((split / "test").glob("*.tif"))


@pytest.fixture(scope="session")
def make_member() -> Callable[..., Path]:
    """Return a function that writes a member with seeded, untrained weights and returns its folder."""

    def make(folder: Path, classes: tuple[str, ...], seed: int = 1, recipe: str = RECIPE) -> Path:
        from clotkit.config import load_recipe
        from clotkit.members import folder as files
        from clotkit.members.calibration import Calibration
        from clotkit.members.loading import build_member

        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(recipe)
        settings = load_recipe(folder / "recipe.toml")
        _, model = build_member(settings, len(classes))
        rng = np.random.default_rng(seed)
        model.set_weights([rng.normal(0.1, 0.3, value.shape) ** 2 for value in model.get_weights()])
        model.save_weights(folder / files.WEIGHTS)
        (folder / files.METRICS).write_text(json.dumps({"classes": list(classes)}))
        identity = Calibration(slope=1.0, offsets=(0.0,) * len(classes), floor=0.01)
        (folder / files.CALIBRATION).write_text(json.dumps(identity.to_json()))
        return folder

    return make


@pytest.fixture(scope="session")
def member(strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an untrained member for the default competition, in ONNX.

    A process that runs it starts without Keras, in half of the time; see `keras_member`.
    """
    from .onnx_members import write_onnx_member

    return write_onnx_member(tmp_path_factory.mktemp("weights") / "tiny", strip_ai.classes.names)


@pytest.fixture(scope="session")
def keras_member(
    make_member: Callable[..., Path], strip_ai: Competition, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Make an untrained member of Keras for the default competition."""
    return make_member(tmp_path_factory.mktemp("weights") / "tiny", strip_ai.classes.names)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Write the small recipe and return its path."""
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def split(test_split: Path, tmp_path: Path) -> Path:
    """Copy the test split, for a test that writes into it."""
    return Path(shutil.copytree(test_split, tmp_path / "split"))
