"""Networks by name, each in stages that share their layers: tiles -> maps -> features -> probabilities.

Every network takes RGB tiles in 0..255 and scales them inside, as its weights want them. Chance augments tiles outside:
a network with random layers would apply them when it is called as a function. Layers have the same names however many
networks a process has built, and a network's .weights.h5 loads into any other of the same recipe.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.config import ModelConfig
from clotkit.errors import ConfigError, one_line
from clotkit.members.backbones import find_backbone, lite0_backbone

STANDARDISE = "standardise"  # the layer that scales features: closed, its statistics are given
BN_MOMENTUM = 0.9  # Keras's 0.99 needs some 500 steps to forget its start; small recipes train for fewer
FULL = "float32"  # of what may not be computed in half precision: pixels, means, probabilities
BGR_MEANS = (103.939, 116.779, 123.68)  # of ImageNet: what ResNet and VGG subtract (keras.applications, mode caffe)
RGB_MEANS, RGB_DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, of pixels in 0..1

Stage = Callable[[Any], Any]  # layers, made once, to be applied to one or more tensors


@dataclass(frozen=True)
class Network:
    """One network in its stages, which share their layers: what trains or loads one trains or loads all.

    The stages are Keras models. Tiles are uint8 or float [n, S, S, 3], RGB in 0..255; what they give is float32.
    """

    maps: Any  # tiles -> last feature map [n, h, w, D]
    features: Any  # tiles -> pooled features [n, D]
    head: Any  # features [n, D] -> probabilities [n, C]; for attention [n, C + 1]: C logits, and that of attention
    model: Any  # tiles -> what head gives; its weights are those that a member ships


@dataclass(frozen=True)
class Kind:
    """What a name stands for: how pixels are scaled, what makes the maps, the least side that it takes."""

    scale: Callable[[], list[Any]]
    backbone: Callable[[int], Any] | None = None  # side -> Keras model of scaled pixels; None: trained from scratch
    least_px: int = 1


def build_network(
    config: ModelConfig,
    tile_px: int,
    classes: int,
    pool: str = "mean",
    backbones: Path | None = None,
    base: Network | None = None,
) -> Network:
    """The network of a recipe, for tiles of side `tile_px` and `classes` classes, with fresh weights or ImageNet's.

    The head: with config.standardise the features' normalisation (fit sets it); for each of config.head a dense layer,
    batch normalisation, ReLU and dropout (only dropout where it is empty); then the classes' softmax. For pool
    "attention" the head gives logits instead, and with them the logit of gated attention (Ilse et al. 2018,
    "Attention-based deep multiple instance learning"): w . (tanh(V h) * sigmoid(U h)), V and U with biases;
    members.pooling.pool_attention makes a slide's probabilities of them. For pool "logits" the attention is the same
    for every tile, and config.l2 holds the classes' weights small.
    config.freeze keeps the backbone's weights, and in training too it computes as it does in inference;
    config.unfreeze_top opens that many of its layers with weights, from the top: batch normalisation stays closed, its
    statistics with it (a small batch would spoil them), and is not counted.
    config.weights "imagenet" reads a file in `backbones` or in a folder right inside it (see find_backbone); to load a
    member's own weights afterwards, say "none": the network is the same. With `base`, a network of the same config,
    only the head is new: the stages below it are those of the base.
    Raises ConfigError for an unknown name, settings that do not go together, too small a tile, and a missing file.
    """
    return _build(config, tile_px, classes, pool, backbones, config.name, base)


def build_committee(
    configs: Sequence[ModelConfig], tile_px: int, classes: int, pool: str = "mean", backbones: Path | None = None
) -> tuple[list[Network], Any]:
    """The networks of a recipe, one for each config and copy, and the Keras model of them all.

    That model gives the mean of their probabilities [n, C], each network weighted by its config's `share` (every copy
    has it whole); of a single network it is the network's own model. Networks of the same config whose backbone is
    frozen as a whole share it: it is computed once for all of them. Raises ConfigError as build_network does, and for
    another pool than the mean over several networks.
    """
    members = expanded(configs)
    if len(members) == 1:
        network = build_network(members[0], tile_px, classes, pool, backbones)
        return [network], network.model
    if not members or pool != "mean" or sum(config.share for config in members) <= 0:
        raise ConfigError(
            f"model: {len(members)} networks, pool {pool!r}, shares that sum to {sum(c.share for c in members):g}; "
            "several networks need pool 'mean' and a positive sum; give at least 1"
        )
    names = [f"network{index}_{config.name}" for index, config in enumerate(members)]
    networks: list[Network] = []
    bases: dict[ModelConfig, Network] = {}
    for config, name in zip(members, names, strict=True):
        network = _build(config, tile_px, classes, pool, backbones, name, bases.get(config))
        if config.is_frozen:
            bases.setdefault(config, network)
        networks.append(network)
    return networks, _mean(networks, [config.share for config in members], tile_px)


def expanded(configs: Sequence[ModelConfig]) -> list[ModelConfig]:
    """One entry a network: each config as often as it wants copies."""
    return [config for config in configs for _ in range(config.copies)]


def _mean(networks: list[Network], shares: list[float], tile_px: int) -> Any:
    from keras import Input, Model, layers

    tiles = Input((tile_px, tile_px, 3), name="tiles")
    parts = [
        layers.Rescaling(share / sum(shares), dtype=FULL, name=f"share{index}")(network.model(tiles))
        for index, (network, share) in enumerate(zip(networks, shares, strict=True))
    ]
    return Model(tiles, layers.Add(dtype=FULL, name="mean")(parts), name="committee")  # parts: [n, C] each


def _build(
    config: ModelConfig,
    tile_px: int,
    classes: int,
    pool: str,
    backbones: Path | None,
    name: str,
    base: Network | None = None,
) -> Network:
    from keras import Input, Model

    if base is not None:
        return _on(base, config, classes, pool, name)
    kind = _kind(config, tile_px, classes, pool)
    tiles = Input((tile_px, tile_px, 3), name="tiles")
    maps = _maps(config, kind, _scaled(tiles, kind, config.input_px), backbones)  # [n, h, w, D]
    pooled = _pooled(config, maps)  # [n, D]
    head = _head(config, classes, pool)
    features = Input(pooled.shape[1:], name="features")
    return Network(
        maps=Model(tiles, maps, name=f"{name}_maps"),
        features=Model(tiles, pooled, name=f"{name}_features"),
        head=Model(features, head(features), name=f"{name}_head"),
        model=Model(tiles, head(pooled), name=name),
    )


def _on(base: Network, config: ModelConfig, classes: int, pool: str, name: str) -> Network:
    """A new head on the stages of another network."""
    from keras import Input, Model

    head, width = _head(config, classes, pool), base.features.output.shape[1:]
    features = Input(width, name="features")
    return Network(
        maps=base.maps,
        features=base.features,
        head=Model(features, head(features), name=f"{name}_head"),
        model=Model(base.features.input, head(base.features.output), name=name),
    )


def _kind(config: ModelConfig, tile_px: int, classes: int, pool: str) -> Kind:
    """What the config's name stands for. Raises ConfigError for an unknown one or settings it does not take."""
    kind, side = KINDS.get(config.name), config.input_px or tile_px
    if kind is None:
        raise ConfigError(f"model.name is {config.name!r}; known: {', '.join(sorted(KINDS))}")
    if kind.backbone is None and (config.freeze or config.last_layer or config.weights != "none"):
        raise ConfigError(
            f"model {config.name}: freeze is {config.freeze}, weights is {config.weights!r}, "
            f"last_layer is {config.last_layer!r}; it has no backbone: set freeze = false, weights = 'none' and no "
            "last_layer"
        )
    if kind.backbone is None and not config.filters:
        raise ConfigError(f"model {config.name}: filters is empty; give one number of channels for each block")
    if config.unfreeze_top and not config.freeze:
        raise ConfigError(f"model {config.name}: unfreeze_top is {config.unfreeze_top}, which needs freeze = true")
    if side < kind.least_px:
        raise ConfigError(f"model {config.name}: its input is {side} px, at least {kind.least_px}; set input_px")
    if config.name == "cnn_flat" and classes != 2 and pool == "mean":
        raise ConfigError(f"model cnn_flat: {classes} classes; its one sigmoid unit tells 2 apart: use cnn")
    return kind


def _scaled(tiles: Any, kind: Kind, input_px: int) -> Any:
    """Tiles in 0..255 as the network wants them, resized first where it wants another side."""
    from keras import layers

    x = tiles
    if input_px not in (0, tiles.shape[1]):
        resized = layers.Resizing(input_px, input_px, "bilinear", antialias=True, dtype=FULL, name="resize")
        x = resized(x)  # [n, S, S, 3] -> [n, input_px, input_px, 3]
    for layer in kind.scale():
        x = layer(x)
    return x


def _range(scale: float, offset: float) -> Callable[[], list[Any]]:
    """Pixels times `scale`, plus `offset`."""

    def make() -> list[Any]:
        from keras import layers

        return [layers.Rescaling(scale, offset, dtype=FULL, name="scale")]

    return make


def _centred_bgr() -> list[Any]:
    """RGB to BGR, minus ImageNet's means: what keras.applications calls caffe."""
    from keras import layers

    flip = layers.Lambda(lambda x: x[..., ::-1], dtype=FULL, name="bgr")
    return [flip, layers.Rescaling(1.0, [-mean for mean in BGR_MEANS], dtype=FULL, name="scale")]


def _as_they_come() -> list[Any]:
    return []


def _maps(config: ModelConfig, kind: Kind, x: Any, backbones: Path | None) -> Any:
    """Scaled pixels [n, s, s, 3] -> the last feature map [n, h, w, D]."""
    if kind.backbone is None:
        return (_cnn_flat if config.name == "cnn_flat" else _cnn)(config, x)
    backbone = kind.backbone(x.shape[1])
    if config.weights == "imagenet":
        _load(backbone, find_backbone(config.name, backbones))
    _set_normalisation(backbone)
    backbone = _cut(backbone, config)
    if config.freeze:
        _freeze(backbone, config)
    return backbone(x)


def _load(backbone: Any, path: Path) -> None:
    try:
        backbone.load_weights(path)
    except Exception as error:
        raise ConfigError(f"{path}: does not fit {backbone.name}: {one_line(error)}; make the file again") from error


def _cut(backbone: Any, config: ModelConfig) -> Any:
    """The backbone up to the layer config.last_layer. Raises ConfigError for a layer that it has not, or without maps.

    ImageNet's upper layers know its things; what tissue is made of shows lower down (Raghu et al. 2019, "Transfusion:
    understanding transfer learning for medical imaging").
    """
    from keras import Model

    if not config.last_layer:
        return backbone
    with_maps = [layer.name for layer in backbone.layers[1:] if len(layer.output.shape) == 4]
    if config.last_layer not in with_maps:
        ends = ", ".join(name for name in with_maps if name.endswith(("add", "out", "pool")) or "mixed" in name)
        raise ConfigError(
            f"model {config.name}: last_layer is {config.last_layer!r}; it has no such layer; some of it: {ends}"
        )
    return Model(backbone.input, backbone.get_layer(config.last_layer).output, name=backbone.name)


def _set_normalisation(backbone: Any) -> None:
    """Give the normalisation inside Keras's EfficientNet ImageNet's means and deviations.

    Keras's files have deviations where variances belong. Keras makes up for it with one more layer, but only when it
    downloads the file itself; see its efficientnet.py. A new network has 0 and 1 there.
    """
    import numpy as np
    from keras import layers

    for layer in backbone.layers:
        if isinstance(layer, layers.Normalization):
            layer.set_weights([np.array(RGB_MEANS), np.square(RGB_DEVIATIONS), np.array(0)])
            layer.finalize_state()


def _freeze(backbone: Any, config: ModelConfig) -> None:
    """Close all layers but the top `unfreeze_top` of those that can be opened. Raises ConfigError when it has fewer.

    Closed batch normalisation computes as in inference. That it is called with training=False would not do: inside
    another model, Keras lets the outer model's training=True win. Neither may dropout change a frozen feature.
    """
    from keras import layers

    can_open = [layer for layer in backbone.layers if layer.trainable_weights and not _is_norm(layer)]
    if config.unfreeze_top > len(can_open):
        raise ConfigError(
            f"model {config.name}: unfreeze_top is {config.unfreeze_top}; it has {len(can_open)} layers with weights "
            "other than batch normalisation"
        )
    opened = can_open[len(can_open) - config.unfreeze_top :]
    backbone.trainable = bool(opened)  # a closed model would hide what is open inside
    for layer in backbone.layers:
        layer.trainable = layer in opened
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0


def _is_norm(layer: Any) -> bool:
    from keras import layers

    return isinstance(layer, layers.BatchNormalization)


def _cnn(config: ModelConfig, x: Any) -> Any:
    """For each of `filters`: `convolutions` of convolution, batch normalisation and ReLU, then max pooling.

    Pooling is left out where it would give a map of less than 2 x 2.
    """
    from keras import layers

    for block, filters in enumerate(config.filters):  # [n, h, w, c] -> [n, h / 2, w / 2, filters]
        for index in range(config.convolutions):
            name = f"block{block}_{index}"
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
            x = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{name}_bn")(x)
            x = layers.ReLU(name=f"{name}_relu")(x)
        if x.shape[1] >= 4:
            x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
    return x


def _cnn_flat(config: ModelConfig, x: Any) -> Any:
    """For each of `filters`: convolution without a border, ReLU, max pooling. Raises ConfigError for too many."""
    from keras import layers

    for block, filters in enumerate(config.filters):  # [n, h, w, c] -> [n, (h - 2) / 2, (w - 2) / 2, filters]
        if x.shape[1] < 4:
            raise ConfigError(
                f"model cnn_flat: the map is {x.shape[1]} px before block {block + 1} of {len(config.filters)}, "
                "at least 4; give fewer filters or larger tiles"
            )
        x = layers.Conv2D(filters, 3, activation="relu", name=f"block{block}_conv")(x)
        x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
    return x


def _pooled(config: ModelConfig, maps: Any) -> Any:
    """[n, h, w, D] -> [n, D]; for cnn_flat -> [n, h * w * D]."""
    from keras import layers

    if config.name == "cnn_flat":
        return layers.Flatten(dtype=FULL, name="pooled")(maps)
    return layers.GlobalAveragePooling2D(dtype=FULL, name="pooled")(maps)  # in half precision a sum may overflow


def _head(config: ModelConfig, classes: int, pool: str) -> Stage:
    """The layers from the features to the output, which its caller may apply to several tensors."""
    hidden = _hidden(config)
    if pool == "attention":
        last = _attention(config.attention_units, classes)
    elif pool == "logits":
        last = _even(config.l2, classes)
    else:
        last = _sigmoid() if config.name == "cnn_flat" else _softmax(classes)

    def apply(x: Any) -> Any:
        for layer in hidden:
            x = layer(x)
        return last(x)

    return apply


def _hidden(config: ModelConfig) -> list[Any]:
    from keras import layers

    hidden: list[Any] = []
    if config.standardise:
        hidden.append(layers.BatchNormalization(center=False, scale=False, trainable=False, name=STANDARDISE))
    for index, units in enumerate(config.head):
        hidden += [
            layers.Dense(units, name=f"head{index}_dense"),
            layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"head{index}_bn"),
            layers.ReLU(name=f"head{index}_relu"),
            layers.Dropout(config.dropout, name=f"head{index}_dropout"),
        ]
    return hidden if config.head else [*hidden, layers.Dropout(config.dropout, name="dropout")]


def _softmax(classes: int) -> Stage:
    from keras import layers

    last: Stage = layers.Dense(classes, activation="softmax", dtype=FULL, name="classes")
    return last


def _sigmoid() -> Stage:
    """One unit gives p; the output is [1 - p, p]."""
    from keras import layers

    unit = layers.Dense(1, activation="sigmoid", dtype=FULL, name="classes")
    other = layers.Rescaling(-1.0, 1.0, dtype=FULL, name="other_class")
    both = layers.Concatenate(dtype=FULL, name="probabilities")

    def apply(x: Any) -> Any:
        p = unit(x)  # [n, 1]
        return both([other(p), p])

    return apply


def _even(ridge: float, classes: int) -> Stage:
    """Features [n, D] -> [n, C + 1]: the classes' logits, and the same attention for every tile."""
    from keras import layers, regularizers

    logits = layers.Dense(classes, kernel_regularizer=regularizers.L2(ridge), dtype=FULL, name="classes")
    even = layers.Dense(1, use_bias=False, kernel_initializer="zeros", trainable=False, dtype=FULL, name="attention_0")
    both = layers.Concatenate(dtype=FULL, name="rows")

    def apply(x: Any) -> Any:
        return both([logits(x), even(x)])  # [n, C], [n, 1]

    return apply


def _attention(units: int, classes: int) -> Stage:
    """Features h [n, D] -> [n, C + 1]: the classes' logits, and w . (tanh(V h) * sigmoid(U h))."""
    from keras import layers

    logits = layers.Dense(classes, dtype=FULL, name="classes")
    content = layers.Dense(units, activation="tanh", name="attention_v")
    gate = layers.Dense(units, activation="sigmoid", name="attention_u")
    gated = layers.Multiply(name="attention_gated")
    weight = layers.Dense(1, use_bias=False, dtype=FULL, name="attention_w")  # a bias would cancel in the softmax
    both = layers.Concatenate(dtype=FULL, name="rows")

    def apply(x: Any) -> Any:
        return both([logits(x), weight(gated([content(x), gate(x)]))])  # [n, C], [n, 1] from [n, units]

    return apply


def _application(function: str) -> Callable[[int], Any]:
    """A network of keras.applications without its classifier and without weights, as a function of the side."""

    def make(side_px: int) -> Any:
        import keras

        build = getattr(keras.applications, function)
        backbone = build(include_top=False, weights=None, input_shape=(side_px, side_px, 3))
        _rename(backbone)
        return backbone

    return make


def _rename(backbone: Any) -> None:
    """Number anew the layers that Keras has numbered: its counters go on from one network to the next."""
    counts: dict[str, int] = {}
    for layer in backbone.layers:
        kind = re.sub(r"_\d+$", "", layer.name)
        if kind.replace("_", "") == type(layer).__name__.lower():
            layer.name = f"{kind}_{counts.setdefault(kind, 0)}"
            counts[kind] += 1


KINDS = {
    "cnn": Kind(_range(1 / 127.5, -1.0)),
    "cnn_flat": Kind(_range(1 / 255, 0.0)),
    "resnet50": Kind(_centred_bgr, _application("ResNet50"), 32),
    "resnet101": Kind(_centred_bgr, _application("ResNet101"), 32),
    "vgg16": Kind(_centred_bgr, _application("VGG16"), 32),
    "vgg19": Kind(_centred_bgr, _application("VGG19"), 32),
    "inceptionv3": Kind(_range(1 / 127.5, -1.0), _application("InceptionV3"), 75),
    "efficientnetb0": Kind(_as_they_come, _application("EfficientNetB0"), 32),
    "efficientnetb1": Kind(_as_they_come, _application("EfficientNetB1"), 32),
    "efficientnet_lite0": Kind(_range(1 / 128, -127 / 128), lite0_backbone, 32),
}
