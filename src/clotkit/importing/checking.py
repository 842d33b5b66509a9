"""Check what an ONNX network answers for tiles, before it becomes a member."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from clotkit.errors import WeightsError
from clotkit.members.onnx.network import OnnxNetwork
from clotkit.members.weights import SUM_TOLERANCE, check_outputs

SAME = 1e-3  # values of a tile that differ by less, relative to the largest, are equal
SQUASHING = {"Sigmoid", "Softmax"}  # operators whose values are probabilities
EVALUATION = "export it in evaluation mode, for PyTorch after model.eval()"


def check_network(network: OnnxNetwork, tiles: npt.NDArray[np.uint8], path: Path) -> None:
    """Check the answers of a network for tiles uint8[n, S, S, 3].

    Raises WeightsError if they are not finite, not what the recipe says, differ from call to call, or depend on the
    tiles beside.
    """
    values, rows = network.model(tiles), network.predict_on_batch(tiles)
    squashed, sums_to_1 = network.model.operator in SQUASHING, _sum_to_1(values)
    if problem := check_outputs(rows, not network.pools_logits):
        advice = "" if squashed or not np.isfinite(values).all() else ' or set onnx.output = "logits"'
        raise WeightsError(f"{path}: {problem}; check onnx.scale, mean and std,{advice or ' or the export'}")
    if network.model.config.output == "logits" and (squashed or sums_to_1):
        usable = sums_to_1 or values.shape[1] == 1
        advice = 'set onnx.output = "probabilities"' if usable else "export the values before the sigmoid"
        raise WeightsError(f"{path}: its logits are probabilities, of {network.model.operator or 'softmax'}; {advice}")
    if not _equal(network.model(tiles), values):
        raise WeightsError(f"{path}: answers differently when asked again, as with dropout; {EVALUATION}")
    if not _equal(network.model(tiles[:1]), values[:1]):
        raise WeightsError(f"{path}: the values of a tile depend on the tiles beside it; {EVALUATION}")
    if len(tiles) > 1 and _equal(values, values[:1]):
        raise WeightsError(
            f"{path}: returns the same values for all {len(tiles)} tiles; check onnx.scale, mean and std"
        )


def _sum_to_1(values: npt.NDArray[np.float32]) -> bool:
    """Tell whether rows of several values are probabilities that exclude each other."""
    sums = values.sum(axis=1)
    return values.shape[1] > 1 and bool(values.min() >= 0 and np.abs(sums - 1).max() < SUM_TOLERANCE / 10)


def _equal(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    return bool(np.abs(one - other).max() <= SAME * max(1.0, float(np.abs(other).max())))
