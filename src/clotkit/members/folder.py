"""Read a member folder: the names of its files, and its settings checked against the manifest.

A member folder holds one trained model. MANIFEST.json lies beside the member folders and lists the hash of each file.
No Keras here, so listing members stays cheap.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.config import Recipe, load_recipe
from clotkit.errors import ConfigError
from clotkit.files import sha256

RECIPE, WEIGHTS, CALIBRATION, METRICS = "recipe.toml", "model.weights.h5", "calibration.json", "metrics.json"
HISTORY, CURVES, CARD = "history.csv", "curves.png", "README.md"
OUT_OF_FOLD = "oof.csv"  # one row per image: the out-of-fold prediction
SPLIT = "split.csv"  # one row per image: the number of the fold that held it out, or one of the two words below
SPLIT_TRAIN, SPLIT_VALIDATION = "train", "watch"  # words of SPLIT for images that no fold held out
MANIFEST = "MANIFEST.json"  # beside the member folders


@dataclass(frozen=True)
class MemberFiles:
    """The settings of a member as its files have them, once all files are present and unchanged."""

    recipe: Recipe
    metrics: dict[str, Any]  # metrics.json
    calibration: dict[str, Any]  # calibration.json
    weights_sha256: str


def find_members(weights_dir: Path) -> list[Path]:
    """Return the member folders of `weights_dir`: itself, or those directly inside it, sorted by name.

    Raises ConfigError when there is none.
    """
    if (weights_dir / RECIPE).is_file():
        return [weights_dir]
    folders = sorted(path.parent for path in weights_dir.glob(f"*/{RECIPE}"))
    if not folders:
        raise ConfigError(
            f"{weights_dir}: 0 members here, at least 1 is needed; a member folder holds {RECIPE}, {WEIGHTS} and "
            f"{CALIBRATION}, and clotkit train writes one"
        )
    return folders


def read_member(folder: Path) -> MemberFiles:
    """Read the recipe, the metrics and the calibration of a member.

    Raises ConfigError when a file is missing or unreadable, or when its hash differs from the one that MANIFEST.json
    beside the folder lists.
    """
    for name in (WEIGHTS, CALIBRATION):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: {name} is missing; train the member again or attach the whole folder")
    digest = _checked_hash(folder)
    return MemberFiles(load_recipe(folder / RECIPE), _json(folder / METRICS), _json(folder / CALIBRATION), digest)


def _checked_hash(folder: Path) -> str:
    """Compare the hashes of a member's files with MANIFEST.json, and return the sha256 of the weights."""
    digests = {name: sha256(folder / name) for name in (WEIGHTS, RECIPE, CALIBRATION)}
    manifest = folder.parent / MANIFEST
    listed = _json(manifest) if manifest.is_file() else {}
    for name, digest in digests.items():
        wanted = listed.get(f"{folder.name}/{name}", {}).get("sha256", digest)
        if wanted != digest:
            raise ConfigError(
                f"{folder / name}: sha256 is {digest[:12]}…, {MANIFEST} lists {wanted[:12]}…; "
                "fetch the weights again or run make weights-demo"
            )
    return digests[WEIGHTS]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
