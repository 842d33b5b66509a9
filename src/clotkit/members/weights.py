"""Check a member's numbers: its weights, whether all of them were loaded, and what it returns.

TensorFlow computes on with NaN: a ReLU may turn it into 0, and every slide then gets the same plausible probability.
h5py and numpy only.
"""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import WeightsError, one_line
from clotkit.files import atomic_write

LARGEST = 1e12  # magnitude of a weight: above it float32 overflows within a layer or two
LEAST_VARIANCE = -1e-6  # rounding may leave a moving variance just below 0; batch normalisation adds 1e-3
BATCH_NORMALIZATION = "batch_normalization"  # beginning of the layer's group in the file; its last array: the variance
OPTIMIZER = "optimizer/"  # group of a file that was saved with the optimizer's state, which no member needs
COMPRESSED = {"compression": "gzip", "shuffle": True}  # lossless, and any h5py reads it
LEAST_PACKED = 1000  # numbers of an array worth compressing
SUM_TOLERANCE = 0.02  # of a row's probabilities, which may come in half precision
ADVICE = "train the member again, or fetch its files again"


def check_weights(path: Path) -> None:
    """Check the file of a member's weights, without building its network.

    Raises WeightsError if it cannot be read, has no kernel that differs from 0, or has an array with a NaN, an
    infinity, a value above LARGEST or a negative variance.
    """
    arrays = dict(_arrays(path))
    for name, array in arrays.items():
        problem = _problem(name, array, arrays)
        if problem:
            raise WeightsError(f"{path}: {name} {problem}; {ADVICE}")
    if not any(array.any() for array in _kernels(arrays.values())):
        raise WeightsError(f"{path}: has {len(arrays)} arrays, none of them a kernel that differs from 0; {ADVICE}")


def pack_weights(path: Path) -> None:
    """Compress a file of weights, with half-precision arrays where these hold every value exactly.

    Keras loads such arrays into float32 variables.
    """
    import h5py

    # The file format of HDF5 1.10 and later: the headers of some hundred arrays take half a megabyte less.
    with (
        atomic_write(path) as packed,
        h5py.File(path, "r") as source,
        h5py.File(packed, "w", libver="latest") as target,
    ):

        def copy(name: str, entry: Any) -> None:
            if isinstance(entry, h5py.Group):
                copied = target.require_group(name)
            else:
                values = entry[()]
                half = values.astype(np.float16) if values.dtype == np.float32 and values.ndim >= 2 else values
                stored = half if np.array_equal(half, values) else values
                copied = target.create_dataset(name, data=stored, **(COMPRESSED if stored.size > LEAST_PACKED else {}))
            copied.attrs.update(entry.attrs)

        target.attrs.update(source.attrs)
        source.visititems(copy)


def check_loaded(path: Path, model: Any, parts: Sequence[Any]) -> None:
    """Check that a model has exactly the arrays of the file: no initial values, none left over.

    Args:
        path: the file of the weights.
        model: the Keras model that they were loaded into.
        parts: the Keras models that it is made of, none of which may have only zeros.

    Raises:
        WeightsError: the arrays differ, or a network would give the same probabilities for every tile.
    """
    wanted, loaded = (
        Counter(map(_fingerprint, model_arrays(model))),
        Counter(_fingerprint(array) for _, array in _arrays(path)),
    )
    if wanted != loaded:
        raise WeightsError(
            f"{path}: {(loaded - wanted).total()} of its {loaded.total()} arrays were not loaded, and "
            f"{(wanted - loaded).total()} of {wanted.total()} of the network have other values: it belongs to another "
            "recipe or another version of Keras; train the member again"
        )
    for number, part in enumerate(parts):
        kernels = _kernels(model_arrays(part))
        if kernels and not any(kernel.any() for kernel in kernels):
            raise WeightsError(f"{path}: part {number} of {len(parts)} of the network has only zeros; {ADVICE}")


def check_outputs(outputs: np.ndarray, probabilities: bool) -> str:
    """Return what is wrong with a member's outputs for tiles, [n, C] or [n, C + 1]; empty if nothing is.

    If they are no probabilities, they need only be finite.
    """
    finite = np.isfinite(outputs)
    if not finite.all():
        return f"returned NaN or infinity for {int((~finite.all(axis=1)).sum())} of {len(outputs)} tiles"
    if not probabilities or not outputs.size:
        return ""
    low, high, sums = float(outputs.min()), float(outputs.max()), outputs.sum(axis=1, dtype=np.float64)
    if low < -SUM_TOLERANCE or high > 1 + SUM_TOLERANCE or np.abs(sums - 1).max() > SUM_TOLERANCE:
        return (
            f"returned no probabilities: from {low:.3g} to {high:.3g}, sums from {sums.min():.3g} to {sums.max():.3g}"
        )
    return ""


def model_arrays(model: Any) -> list[np.ndarray]:
    """Return the arrays of floating-point numbers among the weights of a Keras model or layer."""
    arrays = [np.asarray(variable) for variable in model.weights]
    return [array for array in arrays if array.dtype.kind == "f"]


def _arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and values of a file's arrays of floating-point numbers. Raises WeightsError."""
    import h5py

    found: list[tuple[str, np.ndarray]] = []

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset) and entry.dtype.kind == "f" and not name.startswith(OPTIMIZER):
            found.append((name, np.asarray(entry)))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:  # h5py raises OSError, KeyError or RuntimeError for a damaged file
        raise WeightsError(f"{path}: cannot be read: {one_line(error)}; {ADVICE}") from error
    yield from found


def _problem(name: str, array: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    """Return what is wrong with an array, empty for nothing."""
    finite = np.isfinite(array)
    if not finite.all():
        return f"has NaN or infinity in {int(array.size - finite.sum())} of {array.size} values"
    largest = float(np.abs(array).max(initial=0.0))
    if largest > LARGEST:
        return f"has a value of {largest:.3g}, at most {LARGEST:.0e} is plausible"
    if _is_variance(name, arrays) and array.min(initial=0.0) < LEAST_VARIANCE:
        return f"is a variance, and its smallest value is {float(array.min()):.3g}; at least 0 is needed"
    return ""


def _is_variance(name: str, arrays: dict[str, np.ndarray]) -> bool:
    """Return whether an array is a moving variance: the last array of a batch normalisation."""
    group, _, number = name.rpartition("/")
    layer = group.removesuffix("/vars").rpartition("/")[2]
    return layer.startswith(BATCH_NORMALIZATION) and f"{group}/{int(number) + 1}" not in arrays


def _kernels(arrays: Any) -> list[np.ndarray]:
    """Return the arrays with at least two axes: kernels, but no biases or statistics."""
    return [array for array in arrays if array.ndim >= 2]


def _fingerprint(array: np.ndarray) -> tuple[tuple[int, ...], int]:
    values = np.ascontiguousarray(array, np.float32)
    return values.shape, zlib.crc32(values.tobytes())
