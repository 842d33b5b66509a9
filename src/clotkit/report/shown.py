"""Reduce the probabilities of a slide, or of a tile, to the one number that pages draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.competitions import Competition, Rule
from clotkit.members.decision import expectations


class Kind(StrEnum):
    """The number that is drawn."""

    LAST = "last_class"  # probability of the last of two classes
    EXPECTED = "expected_class"  # expected class number, of three or more classes in order
    LIKELIEST = "likeliest_class"  # probability of the likeliest class, of three or more


@dataclass(frozen=True)
class Shown:
    """The number that pages draw of each slide and tile."""

    kind: Kind
    classes: tuple[str, ...]

    @classmethod
    def of(cls, competition: Competition) -> "Shown":
        """Return the number for a competition."""
        return cls.by_rule(competition.classes.names, competition.submission.rule)

    @classmethod
    def by_rule(cls, classes: Sequence[str], rule: str) -> "Shown":
        """Return the number for some classes, which some rules take to be in order."""
        if len(classes) <= 2:
            return cls(Kind.LAST, tuple(classes))
        return cls(
            Kind.EXPECTED if any(one == rule and one.is_ordinal for one in Rule) else Kind.LIKELIEST, tuple(classes)
        )

    @property
    def top(self) -> float:
        """The largest value: the number of the last class, or 1 for a probability."""
        return float(len(self.classes) - 1) if self.kind is Kind.EXPECTED else 1.0

    @property
    def name(self) -> str:
        """The heading of a column."""
        last = self.classes[-1] if self.classes else "the last class"
        return {Kind.LAST: f"p({last})", Kind.EXPECTED: "Expected class", Kind.LIKELIEST: "p(likeliest)"}[self.kind]

    @property
    def text(self) -> str:
        """The name within a sentence."""
        first, last = (self.classes[0], self.classes[-1]) if self.classes else ("the first class", "the last class")
        return {
            Kind.LAST: f"probability of {last}",
            Kind.EXPECTED: f"expected class number, from 0 ({first}) to {self.top:g} ({last})",
            Kind.LIKELIEST: "probability of the likeliest class",
        }[self.kind]

    def levels(self, rows: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the number of each row of probabilities [n, C], as a share of its largest value: float64[n]."""
        p = np.asarray(rows, np.float64)
        if self.kind is Kind.LAST:
            return p[:, -1]
        if self.kind is Kind.LIKELIEST:
            return np.asarray(p.max(axis=1), np.float64)
        return np.asarray(expectations(p) / self.top, np.float64)

    def level(self, row: Any) -> float:
        """Return the number of one row of probabilities [C], as a share of its largest value."""
        return float(self.levels([row])[0])
