"""Compare a run's probabilities with a member's out-of-fold ones, to detect a shift of the slides."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.report.shown import Shown

BINS = 20
KOLMOGOROV_95 = 1.358  # 95 % quantile of the Kolmogorov distribution


@dataclass(frozen=True)
class Histogram:
    """The numbers of many slides, as shares of their largest value, in BINS equal bins from 0 to 1."""

    counts: tuple[int, ...]
    mean: float

    @property
    def n(self) -> int:
        """The number of probabilities."""
        return sum(self.counts)

    def to_json(self) -> dict[str, Any]:
        """Return the form that run.json has."""
        return {"counts": list(self.counts), "mean": round(self.mean, 6)}

    @classmethod
    def from_json(cls, raw: Any) -> "Histogram | None":
        """Return the histogram of a value in run.json; None if it is not a valid one."""
        try:
            counts, mean = tuple(int(count) for count in raw["counts"]), float(raw["mean"])
        except (KeyError, TypeError, ValueError):
            return None
        sound = len(counts) == BINS and min(counts) >= 0 and sum(counts) > 0 and math.isfinite(mean)
        return cls(counts, mean) if sound else None


def histogram(values: Sequence[float]) -> Histogram | None:
    """Return the histogram of probabilities, None if there are none.

    Values outside 0 to 1 count in the first and the last bin.
    """
    if not values:
        return None
    counts = [0] * BINS
    for value in values:
        counts[min(max(int(value * BINS), 0), BINS - 1)] += 1
    return Histogram(tuple(counts), math.fsum(values) / len(values))


def read_out_of_fold(path: Path, shown: Shown) -> Histogram | None:
    """Return the histogram of what is shown of a member's out-of-fold table; None if it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [[float(row[name]) for name in shown.classes] for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    values = shown.levels(rows).tolist() if rows else []
    return histogram(values) if all(map(math.isfinite, values)) else None


def distance(one: Histogram, other: Histogram) -> float:
    """Return the Kolmogorov-Smirnov distance of two histograms, 0 to 1.

    It is the largest difference of their cumulative shares at an edge of the bins, so at most that of the samples.
    """
    most, below_one, below_other = 0.0, 0, 0
    for a, b in zip(one.counts, other.counts, strict=True):
        below_one, below_other = below_one + a, below_other + b
        most = max(most, abs(below_one / one.n - below_other / other.n))
    return most


def critical_distance(one: Histogram, other: Histogram) -> float:
    """Return the Kolmogorov-Smirnov distance that two samples of one distribution exceed in 1 of 20 cases.

    It is the asymptotic value for the samples themselves; `distance`, that of their histograms, exceeds it less often.
    """
    return KOLMOGOROV_95 * math.sqrt((one.n + other.n) / (one.n * other.n))
