"""Read the folder of an encoder: encoder.toml beside its network. No Keras here.

    tile_px = 224           # side of the tiles that it takes; left out if any will do
    mpp = 0.5               # micrometres per pixel that it was trained on; left out if any will do
    title = "…"
    licence = "…"

    [onnx]                  # model.onnx; the keys are those of a recipe's table
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]
    output = "features"

or, in the place of [onnx], a backbone of the kit with weights of its own:

    [keras]
    name = "efficientnet_lite0"
"""

from dataclasses import dataclass
from pathlib import Path

from clotkit.config import BOUNDS, OnnxConfig, check_onnx_table, load_recipe
from clotkit.errors import ConfigError
from clotkit.members.backbones import BACKBONES, find_backbone
from clotkit.members.folder import RECIPE, WEIGHTS, checked_hashes, find_members
from clotkit.typed_toml import read_toml, typed

ENCODER, MODEL = "encoder.toml", "model.onnx"
FEATURES = "features"  # onnx.output of an encoder


@dataclass(frozen=True)
class KerasConfig:
    """The table [keras] of an encoder: a backbone of the kit."""

    name: str  # of the backbone, in the model registry
    weights: str = WEIGHTS  # name of the file of its weights, in the encoder's folder
    last_layer: str = ""  # name of the layer that its features come from; empty: the last one
    input_px: int = 0  # side that tiles are resized to, in pixels; 0: no resizing


@dataclass(frozen=True)
class EncoderFile:
    """The content of encoder.toml."""

    tile_px: int = 0  # side of the tiles that it takes, in pixels; 0: any
    mpp: float = 0.0  # micrometres per pixel of these tiles; 0: any
    title: str = ""  # what it is, for people
    licence: str = ""  # of the weights
    onnx: OnnxConfig | None = None  # input and output of model.onnx
    keras: KerasConfig | None = None

    @property
    def file(self) -> str:
        """The name of the file of the network or its weights."""
        return MODEL if self.keras is None else self.keras.weights


def is_encoder(folder: Path) -> bool:
    """Tell whether a folder is that of an encoder."""
    return (folder / ENCODER).is_file()


def encoder_beside(member: Path) -> Path | None:
    """Return the folder of a member's encoder, or the file of a backbone's weights; None without one.

    Raises ConfigError if it is not there or damaged, or as read_encoder does.
    """
    config = load_recipe(member / RECIPE).encoder
    if config is None:
        return None
    place = encoder_place(member, config.name)
    if place.is_file():
        find_backbone(config.name, place.parent)
    else:
        read_encoder(place)
    return place


def encoder_place(member: Path, name: str) -> Path:
    """Return the path of a member's encoder as encoder_beside does, without a look into its files.

    For a member that is a link it lies beside the link. Raises ConfigError if it is not there.
    """
    beside = (member.resolve() if member.name == ".." else member.absolute()).parent
    if is_encoder(beside / name):
        return beside / name
    if name not in BACKBONES:
        raise ConfigError(f"{member}: its encoder {name} is missing; put the encoder's folder beside it")
    file = BACKBONES[name].file
    if not (beside / file).is_file():
        raise ConfigError(
            f"{member}: its encoder {name} is missing; put {file} beside it, or a folder {name} with {ENCODER} and its "
            "table [keras]"
        )
    return beside / file


def check_encoders(weights_dir: Path) -> None:
    """Check the encoder of every member of a folder. Raises ConfigError."""
    for member in find_members(weights_dir):
        encoder_beside(member)


def read_encoder(folder: Path) -> EncoderFile:
    """Read the encoder.toml of a folder.

    Raises ConfigError as encoder_file does, or if a hash differs from the one that MANIFEST.json beside the folder
    lists.
    """
    found = encoder_file(folder)
    checked_hashes(folder, (path.name for path in sorted(folder.iterdir())))
    return found


def encoder_file(folder: Path) -> EncoderFile:
    """Return the content of the encoder.toml of a folder, whatever MANIFEST.json lists.

    Raises ConfigError if it is missing or malformed, or if its network is missing.
    """
    path, raw = read_toml(folder / ENCODER, folder, "encoder")
    found = typed(EncoderFile, raw, str(path))
    low, high = BOUNDS["tile_px"]
    if found.tile_px and not low <= found.tile_px <= high:
        raise ConfigError(f"{path}: tile_px is {found.tile_px}; allowed: {low} to {high}, or 0 for any")
    if not 0 <= found.mpp <= BOUNDS["mpp"][1]:
        raise ConfigError(f"{path}: mpp is {found.mpp}; allowed: 0 to {BOUNDS['mpp'][1]}")
    if (found.onnx is None) == (found.keras is None):
        raise ConfigError(f"{path}: has {'both' if found.onnx else 'neither'} of [onnx] and [keras]; give one of them")
    if found.onnx is not None:
        check_features(found.onnx, str(path))
    if found.keras is not None and found.keras.name not in BACKBONES:
        raise ConfigError(f"{path}: keras.name is {found.keras.name!r}; known: {', '.join(BACKBONES)}")
    if Path(found.file).name != found.file:
        raise ConfigError(f"{path}: its network is {found.file!r}; a file beside {ENCODER} is needed")
    if not (folder / found.file).is_file():
        raise ConfigError(f"{folder}: {found.file} is missing; put the network there, beside {ENCODER}")
    return found


def check_features(onnx: OnnxConfig, where: str) -> None:
    """Raise ConfigError for a table `onnx` that is wrong, or is not that of an encoder."""
    check_onnx_table(onnx, where)
    if onnx.output != FEATURES:
        raise ConfigError(f'{where}: onnx.output is {onnx.output!r}; an encoder has output = "features"')
