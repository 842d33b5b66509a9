"""Build a recipe's networks, each in stages that share their layers: maps, features and head.

Every network takes RGB tiles in 0..255 and scales the pixels inside, as its weights expect them. Augmentation happens
outside the network (see training.augment): Keras would apply random layers inside one whenever it is called as a
function. Layer names do not depend on how many networks a process has built, so a network's .weights.h5 loads into any
other network of the same recipe.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from clotkit.config import ONNX, ModelConfig
from clotkit.errors import ConfigError, one_line
from clotkit.members.backbones import find_backbone, lite0_backbone
from clotkit.members.heads import FLOAT32, Stage, output_layers

STANDARDISE = "standardise"  # name of the layer that standardises features; it is not trained, its statistics are set
SHRINK_NOVEL = "shrink_novel"  # name of the layer that shrinks novel features; it is not trained either
BN_MOMENTUM = 0.9  # Keras's 0.99 needs some 500 steps to forget its initial values; small recipes train for fewer
BGR_MEANS = (103.939, 116.779, 123.68)  # ImageNet's, which ResNet and VGG subtract (keras.applications, mode "caffe")
RGB_MEANS, RGB_DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for pixels in 0..1


@dataclass(frozen=True)
class Network:
    """One network as four Keras models that share their layers: training or loading one changes all.

    Tiles are uint8 or float [n, S, S, 3], RGB in 0..255; outputs are float32.
    """

    maps: Any  # tiles -> last feature map [n, h, w, D]
    features: Any  # tiles -> pooled features [n, D]
    head: Any  # features [n, D] -> probabilities [n, C]; with attention or logits pooling rows [n, C + 1]
    model: Any  # tiles -> the output of head; a member ships the weights of this model
    output: str = "softmax"  # the config's: what its values are, see members.heads


@dataclass(frozen=True)
class ModelSpec:
    """An entry of the model registry: what a recipe's model.name stands for."""

    scale: Callable[[], list[Any]]  # builds the layers that scale pixels
    backbone: Callable[[int], Any] | None = None  # input side -> Keras model of scaled pixels; None: no backbone
    min_px: int = 1  # smallest input side


def build_network(
    config: ModelConfig,
    tile_px: int,
    classes: int,
    pool: str = "mean",
    backbones: Path | None = None,
    base: Network | None = None,
) -> Network:
    """Build one network with fresh weights or ImageNet's.

    The head has, in this order: with config.standardise a standardisation of the features, whose statistics training
    sets; for each of config.head a dense layer, batch normalisation, ReLU and dropout (or dropout alone if it is
    empty); and one output layer by `pool`:

    - "mean": the probabilities of the classes, [n, C].
    - "attention": rows [n, C + 1] of the values of the classes and the logit of gated attention (Ilse et al. 2018,
      "Attention-based deep multiple instance learning"): w . (tanh(V h) * sigmoid(U h)), V and U with biases.
      members.pooling.pool_attention turns a slide's rows into probabilities.
    - "logits": rows as for attention, but with the same attention for every tile, and with config.l2 as a penalty on
      the weights of the classes.

    config.output chooses the values and their link to probabilities (members.heads): the softmax of one logit a class;
    cumulative logits after CORAL, one weight vector and ordered biases; or one value from 0 to C - 1.

    config.freeze keeps the backbone's weights, and the backbone computes in training as it does in inference.
    config.unfreeze_top makes that many of its layers with weights trainable, from the top. Batch normalisation does not
    count and stays frozen with its statistics, which small batches would spoil. config.half_weights rounds the kernels
    of a frozen backbone to half precision before anything is computed with them.

    Args:
        config: one [model] table of a recipe. weights = "imagenet" reads a file (see backbones.find_backbone); use
            "none" to load a member's own weights afterwards: the network is the same.
        tile_px: side of the tiles.
        classes: number of classes.
        pool: the recipe's inference.pooling.
        backbones: folder of ImageNet weights.
        base: a network of the same config; only the head is new, all other stages are those of the base.

    Raises:
        ConfigError: the name is unknown, settings contradict each other, the tiles are too small, or a file is missing.
    """
    return _build(config, tile_px, classes, pool, backbones, config.name, base)


def check_networks(
    configs: Sequence[ModelConfig], tile_px: int, classes: int, pool: str = "mean", backbones: Path | None = None
) -> None:
    """Raise ConfigError for settings that build_network refuses, and for a missing file; nothing is built."""
    for config in configs:
        _spec(config, tile_px, classes, pool)
        if config.weights == "imagenet":
            find_backbone(config.name, backbones)


def build_encoder(config: ModelConfig, tile_px: int, weights: Path) -> Any:
    """Build a frozen backbone with the weights of a file.

    It maps tiles [n, S, S, 3] in 0..255 to features float32 [n, D], the mean of each feature map. Raises ConfigError as
    build_network does.
    """
    from keras import Input, Model

    spec = _spec(config, tile_px, 2, "mean")
    tiles = Input((tile_px, tile_px, 3), name="tiles")
    maps = _backbone_maps(config, spec, _scaled(tiles, spec, config.input_px), weights)  # [n, h, w, D]
    return Model(tiles, _pooled(config, maps), name=f"{config.name}_features")


def build_committee(
    configs: Sequence[ModelConfig], tile_px: int, classes: int, pool: str = "mean", backbones: Path | None = None
) -> tuple[list[Network], Any]:
    """Build the networks of a recipe, one per config and copy, and one Keras model of them all.

    That model returns the mean of their probabilities [n, C], each network weighted by its config's `share`, every copy
    by the whole share. For a single network it is the network's own model. Networks of the same config whose backbone
    is entirely frozen share it, so it is computed once for all of them. Raises ConfigError as build_network does, and
    when several networks pool by anything but the mean.
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
    """Return one config per network: each config as often as its `copies`."""
    return [config for config in configs for _ in range(config.copies)]


def _mean(networks: list[Network], shares: list[float], tile_px: int) -> Any:
    """Return a model of tiles [n, S, S, 3] -> the weighted mean of the networks' probabilities [n, C]."""
    from keras import Input, Model, layers

    tiles = Input((tile_px, tile_px, 3), name="tiles")
    parts = [
        layers.Rescaling(share / sum(shares), dtype=FLOAT32, name=f"share{index}")(network.model(tiles))
        for index, (network, share) in enumerate(zip(networks, shares, strict=True))
    ]
    return Model(tiles, layers.Add(dtype=FLOAT32, name="mean")(parts), name="committee")  # parts: [n, C] each


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
        return _with_new_head(base, config, classes, pool, name)
    spec = _spec(config, tile_px, classes, pool)
    tiles = Input((tile_px, tile_px, 3), name="tiles")
    maps = _maps(config, spec, _scaled(tiles, spec, config.input_px), backbones)  # [n, h, w, D]
    pooled = _pooled(config, maps)  # [n, D]
    head = _head(config, classes, pool)
    features = Input(pooled.shape[1:], name="features")
    return Network(
        maps=Model(tiles, maps, name=f"{name}_maps"),
        features=Model(tiles, pooled, name=f"{name}_features"),
        head=Model(features, head(features), name=f"{name}_head"),
        model=Model(tiles, head(pooled), name=name),
        output=config.output,
    )


def _with_new_head(base: Network, config: ModelConfig, classes: int, pool: str, name: str) -> Network:
    """Return a network with a new head on the stages of another one."""
    from keras import Input, Model

    head, width = _head(config, classes, pool), base.features.output.shape[1:]
    features = Input(width, name="features")
    return Network(
        maps=base.maps,
        features=base.features,
        head=Model(features, head(features), name=f"{name}_head"),
        model=Model(base.features.input, head(base.features.output), name=name),
        output=config.output,
    )


def _spec(config: ModelConfig, tile_px: int, classes: int, pool: str) -> ModelSpec:
    """Look up a config's name. Raises ConfigError if it is unknown, or for settings that it does not take."""
    spec, side = MODEL_REGISTRY.get(config.name), config.input_px or tile_px
    if spec is None:
        hint = "; an ONNX file is trained elsewhere: clotkit member import" if config.name == ONNX else ""
        raise ConfigError(f"model.name is {config.name!r}; known: {', '.join(sorted(MODEL_REGISTRY))}{hint}")
    if spec.backbone is None and (config.freeze or config.last_layer or config.weights != "none"):
        raise ConfigError(
            f"model {config.name}: freeze is {config.freeze}, weights is {config.weights!r}, "
            f"last_layer is {config.last_layer!r}; it has no backbone: set freeze = false, weights = 'none' and no "
            "last_layer"
        )
    if spec.backbone is None and not config.filters:
        raise ConfigError(f"model {config.name}: filters is empty; give one number of channels for each block")
    if config.half_weights and not config.is_frozen:
        raise ConfigError(
            f"model {config.name}: half_weights is true, freeze {config.freeze}, unfreeze_top {config.unfreeze_top}; "
            "it needs freeze = true and unfreeze_top = 0: trained weights keep full precision"
        )
    if config.unfreeze_top and not config.freeze:
        raise ConfigError(f"model {config.name}: unfreeze_top is {config.unfreeze_top}, which needs freeze = true")
    if side < spec.min_px:
        raise ConfigError(
            f"model {config.name}: its input is {side} px, at least {spec.min_px} are needed; set input_px"
        )
    if config.name == "cnn_flat" and classes != 2 and pool == "mean" and config.output == "softmax":
        raise ConfigError(f"model cnn_flat: {classes} classes; its single sigmoid unit separates 2: use cnn")
    return spec


def _scaled(tiles: Any, spec: ModelSpec, input_px: int) -> Any:
    """Resize tiles in 0..255 if the network has another input side, and scale them: [n, s, s, 3]."""
    from keras import layers

    x = tiles
    if input_px not in (0, tiles.shape[1]):
        resized = layers.Resizing(input_px, input_px, "bilinear", antialias=True, dtype=FLOAT32, name="resize")
        x = resized(x)  # [n, S, S, 3] -> [n, input_px, input_px, 3]
    for layer in spec.scale():
        x = layer(x)
    return x


def _affine_scaling(scale: float, offset: float) -> Callable[[], list[Any]]:
    """Return a builder of the layer that computes pixel * scale + offset."""

    def make() -> list[Any]:
        from keras import layers

        return [layers.Rescaling(scale, offset, dtype=FLOAT32, name="scale")]

    return make


def _centred_bgr() -> list[Any]:
    """Return the layers of keras.applications' mode "caffe": RGB to BGR, minus ImageNet's means."""
    from keras import layers

    flip = layers.Lambda(lambda x: x[..., ::-1], dtype=FLOAT32, name="bgr")
    return [flip, layers.Rescaling(1.0, [-mean for mean in BGR_MEANS], dtype=FLOAT32, name="scale")]


def _no_scaling() -> list[Any]:
    return []


def _maps(config: ModelConfig, spec: ModelSpec, x: Any, backbones: Path | None) -> Any:
    """Return the last feature map [n, h, w, D] of scaled pixels [n, s, s, 3]."""
    if spec.backbone is None:
        return {"cnn": _cnn, "cnn_flat": _cnn_flat, "resnet": _resnet}[config.name](config, x)
    return _backbone_maps(
        config, spec, x, find_backbone(config.name, backbones) if config.weights == "imagenet" else None
    )


def _backbone_maps(config: ModelConfig, spec: ModelSpec, x: Any, weights: Path | None) -> Any:
    """Return the last feature map of a backbone, with the weights of a file, or random ones."""
    assert spec.backbone is not None
    backbone = spec.backbone(x.shape[1])
    if weights is not None:
        load_backbone(backbone, weights)
    set_imagenet_normalisation(backbone)
    backbone = _truncated(backbone, config)
    if config.freeze:
        _freeze(backbone, config)
    if config.half_weights:
        _round_to_half(backbone)
    return backbone(x)


def load_backbone(backbone: Any, path: Path) -> None:
    """Load weights into a backbone. Raises ConfigError when they do not fit."""
    try:
        backbone.load_weights(path)
    except Exception as error:
        raise ConfigError(f"{path}: does not fit {backbone.name}: {one_line(error)}; make the file again") from error


def _truncated(backbone: Any, config: ModelConfig) -> Any:
    """Return the backbone up to the layer config.last_layer, or all of it if that is empty.

    The upper layers of an ImageNet network detect ImageNet's objects; textures such as tissue show in lower ones
    (Raghu et al. 2019, "Transfusion: understanding transfer learning for medical imaging"). Raises ConfigError when
    the backbone has no such layer with maps.
    """
    from keras import Model

    if not config.last_layer:
        return backbone
    with_maps = [layer.name for layer in backbone.layers[1:] if len(layer.output.shape) == 4]
    if config.last_layer not in with_maps:
        ends = ", ".join(name for name in with_maps if name.endswith(("add", "out", "pool")) or "mixed" in name)
        raise ConfigError(
            f"model {config.name}: last_layer is {config.last_layer!r}, which is no layer with maps; some are: {ends}"
        )
    return Model(backbone.input, backbone.get_layer(config.last_layer).output, name=backbone.name)


def set_imagenet_normalisation(backbone: Any) -> None:
    """Set the normalisation inside Keras's EfficientNet to ImageNet's means and variances.

    Keras's weight files hold deviations where variances belong. Keras corrects it with one more layer, but only when it
    downloads the file itself; see its efficientnet.py. A new network has mean 0 and variance 1 there.
    """
    import numpy as np
    from keras import layers

    for layer in backbone.layers:
        if isinstance(layer, layers.Normalization):
            layer.set_weights([np.array(RGB_MEANS), np.square(RGB_DEVIATIONS), np.array(0)])
            layer.finalize_state()


def _freeze(backbone: Any, config: ModelConfig) -> None:
    """Freeze all layers except the top `unfreeze_top` of those that can be trained.

    A frozen batch normalisation computes as in inference. Calling it with training=False would not be enough: inside
    another model, the outer model's training=True wins in Keras. Dropout is switched off, because it would change
    frozen features. Raises ConfigError when the backbone has too few trainable layers.
    """
    from keras import layers

    trainable = [layer for layer in backbone.layers if layer.trainable_weights and not _is_norm(layer)]
    if config.unfreeze_top > len(trainable):
        raise ConfigError(
            f"model {config.name}: unfreeze_top is {config.unfreeze_top}; it has {len(trainable)} layers with weights "
            "other than batch normalisation"
        )
    unfrozen = trainable[len(trainable) - config.unfreeze_top :]
    backbone.trainable = bool(unfrozen)  # a frozen model would freeze every layer inside
    for layer in backbone.layers:
        layer.trainable = layer in unfrozen
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0


def _round_to_half(backbone: Any) -> None:
    """Round the kernels to numbers that half precision has, so that weights.pack_weights loses nothing.

    Normalisation stays as it is: a variance may lie outside the range of half precision.
    """
    import numpy as np

    for variable in backbone.weights:
        if len(variable.shape) >= 2:
            variable.assign(np.asarray(variable).astype(np.float16).astype(np.float32))


def _is_norm(layer: Any) -> bool:
    from keras import layers

    return isinstance(layer, layers.BatchNormalization)


def _cnn(config: ModelConfig, x: Any) -> Any:
    """Apply one block per entry of `filters`: convolutions, then max pooling.

    Each of `convolutions` has batch normalisation and ReLU after it. Pooling is skipped when it would make the map
    smaller than 2 x 2.
    """
    from keras import layers

    for block, filters in enumerate(config.filters):  # [n, h, w, c] -> [n, h / 2, w / 2, filters]
        for index in range(config.convolutions):
            name = f"block{block}_{index}"
            x = layers.ReLU(name=f"{name}_relu")(_convolved(x, filters, name))
        if x.shape[1] >= 4:
            x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
    return x


def _convolved(x: Any, filters: int, name: str, side: int = 3, strides: int = 1) -> Any:
    """Apply a convolution without bias, and batch normalisation."""
    from keras import layers

    x = layers.Conv2D(filters, side, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{name}_bn")(x)


def _resnet(config: ModelConfig, x: Any) -> Any:
    """Apply a convolution, then one stage of `convolutions` residual blocks per entry of `filters`.

    Every stage but the first halves the map, unless that would make it smaller than 2 x 2. Source: He et al. 2016,
    "Deep residual learning for image recognition", section 4.2: the networks for pictures of 32 px.
    """
    from keras import layers

    x = layers.ReLU(name="stem_relu")(_convolved(x, config.filters[0], "stem"))
    for stage, filters in enumerate(config.filters):  # [n, h, w, c] -> [n, h / 2, w / 2, filters]
        for block in range(config.convolutions):
            halves = stage > 0 and block == 0 and x.shape[1] >= 4
            x = _residual(x, filters, 2 if halves else 1, f"stage{stage}_{block}")
    return x


def _residual(x: Any, filters: int, strides: int, name: str) -> Any:
    """Apply two convolutions and add their input, projected (1 x 1) where its shape differs."""
    from keras import layers

    inner = layers.ReLU(name=f"{name}_relu0")(_convolved(x, filters, f"{name}_0", strides=strides))
    inner = _convolved(inner, filters, f"{name}_1")
    if strides > 1 or x.shape[-1] != filters:
        x = _convolved(x, filters, f"{name}_shortcut", 1, strides)
    return layers.ReLU(name=f"{name}_relu1")(layers.Add(name=f"{name}_add")([x, inner]))


def _cnn_flat(config: ModelConfig, x: Any) -> Any:
    """Apply one block per entry of `filters`: convolution without padding, ReLU, max pooling.

    Raises ConfigError when there are too many blocks for the size of the tiles.
    """
    from keras import layers

    for block, filters in enumerate(config.filters):  # [n, h, w, c] -> [n, (h - 2) / 2, (w - 2) / 2, filters]
        if x.shape[1] < 4:
            raise ConfigError(
                f"model cnn_flat: the map is {x.shape[1]} px before block {block + 1} of {len(config.filters)}, "
                "at least 4 are needed; give fewer filters or larger tiles"
            )
        x = layers.Conv2D(filters, 3, activation="relu", name=f"block{block}_conv")(x)
        x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
    return x


def _pooled(config: ModelConfig, maps: Any) -> Any:
    """Pool maps [n, h, w, D] to features [n, D]; for cnn_flat flatten them to [n, h * w * D]."""
    from keras import layers

    if config.name == "cnn_flat":
        return layers.Flatten(dtype=FLOAT32, name="pooled")(maps)
    return layers.GlobalAveragePooling2D(dtype=FLOAT32, name="pooled")(maps)  # a sum may overflow in half precision


def _head(config: ModelConfig, classes: int, pool: str) -> Stage:
    """Build the layers from features [n, D] to the output; the function applies them to any tensor."""
    hidden, last = _hidden(config), output_layers(config, classes, pool)

    def apply(x: Any) -> Any:
        for layer in hidden:
            x = layer(x)
        return last(x)

    return apply


def _hidden(config: ModelConfig) -> list[Any]:
    """Build the layers of the head below its output layer."""
    from keras import layers

    hidden: list[Any] = []
    if config.standardise:
        hidden.append(layers.BatchNormalization(center=False, scale=False, trainable=False, name=STANDARDISE))
    if config.shrink_novel:
        hidden.append(_shrink_novel()(trainable=False, dtype=FLOAT32, name=SHRINK_NOVEL))
    for index, units in enumerate(config.head):
        hidden += [
            layers.Dense(units, name=f"head{index}_dense"),
            layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"head{index}_bn"),
            layers.ReLU(name=f"head{index}_relu"),
            layers.Dropout(config.dropout, name=f"head{index}_dropout"),
        ]
    return hidden if config.head else [*hidden, layers.Dropout(config.dropout, name="dropout")]


@cache
def _shrink_novel() -> Any:
    """Return the class of the layer that shrinks features far from those of training, [n, D] -> [n, D].

    A row is divided by the fourth power of its distance |(x - centre) whitening|, if that is above 1. training.frozen
    sets the weights so that tiles of training have a mean squared distance of 1: a Mahalanobis distance, which tells
    unknown classes better than confidence (Lee et al. 2018, "A simple unified framework for detecting
    out-of-distribution samples"). At first nothing is shrunk.
    """
    from keras import layers, ops

    class ShrinkNovel(layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            width = shape[-1]
            self.centre = self.add_weight(shape=(width,), initializer="zeros", name="centre")
            self.whitening = self.add_weight(shape=(width, width), initializer="zeros", name="whitening")

        def call(self, x: Any) -> Any:
            whitened = ops.matmul(x - self.centre, self.whitening)  # [n, D]
            squared = ops.sum(ops.square(whitened), axis=-1, keepdims=True)  # [n, 1]
            return x / ops.square(ops.maximum(squared, 1.0))

    return ShrinkNovel


def _application(function: str) -> Callable[[int], Any]:
    """Return a builder of a network of keras.applications, without its classifier and with fresh weights."""

    def make(side_px: int) -> Any:
        import keras

        build = getattr(keras.applications, function)
        backbone = build(include_top=False, weights=None, input_shape=(side_px, side_px, 3))
        _rename(backbone)
        return backbone

    return make


def _rename(backbone: Any) -> None:
    """Renumber the layers that Keras has numbered: its counters continue from network to network."""
    counts: dict[str, int] = {}
    for layer in backbone.layers:
        kind = re.sub(r"_\d+$", "", layer.name)
        if kind.replace("_", "") == type(layer).__name__.lower():
            layer.name = f"{kind}_{counts.setdefault(kind, 0)}"
            counts[kind] += 1


MODEL_REGISTRY = {
    "cnn": ModelSpec(_affine_scaling(1 / 127.5, -1.0)),
    "cnn_flat": ModelSpec(_affine_scaling(1 / 255, 0.0)),
    "resnet": ModelSpec(_affine_scaling(1 / 127.5, -1.0)),
    "resnet50": ModelSpec(_centred_bgr, _application("ResNet50"), 32),
    "resnet101": ModelSpec(_centred_bgr, _application("ResNet101"), 32),
    "vgg16": ModelSpec(_centred_bgr, _application("VGG16"), 32),
    "vgg19": ModelSpec(_centred_bgr, _application("VGG19"), 32),
    "inceptionv3": ModelSpec(_affine_scaling(1 / 127.5, -1.0), _application("InceptionV3"), 75),
    "efficientnetb0": ModelSpec(_no_scaling, _application("EfficientNetB0"), 32),
    "efficientnetb1": ModelSpec(_no_scaling, _application("EfficientNetB1"), 32),
    "efficientnet_lite0": ModelSpec(_affine_scaling(1 / 128, -127 / 128), lite0_backbone, 32),
}
