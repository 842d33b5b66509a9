"""Draw features of slides with a planted signal, and write recipes of heads for them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clotkit.features.files import write_features

WIDTH, SIGNAL = 8, 5.0  # features of a tile; height of the planted signal, in deviations of the noise
RECIPE = """
name = "head"

[tiling]
name = "patches"
tile_px = 32
downsample = 1
max_tiles = 12
batch_tiles = 8

[encoder]
name = "{encoder}"

[model]
name = "{head}"
{model}

[training]
seed = 7
epochs = {epochs}
batch_tiles = 5
learning_rate = 1e-2
folds = 2

[mil]
bag_tiles = 24
{mil}
"""
MODELS = {
    "abmil": "head = [8]\nattention_units = 8",
    "clam": "head = [8]\nattention_units = 8",
    "transformer": "head = [8]\nstandardise = true",
    "mean_pool": "l2 = 0.01\nstandardise = true",
}


def write_recipe(path: Path, head: str, epochs: int = 40, model: str = "", mil: str = "", encoder: str = "x") -> Path:
    """Write the recipe of a small head; `model` and `mil` are more lines of these tables."""
    lines = f"{MODELS[head]}\n{model}"
    path.write_text(RECIPE.format(head=head, model=lines, epochs=epochs, mil=mil, encoder=encoder))
    return path


def write_slides(
    folder: Path, slides: int = 24, tiles: int = 12, facts: Mapping[str, str] | None = None, width: int = WIDTH
) -> Path:
    """Write features of slides, two of each patient, and the train table beside them.

    Every second patient is LAA, and one tile of each of its slides shows it: number n % its tiles of slide n.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(3), ["image_id,center_id,patient_id,image_num,label"]
    for number in range(slides):
        count, patient = int(rng.integers(tiles // 2, tiles + 1)), number // 2
        features = rng.normal(size=(count, width))
        if patient % 2:
            features[number % count, 0] += SIGNAL
        corners = 32 * np.stack([np.arange(count), np.zeros(count)], axis=1)
        write_features(folder / f"s{number:03}.h5", features, corners, facts or {"encoder": "x", "encoder_sha256": "1"})
        rows.append(f"s{number:03},{number % 3},p{patient:03},0,{'CE' if patient % 2 == 0 else 'LAA'}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder
