"""Folders of shards and their table, as `clotkit tile` writes them, from random tiles without slides."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.shards.cut import TILING
from clotkit.shards.shard import write_shard
from clotkit.shards.table import ShardRow, write_shard_rows
from clotkit.stores import Folder
from clotkit.tiling.tilers import Batch

SHARDED = """
name = "sharded"

[tiling]
name = "patches"
tile_px = 16
downsample = 8
max_tiles = 40
batch_tiles = 8

[model]
name = "cnn"
filters = [4]
dropout = 0.0

[augment]
rotate_flip = true
shift = 0.1

[training]
seed = 3
epochs = 4
batch_tiles = 16
learning_rate = 1e-2
folds = 2
validation_share = 0.25
final = "folds"
feed = "shards"
"""


def write_recipe(path: Path, *lines: str, text: str = SHARDED) -> str:
    """Write a recipe that trains on shards, and return its path.

    Each line replaces the one of the same key, or is added to [training].
    """
    for line in lines:
        key = line.split(" = ")[0]
        kept = [old for old in text.splitlines() if old.split(" = ")[0] != key]
        text = "\n".join([*kept, line])
    path.write_text(text + "\n")
    return str(path)


def write_shards(folder: Path, recipe: str, competition: Competition, slides: int = 16, seed: int = 0) -> Path:
    """Write shards of 5 to 16 noisy tiles each, of two classes, one slide a patient; return the folder."""
    folder.mkdir(parents=True)
    rng, tiling, rows = np.random.default_rng(seed), load_recipe(recipe).tiling, []
    for number in range(slides):
        label, count, name = number % 2, int(rng.integers(5, 17)), f"{number:06x}_0"
        tiles = rng.integers(0, 170, (count, tiling.tile_px, tiling.tile_px, 3))
        tiles[..., 2 * label] += 30
        batch = Batch(tiles.astype(np.uint8), np.zeros((count, 2), np.int32))
        file, key = f"{name}.npy", hashlib.sha256(name.encode()).hexdigest()
        made = write_shard(Folder(folder), file, [{TILING: asdict(tiling)}, batch], key)
        rows.append(ShardRow(name, name[:6], label, "", file, count, key, made.size_bytes, made.sha256))
    write_shard_rows(Folder(folder), rows, competition)
    return folder
