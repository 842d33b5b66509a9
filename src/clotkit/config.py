"""Read and check recipes: how a member is made, from tiling to prediction.

Names end with their unit. The comment beside each field is its text in the reference. Standard library only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from clotkit.aliases import renamed_recipe
from clotkit.errors import ConfigError
from clotkit.typed_toml import read_toml, toml_path, typed
from clotkit.units import MIN_MPP

Limit = TypeVar("Limit")


@dataclass(frozen=True)
class TilingConfig:
    """The settings that cut a slide or a picture into tiles."""

    # Tiler. Slides: `patches` (squares of a grid, the most tissue first), `darkest` (squares of a grid, the darkest
    # first), `windows` (the best overlapping squares), `chunks` (squares of the short side along the long one) or
    # `strips` (slices across the long side, squeezed to squares). Pictures:
    # `whole`, `parts` or `edges`.
    name: str
    tile_px: int  # side of a tile as the network sees it, in pixels
    # Full-resolution pixels per tile pixel, along a side. `chunks` and `strips` set it from the slide's size; left out
    # with `mpp`, which sets it from the slide's resolution.
    downsample: int
    max_tiles: int  # most tiles of one slide: the best by the tiler's order
    batch_tiles: int  # tiles sent to the network at a time; bounds the memory of both processes
    min_tissue_share: float = 0.5  # least share of tissue in a patch, 0 to 1; lowered where a slide has no such patch
    overlap: float = 0.0  # overlap of neighbouring squares of `patches` and `darkest`, as a share of their side
    duplicates: str = "keep"  # repeated sections of one clot: `keep` all, or `drop` all but one
    # Colour normalisation: `none`, `background` (white balance by the slide's background), `reinhard` or `macenko`.
    normalise: str = "none"
    # Smaller levels of a pyramid that tiles may come from: `auto` (those that differ from level 0 by a codec's noise),
    # `close` (by less than 3 grey levels, noise included) or `full` (none: level 0 alone).
    levels: str = "auto"
    # Micrometres per tile pixel, in the place of `downsample`; 0: not set. A slide whose own resolution does not divide
    # it, to 5 %, is read finer and resized. At least 0.05. A slide whose own is less than 1/256 of it or more than 16
    # times as much is not scored.
    mpp: float = 0.0
    # Micrometres per pixel of slides that do not state theirs; 0: they are refused. At least 0.05.
    mpp_default: float = 0.0
    # Downsamples of some slides, as "column = value: downsample" with a column of the slides' table or a fact of the
    # competition: the first entry whose value is the slide's, whatever its capitals, replaces `downsample`.
    downsample_if: tuple[str, ...] = ()


class DownsampleRule(NamedTuple):
    """An entry of tiling.downsample_if."""

    column: str  # name of a column or fact
    value: str  # its cell, in small letters
    downsample: int  # of the slides with this cell


@dataclass(frozen=True)
class DataConfig:
    """The source of the labelled pictures, and how they are split.

    For slides, the competition's TOML has the columns and classes.
    """

    # `slides` (a competition's split), `npz` (a MedMNIST file), `folders` (one folder per class) or `table` (a CSV with
    # the paths of the pictures).
    source: str = "slides"
    # `folds` (cross-validation by patient), `centres` (by centre), `holdout` (70/15/15 % of the patients) or `given`
    # (the parts that the source names).
    split: str = "folds"
    # Class names by index; class folders have these names. Slides have the competition's. Empty with `folders`: the
    # names of the sub-folders, sorted.
    classes: tuple[str, ...] = ()
    positive_class: str = ""  # class whose sensitivity is reported; empty: the last class
    table: str = "metadata.csv"  # file name of the table; required for `table`, optional for `folders`
    file_column: str = "file"  # column of picture paths, relative to the table's folder
    label_column: str = "label"  # column of class names
    patient_column: str = "patient"  # column of patient ids; without it every file is a patient of its own
    centre_column: str = "centre"  # column of centre ids; may be missing
    # Near-identical pictures: `group` them into one patient, or `keep` them apart. `drop` groups them too, and with the
    # split `given` it leaves out those of the training and validation parts that are near-identical to a test picture.
    near_duplicates: str = "group"
    duplicate_bits: int = 4  # most differing bits, of 64, between the perceptual hashes of near-identical pictures


@dataclass(frozen=True)
class ModelConfig:
    """The settings of one network."""

    # Architecture, by its name in the model registry: `cnn`, `cnn_flat`, `resnet` or a backbone; `onnx`: the file
    # model.onnx of a member from another framework, which the table `onnx` describes; with the table `encoder` a head
    # over its features: `abmil` (gated attention), `clam` (the same, trained with an instance loss too), `transformer`
    # (two layers and a class token) or `mean_pool` (a linear model of a slide's mean features).
    name: str
    filters: tuple[int, ...] = ()  # channels of each block of a `cnn`, of each stage of a `resnet`
    # Convolutions in each block of a `cnn`; residual blocks, of two convolutions each, in each stage of a `resnet`.
    convolutions: int = 1
    standardise: bool = False  # whether the head sees a frozen backbone's features scaled to mean 0 and deviation 1
    # Whether the head shrinks the features of tiles unlike those it was trained on, by the fourth power of their
    # Mahalanobis distance, and its logits have no bias: unknown tissue then gets no confident answer. It takes
    # `standardise` and `inference.pooling` `logits`.
    shrink_novel: bool = False
    head: tuple[int, ...] = ()  # units of the dense layers between features and classes
    dropout: float = 0.0  # dropout rate after each layer of `head`; without one, before the last layer
    l2: float = 0.0  # L2 penalty on the classes' weights; takes `inference.pooling` `logits`
    input_px: int = 0  # side that tiles are resized to inside the network, in pixels; 0: no resizing
    weights: str = "none"  # initial weights of the backbone: `none` (random) or `imagenet`
    last_layer: str = ""  # name of the backbone's layer that its features come from; empty: the last one
    freeze: bool = False  # whether the backbone keeps its initial weights
    unfreeze_top: int = 0  # number of a frozen backbone's layers, from the top, that are trained after all
    # Whether the kernels of a frozen backbone are rounded to half precision, which halves the file of the weights.
    half_weights: bool = False
    share: float = 1.0  # weight of this network in the mean of several
    copies: int = 1  # number of such networks, each trained with a seed of its own
    attention_units: int = 64  # units of the gated attention, with `inference.pooling` `attention`
    # What the network computes, before its probabilities: `softmax` (a logit a class), `ordinal` (cumulative logits of
    # classes in order: one score, and ordered thresholds) or `value` (one value from the first class to the last; the
    # probability goes to the two classes beside it).
    output: str = "softmax"

    @property
    def is_frozen(self) -> bool:
        """Tell whether no layer of the backbone is trained."""
        return self.freeze and not self.unfreeze_top


@dataclass(frozen=True)
class OnnxConfig:
    """The input and output of a model.onnx, made by any framework.

    Such a recipe needs no table `training`.
    """

    layout: str = "nchw"  # order of the input's axes: `nchw` (PyTorch's) or `nhwc` (Keras's)
    input_px: int = 0  # side that tiles are resized to before the network, in pixels; 0: the tile's
    mean: tuple[float, ...] = (0.0,)  # subtracted from each channel after `scale`: one number, or one a channel
    std: tuple[float, ...] = (1.0,)  # that each channel is divided by after that: one number, or one a channel
    scale: float = 255.0  # that pixels 0 to 255 are divided by first
    channels: str = "rgb"  # order of the colour channels; `mean` and `std` are in the same order
    dtype: str = "float32"  # of the input: `float32`, `float16`, or `uint8` (pixels as they are, without `scale`)
    # What the network returns for a tile: `probabilities` or `logits` (one a class; of two classes also the second's
    # alone), or `features` (of an encoder).
    output: str = "probabilities"
    output_name: str = ""  # name of that output; empty: the only one


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder whose features the head of a member takes.

    `model.name` is then one of the heads.
    """

    name: str  # folder of the encoder beside the member's, or a backbone of the kit
    sha256: str = ""  # of the encoder that the features come from; empty: any of this name


@dataclass(frozen=True)
class MilConfig:
    """The bags of tiles that a head over features is trained with (multiple instance learning)."""

    bags: str = "slide"  # a training bag has the tiles of a `slide`, or of all slides of a `patient`
    bag_tiles: int = 256  # most tiles of a training bag, drawn anew in every epoch
    drop_tiles: float = 0.0  # share of a training bag's tiles that are left out, drawn anew in every epoch
    # Weight of the instance loss of `clam` beside the loss of the bag. In the paper it is 0.3, and the bag's 0.7.
    instance_weight: float = 0.43
    instance_tiles: int = 8  # tiles with most and with least attention that the instance loss takes of a bag
    fit: str = "logistic"  # how `mean_pool` is fitted: `logistic` (cross-entropy) or `ridge` (squared error)


@dataclass(frozen=True)
class AugmentConfig:
    """The random augmentation of training tiles, redrawn every epoch. Zero and false turn a key off."""

    rotate_flip: bool = True  # one of the eight quarter turns and mirror images
    mirror: bool = False  # left-right mirror image, for half of the tiles
    rotate_deg: float = 0.0  # largest rotation either way, in degrees
    scale: float = 0.0  # largest change of size either way, as a share
    shift: float = 0.0  # largest move down and across, either way, as a share of the side
    shear_deg: float = 0.0  # largest shear either way, in degrees
    channel_gain: float = 0.1  # largest change of each colour channel, as a share
    brightness: float = 0.0  # largest value added to all channels, as a share of 255
    contrast: float = 0.0  # largest change of contrast, as a share
    stain: float = 0.0  # largest change of haematoxylin, eosin and the residual, each by itself, as a share
    blur: float = 0.0  # share of tiles that are smoothed
    cutout: float = 0.0  # largest side of a grey square drawn over the tile, as a share of the tile's side
    # Mixup of pairs of tiles of a batch, and of their labels: the alpha of Beta(alpha, alpha), which draws the share of
    # each. Under a frozen backbone it mixes features. It takes `inference.pooling` `mean`.
    mixup: float = 0.0
    # CutMix: a rectangle of another tile of the batch is pasted in, and its label counts by area; the alpha of
    # Beta(alpha, alpha), which draws the area. With `mixup` too, each batch gets one of them, with equal chance. It
    # takes a network that sees tiles, not the features of a frozen one.
    cutmix: float = 0.0
    mix_share: float = 1.0  # share of batches that `mixup` or `cutmix` mixes


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of the optimisation."""

    seed: int  # of folds, weights, sampling and augmentation
    epochs: int  # most epochs
    batch_tiles: int  # tiles of one optimisation step
    learning_rate: float  # the initial one
    folds: int = 5  # number of folds; calibration is fitted on their out-of-fold predictions
    # `categorical` or `binary` cross-entropy of the probabilities; `ordinal`: the binary cross-entropies of each class
    # or a higher one, summed; `squared`: the squared error of the expected class index; `auto`: by each `model.output`,
    # `categorical` for `softmax`, `ordinal` for `ordinal`, `squared` for `value`, which takes no other.
    loss: str = "auto"
    # How class imbalance is corrected: `weights` (each class weighs the same), `patients` (each patient of a class
    # too), `oversample` (tiles of rare classes repeat), `synthetic` (SMOTE) or `none`.
    balance: str = "weights"
    class_weights: tuple[float, ...] = ()  # weight of each class in the loss, by index; empty: as `balance` says
    label_smoothing: float = 0.0  # share of each label spread over all classes
    # `adamw`, `adam` (the same without weight decay), `sgd` (with momentum) or `rmsprop`.
    optimizer: str = "adamw"
    momentum: float = 0.9  # of `sgd` and `rmsprop`
    # Decoupled weight decay of `adamw`, `sgd` and `rmsprop`: each step takes this share, times the learning rate, off
    # every weight.
    weight_decay: float = 0.0
    schedule: str = "cosine"  # of the learning rate: `cosine`, `constant` or `plateau`
    warmup_epochs: int = 0  # epochs in which the learning rate rises from 0, before `cosine`; part of `epochs`
    # Decay of the exponential moving average of the trained weights, as 0.998; 0: none. The average is what is
    # validated, kept and shipped; training continues from the weights themselves.
    ema: float = 0.0
    # Epochs without a better validation loss (training loss without validation) before `plateau` lowers the learning
    # rate.
    plateau_patience: int = 3
    plateau_factor: float = 0.2  # factor by which `plateau` lowers the learning rate
    min_learning_rate: float = 1e-6  # lower bound of the learning rate of `plateau`
    # Epochs without a better validation loss (training loss without validation) before training stops; 0: never.
    patience: int = 0
    # Epoch whose weights are kept: `best` (lowest validation loss; the last epoch if there is no validation part) or
    # `last`.
    keep: str = "best"
    # Share of the training patients set aside for validation, in splits that have no validation part.
    validation_share: float = 0.0
    final: str = "all"  # networks that ship: `all` (one trained on all patients) or `folds` (one per fold)
    # Number of augmented copies of each tile whose features are computed once under a frozen backbone; 0: the backbone
    # runs in every step.
    frozen_augmentations: int = 8
    # `auto` (every GPU of this process), `mirrored` (every device) or `multi_worker` (several processes, set up by
    # TF_CONFIG).
    strategy: str = "auto"
    feed: str = "memory"  # tiles are held in `memory`, or read as needed from the `shards` of clotkit tile


@dataclass(frozen=True)
class InferenceConfig:
    """The settings of prediction."""

    pooling: str = "mean"  # over a slide's tiles: `mean` of probabilities, mean of `logits`, or `attention`
    tta: int = 1  # test-time augmentation, averaged: 1 (none), 2 (mirrored) or 8 (quarter turns and mirror images)
    floor: float = 0.02  # lower bound of a calibrated probability; a wrong answer costs at most -ln 0.02 = 3.9


@dataclass(frozen=True)
class CardConfig:
    """Texts of the model card, a sentence or two each."""

    use: str = ""  # what the member is for
    data: str = ""  # what it was trained on
    licence: str = ""  # licence of the data and the weights
    limits: str = ""  # where it should not be trusted


@dataclass(frozen=True)
class Recipe:
    """One member's recipe. A copy of it travels with the weights."""

    name: str  # name of the recipe
    tiling: TilingConfig  # how slides or pictures are cut
    model: tuple[ModelConfig, ...]  # one network, or several that are averaged
    training: TrainingConfig  # how they are trained
    data: DataConfig = DataConfig()  # what they are trained on
    augment: AugmentConfig = AugmentConfig()  # how training tiles are varied
    inference: InferenceConfig = InferenceConfig()  # how they predict
    card: CardConfig = CardConfig()  # what the model card says
    onnx: OnnxConfig | None = None  # what model.onnx takes and returns, of a member from another framework
    encoder: EncoderConfig | None = None  # whose features the head takes; None: the networks take tiles
    mil: MilConfig = MilConfig()  # how a head over features sees the tiles of a slide

    @property
    def is_onnx(self) -> bool:
        """Tell whether the member's network is an ONNX file."""
        return self.model[0].name == ONNX

    @property
    def output(self) -> str:
        """The output of the network whose rows are pooled; several networks have probabilities to pool."""
        return self.model[0].output


ONNX = "onnx"  # model.name of a network in an ONNX file
HEADS = ("abmil", "clam", "transformer", "mean_pool")  # model.name of a head over the features of an encoder
OWN_DOWNSAMPLE = ("chunks", "strips")  # tilers that set the downsample from the slide's size
# {key of a recipe's table, or table.key: its least and greatest value}; a list's bounds hold for each entry.
BOUNDS: dict[str, tuple[float, float]] = {
    "tile_px": (16, 2048),
    "downsample": (1, 256),
    "mpp": (0, 100),
    "mpp_default": (0, 20),
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
    "mixup": (0, 10),
    "cutmix": (0, 10),
    "mix_share": (0, 1),
    "epochs": (1, 10_000),
    "batch_tiles": (1, 4096),
    "learning_rate": (1e-7, 1),
    "folds": (2, 100),
    "class_weights": (0, 1e6),
    "label_smoothing": (0, 0.5),
    "weight_decay": (0, 1),
    "momentum": (0, 0.999),
    "warmup_epochs": (0, 10_000),
    "ema": (0, 0.99999),
    "plateau_patience": (1, 1000),
    "plateau_factor": (0.01, 0.99),
    "min_learning_rate": (0, 1),
    "patience": (0, 10_000),
    "validation_share": (0, 0.5),
    "frozen_augmentations": (0, 1000),
    "floor": (0, 0.25),
    "bag_tiles": (1, 100_000),
    "drop_tiles": (0, 0.95),
    "instance_weight": (0, 100),
    "instance_tiles": (1, 1000),
    "onnx.scale": (1e-3, 65535),
    "onnx.mean": (-1000, 1000),
    "onnx.std": (1e-6, 1000),
}
FITTING_LOSSES = {"softmax": "categorical", "ordinal": "ordinal", "value": "squared"}
# {key of a recipe's table, or table.key: the values that it allows}
WORDS: dict[str, tuple[str | int, ...]] = {
    "duplicates": ("keep", "drop"),
    "levels": ("auto", "close", "full"),
    "near_duplicates": ("group", "drop", "keep"),
    "normalise": ("none", "background", "reinhard", "macenko"),
    "source": ("slides", "npz", "folders", "table"),
    "split": ("folds", "centres", "holdout", "given"),
    "weights": ("none", "imagenet"),
    "loss": ("auto", "categorical", "binary", "ordinal", "squared"),
    "output": ("softmax", "ordinal", "value"),
    "balance": ("weights", "patients", "oversample", "synthetic", "none"),
    "optimizer": ("adamw", "adam", "sgd", "rmsprop"),
    "final": ("all", "folds"),
    "keep": ("best", "last"),
    "schedule": ("cosine", "constant", "plateau"),
    "strategy": ("auto", "mirrored", "multi_worker"),
    "feed": ("memory", "shards"),
    "pooling": ("mean", "logits", "attention"),
    "tta": (1, 2, 8),
    "bags": ("slide", "patient"),
    "fit": ("logistic", "ridge"),
    "onnx.layout": ("nchw", "nhwc"),
    "onnx.channels": ("rgb", "bgr"),
    "onnx.dtype": ("float32", "uint8", "float16"),
    "onnx.output": ("probabilities", "logits", "features"),
}

RECIPES = Path(__file__).parent / "recipes"
RULE = re.compile(r"\s*([^=]+?)\s*=\s*(.+?)\s*:\s*(\d+)\s*")  # column = value: downsample


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe by name (one that ships with the kit) or by the path of its TOML file.

    Raises ConfigError for an unknown name, an unreadable file, or a key that is unknown, missing, of a wrong type or
    out of bounds.
    """
    tables, where = read_recipe(name_or_path)
    return recipe_of(tables, where)


def read_recipe(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    """Return the tables of a recipe's file, with today's names, and its path. Raises ConfigError."""
    path, raw = read_toml(name_or_path, RECIPES, "recipe")
    return renamed_recipe(raw, str(path)), str(path)


def recipe_of(tables: dict[str, Any], where: str) -> Recipe:
    """Return the recipe of these tables. Raises ConfigError as load_recipe does; it begins with `where`."""
    recipe = typed(Recipe, _with_training(_with_downsample(tables, where)), where)
    _check_recipe(recipe, where)
    return recipe


def _with_downsample(tables: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the tables with a downsample beside `mpp`. Raises ConfigError if the recipe gives both."""
    tiling = tables.get("tiling")
    if not isinstance(tiling, dict) or not tiling.get("mpp"):
        return tables
    if "downsample" in tiling:
        raise ConfigError(
            f"{where}: tiling.downsample is {tiling['downsample']}, tiling.mpp {tiling['mpp']}; give one of the two"
        )
    return {**tables, "tiling": {**tiling, "downsample": 1}}


def _with_training(tables: dict[str, Any]) -> dict[str, Any]:
    """Return the tables with `training`, which a recipe of an ONNX file may lack: it is trained elsewhere."""
    model = tables.get("model")
    (first, *_) = model if isinstance(model, list) and model else [model]
    if "training" in tables or not isinstance(first, dict) or first.get("name") != ONNX:
        return tables
    return {**tables, "training": {"seed": 0, "epochs": 1, "batch_tiles": 1, "learning_rate": 0.001}}


def recipe_path(name_or_path: str | Path) -> Path:
    """Return the file of a recipe: the path itself, or that of one that ships with the kit."""
    return toml_path(name_or_path, RECIPES)


def downsample_rules(tiling: TilingConfig) -> list[DownsampleRule]:
    """Return the entries of downsample_if. Raises ConfigError for one that is malformed or out of bounds."""
    rules, (low, high) = [], BOUNDS["downsample"]
    for entry in tiling.downsample_if:
        parts = RULE.fullmatch(entry)
        if parts is None or not low <= int(parts[3]) <= high:
            raise ConfigError(
                f'tiling.downsample_if has {entry!r}; give "column = value: downsample", the last from {low} to {high}'
            )
        rules.append(DownsampleRule(parts[1], parts[2].lower(), int(parts[3])))
    return rules


def loss_of(training: TrainingConfig, output: str) -> str:
    """Return the loss of a network with this output: the recipe's, or the one that fits the output."""
    return FITTING_LOSSES[output] if training.loss == "auto" else training.loss


def tiling_for(tiling: TilingConfig, facts: Mapping[str, str]) -> TilingConfig:
    """Return the tiling of one slide: with the downsample by its facts, and without downsample_if.

    A slide without the column keeps the recipe's downsample.
    """
    if not tiling.downsample_if:
        return tiling
    fitting = (rule for rule in downsample_rules(tiling) if facts.get(rule.column, "").strip().lower() == rule.value)
    found = next(fitting, None)
    return replace(tiling, downsample=found.downsample if found else tiling.downsample, downsample_if=())


def rule_facts(tiling: TilingConfig, facts: Mapping[str, str]) -> dict[str, str]:
    """Return those of a slide's facts that its tiling depends on."""
    columns = dict.fromkeys(rule.column for rule in downsample_rules(tiling))
    return {column: facts[column] for column in columns if column in facts}


def missing_facts(tiling: TilingConfig, facts: Mapping[str, str]) -> list[str]:
    """Return the columns that downsample_if names and a slide's facts lack."""
    return [rule.column for rule in downsample_rules(tiling) if rule.column not in facts]


def check_facts(recipe: Recipe, slides: Mapping[str, Mapping[str, str]]) -> None:
    """Raise ConfigError if a slide lacks a column that downsample_if names; `slides` maps ids to facts."""
    for image_id, facts in slides.items():
        if missing := missing_facts(recipe.tiling, facts):
            raise ConfigError(
                f"recipe {recipe.name}: tiling.downsample_if names the column {missing[0]!r}, which slide {image_id} "
                f"lacks; it has: {', '.join(facts) or 'none'}"
            )


def _check_recipe(recipe: Recipe, where: str) -> None:
    for table in ("tiling", "training", "data", "augment", "inference", "mil"):
        _check_table(getattr(recipe, table), table, where)
    if not recipe.model:
        raise ConfigError(f"{where}: model is empty; a recipe needs at least 1")
    _check_downsample_rules(recipe, where)
    _check_onnx(recipe, where)
    _check_encoder(recipe, where)
    _check_loss(recipe, where)
    _check_optimizer(recipe.training, where)
    for index, model in enumerate(recipe.model):
        _check_table(model, "model" if len(recipe.model) == 1 else f"model[{index}]", where)
    if sum(model.share for model in recipe.model) <= 0:
        raise ConfigError(f"{where}: the shares of the models sum to 0; their sum must be positive")
    if recipe.data.positive_class and recipe.data.classes and recipe.data.positive_class not in recipe.data.classes:
        raise ConfigError(
            f"{where}: data.positive_class is {recipe.data.positive_class!r}; allowed: {', '.join(recipe.data.classes)}"
        )
    frozen = all(model.is_frozen for model in recipe.model) and recipe.training.frozen_augmentations
    _check_head(recipe, bool(frozen), where)
    _check_mixing(recipe, where)
    if recipe.training.balance == "synthetic" and frozen:
        raise ConfigError(f"{where}: training.balance is 'synthetic' over a frozen network; oversample instead")
    if recipe.training.feed == "shards" and recipe.training.balance == "synthetic":
        raise ConfigError(f"{where}: training.balance is 'synthetic', which takes feed = \"memory\"")
    if recipe.training.feed == "shards" and recipe.data.source != "slides":
        raise ConfigError(
            f"{where}: training.feed is 'shards', data.source {recipe.data.source!r}; only slides have shards: "
            'it takes feed = "memory"'
        )


def _check_head(recipe: Recipe, frozen: bool, where: str) -> None:
    """Raise ConfigError for a pooling or a head that the recipe's networks do not take."""
    pool = recipe.inference.pooling
    if recipe.is_onnx or recipe.encoder is not None:
        return  # _check_onnx or _check_encoder has
    if pool != "mean" and not (frozen and len(recipe.model) == recipe.model[0].copies == 1):
        raise ConfigError(
            f"{where}: inference.pooling is {pool!r}; it takes one network, frozen, with frozen_augmentations"
        )
    if pool != "mean" and recipe.training.final == "folds":
        raise ConfigError(f"{where}: training.final is 'folds', inference.pooling {pool!r}; it takes final = \"all\"")
    if any(model.standardise for model in recipe.model) and not frozen:
        raise ConfigError(f"{where}: model.standardise is true; it takes a frozen network, with frozen_augmentations")
    if any(
        model.shrink_novel and not (model.standardise and pool == "logits" and model.output == "softmax")
        for model in recipe.model
    ):
        raise ConfigError(
            f"{where}: model.shrink_novel is true, inference.pooling {pool!r}; it takes standardise = true, "
            'output = "softmax" and pooling = "logits"'
        )
    if any(model.l2 for model in recipe.model) and pool != "logits":
        raise ConfigError(f'{where}: model.l2 is set, inference.pooling {pool!r}; it takes pooling = "logits"')


def _check_onnx(recipe: Recipe, where: str) -> None:
    """Raise ConfigError for a table `onnx` that contradicts itself or the rest of the recipe."""
    onnx = recipe.onnx
    if onnx is not None:
        check_onnx_table(onnx, where)
    if not recipe.is_onnx:
        return
    pool = recipe.inference.pooling
    if onnx is None or len(recipe.model) * recipe.model[0].copies > 1 or recipe.model[0].output != "softmax":
        raise ConfigError(f"{where}: model.name is 'onnx'; it takes the table onnx, one network, and output = softmax")
    if pool != "mean" and (pool, onnx.output) != ("logits", "logits"):
        raise ConfigError(
            f"{where}: inference.pooling is {pool!r}, onnx.output {onnx.output!r}; an ONNX file takes pooling "
            '= "mean", or "logits" with output = "logits"'
        )


def _check_encoder(recipe: Recipe, where: str) -> None:
    """Raise ConfigError for an encoder without a head, a head without one, or what heads do not take."""
    names, heads = [model.name for model in recipe.model], ", ".join(HEADS)
    if recipe.encoder is None:
        if found := set(names) & set(HEADS):
            raise ConfigError(f"{where}: model.name is {found.pop()!r}, a head over features; it takes a table encoder")
        return
    if len(names) > 1 or names[0] not in HEADS:
        raise ConfigError(f"{where}: model.name is {', '.join(names)}; with a table encoder it is one of {heads}")
    name = recipe.encoder.name
    if not name.strip(".") or set(name) & {"/", "\\"} or name.endswith(".onnx"):
        raise ConfigError(f"{where}: encoder.name is {name!r}; give the name of a folder, or of a backbone of the kit")
    model, training = recipe.model[0], recipe.training
    if recipe.data.source != "slides" or recipe.inference.tta > 1 or recipe.inference.pooling != "mean":
        raise ConfigError(
            f"{where}: data.source is {recipe.data.source!r}, inference.tta {recipe.inference.tta}, inference.pooling "
            f"{recipe.inference.pooling!r}; over an encoder the head pools, and takes slides and no tta"
        )
    if model.shrink_novel or training.balance == "synthetic" or training.strategy != "auto":
        raise ConfigError(
            f"{where}: model.shrink_novel is {model.shrink_novel}, training.balance {training.balance!r}, "
            f"training.strategy {training.strategy!r}; heads over features do not take these"
        )
    if names[0] != "mean_pool" and model.l2:
        raise ConfigError(f"{where}: model.l2 is {model.l2}; of the heads over features only mean_pool takes it")
    if names[0] == "mean_pool" and (not model.l2 or model.output != "softmax" or model.head):
        raise ConfigError(
            f"{where}: model.l2 is {model.l2}, model.output {model.output!r}, model.head {list(model.head)}; mean_pool "
            "is linear: it takes an l2 above 0, softmax and no head"
        )
    if names[0] == "transformer" and (len(model.head) != 1 or training.final == "folds"):
        raise ConfigError(
            f"{where}: model.head is {list(model.head)}, training.final {training.final!r}; a transformer takes one "
            'number, its width, and final = "all"'
        )


def check_onnx_table(onnx: OnnxConfig, where: str) -> None:
    """Raise ConfigError for a table `onnx` with a wrong value, or two that contradict each other."""
    _check_table(onnx, ONNX, where)
    for key in ("mean", "std"):
        count = len(getattr(onnx, key))
        if count not in {1, 3}:
            raise ConfigError(f"{where}: onnx.{key} has {count} numbers; give 1, or 3: one a channel")
    if onnx.dtype == "uint8" and (set(onnx.mean), set(onnx.std)) != ({0.0}, {1.0}):
        raise ConfigError(f"{where}: onnx.dtype is 'uint8', of pixels as they are; it takes no mean and no std")


def _check_downsample_rules(recipe: Recipe, where: str) -> None:
    """Raise ConfigError for a downsample_if or mpp that is malformed, or that the tiler would not heed."""
    tiling = recipe.tiling
    for key, value in (("mpp", tiling.mpp), ("mpp_default", tiling.mpp_default)):
        if 0 < value < MIN_MPP:
            raise ConfigError(
                f"{where}: tiling.{key} is {value} micrometres per pixel; allowed: 0, which is none, or {MIN_MPP} to "
                f"{BOUNDS[key][1]}"
            )
    if tiling.mpp and (recipe.data.source != "slides" or tiling.name in OWN_DOWNSAMPLE or tiling.downsample_if):
        raise ConfigError(
            f"{where}: tiling.mpp is {tiling.mpp}, data.source {recipe.data.source!r}, tiling.name {tiling.name!r}; it "
            f"takes slides, another tiler than {', '.join(OWN_DOWNSAMPLE)}, and no downsample_if"
        )
    try:
        downsample_rules(tiling)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if tiling.downsample_if and (recipe.data.source != "slides" or tiling.name in OWN_DOWNSAMPLE):
        raise ConfigError(
            f"{where}: tiling.downsample_if is set, data.source is {recipe.data.source!r}, tiling.name "
            f"{tiling.name!r}; it takes slides and another tiler than {', '.join(OWN_DOWNSAMPLE)}"
        )


def _check_loss(recipe: Recipe, where: str) -> None:
    """Raise ConfigError for a loss that cannot teach a network with its output."""
    if any(model.output == "value" for model in recipe.model) and loss_of(recipe.training, "value") != "squared":
        raise ConfigError(
            f"{where}: training.loss is {recipe.training.loss!r}, model.output 'value'; its probability of a class two "
            'away is 0, which teaches nothing: it takes loss = "squared", or no loss'
        )


def _check_optimizer(training: TrainingConfig, where: str) -> None:
    """Raise ConfigError for a weight decay or a warm-up that the optimizer or its schedule would not heed."""
    if training.optimizer == "adam" and training.weight_decay:
        raise ConfigError(
            f"{where}: training.weight_decay is {training.weight_decay}, training.optimizer 'adam'; with weight decay "
            'it takes optimizer = "adamw"'
        )
    if training.warmup_epochs and training.schedule != "cosine":
        raise ConfigError(
            f"{where}: training.warmup_epochs is {training.warmup_epochs}, training.schedule {training.schedule!r}; "
            'it takes schedule = "cosine"'
        )
    if training.warmup_epochs >= training.epochs:
        raise ConfigError(
            f"{where}: training.warmup_epochs is {training.warmup_epochs}; allowed: 0 to {training.epochs - 1}, "
            f"training.epochs is {training.epochs}"
        )


def _check_mixing(recipe: Recipe, where: str) -> None:
    """Raise ConfigError for augment.mixup or augment.cutmix where there are no pairs of tiles to mix."""
    augment, training = recipe.augment, recipe.training
    for key in ("mixup", "cutmix"):
        value = getattr(augment, key)
        if value and recipe.inference.pooling != "mean":
            raise ConfigError(
                f"{where}: augment.{key} is {value}, inference.pooling {recipe.inference.pooling!r}; bags of tiles are "
                'not mixed: it takes pooling = "mean"'
            )
        if value and training.batch_tiles == 1:
            raise ConfigError(f"{where}: augment.{key} is {value}, training.batch_tiles 1; pairs take at least 2")
    if augment.cutmix and training.frozen_augmentations and any(model.is_frozen for model in recipe.model):
        raise ConfigError(
            f"{where}: augment.cutmix is {augment.cutmix}, over the features of a frozen network; it takes "
            "frozen_augmentations = 0, or mixup instead"
        )


def _check_table(table: Any, name: str, where: str) -> None:
    """Raise ConfigError for a number outside its BOUNDS, or a word that is not one of its WORDS."""
    for key, (low, high) in limits_of(BOUNDS, name).items():
        value = getattr(table, key, low)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, str) and not low <= number <= high:
                raise ConfigError(f"{where}: {name}.{key} is {number}; allowed: {low} to {high}")
    for key, known in limits_of(WORDS, name).items():
        word = getattr(table, key, known[0])
        if isinstance(word, str | int) and word not in known:
            raise ConfigError(f"{where}: {name}.{key} is {word!r}; allowed: {', '.join(map(str, known))}")


def limits_of(limits: Mapping[str, Limit], table: str) -> dict[str, Limit]:
    """Return those of BOUNDS or WORDS that hold in a table, by key: `table.key` goes before `key`."""
    own = {key.partition(".")[2]: limit for key, limit in limits.items() if key.startswith(f"{table}.")}
    return {key: limit for key, limit in limits.items() if "." not in key} | own
