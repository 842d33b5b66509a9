"""Load an encoder by its name, its folder or its ONNX file, and encode tiles.

Batches have one shape and are padded, as those of members: the features of a tile do not depend on the tiles beside it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clotkit.batching import TileArray, noise
from clotkit.config import ModelConfig, OnnxConfig
from clotkit.errors import ConfigError
from clotkit.members.backbones import BACKBONES, arrays_sha256, find_backbone
from clotkit.members.encoders.folder import ENCODER, KerasConfig, check_features, is_encoder, read_encoder
from clotkit.members.loading import load_backbone_encoder, start_keras
from clotkit.members.onnx.session import OnnxModel

BATCH_TILES = 64  # of a batch, unless the caller says otherwise

Encode = Callable[[TileArray], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder."""

    name: str
    width: int  # number of features of a tile
    sha256: str  # of all that decides the features: the network, its weights, and how pixels are scaled
    encode: Encode  # uint8[n, S, S, 3] -> float32[n, D]
    tile_px: int  # side of the tiles that it takes, in pixels
    mpp: float = 0.0  # micrometres per pixel that it was trained on; 0: any
    notes: list[str] = field(default_factory=list)  # lines for people; encoding may add one


def load_encoder(
    name_or_folder: str | Path,
    tile_px: int,
    search: Sequence[Path] = (),
    *,
    onnx: OnnxConfig | None = None,
    batch_tiles: int = BATCH_TILES,
) -> Encoder:
    """Load an encoder.

    Args:
        name_or_folder: the path of an encoder's folder or of an .onnx file; the name of such a folder in one of
            `search`; or a backbone of the kit, whose ImageNet weights lie in one of `search`.
        tile_px: side of the tiles to encode.
        search: folders.
        onnx: the input and output of a bare .onnx file.
        batch_tiles: most tiles of a batch.

    Raises:
        ConfigError: there is no such encoder, a file is missing or damaged, or it takes tiles of another size.
    """
    place = Path(name_or_folder)
    if place.suffix == ".onnx":
        return _of_file(place, tile_px, onnx, batch_tiles)
    folders = [folder for folder in (place, *(parent / place for parent in search)) if is_encoder(folder)]
    if folders:
        return _of_folder(folders[0], tile_px, batch_tiles)
    name = str(name_or_folder)
    if name not in BACKBONES or place.is_dir():
        where = ", ".join(map(str, search)) or "no other folder"
        raise ConfigError(
            f"encoder {name}: no folder with {ENCODER} here or in {where}, no .onnx file, and no backbone of the kit; "
            f"these are: {', '.join(BACKBONES)}"
        )
    return _of_keras(name, KerasConfig(name), _backbone_file(name, search), tile_px, 0.0, batch_tiles)


def _backbone_file(name: str, search: Sequence[Path]) -> Path:
    """Return the file of a backbone's ImageNet weights. Raises ConfigError if no folder has it."""
    file = BACKBONES[name].file
    having = (folder for folder in search if any(folder.glob(file)) or any(folder.glob(f"*/{file}")))
    return find_backbone(name, next(having, search[0] if search else None))


def _of_folder(folder: Path, tile_px: int, batch_tiles: int) -> Encoder:
    """Load the encoder of a folder. Raises ConfigError."""
    found = read_encoder(folder)
    if found.tile_px not in {0, tile_px}:
        raise ConfigError(
            f"{folder / ENCODER}: takes tiles of {found.tile_px} px; the recipe's tiling.tile_px is {tile_px}"
        )
    path = folder / found.file
    if found.keras is not None:
        return _of_keras(folder.name, found.keras, path, tile_px, found.mpp, batch_tiles)
    assert found.onnx is not None
    return _of_onnx(folder.name, path, found.onnx, tile_px, found.mpp, batch_tiles)


def _of_file(path: Path, tile_px: int, onnx: OnnxConfig | None, batch_tiles: int) -> Encoder:
    """Load a bare .onnx file. Raises ConfigError."""
    if onnx is None:
        raise ConfigError(f"{path}: a bare ONNX file needs a recipe with the table [onnx]: its input and output")
    check_features(onnx, "the recipe")
    return _of_onnx(path.stem, path, onnx, tile_px, 0.0, batch_tiles)


def _of_keras(name: str, keras: KerasConfig, weights: Path, tile_px: int, mpp: float, batch_tiles: int) -> Encoder:
    """Load a backbone of the kit. Raises ConfigError."""
    start_keras()
    config = ModelConfig(keras.name, last_layer=keras.last_layer, input_px=keras.input_px, freeze=True)
    predict = load_backbone_encoder(config, tile_px, weights, batch_tiles)
    decides = {**asdict(keras), "weights": arrays_sha256(weights)}
    return _encoder(name, predict, _digest("keras", decides), tile_px, mpp, predict.notes)


def _of_onnx(name: str, path: Path, onnx: OnnxConfig, tile_px: int, mpp: float, batch_tiles: int) -> Encoder:
    """Load an ONNX file. Raises ConfigError."""
    model = OnnxModel(path, onnx, tile_px, batch_tiles=batch_tiles)
    decides = {**asdict(onnx), "weights": model.sha256}
    return _encoder(name, model, _digest("onnx", decides), tile_px, mpp, model.notes)


def _encoder(name: str, encode: Encode, sha256: str, tile_px: int, mpp: float, notes: list[str]) -> Encoder:
    """Return an encoder whose width is measured on one tile. Raises ConfigError if it gives no features."""
    features = np.asarray(encode(noise(tile_px, 1)))
    if features.ndim != 2 or len(features) != 1 or not np.isfinite(features).all():
        raise ConfigError(
            f"encoder {name}: gave {features.dtype}{list(features.shape)} for 1 tile"
            f"{'' if np.isfinite(features).all() else ' with NaN or infinity'}; finite features [1, D] are needed"
        )
    return Encoder(name, features.shape[1], sha256, encode, tile_px, mpp, notes)


def _digest(kind: str, decides: dict[str, object]) -> str:
    """Return a hash of what decides the features."""
    return hashlib.sha256(json.dumps([kind, decides], sort_keys=True).encode()).hexdigest()
