"""The table of the board in docs/explanation/benchmarks.md, from the rows of bench/board.json."""

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.board_one import FIGURES
from bench.markdown import markdown_table
from clotkit.config import recipe_path
from clotkit.errors import ConfigError
from clotkit.files import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
BOARD, PAGE = ROOT / "bench" / "board.json", ROOT / "docs" / "explanation" / "benchmarks.md"
MARKS = ("<!-- board: begin; python -m bench.board writes it -->", "<!-- board: end -->")
SEEDS = (20220706, 1, 2, 3, 4)
OFFICIAL, WITHOUT = "official", "without_near_duplicates"

Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One line of the board: a recipe, trained by one protocol."""

    recipe: str  # name, or path of a TOML
    protocol: str  # OFFICIAL: the recipe as it is; WITHOUT: with data.near_duplicates = "drop"
    folder: str  # of its data below DATA; "": drawn by `clotkit contours`

    @property
    def name(self) -> str:
        """The recipe's name, for a path too."""
        return Path(self.recipe).stem


ENTRIES = (
    Entry("brain", OFFICIAL, "brain_mri"),
    Entry("brain_cnn", OFFICIAL, "brain_mri"),
    Entry("breastmnist", OFFICIAL, "breastmnist"),
    Entry("breastmnist", WITHOUT, "breastmnist"),
    Entry("double_contour", OFFICIAL, ""),
    Entry("bloodmnist", OFFICIAL, "bloodmnist"),
    Entry("bloodmnist", WITHOUT, "bloodmnist"),
)
# Published figures on the official pixels and parts, of which none leaves near-duplicates out: data, network, source,
# accuracy, AUC.
PUBLISHED = (
    ("BloodMNIST", "ResNet-18", "MedMNIST v2 (Yang et al. 2023)", ".958", ".998"),
    ("BloodMNIST", "Google AutoML Vision", "MedMNIST v2", ".966", ".998"),
    ("BloodMNIST", "ResNet-18, test-time augmentation, one seed", "tomrussobuilds/bloodmnist", ".9752", "-"),
    ("BloodMNIST", "best of ten networks, three seeds", "MedMNIST+", ".9485", ".9966"),
    ("BreastMNIST", "ResNet-18", "MedMNIST v2", ".863", ".901"),
    ("BreastMNIST", "Google AutoML Vision", "MedMNIST v2", ".861", ".919"),
    ("BreastMNIST", "best of ten networks, three seeds", "MedMNIST+", "-", ".8908 +- .024"),
)
PUBLISHED_HEAD = ("data, 28 px", "network", "source", "accuracy", "AUC")
HEAD = (
    "recipe, protocol", "seeds", "accuracy", "AUC", "weighted log loss", "pictures", "left out", "minutes; CPU",
    "peak MB", "weights MB",
)  # fmt: skip


def recipe_text(entry: Entry, seed: int) -> str:
    """Return the text of the recipe with this seed and, by the protocol, with data.near_duplicates.

    Raises ConfigError if the recipe's text has no place for them.
    """
    text = recipe_path(entry.recipe).read_text(encoding="utf-8")
    text, seeds = re.subn(r"^seed = .*$", f"seed = {seed}", text, flags=re.MULTILINE)
    if entry.protocol == WITHOUT:
        text = re.sub(r"^near_duplicates = .*\n", "", text, flags=re.MULTILINE)
        text = re.sub(r"^\[data\]\n", '[data]\nnear_duplicates = "drop"\n', text, flags=re.MULTILINE)
    made = tomllib.loads(text)
    drops = made.get("data", {}).get("near_duplicates") == "drop"
    if seeds != 1 or made["training"]["seed"] != seed or (entry.protocol == WITHOUT and not drops):
        raise ConfigError(f"recipe {entry.name}: needs one line 'seed = N' and a table [data]")
    return text


def recipe_key(entry: Entry, seed: int) -> str:
    """Return a hash of what a recipe sets, whatever its comments and its model card say."""
    settings = tomllib.loads(recipe_text(entry, seed))
    settings.pop("card", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a board's file; none if there is no file. Raises ConfigError for another file."""
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [row for row in rows if row["recipe"] and row["trained"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a file of the board: {error}; delete it, or restore it") from error


def rows_text(rows: Sequence[Row]) -> str:
    """Return the content of a board's file: JSON, with one row a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def add_row(board: Path, row: Row) -> None:
    """Add a row in place of that of its seed, and of those that its recipe has on other data."""
    same = ("recipe", "protocol")
    kept = [
        other
        for other in read_rows(board)
        if any(other[key] != row[key] for key in same)
        or (other["seed"] != row["seed"] and other["data_key"] == row["data_key"])
    ]
    ordered = sorted([*kept, row], key=lambda one: (one["recipe"], one["protocol"], one["seed"]))
    atomic_write_text(board, rows_text(ordered))


def rows_of(rows: Sequence[Row], entry: Entry) -> list[Row]:
    """Return the rows of an entry, of SEEDS, that agree and were made with its recipe as it is now."""
    return [
        row
        for row in rows
        if (row["recipe"], row["protocol"]) == (entry.name, entry.protocol)
        and row["seed"] in SEEDS
        and row["agree"]
        and row["recipe_key"] == recipe_key(entry, row["seed"])
    ]


def board_table(rows: Sequence[Row], entries: Sequence[Entry] = ENTRIES) -> str:
    """Return the table of the rows, and that of the published figures, in Markdown."""
    found = {entry: rows_of(rows, entry) for entry in entries}
    lines = [
        [f"`{entry.name}`, {entry.protocol.replace('_', ' ')}", *_cells(of_entry)] for entry, of_entry in found.items()
    ]
    return "\n".join([*markdown_table([HEAD, *lines]), "", *markdown_table([PUBLISHED_HEAD, *PUBLISHED])])


def _cells(rows: Sequence[Row]) -> list[str]:
    """Return the cells of one entry after its name."""
    seeds = str(len(rows)) if len(rows) >= len(SEEDS) else f"{len(rows)} of {len(SEEDS)}"
    if not rows:
        return [seeds, *["-"] * (len(HEAD) - 2)]
    wall, cpu = (fmean(row[key] for row in rows) / 60 for key in ("wall_s", "cpu_s"))
    at_least = "above " if any(row["resumed"] for row in rows) else ""
    return [
        seeds,
        *(_figure(rows, name) for name in FIGURES),
        _pictures([row["pictures"] for row in rows]),
        _left_out([row["left_out"] for row in rows]),
        f"{at_least}{wall:.1f}; {cpu:.1f}",
        f"{max(row['peak_mb'] for row in rows):,}",
        f"{rows[0]['weights_mb']:.1f}",
    ]


def _figure(rows: Sequence[Row], name: str) -> str:
    """Return mean, least and greatest value over the seeds, and the mean ends of their intervals."""
    values, low, high = ([row["trained"][name + end] for row in rows] for end in ("", "_low", "_high"))
    if None in [*values, *low, *high]:
        return "-"
    spread = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}; {fmean(low):.3f} to {fmean(high):.3f}"


def _pictures(counts: Sequence[dict[str, int]]) -> str:
    if not any(one["train"] for one in counts):
        return f"{_span(counts, 'scored')} in folds"
    return " + ".join(_span(counts, key) for key in ("train", "validation", "scored"))


def _left_out(counts: Sequence[dict[str, int] | None]) -> str:
    given = [one for one in counts if one is not None]
    return " + ".join(_span(given, key) for key in given[0]) if given else "-"


def _span(counts: Sequence[dict[str, int]], key: str) -> str:
    """Return a number of pictures; its least and greatest if the seeds split the pictures differently."""
    least, most = (of(one[key] for one in counts) for of in (min, max))
    return f"{least:,}" if least == most else f"({least:,} to {most:,})"
