"""How a run's probabilities lie beside those that a member gave out of fold: a shifted set of slides shows here.

Standard library only.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BINS = 20
CHANCE = 1.358  # Kolmogorov's quantile: two samples of one distribution stay below this in 19 cases of 20


@dataclass(frozen=True)
class Histogram:
    """Probabilities of one class in BINS equal bins from 0 to 1, and their mean."""

    counts: tuple[int, ...]
    mean: float

    @property
    def n(self) -> int:
        """How many there are."""
        return sum(self.counts)

    def to_json(self) -> dict[str, Any]:
        """As run.json has it."""
        return {"counts": list(self.counts), "mean": round(self.mean, 6)}

    @classmethod
    def from_json(cls, raw: Any) -> "Histogram | None":
        """Of what run.json says; None where it says nothing of the kind."""
        try:
            counts, mean = tuple(int(count) for count in raw["counts"]), float(raw["mean"])
        except (KeyError, TypeError, ValueError):
            return None
        sound = len(counts) == BINS and min(counts) >= 0 and sum(counts) > 0 and math.isfinite(mean)
        return cls(counts, mean) if sound else None


def histogram(values: Sequence[float]) -> Histogram | None:
    """The histogram of probabilities; None of none. What lies beyond 0 and 1 counts at the ends."""
    if not values:
        return None
    counts = [0] * BINS
    for value in values:
        counts[min(max(int(value * BINS), 0), BINS - 1)] += 1
    return Histogram(tuple(counts), math.fsum(values) / len(values))


def read_out_of_fold(path: Path, name: str) -> Histogram | None:
    """The histogram of the column `name` of a member's out-of-fold table; None where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            values = [float(row[name]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return histogram(values) if all(map(math.isfinite, values)) else None


def distance(one: Histogram, other: Histogram) -> float:
    """The largest difference of their shares below any bin's end, 0 to 1: at most Kolmogorov and Smirnov's distance."""
    most, below_one, below_other = 0.0, 0, 0
    for a, b in zip(one.counts, other.counts, strict=True):
        below_one, below_other = below_one + a, below_other + b
        most = max(most, abs(below_one / one.n - below_other / other.n))
    return most


def by_chance(one: Histogram, other: Histogram) -> float:
    """What `distance` stays below in 19 cases of 20 when both are drawn alike."""
    return CHANCE * math.sqrt((one.n + other.n) / (one.n * other.n))
