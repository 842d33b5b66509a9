"""Find an encoder by its name, its folder or its ONNX file, load it, and encode tiles.

Batches have one shape and are padded, as those of members, except where a runtime gives the same rows in batches of any
size (see batching.Predictor): the features of a tile do not depend on the tiles beside it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clotkit.batching import Predictor, TileArray, noise
from clotkit.config import ModelConfig, OnnxConfig
from clotkit.errors import ConfigError
from clotkit.members.backbones import BACKBONES, arrays_sha256, find_backbone
from clotkit.members.encoders.folder import ENCODER, KerasConfig, check_features, is_encoder, read_encoder
from clotkit.members.loading import list_devices, load_backbone_encoder, start_keras
from clotkit.members.onnx.header import model_sha256
from clotkit.members.onnx.session import CPU, OnnxModel

# Tiles of a batch, unless the caller says otherwise. On a CPU larger batches are no faster; Keras pads the last one.
BATCH_TILES, GPU_BATCH_TILES = 8, 64

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
    on_gpu: bool = False
    pads: bool = True  # whether a partial batch takes as long as a whole one
    notes: list[str] = field(default_factory=list)  # lines for people; encoding may add one


@dataclass(frozen=True)
class FoundEncoder:
    """An encoder that is not loaded yet; it can be sent to another process."""

    name: str
    path: Path  # of the network, or of its weights
    settings: OnnxConfig | KerasConfig
    tile_px: int = 0  # side of the tiles that it takes, in pixels; 0: any
    mpp: float = 0.0  # micrometres per pixel that it was trained on; 0: any

    @cached_property
    def sha256(self) -> str:
        """The hash of all that decides the features. Raises ConfigError if the file cannot be read."""
        is_onnx = isinstance(self.settings, OnnxConfig)
        weights = model_sha256(self.path) if is_onnx else arrays_sha256(self.path)
        decides = ["onnx" if is_onnx else "keras", {**asdict(self.settings), "weights": weights}]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def absolute(self) -> "FoundEncoder":
        """Return the same encoder for processes with another working directory."""
        return replace(self, path=self.path.absolute())

    def load(self, tile_px: int, batch_tiles: int = BATCH_TILES) -> Encoder:
        """Load it, and encode one tile. Raises ConfigError if it cannot be loaded or gives no features."""
        if self.tile_px not in {0, tile_px}:
            raise ConfigError(
                f"encoder {self.name}: takes tiles of {self.tile_px} px; the recipe's tiling.tile_px is {tile_px}"
            )
        encode, on_gpu = self._loaded(tile_px, batch_tiles)
        features = np.asarray(encode(noise(tile_px, 1)))
        if features.ndim != 2 or len(features) != 1 or not np.isfinite(features).all():
            bad = "" if np.isfinite(features).all() else " with NaN or infinity"
            raise ConfigError(
                f"encoder {self.name}: gave {features.dtype}{list(features.shape)}{bad} for 1 tile; finite features "
                "[1, D] are needed"
            )
        width, pads, notes = features.shape[1], encode.pads, encode.notes
        return Encoder(self.name, width, self.sha256, encode, tile_px, self.mpp, on_gpu, pads, notes)

    def _loaded(self, tile_px: int, batch_tiles: int) -> tuple[OnnxModel | Predictor, bool]:
        """Return the function from tiles to features, and whether a GPU computes. Raises ConfigError."""
        if isinstance(self.settings, OnnxConfig):
            model = OnnxModel(self.path, self.settings, tile_px, batch_tiles=batch_tiles)
            return model, model.provider != CPU
        start_keras()
        keras = self.settings
        config = ModelConfig(keras.name, last_layer=keras.last_layer, input_px=keras.input_px, freeze=True)
        predict = load_backbone_encoder(config, tile_px, self.path, batch_tiles)
        return predict, list_devices()[0].startswith("gpu")


def load_encoder(
    name_or_folder: str | Path,
    tile_px: int,
    search: Sequence[Path] = (),
    *,
    onnx: OnnxConfig | None = None,
    batch_tiles: int = BATCH_TILES,
) -> Encoder:
    """Find and load an encoder for tiles of a side, in batches of `batch_tiles`; see find_encoder."""
    return find_encoder(name_or_folder, search, onnx).load(tile_px, batch_tiles)


def find_encoder(
    name_or_folder: str | Path, search: Sequence[Path] = (), onnx: OnnxConfig | None = None
) -> FoundEncoder:
    """Find an encoder.

    Args:
        name_or_folder: the path of an encoder's folder, of an .onnx file or of a backbone's ImageNet weights; the name
            of such a folder in one of `search`; or a backbone of the kit, whose weights lie in one of `search`.
        search: folders.
        onnx: the input and output of a bare .onnx file.

    Raises:
        ConfigError: there is no such encoder, or a file is missing or damaged.
    """
    place, name = Path(name_or_folder), str(name_or_folder)
    if place.suffix == ".onnx":
        return _bare_file(place, onnx)
    backbone = next((one for one, wanted in BACKBONES.items() if wanted.file == place.name), None)
    if backbone is not None and place.is_file():
        return FoundEncoder(backbone, find_backbone(backbone, place.parent), KerasConfig(backbone))
    folder = next((one for one in (place, *(parent / place for parent in search)) if is_encoder(one)), None)
    if folder is not None:
        found = read_encoder(folder)
        settings = found.keras or found.onnx
        assert settings is not None
        return FoundEncoder(folder.name, folder / found.file, settings, found.tile_px, found.mpp)
    if name in BACKBONES and not place.is_dir():
        return FoundEncoder(name, _backbone_file(name, search), KerasConfig(name))
    where = ", ".join(map(str, search)) or "no other folder"
    raise ConfigError(
        f"encoder {name}: no folder with {ENCODER} here or in {where}, no .onnx file, and no backbone of the kit; "
        f"these are: {', '.join(BACKBONES)}"
    )


def _backbone_file(name: str, search: Sequence[Path]) -> Path:
    """Return the file of a backbone's ImageNet weights. Raises ConfigError if no folder has it."""
    file = BACKBONES[name].file
    having = (folder for folder in search if any(folder.glob(file)) or any(folder.glob(f"*/{file}")))
    return find_backbone(name, next(having, search[0] if search else None))


def _bare_file(path: Path, onnx: OnnxConfig | None) -> FoundEncoder:
    """Return the encoder in an ONNX file without encoder.toml. Raises ConfigError."""
    if onnx is None:
        raise ConfigError(f"{path}: a bare ONNX file needs a recipe with the table [onnx]: its input and output")
    check_features(onnx, "the recipe")
    if not path.is_file():
        raise ConfigError(f"{path}: is missing; give the path of an ONNX file, or the name of an encoder")
    return FoundEncoder(path.stem, path, onnx)
