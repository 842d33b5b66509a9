"""Settings from TOML into frozen dataclasses: unknown keys refused, types checked, units in the names.

Standard library only: the kernel's supervisor reads a competition with it.
"""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clotkit.aliases import renamed_recipe
from clotkit.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class TilingConfig:
    """How a slide becomes tiles."""

    name: str  # the tiler, by its one word: patches, darkest, windows, chunks, strips
    tile_px: int  # side of a tile as the network sees it
    downsample: int  # full-resolution pixels per tile pixel, along a side (chunks and strips: as the slide has it)
    max_tiles: int  # the K best by tissue
    batch_tiles: int  # tiles sent at a time: bounds the memory of both ends
    min_tissue_share: float = 0.5  # least tissue share of a patch; relaxed where a slide has none
    overlap: float = 0.0  # of patches and darkest squares with the next, as a share of their side
    duplicates: str = "keep"  # or drop: of sections of the same clot only one is looked at
    normalise: str = "none"  # colours: or background, reinhard, macenko


@dataclass(frozen=True)
class DataConfig:
    """Where labelled pictures come from, and how they are split. For slides the competition says the rest."""

    source: str = "slides"  # a competition's split; or npz (MedMNIST), folders (one a class), table (a CSV of files)
    split: str = "folds"  # of patients; or centres (folds of centres), holdout (70/15/15 of patients), given
    classes: tuple[str, ...] = ()  # by class index; folders are named so; slides: the competition's
    positive_class: str = ""  # the class that sensitivity is of; the last one where it is not said
    table: str = "metadata.csv"  # of source table; of folders only where there is one
    file_column: str = "file"  # paths from the folder of the table
    label_column: str = "label"
    patient_column: str = "patient"  # a table without it: every file is a patient
    centre_column: str = "centre"
    near_duplicates: str = "group"  # or keep: near-identical pictures count as one patient
    duplicate_bits: int = 4  # of 64 by which the perceptual hashes of two near-identical pictures may differ


@dataclass(frozen=True)
class ModelConfig:
    """One network: a name that members.networks knows, and what may vary."""

    name: str
    filters: tuple[int, ...] = ()  # channels of each block of a cnn
    convolutions: int = 1  # in each block of a cnn
    standardise: bool = False  # the features of a frozen backbone, as the training's have it, before the head
    head: tuple[int, ...] = ()  # units of the dense layers between the features and the classes
    dropout: float = 0.0
    l2: float = 0.0  # on the squares of the classes' weights, where inference.pooling is logits
    input_px: int = 0  # tiles are resized to this side inside the network; 0: as they come
    weights: str = "none"  # to begin with; or imagenet
    last_layer: str = ""  # the backbone ends with this layer of it; empty: with its last
    freeze: bool = False  # the backbone keeps its weights
    unfreeze_top: int = 0  # but for this many of its layers, from the top
    share: float = 1.0  # in the mean of several networks
    copies: int = 1  # networks like this one, each from a seed of its own
    attention_units: int = 64  # of the gated attention, where inference.pooling asks for it

    @property
    def is_frozen(self) -> bool:
        """Whether the backbone stays as it is, all of it."""
        return self.freeze and not self.unfreeze_top


@dataclass(frozen=True)
class AugmentConfig:
    """What chance does to a tile before the network sees it, afresh in every epoch."""

    rotate_flip: bool = True  # one of the eight turns and mirrors
    mirror: bool = False  # left and right only
    rotate_deg: float = 0.0  # up to this angle, either way
    scale: float = 0.0  # up to this share larger or smaller
    shift: float = 0.0  # up to this share of the side, either way, down and across
    shear_deg: float = 0.0
    channel_gain: float = 0.1  # of each channel
    brightness: float = 0.0  # share of 255 added to all channels
    contrast: float = 0.0
    stain: float = 0.0  # of haematoxylin, eosin and the rest, each by itself
    blur: float = 0.0  # share of tiles that are smoothed
    cutout: float = 0.0  # largest side of a grey square, as a share of the tile's


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is trained."""

    seed: int
    epochs: int
    batch_tiles: int
    learning_rate: float
    folds: int = 5  # for the out-of-fold predictions that calibration is fitted on
    loss: str = "categorical"  # cross-entropy; or binary
    balance: str = "weights"  # of the classes; or patients (they too), oversample, synthetic (SMOTE), none
    class_weights: tuple[float, ...] = ()  # by class index; empty: as balance says
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "cosine"  # or constant, plateau
    plateau_patience: int = 3
    plateau_factor: float = 0.2
    min_learning_rate: float = 1e-6
    patience: int = 0  # epochs without a better loss before training stops; 0: never
    keep: str = "best"  # of the epochs that with the lowest watched loss; or last
    validation_share: float = (
        0.0  # share of the training patients set apart to choose the epoch by, where none are given
    )
    final: str = "all"  # what ships: a network trained on all patients; or folds, the networks of the folds
    frozen_augmentations: int = (
        8  # augmented copies of a tile whose features are computed once, under a frozen backbone
    )
    strategy: str = "auto"  # every GPU of this process; or mirrored (every device), multi_worker (processes, TF_CONFIG)
    feed: str = "memory"  # all tiles in it; or shards: read as they are needed, of what clotkit tile made


@dataclass(frozen=True)
class InferenceConfig:
    """How a trained network is asked."""

    pooling: str = "mean"  # of a slide's tiles: mean of their probabilities; of their logits; or attention
    tta: int = 1  # 1, 2 (mirrored) or 8 (turned and mirrored): the mean over them
    floor: float = 0.02  # no calibrated probability goes below: one wrong answer costs at most -ln 0.02 = 3.9


@dataclass(frozen=True)
class CardConfig:
    """What the model card says beyond the figures: a sentence or two each."""

    use: str = ""
    data: str = ""
    licence: str = ""
    limits: str = ""


@dataclass(frozen=True)
class Recipe:
    """One member's recipe; a copy of it travels with the weights. `model` has one entry, or several to be averaged."""

    name: str
    tiling: TilingConfig
    model: tuple[ModelConfig, ...]
    training: TrainingConfig
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    inference: InferenceConfig = InferenceConfig()
    card: CardConfig = CardConfig()


BOUNDS: dict[str, tuple[float, float]] = {  # of the keys of a recipe's tables; of lists: of every entry
    "tile_px": (16, 2048),
    "downsample": (1, 256),
    "max_tiles": (1, 100_000),
    "min_tissue_share": (0, 1),
    "overlap": (0, 0.9),
    "duplicate_bits": (0, 32),
    "filters": (1, 4096),
    "convolutions": (1, 8),
    "head": (1, 8192),
    "dropout": (0, 0.95),
    "l2": (0, 100),
    "input_px": (0, 2048),
    "unfreeze_top": (0, 10_000),
    "copies": (1, 100),
    "share": (0, 1e6),
    "attention_units": (1, 4096),
    "rotate_deg": (0, 180),
    "scale": (0, 0.9),
    "shift": (0, 0.9),
    "shear_deg": (0, 60),
    "channel_gain": (0, 0.9),
    "brightness": (0, 0.9),
    "contrast": (0, 0.9),
    "stain": (0, 0.9),
    "blur": (0, 1),
    "cutout": (0, 0.9),
    "epochs": (1, 10_000),
    "batch_tiles": (1, 4096),
    "learning_rate": (1e-7, 1),
    "folds": (2, 100),
    "class_weights": (0, 1e6),
    "label_smoothing": (0, 0.5),
    "weight_decay": (0, 1),
    "plateau_patience": (1, 1000),
    "plateau_factor": (0.01, 0.99),
    "min_learning_rate": (0, 1),
    "patience": (0, 10_000),
    "validation_share": (0, 0.5),
    "frozen_augmentations": (0, 1000),
    "floor": (0, 0.25),
}
WORDS: dict[str, tuple[str | int, ...]] = {
    "duplicates": ("keep", "drop"),
    "near_duplicates": ("group", "keep"),
    "normalise": ("none", "background", "reinhard", "macenko"),
    "source": ("slides", "npz", "folders", "table"),
    "split": ("folds", "centres", "holdout", "given"),
    "weights": ("none", "imagenet"),
    "loss": ("categorical", "binary"),
    "balance": ("weights", "patients", "oversample", "synthetic", "none"),
    "final": ("all", "folds"),
    "keep": ("best", "last"),
    "schedule": ("cosine", "constant", "plateau"),
    "strategy": ("auto", "mirrored", "multi_worker"),
    "feed": ("memory", "shards"),
    "pooling": ("mean", "logits", "attention"),
    "tta": (1, 2, 8),
}

RECIPES = Path(__file__).parent / "recipes"


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by name (one that ships with the kit) or by the path of a TOML.

    Raises ConfigError for an unknown name, an unreadable file, or an unknown, missing, mistyped or impossible value.
    """
    path = recipe_path(name_or_path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml"))) or "none here"
        raise ConfigError(f"recipe {name_or_path}: {error.strerror}; known: {known}, or give a .toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    recipe = typed(Recipe, renamed_recipe(raw, str(path)), str(path))
    _check_recipe(recipe, str(path))
    return recipe


def recipe_path(name_or_path: str | Path) -> Path:
    """The file of a recipe: the path itself, or that of one that ships with the kit."""
    return Path(name_or_path) if str(name_or_path).endswith(".toml") else RECIPES / f"{name_or_path}.toml"


def typed(cls: type[T], raw: dict[str, Any], where: str) -> T:
    """Make the dataclass `cls` of the mapping `raw`, table by table.

    `where` names the file and grows with the table's name in messages. Lists become tuples, ints pass as floats.
    A field with a default may be left out. Raises ConfigError for an unknown, missing or mistyped key.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(raw) - set(fields))
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(needed - set(raw))
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(fields))}")
    if missing:
        raise ConfigError(f"{where}: missing key {', '.join(missing)}")
    return cls(**{name: _convert(hints[name], raw[name], f"{where}: {name}") for name in fields if name in raw})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return typed(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple and isinstance(value, list | dict):
        item = typing.get_args(hint)[0]
        if isinstance(value, dict):  # [model] says the same as a single [[model]]
            return (_convert(item, value, where),)
        return tuple(_convert(item, entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    accepted = hint if isinstance(hint, type | types.UnionType) else object
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")
    return value


def _check_recipe(recipe: Recipe, where: str) -> None:
    for table in ("tiling", "training", "data", "augment", "inference"):
        _check_table(getattr(recipe, table), table, where)
    if not recipe.model:
        raise ConfigError(f"{where}: model is empty; a recipe needs at least 1")
    for index, model in enumerate(recipe.model):
        _check_table(model, "model" if len(recipe.model) == 1 else f"model[{index}]", where)
    if sum(model.share for model in recipe.model) <= 0:
        raise ConfigError(f"{where}: the shares of the models sum to 0; their sum must be positive")
    if recipe.data.positive_class and recipe.data.classes and recipe.data.positive_class not in recipe.data.classes:
        raise ConfigError(
            f"{where}: data.positive_class is {recipe.data.positive_class!r}; allowed: {', '.join(recipe.data.classes)}"
        )
    frozen = all(model.is_frozen for model in recipe.model) and recipe.training.frozen_augmentations
    pool = recipe.inference.pooling
    if pool != "mean" and not (frozen and len(recipe.model) == recipe.model[0].copies == 1):
        raise ConfigError(
            f"{where}: inference.pooling is {pool!r}; it takes one network, frozen, with frozen_augmentations"
        )
    if pool != "mean" and recipe.training.final == "folds":
        raise ConfigError(f"{where}: training.final is 'folds', inference.pooling {pool!r}; it takes final = \"all\"")
    if any(model.standardise for model in recipe.model) and not frozen:
        raise ConfigError(f"{where}: model.standardise is true; it takes a frozen network, with frozen_augmentations")
    if any(model.l2 for model in recipe.model) and pool != "logits":
        raise ConfigError(f'{where}: model.l2 is set, inference.pooling {pool!r}; it takes pooling = "logits"')
    if recipe.training.balance == "synthetic" and frozen:
        raise ConfigError(f"{where}: training.balance is 'synthetic' over a frozen network; oversample instead")
    if recipe.training.feed == "shards" and recipe.training.balance == "synthetic":
        raise ConfigError(f"{where}: training.balance is 'synthetic', which takes feed = \"memory\"")
    if recipe.training.feed == "shards" and recipe.data.source != "slides":
        raise ConfigError(
            f"{where}: training.feed is 'shards', data.source {recipe.data.source!r}; only slides have shards: "
            'it takes feed = "memory"'
        )


def _check_table(table: Any, name: str, where: str) -> None:
    """Raise ConfigError for a number outside its bounds, or a word that is not one of those known."""
    for key, (low, high) in BOUNDS.items():
        value = getattr(table, key, low)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, str) and not low <= number <= high:
                raise ConfigError(f"{where}: {name}.{key} is {number}; allowed: {low} to {high}")
    for key, known in WORDS.items():
        word = getattr(table, key, known[0])
        if isinstance(word, str | int) and word not in known:
            raise ConfigError(f"{where}: {name}.{key} is {word!r}; allowed: {', '.join(map(str, known))}")
