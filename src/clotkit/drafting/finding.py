"""Describe one thing of a competition's TOML that does not fit."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from clotkit.errors import on_one_line
from clotkit.reasons import Misfit

NOTES = frozenset({Misfit.UNUSED_PATTERN, Misfit.HIDDEN_TEST, Misfit.FILL_IN, Misfit.PRIOR_FAR})
MOST_NAMED = 5  # rows or ids in a sentence


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit, or a note."""

    code: Misfit
    where: str  # the file, as the competition names it
    text: str  # for people
    key: str = ""  # of the TOML, with its table
    row: int = 0  # the first row of `where`, from 1; 0: it is not about rows
    count: int = 1  # rows, ids or labels that do not fit
    of: int = 0  # of so many; 0: does not apply

    @property
    def note(self) -> bool:
        """Return True if it is no fault: the file fits the data as it is."""
        return self.code in NOTES

    @property
    def line(self) -> str:
        """Return the finding for people, on one line."""
        row = f": row {self.row}" if self.row else ""
        return f"{'note ' * self.note}{self.code}: {self.where}{row}: {on_one_line(self.text)}"

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        return {**asdict(self), "note": self.note}


def some(names: Collection[str]) -> str:
    """Return the first names, and how many more there are."""
    first = ", ".join(name or "(blank)" for name in list(names)[:MOST_NAMED])
    return first + f" and {len(names) - MOST_NAMED} more" * (len(names) > MOST_NAMED)
