"""Tell whether a picture is unlike a member's training pictures, by plain statistics of its tiles.

A network answers whatever it is shown, with confidence too. The distance here is Mahalanobis's, of a picture's
statistics from those of the training pictures; Lee et al. 2018 ("A simple unified framework for detecting
out-of-distribution samples", NeurIPS) take features of the network instead. Plain statistics need no network, so their
threshold can be set on pictures that had no part in them, by patient.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.data.tiles import TileSet
from clotkit.errors import ConfigError, one_line

Floats = npt.NDArray[np.float64]
Tiles = npt.NDArray[np.uint8]  # [n, S, S, 3]

FAMILIAR_SHARE = 0.99  # of pictures like the training pictures that are within the threshold
FEWEST_IMAGES, FEWEST_PATIENTS = 50, 5  # with fewer, the threshold would say nothing
PARTS = 5  # groups of patients, each measured from the others
SHRINKAGE = 0.1  # of the correlations towards 0, so that their matrix can be inverted whatever the statistics
SMALLEST_SCALE = 0.004  # of a statistic, about one grey level: else one that never varied would decide alone
LEVELS = 16  # bins of the histogram of brightness
RINGS = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # edges of the bands of the spectrum, cycles per pixel
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
CHUNK = 64  # tiles in memory as floats together


@dataclass(frozen=True)
class Familiarity:
    """The statistics of a member's training pictures, and how far from them a picture may be."""

    mean: Floats  # [K], of each statistic
    scale: Floats  # [K], its standard deviation
    precision: Floats  # [K, K], inverse of the shrunken correlations
    threshold: float  # FAMILIAR_SHARE of pictures like the training pictures are at most this far

    def distance(self, tiles: Tiles) -> float:
        """Return the distance of one picture, by its tiles: about 1 for a training picture."""
        return float(self._distances(statistics(tiles).mean(axis=0)[None])[0])

    def distances(self, tiles: TileSet) -> Floats:
        """Return the distance of each picture, in the order in which their first tiles come."""
        return self._distances(_of_images(tiles))

    def unlike(self, distances: Floats) -> npt.NDArray[np.bool_]:
        """Tell which distances are above the threshold; one that is no number is."""
        return ~(distances <= self.threshold)

    def _distances(self, rows: Floats) -> Floats:
        z = (rows - self.mean) / self.scale  # [n, K]
        squares: Floats = np.einsum("nk,kl,nl->n", z, self.precision, z)
        return np.sqrt(np.maximum(squares, 0) / len(self.mean))

    def to_json(self) -> dict[str, Any]:
        """Return the content of familiarity.json."""
        return {
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "precision": self.precision.tolist(),
            "threshold": self.threshold,
        }


def read_familiarity(path: Path) -> Familiarity | None:
    """Read a familiarity.json; None if there is none, as in members of slides and of earlier versions.

    Raises ConfigError if it is damaged, or its numbers are not finite or not those of this version's statistics.
    """
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        arrays = {name: np.array(raw[name], np.float64) for name in ("mean", "scale", "precision", "threshold")}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}; train the member again") from error
    shapes = {name: array.shape for name, array in arrays.items()}
    wanted = {"mean": (KNOWN,), "scale": (KNOWN,), "precision": (KNOWN, KNOWN), "threshold": ()}
    finite = all(np.isfinite(array).all() for array in arrays.values())
    if shapes != wanted or not finite or arrays["scale"].min() < SMALLEST_SCALE or arrays["threshold"] <= 0:
        raise ConfigError(
            f"{path}: shapes {shapes}, {'finite' if finite else 'not finite'}; needed: {KNOWN} finite statistics, "
            f"scales of at least {SMALLEST_SCALE} and a threshold above 0; train the member again"
        )
    if (least := float(np.linalg.eigvalsh(arrays["precision"]).min())) <= 0:
        raise ConfigError(
            f"{path}: the precision has an eigenvalue of {least:.3g}, so no distance follows; above 0 is needed; train "
            "the member again"
        )
    return Familiarity(arrays["mean"], arrays["scale"], arrays["precision"], float(arrays["threshold"]))


def fit_familiarity(tiles: TileSet, held_out: npt.NDArray[np.bool_]) -> tuple[Familiarity, dict[str, Any]] | None:
    """Return the statistics of pictures, and facts for metrics.json; None for too few pictures.

    Pictures of fewer than FEWEST_PATIENTS patients are too few as well.
    The threshold is a quantile of distances that are each measured from the pictures of other patients.

    Args:
        tiles: of all labelled pictures.
        held_out: the tiles [n] of pictures that take no part, and on which false alarms are counted. If it has none,
            they are counted by thresholds from the other groups of patients.
    """
    first = tiles.first_rows()
    rows, patients, aside = _of_images(tiles), tiles.patients[first], held_out[first]
    used, owners = rows[~aside], patients[~aside]
    if len(used) < FEWEST_IMAGES or len(set(owners)) < FEWEST_PATIENTS:
        return None
    groups = _groups(owners)
    distances = np.zeros(len(used))
    for group in range(PARTS):
        distances[groups == group] = _fitted(used[groups != group], 1.0)._distances(used[groups == group])
    familiarity = _fitted(used, _quantile(distances))
    new = aside & ~np.isin(patients, owners)  # a near-identical picture is of the same patient
    if aside.any():
        unlike = familiarity.unlike(familiarity._distances(rows[new]))
    else:
        limits = np.array([_quantile(distances[groups != group]) for group in range(PARTS)])
        unlike = distances > limits[groups]
    return familiarity, {
        "images": len(used),
        "distance_threshold": round(familiarity.threshold, 6),
        "held_out": len(unlike),
        "unlike_share": round(float(unlike.mean()), 6) if len(unlike) else None,
    }


def statistics(tiles: Tiles) -> Floats:
    """Return the statistics [n, K] of tiles, each from 0 to about 1.

    They are the square roots of the histogram of brightness; mean and deviation of each channel; the mean difference
    of the channels; mean and root mean square of the steps between neighbours, down and across; and the logarithm of
    the spectrum's mean power in bands from coarse to fine.
    """
    return np.concatenate([_of_chunk(tiles[start : start + CHUNK]) for start in range(0, len(tiles), CHUNK)])


def _of_chunk(tiles: Tiles) -> Floats:
    colours = tiles.astype(np.float32) / 255  # [n, S, S, 3]
    luma = colours @ LUMA  # [n, S, S]
    parts = [part for measure in MEASURES for part in measure(colours, luma)]
    return np.stack(parts, axis=1).astype(np.float64)


def _histogram(colours: npt.NDArray[np.float32], luma: npt.NDArray[np.float32]) -> Iterator[Any]:
    level = np.minimum((luma * LEVELS).astype(np.int8), LEVELS - 1)
    yield from (np.sqrt((level == number).mean(axis=(1, 2))) for number in range(LEVELS))


def _channels(colours: npt.NDArray[np.float32], luma: npt.NDArray[np.float32]) -> Iterator[Any]:
    yield from np.moveaxis(colours.mean(axis=(1, 2)), 1, 0)
    yield from np.moveaxis(colours.std(axis=(1, 2)), 1, 0)
    yield (colours.max(axis=3) - colours.min(axis=3)).mean(axis=(1, 2))


def _steps(colours: npt.NDArray[np.float32], luma: npt.NDArray[np.float32]) -> Iterator[Any]:
    for axis in (1, 2):
        steps = np.abs(np.diff(luma, axis=axis))
        yield steps.mean(axis=(1, 2))
        yield np.sqrt((steps**2).mean(axis=(1, 2)))


def _spectrum(colours: npt.NDArray[np.float32], luma: npt.NDArray[np.float32]) -> Iterator[Any]:
    """Yield log(1 + power) / 20 of each band; 0 where a small tile has no frequency in it."""
    side = luma.shape[1]
    window = np.hanning(side)[:, None] * np.hanning(side)
    centred = luma - luma.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.rfft2(centred * window * 255)) ** 2  # [n, S, S / 2 + 1]
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    for low, high in pairwise(RINGS):
        ring = (radius > low) & (radius <= high)
        yield np.log1p(power[:, ring].mean(axis=1)) / 20 if ring.any() else np.zeros(len(luma))


MEASURES: tuple[Callable[..., Iterator[Any]], ...] = (_histogram, _channels, _steps, _spectrum)
KNOWN = LEVELS + 7 + 4 + len(RINGS) - 1  # number of statistics


def _of_images(tiles: TileSet) -> Floats:
    """Return the mean statistics of each picture's tiles, in the order of the pictures' first tiles."""
    of_tiles = statistics(tiles.tiles)
    return np.stack([of_tiles[rows].mean(axis=0) for rows in tiles.rows_by_image()])


def _groups(patients: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """Return the group 0 to PARTS - 1 of each picture; a patient's pictures are in one."""
    names, index = np.unique(patients, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[index] % PARTS


def _fitted(rows: Floats, threshold: float) -> Familiarity:
    mean, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), SMALLEST_SCALE)
    z = (rows - mean) / scale
    correlations = (1 - SHRINKAGE) * z.T @ z / len(z) + SHRINKAGE * np.eye(z.shape[1])
    return Familiarity(mean, scale, np.linalg.inv(correlations), threshold)


def _quantile(distances: Floats) -> float:
    """Return the distance that a further picture is above with a chance of 1 - FAMILIAR_SHARE.

    With fewer than 99 distances it is their greatest, which 1 in n + 1 is above.
    """
    rank = min(int(np.ceil((len(distances) + 1) * FAMILIAR_SHARE)), len(distances))
    return float(np.sort(distances)[rank - 1])
